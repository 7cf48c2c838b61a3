"""Hazards of conversations without a session: tapes that are not found again, mixed up, or waited for for ever."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

import modeld
from modeld import (
    BackendSpec,
    CancelledError,
    ContextOverflowError,
    DeadlineExceededError,
    EndPart,
    InvalidRequestError,
    Message,
    NotSupportedError,
    PartsJoiner,
    ProgressPart,
    ResponseFormat,
    TextPart,
)
from modeld.node.config import NodeConfig
from modeld.node.node import Node
from modeld.providers.llama import Found, LlamaWire, LocalWire
from modeld.providers.node_wire import WORKSPACE, NodeWire
from modeld.providers.openvino import OpenvinoWire
from modeld.repository import CatalogOptions, RetryPolicy
from modeld.repository.client import WireClient
from modeld.session import ModelService
from modeld.transport.host import HostConfig, hosted
from support.engines import DATA, ENGINES, TINY_IR, EngineCase

pytestmark = pytest.mark.anyio

ONCE = RetryPolicy(attempts=1)
GREEDY = {"temperature": 0, "max_tokens": 400}


class FakeWire(LocalWire):
    """As ``llama``, for the engine without native code."""

    type = "fake"
    extra = "fake"

    def find(self, folder: Path) -> Iterator[Found]:
        return iter(())


@dataclass
class World:
    """A backend of one type, and the node that executes it."""

    engine: EngineCase
    node: Node
    client: Callable[[], WireClient]


@pytest.fixture(scope="module", params=["fake", "llama", "openvino"])
async def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, anyio_backend: str
) -> AsyncIterator[World]:
    """``fake``: in a node, which hands itself in. The others: the client of the data root, over its unix socket;
    ``openvino`` has a folder of models, ``llama`` the node's own."""
    root = tmp_path_factory.mktemp("root")
    config = NodeConfig(data_root=root, allow_fake=True)
    async with AsyncExitStack() as stack:
        if request.param == "fake":
            node = Node(config)
            stack.push_async_callback(node.aclose)

            async def service() -> ModelService:
                return node

            wire: LocalWire = FakeWire(BackendSpec("fake"), CatalogOptions(retry=ONCE, service=service))
            name = "fake"
        else:
            node, _, _ = await stack.enter_async_context(hosted(HostConfig(node=config), lambda: None))
            modeld.set_data_root(root)
            stack.callback(modeld.set_data_root, None)
            stack.push_async_callback((await modeld.client.shared_client()).aclose)
            options = CatalogOptions(retry=ONCE)
            if request.param == "llama":
                wire, name = LlamaWire(BackendSpec("llama"), options), "tiny"
            else:
                wire, name = OpenvinoWire(BackendSpec("openvino", base_url=str(DATA)), options), TINY_IR.name
        yield World(ENGINES[request.param], node, lambda: WireClient(wire, wire.model(name)))


@asynccontextmanager
async def alone(root: Path) -> AsyncIterator[tuple[Node, FakeWire]]:
    """A node for one test."""
    node = Node(NodeConfig(data_root=root, allow_fake=True))

    async def service() -> ModelService:
        return node

    try:
        yield node, FakeWire(BackendSpec("fake"), CatalogOptions(retry=ONCE, service=service))
    finally:
        await node.aclose()


def busy(wire: NodeWire) -> int:
    return sum(tape.busy for tapes in wire.tapes._known.values() for tape in tapes)


async def idle(node: Node) -> None:
    async with asyncio.timeout(10):
        while (await node.status()).active:
            await asyncio.sleep(0.01)


def beginning(world: World, text: str) -> list[Message]:
    """Of a conversation that no other test has."""
    return [Message("system", f"This is {text}."), Message("user", world.engine.asks[1])]


async def test_three_turns_prefill_only_what_is_new(world: World) -> None:
    client = world.client()
    conversation = beginning(world, "a long talk")
    resident = 0
    for turn, ask in enumerate(world.engine.asks[:3]):
        result = await client.chat(conversation, **GREEDY)
        receipt = result.receipt
        assert (receipt.reused, receipt.dropped, receipt.stop) == (resident, 0, None), turn
        assert receipt.prefilled == result.usage.input - resident
        resident = receipt.resident
        conversation += [result.message, Message("user", ask)]
    assert {info.workspace for info in await world.node.sessions()} == {WORKSPACE}


async def test_the_joined_stream_is_the_whole_answer(world: World) -> None:
    client, asked = world.client(), beginning(world, "both ways")
    whole = await client.chat(asked, **GREEDY)
    async with await client.stream(asked, **GREEDY) as stream:
        parts = [part async for part in stream]
    assert isinstance(parts[-1], EndPart)
    assert parts[-1].receipt is not None
    assert (parts[-1].receipt.generation, parts[-1].receipt.prefilled) == (whole.receipt.generation, 1)
    joiner = PartsJoiner()
    for part in parts:
        joiner.add(part)
    assert joiner.result().message == whole.message


