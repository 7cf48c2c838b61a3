"""Getting the lock of a data root from an owner that died, or that stands still and must be ended first.

An owner under SIGSTOP, or one whose event loop hangs, keeps its kernel lock for ever. It is not out-voted: nobody else
becomes owner while it could still act. It is *ended*, and the kernel then frees its lock. What is checked before the
signal, and why:

1. The record stood still for the holder's whole ttl on the contender's own monotonic clock, in looks that came often:
   a contender that was itself stopped beside the owner does not count that time.
2. The boot id is that of this boot: a pid of another machine or container host says nothing here.
3. A pidfd is opened, and only then the start time compared. If the process died and its pid was given anew before, the
   start time differs; if that happens after, the signal goes to the dead process, never to the new one.
4. The process has the lock: an open file of it, by ``/proc/<pid>/fdinfo`` (proc_pid_fdinfo(5)), holds a ``FLOCK`` of
   this very file. So one that lost the lock and lives on is left alone. Where ``/proc`` may not be read, 3 must do.
5. The record is read once more: an owner that went on in this moment keeps the lease.

Between 5 and the signal an owner may still go on and renew: it is killed all the same. That costs its clients a broken
connection, and never makes two owners.
"""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import suppress
from pathlib import Path

from modeld.errors import OwnerHeldError, OwnerWedgedError
from modeld.node.lockfile import lock
from modeld.node.record import LOCK_NAME, RECORD_NAME, OwnerRecord, boot_id, process_start_time, read_record

POLL = 0.02
"""Seconds between two looks of a waiting contender; it bounds how late a free lock is seen."""

_FREED_SECONDS = 2.0
"""How long after the attempt the lock may stay held under the same record. A killed process frees its lock within
milliseconds, unless it waits inside the kernel for storage, or a forked child has a copy. And one that is gone may have
been ended by another contender, which has the lock and is about to write its record."""


class Stillness:
    """How long the owner record of ``root`` has stood still, as :meth:`look` saw it.

    :param ttl: seconds to assume where the record cannot be read.
    """

    def __init__(self, root: Path, ttl: float) -> None:
        self._root = root
        self._ttl = ttl
        self._looked = time.monotonic()
        self._moved = False
        self.record = read_record(root)
        self.seconds = 0.0

    @property
    def ttl(self) -> float:
        """The holder's ttl."""
        return self._ttl if self.record is None else self.record.ttl

    def look(self) -> None:
        """Look again. At most a quarter of the ttl counts for one look: who looks seldom was stopped itself."""
        now, record = time.monotonic(), read_record(self._root)
        if record != self.record:
            self.record, self.seconds, self._moved = record, 0.0, True
        else:
            self.seconds += min(now - self._looked, self.ttl / 4)
        self._looked = now

    @property
    def fresh(self) -> bool:
        """The owner has surely renewed in the last half ttl; a living one does so every third.

        Before the first change only the file's age by the wall clock can tell. Where that clock was set meanwhile, the
        answer costs a wait or an attempt, but kills nobody.
        """
        if self.record is None:
            return False
        if self._moved:
            return self.seconds < self.ttl / 2
        with suppress(OSError):
            return 0 <= time.time() - os.stat(self._root / RECORD_NAME).st_mtime < self.ttl / 2
        return False


def contend(root: Path, *, ttl: float, evict: bool, wait: float | None) -> int:
    """A descriptor that holds the lock of ``root``, as soon as it is free or could be freed.

    :param ttl: seconds to watch a holder that has no readable record.
    :param evict: end a holder whose record stands still. Finding that out may take its ttl, whatever ``wait`` is.
    :param wait: seconds to wait for a living holder to end; ``None``: for ever.
    :raises OwnerHeldError: a living holder kept it.
    :raises OwnerWedgedError: the holder stands still and may not, or could not, be ended.
    :raises OSError: storage failed.
    """
    fd = lock(root / LOCK_NAME)
    if fd is not None:
        return fd
    give_up = float("inf") if wait is None else time.monotonic() + wait
    watched = Stillness(root, ttl)
    ended: tuple[OwnerRecord, float, OwnerWedgedError] | None = None
    while True:
        if time.monotonic() >= give_up and (watched.fresh or not evict):
            raise held(root)
        if ended is not None and ended[0] == watched.record:
            if time.monotonic() - ended[1] > _FREED_SECONDS:
                raise ended[2]
        elif evict and watched.seconds >= watched.ttl:
            if watched.record is None:
                raise _wedged(root, None, "no readable record tells who it is")
            error = _wedged(root, watched.record, "it was killed, but a forked child or the kernel keeps its lock")
            try:
                killed = end_holder(root, watched.record)
            except OwnerWedgedError as refused:
                killed, error = True, refused
            if killed:
                ended = watched.record, time.monotonic(), error
        time.sleep(min(POLL, watched.ttl / 10))
        if (fd := lock(root / LOCK_NAME, 0)) is not None:
            return fd
        watched.look()


