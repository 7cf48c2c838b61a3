"""Hazard: node and engine are killed. What rested for five seconds is not computed again."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from modeld.client import connect
from modeld.engine.block_files import read_header
from modeld.node.capacity import disk_budget
from modeld.node.config import NodeConfig
from modeld.node.node import Node
from modeld.node.record import probe
from modeld.session import SessionConfig
from modeld.types import ChatResult, DecodeOptions, Message
from support.disks import kv_files, spoil
from support.engines import ENGINES, EngineCase

pytestmark = pytest.mark.anyio

GREEDY = DecodeOptions(temperature=0, max_tokens=16)
REST_SECONDS = 5.0


@pytest.fixture(params=["fake", "llama", "openvino"])
def case(request: pytest.FixtureRequest) -> EngineCase:
    return ENGINES[request.param]


def conversation(case: EngineCase) -> list[Message]:
    """One that fills several blocks."""
    lines = [f"{number}. {case.asks[number % len(case.asks)]}" for number in range(150)]
    return [Message("system", "\n".join(lines)), Message("user", case.asks[1])]


async def ask(node: Node, case: EngineCase, messages: list[Message], name: str = "one") -> ChatResult:
    session = await node.open_session(case.ref, SessionConfig(name=name))
    return await session.turn(messages, options=GREEDY).join()


def answered(messages: list[Message], result: ChatResult) -> list[Message]:
    return [*messages, Message("assistant", result.text), Message("user", "Thanks!")]


async def all_in_files(node: Node, tokens: int) -> None:
    """Wait until the files hold as many tokens, and the node says so."""
    folder = node.config.data_root / "kv"
    async with asyncio.timeout(REST_SECONDS):
        while True:
            files = kv_files(folder)
            held = sum(len(read_header(str(path))[1].tokens) // 8 for path in files)
            size = sum(path.stat().st_size for path in files)
            if held >= tokens and (await node.status()).ledger.disk == size:
                return
            await asyncio.sleep(0.05)


async def test_a_conversation_comes_back_after_engine_and_node(tmp_path: Path, case: EngineCase) -> None:
    first = Node(NodeConfig(data_root=tmp_path, allow_fake=True))
    try:
        messages = conversation(case)
        result = await ask(first, case, messages)
        resident = result.receipt.resident
        await all_in_files(first, resident)
        engine = (await first.status()).engine
        assert engine is not None
        os.kill(engine.pid, signal.SIGKILL)
    finally:
        await first.aclose()
    second = Node(NodeConfig(data_root=tmp_path, allow_fake=True))
    try:
        more = answered(messages, result)
        receipt = (await ask(second, case, more)).receipt
        # The last token of the answer was never computed.
        assert receipt.restored >= len(case.prompt(messages))
        assert receipt.prefilled <= len(case.prompt(more)) - len(case.prompt(messages))
        assert receipt.restored + receipt.prefilled == receipt.input
        again = await ask(second, case, messages, name="two")
        assert again.text == result.text
    finally:
        await second.aclose()


async def test_a_turn_after_an_unload_says_what_came_back(tmp_path: Path, case: EngineCase) -> None:
    node = Node(NodeConfig(data_root=tmp_path, allow_fake=True))
    try:
        messages = conversation(case)
        first = await ask(node, case, messages)
        await all_in_files(node, first.receipt.resident)
        await node.unload()
        result = await ask(node, case, messages)
        receipt = result.receipt
        assert (receipt.reused, receipt.restored, receipt.prefilled) == (0, receipt.input - 1, 1)
        assert receipt.dropped == first.receipt.resident - receipt.input
        # The last answer was not asked for again; the engine may not even know that there was one.
        assert receipt.stop is not None
        assert receipt.stop.reason in ("unloaded", "history_shortened")
        assert result.text == first.text
    finally:
        await node.aclose()


async def test_files_that_were_spoilt_meanwhile_are_computed_again(tmp_path: Path, case: EngineCase) -> None:
    first = Node(NodeConfig(data_root=tmp_path, allow_fake=True))
    try:
        messages = conversation(case)
        result = await ask(first, case, messages)
        await all_in_files(first, result.receipt.resident)
    finally:
        await first.aclose()
    for number, path in enumerate(kv_files(tmp_path / "kv")):
        spoil(path, number, 5000)
    second = Node(NodeConfig(data_root=tmp_path, allow_fake=True))
    try:
        again = await ask(second, case, messages)
        assert again.text == result.text
        assert again.receipt.restored + again.receipt.prefilled == len(case.prompt(messages))
    finally:
        await second.aclose()


async def test_without_a_budget_nothing_is_written(tmp_path: Path) -> None:
    node = Node(NodeConfig(data_root=tmp_path, allow_fake=True, disk=0))
    try:
        await ask(node, ENGINES["fake"], conversation(ENGINES["fake"]))
        await asyncio.sleep(2.5)
        ledger = (await node.status()).ledger
        assert ledger.ram > 0
        assert (ledger.disk, ledger.disk_budget) == (0, 0)
    finally:
        await node.aclose()
    assert not (tmp_path / "kv").exists()


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[subprocess.Popen[bytes]]]:
    nodes: list[subprocess.Popen[bytes]] = []
    yield nodes
    for node in nodes:
        node.kill()
        node.wait(10)


async def serve(root: Path, started: list[subprocess.Popen[bytes]]) -> None:
    command = [sys.executable, "-m", "modeld", "serve", "--data-root", str(root)]
    node = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    started.append(node)
    async with asyncio.timeout(20):
        while not ((seen := probe(root)).record and seen.record.pid == node.pid and seen.record.endpoint):
            await asyncio.sleep(0.02)


async def test_kill_of_node_and_engine_after_five_seconds_of_rest_costs_nothing(
    tmp_path: Path, started: list[subprocess.Popen[bytes]]
) -> None:
    """Beside another session that streams."""
    case = ENGINES["llama"]
    messages = conversation(case)
    await serve(tmp_path, started)
    async with await connect(tmp_path) as client:
        session = await client.open_session(case.ref, SessionConfig(name="rests"))
        busy = await client.open_session(case.ref, SessionConfig(name="busy"))
        endless = DecodeOptions(temperature=0, ignore_eos=True, max_tokens=7000)
        stream = busy.turn([Message("user", "Count to 60.")], options=endless)
        parts = aiter(stream)
        await anext(parts)
        result = await session.turn(messages, options=GREEDY).join()
        end = asyncio.get_running_loop().time() + REST_SECONDS
        async for _ in parts:
            if asyncio.get_running_loop().time() > end:
                break
        engine = (await client.status()).engine
        assert engine is not None
        os.kill(engine.pid, signal.SIGKILL)
        started[0].kill()
        started[0].wait(10)
    await asyncio.sleep(max(0.0, end - asyncio.get_running_loop().time()))
    await serve(tmp_path, started)
    async with await connect(tmp_path) as client:
        session = await client.open_session(case.ref, SessionConfig(name="rests"))
        more = answered(messages, result)
        receipt = (await session.turn(more, options=GREEDY).join()).receipt
        assert receipt.prefilled <= len(case.prompt(more)) - len(case.prompt(messages))


def test_automatic_budget_does_not_shrink_as_it_fills(tmp_path: Path) -> None:
    usage = mock.patch("shutil.disk_usage", side_effect=lambda path: mock.Mock(free=free))
    with usage:
        free = 8_000
        assert disk_budget(tmp_path, tmp_path / "kv") == 2_000
        (tmp_path / "kv" / "a").mkdir(parents=True)
        (tmp_path / "kv" / "a" / "b.kv").write_bytes(bytes(2_000))
        free = 6_000
        assert disk_budget(tmp_path, tmp_path / "kv") == 2_000
        free = 10**15
        assert disk_budget(tmp_path, tmp_path / "kv") == 8 * 2**30
