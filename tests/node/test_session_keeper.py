"""Hazard: states that come too often, too late, or while storage does not work."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modeld.engine.protocol import Explain, Fork, Prefix, State, Tape
from modeld.node import session_files, session_keeper
from modeld.node.session_files import SessionFiles
from modeld.node.session_keeper import SessionKeeper
from modeld.node.sessions import SessionRecord, SessionRegistry
from modeld.session import Manifest, ModelRef, SessionConfig

pytestmark = pytest.mark.anyio

MANIFEST = Manifest(engine="fake", engine_build="1", model_digest="d", template_digest="t")


@pytest.fixture
def registry() -> SessionRegistry:
    return SessionRegistry()


@pytest.fixture
async def keeper(tmp_path: Path, registry: SessionRegistry) -> AsyncIterator[SessionKeeper]:
    keeper = SessionKeeper(tmp_path, registry)
    await keeper.known()
    yield keeper
    await keeper.aclose(5)


def opened(registry: SessionRegistry, name: str) -> SessionRecord:
    record = registry.open(ModelRef("fake", digest="d"), SessionConfig(name=name))
    registry.introduce(record, 1, MANIFEST, 100)
    return record


def asked(record: SessionRecord, id_: int) -> Prefix:
    return Prefix(id_, record.key, ())


def on_disk(folder: Path) -> dict[str, tuple[bytes, bool]]:
    files = SessionFiles(folder)
    return {header.config.name: (files.load(header.id), current) for header, current in files.scan()}


async def test_state_that_crossed_a_call_is_not_what_the_session_is(
    keeper: SessionKeeper, registry: SessionRegistry, tmp_path: Path
) -> None:
    record, other = opened(registry, "one"), opened(registry, "other")
    keeper.asked(asked(record, 4))
    keeper.told(State(record.key, b"four", after=4))
    assert record.current
    keeper.asked(Explain(5, record.key))
    assert record.current
    keeper.asked(asked(record, 6))
    keeper.told(State(record.key, b"before six", after=5))
    assert not record.current
    keeper.told(State(other.key, b"before seven", after=6))
    keeper.asked(Fork(7, record.key, other.key))
    keeper.told(State(other.key, b"still before seven", after=6))
    keeper.told(State(record.key, b"seven", after=7))
    assert (record.current, other.current) == (True, False)
    await keeper.aclose(5)
    found = await asyncio.to_thread(on_disk, tmp_path)
    assert found == {"one": (b"seven", True), "other": (b"still before seven", False)}


async def test_busy_session_is_written_once_in_a_round(
    keeper: SessionKeeper, registry: SessionRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_keeper, "ROUND_SECONDS", 0.3)
    rounds: list[list[bytes]] = []
    apply = SessionFiles.apply

    def counted(self: SessionFiles, used: set[str], changes: dict[str, session_files.Change]) -> set[str]:
        if changes:
            rounds.append([change.state for change in changes.values()])
        return apply(self, used, changes)

    monkeypatch.setattr(SessionFiles, "apply", counted)
    record = opened(registry, "busy")
    for number in range(1, 31):
        keeper.asked(asked(record, number))
        keeper.told(State(record.key, b"%d" % number, after=number))
        await asyncio.sleep(0.02)
    await keeper.aclose(5)
    assert 2 <= len(rounds) <= 5
    assert all(len(states) == 1 for states in rounds)
    assert await asyncio.to_thread(on_disk, tmp_path) == {"busy": (b"30", True)}


async def test_what_waits_is_what_an_engine_gets(keeper: SessionKeeper, registry: SessionRegistry) -> None:
    record = opened(registry, "one")
    assert await keeper.load(record) == b""
    keeper.told(State(record.key, b"state"))
    assert await keeper.load(record) == b"state"
    keeper.remove(record)
    assert await keeper.load(record) == b""


async def test_states_that_cannot_be_written_do_not_pile_up(
    keeper: SessionKeeper, registry: SessionRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_keeper, "ROUND_SECONDS", 0.01)
    monkeypatch.setattr(session_keeper, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(session_keeper, "MAX_UNWRITTEN", 250)

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    records = [opened(registry, str(number)) for number in range(5)]
    with monkeypatch.context() as storage:
        storage.setattr(session_files.os, "fsync", full)
        for record in records:
            keeper.told(State(record.key, b"x" * 100))
        await asyncio.sleep(0.3)
        # Given up, and known to be: nobody goes on from what is not there.
        assert [record.current for record in records] == [False, False, False, True, True]
        assert [len(await keeper.load(record)) for record in records] == [0, 0, 0, 100, 100]
    await keeper.aclose(5)
    assert sorted(await asyncio.to_thread(on_disk, tmp_path)) == ["3", "4"]


async def test_use_while_a_failed_write_waits_is_not_forgotten(
    keeper: SessionKeeper, registry: SessionRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_keeper, "ROUND_SECONDS", 0.01)
    monkeypatch.setattr(session_keeper, "RETRY_SECONDS", 0.05)
    record = opened(registry, "one")
    loop = asyncio.get_running_loop()

    def fails_while_it_is_used(fd: int) -> None:
        loop.call_soon_threadsafe(keeper.asked, asked(record, 9))
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as storage:
        storage.setattr(session_files.os, "fsync", fails_while_it_is_used)
        keeper.told(State(record.key, b"state"))
        await asyncio.sleep(0.04)
    await keeper.aclose(5)
    assert await asyncio.to_thread(on_disk, tmp_path) == {"one": (b"state", False)}


async def test_records_that_nobody_knows_are_not_written(
    keeper: SessionKeeper, registry: SessionRegistry, tmp_path: Path
) -> None:
    record = opened(registry, "fatal")
    registry.tape_changed(Tape(record.key, 0, fatal=True))
    keeper.told(State(record.key, b"state"))
    keeper.told(State(99, b"state"))
    await keeper.aclose(5)
    assert await asyncio.to_thread(on_disk, tmp_path) == {}
