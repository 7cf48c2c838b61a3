"""Vectors by llama.cpp, on the processor."""

from __future__ import annotations

import ctypes
import math
from array import array
from typing import Any, Final, Literal

from modeld.engine.llama.lexicon import LlamaLexicon
from modeld.errors import EngineError
from modeld.session.text_values import Pooling

POOLINGS: Final[dict[int, Pooling]] = {1: "mean", 2: "cls", 3: "last", 4: "rank"}
"""enum llama_pooling_type (llama.h)."""

EXACT_TOKENS: Final = 2048
"""Up to a window of so many tokens there is no flash attention: with it the vector of a text differs in the third place
by what else is in its batch (1e-3 seen on tiny; 5e-7 without). It costs memory by the square of the window."""


class LlamaEmbedder(LlamaLexicon):
    """One model, one context, one batch. Used by one thread.

    :param pooling_source: ``default``: the model does not say how vectors become one.
    """

    def __init__(
        self, native: Any, model: Any, context: Any, window: int, sequences: int, source: Literal["model", "default"]
    ) -> None:
        super().__init__(native, model)
        self.pooling: Pooling = POOLINGS[native.llama_pooling_type(context)]
        self.pooling_source = source
        self._context = context
        self._memory = native.llama_get_memory(context)
        # Without memory there is nothing to decode from: such a model reads a batch at once.
        encodes = not self._memory or not native.llama_model_has_decoder(model)
        self._run = native.llama_encode if encodes else native.llama_decode
        ranks = self.pooling == "rank"
        self.dimensions: int = native.llama_model_n_cls_out(model) if ranks else native.llama_model_n_embd_out(model)
        self.window = window
        # States are computed in steps of one length: inputs of several lengths would come in pieces, and with them the
        # mean of each.
        stateful = native.llama_model_is_recurrent(model) or native.llama_model_is_hybrid(model)
        self.sequences = 1 if stateful else sequences
        self._batch = native.llama_batch_init(window, 0, 1)
        self.before, self.behind = self._around()
        self._prompt = native.llama_model_chat_template(model, b"rerank")

    def compute(self, inputs: list[list[int]]) -> list[array[float]]:
        """See :meth:`modeld.engine.backend.Embedder.compute`."""
        if self._memory:
            self._n.llama_memory_clear(self._memory, False)
        batch, at = self._batch, 0
        for sequence, tokens in enumerate(inputs):
            for position, token in enumerate(tokens):
                batch.token[at], batch.pos[at] = token, position
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, sequence
                batch.logits[at] = 1
                at += 1
        batch.n_tokens = at
        if code := self._run(self._context, batch):
            raise EngineError(f"llama.cpp could not compute {len(inputs)} inputs of {at} tokens (it said {code})")
        return [self._vector(sequence) for sequence in range(len(inputs))]

    def _vector(self, sequence: int) -> array[float]:
        found = self._n.llama_get_embeddings_seq(self._context, sequence)
        if not found:
            raise EngineError("llama.cpp computed no vector for an input")
        size = self.dimensions * ctypes.sizeof(ctypes.c_float)
        vector = array("f", ctypes.string_at(found, size))
        # One that is no number makes the sum none.
        if not math.isfinite(sum(vector)):
            raise EngineError("the model computed a vector that holds no number: its file may be damaged")
        return vector

    def pair(self, query: str, document: str) -> list[int]:
        """The model's own form where its file has one; else both texts with what the vocabulary wants around them.

        That is what llama.cpp's server makes, and what ends a text behind the document also where only the tokeniser
        says so: a BERT reads ``[CLS] query [SEP] document [SEP]``.
        """
        if self._prompt is not None:
            form = self._prompt.decode("utf-8", "replace")
            before, mark, after = form.partition("{document}")
            text = before.replace("{query}", query) + (document if mark else "") + after.replace("{query}", query)
            return self.tokenize(text.encode("utf-8", "replace"), add_special=False)
        native, vocab = self._n, self._vocab
        end: int = native.llama_vocab_eos(vocab)
        if end < 0:
            end = native.llama_vocab_sep(vocab)
        ends = [end] if native.llama_vocab_get_add_eos(vocab) and end >= 0 else []
        separator = [native.llama_vocab_sep(vocab)] if native.llama_vocab_get_add_sep(vocab) else []
        begin = [native.llama_vocab_bos(vocab)] if self.add_bos else []
        first, second = (
            self.tokenize(text.encode("utf-8", "replace"), add_special=False) for text in (query, document)
        )
        return begin + first + ends + separator + second + self.behind

    def _around(self) -> tuple[list[int], list[int]]:
        bare = self.tokenize(b"a", add_special=False)
        whole = self.tokenize(b"a", add_special=True)
        at = next((n for n in range(len(whole)) if whole[n : n + len(bare)] == bare), 0)
        return whole[:at], whole[at + len(bare) :]

    def close(self) -> None:
        """Free batch, context and weights."""
        self._n.llama_batch_free(self._batch)
        self._n.llama_free(self._context)
        super().close()
