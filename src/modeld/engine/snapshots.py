"""Snapshot files: a session's conversation and its KV, which prove themselves before they are used.

:mod:`modeld.session.snapshot_file` has the layout. Writer and reader belong to the thread that does files; they wait
for the disk.
"""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import suppress
from typing import BinaryIO, Final

import msgspec
from msgspec import Struct

from modeld.engine.overflow import Left
from modeld.engine.session import EngineSession, Span
from modeld.errors import CancelledError, ManifestMismatchError, ModeldError, SnapshotNotFoundError, StorageError
from modeld.session.manifest import Manifest, token_hash
from modeld.session.snapshot_file import (
    CHUNK,
    MAGIC,
    MAX_SESSION,
    Frame,
    SnapshotCheck,
    SnapshotHead,
    frame_of,
)
from modeld.thinking import ThinkLevel
from modeld.types import Message, Tool

_UNREADABLE: Final = (msgspec.MsgspecError, ModeldError, ValueError, OverflowError, RecursionError)


class SavedSession(Struct, frozen=True, kw_only=True):
    """All of a session but its KV."""

    manifest: Manifest
    ids: list[int]
    hot: int
    text: bytes
    spans: list[Span]
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    think: ThinkLevel
    stable: tuple[Message, ...]
    stable_tools: tuple[Tool, ...]
    volatile: tuple[Message, ...]
    prefix_tokens: int
    logical: int | None
    left: Left | None = None
    shifts: bool = False
    unsure: bool = False
    raw: bool = False

    @classmethod
    def of(cls, session: EngineSession, manifest: Manifest) -> SavedSession:
        """What to save of ``session``."""
        return cls(
            manifest=manifest,
            ids=session.ids,
            hot=session.hot,
            text=bytes(session.text),
            spans=session.spans,
            messages=session.messages,
            tools=session.tools,
            think=session.think,
            stable=session.stable,
            stable_tools=session.stable_tools,
            volatile=session.volatile,
            prefix_tokens=session.prefix_tokens,
            logical=session.logical,
            left=session.left,
            shifts=session.shifts,
            unsure=session.unsure,
            raw=session.raw,
        )

    def put_into(self, session: EngineSession) -> None:
        """Make ``session`` what was saved. Its sequence must hold the KV already."""
        session.ids, session.hot, session.text = list(self.ids), self.hot, bytearray(self.text)
        session.spans, session.messages, session.tools = list(self.spans), self.messages, self.tools
        session.think, session.stable, session.volatile = self.think, self.stable, self.volatile
        session.stable_tools = self.stable_tools
        session.prefix_tokens, session.logical = self.prefix_tokens, self.logical
        session.left, session.shifts, session.raw = self.left, self.shifts, self.raw
        session.lost, session.lost_tokens, session.synced, session.unsure = None, 0, 0, self.unsure


