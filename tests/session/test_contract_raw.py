"""Hazards of text without a template, by every engine and every way in: something is put around it or parsed out of
it, KV of it is not found or is taken for a conversation's, a refusal changes the session."""

from __future__ import annotations

import pytest

from modeld.errors import ContextOverflowError, InvalidRequestError, ModeldError
from modeld.types import DecodeOptions, Message, ProgressPart, TextPart

from .conftest import World

pytestmark = pytest.mark.anyio

GREEDY = DecodeOptions(temperature=0, max_tokens=40)


def rendered(world: World, *messages: Message, think: str = "off") -> str:
    return world.engine.template().render(messages, (), think=think, add_generation_prompt=True)  # type: ignore[arg-type]


async def test_a_prompt_is_taken_as_it_is_and_what_comes_is_text(world: World) -> None:
    asked = Message("user", world.engine.asks[0])
    turn = await (await world.open()).turn([asked], think="off", options=GREEDY).join()
    text = rendered(world, asked)
    session = await world.open()
    for prompt in (text, world.engine.tokenize(text)):
        raw = await session.complete(prompt, options=GREEDY).join()
        assert raw.text.strip() == turn.text.strip()
        assert raw.usage.input == len(world.engine.tokenize(text)) == turn.usage.input
        assert (raw.thinking, raw.tool_calls) == ("", ())
        assert raw.finish_reason == turn.finish_reason


async def test_the_kv_of_a_conversation_serves_the_same_text(world: World) -> None:
    asked = Message("user", world.engine.long_ask)
    turn = await (await world.open()).turn([asked], think="off", options=GREEDY).join()
    raw = await (await world.open()).complete(rendered(world, asked), options=GREEDY).join()
    if world.engine.shares:
        assert raw.receipt.reused == turn.usage.input - 1
    assert raw.receipt.stop is None


async def test_a_text_that_goes_on_computes_what_is_new(world: World) -> None:
    session = await world.open()
    text = rendered(world, Message("user", world.engine.asks[0]))
    first = await session.complete(text, options=GREEDY).join()
    more = f"{text}{first.text} And"
    again = await session.complete(more, options=GREEDY).join()
    assert world.engine.warm(again.receipt) == first.receipt.resident
    assert again.receipt.stop is None
    # Another text says where it left this one.
    other = await session.complete(more.replace(text[:4], "####", 1), options=GREEDY).join()
    assert other.receipt.stop is not None
    assert (other.receipt.stop.reason, other.receipt.stop.message_index) == ("message_changed", 0)


async def test_tags_are_text(world: World) -> None:
    """Of a model that thinks: its tags come as they are, and so does what is between."""
    text = rendered(world, Message("user", world.engine.asks[0]), think="on")
    stream = (await world.open()).complete(text.replace("<think>\n", ""), options=GREEDY)
    parts = [part async for part in stream if not isinstance(part, ProgressPart)][:-1]
    assert parts
    assert {type(part) for part in parts} <= {TextPart}


async def test_decode_goes_on_with_the_text(world: World) -> None:
    options = DecodeOptions(temperature=0, max_tokens=4)
    text = rendered(world, Message("user", world.engine.long_ask))
    whole = await (await world.open()).complete(text, options=DecodeOptions(temperature=0, max_tokens=8)).join()
    session = await world.open()
    first = await session.complete(text, options=options).join()
    rest = await session.decode(options).join()
    assert first.text + rest.text == whole.text
    copy = await session.fork(world.fresh_name())
    assert {type(part) async for part in copy.decode(options)} >= {TextPart}


async def test_probabilities_of_text(world: World) -> None:
    text = rendered(world, Message("user", world.engine.asks[0]))
    options = DecodeOptions(temperature=0, max_tokens=10, logprobs=True, top_logprobs=1)
    raw = await (await world.open()).complete(text, options=options).join()
    assert b"".join(token.data for token in raw.logprobs).decode() == raw.text
    assert {token.kind for token in raw.logprobs} == {"text"}


@pytest.mark.parametrize("prompt", ["", [], [10**8], [-1], b"bytes", 7])
async def test_what_is_no_prompt_is_refused(world: World, prompt: object) -> None:
    session = await world.open()
    with pytest.raises(InvalidRequestError):
        await session.complete(prompt, options=GREEDY).join()  # type: ignore[arg-type]


async def test_what_does_not_fit_is_refused_and_changes_nothing(world: World) -> None:
    session = await world.open()
    await session.complete("abc", options=DecodeOptions(temperature=0, max_tokens=2)).join()
    before = (await session.explain()).tape_hash
    with pytest.raises(ContextOverflowError):
        await session.complete("word " * 60_000, options=GREEDY).join()
    assert (await session.explain()).tape_hash == before
    with pytest.raises(ModeldError):
        await session.complete("abc", options=DecodeOptions(tool_choice="required")).join()
