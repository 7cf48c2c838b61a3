"""Never two owners at once and epochs that grow, in any order of faults: a state machine over simulated processes.

Lock, record and epoch are real files; ``flock`` of several descriptors of one process conflicts as between processes.
Simulated are the clock, the processes (pids, stops, deaths, forks) and what a write does. Sleeping moves the clock, and
while it moves the other processes renew when they are due, so that every wait is a place where others act.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings, strategies
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from modeld.errors import LeaseLostError, ModeldError, NodeError, OwnerHeldError, OwnerWedgedError
from modeld.node import eviction, lockfile, owner
from modeld.node.lockfile import is_path_of
from modeld.node.owner import OwnerLease
from modeld.node.record import read_epoch_file, read_record
from support.examples import examples

TTL = 1.0
STEPS = 10_000


class Died(BaseException):
    """The simulated process was killed while it ran this code."""


class Process:
    """A simulated process. ``due`` is when it renews next."""

    def __init__(self, pid: int, born: int) -> None:
        self.pid = pid
        self.born = born
        self.lease: OwnerLease | None = None
        self.alive = True
        self.stopped_at: float | None = None
        self.busy = False
        self.due = 0.0
        self.children: list[int] = []

    @property
    def owns(self) -> bool:
        return self.alive and self.lease is not None and self.lease.lost is None

    def die(self) -> None:
        self.alive = False
        if self.lease is not None:
            os.close(self.lease._fd)
            self.lease = None


class World:
    """Clock, processes and storage. Stands in for the module ``time`` in the code under test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now = 1000.0
        self.wall = 1.7e9
        self.full = False
        self.write_takes = 0.0
        self.real_fdopen = os.fdopen
        self.unlinked_at = 0.0
        self.highest = 0
        self.kills = 0
        self.processes: list[Process] = []
        self.current: Process | None = None
        self.aside: Callable[[], object] | None = None
        self.handles: dict[int, Process] = {}

    # time

    def monotonic(self) -> float:
        return self.now

    def time(self) -> float:
        return self.wall + self.now

    def sleep(self, seconds: float) -> None:
        self.run_aside()
        self.advance(seconds)

    def run_aside(self) -> None:
        """What another process was meant to do in the next wait of this one."""
        if self.aside is not None:
            aside, self.aside = self.aside, None
            aside()
        if self.current is not None and not self.current.alive:
            raise Died

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            due = [p for p in self.processes if p.owns and not p.busy and p.stopped_at is None and p.due <= end]
            if not due:
                break
            process = min(due, key=lambda p: p.due)
            self.now = max(self.now, process.due)
            self.renew(process)
        self.now = max(self.now, end)

    # processes

    @contextmanager
    def run(self, process: Process) -> Iterator[None]:
        before, self.current, process.busy = self.current, process, True
        try:
            yield
        except Died:
            if process.alive:
                raise
        finally:
            self.current, process.busy = before, False

    def getpid(self) -> int:
        return 0 if self.current is None else self.current.pid

    def find(self, pid: int) -> Process | None:
        return next((p for p in self.processes if p.alive and p.pid == pid), None)

    def start_time(self, pid: int) -> int | None:
        process = self.find(pid)
        return None if process is None else process.born

    def open(self, pid: int) -> int:
        process = self.find(pid)
        if process is None:
            raise ProcessLookupError
        handle = os.open(os.devnull, os.O_RDONLY)
        self.handles[handle] = process
        return handle

    def kill(self, handle: int) -> None:
        victim = self.handles.pop(handle)
        assert victim.lease is not None
        assert is_path_of(victim.lease._fd, self.root / "owner.lock"), "killed one that does not hold the lock"
        # It renewed no later than this: a process that lives renews in time, unless it stopped or hangs in storage.
        assert victim.stopped_at is not None or victim.busy, "killed a living owner"
        assert self.now - victim.lease._renewed_at >= TTL
        self.kills += 1
        victim.die()

    def holds(self, pid: int, path: Path) -> bool:
        process = self.find(pid)
        return process is not None and process.lease is not None and is_path_of(process.lease._fd, path)

    # storage

    def fdopen(self, fd: int, mode: str) -> IO[Any]:
        """A file is written: where storage hangs, it does so here."""
        file = self.real_fdopen(fd, mode)
        try:
            self.written(fd)
        except BaseException:
            file.close()
            raise
        return file

    def written(self, fd: int) -> None:
        os.utime(fd, (self.time(), self.time()))
        if self.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        me = self.current
        self.run_aside()
        if self.write_takes:
            self.advance(self.write_takes)
        if me is not None and me.lease is not None and me.lease.remaining() <= 0:
            me.lease.lose("renew-failed")  # as keep() does, from another thread

    # what processes do

    def start(self, evict: bool, pid: int | None = None) -> ModeldError | None:
        """A new process asks for the lease, and ends where it does not get it."""
        process = Process(pid or 1000 + len(self.processes), len(self.processes))
        self.processes.append(process)
        refused: ModeldError | None = None
        with self.run(process):
            try:
                lease = OwnerLease.acquire(self.root, ttl=TTL, evict=evict)
            except NodeError as error:
                process.alive, refused = False, error
            else:
                assert lease.epoch > self.highest, "an epoch was handed out again"
                self.highest = lease.epoch
                process.lease, process.due = lease, self.now + TTL / 3
        return refused

    def renew(self, process: Process) -> None:
        assert process.lease is not None
        started_under = self.highest
        process.due = self.now + TTL / 3
        with self.run(process):
            try:
                if process.lease.renew() == "ok":
                    assert process.lease.epoch >= started_under, "an owner of the past renewed"
                else:
                    process.due = self.now + TTL / 10
            except LeaseLostError:
                pass
        if process.lease is not None and process.lease.lost:
            self.end(process)

    def end(self, process: Process) -> None:
        assert process.lease is not None
        with self.run(process):
            process.lease.release()
            process.lease, process.alive = None, False


