"""Sessions and streams of a node, as callers in the same process hold them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import msgspec

from modeld.engine.protocol import Decode, Explain, Fork, Prefix, Restore, Snapshot, Suffix, Turn
from modeld.errors import ModeldError, SessionClosedError
from modeld.node.engine_process import EngineStream
from modeld.node.sessions import SessionRecord
from modeld.node.slot import Residency
from modeld.session.streams import BatchedStream
from modeld.session.values import ContextReport, PrefixStatus, SessionHandle, SnapshotInfo, SuffixStatus
from modeld.thinking import parse_think
from modeld.types import DecodeOptions, EndPart, Message, Receipt, StreamPart, Tool, Usage

if TYPE_CHECKING:
    from modeld.node.node import Node

Status = TypeVar("Status", PrefixStatus, SuffixStatus)
RequestMaker = Callable[[int, int], Turn | Decode]
"""Makes the engine's request from its id and the number of the session."""


class Bound:
    """A session while a call on it runs: its record, the residency it is on, and whether it had to be rebound."""

    def __init__(self, record: SessionRecord, residency: Residency, rebound: bool) -> None:
        self.record = record
        self.residency = residency
        self.rebound = rebound

    def stamp(self, receipt: Receipt) -> Receipt:
        """Add what only the node knows."""
        return msgspec.structs.replace(receipt, generation=self.residency.generation, rebound=self.rebound)


