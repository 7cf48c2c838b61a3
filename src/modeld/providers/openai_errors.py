"""What the OpenAI SDK raises, as errors of ours. All servers that are reached through it share this."""

from __future__ import annotations

import re

import msgspec
from msgspec import Struct

from modeld.errors import (
    BackendError,
    BackendProtocolError,
    BackendUnavailableError,
    DeadlineExceededError,
    ModeldError,
)
from modeld.providers.chat_decoder import vendor_error, vendor_failure
from modeld.providers.failures import Codes, failure_error, masked


class Place(Struct, frozen=True):
    """Where it happened."""

    backend: str
    base_url: str
    model: str


def sdk_error(error: Exception, place: Place, codes: Codes) -> ModeldError:
    """``error`` of the SDK, of the HTTP library below it, or of reading an answer.

    A body that breaks off is ``unavailable``: what came is not a whole answer, and the next try may give one.
    """
    import httpx2
    import openai

    about = {"backend": place.backend, "model": place.model}
    if isinstance(error, openai.APIStatusError):
        said = error.body if isinstance(error.body, dict) else {"message": error.body or error.message}
        # FastAPI has its words in "detail"; others have none that could be told from the rest of the body.
        said = said if said.get("message") else {**said, "message": said.get("detail") or error.message}
        headers = _with_wait({name.lower(): value for name, value in error.response.headers.items()})
        failure = vendor_failure(said, error.status_code, headers, codes)
        return failure_error(place.backend, place.model, failure, codes)
    if isinstance(error, openai.APITimeoutError | httpx2.TimeoutException):
        return DeadlineExceededError(f"{place.backend} did not answer in time; the request was closed", **about)
    if isinstance(error, openai.APIConnectionError | httpx2.TransportError):
        why = masked(str(error.__cause__ or error))[:200] or type(error).__name__
        return BackendUnavailableError(
            f"{place.backend} does not answer at {place.base_url}: {why}", retry_after=None, **about
        )
    if isinstance(error, msgspec.DecodeError | httpx2.DecodingError | openai.APIResponseValidationError):
        return BackendProtocolError(f"an answer of {place.backend} could not be understood: {error}", **about)
    if isinstance(error, openai.APIError):
        return vendor_error(place.backend, place.model, error.body or error.message, codes)
    return BackendError(f"{place.backend}: {type(error).__name__}: {masked(str(error))[:500]}", status=0, **about)


def _with_wait(headers: dict[str, str]) -> dict[str, str]:
    """``headers`` with a ``retry-after`` made of the rate limits that are used up, where the vendor sent none.

    Source: https://platform.openai.com/docs/guides/rate-limits, "Rate limits in headers".
    """
    if "retry-after" in headers or "retry-after-ms" in headers:
        return headers
    waits = [
        _seconds(headers.get(f"x-ratelimit-reset-{kind}", ""))
        for kind in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{kind}", "").strip() == "0"
    ]
    return {**headers, "retry-after": f"{max(waits):g}"} if any(waits) else headers


def _seconds(text: str) -> float:
    """``6m0s``, ``1.5s`` or ``120ms`` in seconds; 0: it is something else."""
    units = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
    if not re.fullmatch(r"(\d+(\.\d+)?(ms|[smhd]))+", text.strip()):
        return 0.0
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)(ms|[smhd])", text))
