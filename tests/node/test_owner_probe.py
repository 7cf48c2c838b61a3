"""A prober dials nothing, creates nothing, and survives whatever lies in the files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.errors import (
    ModeldError,
    NodeError,
    NodeNotRunningError,
    NodeStaleError,
    NodeUnreachableError,
    error_from_code,
)
from modeld.node.owner import OwnerLease, OwnerRecord, probe, require_running
from modeld.node.record import MAX_EPOCH, decode_record, read_epoch, read_epoch_file

DIES = """
import os, signal, sys
from modeld.node.owner import OwnerLease
lease = OwnerLease.acquire(sys.argv[1])
lease.publish(endpoints=["unix:/x"])
os.kill(os.getpid(), signal.SIGKILL)
"""

text = st.text(max_size=20)
records = st.builds(
    OwnerRecord,
    instance_id=st.uuids(version=4).map(lambda uuid: uuid.hex),
    epoch=st.integers(1, MAX_EPOCH),
    pid=st.integers(1, 2**31 - 1),
    boot_id=text,
    start_time=st.none() | st.integers(0, 2**63 - 1) | st.floats(0, 1e12),
    host=text,
    endpoint=text,
    endpoints=st.lists(text, max_size=3).map(tuple),
    backend=text,
    serves=st.lists(text, max_size=3).map(tuple),
    protocol=st.integers(0, 9),
    renewed=st.integers(0, 2**63 - 1),
    ttl=st.floats(0.1, 86_400),
    version=text,
    started=st.floats(0, 1e12),
    command=text,
)
VALID = OwnerRecord(
    instance_id="0" * 32, epoch=1, pid=1, boot_id="b", start_time=1, host="h", ttl=10.0, started=1.0, endpoint="unix:/x"
)


@pytest.mark.parametrize("root", ["missing", "missing/below", "empty", "file", "file/below"])
def test_probe_of_a_root_without_owner_creates_nothing(tmp_path: Path, root: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    assert probe(tmp_path / root).state == "not_running"
    with pytest.raises(NodeNotRunningError, match="modeld serve") as caught:
        require_running(tmp_path / root)
    assert caught.value.data_root == str(tmp_path / root)
    assert sorted(tmp_path.rglob("*")) == before


def test_probe_during_ownership_sees_the_record_and_disturbs_nothing(tmp_path: Path) -> None:
    with OwnerLease.acquire(tmp_path) as lease:
        assert probe(tmp_path).record == lease.record
        with pytest.raises(NodeUnreachableError, match=f"process {os.getpid()} .*starting"):
            require_running(tmp_path)
        lease.publish(endpoints=["unix:/x"])
        before = sorted(tmp_path.iterdir())
        assert probe(tmp_path).state == "running"
        assert require_running(tmp_path) == lease.record
        assert sorted(tmp_path.iterdir()) == before
        assert lease.renew() == "ok"
    assert probe(tmp_path).state == "not_running"


def test_probe_after_kill_9_is_stale(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", DIES, str(tmp_path)])
    assert owner.wait() == -signal.SIGKILL
    seen = probe(tmp_path)
    assert seen.state == "stale"
    assert seen.record is not None
    assert seen.record.pid == owner.pid
    with pytest.raises(NodeStaleError, match=f"process {owner.pid}, epoch 1.*modeld serve") as caught:
        require_running(tmp_path)
    assert (caught.value.pid, caught.value.epoch) == (owner.pid, 1)


def test_stale_although_the_lock_file_is_gone(tmp_path: Path) -> None:
    (tmp_path / "owner.json").write_bytes(msgspec.json.encode(VALID))
    assert probe(tmp_path).state == "stale"
    assert not (tmp_path / "owner.lock").exists()


FUTURE = msgspec.json.encode(VALID).replace(b'"schema":1', b'"schema":2')


@pytest.mark.parametrize("content", [b"", b"{", b"null", FUTURE, b"[" * 60_000, b" " * 70_000], ids=lambda c: c[:12])
def test_unreadable_record_is_running_under_a_lock_and_not_running_without(tmp_path: Path, content: bytes) -> None:
    with OwnerLease.acquire(tmp_path):
        (tmp_path / "owner.json").write_bytes(content)
        seen = probe(tmp_path)
        assert (seen.state, seen.record) == ("running", None)
        with pytest.raises(NodeUnreachableError, match="cannot be read") as caught:
            require_running(tmp_path)
        assert (caught.value.pid, caught.value.endpoint) == (0, "")
    assert probe(tmp_path).state == "not_running"


def test_two_probers_do_not_see_each_other(tmp_path: Path) -> None:
    import fcntl

    OwnerLease.acquire(tmp_path).release()
    with (tmp_path / "owner.lock").open("rb") as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert probe(tmp_path).state == "not_running"


def test_planted_fifo_does_not_hang_the_prober(tmp_path: Path) -> None:
    for name in ("owner.lock", "owner.json", "owner.epoch"):
        os.mkfifo(tmp_path / name)
    assert probe(tmp_path).state == "not_running"
    assert read_epoch(tmp_path) == 0


def test_planted_symlink_is_an_error_that_names_the_root(tmp_path: Path) -> None:
    (tmp_path / "owner.lock").symlink_to("/dev/null")
    with pytest.raises(NodeError, match=tmp_path.name):
        probe(tmp_path)


def test_probing_leaks_no_descriptor(tmp_path: Path) -> None:
    with OwnerLease.acquire(tmp_path):
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            probe(tmp_path)
    for _ in range(20):
        probe(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before - 1  # the lease's own


def test_errors_cross_a_wire_with_their_attributes(tmp_path: Path) -> None:
    with pytest.raises(NodeNotRunningError) as caught:
        require_running(tmp_path)
    error: ModeldError = caught.value
    again = error_from_code(error.code, error.message, msgspec.json.decode(msgspec.json.encode(error.details)))
    assert isinstance(again, NodeNotRunningError)
    assert again.data_root == str(tmp_path)


@given(st.binary(max_size=300))
def test_any_bytes_decode_to_a_record_or_none(data: bytes) -> None:
    decoded = decode_record(data)
    assert decoded is None or isinstance(decoded, OwnerRecord)


@given(records)
def test_every_record_survives_the_round_trip(record: OwnerRecord) -> None:
    assert decode_record(msgspec.json.encode(record)) == record


@given(records, st.data())
def test_damaged_record_decodes_to_a_valid_one_or_none(record: OwnerRecord, data: st.DataObject) -> None:
    raw = bytearray(msgspec.json.encode(record))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
        if not raw:
            break
    decoded = decode_record(bytes(raw))
    if decoded is not None:
        assert 1 <= decoded.epoch <= MAX_EPOCH
        assert 0 < decoded.ttl <= 86_400
        assert decoded.pid >= 1
        assert len(decoded.instance_id) == 32
        assert decode_record(msgspec.json.encode(decoded)) == decoded


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(OwnerRecord.__struct_fields__), json_values, max_size=5))
def test_wrong_types_decode_to_none_or_a_record(changes: dict[str, object]) -> None:
    import json

    valid = msgspec.to_builtins(VALID)
    decoded = decode_record(json.dumps({**valid, **changes}).encode())
    assert decoded is None or 1 <= decoded.epoch <= MAX_EPOCH


@given(st.binary(max_size=40) | st.integers(0, 10**20).map(lambda n: b"%d\n" % n))
def test_any_epoch_file_is_a_number_in_range(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as root:
        Path(root, "owner.epoch").write_bytes(content)
        assert 0 <= read_epoch_file(root) <= MAX_EPOCH
