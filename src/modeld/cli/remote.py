"""Registered nodes, as commands reach them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modeld.cli.connection import connected
from modeld.errors import InvalidRequestError

if TYPE_CHECKING:
    from modeld.node.backends import ConfiguredBackend
    from modeld.transport.grpc.client import RemoteNode
    from modeld.transport.leader import LeaderNode

    Client = LeaderNode | RemoteNode

BackendOption = Annotated[
    str, typer.Option("--backend", metavar="NAME", help="Ask the node registered as NAME; see `modeld backends`.")
]


async def connect_backend(root: Path, name: str) -> RemoteNode:
    """A connection to the node that ``root`` has registered as ``name``. None is started.

    :raises BackendNotFoundError: no such name. :raises InvalidRequestError: it is no node.
    :raises NodeError: as :func:`modeld.remote.connect_remote`. :raises AuthenticationError: its token is not there.
    """
    import asyncio

    from modeld.remote import connect_remote

    backend, token = await asyncio.to_thread(_node, root, name)
    return await connect_remote(backend.base_url, token=token, pin=backend.pin or None)


def _node(root: Path, name: str) -> tuple[ConfiguredBackend, str]:
    """The node of that name, and its token."""
    from modeld.node.backends import find_backend, read_secret

    backend = find_backend(root, name)
    if backend.type != "modeld":
        raise InvalidRequestError(
            f"{name} is of type {backend.type}, and this takes a node; try: modeld chat --backend {name} --model MODEL",
            parameter="backend",
        )
    return backend, read_secret(root, backend)


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
