"""Who of the jobs gets sequence ids and cells, where their beginnings come from, and who gives way."""

from __future__ import annotations

from collections.abc import Sequence

from modeld.engine.backend import Slice
from modeld.engine.explain import stopped
from modeld.engine.job import Job
from modeld.engine.pool import Pool
from modeld.engine.session import EngineSession, shared_length

ANSWER_CELLS = 64
"""What an answer that has begun is expected to need still, when another job asks to start beside it."""


class Room:
    """What running jobs may take of the pool.

    :param active: the jobs that run, in the order of their start; the scheduler's own list.
    :param shares: beginnings can be shared between sequences.
    """

    def __init__(self, pool: Pool, active: Sequence[Job], *, shares: bool) -> None:
        self._pool = pool
        self._active = active
        self._shares = shares

    def admits(self, job: Job) -> bool:
        """Whether the job's cells fit beside those of the jobs that run: else they would take them from each other.

        A stream whose reader takes nothing gives way.
        """
        while running := [other for other in self._active if other.session.sequence is not None]:
            future = sum(len(other.remaining) + ANSWER_CELLS for other in running)
            if self._pool.fits([other.session for other in running], job.target, future + ANSWER_CELLS):
                break
            if not self.preempt(self.stalled()):
                return False
        return True

    def may_compute(self, session: EngineSession, *, newcomer: bool = False) -> bool:
        """Whether there is a sequence id for the session, if need be that of a stream whose reader takes nothing.

        A newcomer does not take the id that one who was preempted waits for.
        """
        if session.sequence is not None:
            return True
        if newcomer and any(job.runnable and job.session.sequence is None for job in self._active):
            return False
        if self._pool.can_give(session) or (self.preempt(self.stalled()) and self._pool.can_give(session)):
            return True
        # Where nobody runs who will give one back, those that only wait hold them all.
        running = any(job.session.sequence is not None for job in self._active)
        return not running and self._pool.evict_waiting(session)

    def follow(self, job: Job) -> None:
        """Find who computes a beginning that the job needs too. Leaders are older, so nobody waits in a circle."""
        job.leader, job.common = None, 0
        if job.decoding:
            return
        for other in self._active:
            if other is job:
                break
            # Behind one that stands still a job would be seated again before each step, and gain nothing.
            if other.computing:
                common = shared_length(job.target[: job.reusable], other.target)
                if not self._shares:
                    # It can be had only where the other's state is kept, and not where there is more already.
                    places = [place for place in other.places if self._pool.stored(job.wanted) < place <= common]
                    common = max(places, default=0)
                if common > max(job.common, job.session.hot, other.session.hot):
                    job.leader, job.common = other, common

    def seat_again(self, job: Job) -> None:
        """Its leader has come far enough, or it stood still or lost its KV: take what is there now."""
        job.looks_again = False
        before = min(job.session.hot, job.reusable)
        gained = min(self._pool.seat(job.session, job.wanted), job.reusable) - before
        if gained < 0:
            # All of it made way for a longer state in RAM.
            job.reused = job.restored = gained = 0
        job.reused += gained
        job.warm = True
        self.follow(job)

    def restore(self, job: Job) -> bool:
        """Bring a block back from RAM, one in a step, or wait for a file to be read; ``False``: there is none."""
        if not job.warm:
            return False
        job.awaits = self._pool.fetch(job.session, job.wanted)
        if job.awaits is not None:
            return True
        before = min(job.session.hot, job.reusable)
        if self._pool.restore_next(job.session, job.wanted):
            job.restored += min(job.session.hot, job.reusable) - before
            job.brought.add(before, min(job.session.hot, job.reusable))
            return True
        job.warm = False
        # What others had of it is no loss of this session's.
        lost = min(job.promised, shared_length(job.had, job.target)) - before
        if lost > 0 and not job.decoding and (job.stop is None or job.stop.token > before):
            job.dropped = len(job.had) - before
            job.blame(stopped(job.gone, before, f"{lost} tokens that had left the engine did not come back"), job.had)
        return False

    def stalled(self, without: Sequence[Job] = ()) -> Job | None:
        """The youngest stream that holds KV and waits for its reader."""
        held = [j for j in self._active if j.stalled and j.session.sequence is not None and j not in without]
        return max(held, key=lambda job: job.started, default=None)

    def preempt(self, job: Job | None) -> bool:
        """Take a running job's KV; it is computed again when there is room."""
        if job is None:
            return False
        job.lost_kv("evicted")
        self._pool.evict(job.session)
        return True

    def make(self, entries: list[tuple[Job, Slice]]) -> tuple[list[tuple[Job, Slice]], Job | None]:
        """A step did not fit: free cells, or leave a job for later.

        :returns: what to try again with, and a job that will never fit.
        """
        if self._pool.evict_idle() or self.preempt(self.stalled(without=[job for job, _ in entries])):
            return entries, None
        if len(entries) > 1:
            youngest = max(entries, key=lambda entry: entry[0].started)
            youngest[0].park()
            return [entry for entry in entries if entry is not youngest], None
        if self._pool.evict_waiting():
            return entries, None
        job = entries[0][0]
        others = [other for other in self._active if other is not job and other.session.hot]
        if not others:
            return [], job
        younger = max(others, key=lambda other: other.started)
        if younger.started < job.started:
            job.park()
            return [], None
        # Two that grew side by side: the younger gives its cells back and is computed again afterwards.
        self.preempt(younger)
        return entries, None
