"""A resident OpenVINO model behind the engine seam: one compiled graph, one infer request for each sequence."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy

from modeld.engine.backend import Slice, StepResult
from modeld.engine.openvino.lexicon import OpenvinoLexicon, first_line
from modeld.engine.openvino.sampler import Logits, LogitsSampler
from modeld.engine.openvino.sequences import SequenceKV, StateError
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

    The sequences of a step are computed one after the other: states of one length are all that a batch could hold.

    :param compile_: gives the graph on its device. :param inputs: names of what it takes.
    :param rows: logits of a row; 0: as many as the tokeniser has tokens.
    """

    grows = True
    copies = True

    def __init__(
        self, compile_: Callable[[], Any], inputs: frozenset[str], rows: int, request: Load, device: str
    ) -> None:
        super().__init__(Path(request.path), request.name)
        self.vocabulary = max(rows, self.vocabulary)
        self._compile = compile_
        self._compiled = compile_()
        self.kv_layout = f"states, device {device}{_told(self._compiled)}"
        self._inputs = inputs
        self._batch, self._limit = request.batch, request.cells
        self._ones = numpy.ones((1, request.window + request.batch), numpy.int64)
        self._row = numpy.zeros(1, numpy.int32)
        heads = [(state.state.shape[1], state.state.shape[3]) for state in self._make().query_state()]
        self._sequences = [SequenceKV(self._make, KINDS[request.kv_type], heads) for _ in range(request.sequences)]
        self._read: SequenceKV | None = None
        self._abort = False
        self._rows: list[Logits] = []

    def step(self, slices: list[Slice]) -> StepResult:
        """Compute the slices in their order."""
        tokens = sum(len(part.tokens) for part in slices)
        if tokens > self._batch:
            return StepResult.FAILED
        if sum(sequence.tokens for sequence in self._sequences) + tokens > self._limit:
            return StepResult.NO_SPACE
        self._rows = []
        for part in slices:
            result = self._compute(part)
            if result is not StepResult.OK:
                return result
        return StepResult.OK

    def _compute(self, part: Slice) -> StepResult:
        sequence = self._sequences[part.sequence]
        if sequence.tokens != part.start:
            return StepResult.FAILED
        for at in range(0, len(part.tokens), PIECE):
            if self._abort:
                return StepResult.ABORTED
            tokens = part.tokens[at : at + PIECE]
            try:
                request = sequence.request()
                request.infer(self._feeds(sequence.tokens, tokens), share_inputs=True, share_outputs=True)
            except (RuntimeError, StateError) as error:
                print(f"modeld engine: OpenVINO could not compute: {first_line(error)}", file=sys.stderr)
                self._begin_anew(sequence)
                return StepResult.FAILED
            sequence.tokens += len(tokens)
        if part.logits:
            # The next step of this request writes to the same place.
            self._rows.append(request.get_output_tensor(0).data[0, -1].astype(numpy.float32))
        return StepResult.OK

    def _begin_anew(self, broken: SequenceKV) -> None:
        """Compile the graph again, and forget what is in the states of ``broken``.

        All requests share the graph's memory of shapes, and one that did not come to its end leaves it wrong: the next
        requests then fail or, for all that is known, compute something else.
        """
        for sequence in self._sequences:
            try:
                if sequence is not broken:
                    sequence.detach()
                    continue
            except StateError as error:
                print(f"modeld engine: a sequence is lost: {error}", file=sys.stderr)
            sequence.cut(0)
        self._compiled = self._compile()

    def _make(self) -> Any:
        return self._compiled.create_infer_request()

    def _feeds(self, start: int, tokens: list[int]) -> dict[str, Any]:
        end = start + len(tokens)
        feeds = {
            "input_ids": numpy.array([tokens], numpy.int64),
            "attention_mask": self._ones[:, :end],
            "position_ids": numpy.arange(start, end, dtype=numpy.int64)[None],
            "beam_idx": self._row,
        }
        return {name: value for name, value in feeds.items() if name in self._inputs}

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
