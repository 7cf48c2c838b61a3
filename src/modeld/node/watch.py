"""Following the owner of a data root: be told when it changes or dies, and take its place.

The files are polled, in a thread, every 50 ms. File notification would not do alone: that a kernel lock became free is
no event of the file system. A look takes about 30 microseconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import msgspec

from modeld.node.owner import OwnerLease
from modeld.node.record import DataRoot, OwnerRecord, OwnerState, probe

POLL = 0.05
"""Seconds between two looks."""


class Follower:
    """Sees who owns ``data_root``. Belongs to one task of the event loop at a time.

    What it saw is a hint, as :func:`modeld.node.record.probe` says. An owner that stands still does not change and is
    not told of: who finds that it does not answer calls :meth:`promote`.
    """

    def __init__(self, data_root: DataRoot, *, poll: float = POLL) -> None:
        self._root = Path(data_root)
        self._poll = poll
        self._seen: OwnerState | None = None

    @property
    def record(self) -> OwnerRecord | None:
        """The owner's record as last told by :meth:`changed`; ``None`` while nobody owns."""
        seen = self._seen
        return seen.record if seen is not None and seen.state == "running" else None

    async def changed(self) -> OwnerState:
        """Wait until the owner is another one than last told, or says something else, or there is none any more.

        The first call returns at once. Renewals are no change. Two changes within one poll are told as one.

        :raises NodeError: the files may not be read.
        """
        while True:
            state = await asyncio.to_thread(probe, self._root)
            if self._seen is None or _facts(state) != _facts(self._seen):
                self._seen = state
                return state
            await asyncio.sleep(self._poll)

    async def __aiter__(self) -> AsyncIterator[OwnerState]:
        """What :meth:`changed` returns, for ever."""
        while True:
            yield await self.changed()

    async def promote(
        self,
        *,
        ttl: float = 10.0,
        backend: str = "none",
        serves: Sequence[str] = (),
        protocol: int = 1,
        version: str = "",
        wait: float = 0.0,
    ) -> OwnerLease:
        """Become the owner, ending one that stands still; see :meth:`OwnerLease.acquire`.

        A cancelled call gives up a lease that it still gets.

        :raises OwnerHeldError: the owner lives. :raises OwnerWedgedError: it stands still and may not be ended.
        """
        job = asyncio.ensure_future(
            asyncio.to_thread(
                OwnerLease.acquire,
                self._root,
                ttl=ttl,
                backend=backend,
                serves=serves,
                protocol=protocol,
                version=version,
                evict=True,
                wait=wait,
            )
        )
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            job.add_done_callback(_give_up)
            raise


def _facts(state: OwnerState) -> OwnerState:
    record = state.record
    return OwnerState(state.state, None if record is None else msgspec.structs.replace(record, renewed=0))


def _give_up(job: asyncio.Future[OwnerLease]) -> None:
    if not job.cancelled() and job.exception() is None:
        asyncio.get_running_loop().run_in_executor(None, job.result().release)
