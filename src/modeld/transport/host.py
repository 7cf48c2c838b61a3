"""A node as a process: the lease, the node, and the server that listens for it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from modeld._version import __version__
from modeld.errors import LeaseLostError, ModeldError
from modeld.node.config import NodeConfig
from modeld.node.gateway import Gateway, RepositoryService
from modeld.node.node import Node
from modeld.node.owner import OwnerLease, keep
from modeld.node.record import OwnerRecord, socket_path
from modeld.node.store import serves_openvino
from modeld.session.contract import ModelService
from modeld.transport.grpc.server import GrpcServer
from modeld.transport.methods import PROTOCOL
from modeld.transport.security import Listener, make_listener

DRAIN_SECONDS = 5.0
"""How long a stopping node lets running calls finish."""

LOST_GRACE = 0.5
"""After the loss of the lease running calls end by themselves, with ``lease_lost``: time for these errors to leave."""

LOST_SECONDS = 5.0
"""A process that lost the lease has ended by then, even where a thread hangs in storage."""

log = logging.getLogger("modeld.host")


class HostConfig(Struct, frozen=True, kw_only=True):
    """How to serve.

    :param listen: host and port for gRPC over TCP besides the unix socket.
    :param tls: of TCP; ``None``: beyond loopback. :param tls_cert: PEM, with ``tls_key``, instead of a self-made one.
    :param lease_ttl: seconds the owner record may stand still.
    """

    node: NodeConfig
    listen: tuple[str, int] | None = None
    tls: bool | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    lease_ttl: float = 10.0


class Door(Protocol):
    """A way in beside gRPC, from a room above this one."""

    @property
    def state(self) -> str:
        """The endpoint, or why there is none."""
        ...

    async def open(self, service: ModelService, gateway: RepositoryService) -> str:
        """Listen, and return the endpoint; ``""``: there is none, and the node does without.

        :raises ModeldError: the node must not start without it.
        """
        ...

    async def close(self, grace: float) -> None:
        """Refuse new calls, give running ones ``grace`` seconds, end the rest. Also when it was never opened."""
        ...


@contextlib.asynccontextmanager
async def hosted(
    config: HostConfig, stop: Callable[[], None], door: Door | None = None
) -> AsyncIterator[tuple[Node, OwnerRecord, OwnerLease]]:
    """Own the data root and serve it while the body runs.

    :param stop: called when a client asked the node to shut down.
    :raises OwnerHeldError: another process owns the data root.
    :raises OwnerWedgedError: one that stands still does, and it may not be ended from here.
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
        evict=True,
    )
    publisher = _Publisher(lease)
    node = Node(
        config.node, instance_id=lease.instance_id, epoch=lease.epoch, resident_changed=publisher.resident_changed
    )

    async def itself() -> ModelService:
        return node

    gateway = Gateway(config.node.data_root, itself)
    server = GrpcServer(node, instance_id=lease.instance_id, epoch=lease.epoch, on_shutdown=stop, gateway=gateway)
    try:
        node.endpoints = await server.start(
            socket_path(config.node.data_root), await asyncio.to_thread(_listener, config)
        )
        if door is not None:
            endpoint = await door.open(node, gateway)
            node.endpoints += (endpoint,) if endpoint else ()
            node.http = door.state
        yield node, await asyncio.to_thread(lease.publish, endpoints=node.endpoints), lease
    finally:
        try:
            grace = LOST_GRACE if lease.lost else DRAIN_SECONDS
            await asyncio.gather(server.stop(grace), *([] if door is None else [door.close(grace)]))
            await node.aclose()
            await publisher.aclose()
            await asyncio.to_thread(lease.release)
        finally:
            # Last: it runs the process's shutdown hooks, which are anybody's.
            await gateway.aclose()


async def serve(config: HostConfig, ready: Callable[[OwnerRecord], None], door: Door | None = None) -> None:
    """Serve until SIGTERM, SIGINT, a client's shutdown, or the loss of the lease.

    Running calls then have :data:`DRAIN_SECONDS`, new ones are refused. A second signal ends the process at once: the
    kernel frees the lock and ends the engine.

    A lost lease ends running streams with ``lease_lost`` and refuses new calls at once. Where stopping then hangs, the
    process is ended after :data:`LOST_SECONDS`, with the exit code of a lost lease: call this as a program's last act.

    :param ready: called once clients can connect.
    :raises OwnerHeldError: another process owns the data root.
    :raises OwnerWedgedError: one that stands still does, and it may not be ended from here.
    :raises LeaseLostError: this process is not the owner any more; everything was stopped.
    """
    stopping = asyncio.Event()
    _stop_on_signal(stopping)
    tasks: list[asyncio.Task[object]] = []
    try:
        async with hosted(config, stopping.set, door) as (node, record, lease):

            def lost(error: LeaseLostError) -> None:
                node.refuse(error)
                _exit_after(LOST_SECONDS, error)

            ready(record)
            keeper, waiter = asyncio.ensure_future(keep(lease, lost)), asyncio.ensure_future(stopping.wait())
            tasks += keeper, waiter
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if keeper.done():
                await keeper
    finally:
        # Not before: a node that drains must renew, or a contender would end it.
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _exit_after(seconds: float, error: LeaseLostError) -> None:
    log.error("%s", error)
    # Its own thread: the loop may wait for a thread that storage never lets go.
    timer = threading.Timer(seconds, os._exit, (error.exit_code,))
    timer.daemon = True
    timer.start()


def _stop_on_signal(stopping: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def stop() -> None:
        stopping.set()
        log.info("ending: running calls have %g s, a second signal ends them at once", DRAIN_SECONDS)
        for number in numbers:
            loop.remove_signal_handler(number)
            # The kernel's own: it needs no loop that still turns.
            signal.signal(number, signal.SIG_DFL)

    for number in numbers:
        loop.add_signal_handler(number, stop)


def _listener(config: HostConfig) -> Listener | None:
    if config.listen is None:
        return None
    return make_listener(
        config.node.data_root, *config.listen, tls=config.tls, certificate=config.tls_cert, key=config.tls_key
    )


def servable_types(*, allow_fake: bool) -> tuple[str, ...]:
    """Types of models whose engine's packages are installed. Nothing native is imported to find out."""
    types = ["llama"] if importlib.util.find_spec("llama_cpp") is not None else []
    types += ["openvino"] if serves_openvino() else []
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
