"""Hazards of an engine beside the resident one: its death, its memory, its end, and who waits for whom."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from modeld.errors import CapacityError, EngineCrashedError, LeaseLostError, NodeError, NotSupportedError
from modeld.node import loader as loader_module
from modeld.node import texts as texts_module
from modeld.node.backends import ConfiguredBackend
from modeld.node.capacity import MemoryState, make_plan, reserve_bytes
from modeld.node.config import NodeConfig
from modeld.node.gateway import Gateway
from modeld.node.gguf import read_header
from modeld.node.node import Node
from modeld.node.side_plan import embed_plan, vocabulary_plan
from modeld.node.store import bundled_path
from modeld.session import ModelRef, NodeStatus, SideStatus
from modeld.types import DecodeOptions, Message
from support.encoders import write_bert

pytestmark = pytest.mark.anyio

GREEDY = DecodeOptions(temperature=0, max_tokens=8)
SLOW = "fake:delay=0.005"


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    made = Node(NodeConfig(data_root=tmp_path, allow_fake=True, disk=0))
    yield made
    await made.aclose()


async def side(node: Node, task: str = "embed") -> SideStatus | None:
    return next((side for side in (await node.status()).sides if side.task == task), None)


async def gone(pid: int) -> None:
    async with asyncio.timeout(10):
        while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            await asyncio.sleep(0.01)


async def test_a_crash_is_a_typed_error_and_the_next_call_loads_again(node: Node) -> None:
    session = await node.open_session("fake")
    first = await session.turn([Message("user", "one")], options=GREEDY).join()
    before = await node.status()
    with pytest.raises(EngineCrashedError):
        await asyncio.gather(node.embed("fake", ["fine", "!abort"]), node.embed("fake", ["!abort"]))
    assert (await node.embed("fake", ["fine"])).dimensions == 16
    after = await node.status()
    assert before.engine is not None
    assert after.engine is not None
    assert (after.generation, after.engine.pid) == (before.generation, before.engine.pid)
    again = await session.turn([Message("user", "one"), first.message, Message("user", "two")], options=GREEDY).join()
    assert (again.receipt.reused, again.receipt.stop) == (first.receipt.resident, None)


async def test_two_models_take_turns_and_the_resident_one_stays(node: Node) -> None:
    await node.load("fake")
    one = await node.embed("fake", ["text"])
    first = await side(node)
    assert (await node.embed("tiny", ["text"])).pooling_source == "default"
    second = await side(node)
    assert first is not None
    assert second is not None
    assert (first.model, second.model) == ("fake", "tiny")
    await gone(first.pid)
    both = await asyncio.gather(*(node.embed(name, ["text"]) for name in ("fake", "tiny") * 3))
    assert {found.data for found in both if found.model == "fake"} == {one.data}
    status = await node.status()
    assert (status.generation, status.model) == (1, "fake")


async def test_a_cancelled_call_ends_between_batches_and_a_short_one_does_not_wait_for_a_long_one(node: Node) -> None:
    texts = ["x" * 100] * 200
    assert await node.embed(SLOW, ["x"])
    began = time.monotonic()
    long = asyncio.ensure_future(node.embed(SLOW, texts))
    await asyncio.sleep(0.1)
    await node.embed(SLOW, ["short"])
    assert not long.done()
    long.cancel()
    with pytest.raises(asyncio.CancelledError):
        await long
    await node.embed(SLOW, ["x"])
    # All of it would take 100 s, a batch takes 2.5 s.
    assert time.monotonic() - began < 30


async def test_it_ends_when_it_was_idle_and_comes_back(tmp_path: Path) -> None:
    node = Node(NodeConfig(data_root=tmp_path, allow_fake=True, idle_ttl=0.5))
    try:
        first = await node.embed("fake", ["text"])
        embeds = await side(node)
        await node.tokenize("fake", "text")
        for found in (await side(node, "vocabulary"), embeds):
            assert found is not None
            await gone(found.pid)
        assert (await node.status()).sides == ()
        assert (await node.embed("fake", ["text"])).data == first.data
    finally:
        await node.aclose()


@pytest.mark.parametrize("end", ["aclose", "refuse", "unload"])
async def test_it_ends_with_the_node_the_lease_and_an_unload(node: Node, end: str) -> None:
    await node.embed(SLOW, ["text"])
    await node.tokenize(SLOW, "text")
    pids = [side.pid for side in (await node.status()).sides]
    running = asyncio.ensure_future(node.embed(SLOW, ["x" * 50] * 20))
    await asyncio.sleep(0.1)
    if end == "unload":
        await node.unload()
        assert len((await running).items) == 20
    else:
        if end == "refuse":
            node.refuse(LeaseLostError("lost"))
            with pytest.raises(LeaseLostError):
                await node.embed(SLOW, ["x"])
        await node.aclose()
        with pytest.raises(LeaseLostError if end == "refuse" else NodeError):
            await running
    assert len(pids) == 2
    for pid in pids:
        await gone(pid)


async def test_what_does_not_fit_is_refused_with_the_numbers_and_the_resident_model_stays(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await node.open_session("tiny")
    first = await session.turn([Message("user", "Hello!")], options=GREEDY).join()
    monkeypatch.setattr(texts_module, "free_memory", lambda: MemoryState(400 << 20, 1 << 30))
    with pytest.raises(CapacityError, match="beside the resident model") as caught:
        await node.embed("tiny", ["text"])
    assert caught.value.required > caught.value.usable
    assert caught.value.weights == bundled_path().stat().st_size
    status: NodeStatus = await node.status()
    assert (status.model, status.sides) == ("tiny", ())
    again = await session.turn(
        [Message("user", "Hello!"), first.message, Message("user", "Bye.")], options=GREEDY
    ).join()
    assert again.receipt.reused == first.receipt.resident


async def test_a_model_to_chat_with_is_not_refused_for_vectors_that_nobody_waits_for(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = read_header(bundled_path())
    await node.embed("tiny", ["text"])
    total = 8 << 30
    least = make_plan(header, request=512, kv_type="f16", free=0, total=total, sequences=64, most=512).required
    tight = MemoryState(reserve_bytes(total) + least + (8 << 20), total)
    monkeypatch.setattr(loader_module, "free_memory", lambda: tight)
    await node.load("tiny")
    status = await node.status()
    assert (status.model, status.sides) == ("tiny", ())


def test_the_plan_counts_what_others_were_promised() -> None:
    header = read_header(bundled_path())
    memory = MemoryState(4 << 30, 8 << 30)
    plan = embed_plan(header, 0, memory, 0)
    assert (plan.fits, plan.context, plan.weights) == (True, 2048, header.file_size)
    assert plan.required == plan.weights + plan.kv + plan.overhead
    assert plan.usable == plan.free - plan.reserve == (4 << 30) - reserve_bytes(8 << 30)
    tight = plan.usable - plan.required + 1
    refused = embed_plan(header, 0, memory, tight)
    assert (refused.fits, refused.free) == (False, plan.free - tight)
    assert refused.alternatives == ("context=1024",)
    assert embed_plan(header, refused.max_context, memory, tight).fits
    assert embed_plan(header, 0, memory, 8 << 30).alternatives == ()
    assert vocabulary_plan(header, memory, 0).required < plan.required
    assert "Counting tokens" in vocabulary_plan(header, memory, 8 << 30).reason


async def test_an_encoder_takes_no_conversation_and_switches_nothing(node: Node, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    for pooling in ("cls", "rank"):
        write_bert(tmp_path / "models" / f"{pooling}.gguf", pooling)  # type: ignore[arg-type]
    await node.load("fake")
    for call in (node.open_session("cls"), node.load("cls")):
        with pytest.raises(NotSupportedError, match="not text"):
            await call
    assert (await node.status()).model == "fake"
    encoder, ranker = await node.describe("cls"), await node.describe("rank")
    assert (encoder.generates, encoder.embeds, encoder.pooling, encoder.plan.context) == (False, True, "cls", 128)
    assert (ranker.generates, ranker.embeds, ranker.pooling) == (False, False, "rank")
    made = await node.embed("cls", ["abc", "de f"])
    assert (made.pooling, made.pooling_source, made.items[0].tokens) == ("cls", "model", 5)
    with pytest.raises(NotSupportedError, match="rerank"):
        await node.embed("rank", ["abc"])
    with pytest.raises(NotSupportedError, match="cls"):
        await node.rerank("cls", "a", ["b"])
    ranked = await node.rerank("rank", "a b", ["c", "d e", "a b"])
    assert sorted(ranked.scores, reverse=True) == [ranked.scores[at] for at in ranked.order]
    chunked = await node.embed("cls", ["a b c " * 100], overflow="chunk")
    (item,) = chunked.items
    # Each chunk has what the model wants around a text.
    assert (item.tokens, item.chunks, item.used) == (302, 3, 306)
    assert (await node.tokenize("cls", "ab")).tokens[0] == 2
    assert len((await node.tokenize("cls", "ab", add_special=False)).tokens) == 2


async def test_a_document_that_is_too_long_is_refused_or_cut(node: Node) -> None:
    ref = ModelRef("fake:rank=1,window=64")
    documents = ["red fish", "blue " * 100]
    with pytest.raises(Exception, match="document 1") as caught:
        await node.rerank(ref, "red fish", documents)
    assert caught.value.code == "context_overflow"  # type: ignore[attr-defined]
    ranked = await node.rerank(ref, "red fish", documents, overflow="truncate")
    assert (ranked.scores, ranked.order) == ((1.0, 0.0), (0, 1))
    assert (ranked.items[1].used, ranked.items[1].truncated, ranked.items[0].truncated) == (64, True, False)
    with pytest.raises(Exception, match="truncate") as caught:
        await node.rerank(ref, "red " * 40, ["x"], overflow="truncate")
    assert caught.value.code == "context_overflow"  # type: ignore[attr-defined]
    with pytest.raises(Exception, match="error or truncate"):
        await node.rerank(ref, "red", ["x"], overflow="chunk")
    with pytest.raises(Exception, match="no number"):
        await node.embed("fake", ["!nan"])


async def test_the_gateway_embeds_with_a_model_of_the_node(node: Node, tmp_path: Path) -> None:
    async def service() -> Node:
        return node

    gateway = Gateway(tmp_path, service)
    await gateway.register_backend(ConfiguredBackend(name="box", type="llama"))
    (tiny,) = await gateway.list_models("box")
    assert (tiny.capabilities.can_embed, tiny.evidence["can_embed"]) == (True, "probed")
    through = await gateway.embed("box", "tiny", ["Hello!", "Bye."], dimensions=3)
    direct = await node.embed("tiny", ["Hello!", "Bye."], dimensions=3)
    assert (through.vectors, through.model, through.usage) == (direct.vectors, "tiny", direct.usage)
    await gateway.aclose()
