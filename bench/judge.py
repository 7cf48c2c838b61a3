"""What a conversation costs at least, from the model's own template and tokeniser alone: no server is asked."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama_cpp import llama_cpp as native

from modeld.chat.template import ChatTemplate
from modeld.types import Message, Tool

QUIET = native.llama_log_callback(lambda *_: None)
"""The library logs every tensor otherwise; it may call this as long as it is loaded."""


@dataclass(frozen=True)
class Least:
    """Tokens that nobody can spare, whatever is cached. Each beginning counts once.

    :param prompts: of all prompts together. :param new: those of them that no answer was made of while it was decoded:
        what has to be prefilled at least.
    """

    prompts: int
    new: int


class Judge:
    """Template and tokeniser of a model whose tokeniser adds nothing by itself."""

    def __init__(self, model: Path) -> None:
        native.llama_log_set(QUIET, None)
        native.llama_backend_init()
        params = native.llama_model_default_params()
        params.vocab_only = True
        # Kept: the vocabulary lives as long as the model.
        self._model: Any = native.llama_model_load_from_file(os.fsencode(model), params)
        if not self._model:
            raise SystemExit(f"llama.cpp cannot read the vocabulary of {model}")
        self._vocabulary: Any = native.llama_model_get_vocab(self._model)
        if native.llama_vocab_get_add_bos(self._vocabulary):
            raise SystemExit(f"{model.name} begins each prompt with a token of its own: this count does not know it")
        source = native.llama_model_chat_template(self._model, None)
        self._template = ChatTemplate(source.decode() if source else "")

    def prompt(self, messages: Sequence[Message], tools: Sequence[Tool]) -> list[int]:
        """Ids of the conversation, ready for an answer. Thinking is off."""
        return self._tokens(self._template.render(messages, tools, think="off", add_generation_prompt=True))

    def decoded(self, messages: Sequence[Message], tools: Sequence[Tool], answer: str, tokens: int) -> list[int]:
        """Ids of prompt and answer that have KV after it: the last one was sampled, and nothing computed with it."""
        whole = (*messages, Message("assistant", answer))
        ids = self._tokens(self._template.render(whole, tools, think="off", add_generation_prompt=False))
        return ids[: len(self.prompt(messages, tools)) + tokens - 1]

    def _tokens(self, text: str) -> list[int]:
        data = text.encode()
        ids = (ctypes.c_int32 * (len(data) + 8))()
        count = native.llama_tokenize(self._vocabulary, data, len(data), ids, len(ids), False, True)
        if count < 0:
            raise SystemExit("llama.cpp cannot tokenise a prompt of the trace")
        return list(ids[:count])


class Trie:
    """Beginnings of token sequences, numbered as they come."""

    def __init__(self) -> None:
        self._children: dict[tuple[int, int], int] = {}

    def __len__(self) -> int:
        return len(self._children)

    def add(self, tokens: Sequence[int]) -> list[int]:
        """:returns: the numbers of all beginnings of ``tokens``, from the shortest."""
        node, path = 0, []
        for token in tokens:
            node = self._children.setdefault((node, token), len(self._children) + 1)
            path.append(node)
        return path


def least(calls: Iterable[tuple[list[int], list[int]]]) -> Least:
    """Of calls as (prompt, what was decoded after it, prompt included)."""
    calls, trie = list(calls), Trie()
    for prompt, _ in calls:
        trie.add(prompt)
    prompts = len(trie)
    answered = {node for prompt, decoded in calls for node in trie.add(decoded)[len(prompt) :]}
    return Least(prompts, prompts - sum(node <= prompts for node in answered))
