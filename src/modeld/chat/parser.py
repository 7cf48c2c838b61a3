"""From the bytes a model writes to typed parts, in one pass.

:class:`StopMatcher` works on the bytes, before :class:`OutputParser` turns them into text, thinking and tool calls.
Both hold back only what could still become a stop string or a tag, and both give the same result however the bytes
are cut. Formats are data and are chosen by what the model's template mentions, never by the model's name.
"""

from __future__ import annotations

import re
from codecs import utf_8_decode
from collections.abc import Sequence
from typing import AnyStr, Final, Literal

import msgspec
from msgspec import Struct

from modeld.types import ErrorPart, StreamPart, TextPart, ThinkingPart, ToolCallDelta, ToolCallEnd, ToolCallStart

THINK_TAGS: Final = (("<think>", "</think>"),)
"""Pairs of tags around thinking."""

CALL_TAGS: Final = ("<tool_call>", "</tool_call>")
"""Tags around a Hermes/Qwen tool call: ``<tool_call>\\n{"name": ..., "arguments": {...}}\\n</tool_call>``."""

_SPACE: Final = " \t\r\n"
_QUOTES: Final = frozenset("`\"'")
_OUTSIDE_STRING: Final = re.compile('"|' + re.escape(CALL_TAGS[1]))
# A raw line break ends a JSON string: no valid one holds it, and a quote left open must not hide the closing tag.
_INSIDE_STRING: Final = re.compile(r'\\.|["\n]')


class _Call(Struct):
    name: str
    arguments: msgspec.Raw = msgspec.Raw(b"{}")


def _undecided(text: AnyStr, tags: Sequence[AnyStr]) -> int:
    """Where the longest end of ``text`` begins that is a proper beginning of a tag; ``len(text)`` when none is."""
    size = len(text)
    for start in range(max(0, size - max(map(len, tags), default=0) + 1), size):
        end = text[start:]
        if any(tag.startswith(end) for tag in tags):
            return start
    return size


def make_parser(template_source: str, *, tools: bool, prompt_tail: str) -> OutputParser:
    """The parser for one answer.

    :param template_source: the model's chat template; a tag that it does not mention is ordinary text.
    :param tools: tools were offered; without them a tool call is ordinary text.
    :param prompt_tail: the end of the rendered prompt; when it leaves a thinking tag open, the answer begins in it.
    """
    thinking = {start: end for start, end in THINK_TAGS if start in template_source or end in template_source}
    tail = prompt_tail.rstrip(_SPACE)
    opened = next((start for start in thinking if tail.endswith(start)), None)
    return OutputParser(thinking, calls=tools and CALL_TAGS[0] in template_source, opened=opened)


