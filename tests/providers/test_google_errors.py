"""Hazard: an error of Google is typed wrongly, so that it is retried for ever or not at all."""

import json
from typing import Any

import httpx2
import pytest
from google.auth import exceptions as auth
from google.genai import errors

from modeld import (
    AuthenticationError,
    BackendError,
    BackendProtocolError,
    BackendUnavailableError,
    ContextOverflowError,
    DeadlineExceededError,
    InvalidRequestError,
    ModeldError,
    ModelNotFoundError,
    PermissionDeniedError,
    QuotaError,
    RateLimitError,
)
from modeld.providers.google_errors import sdk_error

RETRY = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.07s"}
QUOTA = "type.googleapis.com/google.rpc.QuotaFailure"
PER_MINUTE = {"quotaId": "GenerateRequestsPerMinutePerProjectPerModel-FreeTier"}
PER_DAY = {"quotaId": "GenerateRequestsPerDayPerProjectPerModel-FreeTier"}
TOO_LONG = "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."
BAD_KEY = "API key not valid. Please pass a valid API key."
INVALID = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": "API_KEY_INVALID"}


def raised(status: int, body: Any, headers: dict[str, str] | None = None) -> ModeldError:
    """What the SDK raises for a response, as ours."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(errors.APIError) as caught:
        errors.APIError.raise_for_response(httpx2.Response(status, content=content, headers=headers))
    return sdk_error("gemini", "m", caught.value)


def body(code: int, status: str, message: str = "because", *details: Any) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, "status": status, "details": list(details)}}


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (body(400, "INVALID_ARGUMENT"), InvalidRequestError),
        (body(400, "INVALID_ARGUMENT", BAD_KEY, INVALID), AuthenticationError),
        (body(400, "INVALID_ARGUMENT", BAD_KEY), AuthenticationError),
        (body(400, "INVALID_ARGUMENT", "API Key expired.", INVALID), AuthenticationError),
        (body(400, "INVALID_ARGUMENT", TOO_LONG), ContextOverflowError),
        (body(400, "FAILED_PRECONDITION", "User location is not supported"), InvalidRequestError),
        (body(401, "UNAUTHENTICATED"), AuthenticationError),
        (body(403, "PERMISSION_DENIED"), PermissionDeniedError),
        (body(404, "NOT_FOUND"), ModelNotFoundError),
        (body(429, "RESOURCE_EXHAUSTED"), RateLimitError),
        (body(429, "RESOURCE_EXHAUSTED", "slow", {"@type": QUOTA, "violations": [PER_MINUTE]}), RateLimitError),
        (body(429, "RESOURCE_EXHAUSTED", "no", {"@type": QUOTA, "violations": [PER_MINUTE, PER_DAY]}), QuotaError),
        (body(429, "RESOURCE_EXHAUSTED", "Your prepayment credits are depleted."), QuotaError),
        (body(500, "INTERNAL"), BackendUnavailableError),
        (body(503, "UNAVAILABLE"), BackendUnavailableError),
        (body(504, "DEADLINE_EXCEEDED"), DeadlineExceededError),
        ([body(429, "RESOURCE_EXHAUSTED")], RateLimitError),
        (b"<html>Bad gateway</html>", BackendUnavailableError),
        ({"error": "odd"}, BackendUnavailableError),
        ({"error": {"code": "502", "message": 3, "details": [None, {"violations": None}]}}, BackendUnavailableError),
    ],
)
def test_a_status_and_its_details_are_typed(answer: Any, expected: type[Exception]) -> None:
    first = answer[0] if isinstance(answer, list) else answer
    code = first["error"]["code"] if isinstance(first, dict) and isinstance(first.get("error"), dict) else 502
    status = code if isinstance(code, int) else 502
    error = raised(status, answer)
    assert type(error) is expected
    assert error.details["status"] == status
    assert error.details["backend"] == "gemini"


def test_numbers_of_an_overflow_are_told() -> None:
    details = raised(400, body(400, "INVALID_ARGUMENT", TOO_LONG)).details
    assert (details["tokens"], details["window"]) == (1200000, 1048576)


def test_the_wait_is_taken_from_the_details_or_the_header() -> None:
    limited = body(429, "RESOURCE_EXHAUSTED", "slow", RETRY)
    assert raised(429, limited).details["retry_after"] == 34.07
    assert raised(429, limited, {"Retry-After": "7"}).details["retry_after"] == 7
    odd = body(429, "RESOURCE_EXHAUSTED", "slow", RETRY | {"retryDelay": "soon"})
    assert raised(429, odd).details["retry_after"] is None


def test_the_vendors_own_status_is_kept() -> None:
    assert raised(400, body(400, "INVALID_ARGUMENT", BAD_KEY, INVALID)).details["vendor_code"] == "INVALID_ARGUMENT"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (httpx2.ConnectError("refused"), BackendUnavailableError),
        (httpx2.RemoteProtocolError("cut"), BackendUnavailableError),
        (httpx2.ReadTimeout("slow"), DeadlineExceededError),
        (auth.RefreshError("invalid_grant"), AuthenticationError),
        (auth.RefreshError("busy", retryable=True), BackendUnavailableError),
        (auth.TransportError("no route"), BackendUnavailableError),
        (auth.DefaultCredentialsError("none found"), AuthenticationError),
        (errors.UnknownApiResponseError("not JSON"), BackendProtocolError),
        (json.JSONDecodeError("no", "x", 0), BackendProtocolError),
        (ValueError("invalid model parameter."), InvalidRequestError),
        (RuntimeError("odd"), BackendError),
    ],
)
def test_what_is_raised_below_is_typed(error: Exception, expected: type[Exception]) -> None:
    assert type(sdk_error("vertex-google", "m", error)) is expected