class NodeSession:
    """:class:`modeld.session.Session` in the node's own process."""

    def __init__(self, node: Node, handle: SessionHandle) -> None:
        self._node = node
        self._handle = handle
        self._closed = False

    @property
    def handle(self) -> SessionHandle:
        """See :attr:`modeld.session.Session.handle`."""
        return self._handle

    async def ensure_prefix(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> PrefixStatus:
        """See :meth:`modeld.session.Session.ensure_prefix`."""
        self._require_open()
        async with self._node.bound(self._handle) as bound:
            request = Prefix(self._id(bound), bound.record.key, tuple(messages), tuple(tools))
            return self._follow(bound, await bound.residency.engine.call(request, PrefixStatus))

    async def prefill_suffix(self, messages: Sequence[Message], *, think: str = "auto") -> SuffixStatus:
        """See :meth:`modeld.session.Session.prefill_suffix`."""
        self._require_open()
        level = parse_think(think)
        async with self._node.bound(self._handle, continues=True) as bound:
            request = Suffix(self._id(bound), bound.record.key, tuple(messages), level)
            return self._follow(bound, await bound.residency.engine.call(request, SuffixStatus))

    def decode(self, options: DecodeOptions | None = None) -> NodeStream:
        """See :meth:`modeld.session.Session.decode`."""
        self._require_open()
        wanted = options or DecodeOptions()
        return NodeStream(self, lambda id_, key: Decode(id_, key, wanted), continues=True)

    def turn(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        think: str = "auto",
        options: DecodeOptions | None = None,
    ) -> NodeStream:
        """See :meth:`modeld.session.Session.turn`."""
        self._require_open()
        level = parse_think(think)
        conversation, offered, wanted = tuple(messages), tuple(tools), options or DecodeOptions()
        return NodeStream(self, lambda id_, key: Turn(id_, key, conversation, wanted, offered, level))

    async def explain(self) -> ContextReport:
        """See :meth:`modeld.session.Session.explain`."""
        self._require_open()
        async with self._node.bound(self._handle) as bound:
            request = Explain(self._id(bound), bound.record.key)
            report = await bound.residency.engine.call(request, ContextReport)
            last = report.last_receipt
            if last is not None:
                last = msgspec.structs.replace(last, generation=bound.residency.generation)
            return msgspec.structs.replace(
                report,
                last_receipt=last,
                workspace=self._handle.workspace,
                name=self._handle.name,
                model=self._handle.ref.name,
                generation=bound.residency.generation,
            )

    async def snapshot(self) -> SnapshotInfo:
        """See :meth:`modeld.session.Session.snapshot`."""
        self._require_open()
        # Shielded: who gives up must not leave a file behind that nobody knows of.
        return await asyncio.shield(asyncio.ensure_future(self._snapshot()))

    async def _snapshot(self) -> SnapshotInfo:
        async with self._node.bound(self._handle, continues=True) as bound:
            draft = await asyncio.to_thread(self._node.snapshots.draft)
            request = Snapshot(self._id(bound), bound.record.key, str(draft))
            info = await bound.residency.engine.call(request, SnapshotInfo)
            await asyncio.to_thread(self._node.snapshots.publish, draft, info.id)
            return info

    async def restore(self, snapshot_id: str) -> PrefixStatus:
        """See :meth:`modeld.session.Session.restore`."""
        self._require_open()
        path = await asyncio.to_thread(self._node.snapshots.find, snapshot_id)
        async with self._node.bound(self._handle) as bound:
            request = Restore(self._id(bound), bound.record.key, str(path), snapshot_id)
            return self._follow(bound, await bound.residency.engine.call(request, PrefixStatus))

    async def fork(self, name: str, *, workspace: str = "") -> NodeSession:
        """See :meth:`modeld.session.Session.fork`."""
        self._require_open()
        async with self._node.bound(self._handle, continues=True) as bound:
            target = await self._node.branch(bound, name, workspace or self._handle.workspace)
            await bound.residency.engine.call(Fork(self._id(bound), bound.record.key, target.key), type(None))
            handle = msgspec.structs.replace(
                self._handle,
                workspace=target.config.workspace,
                name=target.config.name,
                generation=bound.residency.generation,
                epoch=self._node.epoch,
            )
            return NodeSession(self._node, handle)

    async def close(self) -> None:
        """See :meth:`modeld.session.Session.close`."""
        self._closed = True

    @property
    def node(self) -> Node:
        """The node that the session is on."""
        return self._node

    def saw(self, generation: int) -> None:
        """A call ended on this generation."""
        self._handle = msgspec.structs.replace(self._handle, generation=generation, epoch=self._node.epoch)

    def _id(self, bound: Bound) -> int:
        return bound.residency.engine.next_id()

    def _follow(self, bound: Bound, status: Status) -> Status:
        self.saw(bound.residency.generation)
        return msgspec.structs.replace(status, receipt=bound.stamp(status.receipt))

    def _require_open(self) -> None:
        if self._closed:
            raise SessionClosedError(f"the handle of session {self._handle.name!r} was closed; open the session again")


class NodeStream(BatchedStream):
    """:class:`modeld.session.PartStream` in the node's own process."""

    def __init__(self, session: NodeSession, request: RequestMaker, *, continues: bool = False) -> None:
        super().__init__()
        self._continues = continues
        self._session = session
        self._request = request
        self._starting: asyncio.Task[EngineStream] | None = None
        self._stream: EngineStream | None = None
        self._cancelled: EndPart | None = None
        self._told = False

    async def _read(self) -> list[StreamPart]:
        if self._stopped():
            end, self._told = ([] if self._told else self._stopped()), True
            return end
        try:
            stream = self._stream or await self._start()
        except asyncio.CancelledError:
            if not self._stopped():
                raise
            self._told = True
            return self._stopped()
        return await stream.next_batch()

    async def cancel(self) -> EndPart:
        """See :meth:`modeld.session.PartStream.cancel`."""
        self._ready.clear()
        if self._stream is None and self._starting is not None and _started(self._starting):
            self._stream = self._starting.result()
        if self._stream is not None:
            return await self._stream.cancel()
        if self._cancelled is None:
            self._cancelled = EndPart(finish_reason="cancelled", usage=Usage(input=0, output=0), receipt=Receipt())
        if self._starting is not None:
            self._starting.cancel()
        return self._cancelled

    async def aclose(self) -> None:
        """Cancel if it still runs. When this returns, the engine works on it no more."""
        if self._stream is None:
            await self.cancel()
        elif not self._stream.end.done():
            # Whoever reads the stream hears how it failed; here only its end matters.
            with suppress(ModeldError):
                await self._stream.cancel()

    def __del__(self) -> None:
        # Forgotten in the middle: without this the engine would hold the session's place for ever.
        if self._stream is not None and not self._stream.end.done():
            self._stream.abandon()

    def _stopped(self) -> list[StreamPart]:
        """The end part of a stream that was cancelled before the engine knew of it."""
        return [self._cancelled] if self._cancelled is not None else []

    def _begin(self) -> Coroutine[None, None, EngineStream]:
        return self._session.node.start_stream(self._session, self._request, continues=self._continues)

    async def _start(self) -> EngineStream:
        """Wait for the model, then ask. In a task of its own, so that a cancel can end the wait."""
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._begin())
        try:
            self._stream = stream = await asyncio.shield(self._starting)
        except asyncio.CancelledError:
            self._starting.cancel()
            # It may have come through in the same moment: then nobody is left to read it.
            self._starting.add_done_callback(lambda task: task.result().abandon() if _started(task) else None)
            raise
        return stream


def _started(task: asyncio.Task[EngineStream]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None
