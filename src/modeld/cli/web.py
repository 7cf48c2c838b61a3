"""Where the node of this data root serves HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from modeld.cli.connection import connected, finish
from modeld.errors import NodeUnreachableError

if TYPE_CHECKING:
    from modeld.session.values import NodeStatus


def web_address(root: Path) -> str:
    """Its address, as a browser on this machine takes it.

    :raises NodeNotRunningError: there is no node.
    :raises NodeUnreachableError: it serves no HTTP; the message says why.
    """
    node = finish(_status(root))
    if not node.http.startswith(("http://", "https://")):
        why = node.http.removeprefix("off").lstrip(": ") or "it was started with --http off, or by a program of its own"
        raise NodeUnreachableError(
            f"the node of {root} (process {node.pid}) serves no HTTP: {why}; start it again with "
            "`modeld serve --http 127.0.0.1:11535`",
            pid=node.pid,
        )
    scheme, _, place = node.http.partition("://")
    host, _, port = place.rpartition(":")
    return f"{scheme}://{'localhost' if host in ('0.0.0.0', '[::]') else host}:{port}"


async def _status(root: Path) -> NodeStatus:
    async with connected(root) as client:
        return await client.status()
