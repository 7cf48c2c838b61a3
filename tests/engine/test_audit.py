"""The audit must see what was lost: it counts what others only book."""

from __future__ import annotations

import pytest

from modeld.engine.backend import Slice
from modeld.engine.fake.backend import FakeBackend
from modeld.engine.pool import Pool
from modeld.engine.protocol import Load
from modeld.engine.session import EngineSession
from modeld.engine.tiers import open_tiers

LOAD = Load(path="", name="fake", digest="d", cells=310, window=300, sequences=3, batch=64, ram=10**6)


@pytest.fixture
def pool() -> Pool:
    pool = Pool(FakeBackend(LOAD), LOAD, lambda evicted: None, open_tiers(LOAD, "00" * 32, lambda: None))
    session = pool.get(1)
    assert pool.give_sequence(session)
    session.ids = list(range(40))
    return pool


def fill(pool: Pool) -> EngineSession:
    session = pool.get(1)
    assert session.sequence is not None
    pool._backend.step([Slice(session.sequence, 0, session.ids, False)])
    pool.extended(session, session.ids)
    return session


def test_nothing_is_wrong_where_nothing_is(pool: Pool) -> None:
    fill(pool)
    while pool.save_next():
        pass
    assert pool.held().ram > 0
    assert pool.audit() == ()


def test_a_sequence_id_that_leaked_is_seen(pool: Pool) -> None:
    pool._free.pop()
    assert any("sequence ids" in fault for fault in pool.audit())


def test_cells_that_nobody_booked_are_seen(pool: Pool) -> None:
    session = fill(pool)
    assert session.sequence is not None
    pool._backend.remove(session.sequence, 30)
    assert pool.audit() == (f"sequence {session.sequence} holds 30 tokens, its tape 40",)


def test_bytes_that_nobody_booked_are_seen(pool: Pool) -> None:
    fill(pool)
    while pool.save_next():
        pass
    assert pool._tiers is not None
    pool._tiers.ram += 1
    assert any("main memory holds" in fault for fault in pool.audit())
