"""What a llama.cpp model knows of text: tokeniser, control tokens, template. Weights are not needed for it."""

from __future__ import annotations

import ctypes
import hashlib
import re
from collections.abc import Mapping
from typing import Any, Final

TEMPLATE_NAMES = ("tool_use", "rag")
"""A file may hold a chat template for each besides the one that is for all."""
_TAG: Final = re.compile(rb"<.+>|\[/?[A-Z_]+\]", re.DOTALL)
"""What is a marker among the tokens that users defined."""


class LlamaLexicon:
    """The vocabulary of a model, which it owns. Used by one thread."""

    shares = True

    def __init__(self, native: Any, model: Any) -> None:
        self._n = native
        self._model = model
        self._vocab = native.llama_model_get_vocab(model)
        self._pieces: dict[int, bytes] = {}
        self._ends: dict[int, bool] = {}
        self._special_bits = native.LLAMA_TOKEN_ATTR_CONTROL | native.LLAMA_TOKEN_ATTR_USER_DEFINED
        self._special: dict[int, bool] = {}
        self.vocabulary: int = native.llama_vocab_n_tokens(self._vocab)
        self.add_bos = bool(native.llama_vocab_get_add_bos(self._vocab))
        self.bos, self.eos = (
            self.piece(token).decode("utf-8", "replace") if token >= 0 else ""
            for token in (native.llama_vocab_bos(self._vocab), native.llama_vocab_eos(self._vocab))
        )
        self.template_source = self._template(None)
        named = {name: self._template(name.encode()) for name in TEMPLATE_NAMES}
        self.named_templates: Mapping[str, str] = {name: source for name, source in named.items() if source}
        self.tokenizer_digest = self._tokenizer_digest()
        # Others may throw text away before they look at it.
        known = native.llama_vocab_type(self._vocab) in (native.LLAMA_VOCAB_TYPE_SPM, native.LLAMA_VOCAB_TYPE_BPE)
        self.longest = self._longest_piece() if known else 0

    def _template(self, name: bytes | None) -> str:
        template = self._n.llama_model_chat_template(self._model, name)
        return "" if template is None else template.decode("utf-8", "replace")

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
        """See :meth:`modeld.engine.backend.Vocabulary.words`."""
        native = self._n
        unused = native.LLAMA_TOKEN_ATTR_UNKNOWN | native.LLAMA_TOKEN_ATTR_UNUSED
        words = []
        for token in range(self.vocabulary):
            attributes = native.llama_vocab_get_attr(self._vocab, token)
            piece = b"" if attributes & unused else self._spelled(token)
            # Some vocabularies have plain text among what users defined, such as runs of white space.
            tag = attributes & native.LLAMA_TOKEN_ATTR_USER_DEFINED and _TAG.fullmatch(piece)
            words.append(b"\xff" + piece if attributes & native.LLAMA_TOKEN_ATTR_CONTROL or tag else piece)
        return words

    def is_end(self, token: int) -> bool:
        """Whether the model ends its answer with it."""
        if (end := self._ends.get(token)) is None:
            end = self._ends[token] = bool(self._n.llama_vocab_is_eog(self._vocab, token))
        return end

    def is_special(self, token: int) -> bool:
        """Whether it is a control token, or one that was added to the vocabulary whole."""
        if (special := self._special.get(token)) is None:
            attributes = self._n.llama_vocab_get_attr(self._vocab, token)
            special = self._special[token] = bool(attributes & self._special_bits)
        return special

    def close(self) -> None:
        """Free the model."""
        self._n.llama_model_free(self._model)
