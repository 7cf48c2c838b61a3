"""Hazard: an SDK client is closed under a call, used in another loop than its own, made twice, or never closed."""

import asyncio
import threading

import pytest

from modeld import MissingDependencyError
from modeld.repository.connections import Connections, require

pytestmark = pytest.mark.anyio


class Sdk:
    """Knows who uses it."""

    def __init__(self) -> None:
        self.closed = 0
        self.thread = threading.get_ident()


class Made:
    """Counts what is opened."""

    def __init__(self) -> None:
        self.clients: list[Sdk] = []

    def open(self) -> Sdk:
        self.clients.append(Sdk())
        return self.clients[-1]

    async def close(self, client: Sdk) -> None:
        client.closed += 1


async def test_calls_at_once_share_one_client_made_in_a_thread() -> None:
    made = Made()
    connections = Connections(made.open, made.close)

    async def call() -> Sdk:
        async with connections.use() as client:
            await asyncio.sleep(0.01)
            return client

    clients = await asyncio.gather(*(call() for _ in range(20)))
    assert len({id(client) for client in clients}) == len(made.clients) == 1
    assert made.clients[0].thread != threading.get_ident()
    await connections.aclose()
    assert made.clients[0].closed == 1


async def test_a_client_in_use_is_closed_by_its_last_call() -> None:
    made = Made()
    connections = Connections(made.open, made.close)
    async with connections.use() as outer:
        async with connections.use():
            await connections.aclose()
        assert outer.closed == 0
        async with connections.use() as fresh:
            assert fresh is not outer
    assert outer.closed == 1
    await connections.aclose()
    assert [client.closed for client in made.clients] == [1, 1]


async def test_each_loop_has_a_client_of_its_own() -> None:
    made = Made()
    connections = Connections(made.open, made.close)

    async def other() -> Sdk:
        async with connections.use() as client:
            return client

    theirs = await asyncio.to_thread(lambda: asyncio.run(other()))
    async with connections.use() as ours:
        assert ours is not theirs
    await connections.aclose()


async def test_a_client_that_another_loop_asked_to_close_is_closed_when_closing_here_returns() -> None:
    made = Made()

    async def slowly(client: Sdk) -> None:
        await asyncio.sleep(0.05)
        await made.close(client)

    connections = Connections(made.open, slowly)
    async with connections.use() as ours:
        pass
    await asyncio.to_thread(lambda: asyncio.run(connections.aclose()))
    assert ours.closed == 0
    await connections.aclose()
    assert ours.closed == 1


async def test_a_client_that_is_not_ours_stays_open() -> None:
    made = Made()
    connections = Connections(made.open, None)
    async with connections.use():
        pass
    await connections.aclose()
    assert made.clients[0].closed == 0


async def test_opening_that_failed_is_tried_again() -> None:
    made = Made()
    failures = [OSError("no")]

    def open_badly() -> Sdk:
        if failures:
            raise failures.pop()
        return made.open()

    connections = Connections(open_badly, made.close)
    with pytest.raises(OSError, match="no"):
        async with connections.use():
            pass
    async with connections.use() as client:
        assert client is made.clients[0]
    await connections.aclose()


async def test_who_asked_first_may_be_cancelled() -> None:
    made = Made()
    gate = threading.Event()

    def slow() -> Sdk:
        gate.wait(5)
        return made.open()

    connections = Connections(slow, made.close)

    async def call() -> Sdk:
        async with connections.use() as client:
            return client

    first, second = asyncio.create_task(call()), asyncio.create_task(call())
    await asyncio.sleep(0.01)
    first.cancel()
    gate.set()
    assert await second is made.clients[0]
    with pytest.raises(asyncio.CancelledError):
        await first
    await connections.aclose()
    assert [client.closed for client in made.clients] == [1]


def test_a_missing_sdk_is_a_pip_line() -> None:
    with pytest.raises(MissingDependencyError) as caught:
        require("no_such_sdk", "openai")
    assert str(caught.value) == "pip install 'modeld[openai]'"
