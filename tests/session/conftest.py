"""Every engine, by every way in: one contract."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest

from modeld.client import connect
from modeld.node.config import NodeConfig
from modeld.node.node import Node
from modeld.session import ModelService, Session, SessionConfig
from modeld.transport.grpc.client import RemoteNode
from modeld.transport.grpc.options import Access
from modeld.transport.host import HostConfig, hosted
from modeld.transport.security import read_token
from support.engines import ENGINES, EngineCase
from support.shapes import SHAPES, shaped

WAYS = ("in-process", "unix", "tcp")


@dataclass
class World:
    """A node reached one way, with one engine's model."""

    engine: EngineCase
    way: str
    service: ModelService
    another: ModelService
    """A second client of the same node."""
    node: Node
    _names: count[int]

    def fresh_name(self) -> str:
        """A session name nobody used."""
        return f"session-{next(self._names)}"

    async def idle(self) -> None:
        """Wait until no call runs."""
        async with asyncio.timeout(10):
            while (await self.service.status()).active:
                await asyncio.sleep(0.01)

    async def open(self, name: str = "", **config: object) -> Session:
        """A session, new unless named."""
        wanted = SessionConfig(name=name or self.fresh_name(), **config)  # type: ignore[arg-type]
        return await self.service.open_session(self.engine.ref, wanted)


@pytest.fixture(scope="module", params=[*(f"{engine}-{way}" for engine in ENGINES for way in WAYS), *SHAPES])
async def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, anyio_backend: str
) -> AsyncIterator[World]:
    engine, _, way = request.param.partition("-")
    root = tmp_path_factory.mktemp("root")
    case = ENGINES[engine] if way else shaped(engine, root)
    async with AsyncExitStack() as stack:
        # Without files: here a model that is loaded anew is a cold one.
        yield await make_world(stack, case, way or "in-process", root, disk=0, sequences=16)


async def make_world(stack: AsyncExitStack, engine: EngineCase, way: str, root: Path, **settings: object) -> World:
    """Start a node, and two clients of it.

    One thread computes: those of several engines on the same cores wait for each other, which took twice the time.
    """
    config = NodeConfig(data_root=root, allow_fake=True, threads=1, **settings)  # type: ignore[arg-type]
    if way == "in-process":
        node = Node(config)
        stack.push_async_callback(node.aclose)
        return World(engine, way, node, node, node, count())
    listen = ("127.0.0.1", 0) if way == "tcp" else None
    node, record, _ = await stack.enter_async_context(hosted(HostConfig(node=config, listen=listen), lambda: None))
    if way == "unix":
        clients = [await stack.enter_async_context(await connect(root)) for _ in range(2)]
    else:
        access = Access(token=read_token(root))
        clients = [
            await stack.enter_async_context(RemoteNode(record.endpoints[1], record, access=access)) for _ in range(2)
        ]
    return World(engine, way, clients[0], clients[1], node, count())
