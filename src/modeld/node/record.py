"""What the files of a data root say about its owner: record, probe, paths, process identity.

Reading here changes nothing: no file and no folder is created, and no endpoint is dialed. (:func:`socket_path` is the
one exception, and says so.) What a record does *not* prove is told in :mod:`modeld.node.owner`, which writes it.

In the data root lie ``owner.lock`` (the kernel lock, the only authority), ``owner.json`` (:class:`OwnerRecord`) and
``owner.epoch`` (second copy of the epoch, decimal text).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
import sys
import warnings
from pathlib import Path
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from modeld.errors import InvalidRequestError, NodeError, NodeNotRunningError, NodeStaleError, NodeUnreachableError

LOCK_NAME = "owner.lock"
RECORD_NAME = "owner.json"
EPOCH_NAME = "owner.epoch"
SOCKET_NAME = "modeld.sock"

SCHEMA = 1
"""Raised only when an old reader would misread the record. New fields alone do not raise it: readers skip them."""

MAX_EPOCH = 2**52
"""No number of takeovers gets here, so a larger epoch is damage and counts as 0. It fits a JSON number and an int64."""

MAX_RECORD_BYTES = 64 * 1024
MAX_SOCKET_BYTES = 100
"""``sun_path`` has 104 bytes on macOS and 108 on Linux, with the closing NUL."""

MOUNTINFO = Path("/proc/self/mountinfo")

NETWORK_FILE_SYSTEMS = frozenset({
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fuse.ceph", "fuse.ceph-fuse", "fuse.davfs", "fuse.davfs2",
    "fuse.gcsfuse", "fuse.glusterfs", "fuse.juicefs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "glusterfs", "gpfs",
    "lustre", "ncpfs", "nfs", "nfs4", "orangefs", "panfs", "pvfs2", "smb2", "smb3", "smbfs",
})  # fmt: skip
"""Types of mount on which a lock may be local to one machine, or lost when a server restarts."""

DataRoot = str | os.PathLike[str]

_T = TypeVar("_T")

_Epoch = Annotated[int, Meta(ge=1, le=MAX_EPOCH)]


class OwnerRecord(Struct, frozen=True, kw_only=True):
    """What the owner says about itself.

    :param instance_id: new at every takeover; together with ``epoch`` the fence.
    :param boot_id: with ``pid`` and ``start_time`` the identity of the owner's process, in the owner's pid namespace.
    :param endpoint: the first of ``endpoints``, such as ``unix:/path``; ``""`` while the owner is still starting.
    :param backend: engine of the resident or last loaded model; ``none`` when there was none yet.
    :param serves: types of models it can serve.
    :param renewed: grows with every write of the record.
    :param ttl: seconds. :param started: Unix seconds by the owner's wall clock; for people, not for decisions.
    """

    schema: Annotated[int, Meta(ge=SCHEMA, le=SCHEMA)] = SCHEMA
    instance_id: Annotated[str, Meta(pattern="^[0-9a-f]{32}$")]
    epoch: _Epoch
    pid: Annotated[int, Meta(ge=1, le=2**31 - 1)]
    boot_id: str
    start_time: int | float | None
    host: str
    endpoint: str = ""
    endpoints: tuple[str, ...] = ()
    backend: str = "none"
    serves: tuple[str, ...] = ()
    protocol: int = 1
    renewed: Annotated[int, Meta(ge=0)] = 0
    ttl: Annotated[float, Meta(gt=0, le=86_400)]
    version: str = ""
    started: float
    command: str = ""


class OwnerState(Struct, frozen=True):
    """What a probe saw.

    ``running``: somebody holds the lock; ``record`` is ``None`` when it cannot be read. ``stale``: nobody holds it and
    the record of an owner that died is there. ``not_running``: nobody holds it and no readable record is there.
    """

    state: Literal["running", "stale", "not_running"]
    record: OwnerRecord | None = None


class _EpochOnly(Struct):
    epoch: _Epoch


def decode_record(data: bytes) -> OwnerRecord | None:
    """The record in ``data``; ``None`` for anything else, also for a record of a schema this version does not know."""
    return _decode(data, OwnerRecord)


def read_record(data_root: DataRoot) -> OwnerRecord | None:
    """The record on disk, whoever wrote it; ``None`` when there is none or it cannot be understood.

    :raises OSError: the file is there and cannot be read.
    """
    data = _read(Path(data_root, RECORD_NAME))
    return None if data is None else decode_record(data)


def read_epoch(data_root: DataRoot) -> int:
    """The larger of both copies of the epoch. A missing or corrupt copy counts as 0.

    A record of a newer schema still counts: its epoch was handed out.

    :raises OSError: a copy is there and cannot be read.
    """
    data = _read(Path(data_root, RECORD_NAME))
    record = None if data is None else _decode(data, _EpochOnly)
    return max(read_epoch_file(data_root), 0 if record is None else record.epoch)


def read_epoch_file(data_root: DataRoot) -> int:
    """The copy of the epoch in ``owner.epoch``; 0 when it is missing or corrupt.

    :raises OSError: the file is there and cannot be read.
    """
    text = (_read(Path(data_root, EPOCH_NAME)) or b"").strip()
    # isdigit() of bytes is ASCII only; the length keeps int() away from megabytes of digits.
    epoch = int(text) if text.isdigit() and len(text) <= 16 else 0
    return epoch if epoch <= MAX_EPOCH else 0


def probe(data_root: DataRoot) -> OwnerState:
    """Who owns ``data_root``, by the lock and the record alone: nothing is dialed and nothing is created.

    ``running`` promises only that a process held the lock at that moment. The record beside it is a hint: in the
    moments of a takeover it may still be the predecessor's. Only an answer at its endpoint with the same instance
    and epoch proves it.

    :raises NodeError: the files are there and may not be read.
    """
    try:
        return _probe(Path(data_root))
    except OSError as error:
        raise NodeError(
            f"cannot tell who owns {os.fspath(data_root)!r}: {error}; run as the user the folder belongs to",
            data_root=os.fspath(data_root),
        ) from error


def require_running(data_root: DataRoot) -> OwnerRecord:
    """The record of the running owner, with an endpoint to dial.

    :raises NodeNotRunningError: nobody owns the folder.
    :raises NodeStaleError: its last owner died and nobody took over.
    :raises NodeUnreachableError: an owner lives, but has written no endpoint (yet); ask again in a moment.
    :raises NodeError: the files may not be read.
    """
    root = os.fspath(data_root)
    seen = probe(root)
    record = seen.record
    if seen.state == "not_running":
        raise NodeNotRunningError(f"no modeld node runs on {root!r}; start one with `modeld serve`", data_root=root)
    if seen.state == "stale" and record is not None:
        raise NodeStaleError(
            f"the modeld node of {root!r} (process {record.pid}, epoch {record.epoch}) died without a goodbye; "
            f"start a new one with `modeld serve`",
            data_root=root,
            pid=record.pid,
            epoch=record.epoch,
        )
    if record is None or not record.endpoint:
        pid = 0 if record is None else record.pid
        who = f"process {pid}" if pid else "a process whose record cannot be read"
        raise NodeUnreachableError(
            f"{who} owns {root!r} but names no endpoint; if it is still starting, try again in a moment, "
            f"else look with `modeld doctor`",
            endpoint="",
            pid=pid,
        )
    return record


def boot_id() -> str:
    """Identity of this boot of the machine, from ``/proc/sys/kernel/random/boot_id``.

    Elsewhere it is the boot time in whole seconds, which moves when the wall clock is set.
    """
    if sys.platform != "linux":
        import psutil

        return f"boot-time-{int(psutil.boot_time())}"
    return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()


def process_start_time(pid: int) -> int | float | None:
    """When ``pid`` started, as its kernel tells: with the pid it names one process of this boot.

    On Linux clock ticks since boot (field 22 of ``/proc/<pid>/stat``, proc_pid_stat(5)), elsewhere Unix seconds.
    Compare for equality only. ``None`` when there is no such process; a zombie still has its start time.
    """
    if sys.platform != "linux":
        import psutil

        try:
            return psutil.Process(pid).create_time()
        except psutil.NoSuchProcess:
            return None
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # comm, field 2, is any bytes in parentheses, spaces and parentheses included: count from the last one.
    return int(line[line.rindex(b")") + 2 :].split()[22 - 3])


def default_data_root() -> Path:
    """``MODELD_DATA_ROOT``, else the platform's user data directory for modeld. It is not created."""
    named = os.environ.get("MODELD_DATA_ROOT")
    if named:
        return Path(named).expanduser().absolute()
    import platformdirs

    return Path(platformdirs.user_data_dir("modeld", appauthor=False))


