"""A server that speaks Anthropic's Messages wire.

Source of what it writes: https://platform.claude.com/docs/en/build-with-claude/streaming and the types of the SDK 2.12.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
from msgspec import Raw

from modeld.testing.anthropic_request import (
    FULL,
    MODELS,
    VERSIONS,
    MessagesRequest,
    Model,
    Thinking,
    ToolUse,
    problems,
)
from modeld.testing.server import Answer, FakeServer, Recorded, Rejected, Reply, split


class FakeAnthropic(FakeServer):
    """Anthropic's server.

    :param page: models on one page of the listing at most: few, so that a client has to turn pages.
    """

    def __init__(self, *, key: str = "test-key", models: Sequence[Model] = MODELS, page: int = 2) -> None:
        super().__init__(key=key)
        self.models = {model.id: model for model in models}
        self.page = page
        self._thought: dict[str, str] = {}
        """For each call that was thought about: the signature that must come back with it."""

    async def respond(self, request: Recorded) -> Reply:
        """Messages and the listing of models."""
        self._check_headers(request)
        match request.method, request.path:
            case "GET", "/v1/models":
                return self._list(request)
            case "POST", "/v1/messages":
                return self._answer(request)
        raise Rejected(f"Not found: {request.method} {request.path}", status=404)

    def error_body(self, status: int, code: str, message: str) -> bytes:
        """See :meth:`FakeServer.error_body`."""
        kind = code or _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
        error = {"type": kind, "message": message}
        return _json({"type": "error", "error": error, "request_id": "req_011CSHoEeqs5C35K2UUqR7Fy"})

    def error_event(self, code: str, message: str) -> bytes:
        """See :meth:`FakeServer.error_event`."""
        return b"event: error\ndata: " + self.error_body(500, code or "api_error", message) + b"\n\n"

    def _check_headers(self, request: Recorded) -> None:
        headers = request.headers
        # With both, the vendor looks at x-api-key.
        key = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        if key != self.key:
            raise Rejected("invalid x-api-key", status=401)
        if headers.get("anthropic-version") not in VERSIONS:
            raise Rejected("anthropic-version: header is required")
        if request.method == "POST" and not headers.get("content-type", "").startswith("application/json"):
            raise Rejected("content-type must be application/json", status=415)

    def _list(self, request: Recorded) -> Reply:
        unknown = request.query.keys() - {"after_id", "limit", "lifecycle[]"}
        limit = request.query.get("limit", "20")
        if unknown or not limit.isdigit() or not 1 <= int(limit) <= 1000:
            raise Rejected(f"limit: must be 1 to 1000; unknown: {sorted(unknown)}")
        ids = list(self.models)
        after = request.query.get("after_id")
        if after is not None and after not in ids:
            raise Rejected("after_id: not found")
        rest = ids[ids.index(after) + 1 :] if after is not None else ids
        shown = rest[: min(int(limit), self.page)]
        data = [model_info(self.models[name]) for name in shown]
        page = {"data": data, "has_more": len(rest) > len(shown)}
        edges = {"first_id": shown[0] if shown else None, "last_id": shown[-1] if shown else None}
        return Reply(body=_json({**page, **edges}))

    def _answer(self, recorded: Recorded) -> Reply:
        try:
            request = msgspec.json.decode(recorded.body, type=MessagesRequest)
        except msgspec.DecodeError as error:
            raise Rejected(str(error)) from error
        model = self.models.get(request.model)
        if model is None:
            raise Rejected(f"model: {request.model}", status=404)
        for problem in problems(request, model, recorded.headers["anthropic-version"]):
            raise Rejected(problem)
        self._check_signatures(request)
        answer = self.next_answer()
        if answer.thinking:
            self._thought.update((call.id, answer.signature) for call in answer.tool_calls)
        if request.stream:
            return Reply(content_type="text/event-stream; charset=utf-8", pieces=tuple(_events(request, answer)))
        return Reply(body=_json(_message(request, answer)))

    def _check_signatures(self, request: MessagesRequest) -> None:
        """What was thought before a call must come back with the call, before it and unchanged."""
        for message in request.messages:
            signature = ""
            for block in message.blocks:
                if isinstance(block, Thinking):
                    signature = block.signature
                elif isinstance(block, ToolUse) and self._thought.get(block.id, signature) != signature:
                    raise Rejected("messages: Invalid `signature` in `thinking` block, or the block is missing")


_TYPES: Final = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def model_info(model: Model) -> dict[str, Any]:
    """A model in the listing."""

    def flag(on: bool) -> dict[str, bool]:
        return {"supported": on}

    types = {kind: flag(kind in model.thinking) for kind in ("adaptive", "between_tools", "disabled", "enabled")}
    thinks = bool({"adaptive", "enabled"} & set(model.thinking))
    capabilities = {
        **{name: flag(True) for name in ("batch", "citations", "code_execution", "image_input", "pdf_input")},
        "context_management": {"supported": True, "clear_thinking_20251015": flag(True), "compact_20260112": None},
        "effort": {"supported": bool(model.efforts), **{name: flag(name in model.efforts) for name in FULL}},
        "server_tools": {"supported": True, "code_execution": flag(True), "web_search": flag(True)},
        "structured_outputs": flag(True),
        "thinking": {"supported": thinks, "types": types},
    }
    return {
        "type": "model",
        "id": model.id,
        "display_name": model.id.replace("-", " ").title(),
        "created_at": "2026-02-05T00:00:00Z",
        "deprecated_at": None,
        "retires_at": None,
        "lifecycle": "active",
        "line": model.id.split("-")[1],
        "max_input_tokens": model.window,
        "max_tokens": model.ceiling,
        "capabilities": capabilities,
    }


_STOPS: Final = {
    "length": "max_tokens",
    "tool_calls": "tool_use",
    "refused": "refusal",
    "context_full": "model_context_window_exceeded",
}


def _stop(answer: Answer) -> dict[str, Any]:
    refusal = {"type": "refusal", "category": None, "explanation": answer.refusal} if answer.refusal else None
    reason = "refusal" if answer.refusal else _STOPS.get(answer.finish_reason, "end_turn")
    return {"stop_reason": reason, "stop_sequence": None, "stop_details": refusal}


def _usage(answer: Answer) -> dict[str, Any]:
    usage = answer.usage
    read, write = usage.cache_read or 0, usage.cache_write or 0
    details = None if usage.reasoning is None else {"thinking_tokens": usage.reasoning}
    return {
        "input_tokens": (usage.input or 0) - read - write,
        "cache_creation_input_tokens": write,
        "cache_read_input_tokens": read,
        "cache_creation": {"ephemeral_5m_input_tokens": write, "ephemeral_1h_input_tokens": 0},
        "output_tokens": usage.output or 0,
        "output_tokens_details": details,
        "service_tier": "standard",
    }


def _blocks(answer: Answer) -> list[dict[str, Any]]:
    blocks: list[dict[str, Any]] = []
    if answer.thinking:
        blocks.append({"type": "thinking", "thinking": answer.thinking, "signature": answer.signature})
    if answer.text:
        blocks.append({"type": "text", "text": answer.text, "citations": None})
    for call in answer.tool_calls:
        arguments = Raw(call.function.arguments.encode())
        blocks.append({"type": "tool_use", "id": call.id, "name": call.function.name, "input": arguments})
    return blocks


def _message(request: MessagesRequest, answer: Answer) -> dict[str, Any]:
    return {
        "id": "msg_013Zva2CMHLNnXjNJJKqJ2EF",
        "type": "message",
        "role": "assistant",
        "model": request.model,
        "content": _blocks(answer),
        "container": None,
        **_stop(answer),
        "usage": _usage(answer),
    }


def _events(request: MessagesRequest, answer: Answer) -> Iterator[bytes]:
    begun = {"output_tokens": 1, "output_tokens_details": None}
    message = {**_message(request, answer), "content": [], "stop_reason": None, "stop_details": None}
    yield _event("message_start", message={**message, "usage": {**message["usage"], **begun}})
    blocks = _blocks(answer)
    for index, block in enumerate(blocks):
        empty: dict[str, Any] = {"text": "", "thinking": "", "signature": "", "input": {}}
        start = {name: empty.get(name, value) for name, value in block.items()}
        yield _event("content_block_start", index=index, content_block=start)
        if index == 0:
            yield _event("ping")
        for delta in _deltas(block, answer.pieces):
            yield _event("content_block_delta", index=index, delta=delta)
        yield _event("content_block_stop", index=index)
    usage = {name: value for name, value in _usage(answer).items() if name not in ("cache_creation", "service_tier")}
    yield _event("message_delta", delta={**_stop(answer), "container": None}, usage=usage)
    yield _event("message_stop")


def _deltas(block: dict[str, Any], pieces: int) -> Iterator[dict[str, Any]]:
    match block["type"]:
        case "text":
            for piece in split(block["text"], pieces):
                yield {"type": "text_delta", "text": piece}
        case "thinking":
            for piece in split(block["thinking"], pieces):
                yield {"type": "thinking_delta", "thinking": piece}
            yield {"type": "signature_delta", "signature": block["signature"]}
        case "tool_use":
            # The vendor begins with an empty piece, and has no other where there are no arguments.
            text = bytes(block["input"]).decode()
            for piece in ["", *([] if json.loads(text) == {} else split(text, pieces))]:
                yield {"type": "input_json_delta", "partial_json": piece}


def _event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: ".encode() + _json({"type": kind, **fields}) + b"\n\n"


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value)
