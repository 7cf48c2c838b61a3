"""Hazard: turns leave while an answer runs. No wrong cell, no token counted twice or not at all, no half of a slide."""

from __future__ import annotations

import re

from msgspec import structs

from modeld.chat.template import ChatTemplate
from modeld.engine.fake.lexicon import END, START
from modeld.engine.prompts import Prompts
from modeld.engine.protocol import (
    Cancel,
    Credit,
    Decode,
    Done,
    Failed,
    Fork,
    Parts,
    Suffix,
    Turn,
    decode_result,
)
from modeld.engine.session import EngineSession
from modeld.session.values import Overflow, SuffixStatus
from modeld.types import ChatResult, DecodeOptions, EndPart, Message, PartsJoiner, TextPart, WarningPart

from .test_scheduler_states import LOAD, Engine, rendered

WINDOW = 400
ROOMY = structs.replace(LOAD, cells=1000, window=WINDOW)
GREEDY = DecodeOptions(temperature=0)
SYSTEM = Message("system", "be kind")


def talk(turns: int, ask: str, size: int = 20) -> tuple[Message, ...]:
    """A conversation whose turns are ``2 * (size + 2)`` and some tokens each, and a question."""
    rounds = [m for n in range(turns) for m in (Message("user", f"{n}" * size), Message("assistant", "y" * size))]
    return (SYSTEM, *rounds, Message("user", ask))


def result_of(engine: Engine, id_: int) -> ChatResult:
    joiner = PartsJoiner()
    for reply in engine.replies:
        if isinstance(reply, Parts) and reply.id == id_:
            for part in reply.parts:
                joiner.add(part)
        elif isinstance(reply, Done) and reply.id == id_:
            joiner.add(decode_result(reply.result, EndPart))
    return joiner.result()


def asked(
    engine: Engine, id_: int, messages: tuple[Message, ...], overflow: Overflow = "shift", **more: int
) -> ChatResult:
    engine.ask(Turn(id_, 1, messages, DecodeOptions(temperature=0, **more), overflow=overflow))  # type: ignore[arg-type]
    assert engine.steps(5000)
    return result_of(engine, id_)


def session_of(engine: Engine, key: int = 1) -> EngineSession:
    return engine.scheduler._pool.get(key)


def ids(text: str) -> list[int]:
    return list(map(ord, text))


def counted(n: int) -> str:
    return " ".join(map(str, range(1, n + 1)))


def shared(one: list[int], two: list[int]) -> int:
    return next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))


def test_an_answer_goes_on_over_a_full_window_and_its_cost_adds_up() -> None:
    engine = Engine(ROOMY)
    messages = talk(5, "!count 40")
    prompt = ids(rendered(messages))
    result = asked(engine, 1, messages)
    assert (result.text, result.finish_reason) == (counted(40), "stop")
    receipt, session = result.receipt, session_of(engine)
    assert [warning.code for warning in result.warnings] == ["context_shifted"]
    assert receipt.left == len(messages) - len(session.messages) == 4
    assert session.messages == (SYSTEM, *messages[5:])
    # Up to the full window, then what was left of the prompt and all of the answer but its newest token.
    begun = ids(counted(40))[: WINDOW - len(prompt)]
    after = ids(rendered(session.messages))
    kept = shared(prompt, after)
    assert receipt.left_tokens == len(prompt) - len(after)
    assert result.usage.input == len(prompt) + len(after) + len(begun)
    assert (receipt.reused, receipt.prefilled) == (kept, result.usage.input - kept)
    assert receipt.dropped == len(prompt) + len(begun) - kept
    assert receipt.stop is not None
    assert (receipt.stop.reason, receipt.stop.token) == ("turns_left", kept)
    assert result.usage.output == len(result.text)
    assert session.tape == after + ids(result.text)
    assert session.sequence is not None
    assert engine.backend.tape(session.sequence) == session.tape


