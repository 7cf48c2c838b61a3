"""Hazard: kill -9 of the whole node. What had rested is back, and what had not is not gone on from."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modeld.client import connect
from modeld.errors import StaleEpochError
from modeld.node.record import probe
from modeld.session import SessionConfig
from modeld.transport.leader import LeaderNode
from modeld.types import DecodeOptions, Message

pytestmark = pytest.mark.anyio

GREEDY = DecodeOptions(temperature=0)
REST = 5.0


class Nodes:
    """Nodes of one data root, as processes of this test, one after the other."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.started: list[subprocess.Popen[bytes]] = []

    async def start(self) -> LeaderNode:
        """A node that answers, and a client of it."""
        command = [sys.executable, "-m", "modeld", "serve", "--allow-fake", "--data-root", str(self.root)]
        node = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.started.append(node)
        async with asyncio.timeout(20):
            while not ((seen := probe(self.root)).record and seen.record.pid == node.pid and seen.record.endpoint):
                await asyncio.sleep(0.02)
        return await connect(self.root)

    def kill(self) -> None:
        self.started[-1].kill()
        self.started[-1].wait(10)

    async def stop(self) -> None:
        self.started[-1].terminate()
        assert await asyncio.to_thread(self.started[-1].wait, 20) == 0


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[Nodes]:
    nodes = Nodes(tmp_path)
    yield nodes
    for node in nodes.started:
        node.kill()
        node.wait(10)


@pytest.mark.parametrize("model", ["fake", "tiny"])
async def test_what_rested_is_back_after_a_kill(nodes: Nodes, model: str) -> None:
    ask = [Message("user", "Count to 12.")]
    async with await nodes.start() as client:
        session = await client.open_session(model, SessionConfig(name="rested"))
        answer = await session.turn(ask, options=DecodeOptions(temperature=0, max_tokens=5)).join()
        rest = (await (await session.fork("whole")).decode(GREEDY).join()).text
        busy = await client.open_session(model, SessionConfig(name="busy"))
        await busy.prefill_suffix(ask)
        await asyncio.sleep(REST)
        await busy.prefill_suffix([Message("user", "And now to 5.")])
        nodes.kill()
    async with await nodes.start() as client:
        listed = {found.name: found for found in await client.sessions()}
        assert listed.keys() == {"rested", "whole", "busy"}
        again = client.attach(session.handle)
        end = await again.decode(GREEDY).join()
        assert (end.text, answer.text + end.text) == (rest, answer.text + rest)
        assert end.receipt.rebound
        assert end.receipt.resident > listed["rested"].tape
        # Its last call had not rested: the state is older than what the client saw.
        for call in (client.attach(busy.handle).decode(GREEDY).join(), client.attach(busy.handle).prefill_suffix(ask)):
            with pytest.raises(StaleEpochError, match="turn"):
                await call
        reopened = await client.open_session(model, SessionConfig(name="busy"))
        assert (await reopened.turn(ask, options=GREEDY).join()).text


async def test_stop_keeps_what_has_not_rested(nodes: Nodes) -> None:
    async with await nodes.start() as client:
        session = await client.open_session("fake")
        await session.prefill_suffix([Message("user", "!count 5")])
        await nodes.stop()
    async with await nodes.start() as client:
        again = await client.attach(session.handle).decode(GREEDY).join()
        assert again.text == "1 2 3 4 5"
        assert again.receipt.stop is not None
        assert again.receipt.stop.reason == "unloaded"
