"""Text that comes in pieces, read by generators: a ``yield`` means that the next piece is needed."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterable
from functools import lru_cache
from typing import Final, TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]
Put = Callable[[str], object]

MARK: Final = "\ud800"
"""Stands before a special token that is a marker. UTF-8 has no such character, so no text can be taken for one."""

SPACE: Final = re.compile(r"[ \t\r\n]*")
SPACES: Final = " \t\r\n"


class MalformedError(Exception):
    """What was read is no call of the format. It never leaves the parser.

    :ivar quoted: reading stopped inside a string.
    """

    def __init__(self, reason: str, *, quoted: bool = False) -> None:
        super().__init__(reason)
        self.quoted = quoted


class ProseError(Exception):
    """What was read is text that only looks like the beginning of a call. It never leaves the parser."""


def unmarked(text: str) -> str:
    """The text as the model wrote it."""
    return text.replace(MARK, "") if MARK in text else text


class Finder:
    """Finds the first of some words, and tells what may still become one.

    No word may lie inside another one, other than at its end.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self.words = tuple(dict.fromkeys(words))
        self._starts: dict[str, list[str]] = {}
        for word in self.words:
            self._starts.setdefault(word[0], []).append(word)
        self._reach = max(map(len, self.words), default=1) - 1
        longest_first = sorted(self.words, key=len, reverse=True)
        self.search = re.compile("|".join(map(re.escape, longest_first)) or "(?!)").search
        some = "".join(map(re.escape, self._starts))
        self.may_begin = re.compile(f"[{some}]" if some else "(?!)").search

    def undecided(self, text: str, start: int) -> int:
        """Where the longest end of ``text`` begins that is a proper beginning of a word; ``len(text)``: nowhere."""
        at = max(start, len(text) - self._reach)
        while near := self.may_begin(text, at):
            end = text[near.start() :]
            if any(word.startswith(end) for word in self._starts[near[0]]):
                return near.start()
            at = near.end()
        return len(text)


@lru_cache(maxsize=256)
def finder(*words: str) -> Finder:
    """A finder, made once for the same words."""
    return Finder(words)


class Reader:
    """The text so far that is not done with. What was read since :meth:`span` is kept, so that nothing gets lost.

    :ivar text: what can be read; ``at`` is where. :ivar ended: no more text comes.
    """

    def __init__(self) -> None:
        self.text = ""
        self.at = 0
        self.ended = False
        self._from = 0
        self._before: list[str] = []

    @property
    def done(self) -> bool:
        """All text is read and no more comes."""
        return self.ended and self.at == len(self.text)

    def push(self, text: str) -> None:
        """Add text."""
        if self.at > self._from:
            self._before.append(self.text[self._from : self.at])
        self.text = self.text[self.at :] + text
        self.at = self._from = 0

    def span(self) -> str:
        """What was read since this was asked last."""
        self._before.append(self.text[self._from : self.at])
        span = "".join(self._before)
        self._before, self._from = [], self.at
        return span

    def peek(self) -> Reading[str]:
        """The next character, which stays.

        :raises MalformedError: there is none.
        """
        while self.at == len(self.text):
            if self.ended:
                raise MalformedError("it ends too early")
            yield
        return self.text[self.at]

    def take(self, put: Put) -> None:
        """Read the character that :meth:`peek` showed."""
        put(self.text[self.at])
        self.at += 1

    def run(self, pattern: re.Pattern[str], put: Put | None = None) -> Reading[None]:
        """Read characters of a class (``[...]*``)."""
        while True:
            found = pattern.match(self.text, self.at)
            if found is not None and found.end() > self.at:
                self.at = found.end()
                if put is not None:
                    put(found[0])
            if self.at < len(self.text) or self.ended:
                return
            yield

    def literal(self, word: str) -> Reading[bool]:
        """Read a word, if it is what comes."""
        while not self.text.startswith(word, self.at):
            left = len(self.text) - self.at
            if self.ended or left >= len(word) or not word.startswith(self.text[self.at :]):
                return False
            yield
        self.at += len(word)
        return True

    def comes(self, word: str) -> Reading[bool]:
        """Whether a word comes, which stays."""
        found = yield from self.literal(word)
        if found:
            self.at -= len(word)
        return found

    def expect(self, word: str) -> Reading[None]:
        """Read a word.

        :raises MalformedError: something else comes.
        """
        if not (yield from self.literal(word)):
            found = unmarked(self.text[self.at : self.at + 20])
            raise MalformedError(f"{unmarked(word)!r} should stand before {found!r}" if found else "it ends too early")

    def until(self, finder: Finder, put: Put) -> Reading[str]:
        """Read on to the first of some words, which is the result; empty at the end of the text."""
        while True:
            found = finder.search(self.text, self.at)
            end = found.start() if found else len(self.text)
            if found is None and not self.ended:
                end = finder.undecided(self.text, self.at)
            if end > self.at:
                piece, self.at = self.text[self.at : end], end
                put(piece)
            if found is not None:
                self.at = found.end()
                return found[0]
            if self.ended:
                return ""
            yield
