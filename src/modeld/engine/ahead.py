"""Prefill before it is asked for: an answer as the next turn's prompt will hold it.

Many templates drop an answer's thinking from history. The tape then ends where the thinking began, and the next turn
would compute the visible answer again. While nobody waits for the engine, that answer is computed behind the tape's
beginning, on a branch of its own: the session's tape stays as it is, and the next turn finds the longer of the two.
"""

from __future__ import annotations

from msgspec import Struct

from modeld.engine.backend import Backend, Slice, StepResult
from modeld.engine.pool import MIN_BRANCH, Pool
from modeld.engine.prompts import Prompts
from modeld.engine.session import EngineSession, shared_length
from modeld.errors import ModeldError
from modeld.types import Message

CHUNK = 32
"""Tokens of a step: a request that arrives waits for one step (51 ms on the 90m shape)."""


class _Branch(Struct):
    """One that grows: what it shall hold, and whose it is."""

    session: EngineSession
    sequence: int
    target: list[int]


class Ahead:
    """Answers that may be worth it. Belongs to the scheduler's thread."""

    def __init__(self, pool: Pool, prompts: Prompts, backend: Backend) -> None:
        self._pool = pool
        self._prompts = prompts
        self._backend = backend
        self._answers: dict[EngineSession, Message] = {}
        self._growing: _Branch | None = None

    def answered(self, session: EngineSession, answer: Message) -> None:
        """A turn of ``session`` has ended with an answer that was thought about."""
        self._answers[session] = answer

    def step(self) -> bool:
        """Compute a chunk. ``False``: there is nothing to do."""
        while self._growing is None and self._answers:
            self._growing = self._begin(*self._answers.popitem())
        branch = self._growing
        if branch is None:
            return False
        held = self._pool.branch_tape(branch.sequence)
        chunk = branch.target[len(held) : len(held) + CHUNK]
        # A session that goes on has no use for more; what there is may be. The branch may have left meanwhile.
        same = held == branch.target[: len(held)] and bool(held)
        if branch.session.jobs or not same or not chunk or not self._compute(branch, len(held), chunk):
            self._growing = None
        return True

    def _begin(self, session: EngineSession, answer: Message) -> _Branch | None:
        if session.jobs or session.fatal or not self._backend.shares:
            return None
        try:
            target = self._prompts.history(session, answer)
        except ModeldError:
            return None  # the next turn will tell its caller
        keep = shared_length(session.tape, target)
        if len(target) - self._pool.known(target) < MIN_BRANCH:
            return None
        sequence = self._pool.branch(session, keep, len(target) - keep)
        return None if sequence is None else _Branch(session, sequence, target)

    def _compute(self, branch: _Branch, start: int, chunk: list[int]) -> bool:
        result = self._backend.step([Slice(branch.sequence, start, chunk, False)])
        if result is not StepResult.OK:
            self._pool.drop_branch(branch.sequence)
            return False
        self._pool.grew(branch.sequence, chunk)
        branch.session.ahead_tokens += len(chunk)
        return True