def end_holder(root: Path, record: OwnerRecord) -> bool:
    """Kill the process that ``record`` names, if it is the one that holds the lock; for a record that stands still.

    Returns whether it was killed: not when the record has changed meanwhile, since its owner then lives.

    :raises OwnerWedgedError: it may not be signalled, or is not surely the holder; nothing was killed.
    """
    if record.pid == os.getpid():
        raise _wedged(root, record, "it is this very process")
    if record.boot_id != boot_id():
        raise _wedged(root, record, "it was started on another machine or before a restart of this one")
    try:
        handle = _open(record.pid)
    except ProcessLookupError:
        raise _wedged(root, record, "that process is gone: a forked child of it must have its lock") from None
    except OSError as error:
        raise _wedged(root, record, f"no safe handle on it can be had ({error})") from error
    try:
        if record.start_time is None or process_start_time(record.pid) != record.start_time:
            raise _wedged(root, record, "its pid belongs to another process by now; a forked child must have its lock")
        if _holds_lock(record.pid, root / LOCK_NAME) is False:
            raise _wedged(root, record, "it does not hold the lock any more: somebody without a record does")
        if read_record(root) != record:
            return False
        _kill(handle)
    except PermissionError as error:
        raise _wedged(root, record, f"it may not be signalled from here ({error})") from error
    finally:
        os.close(handle)
    return True


def wait_gone(pid: int, start_time: float, seconds: float) -> bool:
    """Wait until that process has ended and given all its memory back; whether it did in time. Blocks.

    A zombie counts as ended where there are pidfds; elsewhere it must be reaped first.
    """
    deadline = time.monotonic() + seconds
    with suppress(OSError):
        handle = _open(pid)
        try:
            if process_start_time(pid) != start_time:
                return True
            # Readable once the last thread has ended: earlier, one of them may still hold the memory.
            poll = select.poll()
            poll.register(handle, select.POLLIN)
            return bool(poll.poll(max(0.0, seconds) * 1000))
        finally:
            os.close(handle)
    # No such process, or a system without pidfds.
    while process_start_time(pid) == start_time:
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.01)
    return True


def held(root: Path) -> OwnerHeldError:
    """The error that names the owner of ``root``, as far as its record can be read."""
    record = None
    with suppress(OSError):
        record = read_record(root)
    advice = "use that node, stop it with `modeld stop`, or choose another folder with --data-root"
    if record is None:
        message = f"another process, whose record cannot be read, owns {str(root)!r}; {advice}"
        return OwnerHeldError(message, pid=0, endpoint="", epoch=0)
    where = f"answers at {record.endpoint}" if record.endpoint else "is still starting"
    return OwnerHeldError(
        f"process {record.pid} ({record.command[:100]!r}) owns {str(root)!r} in epoch {record.epoch} and {where}; "
        f"{advice}",
        pid=record.pid,
        endpoint=record.endpoint,
        epoch=record.epoch,
    )


def _wedged(root: Path, record: OwnerRecord | None, why: str) -> OwnerWedgedError:
    advice = "end it by hand, or choose another folder with --data-root"
    if record is None:
        return OwnerWedgedError(f"a process holds {str(root)!r}, and {why}; {advice}", pid=0, command="")
    return OwnerWedgedError(
        f"process {record.pid} ({record.command[:100]!r}) on {record.host} owns {str(root)!r} in epoch {record.epoch}; "
        f"its record has stood still for its ttl of {record.ttl:g} s, and {why}; {advice}",
        pid=record.pid,
        command=record.command,
    )


def _open(pid: int) -> int:
    if not hasattr(os, "pidfd_open"):
        raise OSError("this system has no pidfd_open(2)")
    return os.pidfd_open(pid)


def _kill(handle: int) -> None:
    # Gone in this moment: then its lock is free as well.
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(handle, signal.SIGKILL)


def _holds_lock(pid: int, path: Path) -> bool | None:
    """Whether an open file of ``pid`` has the exclusive lock of ``path``; ``None`` where that cannot be looked at."""
    try:
        mine = os.stat(path, follow_symlinks=False)
        for name in os.listdir(f"/proc/{pid}/fdinfo"):
            # Only files with a lock are looked at: one on a dead network mount would hang us.
            with suppress(FileNotFoundError):
                text = Path(f"/proc/{pid}/fdinfo/{name}").read_text("ascii", "replace")
                locked = any(line.split()[2:5] == ["FLOCK", "ADVISORY", "WRITE"] for line in text.splitlines())
                if locked and os.path.samestat(os.stat(f"/proc/{pid}/fd/{name}"), mine):
                    return True
    except PermissionError:
        return None
    except (FileNotFoundError, ProcessLookupError):
        return False
    return False
