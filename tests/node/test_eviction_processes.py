"""Real processes: a stopped owner is killed and replaced, and nobody else is; a waiting contender serves at once."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from modeld.errors import OwnerHeldError, OwnerWedgedError
from modeld.node import eviction
from modeld.node.owner import OwnerLease
from modeld.node.record import probe, read_record
from modeld.node.watch import Follower

Start = Callable[..., "subprocess.Popen[str]"]

RENEWS = """
import asyncio, sys
from modeld.node.owner import OwnerLease, keep
lease = OwnerLease.acquire(sys.argv[1], ttl=1.0, command="the owner")
lease.publish(endpoints=["unix:/of/the/owner"])
print(lease.epoch, flush=True)
asyncio.run(keep(lease))
"""

FORKS = """
import os, sys, time
from modeld.node.owner import OwnerLease
lease = OwnerLease.acquire(sys.argv[1], ttl=0.5)
child = os.fork()
if child == 0:
    time.sleep(60)
print(child, flush=True)
time.sleep(60)
"""

# It has lost the lock to nobody: the file was unlinked, and another holds the new one without a record of its own.
LINGERS = """
import os, sys, time
from modeld.node.owner import OwnerLease
lease = OwnerLease.acquire(sys.argv[1], ttl=0.5)
os.unlink(sys.argv[1] + "/owner.lock")
print("up", flush=True)
time.sleep(60)
"""


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def run(code: str, root: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", code, str(root)], stdout=subprocess.PIPE, text=True)
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def stand_still(root: Path) -> None:
    """Wait until the record is so old that a contender must watch it."""
    while time.time() - (root / "owner.json").stat().st_mtime < 0.6:
        time.sleep(0.05)


def test_a_stopped_owner_is_killed_and_replaced_within_ttl_and_a_second(tmp_path: Path, start: Start) -> None:
    owner = start(RENEWS, tmp_path)
    epoch = int(line(owner))
    owner.send_signal(signal.SIGSTOP)
    stopped = time.monotonic()
    stand_still(tmp_path)
    with OwnerLease.acquire(tmp_path, evict=True) as lease:
        assert time.monotonic() - stopped < 1.0 + 1.0 + 0.6  # counted from the first look
        assert lease.epoch == epoch + 1
        owner.send_signal(signal.SIGCONT)
        assert owner.wait(5) == -signal.SIGKILL
        assert lease.renew() == "ok"


def test_an_owner_that_goes_on_while_it_is_watched_keeps_the_lease(tmp_path: Path, start: Start) -> None:
    owner = start(RENEWS, tmp_path)
    line(owner)
    owner.send_signal(signal.SIGSTOP)
    stand_still(tmp_path)
    timer = threading.Timer(0.5, owner.send_signal, [signal.SIGCONT])
    timer.start()
    with pytest.raises(OwnerHeldError):
        OwnerLease.acquire(tmp_path, evict=True)
    timer.join()
    assert owner.poll() is None


def test_a_living_owner_is_refused_at_once(tmp_path: Path, start: Start) -> None:
    owner = start(RENEWS, tmp_path)
    line(owner)
    started = time.monotonic()
    with pytest.raises(OwnerHeldError) as caught:
        OwnerLease.acquire(tmp_path, evict=True)
    assert time.monotonic() - started < 0.6
    assert caught.value.pid == owner.pid
    assert owner.poll() is None


def test_without_evict_a_stopped_owner_is_left_alone(tmp_path: Path, start: Start) -> None:
    owner = start(RENEWS, tmp_path)
    line(owner)
    owner.send_signal(signal.SIGSTOP)
    stand_still(tmp_path)
    with pytest.raises(OwnerHeldError):
        OwnerLease.acquire(tmp_path, wait=1.5)
    assert owner.poll() is None


def forbid(handle: int) -> None:
    raise PermissionError(1, "Operation not permitted")


def test_an_owner_that_may_not_be_signalled_is_named(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = start(RENEWS, tmp_path)
    line(owner)
    owner.send_signal(signal.SIGSTOP)
    stand_still(tmp_path)
    before = (tmp_path / "owner.json").read_bytes()
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda handle, number: forbid(handle))
    with pytest.raises(OwnerWedgedError, match=rf"process {owner.pid} .*may not be signalled") as caught:
        OwnerLease.acquire(tmp_path, evict=True)
    assert (caught.value.pid, caught.value.command, caught.value.exit_code) == (owner.pid, "the owner", 3)
    assert owner.poll() is None
    assert (tmp_path / "owner.json").read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"start_time": 1}, "its pid belongs to another process"),
        ({"start_time": None}, "its pid belongs to another process"),
        ({"boot_id": "another"}, "another machine or before a restart"),
        ({"pid": 2**31 - 1}, "that process is gone"),
        ({"pid": os.getpid()}, "it is this very process"),
    ],
)
def test_a_record_of_another_process_kills_nobody(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch, changes: dict[str, object], why: str
) -> None:
    owner = start(RENEWS, tmp_path)
    line(owner)
    owner.send_signal(signal.SIGSTOP)
    record = read_record(tmp_path)
    assert record is not None
    record = msgspec.structs.replace(record, **changes)
    (tmp_path / "owner.json").write_bytes(msgspec.json.encode(record))
    killed: list[int] = []
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda handle, number: killed.append(handle))
    with pytest.raises(OwnerWedgedError, match=why):
        eviction.end_holder(tmp_path, record)
    assert killed == []
    assert owner.poll() is None


def test_one_that_lost_the_lock_and_lives_on_is_left_alone(tmp_path: Path, start: Start) -> None:
    lost = start(LINGERS, tmp_path)
    assert line(lost) == "up"
    with (tmp_path / "owner.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(OwnerWedgedError, match="does not hold the lock any more"):
            OwnerLease.acquire(tmp_path, evict=True)
    assert lost.poll() is None


def test_a_lock_that_a_forked_child_keeps_is_told_after_the_kill(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(eviction, "_FREED_SECONDS", 0.3)
    owner = start(FORKS, tmp_path)
    child = int(line(owner))
    try:
        with pytest.raises(OwnerWedgedError, match="a forked child or the kernel keeps its lock"):
            OwnerLease.acquire(tmp_path, evict=True)
        assert owner.wait(5) == -signal.SIGKILL
        with pytest.raises(OwnerWedgedError, match=r"that process is gone|its pid belongs"):
            OwnerLease.acquire(tmp_path, evict=True)
    finally:
        os.kill(child, signal.SIGKILL)


def test_two_contenders_of_a_stopped_owner_make_one_owner(tmp_path: Path, start: Start) -> None:
    owner = start(RENEWS, tmp_path)
    epoch = int(line(owner))
    owner.send_signal(signal.SIGSTOP)
    stand_still(tmp_path)
    won: list[OwnerLease] = []
    refused: list[OwnerHeldError] = []

    def contend() -> None:
        try:
            won.append(OwnerLease.acquire(tmp_path, evict=True))
        except OwnerHeldError as error:
            refused.append(error)

    threads = [threading.Thread(target=contend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [lease.epoch for lease in won] == [epoch + 1]
    assert len(refused) == 3
    won[0].release()


def test_a_waiting_contender_owns_within_half_a_second_of_a_kill(tmp_path: Path, start: Start) -> None:
    delays = []
    owner = start(RENEWS, tmp_path)
    for _ in range(20):
        epoch = int(line(owner))
        taken: list[tuple[float, OwnerLease]] = []

        def contend(taken: list[tuple[float, OwnerLease]] = taken) -> None:
            lease = OwnerLease.acquire(tmp_path, wait=None, evict=True)
            taken.append((time.monotonic(), lease))

        waiting = threading.Thread(target=contend)
        waiting.start()
        time.sleep(0.05)
        owner.kill()
        killed = time.monotonic()
        waiting.join(10)
        ((at, lease),) = taken
        delays.append(at - killed)
        assert lease.epoch == epoch + 1
        lease.release()
        owner.wait()
        owner = start(RENEWS, tmp_path)
    assert statistics.median(delays) < 0.5
    assert max(delays) < 2


def test_a_contender_that_was_stopped_itself_does_not_count_that_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(eviction.time, "monotonic", lambda: now[0])
    with OwnerLease.acquire(tmp_path, ttl=1.0):
        watched = eviction.Stillness(tmp_path, 1.0)
        now[0] += 3600
        watched.look()
        assert watched.seconds == 0.25
        for _ in range(4):
            now[0] += 0.2
            watched.look()
        assert watched.seconds == pytest.approx(1.05)


@pytest.mark.anyio
async def test_a_follower_is_told_of_death_and_of_the_new_owner_and_is_promoted(tmp_path: Path, start: Start) -> None:
    follower = Follower(tmp_path)
    assert (await follower.changed()).state == "not_running"
    assert follower.record is None
    owner = start(RENEWS, tmp_path)
    async with asyncio.timeout(20):
        async for state in follower:
            if state.record is not None and state.record.endpoint:
                break
        assert follower.record is not None
        assert follower.record.pid == owner.pid
        with pytest.raises(OwnerHeldError):
            await follower.promote()
        # Renewals are no change.
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.8):
                await follower.changed()
        owner.kill()
        assert (await follower.changed()).state == "stale"
        assert follower.record is None
        lease = await follower.promote(ttl=5.0)
        assert lease.epoch == 2
        assert (await follower.changed()).state == "running"
        assert follower.record is not None
        assert follower.record.instance_id == lease.instance_id
        await asyncio.to_thread(lease.release)


@pytest.mark.anyio
async def test_a_promotion_that_was_cancelled_leaves_no_owner(tmp_path: Path) -> None:
    first = await asyncio.to_thread(OwnerLease.acquire, tmp_path)
    task = asyncio.create_task(Follower(tmp_path).promote(wait=5.0))
    await asyncio.sleep(0.4)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(first.release)
    async with asyncio.timeout(5):
        while True:
            state = await asyncio.to_thread(probe, tmp_path)
            epoch = await asyncio.to_thread((tmp_path / "owner.epoch").read_text)
            if state.state == "not_running" and epoch == "2\n":
                break
            await asyncio.sleep(0.05)
