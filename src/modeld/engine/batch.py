"""What goes into the next step: a token for each stream, then pieces of prompts, in turns.

There is one policy. Prompts stand in a :class:`Line`, by client and then by session. The first in it takes what the
step has room for, and what it leaves goes to the next. A turn is :data:`TURN_TOKENS` of a prompt, or :data:`TURN_STEPS`
steps where few tokens fit into one; then its client is last. So a short prompt is computed in one piece, a long one
lets others pass, and nobody waits for more than one turn of each other client.

Without running streams a step is a whole batch. Beside them it holds as much as :class:`StepCost` says fits into
:data:`~modeld.engine.cost.STEP_SECONDS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic

from modeld.engine.backend import Slice
from modeld.engine.cost import MIN_CHUNK, StepCost
from modeld.engine.job import Job
from modeld.engine.line import Line
from modeld.engine.room import Room

TURN_TOKENS = 512
TURN_STEPS = 4
"""The turn of a ``main`` session. Others have half of it."""

RESTORE_SECONDS = 0.03
"""How long blocks are brought back from RAM before a step that streams wait for. One block is always brought."""

Entry = tuple[Job, Slice]


class Batches:
    """Composes steps and learns from them. Belongs to the scheduler's thread.

    :param size: tokens of a step at most.
    """

    def __init__(self, room: Room, size: int) -> None:
        self._room = room
        self._size = size
        self._line = Line()
        self.cost = StepCost()

    def compose(self, active: Sequence[Job]) -> list[Entry]:
        """The next batch of the jobs that run; some may be parked meanwhile, for want of a sequence id."""
        ready = self._ready(active)
        if suspects := [job for job in ready if job.session.hot < job.suspect]:
            ready = suspects[:1]
        streams = [job for job in ready if job.next_token is not None]
        entries = [_entry(job, 1) for job in streams[: self._size]]
        budget = self._size - len(entries)
        seconds = self.cost.allowed(len(streams)) - self.cost.decode(len(streams))
        for job in self._line.order(job for job in ready if job.next_token is None):
            tokens = min(budget, len(job.remaining))
            if streams:
                fits = self.cost.tokens(seconds, job.session.hot)
                tokens = min(tokens, max(fits, MIN_CHUNK if len(entries) == len(streams) else 0))
            tokens = job.to_next_place(tokens)
            if tokens:
                entries.append(_entry(job, tokens))
                budget -= tokens
                seconds -= self.cost.seconds(tokens, job.session.hot) or seconds
        return entries

    def _ready(self, active: Sequence[Job]) -> list[Job]:
        """Those that can compute: seated, not waiting for another's beginning, nothing left to bring back from RAM."""
        began = monotonic()
        runnable = [job for job in active if job.runnable]
        flowing = any(job.next_token is not None for job in runnable)
        ready = []
        for job in runnable:
            if not self._room.may_compute(job.session):
                job.park()
            elif not job.waits:
                if job.session.sequence is None or job.leader is not None or job.looks_again:
                    self._room.seat_again(job)
                late = job.warm and flowing and monotonic() - began > RESTORE_SECONDS
                if not late and not self._room.restore(job):
                    ready.append(job)
        return ready

    def computed(self, entries: Sequence[Entry], seconds: float) -> None:
        """A step has computed the entries in so many seconds: before the jobs take note of it."""
        pieces = [(job, part) for job, part in entries if job.next_token is None]
        for number, (job, part) in enumerate(pieces):
            job.turn_tokens += len(part.tokens)
            # What another left of a step is no step of its own.
            job.turn_steps += number == 0
            share = 1 if job.session.session_class == "main" else 2
            whole = len(part.tokens) == len(job.remaining)
            if whole or job.turn_tokens * share >= TURN_TOKENS or job.turn_steps * share >= TURN_STEPS:
                job.turn_tokens = job.turn_steps = 0
                self._line.had_turn(job)
        sizes = [(len(part.tokens), part.start) for _, part in pieces]
        self.cost.learn(len(entries) - len(pieces), sizes, seconds)


def _entry(job: Job, tokens: int) -> Entry:
    session, rest = job.session, job.remaining
    assert session.sequence is not None
    wanted = tokens == len(rest) and job.stream is not None
    return job, Slice(session.sequence, session.hot, rest[:tokens], wanted)
