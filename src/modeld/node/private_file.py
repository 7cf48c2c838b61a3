"""Files with secrets: mode 0600, ours, whole or not there at all.

Not guaranteed: that root, another process of the same user, or a backup cannot read them. Where the file system keeps
no modes, every reading refuses.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from modeld.errors import NodeError

MAX_BYTES = 256 * 1024
"""No secret of ours is longer; a longer file is not ours."""


def read_private(path: Path) -> bytes | None:
    """The content of ``path``; ``None`` where there is no such file.

    :raises NodeError: it is no plain file, another user's, open to others, too long, or cannot be read.
    """
    try:
        # O_NONBLOCK: a planted FIFO must not hang the reader.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise NodeError(f"cannot read {str(path)!r}: {error.strerror}", path=str(path)) from error
    try:
        info = os.fstat(fd)
        mode = stat.S_IMODE(info.st_mode)
        if not stat.S_ISREG(info.st_mode):
            problem = "it is no plain file; move it away"
        elif info.st_uid != os.geteuid():
            problem = f"it belongs to user {info.st_uid}, not to {os.geteuid()}"
        elif mode & 0o077:
            problem = f"others may use it (mode {mode:04o}) and it holds a secret; run `chmod 600` on it"
        elif info.st_size > MAX_BYTES:
            problem = f"it has {info.st_size} bytes, at most {MAX_BYTES} can be ours"
        else:
            return os.read(fd, MAX_BYTES)
    finally:
        os.close(fd)
    raise NodeError(f"{str(path)!r} is not used: {problem}", path=str(path))


def write_private(path: Path, data: bytes, *, replace: bool) -> bool:
    """Write ``path`` as a whole, 0600 whatever the umask; on disk when this returns. The folder is made, 0700.

    :returns: false where the file was there and may not be replaced; of several who create it at once one wins.
    :raises NodeError: storage failed; the file is as before.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            _write_draft(draft, data)
            if replace:
                os.replace(draft, path)
            else:
                # Not a rename, which would take the name from who came first.
                os.link(draft, path)
        except FileExistsError:
            return False
        finally:
            draft.unlink(missing_ok=True)
        _sync_folder(path.parent)
    except OSError as error:
        raise NodeError(f"cannot write {str(path)!r}: {error.strerror}", path=str(path)) from error
    return True


def _write_draft(draft: Path, data: bytes) -> None:
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(fd, "wb") as file:
        os.fchmod(fd, 0o600)
        file.write(data)
        file.flush()
        os.fsync(fd)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
