"""Hazard: node processes are killed, or many are started at once, under clients that go on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import modeld
from modeld import DecodeOptions, Message, PartsJoiner, SessionConfig, TextPart, client
from modeld.node.record import probe, require_running

ROUNDS = int(os.environ.get("MODELD_START_ROUNDS", "2"))
"""Of twenty clients that start a node together. A long run sets 20, and a longer ``--timeout``."""
CLIENTS = 20
MODEL = "fake:delay=0.005"
ASK = [Message("user", "the quick brown fox jumps over the lazy dog")]
WARM_UP = [Message("user", "hello")]
GREEDY = DecodeOptions(temperature=0)
SERVE = [sys.executable, "-m", "modeld", "serve", "--allow-fake", "--data-root"]

ONE_CLIENT = """
import asyncio, sys
import modeld
from modeld import client

client._command = lambda root: [sys.executable, "-m", "modeld", "serve", "--allow-fake", "--data-root", str(root)]

async def main(root, name):
    print("ready", flush=True)
    sys.stdin.readline()
    async with await modeld.connect(root, start=True, timeout=60) as node:
        session = await node.open_session("fake", modeld.SessionConfig(name=name))
        answer = (await session.turn([modeld.Message("user", name)]).join()).text
        assert answer.startswith(name + " #"), answer
        print(node.record.instance_id, flush=True)

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(modeld.__file__).parent.parent))
    monkeypatch.setattr(client, "_command", lambda root: [*SERVE, str(root)])


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A data root; whoever owns it in the end is ended."""
    made = tmp_path / "root"
    yield made
    stop(made)


def stop(root: Path) -> None:
    seen = probe(root)
    if seen.state == "running" and seen.record is not None:
        os.kill(seen.record.pid, signal.SIGKILL)
        wait_until_free(root)


def wait_until_free(root: Path) -> None:
    end = time.monotonic() + 20
    while probe(root).state == "running":
        assert time.monotonic() < end
        time.sleep(0.01)


def serve(root: Path) -> subprocess.Popen[bytes]:
    child = subprocess.Popen([*SERVE, str(root)], stderr=subprocess.DEVNULL)
    end = time.monotonic() + 20
    while (record := probe(root).record) is None or record.pid != child.pid or not record.endpoint:
        assert time.monotonic() < end
        time.sleep(0.01)
    return child


async def expected(node: modeld.Client) -> str:
    """The answer of a node that lives on."""
    session = await node.open_session(MODEL, SessionConfig(name="uninterrupted"))
    await session.turn(WARM_UP, options=GREEDY).join()
    return (await session.turn(ASK, options=GREEDY).join()).text


@pytest.mark.anyio
@pytest.mark.parametrize("after", [0, 1, 40])
@pytest.mark.parametrize("successor", ["serve", "started by the client"])
async def test_an_owner_killed_in_the_middle_of_a_turn(root: Path, successor: str, after: int) -> None:
    first = await asyncio.to_thread(serve, root)
    second: asyncio.Future[subprocess.Popen[bytes]] | None = None
    starts = successor != "serve"
    try:
        async with await modeld.connect(root, start=starts) as node:
            whole = await expected(node)
            session = await node.open_session(MODEL, SessionConfig(name="interrupted"))
            resident = (await session.turn(WARM_UP, options=GREEDY).join()).receipt.resident
            joiner, characters = PartsJoiner(), 0
            async with session.turn(ASK, options=GREEDY) as stream:
                while characters < after:
                    part = await anext(stream)
                    joiner.add(part)
                    characters += len(part.text) if isinstance(part, TextPart) else 0
                first.kill()
                if not starts:
                    second = asyncio.ensure_future(asyncio.to_thread(serve, root))
                async for part in stream:
                    joiner.add(part)
            result = joiner.result()
            assert result.text == whole
            assert characters < len(whole)
            receipt = result.receipt
            assert receipt.rebound
            assert (receipt.reused, receipt.restored, receipt.dropped) == (0, 0, resident)
            assert receipt.prefilled > len(ASK[0].content)
            assert receipt.stop is not None
            assert receipt.stop.reason == "engine_lost"
            assert node.record.epoch == 2
            assert [warning.code for warning in result.warnings] == (["owner_changed"] if characters else [])
            again = (await session.turn([*ASK, result.message, *WARM_UP], options=GREEDY).join()).receipt
            assert not again.rebound
            assert again.reused > receipt.prefilled
    finally:
        first.kill()
        first.wait()
        await asyncio.to_thread(stop, root)
        if second is not None:
            (await second).wait()


@pytest.mark.anyio
async def test_many_clients_of_one_process_start_one_node(root: Path) -> None:
    for _ in range(ROUNDS):
        nodes = await asyncio.gather(*(modeld.connect(root, start=True) for _ in range(CLIENTS)))

        async def work(number: int, node: modeld.Client) -> str:
            session = await node.open_session("fake", SessionConfig(name=f"s{number}"))
            return (await session.turn([Message("user", f"ask {number}")]).join()).text

        texts = await asyncio.gather(*(work(number, node) for number, node in enumerate(nodes)))
        assert [text.partition(" #")[0] for text in texts] == [f"ask {number}" for number in range(CLIENTS)]
        assert {node.record.instance_id for node in nodes} == {require_running(root).instance_id}
        assert len(await nodes[0].sessions()) == CLIENTS
        for node in nodes:
            await node.aclose()
        await asyncio.to_thread(stop, root)


def test_many_processes_start_one_node(root: Path) -> None:
    for _ in range(ROUNDS):
        command = [sys.executable, "-c", ONE_CLIENT, str(root)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        clients = [subprocess.Popen([*command, f"client {number}"], **pipes) for number in range(CLIENTS)]
        try:
            for one in clients:
                assert one.stdout.readline() == "ready\n"
            for one in clients:
                one.stdin.write("go\n")
                one.stdin.flush()
            outcomes = [one.communicate(timeout=100) for one in clients]
        finally:
            for one in clients:
                one.kill()
                one.wait()
        assert [one.returncode for one in clients] == [0] * CLIENTS, outcomes
        assert {out.strip() for out, _ in outcomes} == {require_running(root).instance_id}
        stop(root)
