"""A file for each block of KV: what is in it, how it proves itself, and what a folder of them holds.

``FOLDER/<manifest digest>/<key>.kv``: a 12-byte magic, the header's length (4 bytes, big-endian), the header (msgpack
of :class:`Header`), and the payload to the end of the file. The name is the key that follows from the header, so a
header that is damaged has the wrong name; the payload has a checksum, which is looked at when it is read. Nothing of a
file is trusted but what was checked so.
"""

from __future__ import annotations

import os
import stat
import struct
import sys
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

import msgspec
from msgspec import Struct

from modeld.engine.blocks import BLOCK, TOKEN_BYTES, block_key

MAGIC = b"modeld kv 1\n"
_FAMILY = b"modeld kv "
SUFFIX = ".kv"
_TEMPORARY = ".tmp"
_LENGTH = struct.Struct(">I")
_HEAD = len(MAGIC) + _LENGTH.size
MAX_HEADER = 4096
"""Bytes of a header: 256 tokens take 2,048."""


class Header(Struct, frozen=True, array_like=True):
    """What a file says of its block.

    :param parent: key of the block before; of the first one, the manifest's digest. :param tokens: packed.
    :param weight: of who may miss it. :param size: bytes of the payload. :param checksum: of key and payload.
    """

    parent: bytes
    tokens: bytes
    weight: int
    size: int
    checksum: bytes

    def file_size(self) -> int:
        """Bytes of the whole file."""
        return _HEAD + len(msgspec.msgpack.encode(self)) + self.size


class DamagedError(Exception):
    """The file is not what its name says, and never will be."""


class Found(NamedTuple):
    """A file whose name fits its header."""

    key: bytes
    header: Header
    size: int
    modified: float


class Foreign(NamedTuple):
    """A file of another manifest, of a newer version, or one that cannot be read now."""

    modified: float
    path: str
    size: int


def write_block(path: str, key: bytes, header: Header, payload: bytes) -> None:
    """Write the file and flush it to the disk; there is all of it or, after an error, none.

    :param header: its checksum is made here.
    :raises OSError: as the system says.
    """
    header = msgspec.structs.replace(header, checksum=_checksum(key, payload))
    encoded = msgspec.msgpack.encode(header)
    folder, left = os.path.dirname(path), path.removesuffix(SUFFIX) + _TEMPORARY
    for missing in (os.path.dirname(folder), folder):
        os.makedirs(missing, mode=0o700, exist_ok=True)
    with suppress(FileNotFoundError):
        os.unlink(left)
    try:
        descriptor = os.open(left, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            for piece in (MAGIC + _LENGTH.pack(len(encoded)) + encoded, payload):
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(left, path)
        left = path
        _flush_folder(folder)
    except OSError:
        with suppress(OSError):
            os.unlink(left)
        raise


def delete_block(path: str) -> int:
    """Delete the file.

    :returns: bytes that it takes still, where it cannot be deleted.
    """
    try:
        os.unlink(path)
    except OSError:
        return size_of(path)
    return 0


def size_of(path: str | Path) -> int:
    """Bytes of a regular file; of anything else, or nothing, in its place 0: that is not ours."""
    try:
        status = os.lstat(path)
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def read_block(path: str, key: bytes, size: int) -> bytes:
    """The payload of ``size`` bytes.

    :raises DamagedError: the file is not what was written. :raises OSError: it cannot be read.
    """
    descriptor, length = _open(path)
    with open(descriptor, "rb") as file:
        header = _parse(file.read(_HEAD + MAX_HEADER), key, length)
        if header.size != size:
            raise DamagedError("another size")
        file.seek(length - size)
        payload = file.read(size)
        # Who reads a block uses it: its age counts from now.
        os.utime(file.fileno())
    if len(payload) != size or _checksum(key, payload) != header.checksum:
        raise DamagedError("the checksum differs")
    return payload


def read_header(path: str) -> tuple[bytes, Header]:
    """Key and header of a file.

    :raises DamagedError: its name or its size is not that of its header. :raises OSError: it cannot be read.
    """
    try:
        key = bytes.fromhex(os.path.basename(path).removesuffix(SUFFIX))
    except ValueError:
        raise DamagedError("no key") from None
    if os.path.basename(path) != key.hex() + SUFFIX:
        raise DamagedError("another spelling of a key, which nobody would find")
    descriptor, length = _open(path)
    try:
        return key, _parse(os.read(descriptor, _HEAD + MAX_HEADER), key, length)
    finally:
        os.close(descriptor)


def scan(folder: Path, manifest: str) -> tuple[list[Found], list[Foreign]]:
    """What a folder holds: blocks of ``manifest``, and files that only take room. Payloads are not looked at.

    What is damaged or was left half written is deleted. Only this manifest's files are opened.
    """
    ours: list[Found] = []
    others: list[Foreign] = []
    damaged = 0
    for place in _folders(folder):
        for entry, known in _files(place.path):
            foreign = Foreign(known.st_mtime, entry.path, known.st_size)
            if place.name != manifest:
                others.append(foreign)
                continue
            try:
                key, header = read_header(entry.path)
            except DamagedError:
                damaged += 1
                with suppress(OSError):
                    os.unlink(entry.path)
            except OSError:
                others.append(foreign)
            else:
                ours.append(Found(key, header, known.st_size, known.st_mtime))
        if place.name != manifest:
            with suppress(OSError):  # It is not empty.
                os.rmdir(place.path)
    if damaged:
        print(f"modeld engine: {damaged} files of KV are damaged, and deleted", file=sys.stderr)
    return ours, others


def _folders(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return [entry for entry in found if len(entry.name) == 64 and entry.is_dir(follow_symlinks=False)]
    except OSError:
        return []


def _files(folder: str) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
    """Regular files with our ending, as long as they are there. What a process left half written is deleted."""
    with suppress(OSError), os.scandir(folder) as found:
        for entry in found:
            with suppress(OSError):
                if entry.name.endswith(_TEMPORARY):
                    os.unlink(entry.path)
                elif entry.name.endswith(SUFFIX) and entry.is_file(follow_symlinks=False):
                    yield entry, entry.stat(follow_symlinks=False)


def _open(path: str) -> tuple[int, int]:
    """A descriptor of a regular file, and its size. A FIFO in its place does not hold us up."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise DamagedError("no file")
    return descriptor, status.st_size


def _parse(data: bytes, key: bytes, length: int) -> Header:
    if not data.startswith(MAGIC):
        if data.startswith(_FAMILY) and len(data) > _HEAD:
            raise OSError("of another version")
        raise DamagedError("no block")
    if len(data) < _HEAD:
        raise DamagedError("cut off")
    (size,) = _LENGTH.unpack_from(data, len(MAGIC))
    try:
        header = msgspec.msgpack.decode(data[_HEAD : _HEAD + size], type=Header)
    except (msgspec.MsgspecError, ValueError) as error:
        raise DamagedError("no header") from error
    if (
        block_key(header.parent, header.tokens) != key
        or not 0 < len(header.tokens) <= BLOCK * TOKEN_BYTES
        or len(header.tokens) % TOKEN_BYTES
        or header.size <= 0
        or _HEAD + size + header.size != length
    ):
        raise DamagedError("not what its name says")
    return header


def _checksum(key: bytes, payload: bytes) -> bytes:
    sha = sha256(key)
    sha.update(payload)
    return sha.digest()


def _flush_folder(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
