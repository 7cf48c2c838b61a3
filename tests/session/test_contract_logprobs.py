"""Contract: how probable tokens were, streamed and whole, by every way in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from modeld.errors import InvalidRequestError
from modeld.session import ModelService, SessionConfig
from modeld.types import (
    ChatConfig,
    ChatResult,
    DecodeOptions,
    LogprobsPart,
    Message,
    PartsJoiner,
    StreamPart,
    TextPart,
    TokenLogprob,
)

from .conftest import World

pytestmark = pytest.mark.anyio


async def answer(
    world: World, ask: str, *, tools: Any = (), think: str = "off", service: ModelService | None = None, **options: Any
) -> tuple[list[StreamPart], ChatResult]:
    config = SessionConfig(name=world.fresh_name())
    session = await (service or world.service).open_session(world.engine.ref, config)
    wanted = DecodeOptions(temperature=0, **{"max_tokens": 120, "logprobs": True, "top_logprobs": 3, **options})
    parts, joiner = [], PartsJoiner()
    async with session.turn([Message("user", ask)], tools=tools, think=think, options=wanted) as stream:
        async for part in stream:
            parts.append(part)
            joiner.add(part)
    return parts, joiner.result()


def written(tokens: Sequence[TokenLogprob], *kinds: str) -> str:
    return b"".join(token.data for token in tokens if token.kind in kinds).decode()


def seen(tokens: Sequence[TokenLogprob]) -> list[tuple[int | None, bytes, str | None]]:
    return [(token.token, token.data, token.kind) for token in tokens]


async def test_every_token_of_the_answer_has_its_own(world: World) -> None:
    parts, result = await answer(world, world.engine.asks[0])
    told = [token for part in parts if isinstance(part, LogprobsPart) for token in part.tokens]
    assert tuple(told) == result.logprobs
    assert len(told) == result.usage.output
    assert written(told, "text") == result.text
    assert [token.token for token in told] == world.engine.tokenize(result.text)
    for token in told:
        assert token.logprob <= 0
        assert len(token.top) == 3
        assert [other.logprob for other in token.top] == sorted((o.logprob for o in token.top), reverse=True)
        # It is greedy: the first is what came.
        assert (token.top[0].token, token.top[0].data, token.top[0].logprob) == (
            token.token,
            token.data,
            token.logprob,
        )


async def test_they_come_with_the_text_that_they_are_of(world: World) -> None:
    parts, result = await answer(world, world.engine.long_ask, top_logprobs=0, max_tokens=60)
    kinds = [type(part) for part in parts if isinstance(part, TextPart | LogprobsPart)]
    assert kinds.count(LogprobsPart) > 1
    said = told = 0
    for part in parts:
        if isinstance(part, TextPart):
            said += len(part.text)
        elif isinstance(part, LogprobsPart):
            told += len(written(part.tokens, "text"))
            assert told <= said
    assert told == said == len(result.text)
    assert all(token.top == () for token in result.logprobs)


async def test_who_does_not_ask_hears_nothing(world: World) -> None:
    parts, result = await answer(world, world.engine.asks[0], logprobs=False, top_logprobs=0)
    assert result.logprobs == ()
    assert not any(isinstance(part, LogprobsPart) for part in parts)
    _, asked = await answer(world, world.engine.asks[0])
    assert (asked.text, asked.usage.output) == (result.text, result.usage.output)


async def test_thinking_and_calls_are_told_apart(world: World) -> None:
    _, thought = await answer(world, world.engine.asks[0], think="high")
    assert thought.thinking
    assert written(thought.logprobs, "thinking").strip() == thought.thinking.strip()
    assert written(thought.logprobs, "text").strip() == thought.text.strip()
    assert "</think>" in written(thought.logprobs, "marker", "thinking", "text")
    assert len(thought.logprobs) == thought.usage.output
    _, called = await answer(world, world.engine.tool_ask, tools=(world.engine.tool,))
    assert called.finish_reason == "tool_calls"
    assert len(called.logprobs) == called.usage.output
    (call,) = called.tool_calls
    assert call.function.arguments in written(called.logprobs, "call", "marker")
    assert call.function.arguments not in written(called.logprobs, "text")


async def test_what_a_stop_string_takes_is_not_told(world: World) -> None:
    _, whole = await answer(world, world.engine.asks[0])
    for start in range(1, len(whole.text) - 3, 3):
        stop = whole.text[start : start + 3]
        _, cut = await answer(world, world.engine.asks[0], stop=(stop,))
        assert cut.end.stop == stop
        assert cut.text == whole.text[: whole.text.index(stop)]
        said = written(cut.logprobs, "text")
        assert said.startswith(cut.text)
        # Only the last token can hold some of what was cut; it is told whole.
        kept = written(cut.logprobs[:-1], "text")
        assert len(kept) < len(cut.text) or not cut.text
        assert seen(cut.logprobs) == seen(whole.logprobs[: len(cut.logprobs)])


async def test_they_are_the_same_in_process_and_over_the_wire(world: World) -> None:
    _, far = await answer(world, world.engine.asks[1])
    _, near = await answer(world, world.engine.asks[1], service=world.node)
    assert seen(far.logprobs) == seen(near.logprobs)
    for one, two in zip(far.logprobs, near.logprobs, strict=True):
        # The bound of docs/engines.md: the second session takes over what the first one computed.
        assert one.logprob == pytest.approx(two.logprob, abs=0.05)
        assert [other.logprob for other in one.top] == pytest.approx([other.logprob for other in two.top], abs=0.05)


async def test_a_cancelled_answer_tells_what_it_said(world: World) -> None:
    session = await world.open()
    options = DecodeOptions(temperature=0, logprobs=True)
    joiner = PartsJoiner()
    async with session.turn([Message("user", world.engine.long_ask)], options=options) as stream:
        async for part in stream:
            joiner.add(part)
            if isinstance(part, LogprobsPart):
                break
        end = await stream.cancel()
    joiner.add(end)
    result = joiner.result()
    assert result.finish_reason == "cancelled"
    assert result.logprobs
    assert written(result.logprobs, "text", "thinking", "marker", "call").startswith(result.thinking or result.text)


@pytest.mark.parametrize("kind", [DecodeOptions, ChatConfig])
@pytest.mark.parametrize("wrong", [{"top_logprobs": 1}, {"logprobs": True, "top_logprobs": 21}])
def test_alternatives_beyond_twenty_or_alone_are_refused(kind: type[ChatConfig], wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match="top_logprobs must be between 0 and 20"):
        kind(**wrong)
    assert kind(logprobs=True, top_logprobs=20).top_logprobs == 20