class OutputParser:
    """Incremental parser of one answer: :meth:`feed` for each token, then :meth:`finish` once.

    Text without tags comes out byte for byte, except that bytes that are no UTF-8 become U+FFFD. What goes:

    - white space after ``<think>`` and on either side of ``</think>``, beside the tags themselves;
    - the one line break that templates write before ``<tool_call>``, and the white space inside the tags.

    A tool call comes out whole (start, one delta, end) when its closing tag arrives; a closing tag inside a JSON string
    is part of the string. ``arguments`` are the bytes that the model wrote, of whatever JSON type, ``{}`` where it
    wrote none; keys other than ``name`` and ``arguments`` are not kept. Whether the tool was offered is not looked at.
    A malformed call is text plus an error part with code ``malformed_tool_call``.

    ``<tool_call>`` begins a call only when a line break or ``{`` follows, and no opening tag counts directly after a
    quote or backtick: that is prose about the tag. Inside thinking only its closing tag counts. It does not know
    special tokens from their text. Time is linear in the output; nothing is ever raised for what a model wrote.

    :param thinking: closing tag by opening tag. :param opened: the opening tag that the prompt left open.
    """

    def __init__(self, thinking: dict[str, str], *, calls: bool, opened: str | None = None) -> None:
        self._thinking = thinking
        self._opening = (*thinking, CALL_TAGS[0]) if calls else tuple(thinking)
        self._find_opening = re.compile("|".join(map(re.escape, self._opening))).search if self._opening else None
        # A line break may be the one before a call.
        self._starts = (*self._opening, "\n" + CALL_TAGS[0]) if calls else self._opening
        self._bytes = b""  # an unfinished UTF-8 character
        self._held = ""  # text that may become (part of) a tag
        self._last = ""  # the character before ``_held``; empty directly after a tag
        self._skip = False  # white space goes until other text comes
        self._mode: Literal["text", "thinking", "call"] = "text"
        self._close = ""
        self._call: list[str] = []  # a call so far, from the line break before it on
        self._begun = False  # and it is one, not prose
        self._quoted = False  # inside a JSON string
        self._calls = 0
        if opened is not None:
            self._think(opened)
        self._settle()

    @property
    def in_thinking(self) -> bool:
        """The text fed last was thinking, as far as that is certain."""
        return self._mode == "thinking"

    def feed(self, data: bytes) -> list[StreamPart]:
        """The parts that the next bytes of the answer make certain."""
        if self._bytes:
            data = self._bytes + data
        text, used = utf_8_decode(data, "replace", False)
        self._bytes = data[used:]
        if not text:
            return []
        if self._quick and "<" not in text and text[-1] not in self._defer:
            self._last = text[-1]
            return [ThinkingPart(text) if self._mode == "thinking" else TextPart(text)]
        parts: list[StreamPart] = []
        self._run(text, parts)
        self._settle()
        return parts

    def finish(self) -> list[StreamPart]:
        """The parts that were held back. The parser is used up."""
        parts: list[StreamPart] = []
        self._run(utf_8_decode(self._bytes, "replace", True)[0], parts)
        held, self._bytes, self._held = self._held, b"", ""
        if self._mode == "call":
            self._malformed("".join(self._call) + held, "the closing tag is missing", parts)
            self._mode = "text"
        else:
            self._emit(held, parts)
        self._settle()
        return parts

    def _settle(self) -> None:
        # What feed() needs to pass ordinary text on without a scan. All tags begin with "<".
        self._quick = not self._held and not self._skip and self._mode != "call"
        self._defer = _SPACE if self._mode == "thinking" else "\n" if CALL_TAGS[0] in self._opening else ""

    def _run(self, text: str, parts: list[StreamPart]) -> None:
        text = self._held + text
        self._held = ""
        while text:
            if self._skip:
                text = text.lstrip(_SPACE)
                self._skip = not text
            if self._mode == "text":
                text = self._on_text(text, parts)
            elif self._mode == "thinking":
                text = self._on_thinking(text, parts)
            else:
                text = self._on_call(text, parts)

    def _on_text(self, text: str, parts: list[StreamPart]) -> str:
        at, tag = 0, None
        while self._find_opening and (tag := self._find_opening(text, at)):
            if (text[tag.start() - 1] if tag.start() else self._last) not in _QUOTES:
                break
            at = tag.end()
        if tag is None:
            keep = _undecided(text, self._starts)
            self._emit(text[:keep], parts)
            self._held = text[keep:]
            return ""
        if tag[0] in self._thinking:
            self._emit(text[: tag.start()], parts)
            self._think(tag[0])
        else:
            start = tag.start() - text.endswith("\n", 0, tag.start())
            self._emit(text[:start], parts)
            self._mode, self._call, self._begun, self._quoted = "call", [text[start : tag.end()]], False, False
        return text[tag.end() :]

    def _think(self, opening: str) -> None:
        self._mode, self._close, self._skip = "thinking", self._thinking[opening], True

    def _on_thinking(self, text: str, parts: list[StreamPart]) -> str:
        end = text.find(self._close)
        if end < 0:
            keep = len(text[: _undecided(text, (self._close,))].rstrip(_SPACE))
            self._emit(text[:keep], parts)
            self._held = text[keep:]
            return ""
        self._emit(text[:end].rstrip(_SPACE), parts)
        self._mode, self._skip, self._last = "text", True, ""
        return text[end + len(self._close) :]

    def _on_call(self, text: str, parts: list[StreamPart]) -> str:
        if not self._begun:
            rest = text.lstrip(_SPACE)
            space = text[: len(text) - len(rest)]
            self._begun = "\n" in space or rest.startswith("{")
            if not self._begun:
                self._call.append(space)
                if rest:
                    self._mode = "text"
                    self._emit("".join(self._call), parts)
                return rest
        at = 0
        while found := (_INSIDE_STRING if self._quoted else _OUTSIDE_STRING).search(text, at):
            at = found.end()
            if found[0] == CALL_TAGS[1]:
                self._end_call("".join(self._call) + text[:at], parts)
                return text[at:]
            if found[0] in '"\n':
                self._quoted = not self._quoted
        escape = at < len(text) and text[-1] == "\\"
        keep = len(text) - escape if self._quoted else _undecided(text, CALL_TAGS[1:])
        self._call.append(text[:keep])
        self._held = text[keep:]
        return ""

    def _end_call(self, span: str, parts: list[StreamPart]) -> None:
        self._mode, self._last = "text", ""
        body = span.lstrip("\n").removeprefix(CALL_TAGS[0]).removesuffix(CALL_TAGS[1])
        try:
            call = msgspec.json.decode(body, type=_Call)
        except (msgspec.DecodeError, RecursionError) as error:
            return self._malformed(span, str(error), parts)
        if not call.name:
            return self._malformed(span, "the name is empty", parts)
        index = self._calls
        self._calls += 1
        parts.append(ToolCallStart(index, f"call_{index + 1}", call.name))
        parts.append(ToolCallDelta(index, bytes(call.arguments).decode()))
        parts.append(ToolCallEnd(index))
        return None

    def _malformed(self, span: str, why: str, parts: list[StreamPart]) -> None:
        self._emit(span, parts)
        self._last = ""
        raw = span.removeprefix("\n")
        parts.append(ErrorPart("malformed_tool_call", f"the model wrote a malformed tool call: {why}", raw=raw))

    def _emit(self, text: str, parts: list[StreamPart]) -> None:
        if text:
            self._last = text[-1]
            parts.append(ThinkingPart(text) if self._mode == "thinking" else TextPart(text))


