"""Processes that a benchmark starts, and ends by their ids whatever happens to it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

END_SECONDS = 60.0
LOOK_SECONDS = 0.1


class BenchError(Exception):
    """A measurement that cannot go on; the message says why."""


class Processes:
    """Those that run. Leaving the ``with`` block ends them, politely first, and removes what they wrote.

    :ivar folder: for all they write.
    """

    def __init__(self) -> None:
        self._running: list[subprocess.Popen[bytes]] = []
        self._temporary = tempfile.TemporaryDirectory(prefix="modeld-bench-")
        self.folder = Path(self._temporary.name)

    def __enter__(self) -> Self:
        # As ctrl-C: what is open is left in order.
        signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        for process in self._running:
            with suppress(ProcessLookupError):
                process.terminate()
        for process in self._running:
            try:
                process.wait(END_SECONDS / 6)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._temporary.cleanup()

    def start(
        self, command: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start one, in a session of its own: ctrl-C is for this program alone, which then ends it."""
        with log.open("ab") as out:
            process = subprocess.Popen(
                [str(word) for word in command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        self._running.append(process)
        return process

    async def ended(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for its end. :raises BenchError: it goes on."""
        end = time.monotonic() + END_SECONDS
        while process.poll() is None:
            if time.monotonic() > end:
                raise BenchError(f"process {process.pid} does not end within {END_SECONDS:.0f} s")
            await asyncio.sleep(0.02)
        self._running.remove(process)


def alive(process: subprocess.Popen[bytes], log: Path) -> None:
    """:raises BenchError: it has ended; the message holds the end of its log."""
    if process.poll() is not None:
        said = "\n".join(log.read_text(errors="replace").splitlines()[-8:])
        raise BenchError(f"the server ended with code {process.returncode}:\n{said}")


class Watch:
    """Looks at a process and its children while the ``async with`` block runs. They stay the same meanwhile.

    :ivar peak: the most bytes they had resident together, as far as ten looks in a second see it.
    :ivar busy: seconds of processors that they used.
    """

    def __init__(self, pid: int) -> None:
        process = psutil.Process(pid)
        self._processes = [process, *process.children(recursive=True)]
        self.peak = 0
        self.busy = 0.0

    async def __aenter__(self) -> Self:
        self.busy = -self._used()
        self._task = asyncio.create_task(self._look())
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._task.cancel()
        if exc is None:
            self.busy += self._used()

    def _used(self) -> float:
        times = [process.cpu_times() for process in self._processes]
        return sum(time.user + time.system for time in times)

    async def _look(self) -> None:
        while True:
            self.peak = max(self.peak, sum(process.memory_info().rss for process in self._processes))
            await asyncio.sleep(LOOK_SECONDS)
