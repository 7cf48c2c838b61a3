"""Hazard: a session that only waits holds what those need who could go on. Nobody waits for ever, no answer is cut."""

from __future__ import annotations

from unittest import mock

from msgspec import structs

from modeld.engine.protocol import Done, Failed, Turn, decode_result
from modeld.types import DecodeOptions, EndPart, Message

from .test_scheduler_states import LOAD, Engine, rendered

GREEDY = DecodeOptions(temperature=0)
SHORT = DecodeOptions(temperature=0, max_tokens=2)


def turn(id_: int, session: int, *texts: str, options: DecodeOptions = SHORT) -> Turn:
    roles = ("user", "assistant")
    messages = tuple(Message(roles[index % 2], text) for index, text in enumerate(texts))
    return Turn(id_, session, messages, options, credit=10**6)


def ends(engine: Engine) -> dict[int, EndPart]:
    assert not [reply for reply in engine.replies if isinstance(reply, Failed)]
    return {reply.id: decode_result(reply.result, EndPart) for reply in engine.replies if isinstance(reply, Done)}


def test_who_has_no_sequence_has_its_turn_though_all_who_have_one_ask_again_and_again() -> None:
    engine = Engine(structs.replace(LOAD, cells=3000, sequences=2))
    for number in range(60):
        engine.ask(turn(1 + number, 1 + number % 2, f"{number}"))
    engine.ask(turn(99, 3, "me too"))
    assert engine.steps(10_000)
    assert set(ends(engine)) == {*range(1, 61), 99}
    order = [reply.id for reply in engine.replies if isinstance(reply, Done)]
    assert order.index(99) < 30


def test_an_answer_is_not_cut_for_cells_of_a_session_that_waits() -> None:
    engine = Engine(structs.replace(LOAD, cells=310, window=300, sequences=4, batch=64))
    first = "a" * 150
    engine.ask(turn(1, 1, first))
    assert engine.steps(1000)
    engine.ask(turn(2, 2, "!count 75", options=GREEDY))
    engine.steps(80)
    # It does not fit beside the one that runs, and keeps what it has until then.
    engine.ask(turn(3, 1, first, "x", "b" * 95))
    engine.steps(2)
    assert engine.scheduler._pool.sessions[1].hot > 150
    assert engine.steps(10_000)
    assert ends(engine)[2].finish_reason == "stop"
    assert ends(engine)[3].finish_reason == "length"
    assert engine.scheduler._pool.audit() == ()


def test_a_job_does_not_start_into_cells_that_its_own_idle_beginning_holds() -> None:
    engine = Engine(structs.replace(LOAD, cells=310, window=300, sequences=4, batch=64))
    first = "a" * 150
    engine.ask(turn(1, 1, first))
    assert engine.steps(1000)
    engine.ask(turn(2, 2, "!count 60", options=GREEDY))
    engine.steps(30)
    pool = engine.scheduler._pool
    running = pool.sessions[2]
    prompt = pool.sessions[1].tape + [1] * 100
    # Together they are more than there are, however much of it the engine holds already.
    assert running.hot + len(prompt) + 1 > 310 - 20
    assert not pool.fits([running], prompt, 20)


def test_behind_one_that_stands_still_a_prompt_is_seated_once_and_computed() -> None:
    engine = Engine(structs.replace(LOAD, cells=2000, window=1000))
    engine.ask(turn(1, 1, "x" * 300))
    engine.steps(2)
    (first,) = engine.scheduler._active
    first.park()
    pool = engine.scheduler._pool
    with mock.patch.object(pool, "seat", wraps=pool.seat) as seat:
        engine.ask(turn(2, 2, "x" * 300))
        engine.steps(20)
    assert [call.args[0].key for call in seat.call_args_list if call.args[0].key == 2] == [2]
    assert set(ends(engine)) == {1, 2}  # whose end let the first go on
    # Of which it then had what it needed.
    assert engine.computed[1] + engine.computed[2] < len(rendered((Message("user", "x" * 300),))) + 10
