"""From the bytes a model writes to typed parts, in one pass.

:class:`OutputParser` turns an answer into text, thinking and tool calls. It holds back only what could still become
something else, and gives the same result however the bytes are cut. Formats are data and are chosen by what the model's
template mentions, never by the model's name: :mod:`modeld.chat.output.formats`.
"""

from __future__ import annotations

import re
from codecs import utf_8_decode
from collections.abc import Callable, Generator, Sequence
from typing import Final

from modeld.chat.output.bodies import may_begin, read
from modeld.chat.output.calls import CallWriter
from modeld.chat.output.formats import THINK_TAGS, Body, CallFormat, ChannelFormat, JsonBody, NamedBody, Special, is_tag
from modeld.chat.output.parts import Parts, SpanKind, Spans
from modeld.chat.output.reader import (
    MARK,
    SPACE,
    SPACES,
    MalformedError,
    ProseError,
    Put,
    Reader,
    Reading,
    finder,
    unmarked,
)
from modeld.chat.output.syntax import HEADER_LIMIT, Syntax, is_prose, read_header
from modeld.chat.output.values import value
from modeld.types import StreamPart, Tool

__all__ = ["THINK_TAGS", "OutputParser", "SpanKind", "Syntax", "make_parser"]

_QUOTES: Final = frozenset("`\"'")
_BETWEEN: Final = re.compile(r"[ \t\r\n;]*")
# What a header can begin with where the prompt wrote its first word.
_HEADER: Final = (MARK, "<", " ")
_IN_STRING: Final = re.compile(r'[^"\\\n]*')


def make_parser(
    template_source: str,
    *,
    tools: Sequence[Tool] | bool,
    prompt_tail: str,
    special: Special | None = None,
    spans: Spans | None = None,
) -> OutputParser:
    """The parser for one answer; who makes many keeps a :class:`Syntax`.

    :param template_source: the model's chat template; a tag that it does not mention is ordinary text.
    :param tools: those offered; without any a tool call is ordinary text. ``True``: some, nobody knows which.
    :param prompt_tail: the end of the rendered prompt; when it leaves a thinking tag open, the answer begins in it.
    :param special: whether a text is one special token of the vocabulary; ``None``: no text is.
    :param spans: as in :class:`OutputParser`.
    """
    return OutputParser(Syntax(template_source, special), tools=tools, prompt_tail=prompt_tail, spans=spans)


