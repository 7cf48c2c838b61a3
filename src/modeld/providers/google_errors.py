"""Errors of Google's services as errors of ours.

Sources: https://ai.google.dev/gemini-api/docs/troubleshooting and https://google.aip.dev/193 (status, details).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from modeld.errors import (
    AuthenticationError,
    BackendError,
    BackendProtocolError,
    BackendUnavailableError,
    DeadlineExceededError,
    InvalidRequestError,
    ModeldError,
    ModelNotFoundError,
    PermissionDeniedError,
    QuotaError,
    RateLimitError,
)
from modeld.providers.failures import Codes, Failure, failure_error, masked

CODES: Final[Codes] = {
    "INVALID_ARGUMENT": InvalidRequestError,
    "FAILED_PRECONDITION": InvalidRequestError,
    "OUT_OF_RANGE": InvalidRequestError,
    "UNAUTHENTICATED": AuthenticationError,
    "API_KEY_INVALID": AuthenticationError,
    "PERMISSION_DENIED": PermissionDeniedError,
    "NOT_FOUND": ModelNotFoundError,
    "RESOURCE_EXHAUSTED": RateLimitError,
    "QUOTA_OF_THE_DAY": QuotaError,
    "NO_CREDITS": QuotaError,
    "DEADLINE_EXCEEDED": DeadlineExceededError,
    "ABORTED": BackendUnavailableError,
    "INTERNAL": BackendUnavailableError,
    "UNAVAILABLE": BackendUnavailableError,
}
"""Statuses of ``google.rpc.Code`` and the reasons that say more than they do."""


def google_failure(
    backend: str, model: str, error: Mapping[str, Any], status: int = 0, headers: Mapping[str, str] | None = None
) -> ModeldError:
    """The error that an ``error`` object is; in the middle of a stream it has no ``status`` of HTTP."""
    message = error.get("message")
    code = error.get("status")
    details = [d for d in error.get("details") or () if isinstance(d, dict)]
    failure = Failure(
        message=message if isinstance(message, str) else "",
        status=status,
        code=code if isinstance(code, str) else "",
        headers={**_wait(details), **(headers or {})},
    )
    cls = CODES.get(_meaning(failure, details))
    return failure_error(backend, model, failure, CODES if cls is None else {**CODES, failure.code: cls})


def _wait(details: list[dict[str, Any]]) -> dict[str, str]:
    """``RetryInfo.retryDelay``, such as ``34.07s``, as the header that means the same."""
    for detail in details:
        delay = detail.get("retryDelay")
        if isinstance(delay, str) and re.fullmatch(r"\d+(\.\d+)?s", delay):
            return {"retry-after": delay[:-1]}
    return {}


def _meaning(failure: Failure, details: list[dict[str, Any]]) -> str:
    """What the details make of a status."""
    if any(detail.get("reason") == "API_KEY_INVALID" for detail in details):
        return "API_KEY_INVALID"
    if failure.code == "INVALID_ARGUMENT" and "API key not valid" in failure.message:
        return "API_KEY_INVALID"
    if failure.code == "RESOURCE_EXHAUSTED":
        violations = [v for d in details for v in d.get("violations") or () if isinstance(v, dict)]
        if any("PerDay" in str(violation.get("quotaId", "")) for violation in violations):
            return "QUOTA_OF_THE_DAY"
        if "credits are depleted" in failure.message:
            return "NO_CREDITS"
    return failure.code


def sdk_error(backend: str, model: str, error: Exception) -> ModeldError:
    """What the SDK, its HTTP library or its authentication raised. Called only after they were imported."""
    import httpx2
    import pydantic
    from google.auth import exceptions as auth
    from google.genai import errors

    about = f"{backend} ({model})" if model else backend
    said = masked(str(error))[:500]
    details: dict[str, Any] = {"backend": backend, "model": model}
    match error:
        case errors.APIError():
            return _api_error(backend, model, error)
        case httpx2.TimeoutException():
            return DeadlineExceededError(f"{about} did not answer in time: {type(error).__name__}", **details)
        case httpx2.TransportError() | auth.TransportError():
            return BackendUnavailableError(f"{about} cannot be reached: {said}", retry_after=None, **details)
        case auth.RefreshError() if error.retryable:
            return BackendUnavailableError(f"{about} got no token: {said}", retry_after=None, **details)
        case auth.GoogleAuthError():
            return AuthenticationError(f"{about}: the credentials were not taken: {said}", **details)
        case (
            errors.UnknownApiResponseError()
            | pydantic.ValidationError()
            | json.JSONDecodeError()
            | httpx2.DecodingError()
        ):
            return BackendProtocolError(f"an answer of {about} cannot be read: {said}", **details)
        case AttributeError() | KeyError() | TypeError():
            # The SDK walks through an answer as if it had its shape.
            return BackendProtocolError(f"an answer of {about} has an unknown shape: {said}", **details)
        case ValueError():
            return InvalidRequestError(f"{about}: the request was not taken: {said}", **details)
    return BackendError(f"{about} failed: {type(error).__name__}: {said}", **details)


def _api_error(backend: str, model: str, error: Any) -> ModeldError:
    body = error.details if isinstance(error.details, dict) else {}
    inner = body.get("error")
    headers = {name.lower(): value for name, value in getattr(error.response, "headers", {}).items()}
    return google_failure(backend, model, inner if isinstance(inner, dict) else body, error.code or 0, headers)
