"""Hazard: any order of requests, slow files, damage and restarts. No wrong cell, and no budget that is passed.

As in ``test_scheduler_states``: the fake's answers prove that no wrong token was ever used.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule
from msgspec import structs

from engine.test_scheduler_states import LOAD, Engine, Sessions, rendered
from modeld.engine.protocol import Cancel, Credit, Done, Held, Load, Open, Request, Settle, Turn, decode_result
from modeld.types import DecodeOptions, EndPart, Message, Receipt
from support.disks import StepwiseDisk, kv_files, spoil
from support.examples import examples

BLOCK = 32
RAM, DISK = 1500, 5000


class Killed(BaseException):
    """Here the process ended."""


class DiskEngine(Engine):
    """An engine whose files are touched when it waits, or when the test says so."""

    def __init__(self, load: Load) -> None:
        super().__init__(load)
        tiers = self.scheduler._pool._tiers
        assert tiers is not None
        self.tiers = tiers
        assert tiers._disk is not None
        assert isinstance(tiers._disk.thread, StepwiseDisk)
        self.thread = tiers._disk.thread
        get = self.inbox.get

        def wait(block: bool = True, timeout: float | None = None) -> Request:
            if timeout != 0 and self.inbox.empty() and self.thread.has_work:
                self.thread.step()
            return get(block, timeout)

        self.inbox.get = wait  # type: ignore[method-assign]


class DiskSessions(Sessions):
    """Main memory and files for some of it, and an engine that ends at any time."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.load = structs.replace(LOAD, ram=RAM, disk=DISK, kv_folder=self.folder.name)
        self.patches = [
            mock.patch("modeld.engine.disk.DiskThread", StepwiseDisk),
            mock.patch("modeld.engine.housekeeping.WRITE_SECONDS", 0.0),
            mock.patch("modeld.engine.blocks.BLOCK", BLOCK),
            # Nothing here loses its power, and a busy disk takes its time.
            mock.patch("os.fsync"),
        ]
        for patch in self.patches:
            patch.start()
        super().__init__()
        self.start()

    def teardown(self) -> None:
        for patch in self.patches:
            patch.stop()
        self.folder.cleanup()

    def audited(self) -> None:
        # Files that others changed are seen when they are read.
        if not self.spoilt:
            super().audited()

    def start(self) -> None:
        self.engine: DiskEngine = DiskEngine(self.load)
        self.spoilt = False
        self.asked.clear()
        self.tapes.clear()

    @rule(count=st.integers(1, 5))
    def files_are_touched(self, count: int) -> None:
        for _ in range(count):
            if self.engine.thread.has_work:
                self.engine.thread.step()

    @rule()
    def killed(self) -> None:
        self.start()

    @rule(call=st.sampled_from(["fsync", "replace", "write"]))
    def killed_while_writing(self, call: str) -> None:
        with mock.patch(f"os.{call}", side_effect=Killed):
            try:
                self.engine.steps(200)
            except Killed:
                self.start()

    @rule()
    def settled_and_stopped(self) -> None:
        self.drain()
        self.ask(Settle(self.ids + 1, 5.0))
        assert self.engine.steps(20_000)
        self.read()
        self.start()

    @rule(which=st.integers(0, 50), how=st.integers(0, 5), where=st.integers(0, 10**6))
    def a_file_is_spoilt(self, which: int, how: int, where: int) -> None:
        if files := kv_files(Path(self.folder.name)):
            spoil(files[which % len(files)], how, where)
            self.spoilt = True

    @rule()
    def drain(self) -> None:
        super().drain()
        assert not self.engine.thread.has_work
        tiers = self.engine.tiers
        assert not any(block.reading or block.writing for block in tiers._doubles | tiers._loose | tiers._last)
        if not self.spoilt:
            assert tiers.disk == sum(path.stat().st_size for path in kv_files(Path(self.folder.name)))

    @invariant()
    def budgets_hold(self) -> None:
        assert self.engine.tiers.ram <= RAM
        assert self.engine.tiers.disk <= DISK
        assert sum(path.stat().st_size for path in kv_files(Path(self.folder.name))) <= DISK


