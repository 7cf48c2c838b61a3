"""Answers of ``POST /v1/chat/completions``: one object, or chunks.

What OpenAI has no place for stands under ``modeld``, which its clients pass over: receipt, warnings, malformed calls.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from modeld.http.openai_logprobs import chat_logprobs, said
from modeld.http.sse import COMMENT, event
from modeld.types import (
    ChatResult,
    EndPart,
    ErrorPart,
    FinishReason,
    LogprobsPart,
    ProgressPart,
    Receipt,
    StreamPart,
    TextPart,
    ThinkingPart,
    ToolCallDelta,
    ToolCallStart,
    Usage,
    WarningPart,
)

FINISH: Final[dict[FinishReason, str]] = {
    "stop": "stop",
    "length": "length",
    "context_full": "length",
    "tool_calls": "tool_calls",
    "refused": "content_filter",
    "cancelled": "stop",
    "error": "stop",
}
"""``modeld.finish_reason`` has our own where it says more."""

_encode = msgspec.json.Encoder().encode


def usage_of(usage: Usage) -> dict[str, Any] | None:
    """``None`` where a vendor told no numbers: unknown is not 0."""
    if usage.input is None or usage.output is None:
        return None
    return {
        "prompt_tokens": usage.input,
        "completion_tokens": usage.output,
        "total_tokens": usage.input + usage.output,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read, "cache_write_tokens": usage.cache_write},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


def receipt_header(receipt: Receipt) -> str:
    """A receipt on one line of ASCII. What it quotes of the conversation is left to the body."""
    built = msgspec.to_builtins(receipt)
    if built["stop"] is not None:
        for quoted in ("old", "new", "detail", "advice"):
            del built["stop"][quoted]
    return json.dumps(built, separators=(",", ":"))


def completion(
    result: ChatResult, *, id: str, created: int, model: str, logprobs: bool, notes: Sequence[WarningPart]
) -> dict[str, Any]:
    """The whole answer. :param logprobs: they were asked for; else they are null. :param notes: warnings besides."""
    message: dict[str, Any] = {"role": "assistant", "content": result.text or None, "refusal": None, "annotations": []}
    if not result.tool_calls and message["content"] is None:
        message["content"] = ""
    if result.finish_reason == "refused":
        message |= {"content": None, "refusal": result.text}
    if result.thinking:
        message["reasoning_content"] = result.thinking
    if result.tool_calls:
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": call.function.arguments},
            }
            for call in result.tool_calls
        ]
    told = chat_logprobs(result.logprobs, refused=result.finish_reason == "refused") if logprobs else None
    choice = {"index": 0, "message": message, "logprobs": told, "finish_reason": FINISH[result.finish_reason]}
    return {
        "id": id,
        "object": "chat.completion",
        "created": created,
        "model": model,
        "system_fingerprint": None,
        "choices": [choice],
        "usage": usage_of(result.usage),
        "modeld": extension(result.end, [*notes, *result.warnings], list(result.errors)),
    }


class Chunks:
    """The events of one streamed answer.

    :param usage: the client asked for a last chunk with the usage; all others then say null.
    :param progress: it asked to hear how far the prompt is: in chunks without choices. :param notes: warnings besides.
    """

    def __init__(
        self, *, id: str, created: int, model: str, usage: bool, progress: bool, notes: Sequence[WarningPart]
    ) -> None:
        head = {"id": id, "object": "chat.completion.chunk", "created": created, "model": model}
        self._head = _encode(head | {"system_fingerprint": None})[:-1]
        self._usage = usage
        self._null_usage = b',"usage":null' if usage else b""
        self._progress = progress
        self._begun = False
        self._warnings = list(notes)
        self._errors: list[ErrorPart] = []

    def part(self, part: StreamPart) -> bytes:
        """See :class:`modeld.http.sse.Encoder`."""
        match part:
            case TextPart(text=text):
                return self._delta({"content": text})
            case ThinkingPart(text=text):
                return self._delta({"reasoning_content": text})
            case ToolCallStart(index=index, id=id, name=name):
                function = {"name": name, "arguments": ""}
                return self._delta(
                    {"tool_calls": [{"index": index, "id": id, "type": "function", "function": function}]}
                )
            case ToolCallDelta(index=index, arguments=arguments):
                return self._delta({"tool_calls": [{"index": index, "function": {"arguments": arguments}}]})
            case LogprobsPart(tokens=tokens) if said(tokens):
                # Behind the chunk with their text, in one that has none.
                return self._delta({"content": ""}, logprobs=_encode(chat_logprobs(tokens)))
            case ProgressPart() if self._progress:
                return self._bare({"progress": part})
            case WarningPart():
                self._warnings.append(part)
            case ErrorPart():
                self._errors.append(part)
            case EndPart():
                return self._end(part)
        return b""

    def heartbeat(self) -> bytes:
        """See :class:`modeld.http.sse.Encoder`."""
        return COMMENT

    def end(self) -> bytes:
        """See :class:`modeld.http.sse.Encoder`."""
        return event(b"[DONE]")

    def _delta(
        self, delta: dict[str, Any], finish: bytes = b"null", more: bytes = b"", logprobs: bytes = b"null"
    ) -> bytes:
        first = b""
        if not self._begun:
            self._begun = True
            first = self._delta({"role": "assistant", "content": "", "refusal": None})
        choice = b',"choices":[{"index":0,"delta":' + _encode(delta) + b',"logprobs":' + logprobs
        choice += b',"finish_reason":' + finish + b"}]"
        return first + event(self._head + choice + self._null_usage + more + b"}")

    def _bare(self, extension: dict[str, Any], usage: bytes | None = None) -> bytes:
        told = self._null_usage if usage is None else b',"usage":' + usage
        return event(self._head + b',"choices":[]' + told + b',"modeld":' + _encode(extension) + b"}")

    def _end(self, end: EndPart) -> bytes:
        told = extension(end, self._warnings, self._errors)
        finish = b'"' + FINISH[end.finish_reason].encode() + b'"'
        if self._usage:
            return self._delta({}, finish) + self._bare(told, _encode(usage_of(end.usage)))
        return self._delta({}, finish, b',"modeld":' + _encode(told))


def extension(end: EndPart, warnings: list[WarningPart], errors: list[ErrorPart]) -> dict[str, Any]:
    """What stands under ``modeld``."""
    told = {"finish_reason": end.finish_reason, "seed": end.seed, "receipt": end.receipt, "model": end.model}
    return told | {"warnings": warnings, "errors": errors}
