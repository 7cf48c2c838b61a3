"""A node that stops being the owner: streams end with a typed error, it exits 4, and a stopped one is replaced."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

import modeld
from modeld.errors import LeaseLostError, ModeldError, NodeError
from modeld.node.record import require_running
from modeld.transport.grpc.client import RemoteNode
from modeld.types import DecodeOptions, Message, TextPart

pytestmark = pytest.mark.anyio

Serve = Callable[..., "subprocess.Popen[str]"]

SERVE = """
import asyncio, os, signal, sys, threading
from pathlib import Path
from modeld.errors import ModeldError
from modeld.node.config import NodeConfig
from modeld.transport import host

def hang(*_):
    os.fdopen = lambda fd, mode: threading.Event().wait()

signal.signal(signal.SIGUSR1, hang)
node = NodeConfig(data_root=Path(sys.argv[1]), allow_fake=True)
config = host.HostConfig(node=node, lease_ttl=float(sys.argv[2]))
try:
    asyncio.run(host.serve(config, lambda record: print("epoch", record.epoch, flush=True)))
except ModeldError as error:
    print(error.code, error, flush=True)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def serve(root: Path) -> Iterator[Serve]:
    started: list[subprocess.Popen[str]] = []

    def run(ttl: float = 1.0) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", SERVE, str(root), str(ttl)]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


async def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return (await asyncio.to_thread(process.stdout.readline)).strip()


def ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_loss_ends_a_stream_with_its_reason_and_the_engine_and_exits_4(root: Path, serve: Serve) -> None:
    node = serve()
    assert await line(node) == "epoch 1"
    record = await asyncio.to_thread(require_running, root)
    # Not the client of every day: that would look for the next owner.
    async with RemoteNode(record.endpoint, record) as client:
        session = await client.open_session("fake:delay=0.01")
        engine = (await client.status()).engine
        assert engine is not None
        texts: list[str] = []

        async def read() -> None:
            async with session.turn([Message("user", "!count 2000")], options=DecodeOptions(max_tokens=4000)) as stream:
                async for part in stream:
                    if isinstance(part, TextPart):
                        texts.append(part.text)
                        (root / "owner.lock").unlink(missing_ok=True)

        with pytest.raises(LeaseLostError) as caught:
            await read()
        assert (caught.value.reason, caught.value.code) == ("lock-lost", "lease_lost")
        assert len(texts) > 1
        with pytest.raises(NodeError):
            await client.open_session("fake")
    assert await asyncio.to_thread(node.wait, 10) == 4
    assert ended(engine.pid)


async def test_a_thread_that_hangs_in_storage_does_not_keep_a_lost_owner_alive(root: Path, serve: Serve) -> None:
    node = serve()
    assert await line(node) == "epoch 1"
    async with await modeld.connect(root) as client:
        node.send_signal(signal.SIGUSR1)
        hung = time.monotonic()
        try:
            await client.load("fake")  # makes the node publish its engine
            engine = (await client.status()).engine
        except ModeldError:
            engine = None
        assert await asyncio.to_thread(node.wait, 20) == 4
        assert time.monotonic() - hung < 1 + 5 + 3
    assert engine is None or ended(engine.pid)


async def test_a_stopped_node_is_replaced_by_the_next_one(root: Path, serve: Serve) -> None:
    first = serve()
    assert await line(first) == "epoch 1"
    async with await modeld.connect(root) as client:
        engine = (await client.load("fake")).engine
    assert engine is not None
    # The engine too: it must not come back to life beside its successor.
    os.kill(engine.pid, signal.SIGSTOP)
    first.send_signal(signal.SIGSTOP)
    await asyncio.sleep(0.6)
    second = serve()
    assert await line(second) == "epoch 2"
    assert await asyncio.to_thread(first.wait, 5) == -signal.SIGKILL
    assert ended(engine.pid)
    async with await modeld.connect(root) as client:
        status = await client.load("fake")
        assert (status.pid, status.epoch) == (second.pid, 2)


async def test_a_node_that_drains_keeps_renewing(root: Path, serve: Serve) -> None:
    # A busy machine may hold a process up for most of a second: that must not be what ends this lease.
    node = serve(2.0)
    assert await line(node) == "epoch 1"
    async with await modeld.connect(root) as client:
        session = await client.open_session("fake:delay=0.02")
        async with session.turn([Message("user", "!count 70")], options=DecodeOptions(max_tokens=1000)) as stream:
            async for part in stream:
                if isinstance(part, TextPart):
                    break
            node.send_signal(signal.SIGTERM)
            third = serve(2.0)
            # Longer than the ttl: a record that stood still meanwhile would get the node killed.
            assert (await line(third)).startswith("owner_held ")
            result = await stream.join()
            assert result.text.endswith("70")
    assert await asyncio.to_thread(node.wait, 10) == 0
