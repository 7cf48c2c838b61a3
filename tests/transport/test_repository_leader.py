"""Hazard: the owner of the backends dies: a list that is gone, an answer paid twice, a stream that just ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from modeld import sync
from modeld.errors import NodeUnreachableError, RefusedError
from modeld.node.backends import ConfiguredBackend
from modeld.node.config import NodeConfig
from modeld.node.gateway import Gateway
from modeld.node.owner import OwnerLease
from modeld.node.record import socket_path
from modeld.transport.grpc.server import GrpcServer
from modeld.transport.host import HostConfig, hosted
from modeld.transport.leader import LeaderNode
from modeld.types import Message, TextPart
from support.echo_backend import KEY, Echo, echo_registered

pytestmark = pytest.mark.anyio

ASK = [Message("user", "to be or not")]
CLOUD = ConfiguredBackend(name="cloud", type="echo", base_url="here")


class Owner:
    """An owner of the root in this process, with a gateway."""

    def __init__(self, root: Path, fake: Any) -> None:
        self._root, self._fake = root, fake

    async def start(self) -> None:
        self._lease = lease = await asyncio.to_thread(OwnerLease.acquire, self._root, backend="fake", serves=("fake",))
        self._gateway = Gateway(self._root)
        self._server = GrpcServer(
            self._fake.FakeService(),
            instance_id=lease.instance_id,
            epoch=lease.epoch,
            on_shutdown=lambda: None,
            gateway=self._gateway,
        )
        endpoints = await self._server.start(socket_path(self._root))
        await asyncio.to_thread(lease.publish, endpoints=endpoints)

    async def die(self) -> None:
        """As a killed process would leave it: no goodbye, calls broken, the lock free."""
        await self._server.stop(0)
        await self._gateway.aclose()
        await asyncio.to_thread(self._lease.release)


@pytest.fixture
def echo() -> Iterator[type[Echo]]:
    with echo_registered() as made:
        yield made


@pytest.fixture
async def owners(tmp_path: Path, fake: Any, echo: type[Echo]) -> AsyncIterator[list[Owner]]:
    made = [Owner(tmp_path / "root", fake), Owner(tmp_path / "root", fake)]
    await made[0].start()
    yield made
    await made[-1].die()


@pytest.fixture
async def client(tmp_path: Path, owners: list[Owner]) -> AsyncIterator[LeaderNode]:
    async with LeaderNode(tmp_path / "root", patience=3) as made:
        yield made


async def take_over(owners: list[Owner]) -> None:
    await owners[0].die()
    await owners[1].start()


async def test_a_successor_has_the_same_backends(client: LeaderNode, owners: list[Owner]) -> None:
    written = await client.repository.register_backend(CLOUD, secret=KEY)
    assert (await client.repository.chat("cloud", "echo", ASK)).text == "tobeornot"
    await take_over(owners)
    assert await client.repository.list_backends() == [written]
    assert (await client.repository.chat("cloud", "echo", ASK)).text == "tobeornot"
    assert (await (await client.repository.stream("cloud", "echo", ASK)).join()).text == "tobeornot"
    assert (await client.repository.embed("cloud", "echo", ["a"])).vectors == ((0.1,),)
    assert await client.repository.prompt("cloud", "echo", "", None, "hi") == "hi"
    assert len(await client.repository.list_models("cloud")) > 3
    await client.repository.remove_backend("cloud")
    assert await client.repository.list_backends() == []


async def test_a_stream_that_loses_its_owner_says_so_and_is_not_asked_again(
    client: LeaderNode, owners: list[Owner], echo: type[Echo]
) -> None:
    await client.repository.register_backend(CLOUD)
    stream = await client.repository.stream("cloud", "slow", ASK)
    assert await anext(stream) == TextPart("0 ")
    await take_over(owners)
    with pytest.raises(NodeUnreachableError) as caught:
        await stream.join()
    assert caught.value.retryable
    assert len(echo.calls) == 1
    assert echo.closed == 1
    assert (await client.repository.chat("cloud", "echo", ASK)).text == "tobeornot"


async def test_a_chat_that_loses_its_owner_is_not_asked_again(
    client: LeaderNode, owners: list[Owner], echo: type[Echo], eventually: Any
) -> None:
    await client.repository.register_backend(CLOUD)
    asking = asyncio.create_task(client.repository.chat("cloud", "silent", ASK))
    await eventually(lambda: len(echo.calls) == 1)
    await take_over(owners)
    with pytest.raises(NodeUnreachableError):
        await asking
    assert len(echo.calls) == 1


async def test_without_await_it_is_the_same(tmp_path: Path, echo: type[Echo]) -> None:
    config = HostConfig(node=NodeConfig(data_root=tmp_path / "root", allow_fake=True))

    def use() -> None:
        with sync.connect(tmp_path / "root") as node:
            repository = node.repository
            assert repository.register_backend(CLOUD, secret=KEY).key == "file:secrets/cloud"
            assert [backend.name for backend in repository.list_backends()] == ["cloud"]
            assert repository.list_models("cloud")[0].name == "echo"
            assert repository.chat("cloud", "local", ASK, temperature=0.0).text == "tobeornot"
            with repository.stream("cloud", "endless", ASK) as stream:
                assert next(stream) == TextPart("x" * 1000)
            assert "".join(p.text for p in repository.stream("cloud", "echo", ASK) if isinstance(p, TextPart))
            assert repository.stream("cloud", "echo", ASK).join().text == "tobeornot"
            assert repository.embed("cloud", "echo", ["a"]).vectors == ((0.1,),)
            assert repository.prompt("cloud", "echo", "", None, "hi") == "hi"
            with pytest.raises(RefusedError):
                repository.chat("cloud", "refuse", ASK)
            repository.remove_backend("cloud")

    async with hosted(config, lambda: None) as (node, _, _):
        await asyncio.to_thread(use)
        # The node's own gateway hands the node itself to its catalogs.
        assert echo.services == [node]
    assert echo.closed == 1