def test_what_turns_left_behind_is_nobodys_branch() -> None:
    engine = Engine(ROOMY)
    pool = engine.scheduler._pool
    messages = talk(5, "!count 40")
    first = asked(engine, 1, messages)
    more = (*messages, first.message, Message("user", "z" * 90))
    second = asked(engine, 2, more, "truncate")
    assert first.receipt.left < second.receipt.left
    assert pool._branches == {}
    asked(engine, 3, talk(8, "another"), "truncate")
    assert len(pool._branches) == 1


def test_the_warning_stands_where_the_turns_left() -> None:
    engine = Engine(ROOMY)
    messages = talk(5, "!count 40")
    asked(engine, 1, messages)
    before = ""
    for part in [part for reply in engine.replies if isinstance(reply, Parts) for part in reply.parts]:
        if isinstance(part, WarningPart):
            break
        before += part.text if isinstance(part, TextPart) else ""
    assert len(before) == WINDOW - len(rendered(messages)) + 1
    assert counted(40).startswith(before)


def test_limits_count_through() -> None:
    engine = Engine(ROOMY)
    result = asked(engine, 1, talk(5, "!count 40"), max_tokens=90)
    assert (result.text, result.finish_reason) == (counted(40)[:90], "length")
    assert len(result.warnings) == 1
    stop = DecodeOptions(temperature=0, stop=(" 35",))
    engine.ask(Turn(2, 2, talk(5, "!count 40"), stop, overflow="shift"))
    assert engine.steps(5000)
    cut = result_of(engine, 2)
    assert (cut.text, cut.end.stop, len(cut.warnings)) == (counted(34), " 35", 1)
    assert session_of(engine, 2).tape == ids(rendered(session_of(engine, 2).messages) + cut.text)


def test_nothing_that_can_leave_ends_the_answer_with_a_full_window() -> None:
    engine = Engine(ROOMY)
    messages = talk(0, "!count 400")
    result = asked(engine, 1, messages)
    assert result.finish_reason == "context_full"
    assert result.warnings == ()
    assert (result.receipt.left, result.receipt.resident) == (0, WINDOW)
    assert result.usage.output == WINDOW - len(rendered(messages)) + 1
    # The same after all that could leave has left.
    more = asked(engine, 2, talk(6, "!count 400"))
    assert (more.finish_reason, more.receipt.left) == ("context_full", 12)
    assert more.usage.output == WINDOW - len(rendered(messages)) + 1
    assert counted(400).startswith(more.text)


def test_truncate_does_not_slide_in_the_answer() -> None:
    engine = Engine(ROOMY)
    messages = talk(10, "!count 400")
    result = asked(engine, 1, messages, "truncate")
    assert result.finish_reason == "context_full"
    assert [warning.code for warning in result.warnings] == ["context_truncated"]
    session = session_of(engine)
    assert result.receipt.left == len(messages) - len(session.messages) > 0
    assert len(rendered(session.messages)) <= WINDOW * 3 / 4


def test_a_prompt_that_fills_the_window_slides_at_its_first_token() -> None:
    engine = Engine(ROOMY)
    short = talk(6, "!count 9")
    messages = (SYSTEM, Message("user", "0" * (20 + WINDOW - len(rendered(short)))), *short[2:])
    assert len(rendered(messages)) == WINDOW
    assert asked(engine, 1, messages, "error").finish_reason == "context_full"
    result = asked(engine, 2, messages)
    assert (result.text, result.finish_reason) == (counted(9), "stop")
    assert result.receipt.left > 0


def test_the_next_turn_finds_what_a_slide_left_behind() -> None:
    engine = Engine(ROOMY)
    messages = talk(5, "!count 40")
    first = asked(engine, 1, messages)
    again = (*messages, first.message, Message("user", "ok"))
    second = asked(engine, 2, again)
    assert second.receipt.left == first.receipt.left
    assert (second.receipt.dropped, second.receipt.stop) == (0, None)
    assert second.receipt.reused == first.receipt.resident
    assert len(second.warnings) == 1
    # Without the leave to lose turns the conversation is what it is.
    engine.ask(Turn(3, 1, again, GREEDY))
    assert engine.steps(5000)
    assert isinstance(engine.replies[-1], Failed)
    assert engine.replies[-1].code == "context_overflow"
    assert asked(engine, 4, (*again, second.message, Message("user", "so"))).receipt.dropped == 0


