"""The formats of one template in one vocabulary, made ready to be found in text."""

from __future__ import annotations

import re
from typing import Final

from modeld.chat.output.formats import CallFormat, ChannelFormat, Special, find_dialect, in_vocabulary, is_tag
from modeld.chat.output.reader import MARK, SPACES, Finder, finder, unmarked

_HEADER: Final = re.compile(
    r"(?:assistant)?(?: ?to=(?P<first>[^\s<]+))?\s*(?:<\|channel\|>(?P<channel>\w+)(?:\s+to=(?P<then>[^\s<]+))?)?"
    r"\s*(?:<\|constrain\|>)?\s*\w*\s*"
)
HEADER_LIMIT: Final = 256
"""Characters of a channel's header at most; anything longer is text."""


class Markers:
    """What counts in one answer.

    :param bare: formats of calls that need no marker.
    """

    def __init__(
        self,
        thinking: dict[str, str],
        calls: tuple[CallFormat, ...],
        channels: ChannelFormat | None,
        dropped: frozenset[str],
    ) -> None:
        self.thinking = thinking
        self.channels = channels
        self.dropped = dropped
        self.bare = tuple(call for call in calls if call.bare)
        self.calls: dict[str, tuple[CallFormat, ...]] = {}
        for call in calls:
            self.calls[call.open] = (*self.calls.get(call.open, ()), call)
        lines = ("\n" + call.open for call in calls if call.line)
        around = (channels.start, channels.channel) if channels else ()
        self.finder = Finder((*thinking, *self.calls, *lines, *dropped, *around))
        self._sure = tuple(marker for marker in self.calls if not is_prose(marker))

    def while_thinking(self, close: str) -> Finder:
        """Finds what ends thinking: its tag, and a call that cannot be prose."""
        return finder(close, *self._sure)


class Syntax:
    """The formats that a template speaks, with the special tokens of a vocabulary. Immutable; good for many answers.

    :param template_source: a tag that it does not mention is ordinary text.
    :param special: whether a text is one special token of the vocabulary; ``None``: no text is.
    :ivar special: the markers that are.
    """

    def __init__(self, template_source: str, special: Special | None = None) -> None:
        found: set[str] = set()

        def marked(text: str) -> str:
            if not text or special is None or not special(text):
                return text
            found.add(text)
            return MARK + text

        self.dialect = dialect = find_dialect(template_source)
        thinking = {marked(start): marked(end) for start, end in dialect.thinking.items()}
        calls = tuple(in_vocabulary(call, marked) for call in dialect.calls)
        channels = in_vocabulary(dialect.channels, marked) if dialect.channels else None
        dropped = frozenset(map(marked, dialect.dropped))
        self.with_calls = Markers(thinking, calls, channels, dropped)
        self.without_calls = Markers(thinking, (), channels, dropped)
        self.special = frozenset(found)

    def opened(self, tail: str) -> str | None:
        """The tag that ends the thinking which a prompt leaves open; ``None``: it leaves none.

        :param tail: the prompt's end.
        """
        tail = tail.rstrip(SPACES)
        tags = self.with_calls.thinking.items()
        return next((close for start, close in tags if tail.endswith(unmarked(start))), None)

    def in_header(self, tail: str) -> bool:
        """Whether a prompt ends in the middle of a channel's header."""
        channels = self.with_calls.channels
        return channels is not None and tail.endswith(unmarked(channels.start) + "assistant")


def is_prose(marker: str) -> bool:
    """Whether a marker may stand in text about it; a special token that is no tag may not.

    :param marker: as :class:`Markers` has it; a line break before it parts it from what is before.
    """
    return marker[0] != "\n" and (marker[0] != MARK or is_tag(marker[1:]))


def read_header(text: str) -> tuple[str, str] | None:
    """Channel and recipient of a message's header; ``None``: it is none."""
    found = _HEADER.fullmatch(unmarked(text))
    return (found["channel"] or "final", found["first"] or found["then"] or "") if found else None
