"""The in-memory node, and servers and clients of it."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import ModuleType

import pytest

from modeld.node.record import OwnerRecord
from modeld.transport.grpc.client import RemoteNode
from modeld.transport.grpc.server import GrpcServer

INSTANCE = "0" * 31 + "1"
EPOCH = 7


@pytest.fixture(scope="module", autouse=True)
async def one_loop(anyio_backend: str) -> AsyncIterator[None]:
    """The tests of a module share their event loop.

    gRPC's poller is one for the process: what a call that was cut still has to tell goes to the loop that it was made
    in, and fails whichever test runs then where that one is closed.
    """
    yield
    await asyncio.sleep(0.2)


@pytest.fixture(scope="session")
def fake() -> ModuleType:
    """The module beside this file."""
    spec = importlib.util.spec_from_file_location("modeld_fake_node", Path(__file__).with_name("fake_node.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def record_of() -> Callable[..., OwnerRecord]:
    def make(endpoint: str, *, instance_id: str = INSTANCE, epoch: int = EPOCH, pid: int = 4711) -> OwnerRecord:
        return OwnerRecord(
            instance_id=instance_id,
            epoch=epoch,
            pid=pid,
            boot_id="b",
            start_time=1,
            host="h",
            endpoint=endpoint,
            endpoints=(endpoint,),
            ttl=10.0,
            started=time.time(),
        )

    return make


@pytest.fixture
async def service(fake: ModuleType) -> object:
    return fake.FakeService()


@pytest.fixture
async def server(service: object, tmp_path: Path) -> AsyncIterator[GrpcServer]:
    """Listening on ``tmp_path/s``; ``shutdowns`` counts the calls of its callback."""
    server = GrpcServer(service, instance_id=INSTANCE, epoch=EPOCH, on_shutdown=lambda: shutdowns.append(1))
    shutdowns: list[int] = []
    server.shutdowns = shutdowns
    await server.start(tmp_path / "s")
    yield server
    await server.stop()


@pytest.fixture
async def node(server: GrpcServer, tmp_path: Path, record_of: Callable[..., OwnerRecord]) -> AsyncIterator[RemoteNode]:
    endpoint = f"unix:{tmp_path / 's'}"
    async with RemoteNode(endpoint, record_of(endpoint)) as node:
        yield node


@pytest.fixture
def eventually() -> Callable[[Callable[[], bool]], Awaitable[None]]:
    """Wait until something is so; five seconds at most."""

    async def wait(so: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not so():
                await asyncio.sleep(0.005)

    return wait
