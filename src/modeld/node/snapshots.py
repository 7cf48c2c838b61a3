"""Where snapshots lie: ``snapshots/<sha-256>.snap`` in the data root, written whole or not at all.

Nothing bounds the folder but the disk: a snapshot stays until it is removed.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import re
import stat
import threading
import uuid
from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

from modeld.errors import (
    InvalidRequestError,
    ManifestMismatchError,
    NodeError,
    SnapshotNotFoundError,
    StorageError,
)
from modeld.session.snapshot_file import CHUNK, SnapshotCheck, SnapshotHead, read_head
from modeld.session.values import SnapshotInfo

_ID = re.compile(r"[0-9a-f]{64}")

T = TypeVar("T")


class SnapshotStore:
    """Names and folders, and files on their way in and out; the engine writes and reads those of its sessions.

    All but :meth:`send` and :meth:`receive` waits for the disk: call it in a thread.
    """

    def __init__(self, data_root: Path) -> None:
        self._folder = data_root / "snapshots"
        self._swept = False
        # Two first drafts at a time: one must not sweep away the other.
        self._sweeping = threading.Lock()

    def draft(self) -> Path:
        """A path for a new file, in the folder it will stay in.

        :raises NodeError: the folder cannot be made.
        """
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._sweeping:
                if not self._swept:
                    # Of an engine that died while it wrote. One node has a data root, and this is its first draft.
                    for left in self._folder.glob(".*.part"):
                        left.unlink(missing_ok=True)
                    self._swept = True
        except OSError as error:
            raise NodeError(f"cannot make {str(self._folder)!r}: {error.strerror}", path=str(self._folder)) from error
        return self._folder / f".{uuid.uuid4().hex}.part"

    def publish(self, draft: Path, snapshot_id: str) -> None:
        """Give a finished draft its name, and the name to the disk.

        :raises StorageError: the disk fails.
        """
        try:
            draft.rename(self._path(snapshot_id))
            self._sync()
        except OSError as error:
            raise self.failed("keep the snapshot", error) from error

    def discard(self, draft: Path, snapshot_id: str = "") -> None:
        """Remove a draft, and what it was published as."""
        draft.unlink(missing_ok=True)
        if snapshot_id:
            self._path(snapshot_id).unlink(missing_ok=True)

    def find(self, snapshot_id: str) -> Path:
        """The file of a snapshot.

        :raises InvalidRequestError: not an id. :raises SnapshotNotFoundError: there is none.
        """
        path = self._path(snapshot_id)
        if not path.is_file():
            raise _unknown(snapshot_id)
        return path

    def has(self, snapshot_id: str) -> bool:
        """Whether there is such a snapshot."""
        return self._path(snapshot_id).exists()

    def list(self) -> list[SnapshotInfo]:
        """All snapshots, the newest first. Only their heads are read: one that is damaged behind it looks whole.

        :raises StorageError: the folder cannot be read.
        """
        try:
            names = [entry.name for entry in os.scandir(self._folder)]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self.failed("list the snapshots", error) from error
        ids = [name.removesuffix(".snap") for name in names if name.endswith(".snap")]
        found = [self._info(id_) for id_ in ids if _ID.fullmatch(id_)]
        return sorted((info for info in found if info is not None), key=lambda info: (-info.created, info.id))

    def remove(self, snapshot_id: str) -> None:
        """Remove a snapshot. Who reads it at this moment reads on.

        :raises InvalidRequestError: not an id. :raises SnapshotNotFoundError: there is none.
        :raises StorageError: the disk fails.
        """
        try:
            self._path(snapshot_id).unlink()
            self._sync()
        except FileNotFoundError:
            raise _unknown(snapshot_id) from None
        except OSError as error:
            raise self.failed("remove the snapshot", error) from error

    async def send(self, snapshot_id: str) -> AsyncGenerator[bytes, None]:
        """A snapshot's file in pieces.

        :raises SnapshotNotFoundError: there is none. :raises StorageError: the disk fails.
        :raises ManifestMismatchError: after the last piece: they are not the file that the id names.
        """
        file = await asyncio.to_thread(self._open, snapshot_id)
        whole = hashlib.sha256()
        try:
            while data := await asyncio.to_thread(self._read, file, whole):
                yield data
        finally:
            file.close()
        if whole.hexdigest() != snapshot_id:
            raise ManifestMismatchError(
                f"snapshot {snapshot_id[:16]} is damaged: its checksum differs; remove it", field="checksum"
            )

    async def receive(self, data: AsyncIterable[bytes], snapshot_id: str = "") -> SnapshotInfo:
        """Store a snapshot's file. Each block is checked as it comes; nothing is left of one that is refused.

        :param snapshot_id: what it has to be; empty: whatever it is.
        :raises ManifestMismatchError: it is no whole snapshot, or another one. :raises StorageError: the disk is full.
        """
        if snapshot_id:
            self._path(snapshot_id)
        incoming = Incoming(self)
        try:
            await settled(asyncio.to_thread(incoming.begin))
            async for piece in data:
                await settled(asyncio.to_thread(incoming.add, piece))
            return await settled(asyncio.to_thread(incoming.finish, snapshot_id))
        except BaseException:
            await settled(asyncio.to_thread(incoming.discard))
            raise

    def _open(self, snapshot_id: str) -> BinaryIO:
        path = self._path(snapshot_id)
        try:
            return os.fdopen(_open_plain(path), "rb")
        except FileNotFoundError:
            raise _unknown(snapshot_id) from None
        except OSError as error:
            raise self.failed("read the snapshot", error) from error

    def _read(self, file: BinaryIO, whole: hashlib._Hash) -> bytes:
        try:
            data = file.read(CHUNK)
        except OSError as error:
            raise self.failed("read the snapshot", error) from error
        whole.update(data)
        return data

    def _info(self, snapshot_id: str) -> SnapshotInfo | None:
        """What the file says of itself; ``None``: it is gone."""
        try:
            with os.fdopen(_open_plain(self._path(snapshot_id)), "rb") as file:
                size = os.fstat(file.fileno()).st_size
                try:
                    return info_of(read_head(file.read), snapshot_id, size)
                except ManifestMismatchError as error:
                    return _unusable(snapshot_id, size, error.message)
        except FileNotFoundError:
            return None
        except OSError as error:
            return _unusable(snapshot_id, 0, f"it cannot be read: {error.strerror}")

    def _sync(self) -> None:
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _path(self, snapshot_id: str) -> Path:
        # The only text from outside that becomes part of a path here.
        if not _ID.fullmatch(snapshot_id):
            raise InvalidRequestError(
                f"a snapshot id is 64 hexadecimal digits, not {snapshot_id[:80]!r}", parameter="snapshot_id"
            )
        return self._folder / f"{snapshot_id}.snap"

    def failed(self, what: str, error: OSError) -> StorageError:
        """``error`` as one of ours."""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        reason = "the disk is full; free some of it and try again" if full else error.strerror or str(error)
        return StorageError(f"cannot {what} in {str(self._folder)!r}: {reason}", path=str(self._folder))


class Incoming:
    """A snapshot's file on its way in. Its methods wait for the disk, and are called one at a time."""

    def __init__(self, store: SnapshotStore) -> None:
        self._store = store
        self._draft: Path | None = None
        self._file: BinaryIO | None = None
        self._check = SnapshotCheck()
        self._whole = hashlib.sha256()
        self._published = ""

    def begin(self) -> None:
        """Make the draft."""
        self._draft = self._store.draft()
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._file = os.fdopen(os.open(self._draft, flags, 0o600), "wb")
        except OSError as error:
            raise self._store.failed("write the snapshot", error) from error

    def add(self, data: bytes) -> None:
        """Check a piece and write it."""
        assert self._file is not None
        self._check.feed(data)
        self._whole.update(data)
        try:
            self._file.write(data)
        except OSError as error:
            raise self._store.failed("write the snapshot", error) from error

    def finish(self, snapshot_id: str) -> SnapshotInfo:
        """All has come: give it its name."""
        assert self._file is not None
        assert self._draft is not None
        head, found = self._check.finish(), self._whole.hexdigest()
        if snapshot_id not in ("", found):
            raise ManifestMismatchError(
                f"this is snapshot {found[:16]}, and {snapshot_id[:16]} was named", field="checksum"
            )
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            size = self._file.tell()
            self._file.close()
        except OSError as error:
            raise self._store.failed("write the snapshot", error) from error
        known = self._store.has(found)
        self._store.publish(self._draft, found)
        self._published = "" if known else found
        return info_of(head, found, size)

    def discard(self) -> None:
        """Remove all there is of it, unless the same snapshot was there before."""
        if self._file is not None:
            try:
                self._file.close()
            except OSError:
                # What could not be flushed is not wanted.
                pass
        if self._draft is not None:
            self._store.discard(self._draft, self._published)


