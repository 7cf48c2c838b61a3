"""Contract: what is on the tape is never computed again, and the receipt tells the truth about it."""

from __future__ import annotations

import asyncio

import pytest

from modeld.session import SessionConfig
from modeld.types import DecodeOptions, Message, Receipt
from support.engines import shared

from .conftest import World

pytestmark = pytest.mark.anyio

GREEDY = DecodeOptions(temperature=0, max_tokens=400)


def whole(receipt: Receipt) -> int:
    return receipt.reused + receipt.restored + receipt.prefilled


async def test_ten_turns_prefill_exactly_what_is_new(world: World) -> None:
    session = await world.open()
    conversation: list[Message] = []
    tape: list[int] = []
    for turn, ask in enumerate(world.engine.asks):
        conversation.append(Message("user", ask))
        expected = world.engine.prompt(conversation)
        result = await session.turn(conversation, options=GREEDY).join()
        kept = min(shared(tape, expected), len(expected) - 1)
        assert (result.receipt.reused, result.receipt.prefilled) == (kept, len(expected) - kept), turn
        assert whole(result.receipt) == len(expected) == result.end.usage.input
        assert result.receipt.dropped == len(tape) - shared(tape, expected) == 0
        assert result.receipt.stop is None
        answer = world.engine.tokenize(result.text)
        assert result.end.usage.output == len(answer)
        tape = expected + answer
        assert result.receipt.resident == len(tape)
        conversation.append(result.message)
    assert turn == 9


async def test_same_name_in_two_workspaces_is_two_tapes(world: World) -> None:
    name = world.fresh_name()
    one, two = await world.open(name, workspace="one"), await world.open(name, workspace="two")
    question = [Message("user", world.engine.asks[0])]
    first = await one.turn(question, options=GREEDY).join()
    assert (await two.explain()).resident == 0
    second = await two.turn([*question, first.message, Message("user", "More.")], options=GREEDY).join()
    assert second.receipt.resident > first.receipt.resident == (await one.explain()).resident


async def test_what_another_session_computed_is_not_computed_again(world: World) -> None:
    await world.service.unload()
    question = [Message("system", "You are kind and calm."), Message("user", world.engine.asks[0])]
    first = await (await world.open()).turn(question, options=GREEDY).join()
    same = await (await world.open()).turn(question, options=GREEDY).join()
    assert (first.receipt.reused, first.receipt.prefilled) == (0, len(world.engine.prompt(question)))
    again = world.engine.again(question)
    assert (world.engine.warm(same.receipt), same.receipt.prefilled) == (first.receipt.prefilled - again, again)
    assert same.receipt.stop is None
    assert same.text == first.text
    other = [question[0], Message("user", world.engine.asks[1])]
    begun = shared(world.engine.prompt(question), world.engine.prompt(other))
    result = await (await world.open()).turn(other, options=GREEDY).join()
    assert begun > 0
    assert result.receipt.reused == world.engine.begins(begun)


async def test_the_same_beginning_is_computed_once_though_many_ask_at_once(world: World) -> None:
    await world.service.unload()
    system = Message("system", "You are kind. " + "word " * 400)
    sessions = [await world.open() for _ in range(4)]
    asked = [[system, Message("user", ask)] for ask in world.engine.asks[:4]]
    streams = [session.turn(ask, options=GREEDY).join() for session, ask in zip(sessions, asked, strict=True)]
    results = await asyncio.gather(*streams)
    prompts = [world.engine.prompt(ask) for ask in asked]
    least = len({tuple(prompt[:n]) for prompt in prompts for n in range(1, len(prompt) + 1)})
    assert sum(result.receipt.prefilled for result in results) == least


async def test_a_branch_that_was_left_is_found_again(world: World) -> None:
    session = await world.open()
    common = [Message("system", world.fresh_name())]
    one, two = ([*common, *_rounds(world, start)] for start in (0, 4))
    first = await session.turn(one, options=GREEDY).join()
    await session.turn(two, options=GREEDY).join()
    again = await session.turn(one, options=GREEDY).join()
    assert again.receipt.prefilled == world.engine.again(one)
    assert again.text == first.text


def _rounds(world: World, start: int) -> list[Message]:
    """Questions with answers, long enough that they are worth keeping, and one that is open."""
    asks = world.engine.asks
    talk = [m for ask in asks[start : start + 3] for m in (Message("user", ask), Message("assistant", "river " * 12))]
    return [*talk, Message("user", asks[1])]


async def test_second_client_continues_on_the_same_tape(world: World) -> None:
    name = world.fresh_name()
    session = await world.open(name)
    conversation = [Message("user", world.engine.asks[0])]
    first = await session.turn(conversation, options=GREEDY).join()
    await session.close()
    conversation += [first.message, Message("user", world.engine.asks[1])]
    theirs = await world.another.open_session(world.engine.ref, SessionConfig(name=name))
    result = await theirs.turn(conversation, options=GREEDY).join()
    assert result.receipt.reused >= first.receipt.resident > 0
    assert result.receipt.dropped == 0