def test_an_edit_behind_what_left_is_named_in_the_calls_own_numbers() -> None:
    engine = Engine(ROOMY)
    messages = talk(10, "ok")
    left = asked(engine, 1, messages).receipt.left
    assert left > 0
    place = len(messages) - 3
    edited = (*messages[:place], Message("user", messages[place].content + "!"), *messages[place + 1 :])
    stop = asked(engine, 2, edited).receipt.stop
    assert stop is not None
    assert (stop.reason, stop.message_index, stop.character) == ("message_changed", place, 20)


def test_a_decode_goes_on_as_the_call_before_it() -> None:
    engine = Engine(ROOMY)
    messages = talk(5, "!count 40")
    engine.ask(Suffix(1, 1, messages, overflow="shift"), Decode(2, 1, DecodeOptions(temperature=0, max_tokens=40)))
    engine.ask(Decode(3, 1, GREEDY))
    assert engine.steps(5000)
    one, two = result_of(engine, 2), result_of(engine, 3)
    assert (one.finish_reason, two.finish_reason) == ("length", "stop")
    assert one.text + two.text == counted(40)
    assert (one.receipt.left, two.receipt.left, len(two.warnings)) == (0, 4, 1)
    session = session_of(engine)
    assert session.tape == ids(rendered(session.messages) + counted(40))
    (span,) = session.spans
    assert bytes(session.text[span.byte_start : span.byte_end]).decode() == counted(40)
    # A suffix that follows is appended to the whole conversation, of which the same is shown.
    answer = Message("assistant", one.text + two.text)
    engine.ask(Suffix(4, 1, (answer, Message("user", "ok")), overflow="shift"))
    assert engine.steps(5000)
    done = engine.replies[-1]
    assert isinstance(done, Done)
    status = decode_result(done.result, SuffixStatus)
    assert (status.receipt.left, status.receipt.reused, status.receipt.dropped) == (4, two.receipt.resident, 0)


def test_a_decode_of_a_window_that_is_full_already_slides_first() -> None:
    engine = Engine(ROOMY)
    messages = talk(5, "!count 40")
    room = WINDOW - len(rendered(messages)) + 1
    first = asked(engine, 1, messages, max_tokens=room)
    assert (first.finish_reason, first.warnings) == ("length", ())
    engine.ask(Decode(2, 1, GREEDY))
    assert engine.steps(5000)
    rest = result_of(engine, 2)
    assert first.text + rest.text == counted(40)
    assert ([w.code for w in rest.warnings], rest.receipt.left) == (["context_shifted"], 4)
    assert session_of(engine).tape == ids(rendered(session_of(engine).messages) + counted(40))
    assert len(session_of(engine).spans) == 1


def test_cancelled_in_the_middle_of_a_slide() -> None:
    engine = Engine(ROOMY)
    messages = talk(5, "!count 40")
    engine.ask(Turn(1, 1, messages, GREEDY, overflow="shift"))
    session = session_of(engine)
    while session.left is None:
        engine.steps(1)
    engine.steps(1)
    (job,) = session.jobs
    assert job.again
    assert len(job.remaining) > 32, "it has to be in the middle"
    engine.ask(Cancel(1))
    engine.control.cancel(1)
    assert engine.steps(5000)
    result = result_of(engine, 1)
    assert result.finish_reason == "cancelled"
    assert counted(40).startswith(result.text)
    assert result.usage.output == len(result.text)
    receipt, prompt = result.receipt, rendered(messages)
    begun = result.text[: WINDOW - len(prompt)]
    # What was computed, not what was to be.
    assert result.usage.input == len(prompt) + receipt.resident < len(prompt + rendered(session.messages) + begun)
    assert receipt.reused + receipt.prefilled == result.usage.input
    assert session.sequence is not None
    assert engine.backend.tape(session.sequence) == session.tape
    assert session.tape == ids(rendered(session.messages) + result.text)[: receipt.resident]
    engine.ask(Decode(2, 1, GREEDY))
    assert engine.steps(5000)
    assert result.text + result_of(engine, 2).text == counted(40)


