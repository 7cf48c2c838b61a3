"""Hazard: an answer that is another one when it is streamed, or by another way in. On a model that can do things."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from msgspec import structs

from modeld.types import (
    ChatResult,
    DecodeOptions,
    EndPart,
    Message,
    PartsJoiner,
    ProgressPart,
    StreamPart,
    TextPart,
    ThinkingPart,
)
from support.engines import ENGINES, WEATHER
from support.traces import NAMES

from .conftest import WAYS, World, make_world

pytestmark = pytest.mark.anyio

GREEDY = DecodeOptions(temperature=0, max_tokens=400)
TOOLS = (WEATHER,)
RESULTS = {"Oslo": (21, "sunny"), "Rome": (5, "rainy")}
COUNTED = " ".join(map(str, range(1, 41)))
VOCABULARY = Path(__file__).parents[1] / "data" / "tiny-hf" / "tokenizer.json"


@pytest.fixture(scope="module", params=WAYS)
async def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, anyio_backend: str
) -> AsyncIterator[World]:
    """Tiny, each way in."""
    async with AsyncExitStack() as stack:
        yield await make_world(stack, ENGINES["llama"], request.param, tmp_path_factory.mktemp("root"), disk=0)


def user(text: str) -> Message:
    return Message("user", text)


def told(result: ChatResult) -> ChatResult:
    """All but what time and the node's memory decide."""
    kept, took = ("cache_read", "reused", "restored", "prefilled"), ("prefill_seconds", "decode_seconds")
    usage = structs.replace(result.usage, **dict.fromkeys((*kept, *took)))
    return structs.replace(result, end=structs.replace(result.end, usage=usage, receipt=None))


async def parts_of(world: World, messages: list[Message], **asked: object) -> list[StreamPart]:
    async with (await world.open()).turn(messages, **{"options": GREEDY, **asked}) as stream:  # type: ignore[arg-type]
        return [part async for part in stream]


async def both(world: World, messages: list[Message], **asked: object) -> ChatResult:
    """The answer, once as a whole and once from its parts."""
    whole = await (await world.open()).turn(messages, **{"options": GREEDY, **asked}).join()  # type: ignore[arg-type]
    joiner = PartsJoiner()
    for part in await parts_of(world, messages, **asked):
        joiner.add(part)
    assert told(joiner.result()) == told(whole)
    return whole


def cities(result: ChatResult) -> list[str]:
    """Of the calls, which are all well formed."""
    assert (result.finish_reason, result.text, result.errors) == ("tool_calls", "", ())
    assert {call.function.name for call in result.tool_calls} == {"get_weather"}
    assert len({call.id for call in result.tool_calls}) == len(result.tool_calls)
    arguments = [json.loads(call.function.arguments) for call in result.tool_calls]
    assert all(one.keys() == {"city"} for one in arguments)
    return [one["city"] for one in arguments]


@pytest.mark.parametrize("think", ["off", "high"])
@pytest.mark.parametrize("city", ["Oslo", "Paris", "Lima"])
async def test_the_weather_in_a_city_is_one_call_for_it(world: World, city: str, think: str) -> None:
    result = await both(world, [user(f"What is the weather in {city}?")], tools=TOOLS, think=think)
    assert cities(result) == [city]
    assert bool(result.thinking) == (think == "high")


@pytest.mark.parametrize("think", ["off", "high"])
@pytest.mark.parametrize("asked", [["Oslo"], ["Oslo", "Rome"]])
async def test_each_city_is_a_call_and_its_result_is_in_the_answer(world: World, asked: list[str], think: str) -> None:
    talk = [user(f"What is the weather in {' and '.join(asked)}?")]
    called = await both(world, talk, tools=TOOLS, think=think)
    assert cities(called) == asked
    talk.append(called.message)
    for city, call in zip(asked, called.tool_calls, strict=True):
        result = dict(zip(("temp", "sky"), RESULTS[city], strict=True))
        talk.append(Message("tool", json.dumps(result), tool_call_id=call.id))
    answered = await both(world, talk, tools=TOOLS, think=think)
    sentences = [f"It is {RESULTS[city][0]} degrees and {RESULTS[city][1]} in {city}." for city in asked]
    assert (answered.text, answered.finish_reason, answered.tool_calls) == (" ".join(sentences), "stop", ())


