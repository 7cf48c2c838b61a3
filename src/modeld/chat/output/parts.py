"""The parts that an answer becomes, and a record of what became what."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from modeld.chat.output.reader import unmarked
from modeld.types import ErrorPart, StreamPart, TextPart, ThinkingPart, ToolCallDelta, ToolCallEnd, ToolCallStart

SpanKind = Literal["text", "thinking", "call", "marker"]
Spans = Callable[[SpanKind, str], object]


class Parts:
    """Collects parts until they are taken.

    :param spans: as in :class:`modeld.chat.parser.OutputParser`.
    :ivar thinking: what is said is thinking. :ivar last: the last character said; empty directly after a marker.
    :ivar calls: calls told so far, those taken back too.
    """

    def __init__(self, spans: Spans | None) -> None:
        self.thinking = False
        self.last = ""
        self.calls = 0
        self._spans = spans
        self._parts: list[StreamPart] = []
        self._arguments: list[str] = []  # of the call told last, in no part yet

    def take(self) -> list[StreamPart]:
        """What is there."""
        self._flush()
        parts, self._parts = self._parts, []
        return parts

    def say(self, text: str) -> None:
        """Text, or thinking."""
        if not text:
            return
        self.last = text[-1]
        text = unmarked(text)
        self._add(
            ThinkingPart(text) if self.thinking else TextPart(text), "thinking" if self.thinking else "text", text
        )

    def drop(self, raw: str) -> None:
        """A marker, or white space beside one: nobody is told."""
        self._book("marker", raw)
        self.last = ""

    def call_start(self, name: str, call_id: str) -> int:
        """A call begins; its index."""
        self._flush()
        self._parts.append(ToolCallStart(self.calls, call_id, name))
        self.calls += 1
        return self.calls - 1

    def call_delta(self, arguments: str) -> None:
        """A piece of the arguments of the call that began last."""
        if arguments:
            self._arguments.append(arguments)

    def call_end(self, index: int, raw: str) -> None:
        """It is complete. :param raw: the whole of it, and what is around it."""
        self._add(ToolCallEnd(index), "call", raw)
        self.last = ""

    def malformed(self, raw: str, why: str, index: int | None) -> None:
        """What was to be a call is text. :param index: of what was told of it."""
        self.say(raw)
        self.last = ""
        message = f"the model wrote a malformed tool call: {why}"
        self._add(
            ErrorPart("malformed_tool_call", message, raw=unmarked(raw).removeprefix("\n"), call=index), "text", ""
        )

    def _add(self, part: StreamPart, kind: SpanKind, raw: str) -> None:
        self._flush()
        self._book(kind, raw)
        self._parts.append(part)

    def _flush(self) -> None:
        if self._arguments:
            self._parts.append(ToolCallDelta(self.calls - 1, "".join(self._arguments)))
            self._arguments.clear()

    def _book(self, kind: SpanKind, raw: str) -> None:
        if self._spans is not None and raw:
            self._spans(kind, unmarked(raw))
