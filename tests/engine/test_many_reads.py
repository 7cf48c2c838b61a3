"""Hazard: many sessions come back from files at once, and those that are not read at once are computed again."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
from msgspec import structs

from engine.test_scheduler_disk import GREEDY, DiskEngine, receipts
from engine.test_scheduler_states import LOAD, Engine, rendered
from modeld.engine.protocol import Load, Turn
from modeld.types import Message
from support.disks import StepwiseDisk, kv_files

TALKS = {key: (Message("user", letter * 100),) for key, letter in enumerate("xyz", 1)}


@pytest.fixture
def kept(tmp_path: Path) -> Load:
    """What an engine is started with on a folder that holds all the talks."""
    load = structs.replace(LOAD, cells=2000, window=1000, sequences=8, ram=10**6, disk=10**6, kv_folder=str(tmp_path))
    with (
        mock.patch("modeld.engine.disk.DiskThread", StepwiseDisk),
        mock.patch("modeld.engine.housekeeping.WRITE_SECONDS", 0.0),
    ):
        engine = DiskEngine(load)
        engine.ask(*(Turn(key, key, talk, GREEDY) for key, talk in TALKS.items()))
        assert engine.steps(1000)
    assert len(kv_files(tmp_path)) == len(TALKS)
    return load


def test_who_finds_no_place_among_what_is_read_waits_for_one(kept: Load) -> None:
    with (
        mock.patch("modeld.engine.disk.DiskThread", StepwiseDisk),
        mock.patch("modeld.engine.tiers.AHEAD_BYTES", 1),
    ):
        engine = Engine(kept)
        engine.ask(*(Turn(key, key, talk, GREEDY) for key, talk in TALKS.items()))
        tiers = engine.scheduler._pool._tiers
        thread = tiers._disk.thread  # type: ignore[union-attr]
        assert engine.steps(1000)
        for done in range(1, len(TALKS) + 1):
            assert thread.pending == 1
            thread.step()
            assert engine.steps(1000)
            assert len(receipts(engine)) == done
    for key, talk in TALKS.items():
        receipt = receipts(engine)[key]
        assert receipt.restored + receipt.reused == len(rendered(talk)) - 1
        assert receipt.prefilled == 1


def test_who_finds_no_place_and_a_disk_that_does_nothing_is_computed(kept: Load) -> None:
    with (
        mock.patch("modeld.engine.disk.DiskThread", StepwiseDisk),
        mock.patch("modeld.engine.tiers.AHEAD_BYTES", 1),
        mock.patch("modeld.engine.tiers.PATIENCE_SECONDS", -1.0),
    ):
        engine = Engine(kept)
        engine.ask(*(Turn(key, key, talk, GREEDY) for key, talk in TALKS.items()))
        assert engine.steps(1000)
    assert set(receipts(engine)) == set(TALKS)
    assert sum(receipt.restored for receipt in receipts(engine).values()) == 0
