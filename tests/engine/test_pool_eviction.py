"""Hazard: too few sequences. Who gives way is who is missed least, and nobody who is at work."""

from __future__ import annotations

import pytest

from modeld.engine.backend import Slice, StepResult
from modeld.engine.fake.backend import FakeBackend
from modeld.engine.job import Job
from modeld.engine.pool import Pool
from modeld.engine.protocol import Evicted, Explain, Load, Open
from modeld.engine.session import EngineSession


@pytest.fixture
def told() -> list[Evicted]:
    return []


@pytest.fixture
def pool(told: list[Evicted]) -> Pool:
    load = Load("", "fake", "d", 100, 100, sequences=3)
    return Pool(FakeBackend(load), load, told.append)


def held(pool: Pool, key: int, used: float, *, pin: bool = False, side: bool = False) -> EngineSession:
    """A session with ten tokens of KV."""
    pool.open(Open(key, session_class="side" if side else "main", pin=pin))
    session = pool.get(key)
    assert pool.give_sequence(session)
    assert session.sequence is not None
    assert pool._backend.step([Slice(session.sequence, 0, [1] * 10, False)]) is StepResult.OK
    session.ids, session.hot, session.last_used = [1] * 10, 10, used
    return session


def test_side_sessions_go_first_then_the_oldest_and_pinned_ones_last(pool: Pool, told: list[Evicted]) -> None:
    held(pool, 1, used=1.0, pin=True)
    held(pool, 2, used=2.0)
    held(pool, 3, used=9.0, side=True)
    for key, expected in ((4, 3), (5, 2)):
        held(pool, key, used=10.0 + key)
        assert told[-1] == Evicted((expected,))
        assert pool.get(expected).gone == "evicted"
    assert pool.get(1).hot == 10


def test_sessions_at_work_keep_their_kv(pool: Pool, told: list[Evicted]) -> None:
    for key in (1, 2, 3):
        session = held(pool, key, used=key)
        session.jobs.append(Job(Explain(key, key), session))
    assert not pool.give_sequence(EngineSession(9))
    assert told == []
    pool.get(2).jobs.clear()
    assert pool.give_sequence(EngineSession(9))
    assert told == [Evicted((2,))]


def test_forgotten_session_gives_its_sequence_back(pool: Pool, told: list[Evicted]) -> None:
    for key in (1, 2, 3):
        held(pool, key, used=key)
    pool.forget(pool.get(1))
    held(pool, 4, used=4.0)
    assert told == []


def test_tape_of_an_evicted_session_is_not_a_changed_one(pool: Pool) -> None:
    session = held(pool, 1, used=1.0)
    first = pool.tape(session)
    assert (first.keep, len(first.added), first.hot) == (0, 10, 10)
    pool.evict(session)
    second = pool.tape(session)
    assert (second.keep, second.added, second.hot) == (10, (), 0)


def test_who_finds_no_room_for_a_copy_keeps_what_it_has(told: list[Evicted]) -> None:
    """Seated before each step, as behind one that waits, it would compute the same tokens for ever."""
    load = Load("", "fake:copies=1", "d", cells=100, window=100, sequences=3)
    pool = Pool(FakeBackend(load), load, told.append)
    prompt = list(range(70))
    busy, asks = pool.get(1), pool.get(2)
    for session, length in ((busy, 60), (asks, 20)):
        assert pool.seat(session, prompt) == 0
        assert session.sequence is not None
        assert pool._backend.step([Slice(session.sequence, 0, prompt[:length], False)]) is StepResult.OK
        session.ids = prompt[:length]
        pool.extended(session, prompt[:length])
        session.jobs.append(Job(Explain(session.key, session.key), session))
    # 60 of 70 are in the engine, but 60 + 60 do not fit, and who has them is at work.
    assert pool.seat(asks, prompt) == 20
    assert pool.audit() == ()
    # It rests: now its cells are given up for the copy, or go over whole.
    busy.jobs.clear()
    assert pool.seat(asks, prompt) == 60
    assert pool.audit() == ()
    assert told == [Evicted((1,))]
