"""Hazard: the engine dies, hangs, lies or never starts. The node lives and says what happened."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from modeld.errors import EngineCrashedError, ModeldError, SessionFatalError
from modeld.node import engine_process
from modeld.node.config import NodeConfig
from modeld.node.node import Node
from modeld.session import ModelRef, SessionConfig
from modeld.types import DecodeOptions, Message
from support.engines import TINY_F16

pytestmark = pytest.mark.anyio

ENDLESS = DecodeOptions(temperature=0, ignore_eos=True)
GREEDY = DecodeOptions(temperature=0)
REFS = [ModelRef("fake"), ModelRef(path=str(TINY_F16))]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(NodeConfig(data_root=tmp_path, allow_fake=True))
    yield node
    await node.aclose()


async def engine_pid(node: Node) -> int:
    engine = (await node.status()).engine
    assert engine is not None
    return engine.pid


@pytest.mark.parametrize("ref", REFS, ids=["fake", "llama"])
async def test_engine_killed_in_a_decode(node: Node, ref: ModelRef) -> None:
    session = await node.open_session(ref)
    conversation = [Message("user", "Hello!")]
    first = await session.turn(conversation, options=GREEDY).join()
    async with session.turn(conversation, options=ENDLESS) as stream:
        await anext(aiter(stream))
        os.kill(await engine_pid(node), signal.SIGKILL)
        killed = time.monotonic()
        with pytest.raises(EngineCrashedError, match="signal 9") as caught:
            await stream.join()
        assert time.monotonic() - killed < 1
        assert caught.value.retryable
    status = await node.status()
    assert (status.state, status.engine, status.model) == ("failed", None, "")
    assert "signal 9" in status.last_error
    again = await session.turn(conversation, options=GREEDY).join()
    assert again.text == first.text
    assert again.receipt.rebound
    assert again.receipt.stop is not None
    assert again.receipt.stop.reason == "engine_lost"
    assert (await node.status()).state == "ready"


async def test_engine_that_aborts_itself(node: Node) -> None:
    session = await node.open_session("fake")
    bystander = await node.open_session("fake", SessionConfig(name="other"))
    with pytest.raises(EngineCrashedError, match="signal 6"):
        await session.turn([Message("user", "!abort")], options=GREEDY).join()
    assert (await bystander.turn([Message("user", "hi")], options=GREEDY).join()).text.startswith("hi")


async def test_calls_that_wait_fail_with_the_engine(node: Node) -> None:
    session = await node.open_session("fake:delay=0.005")
    asks = [
        asyncio.ensure_future(session.turn([Message("user", "!count 100")], options=GREEDY).join()) for _ in range(3)
    ]
    await asyncio.sleep(0.1)
    os.kill(await engine_pid(node), signal.SIGKILL)
    outcomes = await asyncio.gather(*asks, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [EngineCrashedError] * 3
    assert (await node.status()).active == 0


async def test_many_crashes_leave_nothing_behind(node: Node) -> None:
    session = await node.open_session("fake")
    mine = psutil.Process()
    before = mine.num_fds()
    for _ in range(8):
        await session.turn([Message("user", "hi")], options=GREEDY).join()
        os.kill(await engine_pid(node), signal.SIGKILL)
        while (await node.status()).engine is not None:
            await asyncio.sleep(0.01)
    assert mine.num_fds() <= before
    assert [child for child in mine.children() if "modeld.engine.worker" in " ".join(child.cmdline())] == []


async def test_fatal_session_starts_anew_when_it_is_opened_again(node: Node) -> None:
    session = await node.open_session("fake")
    with pytest.raises(SessionFatalError, match="open the session again"):
        await session.turn([Message("user", "!fail")], options=GREEDY).join()
    with pytest.raises(SessionFatalError):
        await session.turn([Message("user", "hi")], options=GREEDY).join()
    assert "cannot go on" in (await session.explain()).fatal
    reopened = await node.open_session("fake")
    assert (await reopened.turn([Message("user", "hi")], options=GREEDY).join()).receipt.reused == 0


async def test_cut_model_file_is_an_error_and_the_node_serves_on(node: Node, tmp_path: Path) -> None:
    data = TINY_F16.read_bytes()
    for cut in (10, 1000, len(data) // 2, len(data) - 1):
        broken = tmp_path / f"broken-{cut}.gguf"
        broken.write_bytes(data[:cut])
        with pytest.raises(ModeldError) as caught:
            await node.open_session(ModelRef(path=str(broken)))
        assert caught.value.code in ("invalid_model", "model_load_failed")
    assert (await node.open_session("fake")).handle.window


async def test_weights_that_lie_about_the_shape_are_an_error(node: Node, tmp_path: Path) -> None:
    data = bytearray(TINY_F16.read_bytes())
    # The header is sound; what llama.cpp computes from it is not what the tensors are.
    key = b"qwen3.feed_forward_length"
    value = data.index(key) + len(key) + 4
    data[value : value + 4] = (999).to_bytes(4, "little")
    broken = tmp_path / "lies.gguf"
    broken.write_bytes(data)
    with pytest.raises(ModeldError) as caught:
        await node.open_session(ModelRef(path=str(broken)))
    assert caught.value.code in ("model_load_failed", "engine_crashed", "invalid_model")
    assert (await node.status()).state == "failed"
    assert (await node.open_session("tiny")).handle.window == 8192


async def test_engine_that_says_nothing_is_ended(node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    silent = tmp_path / "silent"
    silent.write_text("#!/bin/sh\nexec sleep 60\n")
    silent.chmod(0o700)
    monkeypatch.setattr(engine_process.sys, "executable", str(silent))
    monkeypatch.setattr(engine_process, "START_SECONDS", 0.5)
    monkeypatch.setattr(engine_process, "STOP_SECONDS", 0.2)
    with pytest.raises(EngineCrashedError, match="said nothing"):
        await node.open_session("fake")
    assert not [child for child in psutil.Process().children() if "sleep" in child.name()]


async def test_engine_that_ends_at_once(node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    failing = tmp_path / "failing"
    failing.write_text("#!/bin/sh\necho no library >&2\nexit 9\n")
    failing.chmod(0o700)
    monkeypatch.setattr(engine_process.sys, "executable", str(failing))
    with pytest.raises(EngineCrashedError, match="code 9"):
        await node.open_session("fake")


async def test_engine_that_cannot_be_started(node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engine_process.sys, "executable", str(tmp_path / "nothing"))
    with pytest.raises(EngineCrashedError, match="could not be started"):
        await node.open_session("fake")


async def test_new_engine_waits_for_the_old_ones_lock(tmp_path: Path) -> None:
    one = Node(NodeConfig(data_root=tmp_path, allow_fake=True))
    two = Node(NodeConfig(data_root=tmp_path, allow_fake=True))
    await one.open_session("fake")
    opening = asyncio.ensure_future(two.open_session("fake"))
    await asyncio.sleep(0.5)
    assert not opening.done()
    await one.aclose()
    await asyncio.wait_for(opening, 5)
    await two.aclose()


async def test_idle_engine_exits_and_its_memory_is_back(tmp_path: Path) -> None:
    node = Node(NodeConfig(data_root=tmp_path, allow_fake=True, idle_ttl=0.3))
    session = await node.open_session("tiny")
    pid = await engine_pid(node)
    await session.turn([Message("user", "Hello!")], options=GREEDY).join()
    async with asyncio.timeout(10):
        while psutil.pid_exists(pid):
            await asyncio.sleep(0.05)
    assert (await node.status()).state == "empty"
    result = await session.turn([Message("user", "Hello!")], options=GREEDY).join()
    assert result.receipt.stop is not None
    assert result.receipt.stop.reason == "unloaded"
    await node.aclose()


async def test_running_stream_keeps_the_engine_from_idling_out(tmp_path: Path) -> None:
    node = Node(NodeConfig(data_root=tmp_path, allow_fake=True, idle_ttl=0.2))
    session = await node.open_session("fake:delay=0.01")
    result = await session.turn([Message("user", "!count 30")], options=GREEDY).join()
    assert result.end.finish_reason == "stop"
    assert result.receipt.decode_seconds > 0.4
    await node.aclose()


async def test_switch_waits_for_the_running_stream(node: Node) -> None:
    session = await node.open_session("fake:delay=0.003")
    running = asyncio.ensure_future(session.turn([Message("user", "!count 60")], options=GREEDY).join())
    await asyncio.sleep(0.05)
    other = await node.open_session("tiny")
    assert running.done()
    assert (await running).end.finish_reason == "stop"
    assert other.handle.generation == 2
    back = await session.turn([Message("user", "hi")], options=GREEDY).join()
    assert (back.receipt.generation, back.receipt.rebound) == (3, True)
    assert back.receipt.stop is not None
    assert back.receipt.stop.reason == "unloaded"


async def test_nobody_starves_behind_the_resident_model(node: Node) -> None:
    order: list[str] = []

    async def ask(name: str, ref: str) -> None:
        session = await node.open_session(ref, SessionConfig(name=name))
        await session.turn([Message("user", "!count 9")], options=GREEDY).join()
        order.append(name)

    first = asyncio.ensure_future(ask("a1", "fake:delay=0.01"))
    await asyncio.sleep(0.3)
    rest = [ask("b", "fake"), ask("a2", "fake:delay=0.01"), ask("a3", "fake:delay=0.01")]
    await asyncio.gather(first, *rest)
    assert order.index("b") <= 2


async def test_caller_that_gives_up_in_the_queue_is_not_served(node: Node) -> None:
    session = await node.open_session("fake:delay=0.01")
    running = asyncio.ensure_future(session.turn([Message("user", "!count 20")], options=GREEDY).join())
    await asyncio.sleep(0.05)
    waiting = asyncio.ensure_future(node.open_session("tiny"))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await running
    assert (await node.status()).model == "fake:delay=0.01"


async def test_stream_cancelled_while_the_model_loads(node: Node) -> None:
    session = await node.open_session("fake:delay=0.01")
    other = await node.open_session("fake")
    running = asyncio.ensure_future(other.turn([Message("user", "!count 9")], options=GREEDY).join())
    stream = session.turn([Message("user", "hi")], options=GREEDY)
    reading = asyncio.ensure_future(anext(aiter(stream)))
    await asyncio.sleep(0)
    end = await stream.cancel()
    assert (end.finish_reason, end.usage.output) == ("cancelled", 0)
    assert await reading == end
    await running
    assert (await node.status()).active == 0


async def test_forgotten_stream_gives_its_place_back(node: Node) -> None:
    session = await node.open_session("fake")
    stream = session.turn([Message("user", "!count 9999")], options=ENDLESS)
    await anext(aiter(stream))
    assert (await node.status()).active == 1
    del stream
    async with asyncio.timeout(5):
        while (await node.status()).active:
            await asyncio.sleep(0.01)


async def test_handle_of_a_file_that_was_replaced_is_stale(node: Node, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(TINY_F16.read_bytes())
    session = await node.open_session(ModelRef(path=str(path)))
    await session.turn([Message("user", "Hello!")], options=GREEDY).join()
    await node.unload()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModeldError) as caught:
        await session.turn([Message("user", "Hello!")], options=GREEDY).join()
    assert caught.value.code == "digest_mismatch"