class StopMatcher:
    """Ends an answer at the first stop string.

    The match that begins first wins; of those, the longest. So a match is told once no earlier and no longer one can
    still come, at the latest by :meth:`finish`. Stop strings must not be empty.

    :ivar passed: bytes passed on so far. :ivar matched: the stop string that ended the answer.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        # Longest first: a regular expression takes the first alternative that matches.
        self._stops = sorted({s.encode("utf-8", "surrogatepass") for s in stop}, key=len, reverse=True)
        self._find = re.compile(b"|".join(map(re.escape, self._stops))).search if self._stops else None
        self._by_first = {first: [s for s in self._stops if s[:1] == first] for first in {s[:1] for s in self._stops}}
        self._near = re.compile(b"|".join(map(re.escape, self._by_first))).search if self._stops else None
        self._held = b""
        self.passed = 0
        self.matched: str | None = None

    def feed(self, data: bytes) -> tuple[bytes, str | None]:
        """The bytes that are no part of a stop string, and the stop string that matched. After it nothing passes."""
        if self.matched is not None:
            return b"", self.matched
        if not self._held and (self._near is None or not self._near(data)):
            self.passed += len(data)
            return data, None
        data = self._held + data
        open_from = self._open_from(data)
        found = self._find(data) if self._find else None
        if found and found.start() < open_from:
            return self._match(data, found), self.matched
        self._held = data[open_from:]
        self.passed += open_from
        return data[:open_from], None

    def finish(self) -> bytes:
        """The bytes that were held back. Where they hold a whole stop string, ``matched`` is set and they end there."""
        data, self._held = self._held, b""
        if self._find and (found := self._find(data)):
            return self._match(data, found)
        self.passed += len(data)
        return data

    def _open_from(self, data: bytes) -> int:
        """Where the first proper beginning of a stop string lies that reaches the end of ``data``."""
        at = max(0, len(data) - len(self._stops[0]) + 1)
        while self._near and (near := self._near(data, at)):
            end = data[near.start() :]
            if any(stop.startswith(end) and stop != end for stop in self._by_first[near[0]]):
                return near.start()
            at = near.end()
        return len(data)

    def _match(self, data: bytes, found: re.Match[bytes]) -> bytes:
        self._held = b""
        self.matched = found[0].decode("utf-8", "surrogatepass")
        self.passed += found.start()
        return data[: found.start()]
