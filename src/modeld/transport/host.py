"""A node as a process: the lease, the node, and the server that listens for it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import signal
from collections.abc import AsyncIterator, Callable

from msgspec import Struct

from modeld._version import __version__
from modeld.errors import LeaseLostError, ModeldError
from modeld.node.node import Node, NodeConfig
from modeld.node.owner import OwnerLease, keep
from modeld.node.record import OwnerRecord, socket_path
from modeld.transport.grpc.server import GrpcServer
from modeld.transport.methods import PROTOCOL

DRAIN_SECONDS = 5.0
"""How long a stopping node lets running calls finish."""

log = logging.getLogger("modeld.host")


class HostConfig(Struct, frozen=True, kw_only=True):
    """How to serve.

    :param listen: host and port for gRPC over TCP besides the unix socket.
    :param lease_ttl: seconds the owner record may stand still.
    """

    node: NodeConfig
    listen: tuple[str, int] | None = None
    lease_ttl: float = 10.0


@contextlib.asynccontextmanager
async def hosted(config: HostConfig, stop: Callable[[], None]) -> AsyncIterator[tuple[Node, OwnerRecord, OwnerLease]]:
    """Own the data root and serve it while the body runs.

    :param stop: called when a client asked the node to shut down.
    :raises OwnerHeldError: another process owns the data root.
    """
    types = servable_types(allow_fake=config.node.allow_fake)
    lease = await asyncio.to_thread(
        OwnerLease.acquire,
        config.node.data_root,
        ttl=config.lease_ttl,
        backend=types[0] if types else "none",
        serves=types,
        protocol=PROTOCOL,
        version=__version__,
    )
    publisher = _Publisher(lease)
    node = Node(
        config.node, instance_id=lease.instance_id, epoch=lease.epoch, resident_changed=publisher.resident_changed
    )
    server = GrpcServer(node, instance_id=lease.instance_id, epoch=lease.epoch, on_shutdown=stop)
    try:
        node.endpoints = await server.start(socket_path(config.node.data_root), config.listen)
        yield node, await asyncio.to_thread(lease.publish, endpoints=node.endpoints), lease
    finally:
        await server.stop(0.0 if lease.lost else DRAIN_SECONDS)
        await node.aclose()
        await publisher.aclose()
        await asyncio.to_thread(lease.release)


async def serve(config: HostConfig, ready: Callable[[OwnerRecord], None]) -> None:
    """Serve until SIGTERM, SIGINT, a client's shutdown, or the loss of the lease.

    :param ready: called once clients can connect.
    :raises OwnerHeldError: another process owns the data root.
    :raises LeaseLostError: this process is not the owner any more; everything was stopped.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    async with hosted(config, stopping.set) as (_, record, lease):
        ready(record)
        keeper = asyncio.ensure_future(keep(lease))
        waiter = asyncio.ensure_future(stopping.wait())
        try:
            await asyncio.wait({keeper, waiter}, return_when=asyncio.FIRST_COMPLETED)
            if keeper.done():
                await keeper
        finally:
            for task in (keeper, waiter):
                task.cancel()
            await asyncio.gather(keeper, waiter, return_exceptions=True)


def servable_types(*, allow_fake: bool) -> tuple[str, ...]:
    """Types of models whose engine's packages are installed. Nothing native is imported to find out."""
    types = [name for name, package in (("llama", "llama_cpp"),) if importlib.util.find_spec(package) is not None]
    return (*types, "fake") if allow_fake else tuple(types)


class _Publisher:
    """Writes the resident engine's name into the owner record, one write at a time, off the event loop."""

    def __init__(self, lease: OwnerLease) -> None:
        self._lease = lease
        self._wanted = self._written = lease.record.backend
        self._task: asyncio.Task[None] | None = None

    def resident_changed(self, backend: str) -> None:
        if backend == "none" or backend == self._wanted:
            return
        self._wanted = backend
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._write())

    async def aclose(self) -> None:
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _write(self) -> None:
        while self._written != self._wanted:
            backend = self._wanted
            try:
                await asyncio.to_thread(self._lease.publish, backend=backend)
            except LeaseLostError:
                return
            except ModeldError as error:
                log.warning("the owner record still names another engine: %s", error)
                return
            self._written = backend
