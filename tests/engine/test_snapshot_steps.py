"""Hazard: a snapshot that stalls streams, takes what others need, or leaves something half done behind."""

from __future__ import annotations

import errno
import os
import time
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest

from modeld.engine import snapshots
from modeld.engine.protocol import (
    Cancel,
    Done,
    Explain,
    Failed,
    Forget,
    Load,
    Open,
    Parts,
    Restore,
    Settle,
    Snapshot,
    State,
    Suffix,
    Turn,
)
from modeld.engine.protocol import decode_result as decoded
from modeld.engine.transfers import Transfers
from modeld.session import ContextReport, ModelRef, PrefixStatus, SessionConfig, SnapshotInfo
from modeld.types import DecodeOptions, EndPart, Message, TextPart

from .test_scheduler_states import Engine, answer_to

GREEDY = DecodeOptions(temperature=0)
LONG = "a stone and a river and " * 100
SECONDS = 20.0


def started(**settings: Any) -> Engine:
    wanted: dict[str, Any] = {"cells": 20_000, "window": 6000, "sequences": 4, "batch": 512, **settings}
    return Engine(Load(path="", name="fake", digest="d", **wanted))


def asked(text: str, before: str = "") -> tuple[Message, ...]:
    said = (Message("system", before),) if before else ()
    return (*said, Message("user", text))


STORY = asked("and then?", LONG)
"""A long prompt with a short answer."""


def snapshot(id_: int, session: int, path: Path) -> Snapshot:
    return Snapshot(id_, session, str(path), ModelRef("fake"), SessionConfig(name=f"s{session}"))


