"""Hazard: files of sessions that are damaged, cut, foreign, newer, planted or too many. Never used, never an error."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path

import pytest
from msgspec import structs

from modeld.node import session_files
from modeld.node.session_files import MAGIC, Change, SessionFiles, SessionHeader, file_id
from modeld.session import Manifest, ModelRef, SessionConfig

MANIFEST = Manifest(engine="fake", engine_build="1", model_digest="d", template_digest="t")


def header_of(name: str, state: bytes = b"") -> SessionHeader:
    return SessionHeader(
        ref=ModelRef("fake", digest="d"),
        config=SessionConfig(name=name),
        manifest=MANIFEST,
        window=100,
        tape=7,
        last_used=1.5,
        size=len(state),
        sha256=hashlib.sha256(state).hexdigest(),
    )


def put(files: SessionFiles, name: str, state: bytes = b"some state", *, current: bool = True) -> str:
    header = header_of(name, state)
    assert files.apply(set(), {header.id: Change(header, state, current)}) == set()
    return header.id


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "sessions"


@pytest.fixture
def files(folder: Path) -> SessionFiles:
    return SessionFiles(folder)


def test_what_was_written_comes_back(files: SessionFiles, folder: Path) -> None:
    one, two = put(files, "one"), put(files, "two", b"other", current=False)
    found = {header.config.name: (header, current) for header, current in SessionFiles(folder).scan()}
    assert found == {"one": (header_of("one", b"some state"), True), "two": (header_of("two", b"other"), False)}
    assert (files.load(one), files.load(two)) == (b"some state", b"other")
    assert sorted(path.name for path in folder.iterdir()) == sorted([f"{one}.session", f"{two}.session", f"{two}.used"])


def test_every_flipped_byte_and_every_cut_is_seen(files: SessionFiles, folder: Path) -> None:
    id_ = put(files, "one")
    path = folder / f"{id_}.session"
    sound = path.read_bytes()
    places = range(len(sound))
    damaged = [sound[:at] + bytes([sound[at] ^ bit]) + sound[at + 1 :] for at in places for bit in (1, 128)]
    damaged += [sound[:size] for size in range(len(sound))]
    damaged += [sound + b"\0", sound + sound, b"\0" * len(sound), os.urandom(len(sound))]
    for data in damaged:
        path.write_bytes(data)
        assert files.load(id_) == b""
        # A state is looked at when it is wanted, not before.
        listed = SessionFiles(folder).scan()
        assert [header for header, _ in listed] in ([], [header_of("one", b"some state")])
    path.write_bytes(sound)
    assert files.load(id_) == b"some state"


def test_newer_and_foreign_files_are_left_alone(files: SessionFiles, folder: Path, tmp_path: Path) -> None:
    id_ = put(files, "one")
    sound = (folder / f"{id_}.session").read_bytes()
    other = file_id("default", "other", "d")
    planted = {
        "newer": sound.replace(MAGIC, b"modeld session 2\n"),
        "renamed": sound,
        "header-of-4-gib": MAGIC + b"\xff" * 100,
        "empty": b"",
    }
    for data in planted.values():
        (folder / f"{other}.session").write_bytes(data)
        assert [header.config.name for header, _ in files.scan()] == ["one"]
        assert files.load(other) == b""
        assert (folder / f"{other}.session").read_bytes() == data
    (folder / f"{other}.session").unlink()
    for plant in (os.mkfifo, os.mkdir, lambda path: os.symlink(folder / f"{id_}.session", path)):
        plant(folder / f"{other}.session")
        began = time.monotonic()
        assert [header.config.name for header, _ in files.scan()] == ["one"]
        assert files.load(other) == b""
        assert time.monotonic() - began < 1
        (folder / f"{other}.session").rename(tmp_path / str(plant))
    for name in ("notes.txt", "x.session", f"{'A' * 64}.session", f"{id_}.session.bak", ".hidden"):
        (folder / name).write_bytes(sound)
    assert [header.config.name for header, _ in files.scan()] == ["one"]
    assert len(list(folder.iterdir())) == 6


def test_config_that_is_none_is_not_used(files: SessionFiles, folder: Path) -> None:
    hostile = header_of("one", b"state")
    # Structs check when they are made, so a hostile one has to be made behind their back.
    structs.force_setattr(hostile.config, "name", "a\0b")
    assert files.apply(set(), {hostile.id: Change(hostile, b"state", True)}) == set()
    assert files.scan() == []


def test_folder_that_is_none(tmp_path: Path) -> None:
    assert SessionFiles(tmp_path / "none").scan() == []
    (tmp_path / "file").write_bytes(b"")
    files = SessionFiles(tmp_path / "file")
    assert files.scan() == []
    header = header_of("one")
    assert files.apply({"x"}, {header.id: Change(header)}) == {"x", header.id}


def test_leftovers_of_a_killed_node_go(files: SessionFiles, folder: Path) -> None:
    id_ = put(files, "one")
    (folder / f".{id_}.part").write_bytes(b"half")
    (folder / f"{file_id('default', 'gone', 'd')}.used").write_bytes(b"")
    assert len(files.scan()) == 1
    assert [path.name for path in folder.iterdir()] == [f"{id_}.session"]


def test_use_is_marked_until_the_next_state(files: SessionFiles, folder: Path) -> None:
    id_ = put(files, "one")
    assert files.apply({id_, "f" * 64}, {}) == set()
    assert [current for _, current in SessionFiles(folder).scan()] == [False]
    put(files, "one", b"later")
    assert [current for _, current in SessionFiles(folder).scan()] == [True]
    assert files.apply({id_}, {id_: Change(None)}) == set()
    assert list(folder.iterdir()) == []


def test_longest_unused_leave_first(folder: Path) -> None:
    files = SessionFiles(folder, max_files=3)
    ids = [put(files, str(number)) for number in range(3)]
    put(files, "0")
    put(files, "3")
    assert files.load(ids[1]) == b""
    assert [bool(files.load(id_)) for id_ in (ids[0], ids[2])] == [True, True]
    # A later node goes by the time of the files, and keeps to its own bounds.
    for age, name in enumerate(("3", "0", "2")):
        path = folder / f"{file_id('default', name, 'd')}.session"
        os.utime(path, (10**9 - age, 10**9 - age))
    size = path.stat().st_size
    smaller = SessionFiles(folder, max_bytes=2 * size)
    assert [header.config.name for header, _ in smaller.scan()] == ["0", "3"]
    put(smaller, "4")
    assert [header.config.name for header, _ in SessionFiles(folder).scan()] == ["3", "4"]


def test_nothing_is_written_after_close(files: SessionFiles, folder: Path) -> None:
    id_ = put(files, "one")
    before = (folder / f"{id_}.session").read_bytes()
    files.close()
    later = header_of("one", b"later")
    files.apply({id_}, {id_: Change(later, b"later", True), "f" * 64: Change(None)})
    files.apply(set(), {id_: Change(None)})
    assert [path.read_bytes() for path in folder.iterdir()] == [before]


@pytest.mark.parametrize("call", ["open", "fsync", "replace"])
def test_storage_that_fails_leaves_the_file_as_it_was(
    files: SessionFiles, folder: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    id_ = put(files, "one")
    later = header_of("one", b"later")

    def fail(*arguments: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full:
        full.setattr(session_files.os, call, fail)
        assert files.apply(set(), {id_: Change(later, b"later", True)}) == {id_}
    assert files.load(id_) == b"some state"
    assert len(list(folder.iterdir())) == 1


def test_a_thousand_sessions_are_read_at_once(files: SessionFiles, folder: Path) -> None:
    state = b"x" * 20_000
    headers = [header_of(str(number), state) for number in range(1000)]
    assert files.apply(set(), {header.id: Change(header, state, True) for header in headers}) == set()
    began = time.monotonic()
    assert len(SessionFiles(folder).scan()) == 1000
    # Seen: 0.06 s on two cores.
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("name", ["{id}.used", ".{id}.part"])
def test_planted_fifo_does_not_hang_who_writes(files: SessionFiles, folder: Path, name: str) -> None:
    id_ = put(files, "one")
    os.mkfifo(folder / name.format(id=id_))
    changes = {id_: Change(header_of("one", b"new"), b"new", current=False)}
    writer = threading.Thread(target=files.apply, args=({id_}, changes), daemon=True)
    writer.start()
    writer.join(5.0)
    assert not writer.is_alive()
    assert files.load(id_) in (b"some state", b"new")


def test_mark_of_the_next_owner_stays_though_a_write_comes_back_late(
    files: SessionFiles, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    id_ = put(files, "one")
    real = os.replace

    def late(source: Path, target: Path) -> None:
        real(source, target)
        files.close()
        (folder / f"{id_}.used").touch()

    monkeypatch.setattr(os, "replace", late)
    files.apply(set(), {id_: Change(header_of("one", b"new"), b"new", current=True)})
    assert (folder / f"{id_}.used").exists()
