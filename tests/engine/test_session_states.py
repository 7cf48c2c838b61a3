"""Hazard: what the node gives back of a session is rubbish, another's, or older than the session. No wrong token."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.engine.fake.backend import FakeBackend
from modeld.engine.pool import Pool
from modeld.engine.protocol import Load, Open, Reply, State
from modeld.engine.session import EngineSession, Span
from modeld.engine.snapshots import SavedSession
from modeld.engine.states import States
from modeld.session import Manifest
from modeld.types import Message

MANIFEST = Manifest(engine="fake", engine_build="1", model_digest="d", template_digest="t")
LOAD = Load("", "fake", "d", 100, 100, sequences=3)


class Engine:
    """States over a pool without a scheduler."""

    def __init__(self) -> None:
        self.told: list[Reply] = []
        self.pool = Pool(FakeBackend(LOAD), LOAD, self.told.append)
        self.states = States(self.pool, MANIFEST, self.told.append)

    def revived(self, **opening: object) -> EngineSession:
        self.states.open(Open(1, **opening))  # type: ignore[arg-type]
        return self.pool.get(1)


def used() -> EngineSession:
    """A session after an answer of two tokens."""
    session = EngineSession(1)
    session.ids, session.hot, session.logical = [104, 105, 33, 34], 3, 4
    session.text = bytearray(b'hi!"')
    session.spans = [Span(2, 4, 2, 4, False)]
    session.messages = session.stable = (Message("user", "hi"),)
    return session


def saved(**changes: object) -> bytes:
    whole = msgspec.structs.replace(SavedSession.of(used(), MANIFEST), **changes)
    return msgspec.msgpack.encode(whole)


def test_session_is_told_once_when_it_rests_and_comes_back() -> None:
    engine = Engine()
    session = used()
    engine.pool.sessions[1] = session
    engine.states.taken = 7
    engine.states.touched(session)
    assert engine.states.tell_next(0.0) == 0.0
    assert engine.states.tell_next(0.0) is None
    (state,) = engine.told
    assert isinstance(state, State)
    assert (state.session, state.after) == (1, 7)
    again = Engine().revived(state=state.state, lost="unloaded")
    assert (again.ids, again.hot, again.gone, again.remembered) == (session.ids, 0, "unloaded", [104, 105, 33])
    assert (again.spans, again.logical, again.stable) == (session.spans, 4, session.stable)


def test_kv_that_was_evicted_is_told_as_held() -> None:
    engine = Engine()
    session = used()
    session.lose("evicted")
    engine.pool.sessions[1] = session
    engine.states.touched(session)
    engine.states.tell_next(0.0)
    (state,) = engine.told
    assert isinstance(state, State)
    assert Engine().revived(state=state.state).remembered == [104, 105, 33]


@pytest.mark.parametrize("why", ["forgotten", "fatal", "unsure", "another"])
def test_what_is_not_to_come_back_is_not_told(why: str) -> None:
    engine = Engine()
    session = used()
    if why == "another":
        engine.pool.sessions[1] = EngineSession(1)
    elif why != "forgotten":
        engine.pool.sessions[1] = session
        session.fatal, session.unsure = "broken" * (why == "fatal"), why == "unsure"
    engine.states.touched(session)
    assert engine.states.tell_next(0.0) is None
    assert engine.told == []


def test_sessions_are_told_in_the_order_they_came_to_rest() -> None:
    engine = Engine()
    for key in (1, 2, 3):
        session = engine.pool.get(key)
        session.last_used = 10.0 * key
        engine.states.touched(session)
    engine.states.touched(engine.pool.get(1))
    while engine.states.tell_next(0.0) is not None:
        pass
    assert [state.session for state in engine.told if isinstance(state, State)] == [2, 3, 1]


def test_state_of_another_manifest_is_only_a_tape() -> None:
    other = msgspec.structs.replace(MANIFEST, engine_build="0")
    session = Engine().revived(state=saved(manifest=other), lost="unloaded")
    assert (session.gone, session.remembered, session.logical) == ("model_changed", [104, 105, 33], None)
    assert (session.text, session.spans, session.unsure) == (b"", [], True)
    # The node's own tape is later than a state that cannot be used.
    session = Engine().revived(state=saved(manifest=other), tape=(1, 2), lost="model_changed")
    assert (session.gone, session.remembered, session.unsure) == ("model_changed", [1, 2], True)


def test_stale_state_is_a_past_that_nothing_goes_on_from() -> None:
    session = Engine().revived(state=saved(), tape=(104, 105, 35), stale=True, lost="engine_lost")
    assert (session.ids, session.spans, session.remembered) == (used().ids, used().spans, [104, 105, 33])
    assert (session.logical, session.unsure, session.synced) == (None, True, 2)


@pytest.mark.parametrize(
    "change",
    [
        {"hot": 5},
        {"hot": -1},
        {"logical": 5},
        {"ids": [104, -1, 33, 34]},
        {"ids": [104, 2**31, 33, 34]},
        {"spans": [Span(2, 5, 2, 4, False)]},
        {"spans": [Span(2, 4, 2, 5, False)]},
        {"spans": [Span(-2, 4, 2, 4, False)]},
        {"spans": [Span(4, 2, 2, 4, False)]},
        {"text": b""},
        {"messages": 3},
        {"manifest": None},
    ],
    ids=str,
)
def test_state_that_does_not_fit_together_is_as_none(change: dict[str, object]) -> None:
    session = Engine().revived(state=saved(**change), tape=(104,), lost="engine_lost")
    assert (session.remembered, session.text, session.logical, session.unsure) == ([104], b"", None, True)


@given(st.binary(max_size=200) | st.integers(0, 10**6).map(lambda place: _flipped(saved(), place)))
def test_any_bytes_give_a_session(state: bytes) -> None:
    session = Engine().revived(state=state)
    assert session.hot == 0
    assert len(session.remembered) <= len(session.ids)
    assert all(0 <= token < 2**31 for token in session.ids)
    session.tokens_of(b'hi!"', FakeBackend(LOAD), "", add_bos=False)


def _flipped(data: bytes, place: int) -> bytes:
    place %= len(data) * 8
    changed = bytearray(data)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)
