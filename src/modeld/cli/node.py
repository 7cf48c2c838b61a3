"""``modeld status``, ``ps`` and ``stop``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from modeld.cli.connection import connected, finish, nobody
from modeld.cli.options import DataRootOption, JsonOption, root_of
from modeld.cli.output import adapted, duration, emit, facts, table, visible
from modeld.cli.remote import BackendOption, reached
from modeld.errors import DeadlineExceededError, NodeNotRunningError, NodeStaleError

if TYPE_CHECKING:
    from modeld.node.record import OwnerRecord
    from modeld.session.values import NodeStatus, SessionInfo

_STOP_SECONDS: Final = 30.0
_POLL_SECONDS: Final = 0.05


def status(backend: BackendOption = "", data_root: DataRootOption = None, as_json: JsonOption = False) -> int:
    """Say what the node does: process, model, engine, memory. Starts none; exits 0 also where none runs."""
    root = root_of(data_root)
    node, _ = finish(_look(root, backend))
    if as_json:
        emit({"node": node, "engine": node.engine if node else None})
    elif node is None:
        print(nobody(root))
    else:
        facts(_status_facts(node))
    return 0


def ps(
    explain: Annotated[
        str, typer.Option("--explain", metavar="SESSION", help="Tell why its last calls could not reuse its KV.")
    ] = "",
    workspace: Annotated[str, typer.Option(metavar="NAME", help="Of the session to explain.")] = "",
    model: Annotated[str, typer.Option(metavar="NAME", help="Of the session to explain.")] = "",
    backend: BackendOption = "",
    data_root: DataRootOption = None,
    as_json: JsonOption = False,
) -> int:
    """List the sessions, the last used first. Starts no node; exits 0 also where none runs.

    Of TAPE tokens in all the engine holds HOT for the session, and KEPT need not be computed again: the hot ones, those
    that others hold too, and those that can come back. The rest would be computed by the next call. KEPT is - where
    nobody knows: the session was not used since its model was loaded.
    """
    root = root_of(data_root)
    if explain:
        return _explain(root, backend, explain, workspace, model, as_json=as_json)
    if workspace or model:
        raise typer.BadParameter("--workspace and --model go with --explain")
    node, sessions = finish(_look(root, backend))
    if as_json:
        emit({"node": node, "engine": node.engine if node else None, "sessions": sessions})
    elif node is None:
        print(nobody(root))
    else:
        session_table(sessions)
        if node.model:
            print(f"\nKV of {node.model}: {_ledger(node)}")
    return 0


def _explain(root: Path, backend: str, session: str, workspace: str, model: str, *, as_json: bool) -> int:
    from modeld.cli.explain import look_up, show

    report = finish(look_up(root, backend, session, workspace, model))
    if as_json:
        emit(report)
    else:
        show(report)
    return 0


def session_table(sessions: Sequence[SessionInfo]) -> None:
    """Print what is known of sessions."""
    headers = ("SESSION", "WORKSPACE", "MODEL", "ENGINE", "HOT", "KEPT", "TAPE", "WINDOW", "USED")
    table(headers, [_session_row(session) for session in sessions])


def stop(data_root: DataRootOption = None, as_json: JsonOption = False) -> int:
    """Ask the node to end, and wait until its process is gone. Running calls have a few seconds to finish."""
    root = root_of(data_root)
    record = finish(_shut_down(root))
    if record is not None:
        _wait_until_gone(root, record)
    if as_json:
        emit({"stopped": record is not None, "pid": record.pid if record else None})
    else:
        print(f"the node of {root} (process {record.pid}) has ended" if record else nobody(root))
    return 0


async def _look(root: Path, backend: str) -> tuple[NodeStatus | None, list[SessionInfo]]:
    try:
        async with reached(root, backend) as client:
            return await client.status(), await client.sessions()
    except (NodeNotRunningError, NodeStaleError):
        return None, []


async def _shut_down(root: Path) -> OwnerRecord | None:
    """Ask the node to end; its record, or nothing where none runs."""
    try:
        async with connected(root) as client:
            await client.shutdown()
            return client.record
    except (NodeNotRunningError, NodeStaleError):
        return None


def _wait_until_gone(root: Path, record: OwnerRecord) -> None:
    end = time.monotonic() + _STOP_SECONDS
    while not _gone(root, record):
        if time.monotonic() > end:
            raise DeadlineExceededError(
                f"the node of {root} was asked to end, but process {record.pid} still runs after {_STOP_SECONDS:g} s; "
                "its log may tell why",
                pid=record.pid,
            )
        time.sleep(_POLL_SECONDS)


def _gone(root: Path, record: OwnerRecord) -> bool:
    """Its lock is free, or another's, and its process is no more: its engine ends before it does."""
    from modeld.node.record import boot_id, probe, process_start_time

    seen = probe(root)
    if seen.state == "running" and (seen.record is None or seen.record.instance_id == record.instance_id):
        return False
    if record.boot_id != boot_id() or process_start_time(record.pid) != record.start_time:
        return True
    import psutil

    try:
        # A starter that still lives may not have waited for it yet.
        return psutil.Process(record.pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _status_facts(node: NodeStatus) -> list[tuple[str, str]]:
    from modeld.node.capacity import human_bytes

    leaves = f"; the engine exits after {duration(node.idle_ttl)} without use" if node.idle_ttl else ""
    engine = node.engine
    return [
        ("node", f"process {node.pid}, version {node.version}, {human_bytes(node.rss)}, up {duration(node.uptime)}"),
        ("owner", f"epoch {node.epoch}, instance {node.instance_id}"),
        ("data root", node.data_root),
        ("endpoints", ", ".join(node.endpoints)),
        ("HTTP", node.http),
        ("slot", f"{node.state}, generation {node.generation}"),
        ("model", f"{node.model}{adapted(node.adapters)}: {node.context:,} tokens of context" if node.model else ""),
        ("KV", f"{node.kv_type}, {_ledger(node)}" if node.model else ""),
        (
            "engine",
            f"process {engine.pid}, {engine.backend}, {human_bytes(engine.rss)}, {engine.build}" if engine else "",
        ),
        *(
            (side.task, f"{side.model}, process {side.pid}, {side.backend}, {human_bytes(side.rss)}")
            for side in node.sides
        ),
        ("sessions", f"{node.sessions}, {node.active} active"),
        ("last used", f"{duration(node.idle_seconds)} ago{leaves}" if node.model else ""),
        ("last error", node.last_error),
    ]


def _ledger(node: NodeStatus) -> str:
    """Where KV is, and how much of the room for it is taken."""
    from modeld.node.capacity import human_bytes

    ledger = node.ledger
    kv = f"{human_bytes(ledger.hot)} of {human_bytes(ledger.hot_budget)} in the engine"
    kv += f" ({ledger.cells_used:,} of {ledger.cells:,} cells)"
    kv += f", {human_bytes(ledger.ram)} of {human_bytes(ledger.ram_budget)} in RAM" if ledger.ram_budget else ""
    return kv + (
        f", {human_bytes(ledger.disk)} of {human_bytes(ledger.disk_budget)} on disk" * bool(ledger.disk_budget)
    )


def _session_row(session: SessionInfo) -> tuple[str, ...]:
    used = "now" if session.active else f"{duration(time.time() - session.last_used)} ago"
    return (
        visible(session.name),
        visible(session.workspace),
        visible(session.model) + adapted(session.adapters),
        str(session.engine_pid or "-"),
        str(session.hot),
        "-" if session.kept is None else str(session.kept),
        str(session.tape),
        str(session.window),
        used,
    )
