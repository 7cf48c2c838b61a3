"""OpenAI's Responses API: the shapes of its events and answers, as far as they are read.

Wire facts: ``ResponseStreamEvent``, ``Response`` and ``ResponseError`` of the ``openai`` SDK 3.54.
Fields that are of no use are not decoded, and types are forgiving: what the vendor adds must not break a stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, TypeGuard

import msgspec
from msgspec import Raw, Struct

from modeld.errors import BackendUnavailableError, InvalidRequestError, RateLimitError, RefusedError
from modeld.providers.chat_completions import CODES as CHAT_CODES
from modeld.providers.failures import Codes
from modeld.types import Usage

DECLINED: Final = frozenset(
    {
        "invalid_prompt",
        "bio_policy",
        "misalignment_policy_violation",
        "image_content_policy_violation",
        "content_policy_violation",
        "content_filter",
    }
)
"""Codes by which the vendor declines an answer. ``invalid_prompt``: the prompt was flagged under its policy."""

CODES: Final[Codes] = {
    **CHAT_CODES,
    **dict.fromkeys(DECLINED, RefusedError),
    "server_is_overloaded": BackendUnavailableError,
    "slow_down": BackendUnavailableError,
    "vector_store_timeout": BackendUnavailableError,
    "too_many_requests": RateLimitError,
    "invalid_request_error": InvalidRequestError,
    "data_residency_mismatch": InvalidRequestError,
    "invalid_image": InvalidRequestError,
    "invalid_image_format": InvalidRequestError,
    "invalid_base64_image": InvalidRequestError,
    "invalid_image_url": InvalidRequestError,
    "image_too_large": InvalidRequestError,
    "image_too_small": InvalidRequestError,
    "image_parse_error": InvalidRequestError,
    "invalid_image_mode": InvalidRequestError,
    "image_file_too_large": InvalidRequestError,
    "unsupported_image_media_type": InvalidRequestError,
    "empty_image_file": InvalidRequestError,
    "failed_to_download_image": InvalidRequestError,
    "image_file_not_found": InvalidRequestError,
}
"""``ResponseError.code``, and what error events carry beside it. An unknown one is a ``BackendError``."""


class Event(Struct, gc=False):
    """Any event of a stream."""

    type: str = ""
    delta: Any = None
    output_index: Any = None
    item_id: Any = None
    summary_index: Any = None
    content_index: Any = None
    item: Raw = Raw()
    response: Raw = Raw()
    error: Any = None
    code: Any = None
    message: Any = None


class Item(Struct):
    """One item of an answer's output: a message, reasoning, a call of a function, or what is passed over."""

    type: Any = None
    id: Any = None
    call_id: Any = None
    name: Any = None
    arguments: Any = None
    encrypted_content: Any = None
    phase: Any = None
    content: Any = None
    summary: Any = None


class Response(Struct):
    """A whole answer."""

    id: str | None = None
    model: str | None = None
    status: str | None = None
    output: list[Raw] | None = None
    usage: Any = None
    incomplete_details: Any = None
    error: Any = None


EVENT: Final = msgspec.json.Decoder(Event)
ITEM: Final = msgspec.json.Decoder(Item)
RESPONSE: Final = msgspec.json.Decoder(Response)


def is_text(value: Any) -> TypeGuard[str]:
    """Whether ``value`` is a string with something in it."""
    return isinstance(value, str) and value != ""


def texts(parts: Any) -> Iterator[tuple[str, str]]:
    """Kind and words of each part of an item that has words."""
    for part in parts if isinstance(parts, list) else ():
        kind = part.get("type") if isinstance(part, dict) else None
        words = part.get("refusal" if kind == "refusal" else "text") if isinstance(part, dict) else None
        if isinstance(kind, str) and is_text(words):
            yield kind, words


def usage_of(said: Any) -> Usage:
    """What the vendor counted. Input counts cached tokens, and those written to the cache; output counts thinking."""
    return Usage(
        input=_count(said, "input_tokens"),
        cache_read=_count(said, "input_tokens_details", "cached_tokens"),
        cache_write=_count(said, "input_tokens_details", "cache_write_tokens"),
        output=_count(said, "output_tokens"),
        reasoning=_count(said, "output_tokens_details", "reasoning_tokens"),
        source="reported",
    )


def _count(said: Any, *path: str) -> int | None:
    for key in path:
        said = said.get(key) if isinstance(said, dict) else None
    return said if type(said) is int and said >= 0 else None
