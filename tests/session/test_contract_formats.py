"""Contract: an answer in a format, a call that is forced, and how each is refused."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest

from modeld.errors import InvalidRequestError, NotSupportedError
from modeld.session import Session
from modeld.types import (
    ChatResult,
    DecodeOptions,
    EndPart,
    FunctionTool,
    Message,
    PartsJoiner,
    ResponseFormat,
    TextPart,
    Tool,
)

from .conftest import World

pytestmark = pytest.mark.anyio

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "sunny": {"type": "boolean"}},
    "required": ["city", "sunny"],
}
FORMAT = ResponseFormat(schema=SCHEMA)


async def answer(
    session: Session, ask: str, *, think: str = "auto", tools: tuple[Tool, ...] = (), **options: Any
) -> ChatResult:
    wanted = DecodeOptions(temperature=0, max_tokens=400, **options)
    return await session.turn([Message("user", ask)], think=think, tools=tools, options=wanted).join()


def fits(text: str) -> bool:
    value = json.loads(text)
    return list(value) == ["city", "sunny"] and len(value["city"]) <= 12 and isinstance(value["sunny"], bool)


@pytest.mark.parametrize("think", ["off", "high"])
async def test_an_answer_fits_its_schema_and_thinking_is_free(world: World, think: str) -> None:
    session = await world.open()
    result = await answer(session, world.engine.asks[0], think=think, response_format=FORMAT)
    assert result.finish_reason == "stop"
    assert fits(result.text)
    assert bool(result.thinking) == (think == "high")
    # The next turn is a usual one, and finds the answer on the tape.
    talk = [Message("user", world.engine.asks[0]), result.message, Message("user", world.engine.asks[1])]
    after = await session.turn(talk, think=think, options=DecodeOptions(temperature=0, max_tokens=400)).join()
    if world.engine.shares and think == "off":
        assert after.receipt.reused >= result.receipt.resident - len(world.engine.tokenize(result.text))


@pytest.mark.parametrize(
    ("wanted", "shape"),
    [
        (ResponseFormat(regex="[ab]{3,5}c"), "[ab]{3,5}c"),
        (
            ResponseFormat(choice=("<think>never</think>", "<tool_call> is a tag")),
            "<think>never</think>|<tool_call> is a tag",
        ),
        (ResponseFormat(ebnf='root ::= item ("," item)?\nitem ::= [xyz] [0-9]'), "[xyz][0-9](,[xyz][0-9])?"),
        (ResponseFormat(schema={"enum": ["a <think> b", 7]}), '"a <think> b"|7'),
    ],
    ids=lambda value: value.kind if isinstance(value, ResponseFormat) else "",
)
@pytest.mark.parametrize("think", ["off", "high"])
async def test_text_fits_whatever_tags_it_spells(world: World, wanted: ResponseFormat, shape: str, think: str) -> None:
    result = await answer(await world.open(), world.engine.asks[0], think=think, response_format=wanted)
    assert re.fullmatch(shape, result.text), result.text
    assert (result.finish_reason, result.tool_calls, result.errors) == ("stop", (), ())


async def test_a_stream_is_the_whole_and_a_stop_string_that_lurks_changes_nothing(world: World) -> None:
    options = DecodeOptions(temperature=0, max_tokens=400, response_format=FORMAT)
    ask = [Message("user", world.engine.asks[0])]
    whole = await (await world.open()).turn(ask, think="high", options=options).join()
    held = DecodeOptions(temperature=0, max_tokens=400, response_format=FORMAT, stop=("</think>\n\n\n\n#", "\n{!"))
    joiner = PartsJoiner()
    async with (await world.open()).turn(ask, think="high", options=held) as stream:
        async for part in stream:
            joiner.add(part)
    joined = joiner.result()
    assert (joined.text.strip(), joined.thinking) == (whole.text.strip(), whole.thinking)


async def test_what_is_cut_says_so_and_does_not_go_on(world: World) -> None:
    session = await world.open()
    options = DecodeOptions(temperature=0, max_tokens=3, response_format=FORMAT)
    result = await session.turn([Message("user", world.engine.asks[0])], options=options).join()
    assert (result.finish_reason, result.usage.output) == ("length", 3)
    with pytest.raises(InvalidRequestError, match="max_tokens"):
        await session.decode(options).join()
    assert (await session.decode(DecodeOptions(temperature=0, max_tokens=3)).join()).usage.output


async def test_decode_after_a_suffix_takes_a_format(world: World) -> None:
    session = await world.open()
    await session.prefill_suffix([Message("user", world.engine.asks[0])])
    assert fits((await session.decode(DecodeOptions(temperature=0, response_format=FORMAT)).join()).text)


async def test_a_cancelled_one_leaves_the_session_usable(world: World) -> None:
    session = await world.open()
    endless = ResponseFormat(schema={"type": "array", "items": {"type": "integer"}, "minItems": 5000})
    options = DecodeOptions(temperature=0, response_format=endless)
    async with session.turn([Message("user", world.engine.asks[0])], options=options) as stream:
        async for part in stream:
            if isinstance(part, TextPart):
                break
        end = await stream.cancel()
    assert isinstance(end, EndPart)
    assert end.finish_reason == "cancelled"
    assert fits((await answer(session, world.engine.asks[0], response_format=FORMAT)).text)


@pytest.mark.parametrize(
    ("wanted", "error", "pointer"),
    [
        (ResponseFormat(schema={"properties": {"a": {"not": {}}}}), NotSupportedError, "/properties/a/not"),
        (ResponseFormat(schema={"type": "integer", "minimum": 2, "maximum": 1}), InvalidRequestError, "/minimum"),
        (ResponseFormat(schema={"type": "string", "pattern": "^a$", "minLength": 2}), InvalidRequestError, None),
        (ResponseFormat(regex="(?=a)"), NotSupportedError, None),
        (ResponseFormat(ebnf="root ::= nothing"), InvalidRequestError, None),
        (ResponseFormat(ebnf="root ::= (" + "(" * 9000), InvalidRequestError, None),
    ],
)
async def test_what_cannot_be_held_is_refused_before_anything_changes(
    world: World, wanted: ResponseFormat, error: type[Exception], pointer: str | None
) -> None:
    session = await world.open()
    first = await answer(session, world.engine.asks[0])
    async with asyncio.timeout(5):
        with pytest.raises(error) as caught:
            await answer(session, world.engine.asks[1], response_format=wanted)
    assert getattr(caught.value, "pointer", None) == pointer
    assert (await session.explain()).resident == first.receipt.resident


@pytest.mark.parametrize("choice", ["required", "get_weather"])
@pytest.mark.parametrize("think", ["off", "high"])
async def test_a_call_is_forced_and_its_arguments_fit(world: World, choice: str, think: str) -> None:
    other = Tool(FunctionTool("zzz", "", {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}}))
    tools = (world.engine.tool, other)
    options = {"tool_choice": choice, "parallel_tool_calls": False}
    result = await answer(await world.open(), world.engine.asks[0], think=think, tools=tools, **options)
    (call,) = result.tool_calls
    assert (result.finish_reason, result.text) == ("tool_calls", "")
    arguments = json.loads(call.function.arguments)
    if choice == "get_weather" or call.function.name == "get_weather":
        assert call.function.name == "get_weather"
        assert list(arguments) == ["city"]
        assert isinstance(arguments["city"], str)
    else:
        assert set(arguments) <= {"n"}


async def test_arguments_of_a_free_call_fit_from_the_trigger_on(world: World) -> None:
    schema = {"type": "object", "properties": {"city": {"enum": ["Rome", "Bonn"]}}, "required": ["city"]}
    tool = Tool(FunctionTool("get_weather", "Get the weather in a city.", schema))
    result = await answer(await world.open(), world.engine.tool_ask, tools=(tool,))
    (call,) = result.tool_calls
    assert json.loads(call.function.arguments)["city"] in ("Rome", "Bonn")
    # A tool that is not strict is what the model makes of it.
    loose = Tool(FunctionTool("get_weather", "Get the weather in a city.", schema, strict=False))
    (call,) = (await answer(await world.open(), world.engine.tool_ask, tools=(loose,))).tool_calls
    assert json.loads(call.function.arguments)["city"] == "Oslo"


async def test_a_tool_beyond_the_subset_is_told_or_refused(world: World) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "minProperties": 1}
    told = await answer(
        await world.open(), world.engine.tool_ask, tools=(Tool(FunctionTool("get_weather", "", schema)),)
    )
    assert [warning.code for warning in told.warnings] == ["tools_not_held"]
    assert "/minProperties" in told.warnings[0].message
    strict = Tool(FunctionTool("get_weather", "", schema, strict=True))
    with pytest.raises(NotSupportedError) as caught:
        await answer(await world.open(), world.engine.tool_ask, tools=(strict,))
    assert caught.value.details["pointer"] == "/minProperties"


async def test_tools_beside_a_format_may_be_called_or_not(world: World) -> None:
    tools = (world.engine.tool,)
    called = await answer(await world.open(), world.engine.tool_ask, tools=tools, response_format=FORMAT)
    if called.finish_reason == "tool_calls":
        assert called.text == ""
    else:
        assert fits(called.text)
    answered = await answer(await world.open(), world.engine.asks[0], tools=tools, response_format=FORMAT)
    assert answered.tool_calls or fits(answered.text)


async def test_a_choice_without_its_tool_is_refused(world: World) -> None:
    for options in ({"tool_choice": "required"}, {"tool_choice": "nobody"}):
        with pytest.raises(InvalidRequestError, match="tool"):
            await answer(await world.open(), world.engine.asks[0], **options)
    with pytest.raises(InvalidRequestError, match="nobody"):
        await answer(await world.open(), world.engine.asks[0], tools=(world.engine.tool,), tool_choice="nobody")


async def test_many_formats_at_once_do_not_mix(world: World) -> None:
    async def one(letter: str) -> str:
        wanted = ResponseFormat(regex=f"{letter}{{4,9}}")
        return (await answer(await world.open(), world.engine.asks[0], response_format=wanted)).text

    texts = await asyncio.gather(*map(one, "abcdefgh"))
    assert [set(text) for text in texts] == [{letter} for letter in "abcdefgh"]
