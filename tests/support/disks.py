"""Files of KV for tests: a thread that does one thing at a time when it is told to, and ways to spoil a file."""

from __future__ import annotations

import os
from pathlib import Path

from modeld.engine.disk_thread import DiskThread


class StepwiseDisk(DiskThread):
    """Its :meth:`step` is called by the test, so that any order of events can be had, and had again."""

    def start(self) -> None:
        """There is no thread."""

    def wait(self, seconds: float) -> None:
        """Whoever waits, waits for one thing."""
        self.step()
        self.collect()

    @property
    def has_work(self) -> bool:
        """:meth:`step` would not wait."""
        return not self._todo.empty()


def kv_files(folder: Path) -> list[Path]:
    """All files of blocks, of all manifests."""
    return sorted(path for path in folder.glob("*/*.kv") if path.is_file() and not path.is_symlink())


def spoil(path: Path, how: int, where: int) -> None:
    """Damage a file in one of six ways."""
    # One that was cut to nothing before has a byte again.
    data = bytearray(path.read_bytes() or 1)
    match how % 6:
        case 0:
            data[where % len(data)] ^= 1 << where % 8
            path.write_bytes(data)
        case 1:
            os.truncate(path, where % len(data))
        case 2:
            path.unlink()
        case 3:
            path.unlink()
            os.mkfifo(path)
        case 4:
            path.write_bytes(b"modeld kv 2\n" + data[12:])
        case _:
            path.unlink()
            path.mkdir()
