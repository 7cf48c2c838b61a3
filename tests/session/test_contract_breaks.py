"""Contract: who breaks the cache is told by what, where and at what cost, also when the model is not there any more."""

from __future__ import annotations

import json

import pytest
from msgspec import structs

from modeld.session import Session
from modeld.types import ChatResult, DecodeOptions, FunctionTool, Message, Receipt, ReuseStop, Tool, ToolCall

from .conftest import World

pytestmark = pytest.mark.anyio

GREEDY = DecodeOptions(temperature=0, max_tokens=120)
SHORT = structs.replace(GREEDY, max_tokens=8)
RULES = "Be calm and kind, count when asked to count, repeat when asked to repeat.\n"


def header(session: Session, day: int) -> Message:
    """Nobody else's: what one session has computed costs the others nothing."""
    return Message("system", f"{session.handle.name}: {RULES}Today's date: 2026-02-{day}\n{RULES}")


async def ask(session: Session, messages: list[Message], tools: list[Tool] | None = None) -> ChatResult:
    return await session.turn(messages, tools=tools or [], options=GREEDY).join()


def stop_of(receipt: Receipt) -> ReuseStop:
    """The stop, whose cost must fit the receipt that it is in."""
    stop = receipt.stop
    assert stop is not None
    assert 0 <= stop.tokens <= receipt.prefilled
    assert stop.seconds == pytest.approx(receipt.prefill_seconds * stop.tokens / receipt.prefilled)
    assert stop.advice
    return stop


async def test_a_date_in_the_header_is_named_with_its_cost(world: World) -> None:
    session = await world.open()
    question = Message("user", world.engine.asks[0])
    await ask(session, [header(session, 10), question])
    receipt = (await ask(session, [header(session, 11), question])).receipt
    stop = stop_of(receipt)
    place = header(session, 10).content.index("10\n") + 1
    assert (stop.reason, stop.message_index, stop.character) == ("volatile_header", 0, place)
    assert "a date" in stop.detail
    assert "02-10" in stop.old
    assert "02-11" in stop.new
    # All behind the date is the same, and was computed again, but for the last token, which always is.
    assert 0 < receipt.prefilled - stop.tokens <= 4
    assert stop.seconds > 0


async def test_the_order_of_tools_is_named(world: World) -> None:
    session = await world.open()
    tools = [world.engine.tool, Tool(FunctionTool("read_file", "Read a file.", {"type": "object", "properties": {}}))]
    await ask(session, [Message("user", world.engine.asks[0])], tools)
    stop = stop_of((await ask(session, [Message("user", world.engine.asks[0])], tools[::-1])).receipt)
    assert (stop.reason, stop.message_index) == ("tool_order", None)
    assert "get_weather, read_file" in stop.detail
    reordered = structs.replace(tools[0].function, parameters=dict(reversed(tools[0].function.parameters.items())))
    again = await ask(session, [Message("user", world.engine.asks[0])], [tools[1], Tool(reordered)])
    assert stop_of(again.receipt).reason == "tools_changed"
    assert "order of keys" in stop_of(again.receipt).detail


async def test_a_call_that_the_client_wrote_anew_is_named(world: World) -> None:
    session = await world.open()
    asked = [Message("user", world.engine.tool_ask)]
    first = await ask(session, asked, [world.engine.tool])
    (call,) = first.message.tool_calls
    arguments = json.dumps(json.loads(call.function.arguments), indent=4)
    sent = ToolCall(call.id, structs.replace(call.function, arguments=arguments))
    more = [*asked, structs.replace(first.message, tool_calls=(sent,)), Message("tool", "21", tool_call_id=call.id)]
    stop = stop_of((await ask(session, more, [world.engine.tool])).receipt)
    assert (stop.reason, stop.message_index) == ("answer_changed", 1)
    assert "get_weather came back in another form" in stop.detail


async def test_what_the_last_breaks_cost_is_kept_and_added_up(world: World) -> None:
    session = await world.open()
    question = Message("user", world.engine.asks[0])
    stops = []
    for day in range(10, 23):
        receipt = (await ask(session, [header(session, day), question])).receipt
        stops += [stop_of(receipt)] if day > 10 else []
    asked_again = (await ask(session, [header(session, 22), question])).receipt
    assert stop_of(asked_again).reason == "history_shortened"
    if world.engine.shares:
        # A stop that cost nothing is no break.
        assert stop_of(asked_again).tokens == 0
    breaks = [stop for stop in (*stops, stop_of(asked_again)) if stop.tokens]
    report = await session.explain()
    assert report.last_receipt == asked_again
    assert [b.stop for b in report.breaks] == breaks[-10:]
    assert [b.at for b in report.breaks] == sorted(b.at for b in report.breaks)
    assert {total.reason for total in report.break_totals} == {stop.reason for stop in breaks}
    (total,) = (total for total in report.break_totals if total.reason == "volatile_header")
    assert (total.count, total.tokens) == (12, sum(s.tokens for s in stops))
    assert total.seconds == pytest.approx(sum(s.seconds for s in stops))


async def test_breaks_are_told_when_the_model_is_gone_and_it_is_not_loaded_for_that(world: World) -> None:
    session = await world.open()
    question = Message("user", world.engine.asks[0])
    await ask(session, [header(session, 10), question])
    await ask(session, [header(session, 11), question])
    before = await session.explain()
    await world.service.unload()
    report = await session.explain()
    assert (await world.service.status()).state == "empty"
    assert (report.breaks, report.break_totals) == (before.breaks, before.break_totals)
    assert (report.name, report.resident, report.last_receipt) == (before.name, 0, before.last_receipt)
    back = (await ask(session, [header(session, 11), question])).receipt
    stop = stop_of(back)
    assert (stop.reason, stop.tokens) == ("unloaded", back.prefilled - 1)
    assert {total.reason for total in (await session.explain()).break_totals} == {"volatile_header", "unloaded"}


async def test_another_kind_of_kv_is_named(world: World) -> None:
    name = world.fresh_name()
    session = await world.open(name)
    question = [header(session, 10), Message("user", world.engine.asks[0])]
    await ask(session, question)
    stop = stop_of((await ask(await world.open(name, kv_type=world.engine.other_kv), question)).receipt)
    assert stop.reason == "model_changed"
    assert f"the kv type was f16 and is {world.engine.other_kv}" in stop.detail


async def test_ps_tells_what_need_not_be_computed_again(world: World) -> None:
    await world.service.unload()
    names = [world.fresh_name() for _ in range(world.node.config.sequences + 4)]
    for name in names:
        session = await world.open(name)
        await session.turn([Message("user", f"{name} {RULES}")], options=SHORT).join()
    infos = {info.name: info for info in await world.service.sessions()}
    left = [name for name in names if infos[name].hot == 0]
    # Four sequences too few: the oldest leave, but for one whose beginning others hold as well.
    assert len(left) >= 4
    assert left[0] in names[:2]
    assert infos[names[-1]].hot > 0
    for name in names:
        # Those that left the engine are in RAM.
        assert infos[name].kept == infos[name].tape > 0
    await world.service.unload()
    assert {info.kept for info in await world.service.sessions()} == {None}
