"""Backends that were registered by name: ``backends.json`` of a data root, 0600, with references to their keys.

A file of schema 1, of the time when all backends were nodes and their tokens stood in it, is read too. The next write
makes it one of schema 2 and moves the tokens to files of their own.
"""

from __future__ import annotations

import fcntl
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct, structs

from modeld.errors import BackendNotFoundError, InvalidRequestError, NodeError
from modeld.node.private_file import MAX_BYTES, read_private, write_private
from modeld.node.secrets import check_reference, check_secret, resolve, stored_path, stored_reference
from modeld.repository.catalog import canonical_backend_type

FILE_NAME: Final = "backends.json"

_NAME: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_TYPE: Final = r"[a-z0-9][a-z0-9._-]{0,63}"

MAX_URL: Final = 2000

Stamp = tuple[int, int, int]


class ConfiguredBackend(Struct, frozen=True, kw_only=True):
    """How to reach a backend. It holds no secret and may be shown.

    :param base_url: as of :class:`modeld.repository.BackendSpec`; of type ``modeld``: ``modeld://HOST:PORT`` or
        ``modeld+tls://HOST:PORT``.
    :param key: a reference, see :mod:`modeld.node.secrets`; ``""`` for a backend without key.
    :param pin: of type ``modeld``: ``sha256:`` and the hex digest of the node's certificate; ``""`` where a public
        authority issued it.
    """

    name: str
    type: str
    base_url: str = ""
    key: str = ""
    pin: str = ""


class _File(Struct, frozen=True, kw_only=True, tag=2, tag_field="schema"):
    backends: tuple[ConfiguredBackend, ...] = ()


class _OldBackend(Struct, frozen=True, kw_only=True):
    name: Annotated[str, Meta(pattern=f"^{_NAME}$")]
    url: str
    type: Literal["modeld"] = "modeld"
    pin: str = ""
    token: str = ""


class _OldFile(Struct, frozen=True, kw_only=True, tag=1, tag_field="schema"):
    backends: tuple[_OldBackend, ...] = ()


class _Content(Struct, frozen=True):
    """What the file says. ``tokens`` of a file of schema 1, by name."""

    backends: tuple[ConfiguredBackend, ...]
    tokens: dict[str, str]

    def __repr__(self) -> str:
        return f"_Content({self.backends!r})"


def list_backends(data_root: Path) -> list[ConfiguredBackend]:
    """All of them, by name.

    :raises NodeError: the file cannot be used: damaged, another user's, or open to others.
    """
    return list(_read(data_root).backends)


def find_backend(data_root: Path, name: str) -> ConfiguredBackend:
    """The backend of that name.

    :raises BackendNotFoundError: there is none. :raises NodeError: as :func:`list_backends`.
    """
    known = list_backends(data_root)
    for backend in known:
        if backend.name == name:
            return backend
    raise unknown_backend(name, known)


def backends_stamp(data_root: Path) -> Stamp | None:
    """What differs after each write of the file; ``None``: there is none.

    :raises NodeError: nobody can tell.
    """
    path = data_root / FILE_NAME
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise NodeError(f"cannot look at {str(path)!r}: {error.strerror}", path=str(path)) from error
    return found.st_ino, found.st_mtime_ns, found.st_size


def read_secret(data_root: Path, backend: ConfiguredBackend) -> str:
    """The backend's key; ``""`` where it has none. It may block.

    :raises ModeldError: as :func:`modeld.node.secrets.resolve`.
    """
    if backend.key == stored_reference(backend.name):
        token = _read(data_root).tokens.get(backend.name)
        if token:
            return token
    return resolve(backend.key, data_root)


def checked_backend(backend: ConfiguredBackend) -> ConfiguredBackend:
    """``backend`` with its type as everybody writes it.

    :raises InvalidRequestError: its name, type, key or address is none.
    """
    if not re.fullmatch(_NAME, backend.name):
        rule = "1 to 64 letters, digits, dots, dashes and underscores, a letter or digit first"
        raise InvalidRequestError(f"the name of a backend has {rule}, not {backend.name[:80]!r}", parameter="name")
    kind = canonical_backend_type(backend.type)
    if not re.fullmatch(_TYPE, kind):
        raise InvalidRequestError(f"{backend.type[:80]!r} is no type of a backend", parameter="type")
    check_reference(backend.key)
    try:
        # Longer ones would fill the file, which has to stay small enough to be read again.
        host = urlsplit(backend.base_url).netloc if len(backend.base_url) <= MAX_URL else None
    except ValueError:
        host = None
    if host is None:
        raise InvalidRequestError(f"{backend.base_url[:80]!r} is no address", parameter="url")
    if "@" in host:
        # It would be shown, and logged by whoever fails to reach it.
        raise InvalidRequestError(
            "an address holds no user and no password; the key has its own place", parameter="url"
        )
    return structs.replace(backend, type=kind)


