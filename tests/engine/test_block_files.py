"""Hazard: a file of KV that is damaged, cut off, foreign, newer or not there. It is never used, and never an error."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from pathlib import Path
from unittest import mock

import msgspec
import pytest

from modeld.engine import disk as disk_module
from modeld.engine.block_files import MAGIC, Header, read_header
from modeld.engine.blocks import block_key
from modeld.engine.disk import KEEP_SECONDS, Disk
from modeld.engine.tiers import PATIENCE_SECONDS, Tiers
from modeld.session.manifest import pack_tokens
from support.disks import StepwiseDisk, kv_files

OURS, OTHER = "ab" * 32, "cd" * 32
TALK = [token % 251 for token in range(700)]
NOW = 1_800_000_000.0


@pytest.fixture(autouse=True)
def stepwise() -> Iterator[None]:
    with mock.patch("modeld.engine.disk.DiskThread", StepwiseDisk), mock.patch("os.fsync"):
        yield


def opened(folder: Path, *, manifest: str = OURS, ram: int = 10**6, disk: int = 10**6) -> Tiers:
    """As an engine that starts on this folder."""
    return Tiers(ram, bytes.fromhex(manifest), Disk(folder, manifest, disk, lambda: None))


def thread(tiers: Tiers) -> StepwiseDisk:
    assert tiers._disk is not None
    assert isinstance(tiers._disk.thread, StepwiseDisk)
    return tiers._disk.thread


def work(tiers: Tiers) -> None:
    """Let the files' thread do all it was asked."""
    while thread(tiers).has_work:
        thread(tiers).step()
        tiers.collect()


def keep(tiers: Tiers, tape: list[int], weight: int = 1) -> None:
    """Store a tape; its payload is its own tokens. Then have it written."""
    while (found := tiers.blocks.missing(tape)) is not None:
        start, end = found
        if not tiers.add(tape, start, end, weight, lambda state=bytes(tape[:end]): state):
            break
    tiers.write(0.0)
    work(tiers)


def take(tiers: Tiers, tape: list[int]) -> int:
    """Bring back what is there, as an engine does: each payload must be of these very tokens."""
    at = 0
    while path := tiers.blocks.ahead(tape, at):
        if tiers.fetch([block for block, _ in path]):
            work(tiers)
            continue
        block, end = path[0]
        if block.state is None:
            break
        assert list(block.state[:end]) == tape[:end]
        at = end
    return at


def file_of(folder: Path, number: int) -> Path:
    """The file of the talk's ``number``-th block."""
    tokens = pack_tokens(TALK[256 * number : 256 * (number + 1)])
    (found,) = [path for path in kv_files(folder) if read_header(str(path))[1].tokens == tokens]
    return found


def test_what_was_written_comes_back_in_the_next_engine(tmp_path: Path) -> None:
    tiers = opened(tmp_path)
    keep(tiers, TALK)
    assert len(kv_files(tmp_path)) == 3
    again = opened(tmp_path)
    assert again.ram == 0
    assert again.disk == tiers.disk == sum(path.stat().st_size for path in kv_files(tmp_path))
    assert take(again, TALK) == 700
    assert again.ram == tiers.ram


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_flipped_bit_anywhere_costs_what_follows_and_nothing_else(tmp_path: Path, number: int) -> None:
    keep(opened(tmp_path), TALK)
    path = file_of(tmp_path, number)
    whole = {file: file.read_bytes() for file in kv_files(tmp_path)}
    data = whole[path]
    head = len(data) - read_header(str(path))[1].size
    places = [*range(60), *range(60, head - 60, 97), *range(head - 60, head + 20), *range(head, len(data), 31)]
    random_ = random.Random(number)
    for place in [*places, len(data) - 1]:
        for file, content in whole.items():
            file.write_bytes(content)
        path.write_bytes(data[:place] + bytes([data[place] ^ 1 << random_.randrange(8)]) + data[place + 1 :])
        tiers = opened(tmp_path)
        # The weight is the one thing that may be wrong: it says who leaves first.
        assert take(tiers, TALK) in (256 * number, 700), place
        assert tiers.disk == sum(file.stat().st_size for file in kv_files(tmp_path))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_file_cut_off_or_longer_is_not_used(tmp_path: Path, number: int) -> None:
    keep(opened(tmp_path), TALK)
    path = file_of(tmp_path, number)
    whole = {file: file.read_bytes() for file in kv_files(tmp_path)}
    data = whole[path]
    head = len(data) - read_header(str(path))[1].size
    for length in (0, 1, 11, 12, 14, 16, 17, 100, head - 1, head, head + 1, len(data) - 1, len(data) + 1):
        for file, content in whole.items():
            file.write_bytes(content)
        path.write_bytes((data + b"x")[:length])
        assert take(opened(tmp_path), TALK) == 256 * number, length
        assert not path.exists()