class Ownership(RuleBasedStateMachine):
    steps = 0
    seen: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="modeld-model-"))
        self.world = world = World(self.root)
        self.patch = patch = pytest.MonkeyPatch()
        for module in (owner, eviction, lockfile):
            patch.setattr(module, "time", world)
        for module in (owner, eviction):
            patch.setattr(module, "process_start_time", world.start_time)
        patch.setattr(owner._log, "disabled", True)
        patch.setattr(os, "getpid", world.getpid)
        patch.setattr(os, "fdopen", world.fdopen)
        patch.setattr(eviction, "_open", world.open)
        patch.setattr(eviction, "_kill", world.kill)
        patch.setattr(eviction, "_holds_lock", world.holds)

    def teardown(self) -> None:
        self.patch.undo()
        for process in self.world.processes:
            process.die()
            for child in process.children:
                os.close(child)
        shutil.rmtree(self.root)

    # helpers

    @property
    def owners(self) -> list[Process]:
        return [process for process in self.world.processes if process.owns]

    def holder(self) -> Process | None:
        """The process whose descriptor has the lock that the path names."""
        lock = self.root / "owner.lock"
        return next((p for p in self.owners if p.lease is not None and is_path_of(p.lease._fd, lock)), None)

    def pick(self, which: int) -> Process:
        return self.owners[which % len(self.owners)]

    def both_copies(self) -> bool:
        record = read_record(self.root)
        return record is not None and record.epoch == read_epoch_file(self.root) == self.world.highest

    def saw(self, what: str) -> None:
        type(self).seen[what] += 1

    # rules

    @rule(evict=strategies.booleans())
    def acquire(self, evict: bool) -> None:
        world, holder = self.world, self.holder()
        record = read_record(self.root)
        ours = holder is not None and holder.lease is not None and record == holder.lease.record
        stuck = holder is not None and holder.stopped_at is not None and not holder.children and ours
        living = holder is not None and holder.stopped_at is None and ours and not world.full and not world.write_takes
        old = not -2 * TTL < world.time() - self._mtime() < TTL / 2
        before = world.now
        error = world.start(evict)
        if living:
            assert isinstance(error, OwnerHeldError)
            assert holder is not None
            assert holder.alive
            self.saw("held")
        elif stuck and old and evict:
            assert holder is not None
            assert not holder.alive
            assert (error is None) is not world.full
            assert world.now - before < TTL + 1 + 4 * world.write_takes
            self.saw("evicted")
        if isinstance(error, OwnerWedgedError):
            self.saw("wedged")
        if world.full:
            assert error is not None

    def _mtime(self) -> float:
        with suppress(FileNotFoundError):
            return os.stat(self.root / "owner.json").st_mtime
        return 0.0

    @rule(seconds=strategies.sampled_from([0.05, 0.3, 0.6, 1.2, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.world.advance(seconds)

    @precondition(lambda self: self.owners)
    @rule(which=strategies.integers(0, 7))
    def crash(self, which: int) -> None:
        self.pick(which).die()

    @precondition(lambda self: self.owners)
    @rule(which=strategies.integers(0, 7), seconds=strategies.sampled_from([0.0, 0.5 * TTL, 1.5 * TTL]))
    def stop(self, which: int, seconds: float) -> None:
        process = self.pick(which)
        if process.stopped_at is None:
            process.stopped_at = self.world.now
        self.world.advance(seconds)

    @precondition(lambda self: self.owners)
    @rule(which=strategies.integers(0, 7))
    def stopped_owner_is_evicted(self, which: int) -> None:
        self.stop(which, 0.6 * TTL)
        self.acquire(True)

    @precondition(lambda self: self.owners)
    @rule(which=strategies.integers(0, 7))
    def go_on(self, which: int) -> None:
        process = self.pick(which)
        process.stopped_at = None
        self.world.advance(0)

    @precondition(lambda self: self.owners)
    @rule(which=strategies.integers(0, 7))
    def fork(self, which: int) -> None:
        process = self.pick(which)
        assert process.lease is not None
        process.children.append(os.dup(process.lease._fd))

    @rule()
    def forked_children_end(self) -> None:
        for process in self.world.processes:
            while process.children:
                os.close(process.children.pop())

    @precondition(lambda self: self.owners)
    @rule(which=strategies.integers(0, 7))
    def release(self, which: int) -> None:
        process = self.pick(which)
        if process.stopped_at is None:
            self.world.end(process)

    @precondition(lambda self: self.owners)
    @rule(which=strategies.integers(0, 7))
    def publish(self, which: int) -> None:
        process = self.pick(which)
        assert process.lease is not None
        if process.stopped_at is None:
            highest = self.world.highest
            with self.world.run(process):
                try:
                    process.lease.publish(backend="llama")
                    assert process.lease.epoch == highest
                except LeaseLostError:
                    pass
                except NodeError:
                    assert self.world.full
            if process.lease is not None and process.lease.lost:
                self.world.end(process)

    @rule()
    def lock_file_is_unlinked(self) -> None:
        (self.root / "owner.lock").unlink(missing_ok=True)
        self.world.unlinked_at = self.world.now

    @precondition(lambda self: self.both_copies())
    @rule(content=strategies.sampled_from([None, b"", b'{"epoch": 0', b"\0" * 600]))
    def record_is_damaged(self, content: bytes | None) -> None:
        (self.root / "owner.json").unlink()
        if content is not None:
            (self.root / "owner.json").write_bytes(content)

    @precondition(lambda self: self.both_copies())
    @rule(content=strategies.sampled_from([None, b"", b"-4", b"x"]))
    def epoch_is_damaged(self, content: bytes | None) -> None:
        (self.root / "owner.epoch").unlink()
        if content is not None:
            (self.root / "owner.epoch").write_bytes(content)

    @rule(seconds=strategies.sampled_from([-3600.0, -0.4, 0.4, 3600.0]))
    def wall_clock_is_set(self, seconds: float) -> None:
        self.world.wall += seconds

    @rule(full=strategies.sampled_from([False, False, True]))
    def disk(self, full: bool) -> None:
        self.world.full = full

    @rule(seconds=strategies.sampled_from([0.0, 0.0, 0.0, 0.1, 0.6]))
    def storage_is_slow(self, seconds: float) -> None:
        self.world.write_takes = seconds

    @rule(evict=strategies.booleans(), reused=strategies.booleans())
    def a_contender_comes_while_another_waits(self, evict: bool, reused: bool) -> None:
        """Two contend at once; the second may have the pid of one that died."""
        dead = [p.pid for p in self.world.processes if not p.alive and self.world.find(p.pid) is None]
        self.world.aside = lambda: self.world.start(evict, dead[-1] if reused and dead else None)
        self.world.start(True)
        self.world.aside = None

    @precondition(lambda self: self.owners)
    @rule(which=strategies.integers(0, 7), unlink=strategies.booleans())
    def a_contender_comes_while_a_renewal_hangs(self, which: int, unlink: bool) -> None:
        process = self.pick(which)

        def contend() -> None:
            if unlink:
                self.lock_file_is_unlinked()
            self.world.start(True)

        if process.stopped_at is None:
            self.world.aside = contend
            self.world.renew(process)
            self.world.aside = None
            self.saw("hung")

    # what must always be true

    @invariant()
    def one_owner_at_once(self) -> None:
        type(self).steps += 1
        lock, holders = self.root / "owner.lock", 0
        for process in self.owners:
            assert process.lease is not None
            if is_path_of(process.lease._fd, lock):
                holders += 1
                assert process.lease.epoch == self.world.highest, "the lock is held by an owner of the past"
            elif process.stopped_at is None and not process.busy:
                # Only an unlinked lock does this, and not for longer than a renewal, however slow its storage.
                late = self.world.now - self.world.unlinked_at
                assert late <= TTL / 3 + 4 * self.world.write_takes + TTL / 2, "a second owner did not notice"
        assert holders <= 1


def test_never_two_owners_and_epochs_grow() -> None:
    Ownership.steps, Ownership.seen = 0, Counter()
    run_state_machine_as_test(
        Ownership,
        settings=settings(
            max_examples=examples(320),
            stateful_step_count=50,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    assert Ownership.steps >= STEPS
    assert {"held", "evicted", "wedged", "hung"} == set(Ownership.seen), Ownership.seen