async def settled(work: Awaitable[T], on_cancel: Callable[[], None] = lambda: None) -> T:
    """``work``, to its end also where the caller is cancelled: a thread cannot be stopped, and what it does must be
    known before it is undone.

    :param on_cancel: called when the caller is cancelled, to hurry ``work``.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.done():
            on_cancel()
            await asyncio.wait([task])
        if not task.cancelled():
            task.exception()
        raise


def info_of(head: SnapshotHead, snapshot_id: str, size: int) -> SnapshotInfo:
    """What a head says, of a file of that id and size."""
    return SnapshotInfo(
        id=snapshot_id,
        tokens=head.tokens,
        size=size,
        manifest_digest=head.manifest.digest,
        tape_hash=head.tape_hash,
        created=head.created,
        ref=head.ref,
        config=head.config,
    )


def _unusable(snapshot_id: str, size: int, error: str) -> SnapshotInfo:
    return SnapshotInfo(id=snapshot_id, tokens=0, size=size, manifest_digest="", tape_hash="", error=error)


def _unknown(snapshot_id: str) -> SnapshotNotFoundError:
    return SnapshotNotFoundError(
        f"there is no snapshot {snapshot_id[:16]}; `modeld sessions list` names all", id=snapshot_id
    )


def _open_plain(path: Path) -> int:
    """Open a plain file: a planted FIFO must not hang the reader, nor a link lead elsewhere."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "it is no plain file")
    return fd
