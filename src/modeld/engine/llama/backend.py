"""A resident llama.cpp model behind the engine seam."""

from __future__ import annotations

import ctypes
import hashlib
from typing import Any

from modeld.engine.backend import Slice, StepResult
from modeld.engine.llama.cells import Cells
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


class LlamaBackend:
    """One model, one context, one batch. Used by one thread, but for :meth:`request_abort`."""

    def __init__(self, native: Any, model: Any, context: Any, request: Load, kv_layout: str) -> None:
        self.kv_layout = kv_layout
        self._n = native
        self._model = model
        self._context = context
        self._vocab = native.llama_model_get_vocab(model)
        self._batch = native.llama_batch_init(request.batch, 0, 1)
        self._limit = request.batch
        self._rows: list[int] = []
        self._pieces: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}
        for i in range(request.batch):
            self._batch.n_seq_id[i] = 1
        self.vocabulary: int = native.llama_vocab_n_tokens(self._vocab)
        self._flag = self._install_abort()
        self.shares = shares_parts(native, model)
        self._cells = Cells(native, context, request.sequences, guarded_window(native, model))
        self.grows = not native.llama_model_is_recurrent(model)
        self.add_bos = bool(native.llama_vocab_get_add_bos(self._vocab))
        self.bos, self.eos = (
            self.piece(token).decode("utf-8", "replace") if token >= 0 else ""
            for token in (native.llama_vocab_bos(self._vocab), native.llama_vocab_eos(self._vocab))
        )
        template = native.llama_model_chat_template(model, None)
        self.template_source = "" if template is None else template.decode("utf-8", "replace")
        self.tokenizer_digest = self._tokenizer_digest()
        # Others may throw text away before they look at it.
        known = native.llama_vocab_type(self._vocab) in (native.LLAMA_VOCAB_TYPE_SPM, native.LLAMA_VOCAB_TYPE_BPE)
        self.longest = self._longest_piece() if known else 0

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

    def _tokenizer_digest(self) -> str:
        native, vocab = self._n, self._vocab
        sha = hashlib.sha256(f"{native.llama_vocab_type(vocab)} {self.vocabulary} {self.add_bos}".encode())
        for token in range(self.vocabulary):
            sha.update(native.llama_vocab_get_text(vocab, token) or b"")
            sha.update(b"\0")
        return sha.hexdigest()

    def _longest_piece(self) -> int:
        # A token's text is never shorter than its bytes: few have to be looked at. A lone character that the vocabulary
        # does not have is one token of up to 4 bytes.
        longest = 4
        for token in range(self.vocabulary):
            if len(self._n.llama_vocab_get_text(self._vocab, token) or b"") > longest:
                longest = max(longest, len(self.piece(token)))
        return longest

    def tokenize(self, text: bytes, *, add_special: bool) -> list[int]:
        """Token ids; text that spells a control token becomes that token."""
        size = len(text) + 8
        while True:
            ids = (ctypes.c_int32 * size)()
            count = self._n.llama_tokenize(self._vocab, text, len(text), ids, size, add_special, True)
            if count >= 0:
                return ids[:count]
            size = -count

    def piece(self, token: int) -> bytes:
        """The bytes a token stands for; those of a control token are its name."""
        if (piece := self._pieces.get(token)) is None:
            piece = self._pieces[token] = self._spelled(token)
        return piece

    def _spelled(self, token: int) -> bytes:
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            count = self._n.llama_token_to_piece(self._vocab, token, buffer, size, 0, True)
            if count >= 0:
                return buffer.raw[:count]
            size = -count

    def words(self) -> list[bytes]:
        """See :meth:`modeld.engine.backend.Vocabulary.words`. The vocabulary is only read: any thread may."""
        native = self._n
        unused = native.LLAMA_TOKEN_ATTR_UNKNOWN | native.LLAMA_TOKEN_ATTR_UNUSED
        words = []
        for token in range(self.vocabulary):
            attributes = native.llama_vocab_get_attr(self._vocab, token)
            piece = b"" if attributes & unused else self._spelled(token)
            # Some vocabularies have plain text among what users defined, such as runs of white space.
            tag = attributes & native.LLAMA_TOKEN_ATTR_USER_DEFINED and piece[:1] == b"<" and piece[-1:] == b">"
            words.append(b"\xff" + piece if attributes & native.LLAMA_TOKEN_ATTR_CONTROL or tag else piece)
        return words

    def is_end(self, token: int) -> bool:
        """Whether the model ends its answer with it."""
        if (end := self._ends.get(token)) is None:
            end = self._ends[token] = bool(self._n.llama_vocab_is_eog(self._vocab, token))
        return end

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
        return LlamaSampler(self._n, self._draw, self.vocabulary, options, seed, history)

    def _draw(self, chain: Any, row: int, allowed: bytes | None) -> int:
        if allowed is not None:
            logits = self._n.llama_get_logits_ith(self._context, self._rows[row])
            forbid(ctypes.addressof(logits.contents), self.vocabulary, allowed)
        return int(self._n.llama_sampler_sample(chain, self._context, self._rows[row]))

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
        self._n.llama_model_free(self._model)
