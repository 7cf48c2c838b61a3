"""Exactly one owner of a data root: a kernel lock, a readable record and an epoch.

What the lease does **not** guarantee:

* **It does not undo what was already sent.** An owner that lost the lease, or was stopped and killed, may have a write
  in flight: the successor can serve before that write reaches its peer. So every call and handle carries (instance id,
  epoch), the receiver compares, and a client drops what comes from an epoch below the highest it saw.
* **It does not survive somebody unlinking** ``owner.lock``. A holds the lock; the file is unlinked; B creates a new
  file of that name and locks that. Both are owners until A's next renewal sees another inode (``lock-lost``), ttl/3
  later at most. A checks again right before each rename; where B writes its record in the microseconds between, A's
  lands on it, and B stops too, by ``epoch-changed``. So the lock file is never renamed, replaced or unlinked here, and
  a folder in which others may write is refused.
* **It does not end with the owner while a forked child lives.** ``flock`` belongs to the open file description, and a
  child made by ``fork`` *without* ``exec`` shares it: A forks C; A is killed; nobody can take over until C exits. So an
  owner must not fork without exec; the descriptor is close-on-exec, and a spawned program does not keep the lock. In a
  forked child the lease refuses to work, and its ``release`` leaves the parent's lock alone.
* **It does not tell a stopped owner from a slow one**, only one that stood still for its ttl from one that did not. A
  is under SIGSTOP, or its event loop hangs; B watches ``renewed`` stand still for A's ttl, kills A and takes over.
  Where A goes on just before the signal, a healthy owner dies. Where it goes on earlier, it held the lock all along: it
  renews once and stays owner, or learns why it is none. Nobody is ever owner *beside* a stopped process.
* **It does not free itself from an owner that may not be killed.** A runs as another user, in another pid namespace or
  on a system without pidfds, or waits inside the kernel for dead storage, where even SIGKILL waits: B is refused with
  ``owner_wedged`` for as long as that lasts. Without ``evict`` nobody is killed, and B is refused with ``owner_held``.
* **It does not know whom it kills beyond pid, boot and start time** where ``/proc`` hides the open files: A lost its
  lock (unlinked) and lives on; C holds the new lock and hangs before its first record; A's record stands still. B kills
  A, which is no owner any more, and then is refused. Where ``/proc`` can be read, A is left alone.
* **A record beside a held lock is a hint.** B takes the lock; a prober reads; B writes its record. The prober saw
  "running" with the record of A, who is dead. Only an answer at the endpoint with the same instance and epoch proves
  an owner.
* **The epoch grows only as long as one of its two copies survives.** With both gone it starts again at 1. The fence
  holds all the same, because the instance id is new.
* **It is for one machine.** Network file systems are refused by name where the mount table can be read (Linux);
  elsewhere nothing is checked. A local disk shared by two virtual machines is not seen.

What it does: at most one process holds the lock. The kernel frees it at death, so a successor takes over at once,
without waiting for a ttl. An owner that stands still is ended by who asks to ``evict``, within ttl + 1 s. Every
takeover has a higher epoch, on disk before anything is served. An owner knows of a loss no later than ``ttl - margin``
(the margin is a quarter of the ttl) after its last good renewal, even when storage hangs. All times are of the
monotonic clock; on Linux it stands still while the machine sleeps, for owner and contender alike.

Only :mod:`modeld.errors` and :mod:`msgspec` are needed, so that another daemon can use it::

    with OwnerLease.acquire(folder, version="1.0") as lease:
        lease.publish(endpoints=["unix:/run/my.sock"])
        await keep(lease, on_lost)
"""

from __future__ import annotations

import errno
import logging
import math
import os
import shlex
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import msgspec

from modeld.errors import InvalidRequestError, LeaseLostError, NodeError, NotOwnerError
from modeld.node.eviction import contend
from modeld.node.lockfile import is_path_of, overwrite, sync_folder, unlock, write_atomic
from modeld.node.record import (
    EPOCH_NAME,
    LOCK_NAME,
    MAX_RECORD_BYTES,
    RECORD_NAME,
    DataRoot,
    OwnerRecord,
    OwnerState,
    boot_id,
    default_data_root,
    probe,
    process_start_time,
    read_epoch,
    read_epoch_file,
    read_record,
    refuse_network_file_system,
    refuse_shared_folder,
    require_running,
    socket_path,
)
from modeld.node.renewal import keep

