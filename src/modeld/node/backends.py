"""Remote nodes that were registered by name: ``backends.json`` of a data root, 0600, for it holds their tokens."""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from modeld.errors import InvalidRequestError, NodeError
from modeld.node.private_file import read_private, write_private

FILE_NAME: Final = "backends.json"

_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


class RemoteBackend(Struct, frozen=True, kw_only=True):
    """How to reach a node of another machine or data root.

    :param url: ``modeld://HOST:PORT`` or ``modeld+tls://HOST:PORT``.
    :param pin: ``sha256:`` and the hex digest of the node's certificate; ``""`` where a public authority issued it.
    :param token: a secret; not in ``repr``.
    """

    name: Annotated[str, Meta(pattern=f"^{_NAME}$")]
    url: str
    type: Literal["modeld"] = "modeld"
    pin: str = ""
    token: str = ""

    def __repr__(self) -> str:
        return f"RemoteBackend(name={self.name!r}, url={self.url!r}, type={self.type!r}, pin={self.pin!r})"


class _File(Struct, frozen=True, kw_only=True):
    schema: Literal[1] = 1
    backends: tuple[RemoteBackend, ...] = ()


def list_backends(data_root: Path) -> list[RemoteBackend]:
    """All of them, by name.

    :raises NodeError: the file cannot be used: damaged, another user's, or open to others.
    """
    path = data_root / FILE_NAME
    data = read_private(path)
    if data is None:
        return []
    try:
        found = msgspec.json.decode(data, type=_File)
    except (ValueError, RecursionError):
        # Not the cause: it would quote the file, which holds tokens.
        message = f"{str(path)!r} is no list of backends of this version; move it away and add them again"
        raise NodeError(message, path=str(path)) from None
    return sorted(found.backends, key=lambda backend: backend.name)


def find_backend(data_root: Path, name: str) -> RemoteBackend:
    """The backend of that name.

    :raises InvalidRequestError: there is none. :raises NodeError: as :func:`list_backends`.
    """
    known = list_backends(data_root)
    for backend in known:
        if backend.name == name:
            return backend
    raise _unknown(name, known)


def add_backend(data_root: Path, backend: RemoteBackend) -> None:
    """Register it, on disk when this returns.

    :raises InvalidRequestError: the name is taken or no name. :raises NodeError: as :func:`list_backends`.
    """
    if not re.fullmatch(_NAME, backend.name):
        rule = "1 to 64 letters, digits, dots, dashes and underscores, a letter or digit first"
        raise InvalidRequestError(f"the name of a backend has {rule}, not {backend.name[:80]!r}", parameter="name")
    with _locked(data_root):
        known = list_backends(data_root)
        if any(other.name == backend.name for other in known):
            text = f"there is a backend {backend.name!r} already; `modeld backends rm {backend.name}` removes it"
            raise InvalidRequestError(text, parameter="name")
        _write(data_root, [*known, backend])


def remove_backend(data_root: Path, name: str) -> None:
    """Forget it and its token.

    :raises InvalidRequestError: there is none of that name. :raises NodeError: as :func:`list_backends`.
    """
    with _locked(data_root):
        known = list_backends(data_root)
        kept = [backend for backend in known if backend.name != name]
        if len(kept) == len(known):
            raise _unknown(name, known)
        _write(data_root, kept)


def _unknown(name: str, known: list[RemoteBackend]) -> InvalidRequestError:
    names = ", ".join(backend.name for backend in known) or "none is registered"
    return InvalidRequestError(
        f"no backend is called {name[:80]!r} ({names}); `modeld backends add` registers one", parameter="name"
    )


def _write(data_root: Path, backends: list[RemoteBackend]) -> None:
    text = msgspec.json.format(msgspec.json.encode(_File(backends=tuple(backends))), indent=2)
    write_private(data_root / FILE_NAME, text + b"\n", replace=True)


@contextmanager
def _locked(data_root: Path) -> Iterator[None]:
    """One writer at a time: it reads, changes and writes the whole file."""
    try:
        data_root.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(data_root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise NodeError(
            f"cannot use the data root {str(data_root)!r}: {error.strerror}", path=str(data_root)
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