class OutputParser:
    """Incremental parser of one answer: :meth:`feed` for each token, then :meth:`finish` once.

    A marker that is one special token of the vocabulary counts only where it comes as that token; its characters as
    ordinary text stay text. Any other marker counts as text. Text without markers comes out byte for byte, except that
    bytes that are no UTF-8 become U+FFFD. What goes:

    - the markers, and the headers of channels;
    - white space after a tag that opens thinking and on either side of one that ends it, beside the tags themselves;
    - the one line break that templates write before ``<tool_call>`` and its like, white space and separators inside
      such a span but outside the arguments, and members of a call's object other than its name, arguments and id.

    The arguments of a call are told while they are written, as JSON text: JSON to the byte as the model wrote it,
    other notations as JSON that means the same. ``{}`` where it wrote none. A call is told from its name and first
    argument on. Its end is told when what must follow it was seen, or the answer is over. Where that does not come, the
    whole span is text, and an error part with code ``malformed_tool_call`` follows that names the call to take back.
    Whether the tool was offered is looked at only where no marker begins a call.

    A tag such as ``<tool_call>`` begins a call only when a line break or the beginning of a body follows. No tag counts
    directly after a quote or backtick, nor any marker that is ordinary text: that is prose about it. Inside thinking
    only its closing tag counts, and a call whose marker is a special token and no tag. Time is linear in the output;
    nothing is ever raised for what a model wrote.

    :param syntax: of the model's template and vocabulary. :param tools: as in :func:`make_parser`.
    :param prompt_tail: likewise.
    :param spans: is called with each piece of the output that is done with, in order, and what it was. The pieces
        joined are the output: for whoever wants to see that nothing gets lost.
    :ivar in_header: the answer begins in the middle of a channel's header.
    """

    def __init__(
        self, syntax: Syntax, *, tools: Sequence[Tool] | bool, prompt_tail: str, spans: Spans | None = None
    ) -> None:
        self._syntax = syntax
        self._tools = None if tools is True else tools or ()
        self._markers = syntax.with_calls if tools else syntax.without_calls
        self._reader = Reader()
        self._parts = Parts(spans)
        self._bytes = b""  # an unfinished UTF-8 character
        # While set, text in which it finds nothing is passed on as it is.
        self._near: Callable[[str], re.Match[str] | None] | None = None
        self.in_header = syntax.in_header(prompt_tail)
        self._steps: Generator[None, None, None] = self._answer(prompt_tail)
        next(self._steps)

    @property
    def in_thinking(self) -> bool:
        """The text fed last was thinking, as far as that is certain."""
        return self._parts.thinking

    def feed(self, data: bytes, special: bool = False) -> list[StreamPart]:
        """The parts that the next bytes of the answer make certain.

        :param special: they are one special token, whole.
        """
        if special and (marker := data.decode("utf-8", "replace")) in self._syntax.special:
            text = utf_8_decode(self._bytes, "replace", True)[0] + MARK + marker
            self._bytes = b""
        else:
            if self._bytes:
                data = self._bytes + data
            text, used = utf_8_decode(data, "replace", False)
            self._bytes = data[used:]
        if not text:
            return []
        if self._near is not None and not self._near(text):
            self._parts.say(text)
        else:
            self._reader.push(text)
            next(self._steps)
        return self._parts.take()

    def finish(self) -> list[StreamPart]:
        """The parts that were held back. The parser is used up."""
        self._reader.push(utf_8_decode(self._bytes, "replace", True)[0])
        self._reader.ended = True
        for _ in self._steps:
            raise AssertionError("it waits for text that cannot come")
        return self._parts.take()

    def _answer(self, tail: str) -> Reading[None]:
        fresh = True
        if (close := self._syntax.opened(tail)) is not None:
            yield from self._think(close)
        elif self.in_header:
            yield from self._message()
        while not self._reader.done:
            fresh = yield from (self._bare() if fresh and self._markers.bare else self._text())

    def _text(self) -> Reading[bool]:
        """Text, the next marker and what it begins. ``True``: a call without a marker may follow."""
        reader, words = self._reader, self._markers.finder
        start = place = reader.at
        while found := words.search(reader.text, place):
            before = reader.text[found.start() - 1] if found.start() > start else self._parts.last
            if before not in _QUOTES or not is_prose(found[0]):
                break
            place = found.end()
        if found is not None:
            self._say_to(found.start())
            reader.at = found.end()
            return (yield from self._begun(found[0].removeprefix("\n")))
        self._say_to(len(reader.text) if reader.ended else words.undecided(reader.text, place))
        if not reader.ended:
            self._near = words.may_begin if reader.at == len(reader.text) else None
            yield
            self._near = None
        return False

    def _say_to(self, end: int) -> None:
        self._reader.at = end
        self._parts.say(self._reader.span())

    def _begun(self, marker: str) -> Reading[bool]:
        """What a marker that was read begins."""
        if (close := self._markers.thinking.get(marker)) is not None:
            self._parts.drop(self._reader.span())
            yield from self._think(close)
            return True
        if (formats := self._markers.calls.get(marker)) is not None:
            yield from self._call(formats)
        elif marker in self._markers.dropped:
            self._parts.drop(self._reader.span())
        else:
            yield from self._message(marker)
        return False

    def _think(self, close: str) -> Reading[None]:
        reader, parts = self._reader, self._parts
        held: list[str] = []  # white space that may stand before the closing tag

        def put(text: str) -> None:
            thought = text.rstrip(SPACES)
            if thought:
                parts.say("".join(held) + thought)
                held.clear()
            if len(thought) < len(text):
                held.append(text[len(thought) :])
            reader.span()

        parts.thinking = True
        yield from reader.run(SPACE)
        parts.drop(reader.span())
        end = yield from reader.until(self._markers.while_thinking(close), put)
        if not end:
            parts.say("".join(held))
            return
        parts.thinking = False
        if end == close:
            yield from reader.run(SPACE)
        else:
            reader.at -= len(end)
        parts.drop("".join(held) + reader.span())

    # Calls

    def _bare(self) -> Reading[bool]:
        """A call without a marker, if one comes; whether it did."""
        reader = self._reader
        yield from reader.run(_BETWEEN if self._parts.calls else SPACE)
        character = "" if reader.done else (yield from reader.peek())
        fits = [call for call in self._markers.bare if character in ("{", "[") and may_begin(call.body, character)]
        if not fits:
            self._parts.say(reader.span())
            return False
        return (yield from self._span(fits[0], bare=True))

    def _call(self, formats: tuple[CallFormat, ...]) -> Reading[None]:
        """What follows a marker that begins calls."""
        reader = self._reader
        held: list[str] = []
        yield from reader.run(SPACE, held.append)
        certain = reader.done or "\n" in "".join(held) or not is_tag(unmarked(formats[0].open))
        character = "" if reader.done else (yield from reader.peek())
        fits = [call for call in formats if character and may_begin(call.body, character)]
        if not fits and not certain:
            self._parts.say(reader.span())
        elif not fits:
            yield from self._malformed(formats[-1], "no call follows the marker", None)
        else:
            yield from self._span(fits[0], certain=certain)

    def _span(self, call_format: CallFormat, *, bare: bool = False, certain: bool = False) -> Reading[bool]:
        """A body and what closes it; whether it was one.

        :param certain: it is a call, if a malformed one.
        """
        calls = self._writer(call_format.body, call_format.call_id, bare=bare)
        try:
            yield from read(call_format.body, self._reader, calls)
            if call_format.close and not bare:
                yield from self._closed(call_format.close)
            calls.finish()
            return True
        except ProseError:
            why, prose, quoted = "no call follows the marker", not certain, False
        except MalformedError as error:
            why, prose, quoted = str(error), bare and calls.index is None, error.quoted
        if prose:
            self._parts.say(self._reader.span())
        elif bare:
            self._parts.malformed(self._reader.span(), why, calls.index)
        else:
            yield from self._malformed(call_format, why, calls.index, quoted=quoted)
        return False

    def _writer(self, body: Body, call_id: str, *, bare: bool = False) -> CallWriter:
        listed = body.listed if isinstance(body, NamedBody) else body
        late = isinstance(listed, JsonBody) and listed.late_id
        return CallWriter(self._parts, self._reader, self._tools, call_id=call_id, late_id=late, bare=bare)

    def _closed(self, *closes: str) -> Reading[None]:
        yield from self._reader.run(SPACE)
        if self._reader.done:
            return
        for close in closes:
            if (yield from self._reader.literal(close)):
                return
        raise MalformedError(f"{unmarked(closes[0])!r} is missing")

    def _malformed(
        self, call_format: CallFormat, why: str, index: int | None, *, quoted: bool = False
    ) -> Reading[None]:
        """Read on to where the call closes; all of it is text."""
        reader, close = self._reader, call_format.close
        if close and isinstance(call_format.body, JsonBody) and close[0] != MARK:
            yield from self._past_strings(close, quoted)
        elif close:
            yield from reader.until(finder(close), len)
        self._parts.malformed(reader.span(), why, index)

    def _past_strings(self, close: str, quoted: bool) -> Reading[None]:
        """Read on past a closing tag that is not inside a string. A line break ends a string: JSON's hold none."""
        reader = self._reader
        while True:
            if not quoted and (yield from reader.until(finder(close, '"'), len)) != '"':
                return
            yield from reader.run(_IN_STRING)
            if reader.done:
                return
            quoted = (yield from reader.peek()) == "\\"
            reader.at += 1
            if quoted and not reader.done:
                yield from reader.peek()
                reader.at += 1

    # Channels

    def _message(self, opening: str = "") -> Reading[None]:
        """A message of a channel, after the marker that opens it or after the prompt; what is none stays text."""
        reader, channels = self._reader, self._markers.channels
        assert channels is not None
        words = finder(channels.message, *channels.ends)
        while (found := words.search(reader.text, reader.at, reader.at + HEADER_LIMIT)) is None:
            size = len(reader.text) - reader.at
            if reader.ended or size >= HEADER_LIMIT or (size and not opening and reader.text[reader.at] not in _HEADER):
                break
            yield
        header = None
        if found is not None and found[0] == channels.message:
            header = read_header(opening.removeprefix(channels.start) + reader.text[reader.at : found.start()])
        if found is None or header is None or (header[1] and self._tools == ()):
            self._parts.say(reader.span())
            return
        reader.at = found.end()
        if header[1]:
            yield from self._addressed(channels, header[1])
        else:
            yield from self._content(channels, header[0] == "analysis")

    def _content(self, channels: ChannelFormat, thinking: bool) -> Reading[None]:
        """A message's text."""
        reader, parts = self._reader, self._parts

        def put(text: str) -> None:
            parts.say(text)
            reader.span()

        parts.drop(reader.span())
        parts.thinking = thinking
        yield from self._until_end(channels, put)
        parts.thinking = False
        parts.drop(reader.span())

    def _addressed(self, channels: ChannelFormat, recipient: str) -> Reading[None]:
        """A message to a tool."""
        reader = self._reader
        calls = self._writer(JsonBody(), channels.call_id)
        try:
            calls.name(recipient.removeprefix("functions."))
            yield from reader.run(SPACE)
            if not reader.done and (yield from reader.peek()) not in (MARK, "<"):
                calls.arguments_begin()
                yield from value(reader, calls.put)
            calls.end()
            yield from reader.run(SPACE)
            if not (yield from reader.comes(channels.start)):
                yield from self._closed(*channels.ends)
            calls.finish()
        except MalformedError as error:
            yield from self._until_end(channels, len)
            self._parts.malformed(reader.span(), str(error), calls.index)

    def _until_end(self, channels: ChannelFormat, put: Put) -> Reading[None]:
        if (yield from self._reader.until(finder(*channels.ends, channels.start), put)) == channels.start:
            self._reader.at -= len(channels.start)