def add_backend(
    data_root: Path, backend: ConfiguredBackend, *, secret: str = "", replace: bool = False
) -> ConfiguredBackend:
    """Register it, on disk when this returns, and return it as it was written.

    :param secret: the key itself: it is stored in a file of its own, and the backend's ``key`` becomes its reference.
    :param replace: take the place of one of that name.
    :raises InvalidRequestError: the name is taken, or a part of it is none.
    :raises NodeError: as :func:`list_backends`.
    """
    backend = checked_backend(backend)
    if secret:
        if backend.key:
            raise InvalidRequestError("a backend has a secret or a reference to one, not both", parameter="key")
        secret = check_secret(secret)
        backend = structs.replace(backend, key=stored_reference(backend.name))
    with _locked(data_root):
        content = _read(data_root)
        kept = [other for other in content.backends if other.name != backend.name]
        if len(kept) < len(content.backends) and not replace:
            text = f"there is a backend {backend.name!r} already; `modeld backends rm {backend.name}` removes it"
            raise InvalidRequestError(text, parameter="name")
        tokens = {name: token for name, token in content.tokens.items() if name != backend.name}
        if secret:
            tokens[backend.name] = secret
        _write(data_root, [*kept, backend], tokens)
        if backend.key != stored_reference(backend.name):
            _forget_secret(data_root, backend.name)
    return backend


def remove_backend(data_root: Path, name: str) -> None:
    """Forget it and the secret that is stored for it. What a reference names elsewhere stays.

    :raises BackendNotFoundError: there is none of that name. :raises NodeError: as :func:`list_backends`.
    """
    with _locked(data_root):
        content = _read(data_root)
        kept = [backend for backend in content.backends if backend.name != name]
        if len(kept) == len(content.backends):
            raise unknown_backend(name, content.backends)
        # Before the list: a crash between leaves a backend without key, which can be removed again, and no key without
        # a backend, which nobody would look for.
        _forget_secret(data_root, name)
        _write(data_root, kept, {other: token for other, token in content.tokens.items() if other != name})


def unknown_backend(name: str, known: Sequence[ConfiguredBackend]) -> BackendNotFoundError:
    """The error that says so, with the names there are."""
    names = ", ".join(backend.name for backend in known) or "none is registered"
    return BackendNotFoundError(
        f"no backend is called {name[:80]!r} ({names}); `modeld backends add` registers one", id=name[:80]
    )


def _read(data_root: Path) -> _Content:
    path = data_root / FILE_NAME
    data = read_private(path)
    if data is None:
        return _Content((), {})
    try:
        found = msgspec.json.decode(data, type=_File | _OldFile)
        if isinstance(found, _File):
            backends = tuple(checked_backend(backend) for backend in found.backends)
            tokens = {}
        else:
            backends = tuple(_upgraded(backend) for backend in found.backends)
            tokens = {backend.name: backend.token for backend in found.backends if backend.token}
    except (ValueError, RecursionError):
        # Not the cause: it would quote the file, which may hold tokens.
        message = f"{str(path)!r} is no list of backends of this version; move it away and add them again"
        raise NodeError(message, path=str(path)) from None
    return _Content(tuple(sorted(backends, key=lambda backend: backend.name)), tokens)


def _upgraded(old: _OldBackend) -> ConfiguredBackend:
    key = stored_reference(old.name) if old.token else ""
    return ConfiguredBackend(name=old.name, type=old.type, base_url=old.url, key=key, pin=old.pin)


def _write(data_root: Path, backends: list[ConfiguredBackend], secrets: dict[str, str]) -> None:
    """Write the list. ``secrets`` first, each to its file: no list ever names one that is not there."""
    text = msgspec.json.format(msgspec.json.encode(_File(backends=tuple(backends))), indent=2) + b"\n"
    if len(text) > MAX_BYTES:
        raise InvalidRequestError(f"the list of backends would have {len(text)} bytes, at most {MAX_BYTES} are read")
    for name, secret in secrets.items():
        write_private(stored_path(data_root, name), secret.encode() + b"\n", replace=True)
    write_private(data_root / FILE_NAME, text, replace=True)


def _forget_secret(data_root: Path, name: str) -> None:
    path = stored_path(data_root, name)
    try:
        path.unlink(missing_ok=True)
    except NotADirectoryError:
        return
    except OSError as error:
        raise NodeError(f"cannot remove {str(path)!r}: {error.strerror}", path=str(path)) from error


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
