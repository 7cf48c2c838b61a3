"""What a vendor's status and code mean, as errors of ours: one way for all vendors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final
from urllib.parse import urlsplit

from msgspec import Struct

from modeld.errors import (
    AuthenticationError,
    BackendError,
    BackendUnavailableError,
    ContextOverflowError,
    InvalidRequestError,
    ModeldError,
    ModelNotFoundError,
    PermissionDeniedError,
    QuotaError,
    RateLimitError,
)

MAX_EXCERPT: Final = 500


class Failure(Struct, frozen=True, kw_only=True):
    """A failed call, as the vendor tells it.

    :param status: HTTP status; 0 where the error came in the middle of a stream.
    :param code: the vendor's code or type. :param headers: of the response, names in lower case.
    """

    message: str
    status: int = 0
    code: str = ""
    headers: Mapping[str, str] = {}


Codes = Mapping[str, type[ModeldError]]
"""A vendor's codes. They win over the status."""


def failure_error(backend: str, model: str, failure: Failure, codes: Codes) -> ModeldError:
    """The error that ``failure`` is.

    Of what the vendor says at most 500 characters are kept. What it wrote about a key is masked.
    """
    # Cut before as well: a page of megabytes would hold up the event loop.
    said = masked(failure.message[: 8 * MAX_EXCERPT].strip())[:MAX_EXCERPT]
    if 300 <= failure.status < 400:
        said = f"it redirects to {failure.headers.get('location', 'nowhere')[:200]!r}; no redirect is followed"
    cls = codes.get(failure.code) or _by_status(failure.status)
    if cls in (InvalidRequestError, BackendError) and _OVERFLOW.search(said):
        cls = ContextOverflowError
    details: dict[str, Any] = {
        "backend": backend,
        "model": model,
        "status": failure.status,
        "vendor_code": failure.code,
        "request_id": _request_id(failure.headers),
    }
    if cls in (RateLimitError, BackendUnavailableError):
        details["retry_after"] = retry_after(failure.headers)
    if cls is ContextOverflowError:
        details |= overflow_numbers(said)
    if cls is ModelNotFoundError:
        details["name"] = model
    about = f"{backend} ({model})" if model else backend
    where = f", status {failure.status}" if failure.status else ""
    return cls(f"{about}: {_WORDS.get(cls, 'failed')}{where}: {said or failure.code or 'no message'}", **details)


_WORDS: Final = {
    AuthenticationError: "the key was not taken",
    PermissionDeniedError: "the key may not do this",
    RateLimitError: "too many calls",
    QuotaError: "nothing left on the account",
    BackendUnavailableError: "not available now",
    ContextOverflowError: "the conversation does not fit",
    ModelNotFoundError: "no such model, or the base URL is not the root of the service",
    InvalidRequestError: "the request was not taken",
}


def _by_status(status: int) -> type[ModeldError]:
    match status:
        case 400 | 405 | 406 | 409 | 411 | 413 | 414 | 415 | 422:
            return InvalidRequestError
        case 401:
            return AuthenticationError
        case 402:
            return QuotaError
        case 403:
            return PermissionDeniedError
        case 404 | 410:
            return ModelNotFoundError
        case 429:
            return RateLimitError
        case 408 | 425:
            return BackendUnavailableError
        case _ if status >= 500:
            return BackendUnavailableError
    return BackendError


_OVERFLOW: Final = re.compile(
    r"maximum context length|context[ _-]?(?:length|window|size)[^.]{0,40}exceed|exceed[^.]{0,60}context"
    r"|prompt is (?:too long|longer than the context)|input token count|too many tokens|input is too long"
    r"|context length is only",
    re.IGNORECASE,
)
_NUMBERS: Final = (
    # Patterns with the tokens asked for and the window, either way round; ``more`` is what the answer asked for on top.
    re.compile(r"(?P<tokens>\d{2,})(?: \+ (?P<more>\d+))?(?:\s*tokens?)?\s*>\s*(?P<window>\d{2,})"),
    re.compile(r"contains (?P<tokens>\d{2,}) tokens.{0,120}?(?P<window>\d{2,}) maximum context length", re.S),
    re.compile(r"exceeds the available context size \(?(?P<window>\d{2,})"),
    re.compile(
        r"maximum context length (?:is|of) (?P<window>\d{2,}).{0,120}?(?P<tokens>\d{2,}) (?:input )?tokens", re.S
    ),
    re.compile(r"passed (?P<tokens>\d{2,}) input tokens.{0,120}?context length is only (?P<window>\d{2,})", re.S),
    re.compile(r"input token count \(?(?P<tokens>\d{2,})\)? exceeds.{0,80}?\(?(?P<window>\d{2,})\)?", re.S),
)


def overflow_numbers(text: str) -> dict[str, int]:
    """``tokens`` and ``window`` where a vendor's sentence has them; nothing is guessed."""
    for pattern in _NUMBERS:
        if found := pattern.search(text.replace(",", "")):
            numbers = {name: int(value) for name, value in found.groupdict().items() if value is not None}
            more = numbers.pop("more", 0)
            return numbers | ({"tokens": numbers["tokens"] + more} if more else {})
    return {}


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait: ``retry-after-ms``, else ``Retry-After`` in seconds or as a date (RFC 9110, 10.2.3)."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "").strip()
        if re.fullmatch(r"\d{1,12}(\.\d{1,12})?", value):
            return float(value) * scale
    try:
        when = parsedate_to_datetime(headers.get("retry-after", ""))
    except (ValueError, OverflowError):
        return None
    return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


def header_key(backend: str, key: str) -> str:
    """``key`` without the white space around it.

    :raises AuthenticationError: it cannot stand in a header; HTTP libraries quote such a header in their errors.
    """
    key = key.strip()
    if not (key.isascii() and key.isprintable()):
        text = f"the API key of {backend} has characters that no key has; is it the right text?"
        raise AuthenticationError(text, backend=backend)
    return key


def is_http(url: str) -> bool:
    """Whether ``url`` is an address of HTTP with a host."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False  # such as "http://[::1" and "http://host:99999"


def masked(text: str) -> str:
    """``text`` without what looks like a key: vendors quote parts of the key they refuse."""
    return re.sub(r"\bBearer \S{8,}|\b(?:sk|key|pk)[-_][-\w*.]{8,}|\bAIza[-\w*]{8,}", "[key]", text)


def _request_id(headers: Mapping[str, str]) -> str:
    for name in ("x-request-id", "request-id", "x-goog-request-id", "cf-ray"):
        if value := headers.get(name):
            return value[:200]
    return ""
