"""The files that sessions come back from: ``sessions/<id>.session``, written whole or not at all.

Layout: a magic with the version, the header's length (4 bytes, big-endian), SHA-256 of these and the header, the header
(msgpack of :class:`SessionHeader`, which has size and SHA-256 of what follows), and the state as an engine told it.
``<id>`` is the SHA-256 of workspace, name and model digest: no name from outside becomes part of a path. An empty
``<id>.used`` beside it says that the session was used after the state was told.

Guaranteed: a file that is damaged, cut, of another version or another's is never used. Not guaranteed: that somebody
who may write to the folder cannot make a file that is. The text of conversations is in these files, mode 0600.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgspec
from msgspec import Struct

from modeld.engine.protocol import MAX_STATE
from modeld.errors import ModeldError
from modeld.session.manifest import Manifest
from modeld.session.values import ModelRef, SessionConfig

MAGIC = b"modeld session 1\n"
MAX_HEADER = 256 * 1024
"""Bytes. Names have at most 200 characters and paths a few thousand."""

MAX_FILES = 10_000
MAX_BYTES = 2 * 2**30
"""Of all files; the longest unused leave first."""

_LENGTH = struct.Struct(">I")
_START = len(MAGIC) + _LENGTH.size + hashlib.sha256().digest_size
_NAME = re.compile(r"([0-9a-f]{64})\.(session|used)")
_DRAFT = re.compile(r"\.[0-9a-f]{64}\.part")

_NEW = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""Not waiting: a planted FIFO must not hang the one thread that writes."""

log = logging.getLogger("modeld.sessions")


class SessionHeader(Struct, frozen=True, kw_only=True):
    """What is known of a session without its state.

    :param tape: tokens of the conversation. :param last_used: seconds since the epoch.
    :param size: bytes of the state. :param sha256: of the state.
    """

    ref: ModelRef
    config: SessionConfig
    manifest: Manifest
    window: int
    tape: int
    last_used: float
    size: int
    sha256: str

    @property
    def id(self) -> str:
        """Names the session's file."""
        return file_id(self.config.workspace, self.config.name, self.ref.digest)


class Change(Struct, frozen=True):
    """A file to write, or to remove where ``header`` is ``None``.

    :param current: nothing has used the session since the state was told.
    """

    header: SessionHeader | None
    state: bytes = b""
    current: bool = False


def file_id(workspace: str, name: str, digest: str) -> str:
    """The name of a session's file, without its ending."""
    # Unambiguous: no name has control characters in it.
    return hashlib.sha256("\0".join((workspace, name, digest)).encode("utf-8", "surrogatepass")).hexdigest()