__all__ = [
    "LossReason",
    "OwnerLease",
    "OwnerRecord",
    "OwnerState",
    "boot_id",
    "default_data_root",
    "keep",
    "probe",
    "process_start_time",
    "refuse_network_file_system",
    "require_running",
    "socket_path",
]

LossReason = Literal["lock-lost", "record-missing", "epoch-changed", "renew-failed"]
"""Why an owner stopped being one.

``lock-lost``: the lock file was unlinked or replaced. ``record-missing``: the record is gone or unreadable.
``epoch-changed``: the record is another owner's. ``renew-failed``: storage failed or hung until the margin.
"""

_COMMAND_CHARACTERS = 1000
_FULL = (errno.ENOSPC, errno.EDQUOT)

_log = logging.getLogger(__name__)


class OwnerLease:
    """The right to be the one owner of a data root. Made by :meth:`acquire`, kept by :func:`keep`.

    The methods block on storage: in async code call them in a worker thread. They may be called from several threads;
    one writes at a time. Once lost, a lease stays lost.
    """

    def __init__(self, root: Path, fd: int, record: OwnerRecord) -> None:
        """For :meth:`acquire` only: ``fd`` holds the lock, and no record of ours is on disk yet."""
        self._root = root
        self._fd = fd
        self._record = record
        self._writes = 0
        self._renewed_at = time.monotonic()
        self._lost: LossReason | None = None
        self._released = False
        self._pid = os.getpid()
        self._io = threading.Lock()

    @classmethod
    def acquire(
        cls,
        data_root: DataRoot,
        *,
        ttl: float = 10.0,
        backend: str = "none",
        serves: Sequence[str] = (),
        protocol: int = 1,
        version: str = "",
        command: str | None = None,
        evict: bool = False,
        wait: float | None = 0.0,
    ) -> Self:
        """Become the owner of ``data_root``, which is created (0700) where it is missing.

        On return the new epoch and a record without endpoints are on disk: write those with :meth:`publish` as soon as
        something listens. Waits up to 250 ms for a lock that a prober may hold, longer only for slow storage or as
        ``evict`` and ``wait`` say.

        :param ttl: seconds the record may stand still before the owner counts as wedged; 0.1 to 86,400.
        :param command: how the process was started, for people; its own command line by default.
        :param evict: kill an owner whose record stands still for its ttl, see :mod:`modeld.node.eviction`. An owner
            whose record moved lately is refused at once all the same; else it is watched for up to its ttl.
        :param wait: seconds to wait for a living owner to end, ``None`` for ever. A free lock is taken within 20 ms.
        :raises OwnerHeldError: another process (or lease of this one) is the owner. ``pid`` is 0 when it has no record.
        :raises OwnerWedgedError: with ``evict``: the owner stands still and may not be ended from here.
        :raises InvalidRequestError: a ttl out of range, or a folder on a network file system, or writable by others.
        :raises NodeError: storage failed; nobody became owner.
        """
        if not (math.isfinite(ttl) and 0.1 <= ttl <= 86_400):
            raise InvalidRequestError(f"ttl must be between 0.1 and 86400 seconds, not {ttl!r}", parameter="ttl")
        root = Path(data_root).absolute()
        refuse_network_file_system(root)
        try:
            os.makedirs(root, 0o700, exist_ok=True)
            refuse_shared_folder(root)
            fd = contend(root, ttl=ttl, evict=evict, wait=wait)
            try:
                lease = cls(root, fd, _first_record(root, ttl, backend, serves, protocol, version, command))
                lease._take_over()
            except BaseException:
                os.close(fd)
                raise
        except OSError as error:
            raise NodeError(
                f"cannot own {str(root)!r}: {error}; mend that or choose another folder with --data-root",
                data_root=str(root),
            ) from error
        return lease

    @property
    def data_root(self) -> Path:
        """The folder that is owned."""
        return self._root

    @property
    def record(self) -> OwnerRecord:
        """The record as last written."""
        return self._record

    @property
    def epoch(self) -> int:
        """The fencing number: higher than that of every earlier owner."""
        return self._record.epoch

    @property
    def instance_id(self) -> str:
        """New at every takeover; the other half of the fence."""
        return self._record.instance_id

    @property
    def margin(self) -> float:
        """Seconds before the end of the ttl at which a silent owner gives up: a quarter of the ttl."""
        return self._record.ttl / 4

    @property
    def lost(self) -> LossReason | None:
        """Why the lease was lost; ``None`` while nothing is known of a loss."""
        return self._lost

    @property
    def released(self) -> bool:
        """Whether :meth:`release` was called."""
        return self._released

    def remaining(self) -> float:
        """Seconds until the loss is declared unless a renewal succeeds; negative when that moment passed."""
        return self._renewed_at + self._record.ttl - self.margin - time.monotonic()

    def publish(
        self,
        *,
        endpoints: Sequence[str] | None = None,
        backend: str | None = None,
        serves: Sequence[str] | None = None,
    ) -> OwnerRecord:
        """Write what changed into the record; ``None`` keeps what is there. Counts as a renewal.

        :raises LeaseLostError: the lease is lost; nothing was written.
        :raises NotOwnerError: released before, or called in a forked child.
        :raises InvalidRequestError: the record would pass 64 KiB.
        :raises NodeError: storage failed; the lease's record is as before, call again.
        """
        with self._writing():
            record = msgspec.structs.replace(
                self._record,
                endpoints=self._record.endpoints if endpoints is None else tuple(map(_text, endpoints)),
                backend=self._record.backend if backend is None else backend,
                serves=self._record.serves if serves is None else tuple(serves),
            )
            record = msgspec.structs.replace(record, endpoint=record.endpoints[0] if record.endpoints else "")
            try:
                return self._renew_as(record)
            except OSError as error:
                raise NodeError(
                    f"cannot write the owner record in {str(self._root)!r}: {error}; the one before still stands",
                    data_root=str(self._root),
                ) from error

    def renew(self) -> Literal["ok", "transient"]:
        """Prove that the lease is still ours and say so on disk.

        ``transient``: storage failed, and there is time to try again. Succeeds after the margin too, where nobody took
        over: the lock decides, not the clock.

        :raises LeaseLostError: with a :data:`LossReason`; ``renew-failed`` when storage failed beyond the margin.
        :raises NotOwnerError: released before, or called in a forked child.
        """
        with self._writing():
            try:
                # Contenders of this boot see it without the disk, the next boot has no use for it. An fsync beside
                # a busy disk takes seconds: that must not cost the lease, nor keep a disk awake all day.
                self._renew_as(self._record, durable=False)
            except OSError as error:
                left = self.remaining()
                if left <= 0:
                    raise self.lose("renew-failed") from error
                _log.warning("lease of %s not renewed, lost in %.1f s: %s", self._root, left, error)
                return "transient"
            return "ok"

    def release(self) -> None:
        """Stop being the owner. Can be called again, and does nothing then, nor in a forked child.

        Removes the record if it is ours and the lease was not lost; keeps lock and epoch files. Storage errors are
        ignored: the next owner heals what is left. When another thread hangs in a write of ours for longer than the
        margin, the lock is left to the kernel, which frees it when the process is gone: unlocked now, that write could
        land on the successor's record.
        """
        if self._released or os.getpid() != self._pid:
            return
        self._released = True
        if not self._io.acquire(timeout=self.margin):
            _log.warning("storage hangs: the lease of %s is freed when this process exits", self._root)
            return
        try:
            # A lost lease leaves storage alone: it may be what failed, and must not hold up the exit.
            if self._lost is None:
                with suppress(OSError, LeaseLostError):
                    self._remove_record()
            unlock(self._fd)
        finally:
            self._io.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.release()

    def _take_over(self) -> None:
        for leftover in self._root.glob("owner.*.tmp"):
            leftover.unlink()
        self._replace(EPOCH_NAME, b"%d\n" % self.epoch)
        self._replace(RECORD_NAME, _encode(self._record))
        self._renewed_at = time.monotonic()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        if os.getpid() != self._pid:
            raise NotOwnerError(
                f"process {os.getpid()} is a forked child of the owner {self._pid}: the lease is not its own; "
                f"start children with exec"
            )
        # Waiting for a writer that hangs longer than this means that the lease is lost anyway.
        if not self._io.acquire(timeout=max(self.remaining(), 0.0)):
            raise self.lose("renew-failed")
        try:
            self._refuse_ended()
            yield
        finally:
            self._io.release()

    def _refuse_ended(self) -> None:
        if self._lost is not None:
            raise self.lose(self._lost)
        if self._released:
            raise NotOwnerError(f"the lease of {str(self._root)!r} was released; acquire a new one")

    def _renew_as(self, record: OwnerRecord, *, durable: bool = True) -> OwnerRecord:
        # The start counts, not the end: contenders may have seen the record move at any moment in between.
        started = time.monotonic()
        self._prove_ours()
        # Counts attempts: a write that failed after its rename is on disk, and the next one must still move the record.
        self._writes += 1
        record = msgspec.structs.replace(record, renewed=self._writes)
        try:
            self._replace(RECORD_NAME, _encode(record), durable=durable)
        except OSError as error:
            if durable or error.errno not in _FULL:
                raise
            # The lock is ours, whatever the disk: who has filled it must not end the node. Of the record only the
            # number of this renewal changes, so one that is read half written is ours as well.
            self._still_ours()
            overwrite(self._root / RECORD_NAME, _encode(record))
        self._record, self._renewed_at = record, started
        return record

    def _prove_ours(self) -> None:
        if not is_path_of(self._fd, self._root / LOCK_NAME):
            raise self.lose("lock-lost")
        found = read_record(self._root)
        if found is None:
            raise self.lose("record-missing")
        if (found.instance_id, found.epoch) != (self.instance_id, self.epoch):
            raise self.lose("epoch-changed")

    def _remove_record(self) -> None:
        self._prove_ours()
        if read_epoch_file(self._root) != self.epoch:
            # The record is about to go: without this the epoch would start again at 1.
            write_atomic(self._root, EPOCH_NAME, b"%d\n" % self.epoch, self.instance_id)
        os.unlink(self._root / RECORD_NAME)
        sync_folder(self._root)

    def _replace(self, name: str, data: bytes, *, durable: bool = True) -> None:
        write_atomic(self._root, name, data, self.instance_id, self._still_ours, durable=durable)

    def _still_ours(self) -> None:
        # A write that hung until the loss was declared must not come true after it, nor on a successor's record.
        self._refuse_ended()
        if not is_path_of(self._fd, self._root / LOCK_NAME):
            raise self.lose("lock-lost")

    def lose(self, reason: LossReason) -> LeaseLostError:
        """Declare the lease lost, for a keeper that saw the loss; the error to raise. A first reason stays."""
        if self._lost is None:
            self._lost = reason
        return LeaseLostError(
            f"process {self._pid} is no longer the owner of {str(self._root)!r} (epoch {self.epoch}): {self._lost}; "
            f"stop serving and start again",
            reason=self._lost,
            epoch=self.epoch,
        )