def test_a_slide_whose_cells_another_takes_meanwhile_is_computed_later() -> None:
    engine = Engine(structs.replace(ROOMY, cells=WINDOW + 20))
    messages = talk(5, "!count 40")
    room = WINDOW - len(rendered(messages)) + 1
    # Its reader has no more to take just when the window is full.
    engine.ask(Turn(1, 1, messages, GREEDY, credit=room, overflow="shift"))
    assert engine.steps(5000)
    session = session_of(engine)
    (job,) = session.jobs
    assert job.again
    engine.ask(Turn(2, 2, (Message("user", "z" * 300),), DecodeOptions(temperature=0, max_tokens=1)))
    assert engine.steps(5000)
    assert result_of(engine, 2).text == "z"
    assert session.sequence is None
    engine.ask(Credit(1, 1000))
    assert engine.steps(5000)
    result = result_of(engine, 1)
    assert (result.text, result.finish_reason) == (counted(40), "stop")
    begun, after = ids(counted(40))[: room - 1], ids(rendered(session.messages))
    receipt = result.receipt
    assert result.usage.input == len(rendered(messages)) + len(after) + len(begun) == receipt.reused + receipt.prefilled
    assert receipt.reused == 1, "all prompts begin with the same rune"
    assert result.receipt.stop is not None
    assert result.receipt.stop.reason == "evicted"
    assert session.tape == after + ids(result.text)


def test_a_template_that_fails_on_the_shorter_conversation_ends_the_answer() -> None:
    engine = Engine(ROOMY)
    source = "{%- if messages|length > 1 and messages[1].content[0] == '2' -%}{{ raise_exception('no') }}{%- endif -%}"
    engine.scheduler._prompts = Prompts(engine.backend, ChatTemplate(source + TEMPLATE_TEXT), WINDOW)
    result = asked(engine, 1, talk(5, "!count 40"))
    assert result.finish_reason == "context_full"
    (warning,) = result.warnings
    assert warning.code == "shift_failed"
    assert "no" in warning.message
    assert counted(40).startswith(result.text)


TEMPLATE_TEXT = (
    (
        "{%- for m in messages -%}{{ 'START' + m.role + ' ' + m.content + 'END' }}{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ 'STARTassistant ' }}{%- endif -%}"
    )
    .replace("START", START)
    .replace("END", END)
)


def test_thinking_that_is_open_goes_on_over_a_full_window() -> None:
    engine = Engine(ROOMY)
    # The thought begins in the last cells of the window.
    messages = talk(5, "a" * (WINDOW - 20 - len(rendered(talk(5, "")))))
    assert len(rendered(messages)) + len("<think>\n") == WINDOW - 12
    engine.ask(Turn(1, 1, messages, GREEDY, think="high", overflow="shift"))
    assert engine.steps(5000)
    result = result_of(engine, 1)
    assert result.message.thinking == "I think so."
    assert result.receipt.left > 0
    assert re.fullmatch(r"a+ #[0-9a-f]{8}", result.text)
    assert result.finish_reason == "stop"
    second = asked(engine, 2, (*messages, result.message, Message("user", "ok")))
    assert second.receipt.left == result.receipt.left
    assert second.receipt.stop is not None
    assert second.receipt.stop.reason == "thinking_dropped"
    assert second.receipt.stop.message_index == len(messages)


def test_a_fork_of_a_shifted_session_loses_the_same_turns() -> None:
    engine = Engine(ROOMY)
    messages = talk(5, "!count 40")
    first = asked(engine, 1, messages)
    engine.ask(Fork(2, 1, 5))
    assert engine.steps(5)
    more = (*messages, first.message, Message("user", "ok"))
    engine.ask(Turn(3, 5, more, GREEDY, overflow="shift"))
    assert engine.steps(5000)
    child = result_of(engine, 3)
    assert (child.receipt.left, child.receipt.reused) == (first.receipt.left, first.receipt.resident)
    assert session_of(engine).tape == ids(rendered(session_of(engine).messages) + first.text)
