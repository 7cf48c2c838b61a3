"""Errors across the wire: the tree of :mod:`modeld.errors` to gRPC statuses and back.

A status carries one ``google.rpc.ErrorInfo`` (https://google.aip.dev/193): reason = code, domain = ``modeld``,
metadata = the details, each as JSON text. The caller gets the class, message and details that were raised.
"""

from __future__ import annotations

import json
import logging
import uuid
from typing import TYPE_CHECKING, Any, Final

from modeld.errors import (
    DeadlineExceededError,
    Details,
    InvalidRequestError,
    ModeldError,
    NodeUnreachableError,
    NotSupportedError,
    error_from_code,
)

if TYPE_CHECKING:
    from google.rpc.status_pb2 import Status
    from grpc.aio import AioRpcError

log = logging.getLogger(__name__)

DOMAIN: Final = "modeld"
DETAILS_KEY: Final = "grpc-status-details-bin"

MAX_METADATA: Final = 256 * 1024
"""Bytes of metadata that both ends accept: details of an error travel there (gRPC's own bound is 8 KiB)."""

_MAX_TEXT: Final = 4096
_MAX_DETAILS: Final = 64 * 1024

STATUS: Final = {
    "internal": "INTERNAL",
    "invalid_request": "INVALID_ARGUMENT",
    "unsupported_feature": "UNIMPLEMENTED",
    "missing_dependency": "FAILED_PRECONDITION",
    "refused": "FAILED_PRECONDITION",
    "cancelled": "CANCELLED",
    "deadline_exceeded": "DEADLINE_EXCEEDED",
    "node_error": "INTERNAL",
    "not_running": "UNAVAILABLE",
    "stale": "UNAVAILABLE",
    "unreachable": "UNAVAILABLE",
    "backend_mismatch": "FAILED_PRECONDITION",
    "owner_held": "FAILED_PRECONDITION",
    "owner_wedged": "FAILED_PRECONDITION",
    "device_busy": "RESOURCE_EXHAUSTED",
    "token_missing": "UNAUTHENTICATED",
    "token_wrong": "UNAUTHENTICATED",
    "tls_required": "FAILED_PRECONDITION",
    "lease_lost": "UNAVAILABLE",
    "not_owner": "FAILED_PRECONDITION",
    "stale_epoch": "FAILED_PRECONDITION",
    "storage_failed": "RESOURCE_EXHAUSTED",
    "model_error": "INTERNAL",
    "model_not_found": "NOT_FOUND",
    "invalid_model": "FAILED_PRECONDITION",
    "digest_mismatch": "FAILED_PRECONDITION",
    "model_load_failed": "INTERNAL",
    "model_busy": "ABORTED",
    "does_not_fit": "RESOURCE_EXHAUSTED",
    "session_error": "INTERNAL",
    "session_closed": "FAILED_PRECONDITION",
    "session_fatal": "ABORTED",
    "stale_generation": "FAILED_PRECONDITION",
    "context_overflow": "OUT_OF_RANGE",
    "manifest_mismatch": "FAILED_PRECONDITION",
    "snapshot_not_found": "NOT_FOUND",
    "session_not_found": "NOT_FOUND",
    "session_busy": "ABORTED",
    "template_error": "INVALID_ARGUMENT",
    "engine_error": "INTERNAL",
    "engine_crashed": "UNAVAILABLE",
    "engine_protocol": "INTERNAL",
    "backend_error": "INTERNAL",
    "backend_not_found": "NOT_FOUND",
    "authentication": "FAILED_PRECONDITION",
    "permission_denied": "PERMISSION_DENIED",
    "rate_limited": "RESOURCE_EXHAUSTED",
    "quota_exceeded": "FAILED_PRECONDITION",
    "unavailable": "UNAVAILABLE",
    "backend_protocol": "INTERNAL",
}
"""Name of the gRPC status of each code. A client of ours reads the code; this is for everybody else's."""


def public_error(error: Exception, method: str) -> ModeldError:
    """``error`` as a caller may see it: what is not of our tree goes to the log, and the caller gets its number."""
    if isinstance(error, ModeldError):
        return error
    number = uuid.uuid4().hex[:12]
    log.error("%s failed (%s)", method, number, exc_info=error)
    return ModeldError(f"{method} failed inside the node; its log has the cause under {number}", log_id=number)


def to_status(error: ModeldError) -> Status:
    """The rich status of ``error``. Details above 64 KiB are left out, and the status says so."""
    from google.protobuf.any_pb2 import Any as AnyMessage
    from google.rpc.error_details_pb2 import ErrorInfo
    from google.rpc.status_pb2 import Status
    from grpc import StatusCode

    metadata = {key: json.dumps(value, default=str) for key, value in error.details.items()}
    size = sum(len(key) + len(value) for key, value in metadata.items())
    if size > _MAX_DETAILS:
        metadata = {"details_left_out": str(size)}
    detail = AnyMessage()
    detail.Pack(ErrorInfo(reason=error.code, domain=DOMAIN, metadata=metadata))
    code = StatusCode[STATUS.get(error.code, "INTERNAL")].value[0]
    message = error.message.encode("utf-8", "replace").decode()
    if len(message) > _MAX_TEXT:
        message = message[: _MAX_TEXT - 1] + "…"
    return Status(code=code, message=message, details=[detail])


def from_rpc(error: AioRpcError, *, endpoint: str, pid: int) -> ModeldError:
    """The error that the other side raised, or what the loss of the connection means.

    :param endpoint: where the call went. :param pid: who was thought to answer there.
    """
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and (found := _from_status(value if isinstance(value, bytes) else value.encode())):
            return found
    text, where = error.details() or "no reason given", {"endpoint": endpoint, "pid": pid}
    match error.code().name:
        case "UNAVAILABLE":
            return NodeUnreachableError(f"the node (pid {pid}) does not answer at {endpoint}: {text}", **where)
        case "CANCELLED":
            # Ours alone raises asyncio.CancelledError: this one was cancelled by a node that is going away.
            return NodeUnreachableError(f"the node (pid {pid}) at {endpoint} dropped the call: {text}", **where)
        case "DEADLINE_EXCEEDED":
            return DeadlineExceededError(f"the node (pid {pid}) at {endpoint} did not answer in time", **where)
        case "UNIMPLEMENTED":
            return NotSupportedError(f"the node (pid {pid}) does not know this call: {text}; restart it", feature="rpc")
        case "RESOURCE_EXHAUSTED":
            return InvalidRequestError(f"the message is too large for the wire: {text}")
        case name:
            return ModeldError(f"the call failed on the wire with {name}: {text}", status=name)


def _from_status(data: bytes) -> ModeldError | None:
    from google.protobuf.message import DecodeError
    from google.rpc.error_details_pb2 import ErrorInfo
    from google.rpc.status_pb2 import Status

    try:
        status = Status.FromString(data)
        for detail in status.details:
            info = ErrorInfo()
            if detail.Unpack(info) and info.domain == DOMAIN:
                return error_from_code(info.reason, status.message, _details(dict(info.metadata)))
    except DecodeError:
        log.warning("a status holds details that cannot be read (%d bytes)", len(data))
    return None


def _details(metadata: dict[str, str]) -> Details:
    details: dict[str, Any] = {}
    for key, text in metadata.items():
        try:
            details[key] = json.loads(text)
        except (ValueError, RecursionError):
            details[key] = text  # another implementation may not write JSON; the text is better than nothing
    return details