async def test_calls_with_one_beginning_at_once_all_answer_rightly(world: World) -> None:
    client, asked = world.client(), beginning(world, "a crowd")
    results = await asyncio.gather(*(client.chat(asked, **GREEDY) for _ in range(5)))
    alone = await client.chat(asked, **GREEDY)
    assert {result.text for result in results} == {alone.text}


async def test_who_reads_a_stream_may_ask_the_same_in_the_middle(tmp_path: Path) -> None:
    async with alone(tmp_path) as (node, wire):
        client, asked = WireClient(wire, wire.model("fake:delay=0.002")), [Message("user", "!count 400")]
        async with await client.stream(asked) as outer:
            inner = await client.chat(asked, max_tokens=5)
            assert inner.text == "1 2 3"
            assert (await node.status()).active == 1
            assert isinstance(await anext(aiter(outer)), ProgressPart | TextPart)


async def test_a_call_that_ended_holds_no_tape(tmp_path: Path) -> None:
    async with alone(tmp_path) as (node, wire):
        client, asked = WireClient(wire, wire.model("fake:delay=0.002")), [Message("user", "!count 400")]
        task = asyncio.ensure_future(client.chat(asked))
        while not (await node.status()).active:
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not busy(wire)
        stream = await client.stream(asked)
        assert busy(wire) == 1
        await stream.aclose()
        assert not busy(wire)


async def test_conversations_that_began_alike_keep_their_own_tapes(world: World) -> None:
    client, asked = world.client(), beginning(world, "a fork in the road")
    firsts = await asyncio.gather(*(client.chat(asked, **GREEDY) for _ in range(2)))
    talks = [
        [*asked, first.message, Message("user", ask)] for first, ask in zip(firsts, world.engine.asks[2:4], strict=True)
    ]
    seconds = await asyncio.gather(*(client.chat(talk, **GREEDY) for talk in talks))
    for talk, second, ask in zip(talks, seconds, world.engine.asks[4:6], strict=True):
        talk += [second.message, Message("user", ask)]
    thirds = await asyncio.gather(*(client.chat(talk, **GREEDY) for talk in reversed(talks)))
    for third, second in zip(thirds, reversed(seconds), strict=True):
        assert (third.receipt.reused, third.receipt.dropped) == (second.receipt.resident, 0)


async def test_a_stream_that_is_left_ends_on_the_node(world: World) -> None:
    client = world.client()
    asked = [Message("system", "left alone"), Message("user", world.engine.long_ask)]
    async with await client.stream(asked, temperature=0) as stream:
        async for part in stream:
            if isinstance(part, TextPart):
                break
    await idle(world.node)
    again = await client.chat(asked, **GREEDY)
    assert again.receipt.prefilled == 1
    assert again.text


async def test_a_cancelled_call_ends_on_the_node(world: World) -> None:
    client = world.client()
    asked = [Message("system", "cancelled"), Message("user", world.engine.long_ask)]
    for begun in (0, 1):
        task = asyncio.ensure_future(client.chat(asked, temperature=0))
        await asyncio.sleep(0)
        while (await world.node.status()).active < begun:
            assert not task.done()
        task.cancel()
        with pytest.raises((asyncio.CancelledError, CancelledError)):
            await task
        await idle(world.node)
    assert (await client.chat(asked, **GREEDY)).text


async def test_the_deadline_ends_the_call_on_the_node(world: World) -> None:
    slow = [Message("system", "late"), Message("user", world.engine.long_ask)]
    with pytest.raises(DeadlineExceededError):
        await world.client().chat(slow, temperature=0, timeout=0.01)
    await idle(world.node)


async def test_length_and_stop_strings_reach_the_engine(world: World) -> None:
    client = world.client()
    asked = [Message("system", "short"), Message("user", world.engine.long_ask)]
    whole = await client.chat(asked, temperature=0, max_tokens=40)
    assert (whole.finish_reason, whole.usage.output, whole.usage.source) == ("length", 40, "counted")
    stop = whole.text[8:11]
    cut = await client.chat(asked, temperature=0, max_tokens=40, stop=["never", stop])
    assert (cut.text, cut.end.stop) == (whole.text[: whole.text.index(stop)], stop)
    drawn = await client.chat(asked, max_tokens=2, seed=7)
    assert drawn.end.seed == 7


