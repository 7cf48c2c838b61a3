"""The body of ``POST /v1/completions``. Fields are as in :mod:`modeld.http.openai_request`."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from modeld.errors import InvalidRequestError
from modeld.http.embeddings import TokenId
from modeld.http.openai_sampling import Sampling
from modeld.types import ChatConfig

MAX_PROMPTS: Final = 128
MAX_TOKENS: Final = 16
"""Tokens of an answer where nobody says how many: the vendor's number."""


class CompletionsRequest(Sampling, frozen=True, kw_only=True):
    """All of it. What both routes have is :class:`Sampling`'s."""

    model: str
    prompt: str | list[str | TokenId | list[TokenId]]
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    n: Literal[1] | None = None
    best_of: Literal[1] | None = None
    user: str | None = None
    logit_bias: None = None
    suffix: None = None

    def prompts(self) -> list[str | tuple[int, ...]]:
        """One for each choice.

        :raises InvalidRequestError: none, too many, an empty one, or ids beside texts.
        """
        given = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        ids = tuple(item for item in given if isinstance(item, int))
        if ids and len(ids) < len(given):
            text = "prompt is one text, one list of token ids, or a list of texts and of lists of ids"
            raise InvalidRequestError(text, parameter="prompt")
        found: list[str | tuple[int, ...]] = [ids] if ids else []
        found += [item if isinstance(item, str) else tuple(item) for item in given if not isinstance(item, int)]
        if not 0 < len(found) <= MAX_PROMPTS:
            text = f"prompt holds {len(found)} prompts: 1 to {MAX_PROMPTS} are answered"
            raise InvalidRequestError(text, parameter="prompt")
        if not all(found):
            text = f"prompt {[bool(item) for item in found].index(False)} is empty: there is nothing to go on from"
            raise InvalidRequestError(text, parameter="prompt")
        return found

    def config(self) -> ChatConfig:
        """The options.

        :raises InvalidRequestError: a value is out of its range, or two contradict.
        """
        if self.echo and self.logprobs is not None:
            text = "echo goes without logprobs: how probable the prompt was is not known"
            raise InvalidRequestError(text, parameter="echo")
        return self.sampling().replace(
            max_tokens=MAX_TOKENS if self.max_tokens is None else self.max_tokens,
            logprobs=self.logprobs is not None,
            top_logprobs=self.logprobs,
        )
