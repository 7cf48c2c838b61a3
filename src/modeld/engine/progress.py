"""What a stream hears before it has text: how far its prompt is, or its place in the queue, at least once a second."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic, sleep

from modeld.engine.admission import Admission
from modeld.engine.cost import StepCost
from modeld.engine.job import Job
from modeld.engine.pace import Pace
from modeld.engine.pool import Pool
from modeld.engine.protocol import Parts, Reply
from modeld.types import ProgressPart

HEARTBEAT_SECONDS = 1.0
"""A stream that has no text to come hears something at least so often, by the wall clock."""

LOOKS = 4
"""How often in that time somebody looks who has to be told."""


class Progress:
    """Makes the parts that streams hear. Belongs to the scheduler's thread, but for :class:`Heartbeat`.

    :param send: writes a frame to the node; may block.
    """

    def __init__(self, pool: Pool, admission: Admission, cost: StepCost, send: Callable[[Reply], None]) -> None:
        self._pool = pool
        self._admission = admission
        self._cost = cost
        self._send = send

    def of(self, job: Job, position: int = 0) -> ProgressPart:
        """What to tell a job's stream now.

        :param position: its place in the queue; 0: it is being computed.
        """
        now = job.told = monotonic()
        done, total = job.done
        if job.pace is None:
            job.pace = Pace(now, done)
        rate = 0.0 if position else job.pace.rate(now, done)
        left = (total - done) / rate * self._cost.dearer(done, total) if rate else 0.0
        return ProgressPart(job.reused + job.restored, done, total, position=position, rate=rate, seconds_left=left)

    def tell_waiting(self) -> None:
        """Tell each stream whose text cannot come soon, and that would have to wait too long for the next look."""
        due = monotonic() - HEARTBEAT_SECONDS * (1 - 1 / LOOKS)
        jobs = [job for session in self._pool.sessions.values() for job in session.jobs]
        if late := [job for job in jobs if job.silent and job.told <= due]:
            waiting = self._admission.queue()
            for job in late:
                position = waiting.index(job) + 1 if job in waiting else 0
                self._send(Parts(job.id, job.frame(), (self.of(job, position),), 0))


class Heartbeat:
    """Calls ``beat`` in a thread of its own, while the scheduler's thread computes a step or waits for a request.

    A step may take many seconds on a slow machine. At any other time the scheduler holds the lock, so that ``beat`` may
    read and send whatever the scheduler may. Without :meth:`start` nothing is ever called.
    """

    def __init__(self, beat: Callable[[], None]) -> None:
        self._beat = beat
        self._lock = threading.Lock()

    def start(self, seconds: float = HEARTBEAT_SECONDS) -> None:
        """Begin. Called by the thread that will call :meth:`resting`."""
        self._lock.acquire()
        threading.Thread(target=self._run, args=(seconds / LOOKS,), daemon=True, name="heartbeat").start()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """The scheduler's thread touches nothing in this block."""
        if not self._lock.locked():
            yield
            return
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire()

    def _run(self, seconds: float) -> None:
        while True:
            sleep(seconds)
            with self._lock:
                self._beat()
