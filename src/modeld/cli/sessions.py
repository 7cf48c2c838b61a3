"""``modeld sessions``: what the node keeps warm, and snapshots of it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modeld.cli.connection import finish, nobody
from modeld.cli.errors import guarded, usage
from modeld.cli.node import session_table
from modeld.cli.options import DataRootOption, JsonOption, root_of
from modeld.cli.output import adapted, duration, emit, facts, table, visible
from modeld.cli.remote import BackendOption, reached
from modeld.cli.session_files import export, import_, restored
from modeld.cli.session_names import (
    ForceOption,
    ModelOption,
    WorkspaceOption,
    attach,
    find_either,
    find_session,
    require_free,
)
from modeld.errors import InvalidRequestError, NodeNotRunningError, NodeStaleError

if TYPE_CHECKING:
    from modeld.cli.remote import Client
    from modeld.session.manifest import Segment
    from modeld.session.values import ContextReport, NodeStatus, SessionInfo, SnapshotInfo

    Listed = tuple[NodeStatus | None, list[SessionInfo], list[SnapshotInfo]]


def list_(
    workspace: Annotated[str, typer.Option("--workspace", metavar="NAME", help="Only of this workspace.")] = "",
    backend: BackendOption = "",
    data_root: DataRootOption = None,
    as_json: JsonOption = False,
) -> int:
    """List sessions, the last used first, and snapshots, the newest first, with the disk they take. Starts no node."""
    root = root_of(data_root)
    node, sessions, snapshots = finish(_look(root, backend))
    if workspace:
        sessions = [session for session in sessions if session.workspace == workspace]
        snapshots = [one for one in snapshots if one.config is not None and one.config.workspace == workspace]
    size = sum(snapshot.size for snapshot in snapshots)
    if as_json:
        emit({"node": node, "sessions": sessions, "snapshots": snapshots, "snapshot_bytes": size})
        return 0
    if node is None:
        resting = sum(1 for _ in (root / "sessions").glob("*.session"))
        print(nobody(root) + (f"; {resting} sessions are on disk, and there again with the next" if resting else ""))
    else:
        session_table(sessions)
    if snapshots:
        from modeld.node.capacity import human_bytes

        print()
        headers = ("SNAPSHOT", "SESSION", "WORKSPACE", "MODEL", "TOKENS", "SIZE", "TAKEN")
        table(headers, [_snapshot_row(snapshot) for snapshot in snapshots])
        print(f"\nsnapshots take {human_bytes(size)} in all; they stay until they are removed")
    return 0


def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A session.")],
    workspace: WorkspaceOption = "default",
    model: ModelOption = "",
    backend: BackendOption = "",
    data_root: DataRootOption = None,
    as_json: JsonOption = False,
) -> int:
    """Show a session: its messages by role and size, what is in the engine, its identity, what the last call cost.

    Loads nothing: the messages are known while the session's model is loaded.
    """

    async def ask() -> tuple[SessionInfo, ContextReport | None]:
        async with reached(root_of(data_root), backend) as client:
            session, status = await find_session(client, name, workspace, model), await client.status()
            if status.state != "ready" or session.digest != status.digest:
                return session, None
            return session, await attach(client, session).explain()

    session, report = finish(ask())
    if as_json:
        emit({"session": session, "report": report})
        return 0
    facts([*_session_facts(session), *(_report_facts(report) if report else ())])
    if report is None:
        print("its messages are not known while its model is not loaded")
    elif report.segments:
        print()
        table(("MESSAGE", "ROLE", "CHARACTERS", "STABLE"), [_segment_row(segment) for segment in report.segments])
    return 0


def fork(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="A session's name, or a snapshot's id.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the branch is called.")],
    workspace: WorkspaceOption = "default",
    model: ModelOption = "",
    force: ForceOption = False,
    backend: BackendOption = "",
    data_root: DataRootOption = None,
    as_json: JsonOption = False,
) -> int:
    """Open session NAME with the past of another one, or of a snapshot. The source stays as it is.

    A snapshot's id may be cut to 8 digits. The branch is in the workspace of --workspace.
    """

    async def ask() -> SessionInfo:
        async with reached(root_of(data_root), backend) as client:
            found = await find_either(client, source, workspace, model)
            return await _fork(client, found, name, workspace, force)

    made = finish(ask())
    if as_json:
        emit({"session": made})
    else:
        print(f"session {visible(made.name)} holds {made.tape} tokens of {visible(source)}")
    return 0


def rm(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME|ID]...", help="Sessions, and ids of snapshots.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="All sessions of the workspace; snapshots stay.")] = False,
    workspace: WorkspaceOption = "default",
    model: ModelOption = "",
    backend: BackendOption = "",
    data_root: DataRootOption = None,
    as_json: JsonOption = False,
) -> int:
    """Forget sessions, and remove snapshots. Asks nothing, and cannot be undone.

    A session whose call runs is refused. Nothing is removed where one of the names is none. Blocks of KV (which name
    their tokens) may be other sessions' too: they stay in DATA_ROOT/kv until they are the longest unused, a week at
    most; with no node running that folder can be deleted.
    """
    with usage():
        if bool(names) == every:
            raise InvalidRequestError("name what to remove, or all sessions of a workspace by --all")

    async def ask() -> list[SessionInfo | SnapshotInfo]:
        async with reached(root_of(data_root), backend) as client:
            if every:
                sessions = [one for one in await client.sessions() if one.workspace == workspace]
                found: list[SessionInfo | SnapshotInfo] = [s for s in sessions if model in ("", s.model, s.digest)]
            else:
                found = [await find_either(client, name, workspace, model) for name in dict.fromkeys(names or ())]
            for one in found:
                await _remove(client, one)
                if not as_json:
                    print(f"{_called(one)} is removed", flush=True)
            return found

    removed = finish(ask())
    if as_json:
        emit({"removed": [_called(one) for one in removed]})
    return 0


sessions = typer.Typer(help="Sessions and their snapshots: list, show, fork, rm, export, import.", no_args_is_help=True)
for _name, _command in (
    *(("list", list_), ("show", show), ("fork", fork), ("rm", rm)),
    *(("export", export), ("import", import_)),
):
    sessions.command(_name)(guarded(_command))


async def _look(root: Path, backend: str) -> Listed:
    from modeld.node.snapshots import SnapshotStore

    try:
        async with reached(root, backend) as client:
            return await client.status(), await client.sessions(), await client.snapshots()
    except (NodeNotRunningError, NodeStaleError):
        return None, [], SnapshotStore(root).list()


async def _fork(
    client: Client, found: SessionInfo | SnapshotInfo, name: str, workspace: str, force: bool
) -> SessionInfo:
    import msgspec

    from modeld.session.values import SessionInfo

    if isinstance(found, SessionInfo):
        if name != found.name:
            await require_free(client, name, workspace, found.digest, force=force)
        await attach(client, found).fork(name, workspace=workspace)
        return await find_session(client, name, workspace, found.digest)
    if found.ref is None or found.config is None:
        raise InvalidRequestError(f"snapshot {found.id[:16]} cannot be used: {found.error}")
    fresh = await require_free(client, name, workspace, found.ref.digest, force=force)
    config = msgspec.structs.replace(found.config, workspace=workspace, name=name)
    await restored(client, found.id, found.ref, config, fresh=fresh)
    return await find_session(client, name, workspace, found.ref.digest)


async def _remove(client: Client, found: SessionInfo | SnapshotInfo) -> None:
    from modeld.session.values import SnapshotInfo

    if isinstance(found, SnapshotInfo):
        await client.remove_snapshot(found.id)
    else:
        await client.remove_session(found.name, workspace=found.workspace, model=found.digest)


def _called(found: SessionInfo | SnapshotInfo) -> str:
    from modeld.session.values import SnapshotInfo

    return found.id if isinstance(found, SnapshotInfo) else visible(found.name)


def _snapshot_row(snapshot: SnapshotInfo) -> tuple[str, ...]:
    from modeld.node.capacity import human_bytes

    ref, config = snapshot.ref, snapshot.config
    if ref is None or config is None:
        return snapshot.id[:16], "-", "-", "-", "-", human_bytes(snapshot.size), visible(snapshot.error)
    return (
        snapshot.id[:16],
        visible(config.name),
        visible(config.workspace),
        visible(ref.name),
        str(snapshot.tokens),
        human_bytes(snapshot.size),
        f"{duration(time.time() - snapshot.created)} ago",
    )


def _segment_row(segment: Segment) -> tuple[str, ...]:
    return (
        str(segment.message_index) if segment.message_index is not None else "-",
        segment.kind,
        str(segment.characters),
        "yes" if segment.stable else "",
    )


def _session_facts(session: SessionInfo) -> list[tuple[str, str]]:
    used = "now" if session.active else f"{duration(time.time() - session.last_used)} ago"
    return [
        ("session", f"{visible(session.name)} in workspace {visible(session.workspace)}"),
        ("model", f"{visible(session.model)}{adapted(session.adapters)} ({session.digest[:16]})"),
        ("class", session.session_class + (", pinned" if session.pin else "")),
        ("tape", f"{session.tape:,} tokens, {session.hot:,} of them in the engine; the window has {session.window:,}"),
        ("last used", used),
    ]


def _report_facts(report: ContextReport) -> list[tuple[str, str]]:
    manifest, last = report.manifest, report.last_receipt
    cost = (
        f"{last.reused} reused, {last.restored} restored, {last.prefilled} prefilled, {last.dropped} dropped"
        if last is not None
        else ""
    )
    stop = last.stop if last is not None else None
    return [
        ("engine", f"{manifest.engine}, {manifest.engine_build}, KV {manifest.kv_type}" if manifest else ""),
        ("manifest", manifest.digest[:16] if manifest else ""),
        ("last call", cost),
        ("reuse stopped", f"at token {stop.token}: {stop.reason.replace('_', ' ')}" if stop else ""),
        ("so far", f"{report.prefill_tokens:,} tokens prefilled, {report.decode_tokens:,} generated"),
        ("fatal", report.fatal),
    ]