class SnapshotWriter:
    """Writes a new file at ``path``, piece by piece. What is not finished must be discarded.

    :raises StorageError: from each method: the disk is full or fails.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._sum = hashlib.sha256()
        self._size = 0

    def begin(self, head: SnapshotHead, saved: SavedSession) -> None:
        """Create the file, which must not be there yet, with all but the KV."""
        session = msgspec.msgpack.encode(saved)
        if len(session) > MAX_SESSION:
            raise StorageError(
                f"the session has {len(session)} bytes beside its KV, and a snapshot takes {MAX_SESSION}",
                path=self._path,
            )
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._failed(error) from error
        self._file = os.fdopen(fd, "wb")
        self._write(MAGIC)
        self.add(msgspec.msgpack.encode(head))
        self.add(session)

    def add(self, content: bytes) -> None:
        """Write a frame."""
        self._write(frame_of(content))
        self._write(content)

    def finish(self) -> tuple[str, int]:
        """Flush it to the disk: its SHA-256, and its size in bytes."""
        assert self._file is not None
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
        except OSError as error:
            raise self._failed(error) from error
        return self._sum.hexdigest(), self._size

    def discard(self) -> None:
        """Remove what there is of the file."""
        if self._file is not None:
            with suppress(OSError):  # What could not be flushed is not wanted.
                self._file.close()
            with suppress(OSError):  # A disk that fails may not even delete.
                os.unlink(self._path)

    def _write(self, data: bytes) -> None:
        assert self._file is not None
        self._sum.update(data)
        self._size += len(data)
        try:
            self._file.write(data)
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> StorageError:
        return storage_error("write the snapshot", self._path, error)


class SnapshotReader:
    """Reads a file that a :class:`SnapshotWriter` made. It stays open, so that what was verified is what is read.

    :param digest: SHA-256 of the whole file.
    """

    def __init__(self, path: str, digest: str) -> None:
        self._path = path
        self._digest = digest
        self._file: BinaryIO | None = None
        self._blocks: list[Frame] = []
        self.given_up = False
        """Set by another thread: nobody waits for :meth:`verify` any more."""

    def verify(self) -> tuple[SnapshotHead, SavedSession]:
        """Read the whole file and check every byte of it.

        :raises SnapshotNotFoundError: there is none. :raises StorageError: the disk fails.
        :raises ManifestMismatchError: its content is not what ``digest`` says, or not a snapshot of this version.
        """
        try:
            self._file = os.fdopen(os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "rb")
            check = self._check(self._file)
        except FileNotFoundError as error:
            raise SnapshotNotFoundError(f"there is no snapshot {self._digest[:16]}", id=self._digest) from error
        except OSError as error:
            raise storage_error("read the snapshot", self._path, error) from error
        head = check.finish()
        _, session, *self._blocks = check.frames
        return head, _decoded(self._read(session), head)

    def block(self, index: int) -> bytes:
        """The KV of a block, after :meth:`verify`.

        :raises ManifestMismatchError: it is not what was verified. :raises StorageError: the disk fails.
        """
        return self._read(self._blocks[index])

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def _check(self, file: BinaryIO) -> SnapshotCheck:
        check, whole = SnapshotCheck(), hashlib.sha256()
        flaw: ManifestMismatchError | None = None
        while data := file.read(CHUNK):
            if self.given_up:
                raise CancelledError("the restore was cancelled")
            whole.update(data)
            try:
                if flaw is None:
                    check.feed(data)
            except ManifestMismatchError as error:
                flaw = error
        if whole.hexdigest() != self._digest:
            raise ManifestMismatchError(
                f"snapshot {self._digest[:16]} is damaged: its checksum differs; remove it", field="checksum"
            )
        if flaw is not None:
            raise flaw
        return check

    def _read(self, frame: Frame) -> bytes:
        assert self._file is not None
        content = bytearray()
        try:
            while len(content) < frame.size:
                # Short reads are allowed; the frame is no longer than the file was.
                data = os.pread(self._file.fileno(), frame.size - len(content), frame.offset + len(content))
                if not data:
                    break
                content += data
        except OSError as error:
            raise storage_error("read the snapshot", self._path, error) from error
        if hashlib.sha256(content).digest() != frame.sum:
            raise ManifestMismatchError(f"snapshot {self._digest[:16]} was changed while it was read", field="checksum")
        return bytes(content)


def _decoded(data: bytes, head: SnapshotHead) -> SavedSession:
    """All of the session but its KV, which agrees with itself and with the head.

    :raises ManifestMismatchError: it does not.
    """
    try:
        saved = msgspec.msgpack.decode(data, type=SavedSession)
    except _UNREADABLE as error:
        raise ManifestMismatchError(f"the snapshot's session cannot be read: {error}", field="header") from None
    if not _sound(saved) or saved.hot != head.tokens or saved.manifest != head.manifest:
        raise ManifestMismatchError("the snapshot's session and its head contradict each other", field="header")
    if token_hash(saved.ids[: saved.hot]) != head.tape_hash:
        raise ManifestMismatchError("the snapshot's tokens are not those of its tape", field="tape_hash")
    return saved


def _sound(saved: SavedSession) -> bool:
    """Every place that is named is there."""
    tokens = byte = 0
    for span in saved.spans:
        if not tokens <= span.token_start <= span.token_end or not byte <= span.byte_start <= span.byte_end:
            return False
        tokens, byte = span.token_end, span.byte_end
    count = len(saved.ids)
    return (
        max(tokens, saved.hot, saved.logical or 0) <= count
        and byte <= len(saved.text)
        and min(0, saved.hot, saved.prefix_tokens, saved.logical or 0) == 0
        and min(saved.ids, default=0) >= 0
        and max(saved.ids, default=0) < 2**31
    )


def storage_error(what: str, path: str, error: OSError) -> StorageError:
    """``error`` as one of ours."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = "the disk is full; free some of it and try again" if full else error.strerror or str(error)
    return StorageError(f"cannot {what} in {os.path.dirname(path)!r}: {reason}", path=path)
