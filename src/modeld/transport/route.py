"""The way to the owner of a data root: read its record, dial, have it prove itself, and find the next one.

A node proves instance and epoch by a challenge (:func:`modeld.transport.methods.identity_proof`) before it is used.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Protocol, TypeVar

from modeld.errors import (
    InvalidRequestError,
    LeaseLostError,
    ModeldError,
    NodeError,
    NodeNotRunningError,
    NodeStaleError,
    NodeUnreachableError,
    NotOwnerError,
    StaleEpochError,
)
from modeld.node.record import OwnerRecord, probe, read_record, require_running
from modeld.transport.grpc.client import RemoteNode
from modeld.transport.grpc.wire import cancelling

REFUSED: Final = (NotOwnerError, StaleEpochError)
"""The fence said no: nothing was done, whatever the call."""
LOST: Final = (NodeUnreachableError, LeaseLostError)
"""The owner is gone, or does not answer. Nobody knows whether the call was carried out."""

_HELLO_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.05
_STARTING_SECONDS: Final = 10.0
"""How long somebody who waits for no successor waits for an owner without an address, which is starting."""

T = TypeVar("T")


class Starter(Protocol):
    """Starts a node where none runs."""

    async def start(self) -> None:
        """Nobody owns the data root. Called again and again until somebody does.

        :raises ModeldError: it cannot be started.
        """
        ...

    def won(self, record: OwnerRecord) -> None:
        """This owner answers."""
        ...


class Route:
    """The way to the owner of a data root: one proven connection, replaced when another owner took over.

    Belongs to one event loop. However many calls lose their owner at once, one search serves them all.
    """

    def __init__(self, root: Path, patience: float, starter: Starter | None) -> None:
        self.root = root
        self.node: RemoteNode | None = None
        self.closed = False
        self._patience = patience
        self._starter = starter
        self._finding: asyncio.Task[RemoteNode] | None = None
        self._gone: RemoteNode | None = None

    @property
    def epoch(self) -> int:
        """The highest that was proven; 0 before the first."""
        return 0 if self.node is None else self.node.record.epoch

    async def current(self, *, sure: bool = False) -> RemoteNode:
        """The connection to the owner that the record names now.

        :param sure: look at the lock too, so that a call which cannot be repeated is not sent to a dead owner.
        """
        if self.closed:
            raise InvalidRequestError("this connection was closed; connect again")
        node = self.node
        if node is None or await asyncio.to_thread(_replaced, self.root, node.record, sure):
            return await self.after(node)
        return node

    async def after(
        self, lost: RemoteNode | None, cause: ModeldError | None = None, *, seconds: float | None = None
    ) -> RemoteNode:
        """A connection that is not ``lost``, unless that one proves itself again. Waits for a successor.

        :param cause: how it was lost. Where it said itself that it is no owner, it may not prove the contrary.
        :param seconds: instead of the usual patience.
        :raises NodeError: as :func:`modeld.node.record.require_running`, when none turned up in time.
        """
        if self.node is not None and self.node is not lost:
            return self.node
        if isinstance(cause, (*REFUSED, LeaseLostError)):
            self._gone = lost
        if self._finding is None:
            wait = lost is not None or self._starter is not None
            seconds = self._patience if seconds is None else seconds
            self._finding = asyncio.ensure_future(self._find(lost, seconds, wait=wait))
            self._finding.add_done_callback(self._found)
        try:
            # Shielded: the search is not only the first asker's.
            return await asyncio.shield(self._finding)
        except asyncio.CancelledError:
            if self.closed and not cancelling():
                raise _unreachable(self.root, "the connection was closed") from None
            raise

    async def call(self, work: Callable[[RemoteNode], Awaitable[T]], *, repeat: bool) -> T:
        """Do ``work`` on the owner; when that one refuses or is lost, once more on its successor.

        :param repeat: it is safe to do twice. If not, it is done again only where the fence refused it.
        """
        node = await self.current(sure=not repeat)
        try:
            return await work(node)
        except REFUSED as error:
            cause: ModeldError = error
        except LOST as error:
            if not repeat or self.closed:
                raise
            cause = error
        return await work(await self.after(node, cause))

    async def aclose(self) -> None:
        """Close the connection and end the search for one. Safe to call twice."""
        self.closed = True
        if self._finding is not None:
            self._finding.cancel()
            await asyncio.wait([self._finding])
        if self.node is not None:
            await self.node.aclose()

    def _found(self, task: asyncio.Task[RemoteNode]) -> None:
        self._finding = None
        if not task.cancelled():
            task.exception()  # everybody who asked may have left

    async def _find(self, lost: RemoteNode | None, seconds: float, *, wait: bool) -> RemoteNode:
        began = time.monotonic()
        end = began + seconds
        error: NodeError
        while True:
            left, starting = max(end - time.monotonic(), _POLL_SECONDS), False
            try:
                node = await self._dial(lost, min(left, _HELLO_SECONDS) if wait else seconds)
                break
            except (NodeNotRunningError, NodeStaleError) as nobody:
                error = nobody
                if self._starter is not None:
                    await self._starter.start()
            except NodeUnreachableError as silent:
                error = silent  # it is starting, taking over, or going
                starting = not silent.details.get("endpoint") and time.monotonic() - began < _STARTING_SECONDS
            if not (wait or starting) or time.monotonic() > end:
                raise error
            # Many clients lose an owner at the same moment.
            await asyncio.sleep(_POLL_SECONDS * random.uniform(0.5, 1))
        old, self.node = self.node, node
        if self._starter is not None:
            self._starter.won(node.record)
        if old is not None and old is not node:
            # What still runs there belongs to an owner of the past.
            await old.aclose()
        return node

    async def _dial(self, lost: RemoteNode | None, seconds: float) -> RemoteNode:
        record = await asyncio.to_thread(require_running, self.root)
        if record.epoch < self.epoch:
            raise _unreachable(self.root, f"its record names epoch {record.epoch}, and {self.epoch} was seen already")
        if lost is not None and _same(record, lost.record):
            if lost is self._gone:
                raise _unreachable(self.root, f"process {record.pid} says it is not the owner, and there is no other")
            # It lives: a call was dropped, or it is about to go. Calls that still run on it need not be disturbed.
            try:
                await lost.prove(seconds)
                return lost
            except NodeUnreachableError:
                pass
        node = RemoteNode(record.endpoint, record)
        try:
            await node.prove(seconds)
        except BaseException:
            await node.aclose()
            raise
        return node


def _same(one: OwnerRecord, other: OwnerRecord) -> bool:
    return (one.instance_id, one.epoch) == (other.instance_id, other.epoch)


def _replaced(root: Path, known: OwnerRecord, sure: bool) -> bool:
    """Whether the record names a later owner than ``known``; with ``sure``, whether ``known`` has lost the lock too.

    Where the files cannot be read, the call itself finds out.
    """
    try:
        if not sure:
            record = read_record(root)
        else:
            seen = probe(root)
            if seen.state != "running":
                return True
            record = seen.record
    except (OSError, NodeError):
        return False
    return record is not None and record.epoch >= known.epoch and not _same(record, known)


def _unreachable(root: Path, reason: str) -> NodeUnreachableError:
    return NodeUnreachableError(f"the node of {str(root)!r} cannot be reached: {reason}", endpoint="", pid=0)
