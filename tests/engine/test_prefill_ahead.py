"""An answer whose thinking leaves history: what the next turn needs is computed before it is asked for, and counted."""

from __future__ import annotations

from modeld.engine.protocol import Done, Explain, Load, Turn, decode_result
from modeld.session.values import ContextReport
from modeld.types import DecodeOptions, EndPart, Message, PartsJoiner

from .test_scheduler_states import Engine, Parts

GREEDY = DecodeOptions(temperature=0)
ASKED = Message("user", "a question that is long enough to be worth a branch")


def engine(**settings: int) -> Engine:
    return Engine(Load(path="", name="fake", digest="d", **{"cells": 600, "window": 500, "sequences": 4} | settings))


def answer(engine: Engine, id_: int, *messages: Message, think: str = "high") -> tuple[Message, EndPart]:
    """Ask, let the engine finish whatever it wants to, and take the answer."""
    engine.replies.clear()
    engine.ask(Turn(id_, 1, messages, GREEDY, think=think))  # type: ignore[arg-type]
    assert engine.steps(1000)
    joiner = PartsJoiner()
    end = None
    for reply in engine.replies:
        if isinstance(reply, Parts):
            for part in reply.parts:
                joiner.add(part)
        elif isinstance(reply, Done):
            end = decode_result(reply.result, EndPart)
    assert end is not None
    joiner.add(end)
    return joiner.result().message, end


def ahead_tokens(engine: Engine) -> int:
    engine.replies.clear()
    engine.ask(Explain(99, 1))
    assert engine.steps(10)
    (done,) = [reply for reply in engine.replies if isinstance(reply, Done)]
    return decode_result(done.result, ContextReport).ahead_tokens


def test_the_next_turn_computes_only_what_is_new() -> None:
    warm = engine()
    said, first = answer(warm, 1, ASKED)
    assert said.thinking
    again = Message("user", "and now?")
    computed = ahead_tokens(warm)
    assert computed >= len(said.content)
    told, end = answer(warm, 2, ASKED, said, again)
    cold_told, cold = answer(engine(), 2, ASKED, said, again)
    assert (told.content, end.usage.input) == (cold_told.content, cold.usage.input)
    # Its own words, and what the template puts around them.
    assert end.cost().prefilled < len(again.content) + 40
    assert end.cost().prefilled + computed <= cold.cost().prefilled
    assert first.cost().prefilled + end.cost().prefilled < cold.cost().prefilled + 40
    assert warm.scheduler._pool.audit() == ()


def test_an_answer_without_thinking_needs_nothing() -> None:
    warm = engine()
    answer(warm, 1, ASKED, think="off")
    assert ahead_tokens(warm) == 0


def test_nobody_gives_way_for_it() -> None:
    small = engine(sequences=1)
    answer(small, 1, ASKED)
    assert ahead_tokens(small) == 0
    full = engine(cells=200, window=180)
    answer(full, 1, ASKED)
    assert ahead_tokens(full) == 0
    assert full.scheduler._pool.audit() == ()


def test_a_session_that_goes_on_at_once_stops_it() -> None:
    warm = engine()
    warm.ask(Turn(1, 1, (Message("user", "x" * 150),), GREEDY, think="high"))
    while not any(isinstance(reply, Done) for reply in warm.replies):
        warm.scheduler.iterate()
    warm.scheduler.iterate()
    warm.ask(Turn(2, 1, (ASKED,), GREEDY, think="high"))
    assert warm.steps(1000)
    # At most a step or two of the first answer, and all of the second's.
    assert ahead_tokens(warm) < 150
    assert warm.scheduler._pool.audit() == ()
