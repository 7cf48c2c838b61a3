"""Who of the waiting jobs is started next, and what place in the queue the others have."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from modeld.engine.job import Job
from modeld.engine.line import Line
from modeld.engine.pool import Pool
from modeld.engine.session import EngineSession

PASSED_MOST = 16
"""How many others may start before one that has to wait for room, because they fit and it does not."""


class Admission:
    """Sessions whose first job is not started. In turns; one that was passed too often is before all others, and lets
    nobody pass any more. Belongs to the scheduler's thread.

    :param active: the jobs that run, in the order of their start; the scheduler's own list.
    """

    def __init__(self, pool: Pool, active: Sequence[Job]) -> None:
        self._pool = pool
        self._active = active
        self._line = Line()
        # Those that may be started now, and those for which there was no room.
        self._fresh: list[EngineSession] = []
        self._starved: list[EngineSession] = []
        self._closed = False

    @property
    def ready(self) -> bool:
        """Somebody may be started."""
        return bool(self._fresh)

    @property
    def waiting(self) -> bool:
        """Somebody waits for room, before the start or again."""
        return bool(self._starved) or any(job.parked for job in self._active)

    def add(self, session: EngineSession) -> None:
        """The session's first job may be started, if it has one."""
        self._fresh.append(session)

    def take(self) -> list[Job]:
        """Those that may be started, in turns. Each is then started, refused, or given to :meth:`wait`."""
        fresh, self._fresh = dict.fromkeys(self._fresh), []
        jobs = [session.jobs[0] for session in fresh if session.jobs]
        return self._in_turn(job for job in jobs if job not in self._active)

    def lets(self, job: Job) -> bool:
        """Whether the job may be started before those that wait for room."""
        return not (self._closed and job.computes)

    def wait(self, session: EngineSession) -> None:
        """There is no room for its first job."""
        self._starved.append(session)
        self._closed = self._closed or session.jobs[0].passed >= PASSED_MOST

    def started(self, job: Job) -> None:
        """The job runs; those that wait were passed."""
        self._line.had_turn(job)
        for session in self._starved:
            session.jobs[0].passed += 1
            self._closed = self._closed or session.jobs[0].passed >= PASSED_MOST

    def try_again(self) -> None:
        """Something changed: who waits for room may look again."""
        for job in self._active:
            job.parked = False
        self._fresh += self._starved
        self._starved, self._closed = [], False

    def queue(self) -> list[Job]:
        """Who waits for room, or behind another of its session, in their order. Those that ran already are first."""
        first = [job for job in self._active if job.parked]
        first += self._in_turn(session.jobs[0] for session in self._starved)
        behind = [job for session in self._pool.sessions.values() for job in list(session.jobs)[1:]]
        return first + sorted(behind, key=lambda job: job.arrived)

    def _in_turn(self, jobs: Iterable[Job]) -> list[Job]:
        return sorted(self._line.order(jobs), key=lambda job: job.passed < PASSED_MOST)
