"""What an answer of the Messages wire means, whole or streamed.

Sources: https://platform.claude.com/docs/en/build-with-claude/streaming and the response types of the SDK 2.12.
Fields that are not read are not here; every field may be missing or null, and kinds that are not known are no error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Final
from uuid import uuid4

import msgspec
from msgspec import Raw, Struct, structs

from modeld.errors import (
    BackendProtocolError,
    ModeldError,
)
from modeld.providers.anthropic_errors import CODES, ErrorBody, vendor_failure
from modeld.providers.failures import failure_error
from modeld.repository.names import ToolNames
from modeld.types import (
    EndPart,
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


class _Details(Struct, frozen=True):
    thinking_tokens: int | None = None


class _Usage(Struct, frozen=True):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    output_tokens_details: _Details | None = None


class _StopDetails(Struct, frozen=True):
    explanation: str | None = None


class _Delta(Struct, frozen=True):
    type: str | None = None
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    partial_json: str | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: _StopDetails | None = None


class _Block(Struct, frozen=True):
    type: str | None = None
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    id: str | None = None
    name: str | None = None
    input: Raw = Raw()


class _Message(_Delta, frozen=True):
    id: str | None = None
    model: str | None = None
    usage: _Usage | None = None
    content: list[Raw] = []


class _Event(Struct, frozen=True):
    type: str | None = None
    index: int | None = None
    delta: _Delta | None = None
    content_block: Raw = Raw()
    message: _Message | None = None
    usage: _Usage | None = None
    error: ErrorBody | None = None
    request_id: str | None = None


class _Kind(Struct, frozen=True):
    type: str | None = None


class _DeltaEvent(Struct, frozen=True):
    delta: _Kind | None = None


_BLOCKS: Final = ("text", "thinking", "redacted_thinking", "tool_use")
_DELTAS: Final = ("text_delta", "thinking_delta", "signature_delta", "input_json_delta", None)
_EVENTS: Final = (
    "message_start",
    "content_block_start",
    "content_block_delta",
    "content_block_stop",
    "message_delta",
    "message_stop",
    "error",
)
_REASONS: Final[dict[str, FinishReason]] = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "tool_use": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "refusal": "refused",
    "model_context_window_exceeded": "context_full",
}


@cache
def _decoder(kind: Any) -> Any:
    return msgspec.json.Decoder(kind).decode


class _Open:
    """A block of the answer, while it comes and after."""

    def __init__(self, kind: str, call: int = -1) -> None:
        self.kind = kind
        self.call = call
        self.length = 0
        self.thinking: list[str] = []
        self.signature = ""
        self.spare = "{}"
        """Arguments that came with the start of the block; they count where no delta follows."""


class Decoder:
    """Reads one answer, whole or streamed, and says what it holds as parts."""

    def __init__(self, model: str, names: ToolNames) -> None:
        self._model = model
        self._names = names
        self._decode = _decoder(_Event)
        self._blocks: dict[int, _Open] = {}
        self._passed: set[int] = set()
        """Blocks that are not for us, such as those of a server's own tool."""
        self._calls = 0
        self._answer = _Message()
        self._usage = _Usage()
        self._stop = _Delta()
        self._counted: ProgressPart | None = None

    def feed(self, data: bytes) -> Sequence[StreamPart]:
        """The parts that one event of a stream adds. Kinds of events that are not known add none.

        What the vendor counted at the start goes before the first part, and does not make one: until there is one a
        call that fails may be tried again.

        :raises ModeldError: the event is an error, or no JSON of this wire.
        """
        parts = self._fed(data)
        if self._counted is not None and parts:
            parts, self._counted = [self._counted, *parts], None
        return parts

    def _fed(self, data: bytes) -> Sequence[StreamPart]:
        try:
            event = self._decode(data)
        except msgspec.ValidationError as error:
            if not self._is_known(data):
                return ()
            raise self._broken(error) from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._broken(error) from error
        kind = event.type
        if kind == "content_block_delta":
            return self._delta(event.index or 0, event.delta or _Delta())
        if kind == "content_block_start":
            return self._start(event.index or 0, event.content_block)
        if kind == "content_block_stop":
            return self._close(event.index or 0)
        if kind == "message_start":
            self._answer = event.message or _Message()
            self._count(self._answer.usage)
            usage = self._sum()
            read, write, whole = usage.cache_read or 0, usage.cache_write or 0, usage.input or 0
            if whole and all(0 <= count < 2**53 for count in (read, write, whole)):
                self._counted = ProgressPart(read, whole, whole, cache_write=write)
        elif kind == "message_delta":
            if event.delta is not None and event.delta.stop_reason:
                self._stop = event.delta
            self._count(event.usage)
        elif kind == "message_stop" and self._stop.stop_reason:
            return tuple(self._end())
        elif kind == "error":
            raise self._failed(event)
        return ()

    def whole(self, data: bytes) -> Sequence[StreamPart]:
        """The parts of an answer that did not stream.

        :raises BackendProtocolError: it is none.
        """
        self._answer = self._stop = answer = self._decoded(_Message, data)
        self._count(answer.usage)
        parts: list[StreamPart] = []
        for index, block in enumerate(answer.content):
            parts += self._start(index, block)
            parts += self._close(index)
        if not answer.stop_reason:
            raise self._broken("there is no stop_reason")
        return [*parts, *self._end()]

    def _is_known(self, data: bytes) -> bool:
        """Whether an event of an unexpected shape is of a kind that must be understood."""
        kind = self._decoded(_Kind, data).type
        if kind != "content_block_delta":
            return kind in _EVENTS
        event = self._decoded(_DeltaEvent, data)
        return event.delta is None or event.delta.type in _DELTAS

    def _decoded(self, kind: Any, data: bytes | Raw) -> Any:
        try:
            return _decoder(kind)(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._broken(error) from error

    def _broken(self, error: Exception | str) -> BackendProtocolError:
        return BackendProtocolError(
            f"the answer of anthropic ({self._model}) could not be understood: {error}",
            backend="anthropic",
            model=self._model,
        )

    def _failed(self, event: _Event) -> ModeldError:
        headers = {"request-id": event.request_id} if event.request_id else {}
        return failure_error("anthropic", self._model, vendor_failure(event.error, headers=headers), CODES)

    def _count(self, usage: _Usage | None) -> None:
        """Counts are cumulative: the last one that says something holds."""
        if usage is not None:
            said = {name: value for name, value in structs.asdict(usage).items() if value is not None}
            self._usage = structs.replace(self._usage, **said)

    def _start(self, index: int, raw: Raw) -> Sequence[StreamPart]:
        if self._decoded(_Kind, raw or b"{}").type not in _BLOCKS:
            self._passed.add(index)
            return ()
        block: _Block = self._decoded(_Block, raw)
        opened = self._blocks[index] = _Open(block.type or "")
        if block.type == "tool_use":
            opened.call, self._calls = self._calls, self._calls + 1
            opened.spare = bytes(block.input).decode() if bytes(block.input) not in (b"", b"null") else "{}"
            call_id = block.id or f"call_{uuid4().hex[:24]}"
            return (ToolCallStart(opened.call, call_id, self._names.original(block.name or "")),)
        opened.signature = block.data or block.signature or ""
        return self._text(opened, block.text) if block.type == "text" else self._thought(opened, block.thinking)

    def _delta(self, index: int, delta: _Delta) -> Sequence[StreamPart]:
        opened = self._blocks.get(index)
        if opened is None:
            if index not in self._passed:
                raise self._broken(f"a delta of block {index}, which did not begin")
            return ()
        if opened.kind == "closed":
            raise self._broken(f"a delta of block {index}, which has ended")
        if delta.text:
            return self._text(opened, delta.text)
        if delta.partial_json and opened.call >= 0:
            opened.spare = ""
            return (ToolCallDelta(opened.call, delta.partial_json),)
        if delta.signature:
            opened.signature += delta.signature
        return self._thought(opened, delta.thinking)

    def _text(self, opened: _Open, text: str | None) -> Sequence[StreamPart]:
        if not text:
            return ()
        opened.length += len(text)
        return (TextPart(text),)

    def _thought(self, opened: _Open, text: str | None) -> Sequence[StreamPart]:
        if not text:
            return ()
        opened.thinking.append(text)
        return (ThinkingPart(text),)

    def _close(self, index: int) -> Sequence[StreamPart]:
        opened = self._blocks.get(index)
        if opened is None or opened.call < 0 or opened.kind == "closed":
            return ()
        opened.kind = "closed"
        spare = (ToolCallDelta(opened.call, opened.spare),) if opened.spare else ()
        return (*spare, ToolCallEnd(opened.call))

    def _end(self) -> Iterator[StreamPart]:
        for index in self._blocks:
            yield from self._close(index)
        reason = self._stop.stop_reason or ""
        finish = _REASONS.get(reason, "stop")
        if self._calls and reason in ("end_turn", "stop_sequence", "tool_use"):
            finish = "tool_calls"
        said = self._stop.stop_details.explanation if self._stop.stop_details else None
        if finish == "refused" and said:
            spoken = any(opened.length for opened in self._blocks.values())
            yield WarningPart("refusal", said) if spoken else TextPart(said)
        if reason == "pause_turn":
            yield WarningPart("paused", "the vendor paused a long turn; send the answer back and it goes on")
        elif reason not in _REASONS:
            yield WarningPart("unknown_finish_reason", f"anthropic ended with {reason!r}, which is not known here")
        yield EndPart(
            finish_reason=finish,
            usage=self._sum(),
            model=self._answer.model or "",
            id=self._answer.id or "",
            stop=self._stop.stop_sequence or "",
            provider_meta=self._meta(),
        )

    def _sum(self) -> Usage:
        """The vendor counts what it read from and wrote to its cache apart from the rest of the input."""
        usage = self._usage
        read, write = usage.cache_read_input_tokens, usage.cache_creation_input_tokens
        details = usage.output_tokens_details
        return Usage(
            input=None if usage.input_tokens is None else usage.input_tokens + (read or 0) + (write or 0),
            cache_read=read,
            cache_write=write,
            output=usage.output_tokens,
            reasoning=None if details is None else details.thinking_tokens,
            source="reported",
        )

    def _meta(self) -> dict[str, Any] | None:
        """Signed thinking, and where text and calls stood between it: the vendor wants all back in this order."""
        content: list[dict[str, Any]] = []
        signed = False
        for opened in self._blocks.values():
            if opened.call >= 0:
                content.append({"type": "tool_use"})
            elif opened.kind == "text" and opened.length:
                content.append({"type": "text", "length": opened.length})
            elif opened.kind != "text" and opened.signature:
                signed = True
                content.append(_signed(opened))
        return {"anthropic": {"model": self._model, "content": content}} if signed else None


def _signed(opened: _Open) -> dict[str, Any]:
    if opened.kind == "redacted_thinking":
        return {"type": "redacted_thinking", "data": opened.signature}
    return {"type": "thinking", "thinking": "".join(opened.thinking), "signature": opened.signature}
