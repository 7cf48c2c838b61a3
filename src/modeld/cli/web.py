"""Where the node of this data root serves HTTP, and which model it is asked for there."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

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
        why = without_http(node)
        text = f"the node of {root} (process {node.pid}) serves no HTTP: {why}; end it first with `modeld stop`"
        raise NodeUnreachableError(text, pid=node.pid)
    scheme, _, place = node.http.partition("://")
    host, _, port = place.rpartition(":")
    return f"{scheme}://{'localhost' if host in ('0.0.0.0', '[::]') else host}:{port}"


def without_http(node: NodeStatus) -> str:
    """Why a node that serves no HTTP does not, and how one is started that does."""
    return node.http.removeprefix("off").lstrip(": ") or (
        "it was started with --http off, or by a program of its own; `modeld serve --http 127.0.0.1:11535` serves it"
    )


class Asked(Struct, frozen=True):
    """A model that tools ask for. :param window: tokens of a conversation with it; 0: not known here."""

    name: str
    window: int = 0


def model_to_ask(root: Path, model: str) -> Asked:
    """``model``; where that is empty the resident one that HTTP can name, or ``tiny``.

    :raises ModelNotFoundError: the node has no such model. One of a backend is taken as it is: asking its vendor costs.
    """
    return finish(_model_to_ask(root, model))


async def _model_to_ask(root: Path, model: str) -> Asked:
    from modeld.session.values import ModelRef

    if ":" in model:
        return Asked(model)
    async with connected(root) as client:
        if not model:
            model = next((one.name for one in await client.models() if one.resident), "tiny")
        found = await client.describe(ModelRef(name=model))
        return Asked(found.name, found.plan.context if found.plan.fits and found.generates else 0)


async def _status(root: Path) -> NodeStatus:
    async with connected(root) as client:
        return await client.status()