class SessionFiles:
    """The files of one data root. All calls but :meth:`close` may block. :meth:`load` may run beside others; of the
    others one runs at a time.
    """

    def __init__(self, folder: Path, *, max_files: int = MAX_FILES, max_bytes: int = MAX_BYTES) -> None:
        self._folder = folder
        self._max_files = max_files
        self._max_bytes = max_bytes
        # Bytes by id, the longest unused first.
        self._sizes: dict[str, int] = {}
        self._closed = False

    def close(self) -> None:
        """Let nothing be written any more, from any thread: the folder may have another owner now."""
        self._closed = True

    def scan(self) -> list[tuple[SessionHeader, bool]]:
        """All sessions, each with whether its state is current. What cannot be used is named in the log, and stays."""
        found: list[tuple[int, str, int]] = []
        used: set[str] = set()
        try:
            if not self._folder.exists():
                return []
            with os.scandir(self._folder) as entries:
                for entry in entries:
                    if (match := _NAME.fullmatch(entry.name)) is None:
                        if _DRAFT.fullmatch(entry.name):
                            self._discard(entry.name)
                    elif match[2] == "used":
                        used.add(match[1])
                    else:
                        info = entry.stat(follow_symlinks=False)
                        found.append((info.st_mtime_ns, match[1], info.st_size))
        except OSError as error:
            log.warning("the sessions in %s cannot be read: %s", self._folder, error.strerror)
            return []
        self._sizes = {id_: size for _, id_, size in sorted(found)}
        for id_ in used - self._sizes.keys():
            self._discard(f"{id_}.used")
        self._leave_room()
        return [(header, id_ not in used) for id_ in self._sizes if (header := self._header(id_)) is not None]

    def load(self, id_: str) -> bytes:
        """The state of a session; empty where there is none that can be used."""
        try:
            with self._open(id_) as file:
                header = _read_header(file, id_)
                state = file.read(header.size)
            if hashlib.sha256(state).hexdigest() != header.sha256:
                raise ValueError("its state is damaged")
        except FileNotFoundError:
            return b""
        except (OSError, ValueError) as error:
            log.warning("session file %s is not used: %s", id_, error)
            return b""
        return state

    def apply(self, used: set[str], changes: dict[str, Change]) -> set[str]:
        """Say of some sessions that they are used again, then write and remove files. On disk when this returns.

        :returns: those for which that failed; their files are as before.
        """
        failed: dict[str, OSError] = {}
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            for id_ in dict.fromkeys([*(used & self._sizes.keys()), *changes]):
                try:
                    if id_ in used:
                        self._touch(id_)
                    if id_ in changes:
                        self._apply(id_, changes[id_])
                except OSError as error:
                    failed[id_] = error
            self._leave_room()
            _sync(self._folder)
        except OSError as error:
            failed = dict.fromkeys([*used, *changes], error)
        if failed:
            why = next(iter(failed.values())).strerror
            log.warning("%d sessions could not be written to %s: %s", len(failed), self._folder, why)
        return set(failed)

    def _apply(self, id_: str, change: Change) -> None:
        if change.header is None:
            self._remove(id_)
            return
        header = msgspec.msgpack.encode(change.header)
        start = MAGIC + _LENGTH.pack(len(header))
        draft = self._folder / f".{id_}.part"
        try:
            draft.unlink(missing_ok=True)
            with open(os.open(draft, _NEW | os.O_EXCL, 0o600), "wb") as file:
                file.writelines((start, hashlib.sha256(start + header).digest(), header, change.state))
                file.flush()
                os.fsync(file.fileno())
            if not change.current:
                self._touch(id_)
            # Storage may have hung for long: what another owner has written by now must not be replaced.
            if self._closed:
                return
            os.replace(draft, self._path(id_))
        finally:
            draft.unlink(missing_ok=True)
        if change.current and not self._closed:
            self._path(id_, "used").unlink(missing_ok=True)
        self._sizes.pop(id_, None)
        self._sizes[id_] = _START + len(header) + len(change.state)

    def _touch(self, id_: str) -> None:
        if not self._closed:
            os.close(os.open(self._path(id_, "used"), _NEW, 0o600))

    def _remove(self, id_: str) -> None:
        if not self._closed:
            for ending in ("session", "used"):
                self._path(id_, ending).unlink(missing_ok=True)
            self._sizes.pop(id_, None)

    def _leave_room(self) -> None:
        total = sum(self._sizes.values())
        while len(self._sizes) > self._max_files or total > self._max_bytes:
            id_ = next(iter(self._sizes))
            total -= self._sizes.pop(id_)
            log.warning("session file %s leaves: there are too many, and it is the longest unused", id_)
            self._discard(f"{id_}.session")
            self._discard(f"{id_}.used")

    def _discard(self, name: str) -> None:
        if not self._closed:
            with suppress(OSError):
                os.unlink(self._folder / name)

    def _header(self, id_: str) -> SessionHeader | None:
        try:
            with self._open(id_) as file:
                return _read_header(file, id_)
        except (OSError, ValueError) as error:
            log.warning("session file %s is not used: %s", id_, error)
            return None

    def _open(self, id_: str) -> BinaryIO:
        # O_NONBLOCK: a planted FIFO must not hang the reader.
        fd = os.open(self._path(id_), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode) or info.st_uid != os.geteuid():
            os.close(fd)
            raise ValueError("it is no plain file of ours")
        return open(fd, "rb")

    def _path(self, id_: str, ending: str = "session") -> Path:
        return self._folder / f"{id_}.{ending}"


def _read_header(file: BinaryIO, id_: str) -> SessionHeader:
    """The header; the file stands at the state then.

    :raises ValueError: what is wrong with the file.
    """
    start = file.read(_START)
    if len(start) < _START:
        raise ValueError("it is cut off")
    if not start.startswith(MAGIC):
        raise ValueError("it is of another version")
    (length,) = _LENGTH.unpack_from(start, len(MAGIC))
    data = file.read(length) if length <= MAX_HEADER else b""
    known = len(MAGIC) + _LENGTH.size
    if hashlib.sha256(start[:known] + data).digest() != start[known:]:
        raise ValueError("its header is damaged")
    try:
        header = msgspec.msgpack.decode(data, type=SessionHeader)
    except (msgspec.MsgspecError, ModeldError, RecursionError) as error:
        raise ValueError(f"its header cannot be understood: {error}") from error
    if header.id != id_:
        raise ValueError("it is of another session than its name says")
    size = os.fstat(file.fileno()).st_size
    if not 0 <= header.size <= MAX_STATE or size != _START + length + header.size:
        raise ValueError(f"it has {size} bytes and should have {_START + length + header.size}")
    return header


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
