"""From what a person calls a session or a snapshot to the one that is meant."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Final

import typer

from modeld.errors import InvalidRequestError, SessionNotFoundError, SnapshotNotFoundError
from modeld.session.values import ModelRef, SessionHandle

if TYPE_CHECKING:
    from modeld.cli.remote import Client
    from modeld.session.contract import Session
    from modeld.session.values import SessionInfo, SnapshotInfo

WorkspaceOption = Annotated[str, typer.Option("--workspace", metavar="NAME", help="Scope of the session's name.")]
ModelOption = Annotated[
    str,
    typer.Option(
        "--model", metavar="NAME|DIGEST", help="The session's model, where sessions of that name are on several."
    ),
]
ForceOption = Annotated[bool, typer.Option("--force", help="Replace what is there.")]

_PREFIX: Final = re.compile(r"[0-9a-f]{8,64}")


async def find_session(client: Client, name: str, workspace: str, model: str) -> SessionInfo:
    """The one session of that name.

    :raises SessionNotFoundError: there is none. :raises InvalidRequestError: there are several.
    """
    found = await named_sessions(client, name, workspace, model)
    if len(found) == 1:
        return found[0]
    where = f"session {name!r} in workspace {workspace!r}"
    if found:
        models = ", ".join(f"{session.model} ({session.digest[:12]})" for session in found)
        raise InvalidRequestError(f"there is a {where} on several models: --model takes one of {models}")
    there = f"there is no {where}" + (f" on {model}" if model else "")
    raise SessionNotFoundError(f"{there}; `modeld sessions list` names all", name=name, workspace=workspace)


async def named_sessions(client: Client, name: str, workspace: str, model: str) -> list[SessionInfo]:
    """The sessions of that name, on whatever models; where a model is named, on that one."""
    return [
        session
        for session in await client.sessions()
        if (session.workspace, session.name) == (workspace, name) and model in ("", session.model, session.digest)
    ]


async def find_snapshot(client: Client, name: str) -> SnapshotInfo | None:
    """The snapshot whose id begins so, with at least 8 digits; ``None``: that is no id.

    :raises SnapshotNotFoundError: there is none. :raises InvalidRequestError: there are several.
    """
    if not _PREFIX.fullmatch(name):
        return None
    found = [snapshot for snapshot in await client.snapshots() if snapshot.id.startswith(name)]
    if len(found) > 1:
        raise InvalidRequestError(f"{len(found)} snapshots begin with {name}: give more digits")
    if not found:
        raise SnapshotNotFoundError(f"there is no snapshot {name[:16]}; `modeld sessions list` names all", id=name)
    return found[0]


async def find_either(client: Client, name: str, workspace: str, model: str) -> SessionInfo | SnapshotInfo:
    """A session of that name, or else a snapshot of that id.

    :raises ModeldError: as :func:`find_session` and :func:`find_snapshot`.
    """
    if not await named_sessions(client, name, workspace, model):
        snapshot = await find_snapshot(client, name)
        if snapshot is not None:
            return snapshot
    return await find_session(client, name, workspace, model)


async def require_free(client: Client, name: str, workspace: str, digest: str, *, force: bool) -> bool:
    """Whether the name is new; one that is taken is refused, unless ``force`` says to replace it.

    :raises InvalidRequestError: it is taken.
    """
    taken = await named_sessions(client, name, workspace, digest)
    if taken and not force:
        raise InvalidRequestError(
            f"there is a session {name!r} in workspace {workspace!r} already, of {taken[0].tape} tokens; give another "
            "name, or --force replaces it"
        )
    return not taken


def attach(client: Client, session: SessionInfo) -> Session:
    """The session that the node told of."""
    handle = SessionHandle(
        workspace=session.workspace,
        name=session.name,
        ref=ModelRef(session.model, digest=session.digest),
        generation=session.generation,
        window=session.window,
        epoch=client.record.epoch,
    )
    return client.attach(handle)
