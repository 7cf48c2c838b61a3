"""One residency per accelerator among data roots; a holder's death frees the device once its engine is gone too."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from modeld.engine.protocol import Device
from modeld.errors import DeviceBusyError
from modeld.node import device as device_module
from modeld.node.config import NodeConfig
from modeld.node.device import SIMULATED, DeviceKeeper, DeviceLease, device_holders, lease_name
from modeld.node.node import Node

GPU = Device("CUDA0", "gpu", id="GPU-4c5d-1")

HOLDER = """
import asyncio, sys
from pathlib import Path
from modeld.node.config import NodeConfig
from modeld.node.node import Node

async def main():
    node = Node(NodeConfig(data_root=Path(sys.argv[1]), allow_fake=True))
    status = await node.load("fake")
    print(status.engine.pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # Short: the folder must leave room for a socket's path.
    with tempfile.TemporaryDirectory(prefix="md-") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


@pytest.fixture
async def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, anyio_backend: str) -> AsyncIterator[list[Node]]:
    monkeypatch.setenv(SIMULATED, "sim0")
    nodes = [Node(NodeConfig(data_root=tmp_path / name, allow_fake=True)) for name in ("a", "b")]
    for name in ("a", "b"):
        (tmp_path / name).mkdir(0o700)
    yield nodes
    for node in nodes:
        await node.aclose()


def take(root: str, engine_pid: int = 0) -> DeviceLease:
    return DeviceLease.acquire(
        GPU, data_root=Path(root), instance_id="i", epoch=3, engine_pid=engine_pid or os.getpid()
    )


def test_the_holder_is_named_and_release_frees(runtime: Path) -> None:
    lease = take("/data/a")
    with pytest.raises(DeviceBusyError, match=r"CUDA0 is held by process .*'/data/a'") as caught:
        take("/data/b")
    assert (caught.value.device, caught.value.pid, caught.value.data_root) == ("CUDA0", os.getpid(), "/data/a")
    (holder,) = device_holders()
    assert holder == lease.record
    assert (holder.id, holder.epoch, holder.instance_id) == ("GPU-4c5d-1", 3, "i")
    lease.release()
    lease.release()
    assert device_holders() == ()
    take("/data/b").release()
    modes = {path.name: path.stat().st_mode & 0o777 for path in (runtime / "modeld-devices").iterdir()}
    assert set(modes.values()) == {0o600}
    assert list(modes) == [lease_name(GPU) + ".lock"]


@pytest.mark.parametrize(
    ("device", "start"),
    [
        (GPU, "gpu-gpu-4c5d-1-"),
        (Device("../../etc/passwd", "gpu"), "gpu-etc-passwd-"),
        (Device("  ", ""), "unknown-unknown-"),
        (Device("Ä" * 300, "gpu"), "gpu-unknown-"),
        (Device("x" * 300, "gpu"), "gpu-" + "x" * 48 + "-"),
    ],
)
def test_any_name_makes_a_safe_file_name(device: Device, start: str) -> None:
    name = lease_name(device)
    assert name.startswith(start)
    assert "/" not in name
    assert len(name) < 120
    assert name != lease_name(Device(device.name + "x", device.kind))


@pytest.mark.parametrize("content", [b"", b"{", b'{"pid": 1}', b"\xff"])
def test_a_damaged_record_of_a_dead_holder_is_no_obstacle(runtime: Path, content: bytes) -> None:
    take("/data/a").release()
    (runtime / "modeld-devices" / (lease_name(GPU) + ".json")).write_bytes(content)
    take("/data/b").release()


def crash(lease: DeviceLease) -> None:
    assert lease._fd is not None
    os.close(lease._fd)
    lease._fd = None


def test_the_engine_of_a_dead_holder_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "ENGINE_SECONDS", 0.3)
    engine = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        crash(take("/data/a", engine.pid))
        with pytest.raises(DeviceBusyError, match="still runs after") as caught:
            take("/data/b")
        assert caught.value.pid == engine.pid
    finally:
        engine.kill()
    # Not reaped: a zombie holds no memory.
    take("/data/b").release()
    engine.wait()


def test_a_recycled_engine_pid_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(device_module, "process_start_time", lambda pid: 1)
        crash(take("/data/a"))
    started = time.monotonic()
    take("/data/b").release()
    assert time.monotonic() - started < 1


@pytest.mark.anyio
async def test_the_second_data_root_is_refused_until_the_first_unloads(nodes: list[Node], tmp_path: Path) -> None:
    first, second = nodes
    await first.load("fake")
    with pytest.raises(DeviceBusyError) as caught:
        await second.load("fake")
    assert (caught.value.device, caught.value.pid, caught.value.data_root) == ("sim0", os.getpid(), str(tmp_path / "a"))
    assert (await second.status()).state == "failed"
    # Another model on the same node: the lease goes from engine to engine.
    before = (await first.status()).engine
    await first.load("fake?window=2048")
    after = (await first.status()).engine
    assert before is not None
    assert after is not None
    (holder,) = await asyncio.to_thread(device_holders)
    assert (holder.engine_pid, holder.device) == (after.pid, "sim0")
    await first.unload()
    await second.load("fake")


@pytest.mark.anyio
async def test_a_crashed_engine_gives_the_device_back(nodes: list[Node]) -> None:
    first, second = nodes
    engine = (await first.load("fake")).engine
    assert engine is not None
    os.kill(engine.pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        while await asyncio.to_thread(device_holders):
            await asyncio.sleep(0.02)
    await second.load("fake")


@pytest.mark.anyio
async def test_the_processor_needs_no_lease(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SIMULATED)
    for node in nodes:
        await node.load("fake")
    assert await asyncio.to_thread(device_holders) == ()


@pytest.mark.anyio
async def test_a_load_that_was_cancelled_keeps_no_lease() -> None:
    keeper, gone = DeviceKeeper(Path("/data/a"), "i", 1), asyncio.Event()
    task = asyncio.create_task(keeper.take([GPU], os.getpid(), gone))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gone.set()
    await keeper.released()
    await asyncio.to_thread(lambda: take("/data/b").release())


@pytest.mark.anyio
async def test_kill_9_of_the_holder_frees_the_device_at_once(nodes: list[Node], tmp_path: Path) -> None:
    second = nodes[1]
    holder = await asyncio.create_subprocess_exec(
        sys.executable, "-c", HOLDER, str(tmp_path / "a"), stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        engine = int(await holder.stdout.readline())
        with pytest.raises(DeviceBusyError) as caught:
            await second.load("fake")
        assert caught.value.pid == holder.pid
        holder.kill()
        killed = time.monotonic()
        await second.load("fake")
        # The start of a new engine, an interpreter, is most of it.
        assert time.monotonic() - killed < 5
        (now,) = await asyncio.to_thread(device_holders)
        assert now.data_root == str(tmp_path / "b")
        assert now.engine_pid != engine
    finally:
        if holder.returncode is None:
            holder.kill()
        await holder.wait()
