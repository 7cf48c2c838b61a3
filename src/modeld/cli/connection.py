"""The node that a command talks to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from modeld.cli.output import say

if TYPE_CHECKING:
    from modeld.transport.leader import LeaderNode as Client

T = TypeVar("T")


def finish(work: Coroutine[Any, Any, T]) -> T:
    """Run it in an event loop of its own. asyncio is imported here: help and version do without."""
    import asyncio

    return asyncio.run(work)


async def connect_or_start(root: Path) -> Client:
    """A connection to the node of ``root``. Where none runs one is started in the background, and stderr says so."""
    from modeld.cli.waiting import Waiting
    from modeld.client import connect
    from modeld.node.record import probe

    if probe(root).state != "running":
        say(f"no node is running on {root}: starting one in the background (modeld stop ends it)")
    with Waiting("waiting for the node"):
        return await connect(root, start=True)


@asynccontextmanager
async def connected(root: Path, *, start: bool = False) -> AsyncIterator[Client]:
    """A connection while the body runs.

    :raises NodeError: no node runs (and ``start`` is not set), or it does not answer.
    """
    from modeld.client import connect

    client = await connect_or_start(root) if start else await connect(root)
    try:
        yield client
    finally:
        await client.aclose()


def nobody(root: Path) -> str:
    """The sentence for a data root without a node."""
    return f"no node is running on {root} (start one with: modeld serve)"
