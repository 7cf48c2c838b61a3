"""Stop strings, found in the bytes a model writes before anything is made of them."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence


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


class SpecialBytes:
    """Which of the bytes that a :class:`StopMatcher` lets pass are special tokens.

    The matcher may cut a token in two; its pieces wait here until they are whole. What a stop string cut is text.
    """

    def __init__(self) -> None:
        self._tokens: deque[tuple[int, int]] = deque()
        self._waiting = b""
        self._at = 0

    def add(self, start: int, end: int) -> None:
        """The bytes from ``start`` to ``end``, counted from the beginning of the answer, are a special token."""
        self._tokens.append((start, end))

    def pieces(self, passed: bytes, *, last: bool = False) -> list[tuple[bytes, bool]]:
        """The next bytes that passed, cut where special tokens begin and end, each with whether it is one.

        :param last: no more bytes pass.
        """
        if not self._tokens:
            self._at += len(passed)
            return [(passed, False)] if passed else []
        data, self._waiting = self._waiting + passed, b""
        out: list[tuple[bytes, bool]] = []
        while data and self._tokens:
            start, end = (place - self._at for place in self._tokens[0])
            if start > 0:
                piece, special = data[:start], False
            elif len(data) >= end:
                piece, special = data[:end], True
                self._tokens.popleft()
            elif last:
                break
            else:
                self._waiting = data
                return out
            out.append((piece, special))
            data = data[len(piece) :]
            self._at += len(piece)
        if data:
            out.append((data, False))
            self._at += len(data)
        return out