def outcome(engine: Engine, id_: int) -> Done | Failed:
    """Go on until the request has ended. The disk's thread needs its time."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        for reply in engine.replies:
            if isinstance(reply, Done | Failed) and reply.id == id_:
                return reply
        if engine.steps(1):
            time.sleep(0.001)
    raise AssertionError(f"request {id_} did not end")


def result(engine: Engine, id_: int, kind: type[Any]) -> Any:
    reply = outcome(engine, id_)
    assert isinstance(reply, Done), reply
    return decoded(reply.result, kind)


def said(engine: Engine, id_: int) -> str:
    frames = [reply for reply in engine.replies if isinstance(reply, Parts) and reply.id == id_]
    return "".join(part.text for frame in frames for part in frame.parts if isinstance(part, TextPart))


def saved(engine: Engine, path: Path, session: int = 1) -> SnapshotInfo:
    engine.ask(snapshot(900, session, path))
    info: SnapshotInfo = result(engine, 900, SnapshotInfo)
    return info


class Moves:
    """Counts blocks that move, and the steps between which they do."""

    def __init__(self, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[str] = []
        for name in ("save", "restore", "step"):
            monkeypatch.setattr(engine.backend, name, self._counted(name, getattr(engine.backend, name)))

    def _counted(self, name: str, real: Any) -> Any:
        def call(*args: Any) -> Any:
            self.log.append("step" if name == "step" else "block")
            return real(*args)

        return call

    @property
    def most(self) -> int:
        """Blocks between two steps, at most."""
        return max(len(run) for run in "".join("s" if one == "step" else "b" for one in self.log).split("s"))


def test_session_that_was_saved_at_once_is_told_of_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modeld.engine.housekeeping.REST_SECONDS", 0.0)
    engine = started()
    engine.ask(Turn(1, 1, STORY, GREEDY, credit=10**6), snapshot(2, 1, tmp_path / "x"))
    result(engine, 2, SnapshotInfo)
    engine.steps(50)
    assert [reply.session for reply in engine.replies if isinstance(reply, State)] == [1]


def disk_that_is_always_done(transfers: Transfers) -> bool:
    """In the place of ``Transfers.ready``: the stream is not through before a slow disk is."""
    if transfers._awaited is not None:
        wait([transfers._awaited], SECONDS)
    return len(transfers) > 0


def test_running_stream_waits_for_one_block_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Transfers, "ready", property(disk_that_is_always_done))
    engine = started()
    engine.ask(Turn(1, 1, STORY, GREEDY, credit=10**6))
    result(engine, 1, EndPart)
    engine.ask(Turn(2, 2, asked("!count 200"), GREEDY, credit=10**6))
    while not said(engine, 2):
        engine.steps(1)
    moves = Moves(engine, monkeypatch)
    info = saved(engine, tmp_path / "x")
    assert moves.log.count("block") == -(-info.tokens // 256) == 10
    assert moves.most == 1
    del moves.log[:]
    engine.ask(Restore(3, 3, str(tmp_path / "x"), info.id))
    assert result(engine, 3, PrefixStatus).receipt.restored == info.tokens
    assert moves.log.count("block") == -(-info.tokens // 256)
    assert moves.most == 1
    assert not any(isinstance(reply, Done) and reply.id == 2 for reply in engine.replies)
    result(engine, 2, EndPart)
    assert said(engine, 2) == " ".join(map(str, range(1, 201)))


def test_restored_session_goes_on_where_it_was(tmp_path: Path) -> None:
    engine = started()
    engine.ask(Turn(1, 1, STORY, GREEDY, credit=10**6))
    result(engine, 1, EndPart)
    info = saved(engine, tmp_path / "x")
    fresh = started(sequences=2, cells=7000)
    fresh.ask(Restore(1, 5, str(tmp_path / "x"), info.id))
    assert result(fresh, 1, PrefixStatus).receipt.restored == info.tokens
    more = (*STORY, Message("assistant", answer_to(STORY)), Message("user", "and now?"))
    fresh.ask(Turn(2, 5, more, GREEDY, credit=10**6))
    end = result(fresh, 2, EndPart)
    assert said(fresh, 2) == answer_to(more)
    assert end.receipt.reused == info.tokens
    assert end.receipt.prefilled == end.usage.input - info.tokens < 40


def test_kv_that_had_left_for_ram_is_in_the_snapshot(tmp_path: Path) -> None:
    engine = started(ram=2**24)
    engine.ask(Turn(1, 1, STORY, GREEDY, credit=10**6))
    result(engine, 1, EndPart)
    tape = engine.scheduler._pool.sessions[1].tape
    engine.scheduler._pool.evict(engine.scheduler._pool.sessions[1])
    assert engine.scheduler._pool.sessions[1].gone == "evicted"
    info = saved(engine, tmp_path / "x")
    assert info.tokens == len(tape)
    # It stays where it was, with the reason that its next receipt tells.
    assert engine.scheduler._pool.sessions[1].gone == "evicted"
    assert engine.backend.used() == engine.scheduler._pool.used()
    fresh = started()
    fresh.ask(Restore(1, 1, str(tmp_path / "x"), info.id))
    assert result(fresh, 1, PrefixStatus).receipt.restored == len(tape)
    assert fresh.backend.tape(fresh.scheduler._pool.sessions[1].sequence) == tape


def test_prompt_that_needs_the_cells_of_a_snapshot_waits_for_its_end(tmp_path: Path) -> None:
    engine = started(cells=3000, window=3000, sequences=3)
    engine.ask(Turn(1, 1, asked("hi", "x" * 2000), GREEDY, credit=10**6))
    result(engine, 1, EndPart)
    other = asked("hello", "y" * 1500)
    engine.ask(snapshot(2, 1, tmp_path / "x"))
    engine.steps(2)
    engine.ask(Turn(3, 2, other, DecodeOptions(temperature=0, max_tokens=5), credit=10**6))
    assert result(engine, 3, EndPart).finish_reason == "length"
    assert said(engine, 3) == answer_to(other)[:5]
    assert result(engine, 2, SnapshotInfo).tokens > 2000


def test_requests_behind_a_snapshot_wait_in_their_order_and_explain_does_not(tmp_path: Path) -> None:
    engine = started()
    engine.ask(Turn(1, 1, STORY, GREEDY, credit=10**6))
    result(engine, 1, EndPart)
    turns = [Turn(id_, 1, asked(text), GREEDY) for id_, text in ((3, "b"), (7, "d"), (4, "c"))]
    engine.ask(snapshot(2, 1, tmp_path / "x"), *turns)
    engine.steps(1)
    engine.ask(Explain(5, 1), Cancel(3))
    engine.steps(1)
    engine.ask(Cancel(7), Forget(6, 1))
    assert result(engine, 5, ContextReport).resident > 2000
    result(engine, 6, type(None))
    ended = [reply.id for reply in engine.replies if isinstance(reply, Done | Failed)]
    assert ended == [1, 5, 3, 7, 2, 4, 6]
    assert said(engine, 4) == answer_to(asked("c"))
    assert 1 not in engine.scheduler._pool.sessions
    assert not engine.scheduler._transfers


@pytest.mark.parametrize("steps", [0, 1, 2, 5, 9])
def test_cancelled_in_the_middle_leaves_nothing(tmp_path: Path, steps: int) -> None:
    engine = started()
    engine.ask(Turn(1, 1, STORY, GREEDY, credit=10**6))
    result(engine, 1, EndPart)
    info = saved(engine, tmp_path / "kept")
    before = engine.backend.used(), engine.scheduler._pool.sessions[1].tape
    # Somebody else's stream, so that the scheduler goes on while the disk works.
    engine.ask(Turn(2, 2, asked("!count 300"), GREEDY, credit=10**6))
    engine.steps(3)
    engine.ask(snapshot(10, 1, tmp_path / "cut"), Restore(11, 3, str(tmp_path / "kept"), info.id))
    for id_ in (10, 11):
        engine.steps(steps)
        engine.ask(Cancel(id_))
        outcome(engine, id_)
    result(engine, 2, EndPart)
    engine.ask(Forget(12, 2), Forget(13, 3))
    result(engine, 13, type(None))
    settle(engine)
    cancelled = {reply.id for reply in engine.replies if isinstance(reply, Failed) and reply.code == "cancelled"}
    assert cancelled or steps > 5
    if 10 in cancelled:
        assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (engine.backend.used(), engine.scheduler._pool.sessions[1].tape) == before


def settle(engine: Engine) -> None:
    """Wait for what was asked of the disk's thread."""
    engine.scheduler._transfers._steps.__self__._disk.ask(lambda: None).result(SECONDS)  # type: ignore[attr-defined]


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


