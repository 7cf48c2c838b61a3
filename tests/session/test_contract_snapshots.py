"""Contract: snapshots leave a node, come to another one, are listed and removed; sessions are forgotten."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modeld.errors import (
    InvalidRequestError,
    ManifestMismatchError,
    SessionBusyError,
    SessionNotFoundError,
    SnapshotNotFoundError,
)
from modeld.node.config import NodeConfig
from modeld.node.node import Node
from modeld.session import SessionConfig
from modeld.session.snapshot_file import CHUNK
from modeld.types import DecodeOptions, Message

from .conftest import World

pytestmark = pytest.mark.anyio

GREEDY = DecodeOptions(temperature=0)


async def exported(world: World, snapshot_id: str) -> list[bytes]:
    async with contextlib.aclosing(world.service.export_snapshot(snapshot_id)) as pieces:
        return [piece async for piece in pieces]


async def sent(data: bytes, size: int = 1000) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@pytest.fixture
async def elsewhere(tmp_path: Path) -> AsyncIterator[Node]:
    """A node of another data root, with another number of sequences."""
    made = Node(NodeConfig(data_root=tmp_path / "elsewhere", allow_fake=True, sequences=3))
    yield made
    await made.aclose()


async def test_exported_removed_imported_elsewhere_and_continued(world: World, elsewhere: Node) -> None:
    session = await world.open(context=2048)
    conversation = [Message("user", world.engine.asks[1])]
    first = await session.turn(conversation, options=GREEDY).join()
    saved = await session.snapshot()
    data = b"".join(await exported(world, saved.id))
    assert len(data) == saved.size
    conversation += [first.message, Message("user", world.engine.asks[2])]
    second = await session.turn(conversation, options=GREEDY).join()
    await world.idle()
    await world.service.remove_session(session.handle.name)
    await world.service.remove_snapshot(saved.id)

    came = await elsewhere.import_snapshot(sent(data), snapshot_id=saved.id)
    assert came == saved
    assert came.config == SessionConfig(name=session.handle.name, context=2048)
    assert came.ref is not None
    assert (came.ref.digest, came.ref.path) == (session.handle.ref.digest, "")
    other = await elsewhere.open_session(world.engine.ref, came.config)
    status = await other.restore(came.id)
    assert status.receipt.restored == saved.tokens == first.receipt.resident
    result = await other.turn(conversation, options=GREEDY).join()
    assert result.text == second.text
    new = len(world.engine.prompt(conversation)) - saved.tokens
    assert result.receipt.reused == saved.tokens
    assert result.receipt.prefilled <= new + 1


async def test_snapshots_are_listed_and_removed(world: World) -> None:
    session = await world.open()
    await session.turn([Message("user", world.engine.asks[0])], options=GREEDY).join()
    saved = await session.snapshot()
    assert saved in await world.another.snapshots()
    await world.another.remove_snapshot(saved.id)
    assert saved not in await world.service.snapshots()
    for work in (world.service.remove_snapshot(saved.id), exported(world, saved.id), session.restore(saved.id)):
        with pytest.raises(SnapshotNotFoundError) as caught:
            await work
        assert caught.value.id == saved.id


@pytest.mark.parametrize("id_", ["", "x", "../../etc/passwd", "A" * 64, "0" * 63 + "\n"])
async def test_snapshot_ids_are_no_paths_either_way(world: World, id_: str) -> None:
    works = [world.service.remove_snapshot(id_), exported(world, id_)]
    if id_:
        works.append(world.service.import_snapshot(sent(b"x"), snapshot_id=id_))
    for work in works:
        with pytest.raises(InvalidRequestError):
            await work


async def test_what_is_no_snapshot_is_refused_and_leaves_nothing(world: World) -> None:
    session = await world.open()
    await session.turn([Message("user", world.engine.asks[0])], options=GREEDY).join()
    saved = await session.snapshot()
    data = b"".join(await exported(world, saved.id))
    await world.service.remove_snapshot(saved.id)
    before = sorted(path.name for path in (world.node.config.data_root / "snapshots").iterdir())
    flipped = bytearray(data)
    flipped[-1] ^= 1
    for broken, field in (
        (b"", "version"),
        (b"GGUF" + bytes(5000), "version"),
        (data[:-1], "length"),
        (data[:100], "length"),
        (data + b"\0", "length"),
        (bytes(flipped), "checksum"),
    ):
        with pytest.raises(ManifestMismatchError) as caught:
            await world.service.import_snapshot(sent(broken))
        assert caught.value.field == field
    with pytest.raises(ManifestMismatchError, match="was named"):
        await world.service.import_snapshot(sent(data), snapshot_id="0" * 64)
    assert sorted(path.name for path in (world.node.config.data_root / "snapshots").iterdir()) == before
    assert (await world.service.import_snapshot(sent(data, 7 * 2**20))).id == saved.id


async def test_refusal_reaches_a_sender_that_is_still_sending(world: World) -> None:
    session = await world.open()
    await session.ensure_prefix([Message("system", "s", thinking="y" * 4_000_000)])
    saved = await session.snapshot()
    data = bytearray(b"".join(await exported(world, saved.id)))
    assert len(data) > 4_000_000
    data[200_000] ^= 1
    for _ in range(3):
        with pytest.raises(ManifestMismatchError):
            await world.service.import_snapshot(sent(bytes(data), CHUNK))
    await world.service.remove_snapshot(saved.id)


async def test_sender_that_gives_up_leaves_nothing(world: World) -> None:
    session = await world.open()
    await session.turn([Message("user", world.engine.asks[0])], options=GREEDY).join()
    saved = await session.snapshot()
    data = b"".join(await exported(world, saved.id))
    await world.service.remove_snapshot(saved.id)
    folder = world.node.config.data_root / "snapshots"
    begun = asyncio.Event()

    def drafts() -> list[Path]:
        return list(folder.glob(".*.part"))

    async def stuck() -> AsyncIterator[bytes]:
        yield data[: len(data) // 2]
        while not await asyncio.to_thread(drafts):
            await asyncio.sleep(0.005)
        begun.set()
        await asyncio.Event().wait()
        yield b""

    async def failing() -> AsyncIterator[bytes]:
        yield data[: len(data) // 2]
        raise ZeroDivisionError

    task = asyncio.ensure_future(world.service.import_snapshot(stuck()))
    async with asyncio.timeout(20):
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(ZeroDivisionError):
            await world.service.import_snapshot(failing())
        while drafts():
            await asyncio.sleep(0.005)
    assert saved.id not in {snapshot.id for snapshot in await world.service.snapshots()}


async def test_two_who_bring_the_same_both_have_it(world: World) -> None:
    session = await world.open()
    await session.turn([Message("user", world.engine.asks[0])], options=GREEDY).join()
    saved = await session.snapshot()
    data = b"".join(await exported(world, saved.id))
    both = await asyncio.gather(*(one.import_snapshot(sent(data)) for one in (world.service, world.another)))
    assert both == [saved, saved]
    # One that is refused does not take away what was there.
    with pytest.raises(ManifestMismatchError):
        await world.service.import_snapshot(sent(data), snapshot_id="0" * 64)
    assert [snapshot.id for snapshot in await world.service.snapshots()].count(saved.id) == 1


async def test_forgotten_session_begins_anew(world: World) -> None:
    name = world.fresh_name()
    session = await world.open(name)
    conversation = [Message("user", world.engine.asks[3])]
    first = await session.turn(conversation, options=GREEDY).join()
    await world.idle()
    with pytest.raises(SessionNotFoundError) as caught:
        await world.service.remove_session(name, workspace="another")
    assert (caught.value.name, caught.value.workspace) == (name, "another")
    with pytest.raises(SessionNotFoundError):
        await world.service.remove_session(name, model="another")
    await world.another.remove_session(name, model=session.handle.ref.digest)
    assert name not in {one.name for one in await world.service.sessions()}
    # A handle is only a name: who uses it again has a new session.
    again = await session.turn(conversation, options=GREEDY).join()
    assert again.text == first.text
    assert again.receipt.dropped == 0
    assert (await session.explain()).decode_calls == 1


async def test_session_whose_call_runs_is_not_removed(world: World) -> None:
    name = world.fresh_name()
    session = await world.open(name)
    stream = session.turn([Message("user", world.engine.long_ask)], options=DecodeOptions(temperature=0))
    async with stream:
        await anext(aiter(stream))
        with pytest.raises(SessionBusyError):
            await world.another.remove_session(name)
        result = await stream.join()
    assert result.end.finish_reason == "stop"
    await world.idle()
    await world.another.remove_session(name)


async def test_session_of_that_name_on_two_kinds_of_model_needs_the_model(world: World) -> None:
    name = world.fresh_name()
    await world.open(name)
    other = "fake" if world.engine.name == "llama" else "tiny"
    await world.service.open_session(other, SessionConfig(name=name))
    with pytest.raises(InvalidRequestError, match="several"):
        await world.service.remove_session(name)
    await world.service.remove_session(name, model=other)
    await world.service.remove_session(name)
    with pytest.raises(SessionNotFoundError):
        await world.service.remove_session(name)