def test_payloads_of_equal_size_do_not_stand_in_for_each_other(tmp_path: Path) -> None:
    """Checksum and payload of one file under the header of another."""
    tiers = opened(tmp_path)
    keep(tiers, [1] * 256)
    keep(tiers, [2] * 256)
    one, two = kv_files(tmp_path)
    first, second = one.read_bytes(), two.read_bytes()
    tail = 32 + 256
    one.write_bytes(first[:-tail] + second[-tail:])
    two.write_bytes(second[:-tail] + first[-tail:])
    again = opened(tmp_path)
    assert (take(again, [1] * 256), take(again, [2] * 256)) == (0, 0)
    assert kv_files(tmp_path) == []


def test_a_renamed_file_and_one_of_another_model_are_not_used(tmp_path: Path) -> None:
    keep(opened(tmp_path, manifest=OTHER), TALK)
    keep(opened(tmp_path), [9] * 256)
    (mine,) = (tmp_path / OURS).iterdir()
    for path in list((tmp_path / OTHER).iterdir()):
        path.rename(tmp_path / OURS / path.name)
    mine.rename(mine.with_name("00" * 32 + ".kv"))
    tiers = opened(tmp_path)
    assert take(tiers, TALK) == take(tiers, [9] * 256) == 0
    # They are whole, and take their room until that is wanted.
    assert tiers.disk == sum(path.stat().st_size for path in kv_files(tmp_path)) > 0
    assert len(kv_files(tmp_path)) == 3


def test_a_newer_file_is_left_to_a_newer_modeld(tmp_path: Path) -> None:
    keep(opened(tmp_path), TALK)
    path = file_of(tmp_path, 1)
    path.write_bytes(b"modeld kv 2\n" + path.read_bytes()[len(MAGIC) :])
    tiers = opened(tmp_path)
    assert take(tiers, TALK) == 256
    assert path.exists()
    keep(tiers, TALK)
    assert take(opened(tmp_path), TALK) == 700


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _link(path: Path) -> None:
    elsewhere = path.parent.parent / "elsewhere"
    elsewhere.write_bytes(b"precious")
    path.symlink_to(elsewhere)


@pytest.mark.parametrize("make", [Path.mkdir, _fifo, _link])
@pytest.mark.parametrize("before", [True, False])
def test_what_is_no_file_is_not_used_and_nothing_waits_for_it(
    tmp_path: Path, make: Callable[[Path], None], before: bool
) -> None:
    keep(opened(tmp_path), TALK)
    path = file_of(tmp_path, 1)
    tiers = None if before else opened(tmp_path)
    path.unlink()
    make(path)
    tiers = tiers or opened(tmp_path)
    assert take(tiers, TALK) == 256
    # Neither it nor what a link points to is harmed by writing the block again; a folder is in the way and stays.
    keep(tiers, TALK)
    assert take(tiers, TALK) == 700
    assert not path.is_symlink()
    if make is _link:
        assert (tmp_path / "elsewhere").read_bytes() == b"precious"


