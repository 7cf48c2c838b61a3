"""An owner learns that it is none: unlinked lock, foreign record, failing and hanging storage; what release leaves."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import msgspec
import pytest

from modeld.errors import InvalidRequestError, LeaseLostError, NodeError, NotOwnerError
from modeld.node.owner import OwnerLease, OwnerRecord, keep, probe
from modeld.node.record import read_record

pytestmark = pytest.mark.anyio

# Two shared cores: how much later than promised a timer may fire before the test calls it a failure.
SLACK = 0.35


@pytest.fixture
def lease(tmp_path: Path) -> Iterator[OwnerLease]:
    with OwnerLease.acquire(tmp_path, ttl=0.8) as lease:
        yield lease


class Storage:
    """Stands between the lease and its temporary files: works, fails, or hangs until told."""

    def __init__(self) -> None:
        self.fail = False
        self.errno = errno.EIO
        self.go_on = threading.Event()
        self.go_on.set()
        self.waiting = threading.Event()
        self._fdopen = os.fdopen

    def fdopen(self, fd: int, mode: str) -> IO[Any]:
        file = self._fdopen(fd, mode)
        if self.fail:
            file.close()
            raise OSError(self.errno, os.strerror(self.errno))
        if not self.go_on.is_set():
            self.waiting.set()
            self.go_on.wait()
        return file


@pytest.fixture
def storage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    storage = Storage()
    monkeypatch.setattr(os, "fdopen", storage.fdopen)
    yield storage
    storage.fail = False
    storage.go_on.set()


def forge(lease: OwnerLease, **changes: object) -> OwnerRecord:
    record = msgspec.structs.replace(lease.record, **changes)
    (lease.data_root / "owner.json").write_bytes(msgspec.json.encode(record))
    return record


def unlink_lock(lease: OwnerLease) -> None:
    (lease.data_root / "owner.lock").unlink()


def replace_lock(lease: OwnerLease) -> None:
    unlink_lock(lease)
    (lease.data_root / "owner.lock").touch()


def move_root(lease: OwnerLease) -> None:
    lease.data_root.rename(lease.data_root.with_name(lease.data_root.name + "-moved"))


def delete_record(lease: OwnerLease) -> None:
    (lease.data_root / "owner.json").unlink()


def corrupt_record(lease: OwnerLease) -> None:
    (lease.data_root / "owner.json").write_bytes(b'{"epoch":')


def foreign_record(lease: OwnerLease) -> None:
    forge(lease, instance_id="0" * 32)


def later_epoch(lease: OwnerLease) -> None:
    forge(lease, epoch=lease.epoch + 1)


HAZARDS: list[tuple[Callable[[OwnerLease], None], str]] = [
    (unlink_lock, "lock-lost"),
    (replace_lock, "lock-lost"),
    (move_root, "lock-lost"),
    (delete_record, "record-missing"),
    (corrupt_record, "record-missing"),
    (foreign_record, "epoch-changed"),
    (later_epoch, "epoch-changed"),
]


@pytest.mark.parametrize(("hazard", "reason"), HAZARDS)
def test_renewal_sees_the_loss_and_writes_nothing(
    lease: OwnerLease, hazard: Callable[[OwnerLease], None], reason: str
) -> None:
    assert lease.renew() == "ok"
    hazard(lease)
    before = {path.name: path.read_bytes() for path in lease.data_root.glob("*")}
    for call in (lease.renew, lease.publish, lease.renew):
        with pytest.raises(LeaseLostError, match=f"epoch 1\\): {reason}") as caught:
            call()
        assert caught.value.reason == reason
    assert lease.lost == reason
    assert {path.name: path.read_bytes() for path in lease.data_root.glob("*")} == before


@pytest.mark.parametrize(("hazard", "reason"), HAZARDS)
async def test_keep_tells_the_loss_within_one_interval(
    lease: OwnerLease, hazard: Callable[[OwnerLease], None], reason: str
) -> None:
    told: list[LeaseLostError] = []
    task = asyncio.create_task(keep(lease, told.append))
    await asyncio.sleep(0.05)
    hazard(lease)
    done = time.monotonic() + 0.8 / 3 + SLACK
    with pytest.raises(LeaseLostError) as caught:
        await task
    assert time.monotonic() < done
    assert caught.value.reason == reason
    assert told == [caught.value]


def test_loss_is_final_although_the_file_comes_back(lease: OwnerLease) -> None:
    saved = (lease.data_root / "owner.json").read_bytes()
    delete_record(lease)
    with pytest.raises(LeaseLostError):
        lease.renew()
    (lease.data_root / "owner.json").write_bytes(saved)
    with pytest.raises(LeaseLostError, match="record-missing"):
        lease.renew()


def test_second_owner_after_unlink_wins_and_keeps_its_record(lease: OwnerLease) -> None:
    unlink_lock(lease)
    with OwnerLease.acquire(lease.data_root) as second:
        assert second.epoch == lease.epoch + 1
        with pytest.raises(LeaseLostError, match="lock-lost"):
            lease.renew()
        lease.release()
        assert second.renew() == "ok"
        assert probe(second.data_root).record == second.record


def test_failing_disk_is_transient_until_the_margin_then_renew_failed(lease: OwnerLease, storage: Storage) -> None:
    assert lease.renew() == "ok"
    on_disk = (lease.data_root / "owner.json").read_bytes()
    storage.fail = True
    assert lease.renew() == "transient"
    assert lease.lost is None
    time.sleep(max(lease.remaining(), 0) + 0.01)
    with pytest.raises(LeaseLostError) as caught:
        lease.renew()
    assert caught.value.reason == "renew-failed"
    assert isinstance(caught.value.__cause__, OSError)
    assert (lease.data_root / "owner.json").read_bytes() == on_disk
    assert list(lease.data_root.glob("*.tmp")) == []


async def test_full_disk_costs_no_lease(lease: OwnerLease, storage: Storage) -> None:
    storage.fail, storage.errno = True, errno.ENOSPC
    before = lease.record
    task = asyncio.create_task(keep(lease))
    await asyncio.sleep(2 * before.ttl)
    assert not task.done()
    found = probe(lease.data_root).record
    assert found is not None
    assert found.renewed > before.renewed
    assert msgspec.structs.replace(found, renewed=before.renewed) == before
    assert list(lease.data_root.glob("*.tmp")) == []
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_full_disk_is_no_way_onto_the_record_of_another(lease: OwnerLease, storage: Storage) -> None:
    storage.fail, storage.errno = True, errno.ENOSPC
    unlink_lock(lease)
    on_disk = (lease.data_root / "owner.json").read_bytes()
    with pytest.raises(LeaseLostError) as caught:
        lease.renew()
    assert caught.value.reason == "lock-lost"
    assert (lease.data_root / "owner.json").read_bytes() == on_disk


async def test_failing_disk_that_recovers_loses_nothing(lease: OwnerLease, storage: Storage) -> None:
    task = asyncio.create_task(keep(lease))
    storage.fail = True
    await asyncio.sleep(0.4)  # the attempt at 0.27 failed, the next is near 0.43
    storage.fail = False
    await asyncio.sleep(0.8)
    assert not task.done()
    assert lease.lost is None
    assert lease.remaining() > 0
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_failing_disk_loses_the_lease_before_the_margin(lease: OwnerLease, storage: Storage) -> None:
    storage.fail = True
    lease_ends = time.monotonic() + lease.remaining()
    with pytest.raises(LeaseLostError, match="renew-failed"):
        await keep(lease)
    assert lease_ends - 0.1 < time.monotonic() < lease_ends + SLACK


async def test_hanging_storage_loses_the_lease_on_time_and_writes_nothing_later(
    lease: OwnerLease, storage: Storage
) -> None:
    on_disk = (lease.data_root / "owner.json").read_bytes()
    storage.go_on.clear()
    lease_ends = time.monotonic() + lease.remaining()
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.01)

    ticker = asyncio.create_task(tick())
    with pytest.raises(LeaseLostError, match="renew-failed"):
        await keep(lease)
    assert lease_ends - 0.1 < time.monotonic() < lease_ends + SLACK
    assert ticks > 15  # of 60: the event loop was free
    ticker.cancel()
    assert storage.waiting.is_set()
    # Released with a write in flight: the lock stays, or that write could land on a successor's record.
    started = time.monotonic()
    await asyncio.to_thread(lease.release)
    assert time.monotonic() - started < lease.margin + SLACK
    assert probe(lease.data_root).state == "running"
    storage.go_on.set()
    assert await asyncio.to_thread(lease._io.acquire, True, 5)  # the hanging write has ended
    assert (lease.data_root / "owner.json").read_bytes() == on_disk
    assert list(lease.data_root.glob("*.tmp")) == []
    os.close(lease._fd)  # what the exit of the process does


def test_publish_behind_a_hanging_renewal_gives_up_in_time(lease: OwnerLease, storage: Storage) -> None:
    storage.go_on.clear()
    late: list[object] = []

    def renew() -> None:
        try:
            late.append(lease.renew())
        except LeaseLostError as error:
            late.append(error.reason)

    thread = threading.Thread(target=renew)
    thread.start()
    assert storage.waiting.wait(5)
    lease_ends = time.monotonic() + lease.remaining()
    with pytest.raises(LeaseLostError, match="renew-failed"):
        lease.publish(backend="llama")
    assert time.monotonic() < lease_ends + SLACK
    storage.go_on.set()
    thread.join()
    assert late == ["renew-failed"]


def test_failed_publish_changes_nothing_and_can_be_repeated(lease: OwnerLease, storage: Storage) -> None:
    before = lease.record
    storage.fail = True
    with pytest.raises(NodeError, match="Input/output error"):
        lease.publish(endpoints=["unix:/x"])
    assert lease.record == before == read_record(lease.data_root)
    storage.fail = False
    assert lease.publish(endpoints=["unix:/x"]).endpoint == "unix:/x"


def test_record_too_large_to_be_read_back_is_refused(lease: OwnerLease) -> None:
    with pytest.raises(InvalidRequestError, match="at most 65536"):
        lease.publish(serves=["x" * 70_000])
    assert lease.renew() == "ok"


def test_write_that_failed_after_its_rename_still_moves_the_record_next_time(
    lease: OwnerLease, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.fsync, []

    def second_fails(fd: int) -> None:
        calls.append(fd)
        if len(calls) == 2:  # file, then folder
            raise OSError(errno.EIO, "Input/output error")
        real(fd)

    monkeypatch.setattr(os, "fsync", second_fails)
    with pytest.raises(NodeError, match="Input/output"):
        lease.publish(endpoints=["unix:/x"])
    first = read_record(lease.data_root)
    assert lease.renew() == "ok"
    second = read_record(lease.data_root)
    assert first is not None
    assert second is not None
    assert 0 < first.renewed < second.renewed


async def test_keep_renews_at_a_third_of_the_ttl(lease: OwnerLease) -> None:
    task = asyncio.create_task(keep(lease))
    await asyncio.sleep(1.25)
    record = read_record(lease.data_root)
    assert record is not None
    assert 2 <= record.renewed <= 4
    assert record == lease.record
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert lease.lost is None


async def test_keep_ends_quietly_when_the_lease_was_released(lease: OwnerLease) -> None:
    told: list[LeaseLostError] = []
    task = asyncio.create_task(keep(lease, told.append))
    await asyncio.sleep(0.02)
    await asyncio.to_thread(lease.release)
    await asyncio.wait_for(task, 2)
    assert told == []


async def test_keep_leaves_no_thread_behind(lease: OwnerLease) -> None:
    task = asyncio.create_task(keep(lease))
    await asyncio.sleep(0.4)
    (renewer,) = [thread for thread in threading.enumerate() if thread.name == "modeld lease renewal"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(renewer.join, 5)
    assert not renewer.is_alive()


def test_late_renewal_of_an_owner_that_nobody_replaced_succeeds(lease: OwnerLease) -> None:
    time.sleep(0.85)
    assert lease.remaining() < 0
    assert lease.renew() == "ok"
    assert lease.remaining() > 0


def test_release_removes_our_record_and_keeps_lock_and_epoch(lease: OwnerLease) -> None:
    lease.release()
    lease.release()
    assert lease.released
    assert sorted(path.name for path in lease.data_root.iterdir()) == ["owner.epoch", "owner.lock"]
    assert probe(lease.data_root).state == "not_running"
    for call in (lease.renew, lease.publish):
        with pytest.raises(NotOwnerError, match="was released"):
            call()


def test_release_leaves_the_record_of_another(lease: OwnerLease) -> None:
    theirs = forge(lease, instance_id="a" * 32, epoch=9)
    lease.release()
    assert read_record(lease.data_root) == theirs
    assert probe(lease.data_root).state == "stale"


def test_release_on_a_full_disk_frees_the_lock(lease: OwnerLease, storage: Storage) -> None:
    storage.fail = True
    lease.release()
    assert probe(lease.data_root).state != "running"


def test_release_after_storage_failed_touches_no_storage(lease: OwnerLease, storage: Storage) -> None:
    storage.fail = True
    time.sleep(max(lease.remaining(), 0) + 0.01)
    with pytest.raises(LeaseLostError, match="renew-failed"):
        lease.renew()
    lease.release()
    assert probe(lease.data_root).state == "stale"  # the lock is free, the record is left
    storage.fail = False
    with OwnerLease.acquire(lease.data_root) as next_owner:
        assert next_owner.epoch == lease.epoch + 1
