"""The one thread of an engine that touches files of KV: a disk may be slow, and the scheduler must not wait for it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from itertools import count
from time import monotonic
from typing import Any, TypeVar

T = TypeVar("T")

_Work = tuple[bool, int, Callable[[], Any], Callable[[Any], None]]


class DiskThread:
    """Does what it is asked, in order; what is urgent before all else.

    All but :meth:`step` belongs to the scheduler's thread. The thread starts with the first thing asked and lives as
    long as the process.

    :param wake: called by the thread when something is done, to have :meth:`collect` called.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._todo: queue.PriorityQueue[_Work] = queue.PriorityQueue()
        self._done: queue.SimpleQueue[tuple[Callable[[Any], None], Any]] = queue.SimpleQueue()
        self._count = count()
        self._started = False
        self.pending = 0
        # When something was done last, or the first thing was asked after all had been done.
        self._progress = 0.0

    def ask(self, work: Callable[[], T], then: Callable[[T | Exception], None], *, urgent: bool = False) -> None:
        """Have ``work`` done; ``then`` gets what it gave or raised, in :meth:`collect`."""
        if not self._started:
            self._started = True
            self.start()
        if not self.pending:
            self._progress = monotonic()
        self.pending += 1
        self._todo.put((not urgent, next(self._count), work, then))

    def start(self) -> None:
        """Let the thread run."""
        threading.Thread(target=self._run, daemon=True, name="disk").start()

    def silent(self) -> float:
        """For how many seconds nothing was done, though there is something to do."""
        return monotonic() - self._progress if self.pending else 0.0

    def collect(self) -> None:
        """Pass on what was done meanwhile."""
        while not self._done.empty():
            self._pass_on(*self._done.get())

    def wait(self, seconds: float) -> None:
        """Collect, and wait for something to be done where nothing was."""
        try:
            self._pass_on(*self._done.get(timeout=max(0.0, seconds)))
        except queue.Empty:
            return
        self.collect()

    def _pass_on(self, then: Callable[[Any], None], outcome: Any) -> None:
        self.pending -= 1
        self._progress = monotonic()
        then(outcome)

    def _run(self) -> None:
        while True:
            self.step()

    def step(self) -> None:
        """Do the next thing. The thread calls this."""
        _, _, work, then = self._todo.get()
        try:
            outcome = work()
        except Exception as error:
            outcome = error
        self._done.put((then, outcome))
        self._wake()
