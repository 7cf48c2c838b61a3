"""Hazard: usage that does not add up, that differs by the way it came, or that a cancel loses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from msgspec import structs

from modeld.errors import InvalidRequestError
from modeld.node.config import NodeConfig
from modeld.node.node import Node
from modeld.session import ModelRef, Session, SessionConfig
from modeld.thinking import ThinkLevel
from modeld.types import ChatResult, DecodeOptions, EndPart, Message, PartsJoiner, ProgressPart, TextPart, Usage
from support.engines import ENGINES, WEATHER

from .conftest import WAYS, World, make_world

pytestmark = pytest.mark.anyio

GREEDY = DecodeOptions(temperature=0, max_tokens=400)
ENDLESS = DecodeOptions(temperature=0, ignore_eos=True)
TINY = ENGINES["llama"]
# Long enough steps that a cancel finds a prompt in the middle.
LONG = {"fake": 500, "llama": 7000}
"""Words of a prompt that takes a second."""
CASES = {"fake": replace(ENGINES["fake"], ref=ModelRef("fake:delay=0.0003")), "llama": TINY}

TURNS: tuple[tuple[str, ThinkLevel], ...] = (
    ("Hello!", "off"),
    ("Count to 12.", "high"),
    ("What is the weather in Oslo?", "off"),
    ("", "high"),
    ("Repeat: river stone 42 lotus", "off"),
    ("Remember that kiwi is 77.", "high"),
    ("What is the weather in Oslo and Rome?", "high"),
    ("", "off"),
    ("What is kiwi?", "off"),
    ("Count to 30.", "high"),
)
"""What is asked, and how hard to think; nothing: the results of the tools that were called."""


@pytest.fixture(scope="module", params=[f"{engine}-{way}" for engine in CASES for way in WAYS])
async def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, anyio_backend: str
) -> AsyncIterator[World]:
    engine, _, way = request.param.partition("-")
    async with AsyncExitStack() as stack:
        yield await make_world(stack, CASES[engine], way, tmp_path_factory.mktemp("root"), disk=0)


def parts_add_up(end: EndPart) -> Usage:
    """What holds for each end of a node's stream, whatever came before it."""
    usage, receipt = end.usage, end.cost()
    tokens = (usage.input, usage.reused, usage.restored, usage.prefilled, usage.output, usage.reasoning)
    assert all(count is not None and count >= 0 for count in tokens)
    assert usage.input == usage.reused + usage.restored + usage.prefilled == receipt.input  # type: ignore[operator]
    assert usage.cache_read == usage.reused + usage.restored == receipt.reused + receipt.restored  # type: ignore[operator]
    assert usage.prefilled == receipt.prefilled - receipt.recomputed
    assert usage.reasoning <= usage.output  # type: ignore[operator]
    assert (usage.prefill_seconds, usage.decode_seconds) == (receipt.prefill_seconds, receipt.decode_seconds)
    # Nobody writes to a vendor's cache here, and no draft model runs.
    assert (usage.cache_write, usage.drafted, usage.accepted, usage.source) == (None, None, None, "counted")
    return usage


def timeless(usage: Usage) -> Usage:
    return structs.replace(usage, prefill_seconds=None, decode_seconds=None)


async def whole(session: Session, messages: list[Message], think: ThinkLevel) -> ChatResult:
    return await session.turn(messages, tools=[WEATHER], think=think, options=GREEDY).join()


async def streamed(session: Session, messages: list[Message], think: ThinkLevel) -> ChatResult:
    joiner = PartsJoiner()
    async with session.turn(messages, tools=[WEATHER], think=think, options=GREEDY) as stream:
        async for part in stream:
            joiner.add(part)
    return joiner.result()


def written(messages: list[Message], think: ThinkLevel, result: ChatResult) -> tuple[int, int, int]:
    """Tokens of the prompt, of all that the model wrote, and of its thinking: by template and tokeniser alone."""
    prompt = TINY.template().render(messages, (WEATHER,), think=think, add_generation_prompt=True)
    shown = TINY.template().render([*messages, result.message], (WEATHER,), think="off", add_generation_prompt=False)
    plain = TINY.template().render(messages, (WEATHER,), think="off", add_generation_prompt=True)
    answer = shown.removeprefix(plain).rpartition("<|im_end|>")[0]
    thought = TINY.tokenize(prompt + result.thinking)
    said = TINY.tokenize(prompt + result.thinking + "</think>\n\n" * (think != "off") + answer)
    tokens = len(TINY.tokenize(prompt))
    return tokens, len(said) - tokens, len(thought) - tokens


async def test_ten_turns_cost_what_the_tokeniser_counts_by_every_way(tmp_path: Path) -> None:
    told: list[list[Usage]] = []
    for way in WAYS:
        for ask in (whole, streamed):
            async with AsyncExitStack() as stack:
                root = tmp_path / f"{way}-{ask.__name__}"
                root.mkdir()
                # Without files and RAM nothing but the calls decides what is reused.
                world = await make_world(stack, TINY, way, root, disk=0, ram=0)
                session, talk, usages = await world.open(), list[Message](), list[Usage]()
                for text, think in TURNS:
                    called = talk[-1].tool_calls if talk else ()
                    results = [Message("tool", '{"temp": 21, "sky": "sunny"}', tool_call_id=one.id) for one in called]
                    talk += results or [Message("user", text)]
                    result = await ask(session, talk, think)
                    usages.append(timeless(parts_add_up(result.end)))
                    counted = (usages[-1].input, usages[-1].output, usages[-1].reasoning)
                    assert counted == written(talk, think, result), text
                    talk.append(result.message)
                report = await session.explain()
                assert sum(usage.prefilled or 0 for usage in usages) == report.prefill_tokens
                assert sum(usage.output or 0 for usage in usages) == report.decode_tokens
                told.append(usages)
    assert all(usages == told[0] for usages in told[1:])
    assert sum(bool(usage.reasoning) for usage in told[0]) == 5
    assert sum(bool(usage.reused) for usage in told[0]) == 9