@pytest.mark.parametrize("left", [0, 100, 3000, 6000])
def test_full_disk_is_told_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int) -> None:
    engine = started()
    engine.ask(Turn(1, 1, STORY, GREEDY, credit=10**6))
    result(engine, 1, EndPart)
    with monkeypatch.context() as patched:
        real = os.fdopen
        patched.setattr(snapshots.os, "fdopen", lambda *args: FullDisk(real(*args), left))
        engine.ask(snapshot(2, 1, tmp_path / "x"))
        failed = outcome(engine, 2)
    assert isinstance(failed, Failed)
    assert (failed.code, "disk is full" in failed.message) == ("storage_failed", True)
    assert list(tmp_path.iterdir()) == []
    assert saved(engine, tmp_path / "x").tokens > 2000


def test_block_that_does_not_read_back_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = started()
    engine.ask(Turn(1, 1, STORY, GREEDY, credit=10**6), Turn(2, 2, asked("mine"), GREEDY))
    result(engine, 1, EndPart)
    result(engine, 2, EndPart)
    info = saved(engine, tmp_path / "x")
    before = engine.backend.used(), engine.scheduler._pool.sessions[2].tape
    real, count = engine.backend.restore, 0

    def third_fails(*args: Any) -> bool:
        nonlocal count
        count += 1
        return count < 3 and real(*args)

    with monkeypatch.context() as patched:
        patched.setattr(engine.backend, "restore", third_fails)
        engine.ask(Restore(3, 2, str(tmp_path / "x"), info.id))
        failed = outcome(engine, 3)
    assert isinstance(failed, Failed)
    assert failed.details == {"field": "state"}
    assert (engine.backend.used(), engine.scheduler._pool.sessions[2].tape) == before
    more = (*asked("mine"), Message("assistant", answer_to(asked("mine"))), Message("user", "b"))
    engine.ask(Turn(4, 2, more, GREEDY))
    assert result(engine, 4, EndPart).receipt.reused == len(before[1])
    assert said(engine, 4) == answer_to(more)


def test_snapshot_larger_than_what_is_free_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    big = started()
    big.ask(Turn(1, 1, STORY, GREEDY, credit=10**6))
    result(big, 1, EndPart)
    info = saved(big, tmp_path / "x")
    small = started(cells=3000, window=3000)
    small.ask(Turn(1, 1, asked("mine"), GREEDY), Turn(2, 2, asked("hello", "y" * 800), GREEDY, credit=3))
    small.steps(900)
    before = small.scheduler._pool.sessions[1].tape
    small.ask(Restore(3, 1, str(tmp_path / "x"), info.id))
    failed = outcome(small, 3)
    assert isinstance(failed, Failed)
    assert failed.code == "does_not_fit"
    assert small.scheduler._pool.sessions[1].tape == before
    narrow = started(window=500)
    narrow.ask(Restore(1, 1, str(tmp_path / "x"), info.id))
    refused = outcome(narrow, 1)
    assert isinstance(refused, Failed)
    assert (refused.code, refused.details["window"]) == ("context_overflow", 500)


def test_file_that_changes_while_it_is_read_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = started()
    engine.ask(Turn(1, 1, STORY, GREEDY, credit=10**6))
    result(engine, 1, EndPart)
    path = tmp_path / "x"
    info = saved(engine, path)
    real = snapshots.SnapshotReader.verify

    def verify_then_damage(self: Any) -> Any:
        verified = real(self)
        data = bytearray(path.read_bytes())
        data[-10] ^= 1
        path.write_bytes(data)
        return verified

    monkeypatch.setattr(snapshots.SnapshotReader, "verify", verify_then_damage)
    engine.ask(Restore(3, 2, str(path), info.id))
    failed = outcome(engine, 3)
    assert isinstance(failed, Failed)
    assert (failed.code, failed.details) == ("manifest_mismatch", {"field": "checksum"})
    assert engine.scheduler._pool.get(2).tape == []


