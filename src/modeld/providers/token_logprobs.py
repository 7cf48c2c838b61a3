"""Log-probabilities of tokens, as OpenAI and those who copy it write them.

Source: ``ChatCompletionTokenLogprob`` of the ``openai`` SDK 3.54, and ``Logprob`` of the ``ollama`` SDK.
"""

from __future__ import annotations

from typing import Any

from modeld.types import LogprobsPart, TokenKind, TokenLogprob, TopLogprob


def read_logprobs(said: Any, kind: TokenKind | None) -> list[LogprobsPart]:
    """One part for the list of a vendor's tokens, or none where there is nothing to tell.

    An entry without a number is left out. ``bytes`` are null where a token is no text, and left out by some: then its
    name stands for it.

    :param kind: what the vendor's tokens are part of; ``None``: of anything.
    """
    tokens = tuple(
        TokenLogprob(float(entry["logprob"]), _data(entry), kind=kind, top=_top(entry.get("top_logprobs")))
        for entry in (said if isinstance(said, list) else ())
        if _is_scored(entry)
    )
    return [LogprobsPart(tokens)] if tokens else []


def _top(said: Any) -> tuple[TopLogprob, ...]:
    entries = said if isinstance(said, list) else ()
    return tuple(TopLogprob(float(entry["logprob"]), _data(entry)) for entry in entries if _is_scored(entry))


def _is_scored(entry: Any) -> bool:
    return isinstance(entry, dict) and type(entry.get("logprob")) in (int, float)


def _data(entry: dict[str, Any]) -> bytes:
    numbers = entry.get("bytes")
    if isinstance(numbers, list) and all(type(number) is int and 0 <= number < 256 for number in numbers):
        return bytes(numbers)
    return str(entry.get("token") or "").encode("utf-8", "replace")
