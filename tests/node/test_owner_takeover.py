"""Who becomes owner when processes die, race, fork and spawn; the epoch grows whatever is left on disk."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modeld.errors import InvalidRequestError, NodeError, OwnerHeldError
from modeld.node.owner import OwnerLease, boot_id, probe, process_start_time
from modeld.node.record import read_record

Start = Callable[..., "subprocess.Popen[str]"]

OWNER = """
import sys, time
from modeld.node.owner import OwnerLease
lease = OwnerLease.acquire(sys.argv[1])
lease.publish(endpoints=["unix:/of/the/owner"])
print(lease.epoch, flush=True)
time.sleep(60)
"""

SPAWNS = """
import subprocess, sys, time
from modeld.node.owner import OwnerLease
lease = OwnerLease.acquire(sys.argv[1])
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
print(child.pid, flush=True)
time.sleep(60)
"""

FORKS = """
import os, sys, time
from modeld.errors import NotOwnerError
from modeld.node.owner import OwnerLease
lease = OwnerLease.acquire(sys.argv[1])
read, write = os.pipe()
child = os.fork()
if child == 0:
    try:
        lease.renew()
    except NotOwnerError:
        lease.release()
        os.write(write, b"refused")
    time.sleep(60)
print(child, os.read(read, 7).decode(), lease.renew(), flush=True)
time.sleep(60)
"""

CONTENDER = """
import sys
from modeld.errors import OwnerHeldError
from modeld.node.owner import OwnerLease
lease = None
for line in sys.stdin:
    if line == "go\\n":
        try:
            lease = OwnerLease.acquire(sys.argv[1])
            print("won", lease.epoch, flush=True)
        except OwnerHeldError as error:
            print("held", error.epoch, flush=True)
    elif lease is not None:
        lease.release()
        lease = None