def test_kv_that_only_files_hold_is_in_the_snapshot(tmp_path: Path) -> None:
    folder = {"ram": 2**24, "disk": 2**24, "kv_folder": str(tmp_path / "kv")}
    engine = started(**folder)
    engine.ask(Turn(1, 1, STORY, GREEDY, credit=10**6))
    result(engine, 1, EndPart)
    tape = tuple(engine.scheduler._pool.sessions[1].tape)
    engine.ask(Settle(2, 5.0))
    result(engine, 2, type(None))
    (state,) = [reply for reply in engine.replies if isinstance(reply, State)]
    fresh = started(**folder)
    fresh.ask(Open(1, tape, state=state.state))
    assert saved(fresh, tmp_path / "x").tokens == len(tape)
    assert fresh.scheduler._pool.audit() == ()


def test_audit_during_a_snapshot_counts_what_it_holds(tmp_path: Path) -> None:
    engine = started(ram=2**24)
    engine.ask(Turn(1, 1, STORY, GREEDY, credit=10**6))
    result(engine, 1, EndPart)
    engine.scheduler._pool.evict(engine.scheduler._pool.sessions[1])
    info = saved(engine, tmp_path / "x")
    engine.ask(snapshot(2, 1, tmp_path / "y"), Restore(3, 2, str(tmp_path / "x"), info.id))
    faults = []
    while not any(isinstance(reply, Done) and reply.id == 3 for reply in engine.replies):
        engine.steps(1)
        faults += engine.scheduler._pool.audit()
    assert faults == []


def test_disk_that_takes_nothing_and_deletes_nothing_does_not_end_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    engine = started()
    engine.ask(Turn(1, 1, STORY, GREEDY, credit=10**6))
    result(engine, 1, EndPart)
    monkeypatch.setattr(os, "fsync", broken)
    monkeypatch.setattr(os, "unlink", broken)
    engine.ask(snapshot(2, 1, tmp_path / "x"))
    reply = outcome(engine, 2)
    assert isinstance(reply, Failed)
    assert reply.code == "storage_failed"


def test_kv_that_a_failed_step_took_ends_the_snapshot_and_not_the_engine(tmp_path: Path) -> None:
    engine = Engine(Load("", "fake:whole=1", "d", cells=20_000, window=6000, sequences=6))
    engine.ask(Turn(1, 1, asked("hi"), GREEDY, credit=10**6))
    result(engine, 1, EndPart)
    engine.ask(Turn(2, 2, asked("!fail"), GREEDY), Turn(3, 3, asked("good"), GREEDY), snapshot(4, 1, tmp_path / "x"))
    reply = outcome(engine, 4)
    assert isinstance(reply, Failed)
    assert reply.code == "session_error"
    assert result(engine, 3, EndPart).finish_reason == "stop"
    settle(engine)
    assert list(tmp_path.iterdir()) == []


def test_session_whose_last_call_is_not_known_is_not_known_from_its_snapshot_either(tmp_path: Path) -> None:
    engine = started()
    engine.ask(Open(1, (1, 2, 3)))
    info = saved(engine, tmp_path / "x")
    engine.ask(Restore(2, 2, str(tmp_path / "x"), info.id), Suffix(3, 2, asked("and then?")))
    reply = outcome(engine, 3)
    assert isinstance(reply, Failed)
    assert reply.code == "invalid_request"


def test_session_is_told_after_a_snapshot_that_came_before_it_rested(tmp_path: Path) -> None:
    engine = started()
    engine.ask(Turn(1, 1, asked("hi"), GREEDY, credit=10**6), snapshot(2, 1, tmp_path / "x"))
    result(engine, 2, SnapshotInfo)
    engine.ask(Settle(3, 5.0))
    result(engine, 3, type(None))
    assert [reply.session for reply in engine.replies if isinstance(reply, State)] == [1]


def test_who_looks_at_a_session_does_not_use_it(tmp_path: Path) -> None:
    engine = started()
    engine.ask(Turn(1, 1, asked("hi"), GREEDY, credit=10**6))
    result(engine, 1, EndPart)
    used = engine.scheduler._pool.sessions[1].last_used
    engine.ask(Explain(2, 1))
    result(engine, 2, ContextReport)
    # Else who looks every second would keep this and all later ones from being told.
    assert engine.scheduler._pool.sessions[1].last_used == used
