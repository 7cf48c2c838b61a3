"""The layout of a snapshot file, for all who write, read or pass one on. Conversation and KV are only bytes here.

    modeld snapshot 2\\n     18 bytes
    frames                  length (8 bytes, big-endian), SHA-256 of the content (32 bytes), the content

The first frame is the :class:`SnapshotHead` as msgpack, the second all of the session but its KV, and each one after
them the KV of one block of tokens. There are exactly as many as the head says, and nothing follows. The name of a
snapshot is the SHA-256 of the whole file.

The sums show damage. They do not say who wrote a file, and nobody can tell from KV whether it is what the model would
have computed: a snapshot is as trustworthy as the place it came from.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from typing import Final

import msgspec
from msgspec import Struct

from modeld.errors import InvalidRequestError, ManifestMismatchError, ModeldError
from modeld.session.manifest import Manifest
from modeld.session.values import ModelRef, SessionConfig

VERSION: Final = 2
MAGIC: Final = b"modeld snapshot %d\n" % VERSION
CHUNK: Final = 2**20
"""Bytes that files are read, sent and checked in."""

MAX_HEAD: Final = 2**20
MAX_SESSION: Final = 64 * 2**20
MAX_TOKENS: Final = 2**24

_FRAME: Final = struct.Struct(">Q32s")
_UNREADABLE: Final = (msgspec.MsgspecError, ModeldError, ValueError, OverflowError, RecursionError)


class SnapshotHead(Struct, frozen=True, kw_only=True):
    """What a snapshot is of.

    :param ref: the model, without a path: that is another one on each machine.
    :param config: how the session was opened. :param created: seconds since 1970.
    :param tokens: whose KV is in the file. :param block: tokens of a block; 0: the KV of all of them is one block.
    :raises InvalidRequestError: a value outside its range.
    """

    ref: ModelRef
    config: SessionConfig
    created: float
    manifest: Manifest
    tokens: int
    tape_hash: str
    block: int

    def __post_init__(self) -> None:
        if not 0 <= self.tokens <= MAX_TOKENS:
            raise InvalidRequestError(f"a snapshot has 0 to {MAX_TOKENS} tokens, not {self.tokens}")
        if self.block and not 64 <= self.block <= 65536:
            raise InvalidRequestError(f"a block has 64 to 65536 tokens, not {self.block}")
        if self.ref.path or not 0 <= self.created < 1e11:
            raise InvalidRequestError("a snapshot names its model without a path, and a time")

    @property
    def blocks(self) -> int:
        """How many blocks of KV there are."""
        return -(-self.tokens // (self.block or self.tokens)) if self.tokens else 0

    def span(self, index: int) -> tuple[int, int]:
        """The tokens ``[start, end)`` of a block."""
        start = index * self.block
        return start, min(start + (self.block or self.tokens), self.tokens)


class Frame(Struct, frozen=True):
    """Where the content of a frame lies in the file, and its SHA-256."""

    offset: int
    size: int
    sum: bytes


def frame_of(content: bytes) -> bytes:
    """What stands before ``content`` in the file."""
    return _FRAME.pack(len(content), hashlib.sha256(content).digest())


class SnapshotCheck:
    """Checks a snapshot as its bytes come. Holds no more of it than its head, whatever lengths it announces."""

    def __init__(self) -> None:
        self.head: SnapshotHead | None = None
        self.frames: list[Frame] = []
        self._offset = 0
        self._begun = False
        self._kept = bytearray()
        self._sum = hashlib.sha256()
        # Of the frame that is being read; none while there is nothing left of one.
        self._frame = Frame(0, 0, b"")
        self._left = 0

    @property
    def wanted(self) -> int:
        """Bytes to the next border: of the magic, of a frame's begin, or of its content."""
        return self._left or (_FRAME.size if self._begun else len(MAGIC)) - len(self._kept)

    def feed(self, data: bytes) -> None:
        """Take the bytes that follow.

        :raises ManifestMismatchError: they are not those of a snapshot; ``field`` is ``version``, ``header``,
            ``length`` or ``checksum``.
        """
        view = memoryview(data)
        while view:
            piece = view[: self.wanted]
            view = view[len(piece) :]
            self._offset += len(piece)
            if self._left:
                self._content(piece)
            else:
                self._border(piece)

    def finish(self) -> SnapshotHead:
        """No more bytes come: the head, of a file that is whole.

        :raises ManifestMismatchError: something is missing.
        """
        if not self._begun:
            raise _mismatch("this is no snapshot of modeld", "version")
        if self.head is None or self._left or self._kept or not self._complete:
            raise _mismatch(f"the snapshot is cut off after {self._offset} bytes", "length")
        return self.head

    @property
    def _complete(self) -> bool:
        return self.head is not None and len(self.frames) == 2 + self.head.blocks

    def _border(self, piece: memoryview) -> None:
        """Magic, or the begin of a frame."""
        self._kept += piece
        if not self._begun:
            _check_magic(bytes(self._kept))
            if len(self._kept) < len(MAGIC):
                return
            self._begun = True
            self._kept.clear()
        elif self._complete:
            raise _mismatch("something follows the end of the snapshot", "length")
        elif len(self._kept) == _FRAME.size:
            size, digest = _FRAME.unpack(self._kept)
            self._kept.clear()
            most = {0: MAX_HEAD, 1: MAX_SESSION}.get(len(self.frames))
            if not size or (most is not None and size > most):
                raise _mismatch(f"frame {len(self.frames)} of the snapshot cannot have {size} bytes", "length")
            self._frame, self._left, self._sum = Frame(self._offset, size, digest), size, hashlib.sha256()

    def _content(self, piece: memoryview) -> None:
        self._sum.update(piece)
        self._left -= len(piece)
        if self.head is None:
            self._kept += piece
        if self._left:
            return
        if self._sum.digest() != self._frame.sum:
            raise _mismatch(f"frame {len(self.frames)} of the snapshot is damaged: its checksum differs", "checksum")
        if self.head is None:
            self.head = _decode_head(bytes(self._kept))
            self._kept.clear()
        self.frames.append(self._frame)


def read_head(read: Callable[[int], bytes]) -> SnapshotHead:
    """The head of the snapshot that ``read`` gives the bytes of. Nothing behind it is looked at.

    :raises ManifestMismatchError: it is no snapshot, or its head is damaged.
    """
    check = SnapshotCheck()
    while check.head is None:
        if not (data := read(check.wanted)):
            return check.finish()
        check.feed(data)
    return check.head


def _check_magic(begun: bytes) -> None:
    """Refuse a foreign file at its first byte, and say which version another one is of."""
    name, _, version = MAGIC.rpartition(b" ")
    if not MAGIC.startswith(begun):
        number = begun[len(name) + 1 :].partition(b"\n")[0]
        if not begun.startswith(name + b" ") or not number.isdigit():
            raise _mismatch("this is no snapshot of modeld", "version")
        newer = int(number) > int(version)
        hint = "update modeld here" if newer else "take a new one"
        raise _mismatch(f"the snapshot is of version {int(number)} and this modeld reads {VERSION}: {hint}", "version")


def _decode_head(data: bytes) -> SnapshotHead:
    try:
        return msgspec.msgpack.decode(data, type=SnapshotHead)
    except _UNREADABLE as error:
        raise _mismatch(f"the head of the snapshot cannot be read: {error}", "header") from None


def _mismatch(message: str, field: str) -> ManifestMismatchError:
    return ManifestMismatchError(message, field=field)