async def test_tools_are_offered_called_answered_and_withheld(world: World) -> None:
    client, tool = world.client(), world.engine.tool
    asked = [Message("system", "tools"), Message("user", world.engine.tool_ask)]
    called = await client.chat(asked, tools=[tool], tool_choice="auto", **GREEDY)
    (call,) = called.tool_calls
    assert (called.finish_reason, call.function.name) == ("tool_calls", "get_weather")
    reply = Message("tool", "12 degrees", tool_call_id=call.id, name="get_weather")
    answered = await client.chat([*asked, called.message, reply], tools=[tool], **GREEDY)
    assert answered.receipt.stop is None
    plain = [Message("system", "no tools"), Message("user", world.engine.asks[0])]
    offered = await client.chat(plain, tools=[tool], **GREEDY)
    withheld = await client.chat(plain, tools=[tool], tool_choice="none", **GREEDY)
    without = await client.chat(plain, **GREEDY)
    assert withheld.usage.input == without.usage.input < (offered.usage.input or 0)


async def test_thinking_is_read_and_never_sent_back(world: World) -> None:
    client, asked = world.client(), beginning(world, "a thought")
    first = await client.chat(asked, think="high", **GREEDY)
    assert first.thinking
    assert first.usage.reasoning
    off = await client.chat(asked, think="off", **GREEDY)
    assert off.thinking == ""
    more = [*asked, first.message, Message("user", world.engine.asks[2])]
    bare = [*asked, Message("assistant", first.text), Message("user", world.engine.asks[2])]
    assert (await client.chat(more, **GREEDY)).usage.input == (await client.chat(bare, **GREEDY)).usage.input


async def test_an_overflow_keeps_its_numbers(world: World) -> None:
    with pytest.raises(ContextOverflowError) as caught:
        await world.client().chat([Message("user", "stone " * world.engine.window)])
    assert caught.value.window == world.engine.window


@pytest.mark.parametrize(("option", "code"), [("shift", "context_shifted"), ("truncate", "context_truncated")])
async def test_turns_leave_when_the_option_says_so_and_the_next_turn_finds_the_rest(
    world: World, option: str, code: str
) -> None:
    stones = "stone " * (world.engine.window // 20)
    asked = [Message("user", f"{option} {n} {stones}") for n in range(12)]
    talk = [m for ask in asked for m in (ask, Message("assistant", stones))]
    talk.append(Message("user", world.engine.asks[0]))
    with pytest.raises(ContextOverflowError):
        await world.client().chat(talk, **GREEDY)
    first = await world.client().chat(talk, **{option: True}, **GREEDY)
    assert [warning.code for warning in first.warnings] == [code]
    assert 0 < first.receipt.left < len(talk)
    assert first.usage.input is not None
    assert first.usage.input <= world.engine.window * 3 / 4
    more = [*talk, first.message, Message("user", world.engine.asks[1])]
    second = await world.client().chat(more, **{option: True}, **GREEDY)
    assert second.receipt.left == first.receipt.left
    assert second.receipt.reused >= first.receipt.resident - len(world.engine.tokenize(first.text))


async def test_formats_and_choices_reach_the_engine(world: World) -> None:
    client, asked = world.client(), [Message("system", "formats"), Message("user", world.engine.asks[0])]
    said = await client.chat(asked, response_format=ResponseFormat(choice=("left", "right")), **GREEDY)
    assert said.text in ("left", "right")
    held = await client.chat(asked, response_format=ResponseFormat(), max_tokens=400, temperature=0)
    assert held.finish_reason == "length" or isinstance(json.loads(held.text), dict)
    for choice in ("required", "get_weather"):
        chosen = {"tools": [world.engine.tool], "tool_choice": choice, "parallel_tool_calls": False}
        called = await client.chat(asked, **chosen, **GREEDY)
        assert [call.function.name for call in called.tool_calls] == ["get_weather"]


async def test_a_schema_that_no_engine_holds_is_refused(world: World) -> None:
    wanted = ResponseFormat(schema={"properties": {"a": {"not": {}}}})
    with pytest.raises(NotSupportedError) as caught:
        await world.client().chat([Message("user", "x")], response_format=wanted)
    assert caught.value.details["pointer"] == "/properties/a/not"


async def test_values_beyond_the_engines_are_refused(world: World) -> None:
    with pytest.raises(InvalidRequestError, match="seed"):
        await world.client().chat([Message("user", "x")], seed=2**40)
    with pytest.raises(NotSupportedError):
        await world.client().chat([Message("user", "x", images=(modeld.ImagePart(b"x", "image/png"),))])


async def test_the_record_names_what_is_served_and_what_is_resident(world: World) -> None:
    await world.client().chat(beginning(world, "a look"), **GREEDY)
    assert (await world.node.status()).engine.backend == world.engine.name  # type: ignore[union-attr]
    if world.engine.name != "fake":
        async with asyncio.timeout(10):
            while modeld.backend() != world.engine.name:
                await asyncio.sleep(0.01)
        assert {"llama", "openvino"} <= set(modeld.client.owner().serves)
