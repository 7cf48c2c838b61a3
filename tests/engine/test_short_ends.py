"""Hazard: the end of a conversation is short, and is computed again though it was kept."""

from __future__ import annotations

import pytest

from modeld.engine.backend import Slice, StepResult
from modeld.engine.blocks import BLOCK
from modeld.engine.fake.backend import FakeBackend
from modeld.engine.pool import MIN_BRANCH, Pool
from modeld.engine.protocol import Load, Open
from modeld.engine.session import EngineSession
from modeld.engine.tiers import open_tiers


def restored(pool: Pool, session: EngineSession, ids: list[int]) -> int:
    """Bring back what there is of ``ids``; how many tokens the session has then."""
    pool.seat(session, ids)
    while pool.restore_next(session, ids):
        pass
    return session.hot


@pytest.fixture
def pool() -> Pool:
    load = Load("", "fake", "d", 2000, 1000, sequences=3, batch=1000, ram=1_000_000)
    return Pool(FakeBackend(load), load, lambda evicted: None, open_tiers(load, "00" * 32, lambda: None))


@pytest.mark.parametrize("end", [1, MIN_BRANCH - 1, MIN_BRANCH])
def test_all_of_an_evicted_conversation_comes_back(pool: Pool, end: int) -> None:
    pool.open(Open(1))
    session = pool.get(1)
    assert pool.give_sequence(session)
    assert session.sequence is not None
    ids = [65 + i % 7 for i in range(BLOCK + end)]
    assert pool._backend.step([Slice(session.sequence, 0, ids, False)]) is StepResult.OK
    session.ids = ids
    pool.extended(session, ids)
    pool.evict(session)
    assert session.hot == 0
    assert restored(pool, session, [*ids, 99, 99]) == len(ids)


def test_a_beginning_that_is_hardly_shared_is_computed(pool: Pool) -> None:
    pool.open(Open(1))
    session = pool.get(1)
    assert pool.give_sequence(session)
    assert session.sequence is not None
    ids = [65] * BLOCK
    assert pool._backend.step([Slice(session.sequence, 0, ids, False)]) is StepResult.OK
    session.ids = ids
    pool.extended(session, ids)
    pool.evict(session)
    assert restored(pool, session, [65] * (MIN_BRANCH - 1) + [66] * 100) == 0
