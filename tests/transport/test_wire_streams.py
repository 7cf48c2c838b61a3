"""Hazards of a stream: cancelled, abandoned, cut off, too slow a reader, a generation that moved on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

import modeld
from modeld.errors import (
    CancelledError,
    DeadlineExceededError,
    EngineCrashedError,
    EngineProtocolError,
    InvalidRequestError,
    NodeUnreachableError,
    SessionClosedError,
)
from modeld.node.record import require_running
from modeld.transport.convert import frame_from_bytes, to_bytes
from modeld.transport.grpc.client import RemoteNode
from modeld.transport.methods import CancelRequest, TurnRequest
from modeld.types import DecodeOptions, EndPart, Message, TextPart

pytestmark = pytest.mark.anyio

HELLO = [Message("user", "to be or not")]


async def test_a_joined_turn_is_what_was_streamed(node, service):
    session = await node.open_session("tiny")
    result = await session.turn(HELLO).join()
    parts = [part async for part in session.turn(HELLO)]
    assert result.text == "tobeornot" == "".join(p.text for p in parts[:-1])
    assert result.end == parts[-1]
    assert result.end.usage.output == 4
    assert len(service.closed) == 2


async def test_nothing_runs_before_the_first_part_is_asked_for(node, service):
    session = await node.open_session("tiny")
    stream = session.turn(HELLO)
    end = await stream.cancel()
    assert (end.finish_reason, end.usage.input, end.usage.output) == ("cancelled", 0, 0)
    assert (await stream.join()).end == end
    with pytest.raises(CancelledError):
        await anext(stream)
    assert service.streams == []


async def test_cancel_in_the_middle_gives_the_end_part_with_its_usage(node, service, fake):
    service.script = fake.until_cancelled
    stream = (await node.open_session("tiny")).turn(HELLO)
    assert await anext(stream) == TextPart("first")
    end = await stream.cancel()
    assert (end.finish_reason, end.usage.output) == ("cancelled", 1)
    assert await stream.cancel() == end
    assert [part async for part in stream] == []
    assert len(service.closed) == 1


async def test_cancel_reaches_a_stream_that_another_task_reads(node, service, fake):
    service.script = fake.until_cancelled
    stream = (await node.open_session("tiny")).turn(HELLO)
    first = asyncio.Event()

    async def read():
        parts = []
        async for part in stream:
            parts.append(part)
            first.set()
        return parts

    reader = asyncio.create_task(read())
    await first.wait()
    end = await stream.cancel()
    assert await reader == [TextPart("first"), end]


async def test_cancel_waits_until_the_node_can_find_the_stream(server, node, service, fake, monkeypatch):
    """The call may be on its way when the cancel is."""
    service.script = fake.until_cancelled
    relay = server._streams.relay

    async def slow(*arguments):
        await asyncio.sleep(0.05)
        await relay(*arguments)

    monkeypatch.setattr(server._streams, "relay", slow)
    stream = (await node.open_session("tiny")).turn(HELLO)
    reader = asyncio.create_task(anext(stream))
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        assert (await stream.cancel()).finish_reason == "cancelled"
    await reader


async def test_cancel_after_the_end_is_that_end(node):
    stream = (await node.open_session("tiny")).turn(HELLO)
    parts = [part async for part in stream]
    assert await stream.cancel() == parts[-1]


async def test_leaving_the_block_closes_the_stream_on_the_node(node, service, fake, eventually):
    service.script = fake.until_cancelled
    async with (await node.open_session("tiny")).turn(HELLO) as stream:
        await anext(stream)
    await eventually(lambda: service.closed == service.streams)
    with pytest.raises(CancelledError):
        await anext(stream)


async def test_closing_under_a_reader_is_no_cancellation_of_its_task(node, service, fake):
    service.script = fake.until_cancelled
    stream = (await node.open_session("tiny")).turn(HELLO)
    await anext(stream)
    reader = asyncio.create_task(anext(stream))
    await asyncio.sleep(0.02)
    await stream.aclose()
    with pytest.raises(CancelledError):
        await reader
    assert not reader.cancelled()


async def test_cancelling_the_reading_task_stops_the_work(node, service, fake, eventually):
    service.script = fake.until_cancelled
    stream = (await node.open_session("tiny")).turn(HELLO)
    await anext(stream)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await anext(stream)
    await eventually(lambda: service.closed == service.streams)
    assert (await stream.cancel()).usage.output is None


async def test_a_lost_connection_closes_the_stream_on_the_node(node, service, fake, eventually):
    service.script = fake.until_cancelled
    stream = (await node.open_session("tiny")).turn(HELLO)
    await anext(stream)
    reader = asyncio.create_task(anext(stream))
    await asyncio.sleep(0.02)
    await node.aclose()
    with pytest.raises(NodeUnreachableError):
        await reader
    await eventually(lambda: service.closed == service.streams)


async def test_a_deadline_ends_both_sides(server, service, fake, tmp_path, record_of, eventually):
    service.script = fake.until_cancelled
    service.hang = True
    endpoint = f"unix:{tmp_path / 's'}"
    async with RemoteNode(endpoint, record_of(endpoint), timeout=0.2) as node:
        with pytest.raises(DeadlineExceededError):
            await node.status()
        session = await node.open_session("tiny")
        with pytest.raises(DeadlineExceededError):
            await session.turn(HELLO).join()
    await eventually(lambda: service.closed == service.streams)


async def test_an_error_after_some_parts_arrives_after_them(node, service):
    async def crash(stream):
        yield TextPart("some")
        raise EngineCrashedError("the engine (pid 12) was killed by signal 9", pid=12, signal=9)

    service.script = crash
    stream = (await node.open_session("tiny")).turn(HELLO)
    assert await anext(stream) == TextPart("some")
    for _ in range(2):
        with pytest.raises(EngineCrashedError) as caught:
            await anext(stream)
        assert (caught.value.pid, caught.value.signal) == (12, 9)
    with pytest.raises(EngineCrashedError):
        await stream.cancel()
    assert len(service.closed) == 1


async def test_a_stream_without_an_end_is_an_error(node, service):
    async def short(stream):
        yield TextPart("some")

    service.script = short
    with pytest.raises(EngineProtocolError):
        await (await node.open_session("tiny")).turn(HELLO).join()


async def test_death_of_the_node_in_the_middle_is_typed(tmp_path, fake):
    root = tmp_path / "root"
    environment = {**os.environ, "PYTHONPATH": str(Path(modeld.__file__).parent.parent)}
    child = await asyncio.to_thread(
        subprocess.Popen, [sys.executable, fake.__file__, str(root), "--endless"], env=environment
    )
    try:
        async with asyncio.timeout(20):
            while True:
                try:
                    record = require_running(root)
                    break
                except modeld.NodeError:
                    await asyncio.sleep(0.02)
        async with RemoteNode(record.endpoint, record) as node:
            await node.prove(5)
            stream = (await node.open_session("tiny")).turn(HELLO)
            await anext(stream)
            child.send_signal(signal.SIGKILL)
            with pytest.raises(NodeUnreachableError) as caught:
                await anext(stream)
            assert (caught.value.pid, caught.value.endpoint) == (child.pid, record.endpoint)
            with pytest.raises(NodeUnreachableError):
                await node.status()
    finally:
        child.kill()
        await asyncio.to_thread(child.wait)


async def test_a_slow_reader_stops_the_producer(node, service, fake):
    """1,000 bytes a part: without back-pressure the producer would be at thousands after this."""
    service.script = fake.endless
    async with (await node.open_session("tiny")).turn(HELLO) as stream:
        await anext(stream)
        await asyncio.sleep(0.3)
        held = service.streams[0].sent
        await asyncio.sleep(0.5)
        assert service.streams[0].sent == held
        assert held < 1000
        for _ in range(held + 100):
            await anext(stream)
        assert service.streams[0].sent > held


async def test_parts_that_are_ready_together_travel_together(node, service):
    service.batching = True
    session = await node.open_session("tiny")
    batches = [batch async for batch in session.turn(HELLO).batches()]
    assert [len(batch) for batch in batches] == [5]


async def test_handles_follow_the_generation_of_receipts(node, service):
    session = await node.open_session("tiny")
    assert session.handle.generation == 1
    service.generation = 2
    await session.ensure_prefix(HELLO)
    assert session.handle.generation == 2
    service.generation = 3
    await session.prefill_suffix(HELLO)
    assert session.handle.generation == 3
    service.generation = 4
    await session.decode(DecodeOptions(max_tokens=2)).join()
    assert session.handle.generation == 4
    assert (await session.explain()).generation == 4


async def test_a_closed_session_refuses_every_call(node):
    session = await node.open_session("tiny")
    early = session.turn(HELLO)
    await session.close()
    await session.close()
    for call in (
        session.explain,
        session.snapshot,
        lambda: session.restore("s"),
        lambda: session.fork("f"),
        lambda: session.ensure_prefix(HELLO),
        lambda: session.prefill_suffix(HELLO),
        early.join,
    ):
        with pytest.raises(SessionClosedError):
            await call()
    with pytest.raises(SessionClosedError):
        session.decode()
    with pytest.raises(SessionClosedError):
        session.turn(HELLO)


async def test_a_request_id_names_one_running_call(server, service, fake, tmp_path):
    service.script = fake.until_cancelled
    handle = (await service.open_session(modeld.ModelRef("tiny"))).handle
    data = to_bytes(TurnRequest(handle=handle, messages=tuple(HELLO), request_id="mine"))
    async with grpc.aio.insecure_channel(f"unix:{tmp_path / 's'}") as channel:
        turn = channel.unary_stream("/modeld.v1.Node/Turn")
        first = turn(data)
        assert frame_from_bytes(await first.read()) == [TextPart("first")]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await turn(data).read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        cancel = channel.unary_unary("/modeld.v1.Node/Cancel")
        await cancel(to_bytes(CancelRequest(request_id="mine")))
        (end,) = frame_from_bytes(await first.read())
        assert isinstance(end, EndPart)
        assert await first.read() is grpc.aio.EOF
        assert len(service.closed) == 2


async def test_wrong_types_are_refused_before_anything_is_sent(node, service):
    session = await node.open_session("tiny")
    for bad in ({"role": "user"}, "text", 5):
        with pytest.raises(InvalidRequestError):
            await session.turn([bad]).join()
    with pytest.raises(InvalidRequestError):
        await session.turn([Message("user", "\ud800")]).join()
    with pytest.raises(InvalidRequestError):
        await session.decode(DecodeOptions(stop="END")).join()
    with pytest.raises(InvalidRequestError):
        await session.turn([Message("user", "", provider_meta={"x": float("nan")})]).join()
    with pytest.raises(InvalidRequestError):
        await session.turn([Message("user", "x" * (65 * 2**20))]).join()
    assert service.streams == []
