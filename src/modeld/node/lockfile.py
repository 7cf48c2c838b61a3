"""Files that only one process may hold: take the kernel lock of a path, and replace a small file as a whole.

The lock is ``flock``: it belongs to the open file description, so a child made by fork without exec shares it, and the
kernel frees it when the last copy of the descriptor is closed, at the latest by the death of the processes.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

# A prober holds a shared lock for microseconds, and a child between fork and exec for some milliseconds.
_PATIENCE = 0.25
_POLL = 0.005
# As long again, where it is only probers.
_PROBERS = 2.0


def lock(path: Path, patience: float = _PATIENCE) -> int | None:
    """A descriptor (close-on-exec) that holds the exclusive lock of ``path`` and is the file its path names.

    ``None``: somebody else held it for ``patience`` seconds, and not only to probe it. The file is created, 0600, where
    it is missing.

    :raises OSError: the file cannot be opened, as a symbolic link or a folder cannot.
    """
    give_up = time.monotonic() + patience
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Unlinked between open and flock: what was locked is nobody's lock any more.
            if is_path_of(fd, path):
                return fd
        except BlockingIOError:
            pass
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        late = time.monotonic() - give_up
        # Many probers in turn may be there each time we look; they keep nobody out for ever.
        if late >= 0 and (late >= _PROBERS or is_held(path)):
            return None
        time.sleep(_POLL)


def unlock(fd: int) -> None:
    """Free the lock now. Not only close: a child forked without exec has a copy of the descriptor and would keep it."""
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock of ``path``; no file is created. Holds a shared lock for microseconds.

    :raises OSError: the file is there and cannot be opened.
    """
    try:
        # O_NONBLOCK: a planted FIFO must not hang the prober.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        # Closing alone is not enough: a child forked meanwhile by another thread holds a copy until its exec.
        fcntl.flock(fd, fcntl.LOCK_UN)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def is_path_of(fd: int, path: Path) -> bool:
    """Whether ``path`` names the file that ``fd`` has open."""
    try:
        named = os.stat(path, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return os.path.samestat(os.fstat(fd), named)


def write_atomic(
    folder: Path, name: str, data: bytes, nonce: str, still: Callable[[], None] = lambda: None, *, durable: bool = True
) -> None:
    """Replace ``folder/name`` (0600) as a whole, on disk when this returns.

    :param nonce: keeps the temporary files of two writers apart. :param still: raises to stop short of the rename.
    :param durable: ``False``: other processes see it when this returns, and a power cut may lose it.
    :raises OSError: storage failed. Where only the folder's fsync did, the new content is there already.
    """
    temporary = folder / f"{name}.{nonce}.tmp"
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(fd)
        still()
        os.replace(temporary, folder / name)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    if durable:
        sync_folder(folder)


def overwrite(path: Path, data: bytes) -> None:
    """Write over a file that is there, padded with spaces to its size: on a full disk nothing else can be written.

    A reader of the same moment may see some of both.

    :raises OSError: it is not there, or is shorter and cannot grow.
    """
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        rest = memoryview(data.ljust(os.fstat(fd).st_size))
        at = 0
        while at < len(rest):
            at += os.pwrite(fd, rest[at:], at)
    finally:
        os.close(fd)


def sync_folder(folder: Path) -> None:
    """Have the names in ``folder`` on disk when this returns."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
