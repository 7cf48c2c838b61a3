"""Snapshot files: a session's conversation and its KV, which prove themselves before they are used.

Layout: an 18-byte magic, the header's length (4 bytes, big-endian), the header (msgpack of :class:`SavedSession`), and
the backend's state to the end of the file. The name of a snapshot is the SHA-256 of the whole file.
"""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path

import msgspec
from msgspec import Struct

from modeld.engine.session import EngineSession, Span
from modeld.errors import ManifestMismatchError, SnapshotNotFoundError
from modeld.session.manifest import Manifest
from modeld.thinking import ThinkLevel
from modeld.types import Message, Tool

MAGIC = b"modeld snapshot 1\n"
_LENGTH = struct.Struct(">I")


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
        )

    def put_into(self, session: EngineSession) -> None:
        """Make ``session`` what was saved. Its sequence must hold the KV already."""
        session.ids, session.hot, session.text = list(self.ids), self.hot, bytearray(self.text)
        session.spans, session.messages, session.tools = list(self.spans), self.messages, self.tools
        session.think, session.stable, session.volatile = self.think, self.stable, self.volatile
        session.stable_tools = self.stable_tools
        session.prefix_tokens, session.logical = self.prefix_tokens, self.logical
        session.lost, session.lost_tokens, session.synced, session.unsure = None, 0, 0, False


def write_snapshot(path: str, saved: SavedSession, state: bytes) -> tuple[str, int]:
    """Write a new file and flush it to the disk.

    :returns: the file's SHA-256 and its size in bytes.
    :raises SnapshotNotFoundError: it could not be written; nothing is left behind.
    """
    header = msgspec.msgpack.encode(saved)
    pieces = (MAGIC, _LENGTH.pack(len(header)), header, state)
    sha = hashlib.sha256()
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            for piece in pieces:
                sha.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        Path(path).unlink(missing_ok=True)
        raise SnapshotNotFoundError(f"the snapshot could not be written: {error.strerror}", id="") from error
    return sha.hexdigest(), sum(map(len, pieces))


def read_snapshot(path: str, digest: str) -> tuple[SavedSession, bytes]:
    """Read a file that :func:`write_snapshot` made.

    :raises SnapshotNotFoundError: there is none.
    :raises ManifestMismatchError: its content is not what ``digest`` says, or not a snapshot of this version.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise SnapshotNotFoundError(f"there is no snapshot {digest[:16]}: {error.strerror}", id=digest) from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise ManifestMismatchError(f"snapshot {digest[:16]} is damaged: its checksum differs", field="checksum")
    start = len(MAGIC) + _LENGTH.size
    if not data.startswith(MAGIC) or len(data) < start:
        raise ManifestMismatchError(f"snapshot {digest[:16]} is of another version", field="version")
    (size,) = _LENGTH.unpack_from(data, len(MAGIC))
    try:
        saved = msgspec.msgpack.decode(data[start : start + size], type=SavedSession)
    except (msgspec.MsgspecError, ValueError) as error:
        raise ManifestMismatchError(f"snapshot {digest[:16]} cannot be read: {error}", field="header") from error
    return saved, data[start + size :]
