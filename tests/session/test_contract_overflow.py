"""Contract: beyond the window. Turns leave when the caller says so, whole and for good, and never without a word."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest

from modeld.errors import ContextOverflowError, InvalidRequestError
from modeld.session import ModelRef, SessionConfig
from modeld.session.manifest import token_hash
from modeld.types import ChatResult, DecodeOptions, EndPart, Message, PartsJoiner, ProgressPart, TextPart, WarningPart
from support.engines import ENGINES, EngineCase

from .conftest import WAYS, World, make_world

pytestmark = pytest.mark.anyio

WINDOW = 1024
GREEDY = DecodeOptions(temperature=0, max_tokens=40)
SYSTEM = Message("system", "You are kind.")
SMALL = {
    "fake": replace(ENGINES["fake"], ref=ModelRef(f"fake:window={WINDOW}"), window=WINDOW),
    "llama": replace(ENGINES["llama"], window=WINDOW),
}


@pytest.fixture(scope="module", params=[f"{engine}-{way}" for engine in SMALL for way in WAYS])
async def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, anyio_backend: str
) -> AsyncIterator[World]:
    """As everywhere, with windows that are soon full."""
    engine, _, way = request.param.partition("-")
    async with AsyncExitStack() as stack:
        root = tmp_path_factory.mktemp("root")
        # Fewer would not hold two sessions side by side; the window is set by each session.
        yield await make_world(stack, SMALL[engine], way, root, cells=WINDOW)


def filler(engine: EngineCase, tokens: int) -> str:
    """Words of so many tokens, or a few less."""
    word = "stone "
    per = len(engine.tokenize(word * 100)) / 100
    return word * int(tokens / per)


def talk(engine: EngineCase, turns: int, size: int, ask: str) -> list[Message]:
    """A system message, turns of two times ``size`` tokens, and a question."""
    text = filler(engine, size)
    rounds = [m for n in range(turns) for m in (Message("user", f"{n} {text}"), Message("assistant", text))]
    return [SYSTEM, *rounds, Message("user", ask)]


def kept(messages: list[Message], result: ChatResult) -> list[Message]:
    """What the model was shown, if the receipt is right: of these conversations only the system message stays."""
    return [messages[0], *messages[1 + result.receipt.left :]]


@pytest.mark.parametrize("option", ["shift", "truncate"])
async def test_the_oldest_turns_leave_and_everything_says_so(world: World, option: str) -> None:
    engine = world.engine
    messages = talk(engine, 6, 100, engine.asks[0])
    whole = len(engine.prompt(messages))
    session = await world.open()
    with pytest.raises(ContextOverflowError) as caught:
        await session.turn(messages, options=GREEDY).join()
    assert caught.value.resident + caught.value.additional == whole > WINDOW
    assert (await session.explain()).resident == 0
    result = await session.turn(messages, options=GREEDY, **{option: True}).join()  # type: ignore[arg-type]
    receipt, shown = result.receipt, engine.prompt(kept(messages, result))
    assert receipt.input == len(shown) <= WINDOW * 3 / 4
    # Not one turn more than it takes.
    assert len(engine.prompt([SYSTEM, *messages[receipt.left - 1 :]])) > WINDOW * 3 / 4
    assert (receipt.left % 2, receipt.left_tokens) == (0, whole - len(shown))
    (warning,) = result.warnings
    assert warning.code == {"shift": "context_shifted", "truncate": "context_truncated"}[option]
    assert (
        f"{receipt.left} of the conversation's {len(messages)} messages ({receipt.left_tokens} tokens)"
        in warning.message
    )
    cold = await (await world.open()).turn(kept(messages, result), options=GREEDY).join()
    assert (result.text, result.finish_reason) == (cold.text, cold.finish_reason)
    assert cold.warnings == ()
    # The whole conversation again: the same leaves, and the KV is there.
    more = [*messages, result.message, Message("user", engine.asks[1])]
    second = await session.turn(more, options=GREEDY, **{option: True}).join()  # type: ignore[arg-type]
    assert second.receipt.left == receipt.left
    assert second.receipt.reused >= receipt.resident  # other sessions here have the same beginning
    assert second.receipt.dropped == 0
    assert [w.code for w in second.warnings] == [warning.code]
    with pytest.raises(ContextOverflowError):
        await session.turn(more, options=GREEDY).join()


async def test_the_warning_comes_before_any_text(world: World) -> None:
    session = await world.open(shift=True)
    messages = talk(world.engine, 6, 100, world.engine.asks[0])
    async with session.turn(messages, options=GREEDY) as stream:
        parts = [part async for part in stream]
    kinds = [type(part) for part in parts if not isinstance(part, ProgressPart)]
    assert kinds[0] is WarningPart
    assert set(kinds[1:-1]) == {TextPart}
    assert kinds[-1] is EndPart
    joiner = PartsJoiner()
    for part in parts:
        joiner.add(part)
    again = await (await world.open(shift=True)).turn(messages, options=GREEDY).join()
    whole = joiner.result()
    assert (whole.message, whole.warnings, whole.usage.output) == (again.message, again.warnings, again.usage.output)


async def test_thinking_that_the_template_drops_leaves_the_same_turns(world: World) -> None:
    session = await world.open(shift=True)
    messages = talk(world.engine, 6, 100, world.engine.asks[0])
    first = await session.turn(messages, think="high", options=GREEDY).join()
    assert first.message.thinking
    assert first.receipt.left > 0
    more = [*messages, first.message, Message("user", world.engine.asks[1])]
    second = await session.turn(more, think="high", options=GREEDY).join()
    assert second.receipt.left == first.receipt.left
    assert second.receipt.stop is not None
    assert (second.receipt.stop.reason, second.receipt.stop.message_index) == ("thinking_dropped", len(messages))
    # All but the answer with its thought is there.
    assert second.receipt.reused >= len(world.engine.prompt(kept(messages, first)))


async def test_an_answer_that_fills_the_window_goes_on_without_the_oldest_turns(world: World) -> None:
    engine = world.engine
    long = {"fake": "!count 70", "llama": "Count to 30."}[engine.name]
    size = (WINDOW - len(engine.prompt([SYSTEM, Message("user", long)])) - 50) // 8 - 9
    messages = talk(engine, 4, size, long)
    whole = len(engine.prompt(messages))
    assert WINDOW - 50 - 70 < whole < WINDOW - 20
    session = await world.open(shift=True)
    result = await session.turn(messages, options=DecodeOptions(temperature=0, max_tokens=250)).join()
    if engine.name == "fake":
        assert (result.text, result.finish_reason) == (" ".join(map(str, range(1, 71))), "stop")
    else:
        # Between all the stones it does not count to the end.
        assert (result.usage.output, result.finish_reason) == (250, "length")
    assert [w.code for w in result.warnings] == ["context_shifted"]
    receipt, shown, answer = result.receipt, engine.prompt(kept(messages, result)), engine.tokenize(result.text)
    assert receipt.left > 0
    assert result.usage.output == len(answer)
    assert receipt.input == result.usage.input == whole + len(shown) + (WINDOW - whole)
    assert receipt.left_tokens == whole - len(shown)
    report = await session.explain()
    assert (report.resident, report.tape_hash) == (receipt.resident, token_hash((shown + answer)[: receipt.resident]))
    second = await session.turn([*messages, result.message, Message("user", engine.asks[0])], options=GREEDY).join()
    assert (second.receipt.left, second.receipt.reused) == (receipt.left, receipt.resident)
    # Who did not ask for it gets what there is room for.
    plain = await (await world.open()).turn(messages, options=DecodeOptions(temperature=0, max_tokens=400)).join()
    once = await (await world.open(truncate=True)).turn(messages, options=DecodeOptions(temperature=0)).join()
    assert plain.finish_reason == once.finish_reason == "context_full"
    assert plain.warnings == once.warnings == ()
    assert plain.text == once.text
    assert plain.usage.output == WINDOW - whole + 1


async def test_both_are_refused_wherever_they_come_from(world: World) -> None:
    with pytest.raises(InvalidRequestError, match="exclude each other"):
        SessionConfig(shift=True, truncate=True)
    small = [Message("user", world.engine.asks[0])]
    session = await world.open(shift=True)
    for some in ({"truncate": True}, {"shift": True, "truncate": True}):
        with pytest.raises(InvalidRequestError, match="exclude each other"):
            await session.turn(small, options=GREEDY, **some).join()
        with pytest.raises(InvalidRequestError, match="exclude each other"):
            await session.prefill_suffix(small, **some)
    assert (await session.explain()).resident == 0
    assert (await session.turn(small, options=GREEDY, shift=False, truncate=True).join()).warnings == ()


async def test_the_call_has_the_last_word(world: World) -> None:
    messages = talk(world.engine, 6, 100, world.engine.asks[0])
    session = await world.open(truncate=True)
    with pytest.raises(ContextOverflowError):
        await session.turn(messages, options=GREEDY, truncate=False).join()
    result = await session.turn(messages, options=GREEDY).join()
    assert [w.code for w in result.warnings] == ["context_truncated"]
    again = await world.open(session.handle.name)
    with pytest.raises(ContextOverflowError):
        await again.turn(messages, options=GREEDY).join()


async def test_what_does_not_fit_without_all_that_may_leave_changes_nothing(world: World) -> None:
    session = await world.open(shift=True)
    messages = talk(world.engine, 6, 100, world.engine.asks[0])
    first = await session.turn(messages, options=GREEDY).join()
    huge = [*messages, first.message, Message("user", filler(world.engine, WINDOW))]
    with pytest.raises(ContextOverflowError, match=f"without the {len(huge) - 2} messages that can leave") as caught:
        await session.turn(huge, options=GREEDY).join()
    assert caught.value.resident + caught.value.additional == len(world.engine.prompt([SYSTEM, huge[-1]]))
    report = await session.explain()
    assert report.resident == first.receipt.resident
    again = await session.turn(messages, options=GREEDY).join()
    assert (again.text, again.receipt.left, again.receipt.prefilled) == (first.text, first.receipt.left, 1)


@pytest.mark.parametrize("way", ["shift", "truncate"])
async def test_a_newest_turn_that_is_too_long_alone_is_told_of_as_what_stays(world: World, way: str) -> None:
    """Who asked for turns to leave has done what the text without it says."""
    messages = [SYSTEM, Message("user", filler(world.engine, WINDOW))]
    session = await world.open()
    with pytest.raises(ContextOverflowError) as plain:
        await session.turn(messages, options=GREEDY).join()
    with pytest.raises(ContextOverflowError, match=f"{way} lets older turns leave.*newest turn always stay") as caught:
        await session.turn(messages, options=GREEDY, **{way: True}).join()  # type: ignore[arg-type]
    assert caught.value.details == plain.value.details
    assert "always stay" not in plain.value.message


async def test_a_stable_prefix_stays_and_the_statuses_tell(world: World) -> None:
    engine = world.engine
    example = [SYSTEM, Message("user", "An example."), Message("assistant", "A good answer.")]
    rest = talk(engine, 6, 100, engine.asks[0])[1:]
    session = await world.open()
    prefix = await session.ensure_prefix(example)
    with pytest.raises(ContextOverflowError) as caught:
        await session.prefill_suffix(rest)
    assert caught.value.stage == "suffix"
    status = await session.prefill_suffix(rest, truncate=True)
    left = status.receipt.left
    assert left > 0
    shown = engine.prompt([*example, *rest[left:]])
    assert status.receipt.input == len(shown) == status.prefix_tokens + status.suffix_tokens
    assert status.prefix_tokens == prefix.prefix_tokens <= status.receipt.reused
    assert status.receipt.left_tokens == len(engine.prompt([*example, *rest])) - len(shown)
    answer = await session.decode(GREEDY).join()
    assert answer.receipt.left == left
    more = [answer.message, Message("user", engine.asks[1])]
    second = await session.prefill_suffix(more, truncate=True)
    assert (second.receipt.left, second.receipt.reused) == (left, answer.receipt.resident)
    # A turn of the same conversation keeps the same.
    again = await session.turn([*example, *rest, *more], options=GREEDY, truncate=True).join()
    assert (again.receipt.left, again.receipt.prefilled) == (left, 1)


async def test_a_branch_and_a_snapshot_lose_the_same_turns(world: World) -> None:
    session = await world.open(shift=True)
    messages = talk(world.engine, 6, 100, world.engine.asks[0])
    first = await session.turn(messages, options=GREEDY).join()
    saved = await session.snapshot()
    more = [*messages, first.message, Message("user", world.engine.asks[1])]
    child = await session.fork(world.fresh_name())
    restored = await world.open(shift=True)
    await restored.restore(saved.id)
    for other in (child, restored, session):
        result = await other.turn(more, options=GREEDY).join()
        assert result.receipt.left == first.receipt.left
        assert result.receipt.reused >= first.receipt.resident


@pytest.mark.parametrize("name", SMALL)
async def test_fifty_turns_beyond_the_window_cost_little_more_than_what_is_new(
    name: str, tmp_path_factory: pytest.TempPathFactory, anyio_backend: str
) -> None:
    """Each turn sends the whole conversation. Without a memory of what left, each would compute three quarters anew."""
    engine = SMALL[name]
    messages = talk(engine, 6, 100, engine.asks[0])
    async with AsyncExitStack() as stack:
        world = await make_world(stack, engine, "in-process", tmp_path_factory.mktemp("root"), cells=WINDOW)
        session = await world.open(shift=True)
        first = await session.turn(messages, options=GREEDY).join()
        new = prefilled = cuts = 0
        left, resident = first.receipt.left, first.receipt.resident
        for turn in range(50):
            messages += [first.message, Message("user", f"{turn} {filler(engine, 30)}")]
            first = await session.turn(messages, options=DecodeOptions(temperature=0, max_tokens=30)).join()
            receipt = first.receipt
            assert receipt.left >= left
            if receipt.left == left:
                assert receipt.reused == resident, turn
                new += receipt.prefilled
            cuts += receipt.left != left
            prefilled += receipt.prefilled
            left, resident = receipt.left, receipt.resident
            assert first.warnings
        # What came in, answers too, and what each of the tokens cost again: SHARE / (1 - SHARE).
        came = 50 * (new / (50 - cuts) + 30)
        assert prefilled <= 4 * came, (prefilled, came)
        assert 3 <= cuts <= came / (WINDOW / 4) + 2
