"""Hazard: a folder of snapshots with anything in it, a full disk, a file whose sums are right and that lies."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from modeld.errors import ManifestMismatchError, ModeldError, SessionBusyError, SnapshotNotFoundError, StorageError
from modeld.node import snapshots
from modeld.node.config import NodeConfig
from modeld.node.node import Node
from modeld.session import Session, SessionConfig, SnapshotInfo
from modeld.session.snapshot_file import MAGIC, SnapshotCheck, frame_of
from modeld.types import DecodeOptions, Message

pytestmark = pytest.mark.anyio

GREEDY = DecodeOptions(temperature=0)
HOSTILE_NAMES = [
    "../../../etc/passwd",
    "a/b",
    "*",
    "-rf",
    "\N{RIGHT-TO-LEFT OVERRIDE}gpj",
    "\x9b2J",
    "0" * 64,
    "x" * 200,
]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    made = Node(NodeConfig(data_root=tmp_path, allow_fake=True))
    yield made
    await made.aclose()


async def spoken(node: Node, text: str = "hello", name: str = "s") -> Session:
    session = await node.open_session("fake", SessionConfig(name=name))
    await session.turn([Message("system", "x" * 600), Message("user", text)], options=GREEDY).join()
    return session


async def file_of(node: Node, info: SnapshotInfo) -> bytes:
    return b"".join([piece async for piece in node.export_snapshot(info.id)])


async def sent(data: bytes, size: int = 100) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def left(node: Node) -> list[str]:
    return sorted(path.name for path in (node.config.data_root / "snapshots").iterdir())


async def test_list_tells_what_cannot_be_used_and_leaves_alone_what_is_not_ours(node: Node) -> None:
    saved = await (await spoken(node)).snapshot()
    folder = node.config.data_root / "snapshots"
    (folder / f"{'a' * 64}.snap").write_bytes(b"modeld snapshot 1\n" + bytes(100))
    (folder / f"{'b' * 64}.snap").write_bytes(b"")
    os.mkfifo(folder / f"{'c' * 64}.snap")
    (folder / f"{'d' * 64}.snap").symlink_to("/etc/passwd")
    (folder / f"{'e' * 64}.snap").mkdir()
    (folder / "notes.txt").write_text("mine")
    (folder / "short.snap").write_text("mine")
    found = {info.id: info for info in await asyncio.wait_for(node.snapshots(), 5)}
    assert set(found) == {saved.id, *(letter * 64 for letter in "abcde")}
    assert found[saved.id] == saved
    assert "version 1" in found["a" * 64].error
    assert found["a" * 64].size == 118
    assert all(found[letter * 64].error for letter in "bcde")
    for letter in "bcde":
        with pytest.raises(ModeldError):
            await asyncio.wait_for(file_of(node, found[letter * 64]), 5)
    for letter in "abcd":
        await node.remove_snapshot(letter * 64)
    with pytest.raises(StorageError):
        await node.remove_snapshot("e" * 64)
    assert left(node) == sorted([f"{saved.id}.snap", f"{'e' * 64}.snap", "notes.txt", "short.snap"])


async def test_export_of_a_damaged_file_fails_at_its_end(node: Node) -> None:
    saved = await (await spoken(node)).snapshot()
    path = node.config.data_root / "snapshots" / f"{saved.id}.snap"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    pieces = []

    async def take() -> None:
        async for piece in node.export_snapshot(saved.id):
            pieces.append(piece)

    with pytest.raises(ManifestMismatchError) as caught:
        await take()
    assert caught.value.field == "checksum"
    assert b"".join(pieces) == bytes(data)


async def test_who_reads_a_snapshot_that_is_removed_reads_on(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "CHUNK", 100)
    saved = await (await spoken(node)).snapshot()
    whole = hashlib.sha256()
    async with contextlib.aclosing(node.export_snapshot(saved.id)) as pieces:
        whole.update(await anext(pieces))
        await node.remove_snapshot(saved.id)
        async for piece in pieces:
            whole.update(piece)
    assert whole.hexdigest() == saved.id
    with pytest.raises(SnapshotNotFoundError):
        await node.remove_snapshot(saved.id)


class FullDisk:
    """A file on a disk with so many bytes left."""

    def __init__(self, file: Any, left: int) -> None:
        self._file, self._left = file, left

    def write(self, data: bytes) -> int:
        self._left -= len(data)
        if self._left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return int(self._file.write(data))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@pytest.mark.parametrize("free", [0, 50, 2000])
async def test_disk_that_is_full_of_an_import_is_told_and_nothing_is_left(
    node: Node, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    saved = await (await spoken(node)).snapshot()
    data = await file_of(node, saved)
    await node.remove_snapshot(saved.id)
    real = os.fdopen
    with monkeypatch.context() as patched:
        patched.setattr(snapshots.os, "fdopen", lambda *args: FullDisk(real(*args), free))
        with pytest.raises(StorageError, match="disk is full"):
            await node.import_snapshot(sent(data))
    assert left(node) == []
    assert await node.import_snapshot(sent(data)) == saved


async def test_flush_that_fails_publishes_nothing(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = await (await spoken(node)).snapshot()
    data = await file_of(node, saved)
    await node.remove_snapshot(saved.id)

    def fails(fd: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(snapshots.os, "fsync", fails)
        with pytest.raises(StorageError, match="Input/output"):
            await node.import_snapshot(sent(data))
    assert left(node) == []


async def test_snapshot_that_is_given_up_at_any_moment_leaves_nothing(node: Node) -> None:
    session = await spoken(node)
    await session.snapshot()
    kept = left(node)
    for delay in (0, 0.0005, 0.001, 0.002, 0.003, 0.005, 0.008):
        task = asyncio.ensure_future(session.snapshot())
        await asyncio.sleep(delay)
        task.cancel()
        (outcome,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(outcome, SnapshotInfo):
            await node.remove_snapshot(outcome.id)
        assert left(node) == kept
    assert (await node.status()).active == 0
    assert (await session.snapshot()).tokens > 600


@pytest.mark.parametrize("name", HOSTILE_NAMES)
async def test_name_of_a_session_is_never_a_path(node: Node, tmp_path: Path, name: str) -> None:
    saved = await (await spoken(node, name=name)).snapshot()
    data = await file_of(node, saved)
    await node.remove_session(name)
    await node.remove_snapshot(saved.id)
    came = await node.import_snapshot(sent(data))
    assert came.config is not None
    assert came.config.name == name
    assert left(node) == [f"{saved.id}.snap"]
    restored = await (await node.open_session("fake", came.config)).restore(came.id)
    assert restored.receipt.restored == saved.tokens
    assert set(os.listdir(tmp_path)) <= {"snapshots", "engine.lock", "digests.json", "models", "template-facts.json"}


Session_ = dict[str, Any]
LIES: dict[str, Callable[[Session_, dict[str, Any]], None]] = {
    "more tokens than there are": lambda s, h: (s.update(hot=9999), h.update(tokens=9999)),  # type: ignore[func-returns-value]
    "fewer tokens than the head": lambda s, h: s.update(hot=s["hot"] - 1),
    "a token that no model has": lambda s, h: s["ids"].append(2**40),
    "a token beyond the vocabulary": lambda s, h: s["ids"].append(0x110000),
    "a negative token": lambda s, h: s["ids"].append(-1),
    "other tokens": lambda s, h: s["ids"].__setitem__(0, 65),
    "a span beyond the tape": lambda s, h: s.update(spans=[{**s["spans"][0], "token_end": 10**9}]),
    "a span before it": lambda s, h: s.update(spans=[{**s["spans"][0], "byte_start": -5}]),
    "spans out of order": lambda s, h: s.update(spans=s["spans"] * 2),
    "another manifest": lambda s, h: s["manifest"].update(engine="llama"),
    "a decode from nowhere": lambda s, h: s.update(logical=10**12),
    "a prefix of less than nothing": lambda s, h: s.update(prefix_tokens=-1),
    "text that is none": lambda s, h: s.update(text=5),
    "whole state as a block": lambda s, h: h.update(block=0),
    "messages of nobody": lambda s, h: s.update(messages=[{"role": "king", "content": ""}]),
    "depth": lambda s, h: s.update(tools=[nested(3000)]),
}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


def packed(value: Any) -> bytes:
    if isinstance(value, dict) and set(value) == {"a"}:
        # Deeper than the encoder goes.
        depth = 0
        while isinstance(value, dict):
            value, depth = value["a"], depth + 1
        return b"\x81\xa1a" * depth + b"\x01"
    return msgspec.msgpack.encode(value)


@pytest.mark.parametrize("lie", LIES)
async def test_file_whose_sums_are_right_and_that_lies_changes_nothing(node: Node, lie: str) -> None:
    session = await spoken(node)
    saved = await session.snapshot()
    data = await file_of(node, saved)
    check = SnapshotCheck()
    check.feed(data)
    head, body, *blocks = [data[frame.offset : frame.offset + frame.size] for frame in check.frames]
    if len(blocks) == 3 and lie == "whole state as a block":
        blocks = [b"".join(blocks)]
    told, said = msgspec.msgpack.decode(head), msgspec.msgpack.decode(body)
    LIES[lie](said, told)
    deep = said["tools"] and said.pop("tools")
    changed = msgspec.msgpack.encode(said)
    if deep:
        # One field more in the map, whose count follows its first byte.
        assert changed[0] == 0xDE
        count = int.from_bytes(changed[1:3], "big") + 1
        changed = b"\xde" + count.to_bytes(2, "big") + changed[3:] + b"\xa5tools\x91" + packed(deep[0])
    contents = [msgspec.msgpack.encode(told), changed, *blocks]
    forged = MAGIC + b"".join(frame_of(content) + content for content in contents)
    pid = (await node.status()).engine
    try:
        came = await node.import_snapshot(sent(forged))
    except ManifestMismatchError:
        assert lie == "more tokens than there are"
        return
    with pytest.raises(ManifestMismatchError) as caught:
        await session.restore(came.id)
    assert caught.value.field in ("header", "tape_hash")
    assert (await session.explain()).resident == saved.tokens
    assert pid is not None
    engine = (await node.status()).engine
    assert engine is not None
    assert engine.pid == pid.pid


def test_two_first_drafts_do_not_sweep_each_other_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = snapshots.SnapshotStore(tmp_path)
    real, looking, go_on = Path.glob, threading.Event(), threading.Event()

    def slow(folder: Path, pattern: str) -> Any:
        if threading.current_thread().name == "second":
            looking.set()
            go_on.wait(5.0)
        return real(folder, pattern)

    monkeypatch.setattr(Path, "glob", slow)
    second = threading.Thread(target=store.draft, name="second")
    second.start()
    assert looking.wait(5.0)
    first = threading.Thread(target=lambda: store.draft().touch())
    first.start()
    first.join(0.2)
    go_on.set()
    first.join(5.0)
    second.join(5.0)
    assert len(list((tmp_path / "snapshots").iterdir())) == 1


async def test_fork_onto_a_session_that_is_in_use_changes_nothing_of_it(node: Node) -> None:
    source = await spoken(node, name="source")
    target = await node.open_session("fake", SessionConfig(name="target", session_class="side", pin=True))
    stream = target.turn([Message("user", "!count 2000")], options=GREEDY)
    await anext(aiter(stream))
    with pytest.raises(SessionBusyError):
        await source.fork("target")
    (info,) = [info for info in await node.sessions() if info.name == "target"]
    assert (info.session_class, info.pin) == ("side", True)
    await stream.cancel()
