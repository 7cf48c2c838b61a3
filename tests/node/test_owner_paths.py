"""Hostile and unfit places: network mounts, shared folders, planted runtime folders, odd process names."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from modeld.errors import InvalidRequestError, NodeError
from modeld.node import record
from modeld.node.owner import (
    OwnerLease,
    boot_id,
    default_data_root,
    process_start_time,
    refuse_network_file_system,
    socket_path,
)

MOUNT = "36 35 98:0 / {point} rw,noatime master:1 - {kind} server:/export rw,errors=continue\n"


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A short per-user runtime directory: pytest's own are too long for a socket."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        monkeypatch.setenv("XDG_RUNTIME_DIR", folder)
        yield Path(folder)


@pytest.fixture
def long_root(tmp_path: Path) -> Path:
    return tmp_path / ("x" * 100)


def hashed(root: Path) -> str:
    return "modeld-" + hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:16]


def mounts(monkeypatch: pytest.MonkeyPatch, folder: Path, *lines: tuple[str, str]) -> None:
    table = folder / "mountinfo"
    table.write_text("".join(MOUNT.format(point=point, kind=kind) for point, kind in lines))
    monkeypatch.setattr(record, "MOUNTINFO", table)


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "afs", "ceph", "lustre"])
def test_network_file_system_is_refused_by_name_and_nothing_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    mounts(monkeypatch, tmp_path, ("/", "ext4"), (str(tmp_path), kind))
    with pytest.raises(InvalidRequestError, match=f"lies on {kind} .mounted at") as caught:
        OwnerLease.acquire(tmp_path / "root")
    assert caught.value.details == {"file_system": kind, "mount": str(tmp_path)}
    assert not (tmp_path / "root").exists()


def test_the_longest_mount_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    local, sibling = tmp_path / "local", tmp_path / "local-not"
    mounts(monkeypatch, tmp_path, (str(local), "ext4"), (str(tmp_path), "nfs4"), ("/", "ext4"))
    refuse_network_file_system(local)
    refuse_network_file_system(local / "below" / "missing")
    refuse_network_file_system("/")
    with pytest.raises(InvalidRequestError):
        refuse_network_file_system(sibling)  # a prefix of the text, not of the path


def test_mounted_over_again_the_last_one_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts(monkeypatch, tmp_path, (str(tmp_path), "nfs"), (str(tmp_path), "tmpfs"))
    refuse_network_file_system(tmp_path)
    mounts(monkeypatch, tmp_path, (str(tmp_path), "tmpfs"), (str(tmp_path), "nfs"))
    with pytest.raises(InvalidRequestError):
        refuse_network_file_system(tmp_path)


def test_escaped_mount_points_and_symlinks_are_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    share = tmp_path / "my share\\040"
    share.mkdir()
    (tmp_path / "link").symlink_to(share)
    mounts(monkeypatch, tmp_path, ("/", "ext4"), (f"{tmp_path}/my\\040share\\134040", "cifs"))
    for path in (share, tmp_path / "link" / "root"):
        with pytest.raises(InvalidRequestError, match="cifs"):
            refuse_network_file_system(path)


def test_the_mount_table_of_this_machine_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_network_file_system(tmp_path)
    monkeypatch.setattr(record, "MOUNTINFO", tmp_path / "no such file")
    refuse_network_file_system(tmp_path)


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o702])
def test_root_in_which_others_write_is_refused_and_left_alone(tmp_path: Path, mode: int) -> None:
    root = tmp_path / "shared"
    root.mkdir()
    root.chmod(mode)
    with pytest.raises(InvalidRequestError, match="chmod go-w"):
        OwnerLease.acquire(root)
    assert list(root.iterdir()) == []


def test_root_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NodeError, match="cannot own"):
        OwnerLease.acquire(tmp_path / "file")


def test_short_root_holds_its_own_socket_and_nothing_is_made(runtime: Path) -> None:
    root = runtime / "missing"
    assert socket_path(root) == root / "modeld.sock"
    fits = Path("/" + "x" * (100 - len("//modeld.sock")))
    assert len(os.fsencode(socket_path(fits))) == 100
    assert socket_path(fits).parent == fits
    assert list(runtime.iterdir()) == []


@pytest.mark.parametrize("name", ["x" * 100, "é" * 50, "bytes-\udcff"])
def test_long_or_undialable_root_gets_a_private_runtime_folder(tmp_path: Path, runtime: Path, name: str) -> None:
    root = tmp_path / name
    path = socket_path(root)
    assert path == runtime / hashed(root) / "modeld.sock"
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert len(os.fsencode(path)) <= 100
    assert socket_path(root) == path


def test_every_name_of_a_long_root_has_one_socket(tmp_path: Path, long_root: Path, runtime: Path) -> None:
    long_root.mkdir()
    link = tmp_path / ("y" * 100)
    link.symlink_to(long_root)
    assert socket_path(link) == socket_path(long_root)


def test_planted_symlink_is_refused(tmp_path: Path, long_root: Path, runtime: Path) -> None:
    target = tmp_path / "target"
    target.mkdir(0o700)
    (runtime / hashed(long_root)).symlink_to(target)
    with pytest.raises(NodeError, match="is no folder"):
        socket_path(long_root)
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_runtime_folder_in_which_others_write_is_refused(long_root: Path, runtime: Path, mode: int) -> None:
    planted = runtime / hashed(long_root)
    planted.mkdir()
    planted.chmod(mode)
    with pytest.raises(NodeError, match=f"mode 0{mode:o}: others may write"):
        socket_path(long_root)
    assert planted.stat().st_mode & 0o777 == mode


def test_runtime_folder_that_others_may_read_is_closed(long_root: Path, runtime: Path) -> None:
    (runtime / hashed(long_root)).mkdir(0o755)
    assert socket_path(long_root).parent.stat().st_mode & 0o777 == 0o700


def test_folder_of_somebody_else_is_refused(long_root: Path, monkeypatch: pytest.MonkeyPatch, runtime: Path) -> None:
    stranger = 4_000_000_000 + os.getpid()  # a user who exists nowhere; all we make belongs to "somebody else"
    monkeypatch.setattr(os, "geteuid", lambda: stranger)
    fallback = Path(f"/tmp/modeld-{stranger}")
    try:
        with pytest.raises(NodeError, match=f"belongs to user {os.getuid()}, not to {stranger}.*XDG_RUNTIME_DIR"):
            socket_path(long_root)
    finally:
        fallback.rmdir()
    assert list(runtime.iterdir()) == []


@pytest.mark.parametrize("named", ["", "relative/dir", "/nonexistent/run", "/tmp", "/" + "x" * 90])
def test_unfit_runtime_directory_falls_back_to_a_private_one(
    long_root: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", named)
    made = socket_path(long_root).parent
    try:
        assert made == Path(f"/tmp/modeld-{os.geteuid()}") / hashed(long_root)
        assert made.parent.stat().st_mode & 0o777 == 0o700
    finally:
        made.rmdir()


def test_default_root_is_the_environment_then_the_platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELD_DATA_ROOT", str(tmp_path / "named"))
    assert default_data_root() == tmp_path / "named"
    monkeypatch.setenv("MODELD_DATA_ROOT", "relative")
    assert default_data_root() == Path.cwd() / "relative"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MODELD_DATA_ROOT", "~/below")
    assert default_data_root() == tmp_path / "below"
    monkeypatch.setenv("MODELD_DATA_ROOT", "")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    assert default_data_root().name == "modeld"
    assert list(tmp_path.iterdir()) == []


def test_start_time_of_a_process_named_to_confuse(tmp_path: Path) -> None:
    sleep = shutil.which("sleep")
    assert sleep is not None
    hostile = tmp_path / "a) 1 (b) R 2 3"
    shutil.copy2(sleep, hostile)
    before = time.time()
    with subprocess.Popen([hostile, "60"]) as process:
        try:
            started = process_start_time(process.pid)
            assert started is not None
            assert process_start_time(process.pid) == started
            assert psutil.Process(process.pid).create_time() == pytest.approx(before, abs=5)
            if sys.platform == "linux":
                since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
                assert since_boot - 5 < started / os.sysconf("SC_CLK_TCK") <= since_boot
        finally:
            process.kill()
    assert process_start_time(process.pid) is None


def test_boot_id_is_stable_and_shared_by_processes() -> None:
    code = "from modeld.node.owner import boot_id; print(boot_id())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == boot_id() != ""


def test_importing_the_lease_loads_nothing_heavy() -> None:
    code = (
        "import sys, modeld.node.owner; "
        "print([m for m in ('psutil', 'platformdirs', 'grpc', 'anyio', 'modeld.types') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
