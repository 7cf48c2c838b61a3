"""Going on with an answer that another run of the same request repeats from its start.

What counts is the content in its order, not how a stream cut it into parts. The ids of tool calls are not compared:
the caller keeps the ones it got first.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import msgspec

from modeld.types import (
    EndPart,
    ErrorPart,
    LogprobsPart,
    ProgressPart,
    StreamPart,
    TextPart,
    ThinkingPart,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    WarningPart,
)

_Key = tuple[str | int, ...]
_TEXT: Final = "text"
_ARGUMENTS: Final = "arguments"


class DivergedError(Exception):
    """The second run says something else than the first one did. It never leaves the transport."""


class Transcript:
    """What of an answer reached the caller."""

    def __init__(self) -> None:
        self._runs: list[tuple[_Key, list[str]]] = []
        self.characters = 0
        self.tokens: list[bytes] = []

    def add(self, part: StreamPart) -> None:
        """Take the next part, in order."""
        if isinstance(part, LogprobsPart):
            self.tokens += (token.data for token in part.tokens)
        content = _content(part)
        if content is None:
            return
        key, text = content
        self.characters += len(text)
        if text and self._runs and self._runs[-1][0] == key:
            self._runs[-1][1].append(text)
        else:
            self._runs.append((key, [text]))

    def runs(self) -> list[tuple[_Key, str]]:
        """The content, neighbours of one kind joined."""
        return [(key, "".join(texts)) for key, texts in self._runs]


class Replay:
    """Swallows what a transcript holds from the beginning of a new run of the same request."""

    def __init__(self, transcript: Transcript) -> None:
        self._left = deque(transcript.runs())

    def fresh(self, part: StreamPart) -> StreamPart | None:
        """What of ``part`` the caller has not got yet; ``None``: nothing.

        Progress and warnings of the repeated stretch are nothing new either.

        :raises DivergedError: the run differs from the transcript, or ends before it.
        """
        if not self._left:
            return part
        content = _content(part)
        if content is None:
            if not isinstance(part, EndPart):
                return None
            # Who cancels does not wait for the repetition.
            if part.finish_reason != "cancelled":
                raise DivergedError
            return part
        key, text = content
        expected_key, expected = self._left[0]
        size = min(len(text), len(expected))
        if key != expected_key or text[:size] != expected[:size]:
            raise DivergedError
        if size < len(expected):
            self._left[0] = key, expected[size:]
            return None
        self._left.popleft()
        if size == len(text):
            return None
        if self._left:
            raise DivergedError
        return msgspec.structs.replace(part, **{_ARGUMENTS if key[0] == _ARGUMENTS else _TEXT: text[size:]})


class TokenReplay:
    """Swallows the tokens of :class:`LogprobsPart` that a transcript holds. Where they stand in a stream is by chance.

    A run may give other numbers for a token, as what is computed beside it changes the last digits: only which tokens
    they are is compared.
    """

    def __init__(self, transcript: Transcript) -> None:
        self._left = deque(transcript.tokens)

    def fresh(self, part: LogprobsPart) -> LogprobsPart | None:
        """What of ``part`` the caller has not got yet; ``None``: nothing. :raises DivergedError: the run differs."""
        for place, token in enumerate(part.tokens):
            if not self._left:
                return LogprobsPart(part.tokens[place:])
            if self._left.popleft() != token.data:
                raise DivergedError
        return None


def _content(part: StreamPart) -> tuple[_Key, str] | None:
    match part:
        case TextPart(text=text):
            return (("text",), text) if text else None
        case ThinkingPart(text=text):
            return (("thinking",), text) if text else None
        case ToolCallStart(index=index, name=name):
            return ("call", index, name), ""
        case ToolCallDelta(index=index, arguments=text):
            return ((_ARGUMENTS, index), text) if text else None
        case ToolCallEnd(index=index):
            return ("call end", index), ""
        case ErrorPart(code=code, raw=raw):
            return ("error", code, raw), ""
        case LogprobsPart() | ProgressPart() | WarningPart() | EndPart():
            return None
