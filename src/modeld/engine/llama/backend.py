"""A resident llama.cpp model behind the engine seam."""

from __future__ import annotations

import ctypes
from typing import Any

from modeld.engine.backend import Slice, StepResult
from modeld.engine.llama.cells import Cells
from modeld.engine.llama.lexicon import LlamaLexicon
from modeld.engine.llama.sampler import LlamaSampler, forbid
from modeld.engine.protocol import Load
from modeld.errors import ModelLoadError
from modeld.types import DecodeOptions


def shares_parts(native: Any, model: Any) -> bool:
    """Whether a part of a sequence can be shared and forgotten: a recurrent state is one for the whole sequence."""
    return not (native.llama_model_is_recurrent(model) or native.llama_model_is_hybrid(model))


def guarded_window(native: Any, model: Any) -> int:
    """The window of a model whose sequences need a guard (:class:`Cells`); 0: it has none, or only goes on."""
    return int(native.llama_model_n_swa(model)) if shares_parts(native, model) else 0


class LlamaBackend(LlamaLexicon):
    """One model, one context, one batch. Used by one thread, but for :meth:`request_abort`."""

    copies = False

    def __init__(self, native: Any, model: Any, context: Any, request: Load, kv_layout: str) -> None:
        self.kv_layout = kv_layout
        super().__init__(native, model)
        self._context = context
        self._batch = native.llama_batch_init(request.batch, 0, 1)
        self._limit = request.batch
        self._rows: list[int] = []
        for i in range(request.batch):
            self._batch.n_seq_id[i] = 1
        self._flag = self._install_abort()
        self.shares = shares_parts(native, model)
        self._cells = Cells(native, context, request.sequences, guarded_window(native, model))
        self.grows = not native.llama_model_is_recurrent(model)

    def _install_abort(self) -> Any:
        """Let the processor backend ask, between graph nodes, whether to stop.

        It must be native: a Python callback costs 12-16 % of decode on a small model. ``strlen`` is one that every libc
        has: on the two bytes ``x 0`` it returns x != 0, which is the flag itself.
        """
        flag = ctypes.create_string_buffer(2)
        address = ctypes.cast(ctypes.CDLL(None).strlen, ctypes.c_void_p).value
        self._n.llama_set_abort_callback(
            self._context, self._n.ggml_abort_callback(address), ctypes.cast(flag, ctypes.c_void_p)
        )
        return flag

    def step(self, slices: list[Slice]) -> StepResult:
        """``llama_decode`` of one batch; its results 0, 1, 2 and the rest are the four of :class:`StepResult`."""
        batch = self._batch
        tokens, positions, sequences, wanted = batch.token, batch.pos, batch.seq_id, batch.logits
        rows: list[int] = []
        i = 0
        for part in slices:
            position = part.start
            for token in part.tokens:
                tokens[i] = token
                positions[i] = position
                sequences[i][0] = part.sequence + 1
                wanted[i] = 0
                position += 1
                i += 1
            if part.logits:
                wanted[i - 1] = 1
                rows.append(i - 1)
        if i > self._limit:
            return StepResult.FAILED
        batch.n_tokens = i
        self._rows = rows
        result = self._n.llama_decode(self._context, batch)
        if result == 0:
            for part in slices:
                self._cells.computed(part.sequence, part.start + len(part.tokens))
            return StepResult.OK
        return {1: StepResult.NO_SPACE, 2: StepResult.ABORTED}.get(result, StepResult.FAILED)

    def sampler(self, options: DecodeOptions, seed: int, history: list[int]) -> LlamaSampler:
        """A native sampler chain."""
        return LlamaSampler(self._n, self._draw, self._address, self.vocabulary, options, seed, history)

    def _draw(self, chain: Any, row: int, allowed: bytes | None) -> int:
        if allowed is not None:
            forbid(self._address(row), self.vocabulary, allowed)
        return int(self._n.llama_sampler_sample(chain, self._context, self._rows[row]))

    def _address(self, row: int) -> int:
        return ctypes.addressof(self._n.llama_get_logits_ith(self._context, self._rows[row]).contents)

    def logits(self, row: int) -> list[float]:
        """Logits of the last step's ``row``-th slice that wanted them; for tests and tools, slow."""
        return list(self._n.llama_get_logits_ith(self._context, self._rows[row])[: self.vocabulary])

    def length(self, sequence: int) -> int:
        """Its last position is one less; -1 is none."""
        return self._cells.length(sequence)

    def remove(self, sequence: int, start: int, end: int = -1) -> bool:
        """Take the sequence off these cells."""
        if self._cells.remove(sequence, start, end):
            return True
        if start == 0 and end < 0:
            raise ModelLoadError(f"llama.cpp cannot clear sequence {sequence}")
        return False

    def share(self, source: int, target: int, start: int = 0, end: int = -1) -> None:
        """Mark the source's cells as the target's too."""
        self._cells.share(source, target, start, end)

    def save(self, sequence: int, start: int = 0, end: int = -1) -> bytes:
        """The state of a sequence, or of a part of it."""
        return self._cells.save(sequence, start, end)

    def restore(self, sequence: int, state: bytes, start: int = 0, end: int = -1) -> bool:
        """``llama_state_seq_set_data``, then read back: only a state that reads back equal counts as restored."""
        return self._cells.restore(sequence, state, start, end)

    def request_abort(self) -> None:
        """Raise the flag that the native callback reads."""
        self._flag[0] = 1

    def clear_abort(self) -> None:
        """Lower the flag."""
        self._flag[0] = 0

    def close(self) -> None:
        """Free batch, context and weights."""
        self._n.llama_batch_free(self._batch)
        self._n.llama_free(self._context)
        super().close()