def socket_path(data_root: DataRoot) -> Path:
    """Where the owner of ``data_root`` puts its Unix socket. Clients read the endpoint from the record instead.

    ``<data_root>/modeld.sock``. Where that passes 100 bytes (or is no UTF-8, which gRPC cannot dial), a folder of its
    own in the per-user runtime directory, named by a hash of the root; that folder is created, 0700.

    :raises NodeError: somebody else made that folder, or may write in it.
    :raises OSError: that folder cannot be made.
    """
    plain = Path(data_root).absolute() / SOCKET_NAME
    raw = os.fsencode(plain)
    if len(raw) <= MAX_SOCKET_BYTES and _is_utf8(raw):
        return plain
    # The real path, so that every name of the folder leads to the same socket.
    digest = hashlib.sha256(os.fsencode(os.path.realpath(data_root))).hexdigest()[:16]
    return runtime_folder(digest) / SOCKET_NAME


def runtime_folder(name: str) -> Path:
    """``modeld-<name>`` in the per-user runtime directory; it is created, 0700.

    :param name: at most 16 characters. :raises NodeError: somebody else made that folder, or may write in it.
    :raises OSError: it cannot be made.
    """
    folder = _runtime_base() / f"modeld-{name}"
    _make_private(folder)
    return folder


def refuse_network_file_system(path: DataRoot) -> None:
    """Check that ``path``, existing or not, lies on no network file system.

    The type is that of the mount with the longest prefix of the real path, from ``/proc/self/mountinfo`` (proc(5)).
    Where there is no such file (macOS, BSD) nothing is checked. A local type backed by a shared disk is not seen.

    :raises InvalidRequestError: names the type (``file_system``) and the ``mount``.
    """
    try:
        table = MOUNTINFO.read_text("utf-8", "surrogateescape")
    except FileNotFoundError:
        return
    real = os.path.realpath(path)
    kind, mount = "", ""
    for line in table.split("\n"):
        before, dash, after = line.partition(" - ")
        if not dash:
            continue
        point = _unescape(before.split(" ")[4])
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        # >=: the same point mounted over again, the last one is what is seen.
        if inside and len(point) >= len(mount):
            kind, mount = after.split(" ")[0], point
    if kind in NETWORK_FILE_SYSTEMS:
        raise InvalidRequestError(
            f"{real!r} lies on {kind} (mounted at {mount!r}), where a lock does not hold between machines; "
            f"choose a folder on a local disk with --data-root",
            file_system=kind,
            mount=mount,
        )


