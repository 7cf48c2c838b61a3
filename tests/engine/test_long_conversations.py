"""Hazard: work that grows with the square of a conversation, in the one thread that all streams wait for."""

from __future__ import annotations

import time
from unittest import mock

from modeld.engine.backend import Backend
from modeld.engine.differences import find_difference
from modeld.engine.fake.backend import FakeBackend
from modeld.engine.overflow import cuts
from modeld.engine.pool import Pool
from modeld.engine.protocol import Load
from modeld.engine.session import EngineSession, Prompt
from modeld.engine.tiers import Tiers
from modeld.types import FunctionCall, Message, ToolCall

SECONDS = 2.0
"""Each takes a tenth of that here, and took five times as much and more."""


def test_thousands_of_equal_messages_are_compared_at_a_few_places() -> None:
    session = EngineSession(1)
    session.messages = tuple(Message(("user", "assistant")[n % 2], "ok") for n in range(20_000))  # type: ignore[arg-type]
    changed = (Message("user", "no"), *session.messages)
    began = time.monotonic()
    found = find_difference(session, Prompt(changed, (), "auto", b"", []), 0)
    assert time.monotonic() - began < SECONDS
    assert found is not None
    assert found.reason == "message_changed"


def test_thousands_of_calls_and_their_results_are_passed_once() -> None:
    messages: list[Message] = []
    for number in range(20_000):
        call = ToolCall(id=f"x{number}", function=FunctionCall("f", "{}"))
        messages += [Message("user", "q"), Message("assistant", "", tool_calls=(call,))]
        messages.append(Message("tool", "r", tool_call_id=call.id))
    began = time.monotonic()
    assert cuts(messages, 0) == list(range(3, 60_000, 3))
    assert time.monotonic() - began < SECONDS


def test_sessions_for_which_there_is_no_room_are_not_looked_at_beside_each_step() -> None:
    load = Load("", "fake", "d", cells=100_000, window=100_000, sequences=8)
    backend: Backend = FakeBackend(load)
    pool = Pool(backend, load, lambda _: None, Tiers(1, bytes(32)))
    for key in range(6):
        session = pool.get(key)
        pool.give_sequence(session)
        assert session.sequence is not None
        tokens = [key + 65] * 300
        session.ids = tokens
        pool.extended(session, tokens)
    pool.thin_out(0.0)
    with mock.patch.object(pool._tree, "tape", side_effect=AssertionError):
        pool.thin_out(0.0)
