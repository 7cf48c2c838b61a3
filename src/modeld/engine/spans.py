"""Sets of positions on a tape, as ranges."""

from __future__ import annotations


class Positions:
    """Ranges of positions that were added, overlapping or not. Few: one for each time that something was taken away."""

    def __init__(self) -> None:
        self._ranges: list[tuple[int, int]] = []
        self.added = 0
        """Positions added in all, each as often as it was."""

    def add(self, start: int, end: int) -> None:
        """Add ``[start, end)``."""
        if end <= start:
            return
        self.added += end - start
        if self._ranges and self._ranges[-1][1] == start:
            start = self._ranges.pop()[0]
        self._ranges.append((start, end))

    def below(self, limit: int, without: Positions | None = None) -> int:
        """How many different positions before ``limit`` there are, but for those of ``without``."""
        others = without._ranges if without is not None else []
        return _size(self._ranges + others, limit) - _size(others, limit)


def _size(ranges: list[tuple[int, int]], limit: int) -> int:
    size = reached = 0
    for start, end in sorted(ranges):
        first, last = max(start, reached), min(end, limit)
        size += max(0, last - first)
        reached = max(reached, last)
    return size
