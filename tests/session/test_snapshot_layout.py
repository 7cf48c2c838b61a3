"""Hazard: a snapshot's file that is damaged, cut off, foreign, newer, or lies about itself."""

from __future__ import annotations

import struct
import tracemalloc
from typing import Any

import msgspec
import pytest

from modeld.errors import ManifestMismatchError
from modeld.session.manifest import Manifest
from modeld.session.snapshot_file import MAGIC, SnapshotCheck, SnapshotHead, frame_of, read_head
from modeld.session.values import ModelRef, SessionConfig

MANIFEST = Manifest(engine="fake", engine_build="1", model_digest="d", template_digest="t")
HEAD = SnapshotHead(
    ref=ModelRef("fake", "fake", "d"),
    config=SessionConfig(name="n"),
    created=5.0,
    manifest=MANIFEST,
    tokens=600,
    tape_hash="h",
    block=256,
)


def framed(*contents: bytes) -> bytes:
    return b"".join(frame_of(content) + content for content in contents)


def whole(head: SnapshotHead = HEAD) -> bytes:
    blocks = [bytes([index]) * 50 for index in range(head.blocks)]
    return MAGIC + framed(msgspec.msgpack.encode(head), b"session", *blocks)


def check(data: bytes, piece: int = 7) -> SnapshotHead:
    made = SnapshotCheck()
    for start in range(0, len(data), piece):
        made.feed(data[start : start + piece])
    return made.finish()


@pytest.mark.parametrize("piece", [1, 2, 40, 10**6])
def test_however_it_comes_it_is_the_same(piece: int) -> None:
    assert check(whole(), piece) == HEAD
    assert HEAD.blocks == 3
    assert [HEAD.span(index) for index in range(3)] == [(0, 256), (256, 512), (512, 600)]


@pytest.mark.parametrize(("tokens", "block", "blocks"), [(0, 256, 0), (0, 0, 0), (600, 0, 1), (256, 256, 1)])
def test_there_are_as_many_blocks_as_the_head_says(tokens: int, block: int, blocks: int) -> None:
    head = msgspec.structs.replace(HEAD, tokens=tokens, block=block)
    assert head.blocks == blocks
    assert check(whole(head)) == head


def test_one_bit_anywhere_is_seen() -> None:
    data = whole()
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 1 << place % 8
        with pytest.raises(ManifestMismatchError):
            check(bytes(broken), 64)


def test_cut_off_anywhere_is_seen() -> None:
    data = whole()
    for length in range(len(data)):
        with pytest.raises(ManifestMismatchError):
            check(data[:length], 64)


@pytest.mark.parametrize("more", [b"\0", b"rc=0\n", framed(b"one more block")])
def test_what_follows_the_end_is_seen(more: bytes) -> None:
    with pytest.raises(ManifestMismatchError, match="follows"):
        check(whole() + more)


@pytest.mark.parametrize(
    "data", [b"", b"\0", b"GGUF" * 100, b"root:x:0:0:root", b"modeld snapshot x\n", MAGIC[:-1] + b" "]
)
def test_foreign_file_is_refused_at_its_begin(data: bytes) -> None:
    with pytest.raises(ManifestMismatchError) as caught:
        check(data)
    assert caught.value.field == "version"
    with pytest.raises(ManifestMismatchError) as caught:
        read_head(iter_reader(data))
    assert caught.value.field == "version"


@pytest.mark.parametrize(("version", "hint"), [(b"1", "new one"), (b"3", "update"), (b"99", "update")])
def test_other_version_is_named(version: bytes, hint: str) -> None:
    with pytest.raises(ManifestMismatchError, match=hint) as caught:
        check(b"modeld snapshot " + version + b"\n" + whole()[len(MAGIC) :], 10**6)
    assert caught.value.field == "version"


@pytest.mark.parametrize("size", [0, 2**20 + 1, 2**40, 2**64 - 1])
def test_length_that_no_head_has_is_refused_before_it_comes(size: int) -> None:
    made = SnapshotCheck()
    with pytest.raises(ManifestMismatchError) as caught:
        made.feed(MAGIC + struct.pack(">Q32s", size, b""))
    assert caught.value.field == "length"


def test_announced_length_takes_no_memory() -> None:
    made = SnapshotCheck()
    begun = whole()[: -3 * 90] + struct.pack(">Q32s", 2**63, b"")
    tracemalloc.start()
    try:
        made.feed(begun)
        for _ in range(64):
            made.feed(bytes(2**20))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * 2**20
    with pytest.raises(ManifestMismatchError, match="cut off"):
        made.finish()


HOSTILE: list[dict[str, Any]] = [
    {"tokens": -1},
    {"tokens": 2**40},
    {"tokens": "many"},
    {"block": 1},
    {"block": 2**31},
    {"created": float("nan")},
    {"created": -1.0},
    {"ref": {"name": "m", "path": "/etc/passwd"}},
    {"ref": {}},
    {"config": {"name": "../../x\n"}},
    {"config": {"name": "\x1b[2J"}},
    {"config": {"workspace": ""}},
    {"config": {"context": -5}},
    {"manifest": 5},
    {"manifest": {"engine": "x"}},
]


@pytest.mark.parametrize("change", HOSTILE, ids=str)
def test_head_that_nobody_would_write_is_refused(change: dict[str, Any]) -> None:
    data = MAGIC + framed(msgspec.msgpack.encode({**msgspec.to_builtins(HEAD), **change}))
    with pytest.raises(ManifestMismatchError) as caught:
        check(data)
    assert caught.value.field == "header"


@pytest.mark.parametrize("junk", [b"\xc1", b"\x81" * 5000, b"\x91" * 100_000, b"\xdd\xff\xff\xff\xff", b"\xd9\xff"])
def test_head_that_cannot_be_read_is_refused(junk: bytes) -> None:
    with pytest.raises(ManifestMismatchError) as caught:
        check(MAGIC + framed(junk))
    assert caught.value.field == "header"


def test_head_is_read_without_what_follows() -> None:
    data = whole()
    read = iter_reader(data)
    assert read_head(read) == HEAD
    assert read(10**9).endswith(data[-100:])


def iter_reader(data: bytes) -> Any:
    left = [data]

    def read(size: int) -> bytes:
        piece, left[0] = left[0][:size], left[0][size:]
        return piece

    return read