async def test_without_the_tool_there_is_no_call(world: World) -> None:
    result = await both(world, [user("What is the weather in Oslo?")])
    assert (result.text, result.tool_calls, result.finish_reason) == ("I cannot check the weather.", (), "stop")


async def test_thinking_comes_first_where_it_is_on_and_not_at_all_where_it_is_off(world: World) -> None:
    ask = [user("Count to 40.")]
    kinds = [
        type(part) for part in await parts_of(world, ask, think="high") if not isinstance(part, ProgressPart | EndPart)
    ]
    first = kinds.index(TextPart)
    assert first > 0
    assert set(kinds[:first]) == {ThinkingPart}
    assert set(kinds[first:]) == {TextPart}
    on, off = [await both(world, ask, think=think) for think in ("high", "off")]
    assert (on.text, off.text) == (COUNTED, COUNTED)
    assert on.thinking.startswith("I count")
    assert (off.thinking, off.usage.reasoning) == ("", 0)


@pytest.mark.parametrize("think", ["off", "high"])
async def test_a_stop_string_ends_the_count(world: World, think: str) -> None:
    options = structs.replace(GREEDY, stop=("never", " 21"))
    result = await both(world, [user("Count to 40.")], think=think, options=options)
    assert (result.text, result.finish_reason, result.end.stop) == (COUNTED.partition(" 21")[0], "stop", " 21")


async def test_a_cancel_ends_the_count_where_it_is(world: World) -> None:
    text = ""
    async with (await world.open()).turn([user("Count to 40.")], options=GREEDY) as stream:
        async for part in stream:
            if isinstance(part, TextPart):
                text += part.text
                break
        end = await stream.cancel()
    assert end.finish_reason in ("cancelled", "stop"), "all of it may have come in the first frame"
    assert text
    assert COUNTED.startswith(text)
    assert end.usage.output is not None
    assert len(world.engine.tokenize(text)) <= end.usage.output <= len(world.engine.tokenize(COUNTED))


def notes(world: World) -> tuple[dict[str, int], Message, Message]:
    """Values by name, some 1,400 tokens of notes with them among the last 40 lines, and the notes without those.

    Tiny forgets what stands more than some 300 tokens back.
    """
    rnd = random.Random(3)
    vocabulary = json.loads(VOCABULARY.read_text())["model"]["vocab"]
    words = sorted(token[1:] for token in vocabulary if token.startswith("\N{LATIN CAPITAL LETTER G WITH DOT ABOVE}"))
    others = [word for word in words if word.isalpha() and word.islower() and len(word) > 3 and word not in NAMES]
    rnd.shuffle(others)
    lines = [f"{word} is {rnd.randrange(100, 300)}" for word in others]
    values = {name: rnd.randrange(100, 300) for name in NAMES}
    last = [*(f"{name} is {value}" for name, value in values.items()), *lines[:28]]
    rnd.shuffle(last)
    first: list[str] = []
    while len(world.engine.tokenize("\n".join([*first, *last]))) < 1400:
        first.append(lines[28 + len(first)])
    return values, *(Message("system", "\n".join(["Notes:", *some])) for some in ([*first, *last], first))


async def test_notes_are_recalled_in_a_context_of_1400_tokens(world: World) -> None:
    values, told_them, told_others = notes(world)
    right = 0
    for name, value in values.items():
        ask = user(f"What is {name}?")
        result = await both(world, [told_them, ask])
        assert result.usage.input == len(world.engine.prompt([told_them, ask])) >= 1400
        right += result.text == f"{name} is {value}."
        # Who was not told cannot say it.
        assert (await both(world, [told_others, ask])).text != f"{name} is {value}."
    assert right >= len(values) * 2 // 3, right
