"""Hazards: a stream that others close, two that read one, event loops that come and go, tasks that all are ended."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, Callable

import pytest

from modeld.errors import CancelledError, InvalidRequestError
from modeld.repository.connections import Connections
from modeld.repository.stream import WireStream
from modeld.repository.wire import Call
from modeld.types import Message, StreamPart, TextPart

pytestmark = pytest.mark.anyio

ASK = [Message("user", "hello")]


@pytest.fixture
async def stream(make_wire: Callable) -> WireStream:
    """One part came; the next never does. ``wire.closed`` counts requests that were closed."""
    wire, catalog = make_wire()

    async def parts(call: Call) -> AsyncGenerator[StreamPart, None]:
        try:
            yield TextPart("a")
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            wire.closed += 1

    wire.stream = parts
    stream = await (await catalog.provider_for("m").stream_client()).stream(ASK)
    assert await anext(stream) == TextPart("a")
    return stream


def closed(stream: WireStream) -> int:
    return stream._wire.closed


async def test_a_stream_can_be_closed_while_another_task_reads_it(stream: WireStream) -> None:
    reader = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.01)
    await asyncio.gather(stream.aclose(), stream.aclose())
    assert closed(stream) == 1
    with pytest.raises(CancelledError, match="closed before its end"):
        await reader
    with pytest.raises(StopAsyncIteration):
        await anext(stream)


async def test_a_task_that_is_cancelled_as_well_sees_its_own_cancellation(stream: WireStream) -> None:
    reader = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.01)
    reader.cancel()
    await stream.aclose()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert closed(stream) == 1


async def test_the_task_whose_stream_was_closed_goes_on(stream: WireStream) -> None:
    async def read() -> str:
        try:
            await anext(stream)
        except CancelledError:
            await asyncio.sleep(0)
            return "goes on"
        return "no"

    reader = asyncio.ensure_future(read())
    await asyncio.sleep(0.01)
    await stream.aclose()
    assert await reader == "goes on"


async def test_a_second_reader_is_refused_and_disturbs_nothing(stream: WireStream) -> None:
    reader = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.01)
    with pytest.raises(InvalidRequestError, match="one reader"):
        await anext(stream)
    assert not reader.done()
    assert closed(stream) == 0
    reader.cancel()
    await asyncio.gather(reader, return_exceptions=True)
    assert closed(stream) == 1


@pytest.mark.parametrize("messages", ["hello", [{"role": "user", "content": "x"}]])
async def test_what_is_no_conversation_is_refused(make_wire: Callable, messages: object) -> None:
    client = await make_wire()[1].provider_for("m").chat_client()
    with pytest.raises(InvalidRequestError, match="list of Message"):
        await client.chat(messages)
    with pytest.raises(InvalidRequestError, match="wrong type"):
        await client.chat(ASK, temperature="hot")


async def test_a_client_whose_opening_was_ended_is_opened_again() -> None:
    opened = []

    def make() -> int:
        opened.append(1)
        return len(opened)

    connections: Connections[int] = Connections(make, None)

    async def use() -> int:
        async with connections.use() as client:
            return client

    before = asyncio.all_tasks()
    first = asyncio.ensure_future(use())
    await asyncio.sleep(0)
    for task in asyncio.all_tasks() - before:
        task.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert first.cancelled()
    assert await use() == len(opened)


def test_event_loops_that_ended_are_not_kept() -> None:
    class Client:
        """As an SDK's: something that must not stay."""

    connections: Connections[Client] = Connections(Client, None)

    async def use() -> None:
        async with connections.use():
            pass

    for _ in range(20):
        asyncio.run(use())
    gc.collect()
    assert sum(isinstance(found, Client) for found in gc.get_objects()) == 1
