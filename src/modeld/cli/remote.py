"""Registered nodes, as commands reach them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modeld.cli.connection import connected

if TYPE_CHECKING:
    from modeld.transport.grpc.client import RemoteNode
    from modeld.transport.leader import LeaderNode

    Client = LeaderNode | RemoteNode

BackendOption = Annotated[
    str, typer.Option("--backend", metavar="NAME", help="Ask the node registered as NAME; see `modeld backends`.")
]


async def connect_backend(root: Path, name: str) -> RemoteNode:
    """A connection to the node that ``root`` has registered as ``name``. None is started.

    :raises InvalidRequestError: no such name. :raises NodeError: as :func:`modeld.remote.connect_remote`.
    """
    import asyncio

    from modeld.node.backends import find_backend
    from modeld.remote import connect_remote

    backend = await asyncio.to_thread(find_backend, root, name)
    return await connect_remote(backend.url, token=backend.token, pin=backend.pin or None)


@asynccontextmanager
async def reached(root: Path, backend: str, *, start: bool = False) -> AsyncIterator[LeaderNode | RemoteNode]:
    """A connection while the body runs: to the node registered as ``backend``, or without a name to that of ``root``.

    :raises NodeError: no node runs there (and ``start`` is not set), or it does not answer.
    """
    if not backend:
        async with connected(root, start=start) as client:
            yield client
        return
    remote = await connect_backend(root, backend)
    try:
        yield remote
    finally:
        await remote.aclose()
