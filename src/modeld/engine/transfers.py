"""Jobs that move a session between engine and disk, a piece between two steps of the streams.

The disk has a thread of its own: the scheduler's thread never waits for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, TypeVar

from modeld.engine.job import Job
from modeld.engine.protocol import Credit
from modeld.errors import ModeldError

WAKE: Final = Credit(0, 0)
"""Put into the scheduler's inbox it ends a wait there and does nothing else: no request has id 0."""

T = TypeVar("T")

Awaited = Future[Any] | Callable[[], bool] | None
"""What a piece of a job waits for: a future, or something else, as long as the function says so."""

Steps = Generator[Awaited, Any, object]
"""A job in pieces. Each ``yield`` lets streams do a step; a future that is given is sent back done."""


class Disk:
    """A thread that does what is asked of it, one after the other.

    :param wake: called, in that thread, when something is done.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self._thread = ThreadPoolExecutor(1, "disk")

    def ask(self, work: Callable[[], T]) -> Future[T]:
        """Have ``work`` done."""
        future = self._thread.submit(work)
        future.add_done_callback(lambda _: self._wake())
        return future


class Transfers:
    """Jobs in pieces, one at a time, in their order. Belongs to the scheduler's thread.

    One at a time bounds what lies in main memory between engine and disk: one block.

    :param steps: makes the pieces of a job.
    """

    def __init__(self, steps: Callable[[Job], Steps]) -> None:
        self._steps = steps
        self._queue: deque[Job] = deque()
        self._running: Steps | None = None
        self._awaited: Awaited = None

    def __contains__(self, job: Job) -> bool:
        return job in self._queue

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def ready(self) -> bool:
        """A piece can be done now."""
        awaited = self._awaited
        waits = not awaited.done() if isinstance(awaited, Future) else awaited is not None and awaited()
        return bool(self._queue) and not waits

    def add(self, job: Job) -> None:
        """Take a job on."""
        self._queue.append(job)

    def step(self) -> tuple[Job, object] | None:
        """Do a piece.

        :returns: a job that has ended with it, and its result or its :class:`ModeldError`.
        """
        if not self.ready:
            return None
        job = self._queue[0]
        if self._running is None:
            self._running = self._steps(job)
        awaited, self._awaited = self._awaited, None
        try:
            error = awaited.exception() if isinstance(awaited, Future) else None
            if error is not None:
                self._awaited = self._running.throw(error)
            else:
                self._awaited = self._running.send(awaited.result() if isinstance(awaited, Future) else None)
        except StopIteration as end:
            return self._ended(job, end.value)
        except ModeldError as refused:
            return self._ended(job, refused)
        return None

    def drop(self, job: Job) -> None:
        """Nobody waits for the job any more: what it has begun is undone."""
        if job in self._queue:
            if job is self._queue[0] and self._running is not None:
                self._running.close()
                self._running = self._awaited = None
            self._queue.remove(job)

    def _ended(self, job: Job, outcome: object) -> tuple[Job, object]:
        self._queue.popleft()
        self._running = self._awaited = None
        return job, outcome
