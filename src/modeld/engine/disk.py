"""The files of blocks as a whole: their bytes within a budget, and what reading them costs."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from statistics import median
from time import monotonic, time

from modeld.engine.block_files import (
    SUFFIX,
    Found,
    Header,
    delete_block,
    read_block,
    scan,
    size_of,
    write_block,
)
from modeld.engine.disk_thread import DiskThread

KEEP_SECONDS = 7 * 86400.0
"""A file unused for this long is deleted at load. Counted back from the latest use of any: who was away for a month
finds all of it, and a clock that jumped ahead deletes nothing."""

PAUSE_SECONDS = 60.0
"""How long nothing is written after a write that failed: a full disk does not become empty by trying."""

RATE_SECONDS = 60.0
"""How long a measured read counts. A disk that was too slow is tried again after that."""


class Disk:
    """Owned by the scheduler's thread; files are touched by a thread of its own.

    :param folder: of all manifests' files; made when the first is written. :param manifest: digest of the own one.
    :param budget: bytes of all files. :param wake: as for :class:`DiskThread`.
    """

    def __init__(self, folder: Path, manifest: str, budget: int, wake: Callable[[], None]) -> None:
        self._folder = folder
        self._manifest = manifest
        self.budget = budget
        self.thread = DiskThread(wake)
        # Files that no block of ours stands for, the oldest first.
        self._others: dict[str, int] = {}
        self._reads: deque[tuple[float, float]] = deque(maxlen=9)
        self._paused_until = 0.0
        self.bytes = 0
        """Of all files, those of other manifests included."""
        self.reserved = 0
        """Bytes that are being written."""

    def index(self) -> tuple[list[Found], float]:
        """Look at the folder, and delete others' files that are too old.

        :returns: own blocks, the longest unused first, and the time of use before which one is too old.
        """
        ours, others = scan(self._folder, self._manifest)
        latest = max([found.modified for found in ours] + [other.modified for other in others], default=0.0)
        before = min(latest, time()) - KEEP_SECONDS
        for old in [other for other in others if other.modified < before]:
            with suppress(OSError):
                os.unlink(old.path)
                others.remove(old)
        self._others = {other.path: other.size for other in sorted(others)}
        self.bytes = sum(self._others.values()) + sum(found.size for found in ours)
        return sorted(ours, key=lambda found: found.modified), before

    # Room

    @property
    def free(self) -> int:
        """Bytes that may be written still."""
        return self.budget - self.bytes - self.reserved

    @property
    def others(self) -> int:
        """Bytes of files that no block of ours stands for."""
        return sum(self._others.values())

    def drop_other(self) -> bool:
        """Delete the oldest file that no block of ours stands for. ``False``: there is none."""
        if not self._others:
            return False
        path = next(iter(self._others))
        self.bytes -= (size := self._others.pop(path))
        self._unlink(path, size)
        return True

    def remove(self, key: bytes, size: int) -> None:
        """Delete a block's file."""
        self.bytes -= size
        self._unlink(self._path(key), size)

    def disown(self, key: bytes, size: int) -> None:
        """A block's file cannot be read now: it stays, as nobody's."""
        self._others[self._path(key)] = size

    def _unlink(self, path: str, size: int) -> None:
        def done(left: int | Exception) -> None:
            still = size if isinstance(left, Exception) else left
            if still:
                self._others[path] = still
                self.bytes += still

        self.thread.ask(partial(delete_block, path), done)

    def audit(self) -> list[str]:
        """Look what the files take; a sentence where that is not what was counted."""
        found = sum(size_of(path) for path in self._folder.glob(f"*/*{SUFFIX}"))
        return [] if found == self.bytes else [f"the folder of KV takes {found} bytes, the ledger {self.bytes}"]

    # Writing and reading

    @property
    def pause(self) -> float:
        """Seconds until something may be written again."""
        return max(0.0, self._paused_until - monotonic())

    def write(self, key: bytes, header: Header, payload: bytes, then: Callable[[int], None]) -> None:
        """Write a block's file; ``then`` gets its bytes, 0 where it could not be written."""
        path, size = self._path(key), header.file_size()
        before = self._others.pop(path, 0)
        self.reserved += size

        def done(outcome: Exception | None) -> None:
            self.reserved -= size
            if isinstance(outcome, Exception):
                self._paused_until = monotonic() + PAUSE_SECONDS
                if before:
                    self._others[path] = before
                then(0)
            else:
                self.bytes += size - before
                then(size)

        self.thread.ask(partial(write_block, path, key, header, payload), done)

    def read(self, key: bytes, size: int, then: Callable[[bytes | Exception], None]) -> None:
        """Read a block's payload of ``size`` bytes."""
        path = self._path(key)

        def timed() -> tuple[bytes, float]:
            began = monotonic()
            payload = read_block(path, key, size)
            return payload, monotonic() - began

        def done(outcome: tuple[bytes, float] | Exception) -> None:
            if isinstance(outcome, Exception):
                then(outcome)
            else:
                self._reads.append((monotonic(), outcome[1] / size))
                then(outcome[0])

        self.thread.ask(timed, done, urgent=True)

    def seconds_per_byte(self) -> float:
        """What a read costs, by those of late; 0: there were none."""
        since = monotonic() - RATE_SECONDS
        return median([cost for when, cost in self._reads if when > since] or [0.0])

    def _path(self, key: bytes) -> str:
        return os.path.join(self._folder, self._manifest, key.hex() + SUFFIX)
