"""Answers of ``POST /v1/messages``: one object, or events. Both are made of the same blocks.

What Anthropic has no place for stands under ``modeld``, which its clients pass over: receipt, warnings, broken calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct, field, structs

from modeld.http.anthropic_marks import SIGNATURE, carry, unique_id
from modeld.http.sse import COMMENT, event
from modeld.types import (
    EndPart,
    ErrorPart,
    FinishReason,
    ProgressPart,
    StreamPart,
    TextPart,
    ThinkingPart,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Usage,
    WarningPart,
)

STOP: Final[dict[FinishReason, str]] = {
    "stop": "end_turn",
    "length": "max_tokens",
    "context_full": "model_context_window_exceeded",
    "tool_calls": "tool_use",
    "refused": "refusal",
    "cancelled": "end_turn",
    "error": "end_turn",
}
"""``modeld.finish_reason`` has our own where it says more."""

_encode = msgspec.json.Encoder().encode
_object = msgspec.json.Decoder(dict[str, Any]).decode

Event = dict[str, Any]


class Call(Struct):
    """A call while it comes. :param own_id: the one it had from the model."""

    id: str
    name: str
    own_id: str
    pieces: list[str] = field(default_factory=list)

    @property
    def arguments(self) -> str:
        """Its arguments so far, as the model wrote them."""
        return "".join(self.pieces) or "{}"


class Blocks:
    """An answer as blocks, one after the other.

    A call is told when it is whole: one that turns out malformed on its way is text, and cannot be taken back here.

    :param id: the answer's own hexadecimal digits.
    :param thinking: show its text; else only its block, whose signature then carries it.
    :param warnings: what there is to say before anything was generated.
    """

    def __init__(self, id: str, *, thinking: bool = True, warnings: Sequence[WarningPart] = ()) -> None:
        self._id = id
        self.content: list[dict[str, Any]] = []
        self.calls: list[Call] = []
        self.warnings = list(warnings)
        self.errors: list[ErrorPart] = []
        self._shown = thinking
        self._open = ""
        self._pieces: list[str] = []
        self._coming: dict[int, Call] = {}
        self._metas: dict[str, Any] = {}

    def add(self, part: StreamPart) -> list[Event]:
        """The events for the next part."""
        match part:
            case TextPart(text=text) if text:
                return self._piece("text", text)
            case ThinkingPart(text=text) if text:
                return self._piece("thinking", text)
            case ToolCallStart(index=index, id=id, name=name):
                self._coming[index] = Call(unique_id(self._id, id), name, id)
            case ToolCallDelta(index=index, arguments=arguments):
                self._coming[index].pieces.append(arguments)
            case ToolCallEnd(index=index, provider_meta=meta):
                call = self._coming.pop(index)
                if meta:
                    self._metas[call.own_id] = meta
                return self._called(call)
            case WarningPart():
                self.warnings.append(part)
            case ErrorPart(call=index):
                self.errors.append(part)
                if index is not None:
                    self._coming.pop(index, None)
            case EndPart():
                return self._ended(part)
        return []

    def _piece(self, kind: str, text: str) -> list[Event]:
        events = []
        if self._open != kind:
            events = [*self._close(), self._start({"type": kind, kind: "", **_empty(kind)})]
            self._open = kind
        self._pieces.append(text)
        if kind == "text" or self._shown:
            events.append(self._delta({"type": f"{kind}_delta", kind: text}))
        return events

    def _close(self) -> list[Event]:
        """End the block of text or thinking that is open."""
        kind, text = self._open, "".join(self._pieces)
        self._open, self._pieces = "", []
        if not kind:
            return []
        if kind == "text":
            self.content.append({"type": "text", "text": text, "citations": None})
            return [self._stop()]
        signature = SIGNATURE if self._shown else carry({"text": text})
        events = [self._delta({"type": "signature_delta", "signature": signature})]
        self.content.append({"type": "thinking", "thinking": text if self._shown else "", "signature": signature})
        return [*events, self._stop()]

    def _called(self, call: Call) -> list[Event]:
        """A whole call. Arguments that are no JSON object have no place in a block: they are text, and an error."""
        try:
            _object(call.arguments)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            text = f"the arguments of a call of {call.name} are no JSON object; they are in the text"
            self.errors.append(ErrorPart("malformed_tool_call", text, raw=call.arguments))
            return self._piece("text", f"{call.name} {call.arguments}")
        events = self._close()
        block = {"type": "tool_use", "id": call.id, "name": call.name, "caller": None, "toolset_name": None}
        events.append(self._start({**block, "input": {}}))
        events.append(self._delta({"type": "input_json_delta", "partial_json": call.arguments}))
        self.calls.append(call)
        self.content.append({**block, "input": msgspec.Raw(call.arguments.encode())})
        return [*events, self._stop()]

    def _ended(self, end: EndPart) -> list[Event]:
        events = []
        for index in sorted(self._coming):
            events += self._called(self._coming.pop(index))
        events += self._close()
        if end.provider_meta or self._metas:
            data = carry({"message": end.provider_meta, "calls": self._metas})
            block = {"type": "redacted_thinking", "data": data}
            events.append(self._start(block))
            self.content.append(block)
            events.append(self._stop())
        if end.usage.input is None or end.usage.output is None:
            self.warnings.append(WarningPart("usage_unknown", "the backend told no tokens: the zeros are none"))
        return events

    def _start(self, block: dict[str, Any]) -> Event:
        return {"type": "content_block_start", "index": len(self.content), "content_block": block}

    def _delta(self, delta: dict[str, Any]) -> Event:
        return {"type": "content_block_delta", "index": len(self.content), "delta": delta}

    def _stop(self) -> Event:
        """Of the block that was just added to the content."""
        return {"type": "content_block_stop", "index": len(self.content) - 1}


def _empty(kind: str) -> dict[str, Any]:
    return {"signature": ""} if kind == "thinking" else {"citations": None}


class Answer(Struct, frozen=True):
    """What all objects of one answer share."""

    id: str
    model: str
    blocks: Blocks

    def start(self, usage: Usage) -> dict[str, Any]:
        """The message before anything of it. :param usage: what is known of its prompt."""
        return self._message([], (None, None, None), usage_of(structs.replace(usage, output=0, reasoning=None)))

    def whole(self, end: EndPart) -> dict[str, Any]:
        """The message."""
        return self._message(self.blocks.content, self._reason(end), usage_of(end.usage)) | {"modeld": self._more(end)}

    def delta(self, end: EndPart) -> Event:
        """The event before the last."""
        reason, sequence, details = self._reason(end)
        delta = {"stop_reason": reason, "stop_sequence": sequence, "stop_details": details, "container": None}
        usage = usage_of(end.usage)
        for name in ("cache_creation", "inference_geo", "service_tier", "speed"):
            del usage[name]
        return {"type": "message_delta", "delta": delta, "usage": usage, "modeld": self._more(end)}

    def _message(self, content: list[dict[str, Any]], reason: tuple[Any, ...], usage: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": reason[0],
            "stop_sequence": reason[1],
            "stop_details": reason[2],
            "container": None,
            "diagnostics": None,
            "usage": usage,
        }

    def _reason(self, end: EndPart) -> tuple[str, str | None, dict[str, Any] | None]:
        """Stop reason, sequence and details. No program waits for a call that is not there."""
        if end.finish_reason == "stop" and end.stop:
            return "stop_sequence", end.stop, None
        if end.finish_reason == "tool_calls" and not self.blocks.calls:
            return "end_turn", None, None
        refused = {"type": "refusal", "category": None, "explanation": None} if end.finish_reason == "refused" else None
        return STOP[end.finish_reason], None, refused

    def _more(self, end: EndPart) -> dict[str, Any]:
        told = {"finish_reason": end.finish_reason, "seed": end.seed, "receipt": end.receipt, "model": end.model}
        return told | {"warnings": self.blocks.warnings, "errors": self.blocks.errors}


def usage_of(usage: Usage) -> dict[str, Any]:
    """The vendor counts what its cache gave and took apart from the rest. What a node computed is all input: it costs
    nothing more to be kept."""
    read, write = usage.cache_read or 0, usage.cache_write or 0
    details = None if usage.reasoning is None else {"thinking_tokens": usage.reasoning}
    return {
        "input_tokens": max(0, (usage.input or 0) - read - write),
        "cache_read_input_tokens": usage.cache_read,
        "cache_creation_input_tokens": 0 if usage.source == "counted" else usage.cache_write,
        "cache_creation": None,
        "output_tokens": usage.output or 0,
        "output_tokens_details": details,
        "server_tool_use": None,
        "service_tier": "standard",
        "inference_geo": None,
        "speed": None,
    }


class Events:
    """The events of one streamed answer. The first has the size of the prompt, and waits until that is known.

    :param progress: the client asked to hear of it: with the pings, and before the first event in comments.
    """

    def __init__(self, answer: Answer, *, progress: bool) -> None:
        self._answer = answer
        self._progress = progress
        self._begun = False

    def part(self, part: StreamPart) -> bytes:
        """See :class:`modeld.http.sse.Encoder`."""
        events = self._answer.blocks.add(part)
        if isinstance(part, ProgressPart):
            return (self._begin(_prompt_of(part)) if _is_sure(part) else b"") + self._told(part)
        if isinstance(part, EndPart):
            events.append(self._answer.delta(part))
            return self._begin(part.usage) + b"".join(map(_named, events))
        return self._begin(Usage(source="reported")) + b"".join(map(_named, events)) if events else b""

    def heartbeat(self) -> bytes:
        """See :class:`modeld.http.sse.Encoder`."""
        return _named({"type": "ping"}) if self._begun else COMMENT

    def end(self) -> bytes:
        """See :class:`modeld.http.sse.Encoder`."""
        return _named({"type": "message_stop"})

    def _told(self, part: ProgressPart) -> bytes:
        if not self._progress:
            return b""
        body = {"progress": part}
        return _named({"type": "ping", "modeld": body}) if self._begun else b": " + _encode(body) + b"\n\n"

    def _begin(self, usage: Usage) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        return _named({"type": "message_start", "message": self._answer.start(usage)})


def _is_sure(part: ProgressPart) -> bool:
    """Nothing more can come out of a cache: something was computed behind it."""
    return part.total > 0 and (part.done > part.cached or part.done == part.total)


def _prompt_of(part: ProgressPart) -> Usage:
    return Usage(input=part.total, cache_read=part.cached, cache_write=part.cache_write, source="reported")


def _named(body: Event) -> bytes:
    kind: str = body["type"]
    return b"event: " + kind.encode() + b"\n" + event(_encode(body))