async def test_what_came_back_from_ram_counts_as_restored(tmp_path: Path) -> None:
    node = Node(NodeConfig(data_root=tmp_path, sequences=4, disk=0))
    try:
        names = [f"session-{number}" for number in range(8)]
        for name in (*names, names[1]):
            session = await node.open_session(TINY.ref, SessionConfig(name=name))
            told = [Message("system", f"{name}: {'You are kind and calm. ' * 8}"), Message("user", "Hello!")]
            usage = parts_add_up((await session.turn(told, options=GREEDY).join()).end)
            assert usage.input == len(TINY.prompt(told))
        assert usage.restored
        assert (usage.cache_read, usage.prefilled) == (len(TINY.prompt(told)) - 1, 1)
    finally:
        await node.aclose()


async def test_who_left_early_for_a_stream_is_restored_and_not_evicted(tmp_path: Path) -> None:
    node = Node(NodeConfig(data_root=tmp_path, disk=0))
    try:
        idle, busy = [await node.open_session(TINY.ref, SessionConfig(name=name)) for name in ("idle", "busy")]
        talk = [Message("system", "You are kind and calm. " * 8), Message("user", "Hello!")]
        talk.append((await idle.turn(talk, options=GREEDY).join()).message)
        async with busy.turn([Message("user", "Count to 60.")], options=ENDLESS) as stream, asyncio.timeout(20):
            async for _ in stream:
                seen = {info.name: info for info in await node.sessions()}["idle"]
                if not seen.hot:
                    break
            assert seen.kept == seen.tape > 0
            end = (await idle.turn([*talk, Message("user", "Thanks!")], options=GREEDY).join()).end
        usage = parts_add_up(end)
        assert (usage.cache_read, end.cost().stop, end.cost().dropped) == (seen.tape, None, 0)
        assert usage.restored
    finally:
        await node.aclose()


async def test_a_cancel_in_the_queue_costs_nothing_and_says_so(world: World) -> None:
    session = await world.open()
    async with session.turn([Message("user", world.engine.long_ask)], options=ENDLESS) as running:
        await anext(aiter(running))
        queued = session.turn([Message("user", world.engine.asks[0])], options=GREEDY)
        reading = asyncio.ensure_future(queued.join())
        while (await world.service.status()).active < 2:
            await asyncio.sleep(0.01)
        end = await queued.cancel()
        usage = parts_add_up(end)
        assert (end.finish_reason, usage.input, usage.output, usage.reasoning) == ("cancelled", 0, 0, 0)
        assert (usage.prefill_seconds, usage.decode_seconds) == (0, 0)
        assert (await reading).end == end
    never = session.turn([Message("user", world.engine.asks[0])], options=GREEDY)
    assert (await never.cancel()).usage == usage


async def test_a_cancel_in_the_prompt_tells_what_was_computed(world: World) -> None:
    session = await world.open()
    prompt = [Message("user", world.fresh_name() + " stone" * (LONG[world.engine.name]))]
    async with session.turn(prompt, options=ENDLESS) as stream:
        async for part in stream:
            if isinstance(part, ProgressPart) and part.done:
                break
        end = await stream.cancel()
    usage = parts_add_up(end)
    assert usage.input is not None
    assert (end.finish_reason, usage.output, usage.decode_seconds) == ("cancelled", 0, 0)
    assert part.done <= usage.input < len(world.engine.prompt(prompt))
    assert usage.prefill_seconds
    assert usage.input == (await session.explain()).resident


async def test_a_cancel_in_the_answer_tells_what_was_generated(world: World) -> None:
    ask = [Message("user", world.engine.long_ask)]
    text = ""
    async with (await world.open()).turn(ask, options=ENDLESS) as stream:
        async for part in stream:
            if isinstance(part, TextPart):
                text += part.text
                break
        end = await stream.cancel()
    usage = parts_add_up(end)
    assert (end.finish_reason, usage.input) == ("cancelled", len(world.engine.prompt(ask)))
    assert usage.output is not None
    assert usage.output >= len(world.engine.tokenize(text)) > 0
    assert usage.decode_seconds


async def test_join_after_a_cancel_is_the_cancelled_end(world: World) -> None:
    ask = [Message("user", world.engine.long_ask)]
    session = await world.open()
    read = session.turn(ask, options=ENDLESS)
    async for part in read:
        if isinstance(part, TextPart):
            break
    for stream in (session.turn(ask, options=ENDLESS), read):
        end = await stream.cancel()
        for result in (await stream.join(), await stream.join()):
            assert (result.end, result.text, result.finish_reason) == (end, "", "cancelled")
        await stream.aclose()


async def test_who_joins_while_somebody_cancels_gets_what_there_was(world: World) -> None:
    ask = [Message("user", world.engine.long_ask)]
    answer = (await (await world.open()).turn(ask, options=GREEDY).join()).text
    stream = (await world.open()).turn(ask, options=ENDLESS)
    joining = asyncio.ensure_future(stream.join())
    async with asyncio.timeout(10):
        while not (await world.service.status()).active:
            await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)
    end = await stream.cancel()
    result = await joining
    assert result.end == end
    assert answer.startswith(result.text[: len(answer)])
    await stream.aclose()


async def test_join_after_the_last_part_says_what_is_wrong(world: World) -> None:
    async with (await world.open()).turn([Message("user", world.engine.asks[0])], options=GREEDY) as stream:
        assert [part async for part in stream]
        with pytest.raises(InvalidRequestError, match="read to its end already"):
            await stream.join()
