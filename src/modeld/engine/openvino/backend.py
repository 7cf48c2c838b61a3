"""A resident OpenVINO model behind the engine seam: one compiled graph, requests for one sequence or for several."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import numpy

from modeld.engine.backend import Slice, StepResult
from modeld.engine.openvino.graph import Graph
from modeld.engine.openvino.group import ROWS, Gathering, Group, StateError, groups_of, let_leave, masks_padding
from modeld.engine.openvino.lexicon import OpenvinoLexicon, first_line
from modeld.engine.openvino.sampler import Logits, LogitsSampler
from modeld.engine.openvino.sequences import SequenceKV
from modeld.engine.protocol import Load
from modeld.types import DecodeOptions

KINDS: dict[str, type[numpy.floating[Any]]] = {"f16": numpy.float16, "f32": numpy.float32}
"""KV types. With u8 a state that was read and written would not be the same: it is not among them."""


_NUMBERS = ("INFERENCE_PRECISION_HINT", "KV_CACHE_PRECISION", "DYNAMIC_QUANTIZATION_GROUP_SIZE")

PIECE = 256
"""Tokens of a sequence that are computed at once, between two looks at whether to stop. On busy cores 2,000 tokens of
the 90m shape went at 545 a second at best in pieces of 128, 775 in pieces of 256, 696 in pieces of 512."""


class OpenvinoBackend(OpenvinoLexicon):
    """Used by one thread, but for :meth:`request_abort`.

    Pieces of prompts are computed one after the other; sequences that decode, together where that pays
    (:class:`Gathering`).

    :param compile_: gives the graph on its device.
    :raises ModelLoadError: the tokeniser has tokens that the graph does not know.
    """

    grows = True
    copies = True

    def __init__(self, compile_: Callable[[], Any], graph: Graph, request: Load, device: str) -> None:
        super().__init__(Path(request.path), request.name)
        graph.check_tokens(self.vocabulary, request.name)
        self.vocabulary = max(graph.rows, self.vocabulary)
        self._compile = compile_
        self._compiled = compile_()
        self.kv_layout = f"states, device {device}{_told(self._compiled)}"
        self._inputs = graph.inputs
        self._batch, self._limit = request.batch, request.cells
        self._kind = KINDS[request.kv_type]
        self._heads = [(state.state.shape[1], state.state.shape[3]) for state in self._make().query_state()]
        self._gathering = Gathering(sum(heads * length for heads, length in self._heads))
        self.together = graph.inputs >= ROWS and self._masks_padding(request.window - 1)
        """Whether sequences can be computed together."""
        self._sequences = [self._sequence() for _ in range(request.sequences)]
        self._read: SequenceKV | None = None
        self._abort = False
        self._rows: list[Logits] = []

    def _sequence(self) -> SequenceKV:
        return SequenceKV(self._make, self._kind, self._heads)

    def _masks_padding(self, far: int) -> bool:
        why = "its graph does not keep the rows of a batch apart"
        try:
            if masks_padding(self._make, self._sequence, far):
                return True
        except (RuntimeError, StateError) as error:
            why = first_line(error)
            self._compiled = self._compile()
        print(f"modeld engine: streams are computed one after the other: {why}", file=sys.stderr)
        return False

    def step(self, slices: list[Slice]) -> StepResult:
        """Compute the slices: those that decode in their groups, others in their order."""
        tokens = sum(len(part.tokens) for part in slices)
        if tokens > self._batch:
            return StepResult.FAILED
        spare = self._spare() - tokens
        if spare < 0:
            return StepResult.NO_SPACE
        if any(self._sequences[part.sequence].tokens != part.start for part in slices):
            return StepResult.FAILED
        try:
            return self._compute(slices, spare)
        except (RuntimeError, StateError) as error:
            print(f"modeld engine: OpenVINO could not compute: {first_line(error)}", file=sys.stderr)
            self._begin_anew()
            return StepResult.FAILED

    def _compute(self, slices: list[Slice], spare: int) -> StepResult:
        found: dict[int, Logits] = {}
        together = apart = 0.0
        for group, parts in self._arranged(slices, spare):
            began = monotonic()
            for at in range(0, len(parts[0].tokens), PIECE):
                if self._abort:
                    return StepResult.ABORTED
                feeds = group.feeds([part.tokens[at : at + PIECE] for part in parts])
                logits = group.infer({name: value for name, value in feeds.items() if name in self._inputs})
            if len(parts) > 1:
                together += monotonic() - began
            elif len(parts[0].tokens) == 1:
                apart += monotonic() - began
            for row, part in enumerate(parts):
                if part.logits:
                    # The next step of this request writes to the same place.
                    found[part.sequence] = logits[row].astype(numpy.float32)
        self._gathering.took(together, apart)
        self._rows = [found[part.sequence] for part in slices if part.logits]
        return StepResult.OK

    def _arranged(self, slices: list[Slice], spare: int) -> Iterator[tuple[Group, list[Slice]]]:
        """Groups whose members are all to be computed, with the parts in the order of their rows."""
        parts = {self._sequences[part.sequence]: part for part in slices}
        decoding = [sequence for sequence, part in parts.items() if len(part.tokens) == 1]
        let_leave(parts, decoding)
        padding = self._squeeze(spare)
        if self.together:
            self._gathering.arrange(decoding, spare - padding, self._make)
        while parts:
            sequence = next(iter(parts))
            group = sequence.group or sequence.alone()
            yield group, [parts.pop(member) for member in group.members]

    def _spare(self) -> int:
        return self._limit - sum(sequence.tokens for sequence in self._sequences)

    def _squeeze(self, spare: int) -> int:
        """Where padding takes more cells than there are to spare, it goes, and its groups with it.

        :returns: cells that padding takes now.
        """
        padded = [group for group in groups_of(self._sequences) if group.padding]
        padding = sum(group.padding for group in padded)
        if padding <= spare:
            return padding
        for group in padded:
            group.release(group.members)
        return 0

    def _begin_anew(self) -> None:
        """Compile the graph again. All keep what they held before the step.

        All requests share the graph's memory of shapes, and one that did not come to its end leaves it wrong: the next
        requests then fail or, for all that is known, compute something else.
        """
        for group in groups_of(self._sequences):
            try:
                group.release(group.members, broken=True)
            except StateError as error:
                print(f"modeld engine: {len(group.members)} sequences are lost: {error}", file=sys.stderr)
                for member in group.members:
                    member.cut(0)
        self._compiled = self._compile()

    def _make(self) -> Any:
        return self._compiled.create_infer_request()

    def sampler(self, options: DecodeOptions, seed: int, history: list[int]) -> LogitsSampler:
        """A sampler in numpy."""
        return LogitsSampler(self.logits, self.vocabulary, options, seed, history)

    def logits(self, row: int) -> Logits:
        """Logits of the last step's ``row``-th slice that wanted them."""
        return self._rows[row]

    def length(self, sequence: int) -> int:
        """Tokens that the states have."""
        return self._sequences[sequence].measured()

    def remove(self, sequence: int, start: int, end: int = -1) -> bool:
        """Cut the states. ``False``: only an end can be forgotten, or a state is not what it should be."""
        kv = self._sequences[sequence]
        if 0 <= end < kv.tokens:
            return False
        try:
            if start < kv.tokens:
                kv.cut(start)
                self._squeeze(self._spare())
        except (RuntimeError, StateError) as error:
            print(f"modeld engine: {first_line(error)}", file=sys.stderr)
            return False
        # It may have lost more than that in a step that failed.
        return start == 0 or kv.tokens == start or end >= 0

    def share(self, source: int, target: int, start: int = 0, end: int = -1) -> None:
        """Copy the source's positions behind the target's."""
        giver = self._keep(source)
        end = giver.tokens if end < 0 else min(end, giver.tokens)
        if start < end:
            self._sequences[target].append(giver.part(start, end))
            self._squeeze(self._spare())

    def save(self, sequence: int, start: int = 0, end: int = -1) -> bytes:
        """The values of these positions, layer by layer."""
        kv = self._keep(sequence)
        return kv.save(start, kv.tokens if end < 0 else end)

    def restore(self, sequence: int, state: bytes, start: int = 0, end: int = -1) -> bool:
        """The values again. They go to the engine, and are read back, before the next step of the sequence."""
        kv = self._sequences[sequence]
        if (layers := kv.read(state, start, end)) is None or kv.tokens != start:
            return False
        kv.append(layers)
        self._squeeze(self._spare())
        return True

    def _keep(self, sequence: int) -> SequenceKV:
        """The sequence, whose values may be kept as arrays until another's are read."""
        kv = self._sequences[sequence]
        if self._read is not None and self._read is not kv:
            self._read.forget_copy()
        self._read = kv
        return kv

    def request_abort(self) -> None:
        """End the step that runs, after at most :data:`PIECE` tokens. Ending a request inside breaks the graph."""
        self._abort = True

    def clear_abort(self) -> None:
        """Let the next step run."""
        self._abort = False

    def close(self) -> None:
        """Free all sequences and the graph."""
        for sequence in self._sequences:
            sequence.cut(0)
        self._compiled = None
        super().close()


def _told(compiled: Any) -> str:
    """What a compiled graph says of its numbers."""
    supported = set(compiled.get_property("SUPPORTED_PROPERTIES"))
    told = [(key.lower(), compiled.get_property(key)) for key in _NUMBERS if key in supported]
    return "".join(
        f", {key} {value.get_type_name() if hasattr(value, 'get_type_name') else value}" for key, value in told
    )
