"""``modeld sessions export`` and ``import``: a session as a file, from one data root or machine to another."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, BinaryIO, Final, Self

import typer

from modeld.cli.connection import finish
from modeld.cli.errors import usage
from modeld.cli.options import DataRootOption, JsonOption, model_of, root_of
from modeld.cli.output import emit, say, visible
from modeld.cli.remote import BackendOption, reached
from modeld.cli.session_names import (
    ForceOption,
    ModelOption,
    WorkspaceOption,
    attach,
    find_either,
    find_session,
    require_free,
)
from modeld.errors import InvalidRequestError, ManifestMismatchError, ModeldError, ModelNotFoundError, StorageError

if TYPE_CHECKING:
    from modeld.cli.remote import Client
    from modeld.session.snapshot_file import SnapshotHead
    from modeld.session.values import ModelRef, PrefixStatus, SessionConfig, SessionInfo, SnapshotInfo
    from modeld.types import Receipt

    _Imported = tuple[SessionInfo, SnapshotInfo, Receipt]

_NAMED: Final = re.compile(r"([0-9a-f]{64})(\.snap)?")


def export(
    source: Annotated[str, typer.Argument(metavar="NAME|ID", help="A session, or a snapshot's id.")],
    file: Annotated[str, typer.Argument(metavar="FILE", help="Where to write it; - is stdout.")],
    force: ForceOption = False,
    workspace: WorkspaceOption = "default",
    model: ModelOption = "",
    backend: BackendOption = "",
    data_root: DataRootOption = None,
    as_json: JsonOption = False,
) -> int:
    """Write a session, conversation and KV, to a file that `modeld sessions import` takes, on any machine.

    The file holds the whole conversation in clear; its mode is 0600. It is there whole or not at all. A session is
    saved as it is now, and the node keeps no copy.
    """
    with usage():
        if file == "-" and (as_json or sys.stdout.isatty()):
            raise InvalidRequestError("stdout is for the file itself: send it to a pipe, without --json")

    async def ask() -> SnapshotInfo:
        with _Target(file, force=force) as target:
            async with (
                reached(root_of(data_root), backend) as client,
                _snapshot_of(client, source, workspace, model) as snapshot,
            ):
                await _download(client, snapshot.id, target)
            target.keep()
        return snapshot

    _tell(finish(ask()), file, as_json)
    return 0


def import_(
    file: Annotated[str, typer.Argument(metavar="FILE", help="What `modeld sessions export` wrote; - is stdin.")],
    name: Annotated[
        str | None, typer.Option("--as", metavar="NAME", help="What the session is called. Default: as it was.")
    ] = None,
    workspace: Annotated[
        str | None, typer.Option("--workspace", metavar="NAME", help="Default: the one that it was in.")
    ] = None,
    model: Annotated[
        str,
        typer.Option("--model", metavar="MODEL", help="Name or path of the model's file, where it has another here."),
    ] = "",
    force: ForceOption = False,
    backend: BackendOption = "",
    data_root: DataRootOption = None,
    as_json: JsonOption = False,
) -> int:
    """Open the session that a file holds. Starts a node where none runs.

    The model must be the same file, and the engine the same build. The node keeps the file as a snapshot. Import what
    you trust only: nobody can tell from KV whether the model computed it.
    """
    named = _NAMED.fullmatch(os.path.basename(file))
    with _source(file) as stream:
        reading = _Reading(stream)
        ref = _model(reading.head, model)
        with usage():
            config = _renamed(reading.head, name, workspace)

        async def ask() -> _Imported:
            async with reached(root_of(data_root), backend, start=True) as client:
                return await _import(client, reading, ref, config, named[1] if named else "", force)

        made, snapshot, receipt = finish(ask())
    if as_json:
        emit({"session": made, "snapshot": snapshot, "receipt": receipt})
    else:
        print(
            f"session {visible(made.name)} in workspace {visible(made.workspace)}: {receipt.restored} tokens restored"
        )
        say(f"the node keeps the file: modeld sessions rm {snapshot.id[:16]} removes it")
    return 0


def _tell(written: SnapshotInfo, file: str, as_json: bool) -> None:
    from modeld.node.capacity import human_bytes

    line = f"{written.tokens} tokens in {human_bytes(written.size)}: snapshot {written.id}"
    if not written.tokens:
        line += " (there was no KV to save: the next turn computes all of it)"
    if as_json:
        emit({"snapshot": written, "file": file})
    elif file == "-":
        say(line)
    else:
        print(f"{visible(file)}: {line}")


class _Target:
    """Where an export goes: stdout, or a file that is there whole or not at all."""

    def __init__(self, name: str, *, force: bool) -> None:
        self._path = None if name == "-" else Path(name).expanduser().absolute()
        self._force = force
        self._draft: Path | None = None
        self._file: BinaryIO = sys.stdout.buffer

    def __enter__(self) -> Self:
        path = self._path
        if path is not None:
            self._refuse(path)
            draft = path.with_name(f".{secrets.token_hex(8)}.part")
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                self._file = os.fdopen(os.open(draft, flags, 0o600), "wb")
            except OSError as error:
                raise _failed("write", path, error) from error
            self._draft = draft
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._draft is not None:
            with contextlib.suppress(OSError):
                self._file.close()
            self._draft.unlink(missing_ok=True)

    def write(self, data: bytes) -> None:
        """Write a piece."""
        try:
            self._file.write(data)
        except OSError as error:
            # That nobody reads stdout has an exit code of its own.
            if self._path is None:
                raise
            raise _failed("write", self._path, error) from error

    def keep(self) -> None:
        """All was written: the file gets its name."""
        if self._path is None or self._draft is None:
            self._file.flush()
            return
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            self._refuse(self._path)
            self._draft.rename(self._path)
            folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise _failed("write", self._path, error) from error

    def _refuse(self, path: Path) -> None:
        if not self._force and os.path.lexists(path):
            raise InvalidRequestError(f"{str(path)!r} is there already; --force replaces it", parameter="FILE")


class _Reading:
    """A snapshot's file: its head, and all of it in pieces.

    :raises ManifestMismatchError: it is no snapshot.
    """

    def __init__(self, stream: BinaryIO) -> None:
        from modeld.session.snapshot_file import read_head

        self._stream = stream
        self._begun: list[bytes] = []
        self.head: SnapshotHead = read_head(self._begin)

    async def pieces(self) -> AsyncIterator[bytes]:
        """The whole file, once."""
        import asyncio

        from modeld.session.snapshot_file import CHUNK

        for data in self._begun:
            yield data
        while data := await asyncio.to_thread(self._read, CHUNK):
            yield data

    def _begin(self, size: int) -> bytes:
        data = self._read(size)
        self._begun.append(data)
        return data

    def _read(self, size: int) -> bytes:
        try:
            return self._stream.read(size)
        except OSError as error:
            raise _failed("read", self._stream.name, error) from error


@contextlib.contextmanager
def _source(name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield sys.stdin.buffer
        return
    try:
        stream = open(Path(name).expanduser(), "rb")  # noqa: SIM115 - errors of the body are not those of opening
    except OSError as error:
        raise _failed("read", name, error) from error
    with stream:
        yield stream


@contextlib.asynccontextmanager
async def _snapshot_of(client: Client, source: str, workspace: str, model: str) -> AsyncIterator[SnapshotInfo]:
    """A snapshot of that id, or one of the session that is gone afterwards."""
    from modeld.session.values import SnapshotInfo

    found = await find_either(client, source, workspace, model)
    if isinstance(found, SnapshotInfo):
        yield found
        return
    made = await attach(client, found).snapshot()
    try:
        yield made
    finally:
        try:
            await client.remove_snapshot(made.id)
        except ModeldError as error:
            say(f"the node still has snapshot {made.id[:16]}: {error.message}")


async def _download(client: Client, snapshot_id: str, target: _Target) -> None:
    whole = hashlib.sha256()
    async with contextlib.aclosing(client.export_snapshot(snapshot_id)) as pieces:
        async for data in pieces:
            whole.update(data)
            target.write(data)
    if whole.hexdigest() != snapshot_id:
        raise ManifestMismatchError(f"what came is not snapshot {snapshot_id[:16]}; export it again", field="checksum")


async def _import(
    client: Client, reading: _Reading, ref: ModelRef, config: SessionConfig, snapshot_id: str, force: bool
) -> _Imported:
    """Store the file and open the session. What fails leaves neither."""
    digest = reading.head.ref.digest
    await _require_model(client, ref)
    fresh = await require_free(client, config.name, config.workspace, digest, force=force)
    kept = {snapshot.id for snapshot in await client.snapshots()}
    snapshot = await client.import_snapshot(reading.pieces(), snapshot_id=snapshot_id)
    try:
        status = await restored(client, snapshot.id, ref, config, fresh=fresh)
        made = await find_session(client, config.name, config.workspace, digest)
    except BaseException:
        with contextlib.suppress(ModeldError):
            if snapshot.id not in kept:
                await client.remove_snapshot(snapshot.id)
        raise
    return made, snapshot, status.receipt


async def restored(
    client: Client, snapshot_id: str, ref: ModelRef, config: SessionConfig, *, fresh: bool
) -> PrefixStatus:
    """Open a session with what a snapshot holds.

    :param fresh: there was none of that name, and there is none after an error.
    """
    session = await client.open_session(ref, config)
    try:
        return await session.restore(snapshot_id)
    except BaseException:
        with contextlib.suppress(ModeldError):
            if fresh:
                await client.remove_session(config.name, workspace=config.workspace, model=ref.digest)
        raise


async def _require_model(client: Client, ref: ModelRef) -> None:
    """Refuse before gigabytes are sent."""
    try:
        await client.describe(ref)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(f"{error.message}; --model names its file here", **error.details) from error


def _model(head: SnapshotHead, text: str) -> ModelRef:
    """The model to open the session on: whatever it is called, it must be the same file."""
    import msgspec

    return msgspec.structs.replace(model_of(text), digest=head.ref.digest) if text else head.ref


def _renamed(head: SnapshotHead, name: str | None, workspace: str | None) -> SessionConfig:
    import msgspec

    return msgspec.structs.replace(
        head.config,
        name=head.config.name if name is None else name,
        workspace=head.config.workspace if workspace is None else workspace,
    )


def _failed(what: str, path: Path | str, error: OSError) -> StorageError:
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = "the disk is full; nothing is left of it" if full else error.strerror or str(error)
    return StorageError(f"cannot {what} {str(path)!r}: {reason}", path=str(path))
