"""Hazard: the owner changes under a client: calls done twice or not at all, sessions that pretend nothing was lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from modeld.errors import (
    CancelledError,
    InvalidRequestError,
    LeaseLostError,
    NodeError,
    NodeNotRunningError,
    NodeStaleError,
    NodeUnreachableError,
    NotOwnerError,
    StaleEpochError,
)
from modeld.node.owner import OwnerLease
from modeld.node.record import socket_path
from modeld.session import SessionConfig
from modeld.transport.grpc.server import GrpcServer
from modeld.transport.leader import LeaderNode
from modeld.types import DecodeOptions, Message, PartsJoiner, TextPart

pytestmark = pytest.mark.anyio

ASK = [Message("user", "to be or not to be that is the question")]
ANSWER = ASK[0].content.replace(" ", "")


class Owner:
    """An owner of the root in this process, with the in-memory service."""

    def __init__(self, service: Any, lease: OwnerLease, server: GrpcServer) -> None:
        self.service, self.lease, self.server = service, lease, server

    async def die(self) -> None:
        """As a killed process would leave it: no goodbye, calls broken, the lock free."""
        await self.server.stop(0)
        await asyncio.to_thread(self.lease.release)


class Root:
    """A data root whose owners come and go."""

    def __init__(self, root: Path, fake: Any) -> None:
        self.path = root
        self.fake = fake
        self.owners: list[Owner] = []

    async def own(self) -> Owner:
        lease = await asyncio.to_thread(OwnerLease.acquire, self.path, backend="fake", serves=("fake",))
        service = self.fake.FakeService()
        service.epoch = lease.epoch
        server = GrpcServer(service, instance_id=lease.instance_id, epoch=lease.epoch, on_shutdown=lambda: None)
        endpoints = await server.start(socket_path(self.path))
        await asyncio.to_thread(lease.publish, endpoints=endpoints)
        self.owners.append(Owner(service, lease, server))
        return self.owners[-1]


@pytest.fixture
async def root(tmp_path: Path, fake: Any) -> AsyncIterator[Root]:
    made = Root(tmp_path / "root", fake)
    yield made
    for owner in made.owners:
        await owner.die()


@pytest.fixture
async def client(root: Root) -> AsyncIterator[LeaderNode]:
    async with LeaderNode(root.path, patience=3) as made:
        yield made


def cut_after(parts: int) -> Any:
    """A script that stands still after so many parts."""

    async def script(stream: Any) -> AsyncIterator[Any]:
        for word in stream.prompt.split()[:parts]:
            yield TextPart(word)
        await stream.cancelled.wait()

    return script


async def test_calls_that_are_safe_to_repeat_follow_the_owner(root: Root, client: LeaderNode) -> None:
    first = await root.own()
    session = await client.open_session("tiny", SessionConfig(name="n"))
    before = client.record.epoch
    for call in (
        client.status,
        client.models,
        client.sessions,
        lambda: client.describe("tiny"),
        lambda: client.embed("tiny", iter(["text"])),
        lambda: client.rerank("tiny", "query", iter(["text"])),
        lambda: client.tokenize("tiny", "text"),
        lambda: client.detokenize("tiny", [1]),
        lambda: client.render("tiny", ASK),
        lambda: client.open_session("tiny"),
        lambda: session.ensure_prefix(ASK),
        session.explain,
        lambda: session.turn(ASK).join(),
        # Not repeated, but not sent to a dead owner either: its lock is looked at first.
        lambda: client.load("tiny"),
        client.unload,
        lambda: session.restore("s1"),
    ):
        await first.die()
        first = await root.own()
        await call()
        assert client.record.epoch == root.owners[-1].lease.epoch > before
        before = client.record.epoch


async def test_a_lost_tape_is_not_worked_on_as_if_it_were_there(root: Root, client: LeaderNode) -> None:
    first = await root.own()
    session = await client.open_session("tiny")
    await session.ensure_prefix(ASK)
    await first.die()
    second = await root.own()
    for call in (
        lambda: session.prefill_suffix(ASK),
        lambda: session.decode().join(),
        session.snapshot,
        lambda: session.fork("f"),
    ):
        with pytest.raises(StaleEpochError) as caught:
            await call()
        assert (caught.value.epoch, caught.value.current) == (first.lease.epoch, second.lease.epoch)
    assert second.service.streams == []
    await session.ensure_prefix(ASK)
    await session.prefill_suffix(ASK)
    assert (await session.decode().join()).text
    await session.snapshot()
    assert (await session.fork("f")).handle.epoch == second.lease.epoch


async def test_the_receipt_tells_what_the_owner_took_along(root: Root, client: LeaderNode) -> None:
    first = await root.own()
    session = await client.open_session("tiny")
    assert (await session.turn(ASK).join()).receipt.stop is None
    await first.die()
    second = await root.own()
    receipt = (await session.turn(ASK).join()).receipt
    assert receipt.stop is not None
    assert receipt.stop.reason == "engine_lost"
    assert (receipt.dropped, receipt.reused) == (3, 0)
    assert str(second.lease.epoch) in receipt.stop.detail
    assert session.handle.epoch == second.lease.epoch
    assert (await session.turn(ASK).join()).receipt.stop is None


@pytest.mark.parametrize("delivered", range(5))
async def test_an_answer_goes_on_where_it_was(root: Root, client: LeaderNode, delivered: int) -> None:
    first = await root.own()
    first.service.script = cut_after(delivered)
    session = await client.open_session("tiny")
    joiner, texts = PartsJoiner(), []
    async with session.turn(ASK) as stream:
        for _ in range(delivered):
            joiner.add(await anext(stream))
        following = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.05)
        await first.die()
        await root.own()
        joiner.add(await following)
        async for part in stream:
            joiner.add(part)
            texts.append(part)
    result = joiner.result()
    assert result.text == ANSWER
    assert result.receipt.rebound
    assert result.receipt.stop is not None
    assert result.receipt.stop.reason == "engine_lost"
    codes = [warning.code for warning in result.warnings]
    assert codes == (["owner_changed"] if delivered else [])
    for warning in result.warnings:
        for owner in root.owners:
            assert f"epoch {owner.lease.epoch}" in warning.message


async def test_another_answer_is_refused_and_says_how_far_it_came(root: Root, client: LeaderNode) -> None:
    first = await root.own()
    first.service.script = cut_after(3)
    session = await client.open_session("tiny")
    stream = session.turn(ASK)
    got = [await anext(stream) for _ in range(3)]
    following = asyncio.ensure_future(anext(stream))
    await first.die()
    second = await root.own()

    async def other(stream: Any) -> AsyncIterator[Any]:
        for word in ("to", "be", "is", "nice"):
            yield TextPart(word)
        yield stream.end()

    second.service.script = other
    with pytest.raises(NodeUnreachableError, match="differs") as caught:
        await following
    assert caught.value.details["delivered"] == sum(len(part.text) for part in got)
    with pytest.raises(NodeUnreachableError):
        await anext(stream)


async def test_a_second_loss_is_told(root: Root, client: LeaderNode) -> None:
    first = await root.own()
    first.service.script = cut_after(2)
    stream = (await client.open_session("tiny")).turn(ASK)
    await anext(stream)
    await anext(stream)
    following = asyncio.ensure_future(anext(stream))
    await first.die()
    second = await root.own()
    second.service.script = cut_after(1)
    while not second.service.streams:
        await asyncio.sleep(0.01)
    await second.die()
    with pytest.raises(NodeUnreachableError) as caught:
        await following
    assert caught.value.details["delivered"] == len("tobe")


async def test_without_a_successor_the_wait_is_bounded(root: Root) -> None:
    first = await root.own()
    async with LeaderNode(root.path, patience=0.3) as client:
        await client.status()
        await first.die()
        async with asyncio.timeout(2):
            with pytest.raises(NodeNotRunningError):
                await asyncio.gather(*(client.status() for _ in range(20)))


async def test_nobody_at_first_is_told_at_once(root: Root, client: LeaderNode) -> None:
    async with asyncio.timeout(1):
        with pytest.raises((NodeNotRunningError, NodeStaleError)):
            await client.status()


async def test_many_calls_that_lose_their_owner_make_one_connection(root: Root, client: LeaderNode) -> None:
    first = await root.own()
    await client.connect()
    first.service.hang = True
    calls = [asyncio.ensure_future(client.status()) for _ in range(20)]
    await asyncio.sleep(0.05)
    await first.die()
    await root.own()
    await asyncio.gather(*calls)
    assert client.record.epoch == root.owners[-1].lease.epoch


async def test_parts_of_an_owner_of_the_past_are_dropped(root: Root, client: LeaderNode) -> None:
    """The old owner still talks when the new one is known."""
    first = await root.own()
    first.service.script = cut_after(2)
    stream = (await client.open_session("tiny")).turn(ASK)
    assert await anext(stream) == TextPart("to")
    following = asyncio.ensure_future(stream.join())
    await asyncio.to_thread(first.lease.release)
    await root.own()
    await client.status()
    result = await following
    assert result.text == ANSWER[len("to") :]
    assert [warning.code for warning in result.warnings] == ["owner_changed"]


@pytest.mark.parametrize("refusal", [NotOwnerError("not the owner"), StaleEpochError("stale", epoch=1, current=2)])
async def test_what_the_fence_refused_is_asked_again_even_where_repeating_is_not_safe(
    root: Root, client: LeaderNode, refusal: NodeError
) -> None:
    first = await root.own()
    await client.connect()
    first.service.failure = refusal
    loading = asyncio.ensure_future(client.load("tiny"))
    await asyncio.sleep(0.2)
    assert not loading.done()  # who says that it is no owner may not prove the contrary
    await first.die()
    second = await root.own()
    assert (await loading).state == "ready"
    assert client.record.epoch == second.lease.epoch


async def test_a_turn_that_a_lost_lease_ends_goes_on_at_the_successor(root: Root, client: LeaderNode) -> None:
    first = await root.own()

    async def losing(stream: Any) -> AsyncIterator[Any]:
        yield TextPart("to")
        raise LeaseLostError("the lease was lost", reason="epoch-changed")

    first.service.script = losing
    joining = asyncio.ensure_future((await client.open_session("tiny")).turn(ASK).join())
    await asyncio.sleep(0.2)
    await first.die()
    await root.own()
    assert (await joining).text == ANSWER


async def test_what_may_have_been_done_is_not_repeated(root: Root, client: LeaderNode) -> None:
    first = await root.own()
    session = await client.open_session("tiny")
    await session.ensure_prefix(ASK)
    for call in (
        lambda: client.load("tiny"),
        client.unload,
        lambda: session.restore("s"),
        session.snapshot,
        lambda: session.fork("f"),
        lambda: session.prefill_suffix(ASK),
    ):
        first.service.failure = LeaseLostError("the lease was lost", reason="epoch-changed")
        with pytest.raises(LeaseLostError):
            await call()
        first.service.failure = None
        await client.status()


async def test_shutdown_ends_nobody_elses_node(root: Root, client: LeaderNode) -> None:
    first = await root.own()
    await client.connect()
    await first.die()
    await root.own()
    with pytest.raises((StaleEpochError, NodeUnreachableError)):
        await client.shutdown()


async def test_the_seed_is_the_clients_so_that_a_successor_gets_the_same(root: Root, client: LeaderNode) -> None:
    owner = await root.own()
    seen: list[DecodeOptions | None] = []
    turn = root.fake.FakeSession.turn

    def spy(self: Any, messages: Any, **options: Any) -> Any:
        seen.append(options["options"])
        return turn(self, messages, **options)

    root.fake.FakeSession.turn = spy
    try:
        session = await client.open_session("tiny")
        owner.service.script = cut_after(1)
        stream = session.turn(ASK)
        await anext(stream)
        following = asyncio.ensure_future(stream.join())
        await owner.die()
        await root.own()
        await following
        await session.turn(ASK, options=DecodeOptions(seed=5)).join()
        await session.turn(ASK, options=DecodeOptions(temperature=0)).join()
    finally:
        root.fake.FakeSession.turn = turn
    seeds = [options.seed for options in seen if options is not None]
    assert seeds[0] is not None
    assert seeds == [seeds[0], seeds[0], 5, None]


async def test_a_cancel_ends_the_wait_for_a_successor(root: Root, client: LeaderNode) -> None:
    first = await root.own()
    first.service.script = cut_after(1)
    stream = (await client.open_session("tiny")).turn(ASK)
    await anext(stream)
    following = asyncio.ensure_future(anext(stream))
    await asyncio.sleep(0.05)
    await first.die()
    await asyncio.sleep(0.2)
    async with asyncio.timeout(1):
        end = await stream.cancel()
        assert (end.finish_reason, end.usage.input) == ("cancelled", None)  # what the lost owner did nobody knows
        assert await following == end
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_closing_ends_what_waits(root: Root, client: LeaderNode) -> None:
    first = await root.own()
    first.service.script = cut_after(1)
    stream = (await client.open_session("tiny")).turn(ASK)
    await anext(stream)
    following = asyncio.ensure_future(anext(stream))
    await first.die()
    await asyncio.sleep(0.1)
    async with asyncio.timeout(1):
        await stream.aclose()
        with pytest.raises(CancelledError):
            await following
        await client.aclose()
    with pytest.raises(InvalidRequestError, match="closed"):
        await client.status()


async def test_the_session_is_opened_anew_as_it_was_opened(root: Root, client: LeaderNode) -> None:
    """A handle says neither context nor KV type: by the handle alone the model would be loaded with the defaults."""
    first = await root.own()
    config = SessionConfig(name="n", context=32, kv_type="q8_0", pin=True)
    session = await client.open_session("tiny", config)
    await first.die()
    second = await root.own()
    opened: list[SessionConfig | None] = []
    open_session = second.service.open_session

    async def spy(ref: Any, config: SessionConfig | None = None) -> Any:
        opened.append(config)
        return await open_session(ref, config)

    second.service.open_session = spy
    await session.turn(ASK).join()
    await session.turn(ASK).join()
    assert opened == [config]