"""

RENEWS = """
import asyncio, sys
from modeld.node.owner import OwnerLease, keep
lease = OwnerLease.acquire(sys.argv[1], ttl=0.8)
print("up", flush=True)
asyncio.run(keep(lease))
"""


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def run(code: str, root: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().split()


def say(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdin is not None
    process.stdin.write(word + "\n")
    process.stdin.flush()


def test_after_kill_9_a_successor_owns_within_half_a_second(tmp_path: Path, start: Start) -> None:
    for _ in range(3):
        owner = start(OWNER, tmp_path)
        epoch = int(line(owner)[0])
        owner.kill()
        killed = time.monotonic()
        with OwnerLease.acquire(tmp_path) as lease:
            assert time.monotonic() - killed < 0.5
            assert lease.epoch == epoch + 1


def test_held_names_the_holder_and_leaves_it_alone(tmp_path: Path, start: Start) -> None:
    owner = start(OWNER, tmp_path)
    line(owner)
    before = (tmp_path / "owner.json").read_bytes()
    with pytest.raises(OwnerHeldError, match=rf"process {owner.pid} .*owns .*epoch 1 .*unix:/of/the/owner") as caught:
        OwnerLease.acquire(tmp_path)
    assert (caught.value.pid, caught.value.endpoint, caught.value.epoch) == (owner.pid, "unix:/of/the/owner", 1)
    assert (tmp_path / "owner.json").read_bytes() == before
    assert caught.value.exit_code == 3


def test_second_lease_of_the_same_process_is_refused(tmp_path: Path) -> None:
    with OwnerLease.acquire(tmp_path), pytest.raises(OwnerHeldError, match="is still starting") as caught:
        OwnerLease.acquire(tmp_path)
    assert caught.value.pid == os.getpid()


@pytest.mark.parametrize("content", [None, b"\xff{", b"[]"])
def test_held_by_an_owner_whose_record_cannot_be_read(tmp_path: Path, content: bytes | None) -> None:
    with OwnerLease.acquire(tmp_path):
        (tmp_path / "owner.json").unlink()
        if content is not None:
            (tmp_path / "owner.json").write_bytes(content)
        with pytest.raises(OwnerHeldError, match="cannot be read") as caught:
            OwnerLease.acquire(tmp_path)
    assert (caught.value.pid, caught.value.endpoint, caught.value.epoch) == (0, "", 0)


def test_two_contenders_race_and_exactly_one_wins(tmp_path: Path, start: Start) -> None:
    contenders = [start(CONTENDER, tmp_path), start(CONTENDER, tmp_path)]
    for round_ in range(1, 21):
        for contender in contenders:
            say(contender, "go")
        answers = sorted(line(contender) for contender in contenders)
        assert [answer[0] for answer in answers] == ["held", "won"]
        assert int(answers[1][1]) == round_
        for contender in contenders:
            say(contender, "drop")
        # The winner's release is not acknowledged; wait for it, or the next round may see this round's owner.
        while probe(tmp_path).state == "running":
            time.sleep(0.001)


def test_many_contenders_at_once_in_threads_have_one_winner(tmp_path: Path) -> None:
    won: list[OwnerLease] = []
    held: list[OwnerHeldError] = []

    def contend() -> None:
        try:
            won.append(OwnerLease.acquire(tmp_path))
        except OwnerHeldError as error:
            held.append(error)

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(won), len(held)) == (1, 7)
    won[0].release()


def test_prober_with_a_shared_lock_does_not_make_it_held(tmp_path: Path) -> None:
    OwnerLease.acquire(tmp_path).release()
    fd = os.open(tmp_path / "owner.lock", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_SH)
    timer = threading.Timer(0.08, lambda: fcntl.flock(fd, fcntl.LOCK_UN))
    timer.start()
    try:
        OwnerLease.acquire(tmp_path).release()
    finally:
        timer.join()
        os.close(fd)


def test_probing_all_the_time_never_refuses_an_owner(tmp_path: Path) -> None:
    stop = threading.Event()

    def poll() -> None:
        while not stop.is_set():
            probe(tmp_path)

    threads = [threading.Thread(target=poll) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for epoch in range(1, 31):
            with OwnerLease.acquire(tmp_path) as lease:
                assert lease.epoch == epoch
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_spawned_child_does_not_keep_the_lock(tmp_path: Path, start: Start) -> None:
    owner = start(SPAWNS, tmp_path)
    child = int(line(owner)[0])
    try:
        owner.kill()
        owner.wait()
        OwnerLease.acquire(tmp_path).release()
        os.kill(child, 0)  # it lived all the while
    finally:
        os.kill(child, signal.SIGKILL)


def test_forked_child_keeps_the_lock_but_cannot_use_or_free_it(tmp_path: Path, start: Start) -> None:
    owner = start(FORKS, tmp_path)
    child, answer, parent = line(owner)
    try:
        assert (answer, parent) == ("refused", "ok")
        with pytest.raises(OwnerHeldError):  # the child's release did not unlock
            OwnerLease.acquire(tmp_path)
        owner.kill()
        owner.wait()
        with pytest.raises(OwnerHeldError):  # as the module says
            OwnerLease.acquire(tmp_path)
    finally:
        os.kill(int(child), signal.SIGKILL)
    assert OwnerLease.acquire(tmp_path).epoch == 2


def test_release_frees_the_lock_although_a_forked_child_lives(tmp_path: Path, start: Start) -> None:
    code = FORKS.replace("print(child", "lease.release(); print(child").replace("lease.renew(), flush", "'', flush")
    owner = start(code, tmp_path)
    child = int(line(owner)[0])
    try:
        with OwnerLease.acquire(tmp_path) as lease:
            assert lease.epoch == 2
    finally:
        os.kill(child, signal.SIGKILL)


def test_stopped_owner_that_nobody_replaced_goes_on(tmp_path: Path, start: Start) -> None:
    owner = start(RENEWS, tmp_path)
    assert line(owner) == ["up"]
    owner.send_signal(signal.SIGSTOP)
    time.sleep(1.2)  # ttl - margin is 0.6
    stopped = read_record(tmp_path)
    owner.send_signal(signal.SIGCONT)
    time.sleep(0.9)
    after = read_record(tmp_path)
    assert stopped is not None
    assert after is not None
    assert after.renewed >= stopped.renewed + 2
    assert owner.poll() is None


@pytest.mark.parametrize(
    "damage",
    [
        {"owner.json": None},
        {"owner.json": b""},
        {"owner.json": b"\x00" * 4096},
        {"owner.json": b'{"epoch": "7"'},
        {"owner.json": b" " * 1_000_000},
        {"owner.epoch": None},
        {"owner.epoch": b""},
        {"owner.epoch": b"-3"},
        {"owner.epoch": b"seven"},
        {"owner.epoch": b"9" * 100_000},
        {"owner.epoch": b"9999999999999999"},
        {"owner.epoch": "٣".encode()},
    ],
    ids=lambda damage: repr(damage)[:40],
)
def test_epoch_grows_with_one_copy_deleted_or_corrupt(
    tmp_path: Path, start: Start, damage: dict[str, bytes | None]
) -> None:
    OwnerLease.acquire(tmp_path).release()
    owner = start(OWNER, tmp_path)  # dies without a goodbye: both copies stay
    assert line(owner) == ["2"]
    owner.kill()
    owner.wait()
    for name, content in damage.items():
        (tmp_path / name).unlink()
        if content is not None:
            (tmp_path / name).write_bytes(content)
    with OwnerLease.acquire(tmp_path) as lease:
        assert lease.epoch == 3
        assert read_record(tmp_path) == lease.record
    assert (tmp_path / "owner.epoch").read_bytes() == b"3\n"


def test_epoch_of_a_record_from_the_future_counts(tmp_path: Path) -> None:
    (tmp_path / "owner.json").write_bytes(b'{"schema": 9, "epoch": 41, "pid": {"new": "shape"}}')
    with OwnerLease.acquire(tmp_path) as lease:
        assert lease.epoch == 42


def test_both_copies_gone_start_again_at_one_with_a_new_instance(tmp_path: Path) -> None:
    with OwnerLease.acquire(tmp_path) as first:
        pass
    (tmp_path / "owner.epoch").unlink()
    with OwnerLease.acquire(tmp_path) as second:
        assert second.epoch == 1
        assert second.instance_id != first.instance_id


def test_epoch_file_deleted_under_an_owner_is_written_at_release(tmp_path: Path) -> None:
    with OwnerLease.acquire(tmp_path):
        (tmp_path / "owner.epoch").unlink()
    with OwnerLease.acquire(tmp_path) as lease:
        assert lease.epoch == 2


def test_lock_unlinked_between_open_and_lock_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, unlinked = fcntl.flock, []

    def flock(fd: int, operation: int) -> None:
        if not unlinked:
            (tmp_path / "owner.lock").unlink()
            unlinked.append(True)
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    with OwnerLease.acquire(tmp_path) as lease:
        assert lease.renew() == "ok"
        assert probe(tmp_path).state == "running"


def test_the_record_tells_who_owns(tmp_path: Path) -> None:
    root = tmp_path / "new" / "root"
    with OwnerLease.acquire(root, ttl=3, serves=["llama"], protocol=4, version="1.2", command="a\udcff b") as lease:
        lease.publish(endpoints=["unix:/a", "tcp:1"], backend="llama")
        record = read_record(root)
        assert record == lease.record
        assert (record.pid, record.boot_id, record.start_time) == (
            os.getpid(),
            boot_id(),
            process_start_time(os.getpid()),
        )
        assert (record.endpoint, record.endpoints) == ("unix:/a", ("unix:/a", "tcp:1"))
        assert (record.backend, record.serves, record.protocol, record.version) == ("llama", ("llama",), 4, "1.2")
        assert (record.ttl, record.command) == (3, "a\\udcff b")
        modes = {path.name: path.stat().st_mode & 0o777 for path in root.iterdir()}
        assert modes == {"owner.lock": 0o600, "owner.json": 0o600, "owner.epoch": 0o600}
        assert root.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("ttl", [0, -1, 0.05, 1e9, float("nan"), float("inf")])
def test_bad_ttl_changes_nothing(tmp_path: Path, ttl: float) -> None:
    with pytest.raises(InvalidRequestError, match="ttl must be between"):
        OwnerLease.acquire(tmp_path / "root", ttl=ttl)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_a_killed_writer_are_removed(tmp_path: Path) -> None:
    (tmp_path / "owner.json.0123.tmp").write_bytes(b"half a rec")
    with OwnerLease.acquire(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == ["owner.epoch", "owner.json", "owner.lock"]


def test_storage_that_fails_at_takeover_makes_no_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(NodeError, match=r"cannot own .*No space left"):
            OwnerLease.acquire(tmp_path)
    assert probe(tmp_path).state == "not_running"
    assert list(tmp_path.glob("*.tmp")) == []
    OwnerLease.acquire(tmp_path).release()


def test_lock_file_that_is_a_symlink_or_folder_is_refused(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "a").mkdir(0o700)
    (tmp_path / "a" / "owner.lock").symlink_to(elsewhere)
    with pytest.raises(NodeError, match="cannot own"):
        OwnerLease.acquire(tmp_path / "a")
    assert not elsewhere.exists()
    (tmp_path / "b" / "owner.lock").mkdir(0o700, parents=True)
    with pytest.raises(NodeError, match="cannot own"):
        OwnerLease.acquire(tmp_path / "b")