@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_a_write_that_fails_leaves_nothing_and_is_not_tried_for_a_minute(
    tmp_path: Path, call: str, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(disk_module, "monotonic", lambda: now)
    tiers = opened(tmp_path)
    with mock.patch(f"os.{call}", side_effect=OSError(error, os.strerror(error))):
        keep(tiers, TALK)
    assert (tiers.disk, tiers.written, tiers._disk and tiers._disk.reserved) == (0, 0, 0)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert tiers.write(0.0) == 60.0
    assert not thread(tiers).has_work
    assert take(tiers, TALK) == 700  # From main memory.
    now += 61
    keep(tiers, TALK)
    assert take(opened(tmp_path), TALK) == 700


def test_a_block_that_follows_one_that_could_not_be_written_is_not_kept(tmp_path: Path) -> None:
    tiers = opened(tmp_path)
    replace, calls = os.replace, iter((1, 0, 0))

    def fails_once(*names: str) -> None:
        if next(calls):
            raise OSError(errno.EIO, "")
        replace(*names)

    with mock.patch("os.replace", fails_once):
        keep(tiers, TALK)
    work(tiers)
    assert tiers.disk == 0
    assert kv_files(tmp_path) == []


def test_a_read_error_costs_a_prefill_and_no_file(tmp_path: Path) -> None:
    keep(opened(tmp_path), TALK)
    tiers = opened(tmp_path)
    with mock.patch("modeld.engine.disk.read_block", side_effect=OSError(errno.EIO, "")):
        assert take(tiers, TALK) == 0
    size = sum(path.stat().st_size for path in kv_files(tmp_path))
    assert tiers.disk == size > 0
    assert tiers.ram == 0
    # The same tokens are computed and written again, over what was there.
    keep(tiers, TALK)
    assert tiers.disk == sum(path.stat().st_size for path in kv_files(tmp_path)) == size
    assert take(opened(tmp_path), TALK) == 700


def test_what_a_killed_engine_left_half_written_is_swept(tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    tiers = opened(tmp_path)
    with mock.patch("os.replace", side_effect=Killed), suppress(Killed):
        keep(tiers, TALK)
    assert [path.suffix for path in (tmp_path / OURS).iterdir()] == [".tmp"]
    assert opened(tmp_path).disk == 0
    assert list((tmp_path / OURS).iterdir()) == []


def test_two_conversations_share_the_files_of_their_beginning(tmp_path: Path) -> None:
    tiers = opened(tmp_path)
    one, two = [*TALK[:512], *[7] * 100], [*TALK[:512], *[8] * 100]
    keep(tiers, one)
    keep(tiers, two)
    assert len(kv_files(tmp_path)) == 4
    again = opened(tmp_path)
    assert (take(again, one), take(again, two)) == (612, 612)


def test_a_conversation_that_goes_on_replaces_its_last_file(tmp_path: Path) -> None:
    tiers = opened(tmp_path)
    keep(tiers, TALK[:300])
    with mock.patch("os.replace", side_effect=OSError):
        keep(tiers, TALK[:400])
    # What could not be replaced is still there.
    assert take(opened(tmp_path), TALK) == 300
    tiers = opened(tmp_path)
    keep(tiers, TALK[:400])
    assert len(kv_files(tmp_path)) == 2
    assert take(opened(tmp_path), TALK) == 400


def test_other_models_leave_first_then_what_is_light_and_old(tmp_path: Path) -> None:
    keep(opened(tmp_path, manifest=OTHER), TALK)
    tiers = opened(tmp_path)
    keep(tiers, [1] * 256, weight=0)
    keep(tiers, [2] * 256, weight=1)
    size = next((tmp_path / OURS).iterdir()).stat().st_size
    tiers = opened(tmp_path, disk=tiers.disk)
    keep(tiers, [3] * 256, weight=1)
    # One of the other model's files had to go, and was the oldest of them.
    assert [len(list((tmp_path / name).iterdir())) for name in (OURS, OTHER)] == [3, 2]
    tiers = opened(tmp_path, disk=2 * size)
    work(tiers)
    assert [len(list((tmp_path / name).iterdir())) for name in (OURS, OTHER)] == [2, 0]
    assert [take(tiers, [token] * 256) for token in (1, 2, 3)] == [0, 256, 256]
    # What is lighter than all that is there is not written.
    keep(tiers, [4] * 256, weight=0)
    assert take(opened(tmp_path, disk=2 * size), [4] * 256) == 0


def test_what_was_unused_for_a_week_is_deleted_and_a_clock_that_jumps_deletes_nothing(tmp_path: Path) -> None:
    tiers = opened(tmp_path)
    old, new = [1] * 300, [2] * 300
    keep(tiers, old)
    aged = kv_files(tmp_path)
    keep(tiers, new)
    fresh = [path for path in kv_files(tmp_path) if path not in aged]

    def counts(at: float, age_of_old: float, age_of_new: float) -> tuple[int, int]:
        for paths, age in ((aged, age_of_old), (fresh, age_of_new)):
            for path in paths:
                os.utime(path, (NOW - age, NOW - age))
        with mock.patch.object(disk_module, "time", return_value=at):
            tiers = opened(tmp_path)
        return tiers.blocks.length(old), tiers.blocks.length(new)

    assert counts(NOW, KEEP_SECONDS - 60, 0) == (300, 300)
    assert counts(NOW + 1000 * KEEP_SECONDS, KEEP_SECONDS - 60, 0) == (300, 300)  # Ahead, or a long holiday.
    assert counts(NOW - 1000 * KEEP_SECONDS, KEEP_SECONDS - 60, 0) == (300, 300)  # Back.
    assert counts(NOW, 0, -1000 * KEEP_SECONDS) == (300, 300)  # Written while it was ahead.
    assert counts(NOW, KEEP_SECONDS + 60, 0) == (0, 300)


def test_a_file_without_the_one_before_it_is_kept_for_a_week_and_not_used(tmp_path: Path) -> None:
    keep(opened(tmp_path), TALK)
    keep(opened(tmp_path), [3] * 100)
    file_of(tmp_path, 0).unlink()
    tiers = opened(tmp_path)
    work(tiers)
    assert take(tiers, TALK) == 0
    assert len(kv_files(tmp_path)) == 3
    latest = max(path.stat().st_mtime for path in kv_files(tmp_path))
    for path in kv_files(tmp_path):
        if read_header(str(path))[1].parent != bytes.fromhex(OURS):
            os.utime(path, (latest - KEEP_SECONDS - 60,) * 2)
    work(opened(tmp_path))
    assert len(kv_files(tmp_path)) == 1


def test_a_beginning_that_was_not_read_for_long_stays_with_what_follows_it(tmp_path: Path) -> None:
    keep(opened(tmp_path), TALK)
    for number, age in ((0, 9), (1, 9), (2, 0)):
        os.utime(file_of(tmp_path, number), (NOW - age * 86400, NOW - age * 86400))
    assert take(opened(tmp_path), TALK) == 700


def test_nobody_waits_for_a_disk_that_does_nothing(tmp_path: Path) -> None:
    keep(opened(tmp_path), TALK)
    tiers = opened(tmp_path)
    path = [block for block, _ in tiers.blocks.ahead(TALK, 0)]
    assert tiers.fetch(path)
    assert 0 < (tiers.patience() or 0) <= PATIENCE_SECONDS + 0.001
    thread(tiers)._progress -= PATIENCE_SECONDS + 1
    assert not tiers.waits(path[0])
    assert not tiers.fetch(path)
    assert tiers.patience() is None
    # It comes late, and is taken.
    work(tiers)
    assert take(tiers, TALK) == 700


def test_what_is_slower_to_read_than_to_compute_is_neither_written_nor_read(tmp_path: Path) -> None:
    keep(opened(tmp_path), TALK)
    tiers = opened(tmp_path)
    tiers.measured(1000, 0.001)
    assert take(tiers, TALK[:256]) == 256  # Nothing was read yet: that is how the cost is found.
    assert tiers._disk is not None
    tiers._disk._reads.append((disk_module.monotonic(), 1.0))
    tiers._disk._reads.append((disk_module.monotonic(), 1.0))
    assert take(tiers, TALK) == 256
    keep(tiers, [5] * 256)
    assert len(kv_files(tmp_path)) == 3


def test_in_budgets_of_nothing_nothing_is_read_or_written(tmp_path: Path) -> None:
    from modeld.engine.protocol import Load
    from modeld.engine.tiers import open_tiers

    keep(opened(tmp_path), TALK)
    before = {path: path.stat().st_mtime_ns for path in kv_files(tmp_path)}
    load = Load("", "fake", "d", 100, 100, ram=10**6, disk=0, kv_folder=str(tmp_path))
    tiers = open_tiers(load, OURS, lambda: None)
    assert tiers is not None
    assert take(tiers, TALK) == 0
    assert tiers.write(0.0) is None
    assert {path: path.stat().st_mtime_ns for path in kv_files(tmp_path)} == before
    none = Load("", "fake", "d", 100, 100, ram=0, disk=10**6, kv_folder=str(tmp_path))
    assert open_tiers(none, OURS, lambda: None) is None


def test_chain_of_thousands_of_blocks_is_taken_note_of_at_once(tmp_path: Path) -> None:
    key, folder = bytes.fromhex(OURS), tmp_path / OURS
    folder.mkdir()
    for _ in range(6000):
        header = Header(key, pack_tokens([1] * 256), 1, 1, bytes(32))
        key = block_key(key, header.tokens)
        encoded = msgspec.msgpack.encode(header)
        (folder / f"{key.hex()}.kv").write_bytes(MAGIC + len(encoded).to_bytes(4, "big") + encoded + b"x")
    began = time.monotonic()
    assert opened(tmp_path, disk=2**30).length([1] * 256 * 6000) == 256 * 6000
    # 0.3 s here; with a walk to the root for each it took 5 s.
    assert time.monotonic() - began < 2.0


def test_file_that_goes_while_the_folder_is_looked_at_is_none(tmp_path: Path) -> None:
    keep(opened(tmp_path), TALK)
    real, there = os.scandir, kv_files(tmp_path)

    def looked_at(folder: Path) -> AbstractContextManager[Iterator[os.DirEntry[str]]]:
        entries = list(real(folder))
        if str(folder).endswith(OURS):
            for path in there:
                path.unlink()
        return nullcontext(iter(entries))

    with mock.patch("os.scandir", looked_at):
        assert opened(tmp_path).length(TALK) == 0


def test_key_in_another_spelling_is_no_second_block(tmp_path: Path) -> None:
    keep(opened(tmp_path), TALK)
    for path in kv_files(tmp_path):
        path.with_name(path.stem.upper() + ".kv").write_bytes(path.read_bytes())
    tiers = opened(tmp_path)
    assert take(tiers, TALK) == len(TALK)
    assert tiers.audit() == []