def _first_record(
    root: Path, ttl: float, backend: str, serves: Sequence[str], protocol: int, version: str, command: str | None
) -> OwnerRecord:
    """The record of a new owner, with the next epoch. The lock is held."""
    pid = os.getpid()
    command = shlex.join(sys.orig_argv) if command is None else command
    return OwnerRecord(
        instance_id=uuid.uuid4().hex,
        epoch=read_epoch(root) + 1,
        pid=pid,
        boot_id=boot_id(),
        start_time=process_start_time(pid),
        host=_text(socket.gethostname()),
        backend=backend,
        serves=tuple(serves),
        protocol=protocol,
        ttl=ttl,
        version=version,
        started=time.time(),
        command=" ".join(_text(shlex.join(sys.orig_argv) if command is None else command).split())[
            :_COMMAND_CHARACTERS
        ],
    )


def _encode(record: OwnerRecord) -> bytes:
    data = msgspec.json.encode(record)
    if len(data) > MAX_RECORD_BYTES:
        raise InvalidRequestError(
            f"the owner record would take {len(data)} bytes, at most {MAX_RECORD_BYTES} can be read back; "
            f"name fewer endpoints and types",
            size=len(data),
        )
    return data


def _text(value: str) -> str:
    """Names from the system may hold bytes that are no UTF-8, which JSON cannot."""
    return value.encode("utf-8", "backslashreplace").decode()
