"""Errors as HTTP clients see them: one status for each code, and the body of the dialect that is spoken."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from modeld.errors import ContextOverflowError, ModeldError

Dialect = Literal["openai", "anthropic"]
"""Whose error bodies a route answers with."""

MAX_TEXT: Final = 2000
"""Characters of a message, and of the name of a field. More is cut, and says so."""

Headers = tuple[tuple[str, str], ...]

_STEP: Final = re.compile(r"[.\[]")

STATUS: Final = {
    "internal": 500,
    "invalid_request": 400,
    "unsupported_feature": 400,
    "missing_dependency": 501,
    "refused": 422,
    "cancelled": 499,
    "deadline_exceeded": 504,
    "node_error": 500,
    "not_running": 503,
    "stale": 503,
    "unreachable": 503,
    "backend_mismatch": 400,
    "owner_held": 503,
    "owner_wedged": 503,
    "device_busy": 503,
    "token_missing": 401,
    "token_wrong": 401,
    "tls_required": 403,
    "lease_lost": 503,
    "not_owner": 503,
    "stale_epoch": 503,
    "storage_failed": 507,
    "model_error": 422,
    "model_not_found": 404,
    "invalid_model": 422,
    "digest_mismatch": 409,
    "model_load_failed": 500,
    "model_busy": 409,
    "does_not_fit": 400,
    "session_error": 500,
    "session_closed": 409,
    "session_fatal": 409,
    "stale_generation": 409,
    "context_overflow": 400,
    "manifest_mismatch": 409,
    "snapshot_not_found": 404,
    "session_not_found": 404,
    "session_busy": 409,
    "template_error": 400,
    "engine_error": 500,
    "engine_crashed": 503,
    "engine_protocol": 500,
    "backend_error": 502,
    "backend_not_found": 404,
    "authentication": 502,
    "permission_denied": 403,
    "rate_limited": 429,
    "quota_exceeded": 429,
    "unavailable": 503,
    "backend_protocol": 502,
}
"""Of each code. ``authentication`` is the key of a backend, which the caller cannot mend: 401 is for our own token."""

_OPENAI_CODES: Final = {
    "context_overflow": "context_length_exceeded",
    "rate_limited": "rate_limit_exceeded",
    "quota_exceeded": "insufficient_quota",
    "token_missing": "invalid_api_key",
    "token_wrong": "invalid_api_key",
}
"""Where OpenAI has a code of its own that clients look for."""

_TYPES: Final[Mapping[Dialect, Mapping[int, str]]] = {
    "openai": {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"},
    "anthropic": {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        413: "request_too_large",
        429: "rate_limit_error",
        503: "overloaded_error",
        504: "timeout_error",
    },
}
_OTHERWISE: Final[Mapping[Dialect, tuple[str, str]]] = {
    "openai": ("invalid_request_error", "server_error"),
    "anthropic": ("invalid_request_error", "api_error"),
}
"""Type of the statuses that are not listed: below 500, and from there."""


_ALSO_CALLED: Final[Mapping[str, tuple[str, ...]]] = {
    "stop": ("stop_sequences",),
    "think": ("thinking", "reasoning"),
    "response_format": ("output_config.format", "text.format"),
    "parallel_tool_calls": ("tool_choice.disable_parallel_tool_use",),
    "max_tokens": ("max_output_tokens",),
    "truncate": ("truncation",),
    "messages": ("input",),
    **dict.fromkeys(("chat", "embed", "embeddings", "rerank"), ("model",)),
}
"""Options and features of ours: the fields of bodies that have them. What a model cannot do is about ``model``."""


class Refusal(Exception):
    """HTTP itself goes wrong: before a request means anything to a node.

    :param param: the field of the body that is to blame. :param headers: that the answer has besides.
    """

    def __init__(
        self, status: int, code: str, message: str, *, param: str | None = None, headers: Headers = ()
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.param, self.headers = status, code, message, param, headers


class Failure(Struct, frozen=True):
    """What the answer to a failed request says. ``too_long``: a prompt's tokens, and those that there is room for."""

    status: int
    code: str
    message: str
    param: str | None = None
    headers: Headers = ()
    too_long: tuple[int, int] | None = None


STOPPING: Final = Failure(503, "unavailable", "the node stops", headers=(("retry-after", "1"),))
"""Of what still ran when the time for that was over."""


def failure_of(error: ModeldError | Refusal, fields: Collection[str] | None = None) -> Failure:
    """What a client is told of ``error``. What may be tried again says when.

    :param fields: that the request's body may have, of which ``param`` is one; ``None``: it may be any.
    """
    if isinstance(error, Refusal):
        return Failure(error.status, error.code, error.message, error.param, error.headers)
    status = STATUS.get(error.code, 500)
    param = error.details.get("parameter") or error.details.get("feature")
    headers: Headers = ()
    if status in (429, 503):
        after = error.details.get("retry_after")
        headers = (("retry-after", str(max(1, round(after)) if isinstance(after, int | float) else 1)),)
    too_long = None
    if isinstance(error, ContextOverflowError):
        resident, additional, window = (error.details.get(name) for name in ("resident", "additional", "window"))
        if isinstance(resident, int) and isinstance(additional, int) and isinstance(window, int):
            too_long = (resident + additional, window)
    known = _field(param, fields) if isinstance(param, str) else None
    return Failure(status, error.code, error.message, known, headers, too_long)


def _field(name: str, fields: Collection[str] | None) -> str | None:
    """``name``, as a body with these fields calls it; ``None`` where it has no such field."""
    if fields is None:
        return name
    places = (name, *_ALSO_CALLED.get(name, ()))
    return next((place for place in places if _STEP.split(place, maxsplit=1)[0] in fields), None)


def _clipped(text: str) -> str:
    """What was refused may be as long as a body is."""
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}... ({len(text):,} characters)"


def error_body(dialect: Dialect, failure: Failure, request_id: str) -> bytes:
    """The JSON of the dialect. It is also what a stream sends that fails in its middle."""
    below, above = _OTHERWISE[dialect]
    kind = _TYPES[dialect].get(failure.status, below if failure.status < 500 else above)
    body: dict[str, Any]
    if dialect == "anthropic":
        error = {"type": kind, "message": _clipped(_anthropic_message(failure))}
        body = {"type": "error", "error": error, "request_id": request_id}
    else:
        code = openai_code(failure)
        param = failure.param and _clipped(failure.param)
        body = {"error": {"message": _clipped(failure.message), "type": kind, "param": param, "code": code}}
    return msgspec.json.encode(body)


def openai_code(failure: Failure) -> str:
    """OpenAI's own code, where it has one."""
    return _OPENAI_CODES.get(failure.code, failure.code)


def _anthropic_message(failure: Failure) -> str:
    """It says all: there is no place for field and code. Agents look for these words where a prompt is too long."""
    if failure.too_long is not None:
        tokens, room = failure.too_long
        return f"prompt is too long: {tokens} tokens > {room} maximum ({failure.message})"
    name = failure.param
    return failure.message if not name or name in failure.message else f"{name}: {failure.message}"


def dialect_of(path: str, headers: Sequence[tuple[bytes, bytes]]) -> Dialect:
    """Whose clients call ``path``. Both list models there: Anthropic's say the version of its API."""
    if path == "/v1/models" or path.startswith("/v1/models/"):
        return "anthropic" if any(name == b"anthropic-version" for name, _ in headers) else "openai"
    return "anthropic" if path == "/v1/messages" or path.startswith("/v1/messages/") else "openai"
