"""The ``/v1/responses`` part of the fake of OpenAI: requests checked strictly, answers as the vendor writes them.

Source: ``ResponseCreateParams``, ``Response`` and ``ResponseStreamEvent`` of the ``openai`` SDK 3.54.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from modeld.testing.responses_requests import CreateResponse, checked_request, sealed
from modeld.testing.server import Answer, FakeServer, Recorded, Rejected, Reply, split
from modeld.types import Usage

Json = dict[str, Any]


async def respond_responses(server: FakeServer, request: Recorded) -> Reply:
    """The reply to ``POST /v1/responses``.

    :raises Rejected: the vendor would not take the request.
    """
    if request.method != "POST":
        raise Rejected(f"Invalid method for URL ({request.method} {request.path})", status=405)
    wanted = checked_request(request.body)
    answer = server.next_answer()
    written = WrittenResponse(wanted, answer, len(server.requests))
    headers = {"x-request-id": f"req_{len(server.requests):032x}", "openai-version": "2020-10-01"}
    if wanted.stream:
        pieces = tuple(written.pieces())
        return Reply(content_type="text/event-stream; charset=utf-8", headers=headers, pieces=pieces)
    return Reply(headers=headers, body=json.dumps(written.response(), indent=2).encode())


def responses_error_event(code: str, message: str, sequence_number: int = 0) -> bytes:
    """The error in the middle of a stream of this API."""
    body = {"type": "error", "code": code or None, "message": message, "param": None}
    return _sse({**body, "sequence_number": sequence_number})


def _sse(event: Json) -> bytes:
    return f"event: {event['type']}\ndata: {json.dumps(event, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


class WrittenResponse:
    """One answer, as the vendor writes it; ``number`` makes its ids."""

    def __init__(self, wanted: CreateResponse, answer: Answer, number: int) -> None:
        self._wanted = wanted
        self._answer = answer
        self._number = number
        self._sequence = -1
        self._status, self._details, self._error = _ending(answer)
        self._output = list(self._items())

    def response(self) -> Json:
        """The whole answer."""
        return self._object(self._status, self._output, self._answer.usage)

    def pieces(self) -> Iterator[bytes]:
        """The stream. Events that vendors send in one go are one piece; each delta is a piece of its own."""
        begun = self._object("in_progress", [], None)
        yield self._event("response.created", response=begun) + self._event("response.in_progress", response=begun)
        for index, item in enumerate(self._output):
            yield from self._streamed(index, item)
        yield self._event(f"response.{self._status}", response=self.response())

    # Items of the output.

    def _items(self) -> Iterator[Json]:
        answer = self._answer
        if self._status == "failed":
            return
        if answer.thinking:
            asked = self._wanted.reasoning is not None and self._wanted.reasoning.summary is not None
            id = self._id("rs", 0)
            summary = [{"type": "summary_text", "text": answer.thinking}] if asked else []
            yield {
                "id": id,
                "type": "reasoning",
                "summary": summary,
                "encrypted_content": sealed(id, answer.signature),
            }
        if answer.text or answer.refusal or not answer.tool_calls:
            content: list[Json] = [_output_text(answer.text)] if answer.text or not answer.refusal else []
            content += [{"type": "refusal", "refusal": answer.refusal}] if answer.refusal else []
            status = "incomplete" if self._status == "incomplete" else "completed"
            yield {
                "id": self._id("msg", 1),
                "type": "message",
                "status": status,
                "role": "assistant",
                "content": content,
            }
        for place, call in enumerate(answer.tool_calls, 2):
            yield {
                "id": self._id("fc", place),
                "type": "function_call",
                "status": "completed",
                "arguments": call.function.arguments,
                "call_id": call.id,
                "name": self._sent_name(call.function.name),
            }

    def _sent_name(self, name: str) -> str:
        """The tool of the request that is meant: a client may have had to rename it."""
        names = [tool.name for tool in self._wanted.tools]
        renamed = re.sub(r"[^A-Za-z0-9_-]", "_", name)
        return renamed if renamed in names else name

    def _streamed(self, index: int, item: Json) -> Iterator[bytes]:
        match item["type"]:
            case "reasoning":
                opened = {**item, "summary": []}
                inner = self._summary(index, item)
            case "message":
                opened = {**item, "status": "in_progress", "content": []}
                inner = self._content(index, item)
            case _:
                opened = {**item, "status": "in_progress", "arguments": ""}
                inner = self._arguments(index, item)
        # The first event of what is inside comes with the item's own.
        yield self._event("response.output_item.added", output_index=index, item=opened) + next(inner, b"")
        yield from inner
        yield self._event("response.output_item.done", output_index=index, item=item)

    def _summary(self, index: int, item: Json) -> Iterator[bytes]:
        for number, part in enumerate(item["summary"]):
            place = {"item_id": item["id"], "output_index": index, "summary_index": number}
            empty = {"type": "summary_text", "text": ""}
            yield self._event("response.reasoning_summary_part.added", **place, part=empty)
            for text in split(part["text"], self._answer.pieces):
                yield self._delta("response.reasoning_summary_text.delta", text, place)
            yield self._event("response.reasoning_summary_text.done", **place, text=part["text"]) + self._event(
                "response.reasoning_summary_part.done", **place, part=part
            )

    def _content(self, index: int, item: Json) -> Iterator[bytes]:
        for number, part in enumerate(item["content"]):
            kind, key = ("refusal", "refusal") if part["type"] == "refusal" else ("output_text", "text")
            more: Json = {} if kind == "refusal" else {"logprobs": []}
            place = {"item_id": item["id"], "output_index": index, "content_index": number}
            yield self._event("response.content_part.added", **place, part={**part, key: ""})
            for text in split(part[key], self._answer.pieces):
                yield self._delta(f"response.{kind}.delta", text, {**place, **more})
            yield self._event(f"response.{kind}.done", **place, **more, **{key: part[key]}) + self._event(
                "response.content_part.done", **place, part=part
            )

    def _arguments(self, index: int, item: Json) -> Iterator[bytes]:
        place = {"item_id": item["id"], "output_index": index}
        for text in split(item["arguments"], self._answer.pieces):
            yield self._delta("response.function_call_arguments.delta", text, place)
        yield self._event("response.function_call_arguments.done", **place, arguments=item["arguments"])

    # Shapes.

    def _event(self, type: str, **fields: Any) -> bytes:
        self._sequence += 1
        return _sse({"type": type, "sequence_number": self._sequence, **fields})

    def _delta(self, type: str, text: str, place: Json) -> bytes:
        options = self._wanted.stream_options
        padded = options is None or options.include_obfuscation
        # Filled up to one length, so that who watches the line does not see how long the words are.
        return self._event(
            type, **place, delta=text, **({"obfuscation": "x" * (16 - len(text) % 16)} if padded else {})
        )

    def _id(self, kind: str, place: int) -> str:
        return f"{kind}_{self._number:040x}{place:08x}"

    def _object(self, status: str, output: list[Json], usage: Usage | None) -> Json:
        wanted = self._wanted
        return {
            "id": self._id("resp", 0),
            "object": "response",
            "created_at": 1_760_000_000 + self._number,
            "status": status,
            "background": False,
            "error": self._error if status == "failed" else None,
            "incomplete_details": self._details if status == "incomplete" else None,
            "max_tool_calls": None,
            "output": output,
            "previous_response_id": None,
            "service_tier": "default",
            "top_logprobs": 0,
            "usage": None if usage is None else _usage(usage),
            **wanted.echoed(),
        }


def _output_text(text: str) -> Json:
    return {"type": "output_text", "annotations": [], "logprobs": [], "text": text}


def _ending(answer: Answer) -> tuple[str, Json | None, Json | None]:
    """Status, details of an incomplete answer, error of a failed one."""
    match answer.finish_reason:
        case "stop" | "tool_calls":
            return "completed", None, None
        case "refused" if answer.refusal:
            return "completed", None, None
        case "refused":
            return "incomplete", {"reason": "content_filter"}, None
        case "length":
            return "incomplete", {"reason": "max_output_tokens"}, None
        case "error":
            return "failed", None, {"code": "server_error", "message": "The model failed to generate a response."}
    raise ValueError(f"this API has no way to end an answer with {answer.finish_reason!r}")


def _usage(usage: Usage) -> Json:
    """All numbers are always there: what the script does not say is 0."""
    read, made = usage.input or 0, usage.output or 0
    return {
        "input_tokens": read,
        "input_tokens_details": {
            "cached_tokens": usage.cache_read or 0,
            "cache_write_tokens": usage.cache_write or 0,
        },
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning or 0},
        "total_tokens": read + made,
    }