def refuse_shared_folder(root: Path) -> None:
    """Check that only its owner may write in ``root``: whoever writes there can unlink the lock or replace the socket.

    :raises InvalidRequestError: names the ``mode``.
    """
    mode = os.stat(root).st_mode & 0o777
    if mode & 0o022:
        raise InvalidRequestError(
            f"others may write in {str(root)!r} (mode {mode:04o}) and could unlink its lock; "
            f"run `chmod go-w` on it or choose another folder with --data-root",
            mode=mode,
        )


def _probe(root: Path) -> OwnerState:
    # O_NONBLOCK: a planted FIFO must not hang the prober.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(root / LOCK_NAME, flags)
    except (FileNotFoundError, NotADirectoryError):
        return _unowned(root)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return OwnerState("running", read_record(root))
        try:
            # Read before unlocking: after it, an owner could take over and its fresh record be called stale.
            return _unowned(root)
        finally:
            # Closing alone is not enough: a child forked meanwhile by another thread holds a copy until its exec.
            fcntl.flock(fd, fcntl.LOCK_UN)
    finally:
        os.close(fd)


def _unowned(root: Path) -> OwnerState:
    record = read_record(root)
    return OwnerState("not_running") if record is None else OwnerState("stale", record)


def _read(path: Path) -> bytes | None:
    """At most :data:`MAX_RECORD_BYTES` of a file (a longer one is corrupt: ``b""``); ``None`` when there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        data = os.read(fd, MAX_RECORD_BYTES + 1)
    finally:
        os.close(fd)
    return data if len(data) <= MAX_RECORD_BYTES else b""


def _decode(data: bytes, kind: type[_T]) -> _T | None:
    try:
        return msgspec.json.decode(data, type=kind)
    # RecursionError: deep nesting in a field we skip. UnicodeDecodeError is a ValueError, as MsgspecError is.
    except (ValueError, RecursionError):
        return None


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def _runtime_base() -> Path:
    """The per-user runtime directory, or ``/tmp/modeld-<uid>``, made, where there is none that is ours alone."""
    named = os.environ.get("XDG_RUNTIME_DIR")
    if named is None:
        import platformdirs

        with warnings.catch_warnings():
            # It warns when it has to make one up; what it names is looked at below all the same.
            warnings.simplefilter("ignore")
            try:
                named = platformdirs.user_runtime_dir()
            except PermissionError:
                named = ""
    # What the folder and the socket add to the base: "/modeld-" + 16 + "/modeld.sock".
    room = MAX_SOCKET_BYTES - len("/modeld-") - 16 - len("/" + SOCKET_NAME)
    if os.path.isabs(named) and len(os.fsencode(named)) <= room and os.path.isdir(named):
        info = os.stat(named)
        if info.st_uid == os.geteuid() and not info.st_mode & 0o022:
            return Path(named)
    base = Path(f"/tmp/modeld-{os.geteuid()}")
    _make_private(base)
    return base


def _make_private(folder: Path) -> None:
    """Make ``folder`` 0700, or check that the one there is ours alone: in a shared /tmp anybody can plant it first."""
    try:
        os.mkdir(folder, 0o700)
    except FileExistsError:
        pass
    info = os.lstat(folder)
    if not stat.S_ISDIR(info.st_mode):
        problem = "is no folder"
    elif info.st_uid != os.geteuid():
        problem = f"belongs to user {info.st_uid}, not to {os.geteuid()}"
    elif info.st_mode & 0o022:
        problem = f"has mode {stat.S_IMODE(info.st_mode):04o}: others may write in it"
    else:
        os.chmod(folder, 0o700)
        return
    raise NodeError(
        f"{str(folder)!r} is not used: it {problem}; remove it, or set XDG_RUNTIME_DIR to a folder of yours",
        path=str(folder),
    )


def _unescape(field: str) -> str:
    """mountinfo writes space, tab, newline and backslash as three octal digits."""
    for code in ("\\040", "\\011", "\\012", "\\134"):
        field = field.replace(code, chr(int(code[1:], 8)))
    return field