TestDiskSessions = DiskSessions.TestCase
TestDiskSessions.settings = settings(
    max_examples=examples(60), stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)


TALK = (Message("user", "x" * 100),)
GREEDY = DecodeOptions(temperature=0)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Load]:
    """What an engine is started with on a folder that holds a conversation."""
    load = structs.replace(LOAD, cells=2000, window=1000, ram=10**6, disk=10**6, kv_folder=str(tmp_path))
    with (
        mock.patch("modeld.engine.disk.DiskThread", StepwiseDisk),
        mock.patch("modeld.engine.housekeeping.WRITE_SECONDS", 0.0),
    ):
        engine = DiskEngine(load)
        engine.ask(Turn(1, 1, TALK, GREEDY))
        assert engine.steps(1000)
        assert len(kv_files(tmp_path)) == 1
        yield load


def receipts(engine: Engine) -> dict[int, Receipt]:
    return {
        reply.id: decode_result(reply.result, EndPart).cost() for reply in engine.replies if isinstance(reply, Done)
    }


def test_others_go_on_while_one_waits_for_a_file_and_it_goes_on_when_it_was_read(kept: Load) -> None:
    engine = Engine(kept)
    disk = engine.scheduler._pool._tiers._disk  # type: ignore[union-attr]
    assert disk is not None
    assert isinstance(disk.thread, StepwiseDisk)
    engine.ask(Turn(1, 1, TALK, GREEDY), Turn(2, 2, (Message("user", "!count 30"),), GREEDY))
    assert engine.steps(1000)  # Then it waits: it does not run in circles.
    assert set(receipts(engine)) == {2}
    disk.thread.step()
    assert engine.steps(1000)
    assert receipts(engine)[1].restored == len(rendered(TALK)) - 1
    assert receipts(engine)[1].prefilled == 1


def test_who_waits_for_a_disk_that_does_nothing_is_computed(kept: Load) -> None:
    engine = Engine(kept)
    disk = engine.scheduler._pool._tiers._disk  # type: ignore[union-attr]
    assert disk is not None
    held = tuple(engine.backend.tokenize(rendered(TALK).encode(), add_special=False))
    engine.ask(Open(1, held), Turn(1, 1, TALK, GREEDY))
    assert engine.steps(1000)
    assert receipts(engine) == {}
    disk.thread._progress -= 100
    engine.ask(Credit(0, 0))
    assert engine.steps(1000)
    receipt = receipts(engine)[1]
    assert (receipt.restored, receipt.prefilled) == (0, len(rendered(TALK)))
    assert receipt.stop is not None
    assert receipt.stop.reason == "engine_lost"


def test_a_job_that_waits_for_a_file_can_be_cancelled(kept: Load) -> None:
    engine = Engine(kept)
    engine.ask(Turn(1, 1, TALK, GREEDY))
    assert engine.steps(1000)
    engine.control.cancel(1)
    engine.ask(Cancel(1))
    assert engine.steps(1000)
    assert receipts(engine)[1].prefilled == 0
    assert engine.scheduler._active == []


def test_settle_writes_what_is_younger_than_it_need_be(kept: Load) -> None:
    with mock.patch("modeld.engine.housekeeping.WRITE_SECONDS", 1000.0):
        engine = DiskEngine(kept)
        talk = (Message("user", "y" * 500),)
        engine.ask(Turn(1, 1, talk, GREEDY))
        assert engine.steps(1000)
        before = engine.tiers.disk
        engine.ask(Settle(2, 5.0))
        assert engine.steps(1000)
    assert not engine.thread.has_work
    held = [reply for reply in engine.replies if isinstance(reply, Held)][-1]
    assert held.disk == engine.tiers.disk > before
    assert DiskEngine(kept).tiers.blocks.length([ord(rune) for rune in rendered(talk)]) == len(rendered(talk))
