"""What the errors of the Messages wire mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from msgspec import Struct

from modeld.errors import (
    AuthenticationError,
    BackendUnavailableError,
    InvalidRequestError,
    ModelNotFoundError,
    PermissionDeniedError,
    QuotaError,
    RateLimitError,
)
from modeld.providers.failures import Codes, Failure

CODES: Final[Codes] = {
    "invalid_request_error": InvalidRequestError,
    "request_too_large": InvalidRequestError,
    "authentication_error": AuthenticationError,
    "permission_error": PermissionDeniedError,
    "not_found_error": ModelNotFoundError,
    "rate_limit_error": RateLimitError,
    "billing_error": QuotaError,
    "contract_spend_limit_reached": QuotaError,
    "enforced_spend_limit_reached": QuotaError,
    "linked_organization_spend_limit_reached": QuotaError,
    "api_error": BackendUnavailableError,
    "overloaded_error": BackendUnavailableError,
    "timeout_error": BackendUnavailableError,
}
"""``error.type``, and the ``error.details.error_code`` of limits that waiting does not lift.

Sources: https://platform.claude.com/docs/en/api/errors and ``types/shared`` of the SDK.
"""


class ErrorDetails(Struct, frozen=True):
    """``error.details``: a code that names the cause, where there is one."""

    error_code: str | None = None


class ErrorBody(Struct, frozen=True):
    """``error`` of a failed call or of an error event."""

    type: str | None = None
    message: str | None = None
    details: ErrorDetails | None = None


def vendor_failure(
    error: ErrorBody | None, text: str = "", *, status: int = 0, headers: Mapping[str, str] | None = None
) -> Failure:
    """A failed call; ``text`` is what there is where the body says nothing.

    The code that names a cause says more than the type. An account without credit was an invalid request before it
    had a type of its own, and is known by its words.
    """
    error = error or ErrorBody()
    message = error.message or text
    cause = error.details.error_code if error.details else None
    code = cause if cause in CODES else error.type
    if "credit balance is too low" in message:
        code = "billing_error"
    return Failure(message=message, status=status, code=code or "", headers=headers or {})
