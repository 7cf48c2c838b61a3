"""``modeld who``: whose the data root, the engine and the accelerators are."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

from modeld.cli.connection import connected, finish, nobody
from modeld.cli.options import DataRootOption, JsonOption, root_of
from modeld.cli.output import duration, emit, facts
from modeld.errors import ModeldError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modeld.node.device import DeviceRecord
    from modeld.node.record import OwnerRecord, OwnerState
    from modeld.session.values import ClientInfo, NodeStatus

_ANSWER_SECONDS: Final = 3.0


def who(data_root: DataRootOption = None, as_json: JsonOption = False) -> int:
    """Name the owner of the data root, its engine with its memory, the clients of the last minute (as they name
    themselves), and who holds which accelerator.

    Starts no node; exits 0 also where none runs. Accelerators are those of all data roots of this user.
    """
    from modeld.node.device import device_holders
    from modeld.node.record import probe

    root = root_of(data_root)
    seen = probe(root)
    devices = device_holders()
    node, problem = finish(_status(root)) if seen.state == "running" else (None, "")
    if as_json:
        engine = node.engine if node else None
        emit(
            {
                "state": seen.state,
                "owner": seen.record,
                "engine": engine,
                "clients": node.clients if node else (),
                "problem": problem,
                "devices": devices,
            }
        )
    else:
        facts([*_owner_facts(root, seen), *_engine_facts(node, problem), *_device_facts(devices)])
    return 0


async def _status(root: Path) -> tuple[NodeStatus | None, str]:
    """What the node says, or why it says nothing: the record alone already names its process."""
    import asyncio

    try:
        async with asyncio.timeout(_ANSWER_SECONDS), connected(root) as client:
            return await client.status(), ""
    except TimeoutError:
        return None, f"the node does not answer within {_ANSWER_SECONDS:g} s"
    except ModeldError as error:
        return None, error.message


def _owner_facts(root: Path, seen: OwnerState) -> list[tuple[str, str]]:
    record = seen.record
    if record is None:
        text = nobody(root) if seen.state != "running" else "somebody holds the lock; the record cannot be read"
        return [("owner", text)]
    if seen.state != "running":
        return [("owner", f"{nobody(root)}; process {record.pid} of epoch {record.epoch} died")]
    return [
        ("owner", f"process {record.pid}, epoch {record.epoch}, since {_since(record)}"),
        ("command", record.command),
        ("data root", str(root)),
        ("endpoints", ", ".join(record.endpoints)),
    ]


def _since(record: OwnerRecord) -> str:
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(record.started))
    return f"{started} ({duration(time.time() - record.started)} ago)"


def _engine_facts(node: NodeStatus | None, problem: str) -> list[tuple[str, str]]:
    from modeld.node.capacity import human_bytes

    if node is None:
        return [("engine", problem)]
    engine = node.engine
    text = f"process {engine.pid}, {engine.backend}, {human_bytes(engine.rss)}, {node.model}" if engine else "none"
    return [
        ("engine", text),
        ("sessions", f"{node.sessions}, {node.active} active"),
        *((f"client {client.pid or '?'}", _client(client)) for client in node.clients if client.pid != os.getpid()),
    ]


def _client(client: ClientInfo) -> str:
    return f"{client.program} by {client.address}, {client.calls} calls, the last {duration(client.idle_seconds)} ago"


def _device_facts(devices: Sequence[DeviceRecord]) -> list[tuple[str, str]]:
    return [
        (held.device, f"process {held.pid}, engine {held.engine_pid}, data root {held.data_root}") for held in devices
    ] or [("devices", "none is held")]
