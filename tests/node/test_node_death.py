"""Hazard: the node dies without a word. No engine outlives it, and a client finds the next one."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from modeld.client import connect
from modeld.errors import ModeldError, NodeStaleError
from modeld.node.record import probe
from modeld.types import DecodeOptions, Message

pytestmark = pytest.mark.anyio

GREEDY = DecodeOptions(temperature=0)


class Nodes:
    """Nodes of one data root, as processes of this test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.started: list[subprocess.Popen[bytes]] = []

    async def start(self) -> subprocess.Popen[bytes]:
        """A node that answers."""
        command = [sys.executable, "-m", "modeld", "serve", "--allow-fake", "--data-root", str(self.root)]
        node = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.started.append(node)
        async with asyncio.timeout(20):
            while not ((seen := probe(self.root)).record and seen.record.pid == node.pid and seen.record.endpoint):
                await asyncio.sleep(0.02)
        return node


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    nodes = Nodes(tmp_path)
    yield nodes
    for node in nodes.started:
        node.kill()
        node.wait(10)


async def gone(pid: int) -> bool:
    try:
        async with asyncio.timeout(3):
            while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                await asyncio.sleep(0.01)
    except (TimeoutError, psutil.NoSuchProcess):
        return not psutil.pid_exists(pid)
    return True


@pytest.mark.parametrize("model", ["fake:delay=0.01", "tiny"])
async def test_killed_node_leaves_no_engine_and_the_next_one_serves(nodes: Nodes, model: str) -> None:
    node = await nodes.start()
    async with await connect(nodes.root) as client:
        session = await client.open_session(model)
        engine = (await client.status()).engine
        assert engine is not None
        stream = session.turn([Message("user", "!count 99")], options=DecodeOptions(temperature=0, ignore_eos=True))
        await anext(aiter(stream))
        os.kill(node.pid, signal.SIGKILL)
        assert await gone(engine.pid)
        node.wait(10)
    with pytest.raises(NodeStaleError) as caught:
        await connect(nodes.root)
    assert caught.value.pid == node.pid
    await nodes.start()
    async with await connect(nodes.root) as client:
        session = await client.open_session(model)
        assert (await session.turn([Message("user", "Hello!")], options=GREEDY).join()).text
        assert (await client.status()).epoch == caught.value.epoch + 1


async def test_stopped_engine_is_ended_with_its_node(nodes: Nodes) -> None:
    """An engine that does not react at all: SIGKILL by the kernel does not ask it."""
    node = await nodes.start()
    async with await connect(nodes.root) as client:
        await client.open_session("fake")
        engine = (await client.status()).engine
        assert engine is not None
        os.kill(engine.pid, signal.SIGSTOP)
        os.kill(node.pid, signal.SIGKILL)
        assert await gone(engine.pid)


async def test_terminated_node_leaves_no_engine(nodes: Nodes) -> None:
    node = await nodes.start()
    client = await connect(nodes.root)
    await client.open_session("fake")
    engine = (await client.status()).engine
    assert engine is not None
    node.terminate()
    assert await asyncio.to_thread(node.wait, 20) == 0
    assert await gone(engine.pid)
    with pytest.raises(ModeldError):
        await client.load("fake")
    await client.aclose()
    assert probe(nodes.root).state == "not_running"