async def test_edited_history_names_message_and_character(world: World) -> None:
    session = await world.open()
    conversation = [Message("system", "You are calm and kind."), Message("user", world.engine.asks[0])]
    first = await session.turn(conversation, options=GREEDY).join()
    edited = [Message("system", "You are calm and cold."), *conversation[1:]]
    result = await session.turn(edited, options=GREEDY).join()
    stop = result.receipt.stop
    assert stop is not None
    assert (stop.reason, stop.message_index, stop.character) == ("message_changed", 0, 17)
    assert "kind" in stop.old
    assert "cold" in stop.new
    same = shared(world.engine.prompt(conversation), world.engine.prompt(edited))
    assert stop.token == result.receipt.reused == world.engine.begins(same)
    assert result.receipt.dropped == first.receipt.resident - result.receipt.reused


async def test_edited_answer_is_named(world: World) -> None:
    session = await world.open()
    conversation = [Message("user", world.engine.asks[1])]
    first = await session.turn(conversation, options=GREEDY).join()
    edited = Message("assistant", first.text[:4] + "?!")
    result = await session.turn([*conversation, edited, Message("user", "Thanks!")], options=GREEDY).join()
    stop = result.receipt.stop
    assert stop is not None
    assert (stop.reason, stop.message_index, stop.character) == ("answer_changed", 1, 4)


async def test_asking_again_keeps_the_question_and_computes_one_token(world: World) -> None:
    session = await world.open()
    conversation = [Message("user", world.engine.asks[0])]
    first = await session.turn(conversation, options=GREEDY).join()
    again = await session.turn(conversation, options=GREEDY).join()
    assert again.text == first.text
    assert again.receipt.prefilled == world.engine.again(conversation)
    assert again.receipt.stop is not None
    assert again.receipt.stop.reason == "history_shortened"


async def test_thinking_dropped_by_the_template_is_said(world: World) -> None:
    session = await world.open()
    conversation = [Message("user", world.engine.asks[0])]
    first = await session.turn(conversation, think="high", options=GREEDY).join()
    assert first.message.thinking
    assert "<think>" not in first.text + first.message.thinking
    assert first.end.usage.reasoning
    conversation += [first.message, Message("user", world.engine.asks[1])]
    result = await session.turn(conversation, think="high", options=GREEDY).join()
    assert result.receipt.stop is not None
    assert (result.receipt.stop.reason, result.receipt.stop.message_index) == ("thinking_dropped", 1)
    # Up to the answer everything stays: only the answer is computed again.
    assert result.receipt.reused >= world.engine.begins(len(world.engine.prompt([conversation[0]])))


async def test_tools_that_change_are_named(world: World) -> None:
    session = await world.open()
    conversation = [Message("user", world.engine.asks[0])]
    await session.turn(conversation, options=GREEDY).join()
    result = await session.turn(conversation, tools=[world.engine.tool], options=GREEDY).join()
    assert result.receipt.stop is not None
    assert result.receipt.stop.reason == "tools_changed"


async def test_tool_call_and_its_result_stay_on_the_tape(world: World) -> None:
    session = await world.open()
    conversation = [Message("user", world.engine.tool_ask)]
    first = await session.turn(conversation, tools=[world.engine.tool], options=GREEDY).join()
    assert first.end.finish_reason == "tool_calls"
    (call,) = first.message.tool_calls
    assert call.function.name == "get_weather"
    assert "Oslo" in call.function.arguments
    conversation += [first.message, Message("tool", '{"temp": 21, "sky": "sunny"}', tool_call_id=call.id)]
    second = await session.turn(conversation, tools=[world.engine.tool], options=GREEDY).join()
    assert second.receipt.stop is None
    assert second.receipt.reused == first.receipt.resident


async def test_warm_answers_equal_cold_ones(world: World) -> None:
    warm = await world.open()
    conversation: list[Message] = []
    answers = []
    for ask in world.engine.asks:
        conversation.append(Message("user", ask))
        result = await warm.turn(conversation, options=GREEDY).join()
        answers.append((list(conversation), result.text, result.end.usage.output))
        conversation.append(result.message)
    for asked, text, output in answers[::4]:
        await world.service.unload()
        fresh = await (await world.open()).turn(asked, options=GREEDY).join()
        assert fresh.receipt.reused == 0
        assert (fresh.text, fresh.end.usage.output) == (text, output)


async def test_more_sessions_than_sequences_work_and_come_back_from_ram(world: World) -> None:
    names = [world.fresh_name() for _ in range(world.node.config.sequences + 4)]
    system = "You are kind and calm. " * 4
    asked = {name: [Message("system", f"{name}: {system}"), Message("user", world.engine.asks[0])] for name in names}
    for name in names:
        await (await world.open(name)).turn(asked[name], options=GREEDY).join()
    first = await (await world.open(names[0])).turn(asked[names[0]], options=GREEDY).join()
    assert first.receipt.prefilled == world.engine.again(asked[names[0]])
    assert first.receipt.restored > 0
    assert (await world.service.status()).ledger.ram > 0
    audit = await world.service.audit()
    assert audit.faults == ()
    assert audit.ledger.cells_used > 0
    recent = await (await world.open(names[-1])).turn(asked[names[-1]], options=GREEDY).join()
    assert recent.receipt.prefilled == world.engine.again(asked[names[-1]])
