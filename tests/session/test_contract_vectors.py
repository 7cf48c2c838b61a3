"""Hazards of calls beside a warm session, by every engine and every way in: it is evicted, texts get each other's
vectors, something is cut without a word, tokens are counted another way than a turn counts them."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest

from modeld.errors import ContextOverflowError, InvalidRequestError, ModeldError, NotSupportedError
from modeld.session import EmbeddedItem, Embeddings
from modeld.types import DecodeOptions, Message

from .conftest import World

pytestmark = pytest.mark.anyio

GREEDY = DecodeOptions(temperature=0, max_tokens=40)
SHORT = 64
"""Tokens of the longest input, where a test cuts some."""


def apart(one: Sequence[float], two: Sequence[float]) -> float:
    """1 less the cosine."""
    product = sum(a * b for a, b in zip(one, two, strict=True))
    return 1 - product / math.hypot(*one) / math.hypot(*two)


@pytest.fixture
def vectors(world: World) -> None:
    """For tests of vectors: an engine may say that it makes none."""
    if not world.engine.embeds:
        pytest.skip("its description says embeds=False")


async def embed(world: World, inputs: Any, **options: Any) -> Embeddings:
    return await world.service.embed(world.engine.ref, inputs, **options)


async def test_embedding_and_counting_beside_a_warm_session_evict_nothing(world: World) -> None:
    session = await world.open()
    asked = [Message("user", world.engine.asks[0])]
    first = await session.turn(asked, options=GREEDY).join()
    before = await world.service.status()
    if world.engine.embeds:
        await embed(world, ["one", "two"])
    await world.service.tokenize(world.engine.ref, "word " * 60_000)
    await world.service.tokenize("fake:window=512", "another model")
    await world.service.embed("fake:window=512", ["another model"])
    after = await world.service.status()
    assert (after.generation, after.digest, after.state) == (before.generation, before.digest, "ready")
    assert {side.task for side in after.sides} == {"embed", "vocabulary"}
    again = await session.turn([*asked, first.message, Message("user", "More.")], options=GREEDY).join()
    if world.engine.shares:
        assert (again.receipt.reused, again.receipt.restored, again.receipt.stop) == (first.receipt.resident, 0, None)
    else:
        assert world.engine.warm(again.receipt) > 0
    assert not again.receipt.rebound


async def test_a_thousand_texts_get_the_vectors_they_get_alone(world: World, vectors: None) -> None:
    # The way in changes nothing of the batches, and a state is computed for one text at a time.
    count = 1000 if world.way == "in-process" and world.engine.shares else 100
    draw = random.Random(5)
    words = [*world.engine.asks, "a", "river", "stone", "\N{SNOWMAN}"]
    texts = [" ".join(draw.choices(words, k=draw.randint(1, 9))) for _ in range(count)]
    whole = await embed(world, texts)
    found = whole.vectors
    assert len(found) == len(whole.items) == count
    assert {len(vector) for vector in found} == {whole.dimensions}
    order = draw.sample(range(count), count)
    shuffled = (await embed(world, [texts[at] for at in order])).vectors
    assert max(apart(found[at], shuffled[n]) for n, at in enumerate(order)) < 1e-5
    for at in order[:40]:
        alone = await embed(world, [texts[at]])
        assert apart(alone.vectors[0], found[at]) < 1e-5
        assert alone.items == (whole.items[at],)
    counts = [len(world.engine.tokenize(text)) for text in texts]
    assert [item.tokens for item in whole.items] == [item.used for item in whole.items] == counts
    assert (whole.usage.input, whole.usage.output, whole.usage.source) == (sum(counts), 0, "counted")


async def test_length_one_is_the_default_and_dimensions_are_the_first(world: World, vectors: None) -> None:
    raw = await embed(world, ["What is this?"], normalize=False)
    unit = await embed(world, ["What is this?"])
    assert (raw.normalized, unit.normalized, unit.pooling) == (False, True, "mean")
    assert math.hypot(*unit.vectors[0]) == pytest.approx(1, abs=1e-5)
    length = math.hypot(*raw.vectors[0])
    assert unit.vectors[0] == pytest.approx([value / length for value in raw.vectors[0]], abs=1e-5)
    first = await embed(world, ["What is this?"], dimensions=5)
    part = raw.vectors[0][:5]
    assert first.dimensions == 5
    assert first.vectors[0] == pytest.approx([value / math.hypot(*part) for value in part], abs=1e-5)
    for wrong in (0, -1, raw.dimensions + 1):
        with pytest.raises(InvalidRequestError, match="dimensions"):
            await embed(world, ["x"], dimensions=wrong)


async def test_what_is_too_long_is_an_error_or_cut_as_the_caller_says(world: World, vectors: None) -> None:
    await world.service.unload()
    text = " ".join(f"item {n}" for n in range(60))
    ids = world.engine.tokenize(text)
    assert len(ids) > 3 * SHORT
    with pytest.raises(ContextOverflowError) as caught:
        await embed(world, ["fits", text], context=SHORT)
    assert (caught.value.index, caught.value.additional, caught.value.window) == (1, len(ids), SHORT)
    cut = await embed(world, ["fits", text], context=SHORT, overflow="truncate")
    assert cut.items[1] == EmbeddedItem(tokens=len(ids), used=SHORT)
    assert (cut.items[0].truncated, cut.items[1].truncated) == (False, True)
    beginning = await embed(world, [ids[:SHORT]], context=SHORT)
    assert apart(cut.vectors[1], beginning.vectors[0]) < 1e-5
    chunked = await embed(world, [text], context=SHORT, overflow="chunk", normalize=False)
    (item,) = chunked.items
    assert (item.tokens, item.used, item.truncated) == (len(ids), len(ids), False)
    assert item.chunks == -(-len(ids) // SHORT)
    cuts = [len(ids) * n // item.chunks for n in range(item.chunks + 1)]
    pieces = [ids[start:end] for start, end in pairwise(cuts)]
    parts = (await embed(world, pieces, context=SHORT, normalize=False)).vectors
    mean = [
        sum(value * len(piece) for value, piece in zip(row, pieces, strict=True)) / len(ids)
        for row in zip(*parts, strict=True)
    ]
    assert chunked.vectors[0] == pytest.approx(mean, abs=1e-4)
    # A larger one is asked for, and had; who asks for less is served by it.
    whole = await embed(world, [text], context=2 * len(ids))
    assert whole.items == (EmbeddedItem(tokens=len(ids), used=len(ids)),)


HOSTILE: list[tuple[Any, dict[str, Any], str]] = [
    ([], {}, "nothing to embed"),
    (["fine", ""], {}, "input 1 is empty"),
    (["fine", []], {}, "input 1 is empty"),
    ("one text", {}, "a list of texts"),
    ([b"bytes"], {}, "bytes"),
    ([3], {}, "int"),
    (["\ud800"], {}, ""),
    ([[0, -1]], {}, "input 0"),
    ([[2**31 - 1]], {}, "input 0"),
    ([[10**30]], {}, ""),
    ([["text"]], {}, ""),
    (["x" * (16 * 2**20 + 1)], {}, "16777216"),
    (("x" for _ in range(10**6)), {}, "16384"),
    (["x"], {"overflow": "spill"}, "overflow"),
    (["x"], {"context": -1}, "context"),
    (["x"], {"context": 2**40}, "context"),
    (["x"], {"normalize": "yes"}, ""),
]


@pytest.mark.parametrize(("inputs", "options", "said"), HOSTILE, ids=range(len(HOSTILE)))
async def test_hostile_input_is_refused_and_changes_nothing(
    world: World, vectors: None, inputs: Any, options: dict[str, Any], said: str
) -> None:
    before = await embed(world, ["still here"])
    if not isinstance(inputs, list | str):
        inputs = ("x" for _ in range(10**6))
    with pytest.raises(InvalidRequestError) as caught:
        await embed(world, inputs, **options)
    assert said in caught.value.message
    assert (await embed(world, ["still here"])).data == before.data


async def test_an_engine_without_vectors_says_so_before_it_is_asked(world: World) -> None:
    description = await world.service.describe(world.engine.ref)
    assert description.embeds == world.engine.embeds
    if not world.engine.embeds:
        with pytest.raises(NotSupportedError, match="ranks nothing"):
            await embed(world, ["x"])
        for wrong in ([], [""], "text", [3]):
            with pytest.raises(InvalidRequestError):
                await embed(world, wrong)


async def test_a_model_that_does_not_rank_says_so(world: World) -> None:
    with pytest.raises(NotSupportedError, match="ranks nothing"):
        await world.service.rerank(world.engine.ref, "query", ["document"])
    for query, documents in (("", ["a"]), ("a", []), ("a", [""]), ("a", "text"), ("a", [3])):
        with pytest.raises(InvalidRequestError):
            await world.service.rerank(world.engine.ref, query, documents)  # type: ignore[arg-type]


async def test_tokens_are_those_of_a_turn_with_and_without_the_model_resident(world: World) -> None:
    service, ref = world.service, world.engine.ref
    conversation = [Message("system", "You are kind."), Message("user", world.engine.asks[1])]
    result = await (await world.open()).turn(conversation, options=GREEDY).join()
    rendered = await service.render(ref, conversation)
    assert list(rendered.tokens) == world.engine.prompt(conversation)
    assert len(rendered.tokens) == result.end.usage.input
    assert rendered.template == "model"
    text = "Ünïcödé \N{SNOWMAN} and\nlines"
    counted = await service.tokenize(ref, text)
    assert list(counted.tokens) == world.engine.tokenize(text)
    assert await service.detokenize(ref, counted.tokens) == text.encode()
    tools = await service.render(ref, conversation, tools=[world.engine.tool], think="off", generate=False)
    await service.unload()
    assert await service.render(ref, conversation) == rendered
    assert await service.tokenize(ref, text) == counted
    assert await service.detokenize(ref, counted.tokens) == text.encode()
    assert await service.render(ref, conversation, tools=[world.engine.tool], think="off", generate=False) == tools
    assert (await service.status()).state == "empty"


@pytest.mark.parametrize("resident", [True, False])
async def test_hostile_counting_is_refused(world: World, resident: bool) -> None:
    service, ref = world.service, world.engine.ref
    await (service.load(ref) if resident else service.unload())
    for call in (
        service.detokenize(ref, [-1]),
        service.detokenize(ref, [2**31 - 1]),
        service.detokenize(ref, ["x"]),  # type: ignore[list-item]
        service.tokenize(ref, "\udfff"),
        service.tokenize(ref, "x" * (16 * 2**20 + 1)),
        service.tokenize(ref, 7),  # type: ignore[arg-type]
        service.render(ref, []),
        service.render(ref, [Message("user", "x" * (16 * 2**20))]),
        service.render(ref, [Message("user", "x")], think="loud"),
    ):
        with pytest.raises(InvalidRequestError):
            await call
    assert (await service.tokenize(ref, "")).tokens == ()
    assert await service.detokenize(ref, []) == b""
    assert (await service.status()).state == ("ready" if resident else "empty")


async def test_a_long_text_is_counted_beside_a_stream(world: World) -> None:
    session = await world.open()
    text = "word " * 30_000
    async with session.turn([Message("user", world.engine.long_ask)], options=GREEDY) as stream:
        counts = asyncio.gather(*(world.another.tokenize(world.engine.ref, text) for _ in range(3)))
        answer = await stream.join()
    assert answer.end.usage.output
    assert {len(count.tokens) for count in await counts} == {len(world.engine.tokenize(text))}


async def test_a_cancelled_call_ends_its_work_whatever_the_way(world: World) -> None:
    slow = "fake:delay=0.0005"
    await world.service.embed(slow, ["x"])
    with pytest.raises(TimeoutError):
        # All of it takes 20 s, a batch a quarter of one.
        await asyncio.wait_for(world.service.embed(slow, ["x" * 100] * 400), 0.3)
    async with asyncio.timeout(10):
        assert len((await world.another.embed(slow, ["y" * 100] * 4)).items) == 4
        # Nobody is before this one in the next turn any more.
        assert len((await world.another.embed(slow, ["y"])).items) == 1


async def test_a_model_that_is_not_there_is_the_same_error_for_every_call(world: World) -> None:
    service = world.service
    for call in (
        service.embed("nowhere", ["x"]),
        service.rerank("nowhere", "x", ["y"]),
        service.tokenize("nowhere", "x"),
        service.detokenize("nowhere", [1]),
        service.render("nowhere", [Message("user", "x")]),
    ):
        with pytest.raises(ModeldError) as caught:
            await call
        assert caught.value.code == "model_not_found"
