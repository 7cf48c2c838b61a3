"""How probable tokens were, as OpenAI writes it. A token's text may be part of a character; ``bytes`` is exact."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from modeld.types import TokenLogprob, TopLogprob

LEAST: Final = -9999.0
"""The vendor's number for "very unlikely". JSON has no minus infinity."""

Entry = dict[str, Any]


def said(tokens: Iterable[TokenLogprob]) -> list[TokenLogprob]:
    """Those of the answer's text. Thinking, calls and the markers around them are no content."""
    return [token for token in tokens if token.kind in ("text", None)]


def entries(tokens: Iterable[TokenLogprob]) -> list[Entry]:
    """``ChatCompletionTokenLogprob`` of each; the same in the Responses API."""
    return [{**_entry(token), "top_logprobs": [_entry(other) for other in token.top]} for token in tokens]


def chat_logprobs(tokens: Iterable[TokenLogprob], *, refused: bool = False) -> Entry:
    """``choices[].logprobs``. :param refused: the text is a refusal, which stands in a place of its own."""
    found = entries(said(tokens))
    return {"content": None, "refusal": found} if refused else {"content": found, "refusal": None}


def _entry(token: TokenLogprob | TopLogprob) -> Entry:
    return {
        "token": token.data.decode("utf-8", "replace"),
        "bytes": list(token.data),
        "logprob": max(token.logprob, LEAST),
    }
