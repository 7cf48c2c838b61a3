"""Sessions and streams of a node, as callers in the same process hold them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, TypeVar

import msgspec

from modeld.engine.protocol import Cancel, Decode, Explain, Fork, Prefix, Restore, Snapshot, Suffix, Turn
from modeld.errors import ModeldError, SessionClosedError
from modeld.node.caller import CALLER
from modeld.node.engine_process import EngineStream
from modeld.node.sessions import SessionRecord
from modeld.node.slot import Residency
from modeld.node.snapshots import settled
from modeld.node.totals import RunningTotals
from modeld.session.streams import CancellableStream, never_ran
from modeld.session.text_values import raw_prompt
from modeld.session.values import ContextReport, PrefixStatus, SessionHandle, SnapshotInfo, SuffixStatus
from modeld.thinking import parse_think
from modeld.types import DecodeOptions, EndPart, Message, Receipt, StreamPart, Tool

if TYPE_CHECKING:
    from modeld.node.bindings import SessionBindings

Status = TypeVar("Status", PrefixStatus, SuffixStatus)
RequestMaker = Callable[[int, SessionRecord], Turn | Decode]
"""Makes the engine's request from its id and the session's record."""


class Bound:
    """A session while a call on it runs: its record, the residency it is on, and whether it had to be rebound."""

    def __init__(self, record: SessionRecord, residency: Residency, rebound: bool, totals: RunningTotals) -> None:
        self.record = record
        self.residency = residency
        self.rebound = rebound
        self._totals = totals

    def stamp(self, receipt: Receipt) -> Receipt:
        """Add what only the node knows, and remember it."""
        stamped = msgspec.structs.replace(receipt, generation=self.residency.generation, rebound=self.rebound)
        self.record.history.note(stamped)
        self._totals.ended(stamped)
        return stamped


class NodeSession:
    """:class:`modeld.session.Session` in the node's own process.

    :param opened: the record that was opened for it, and is given back when it is closed.
    """

    def __init__(self, bindings: SessionBindings, handle: SessionHandle, opened: SessionRecord | None = None) -> None:
        self._bindings = bindings
        self._handle = handle
        self._opened = opened
        self._closed = False

    @property
    def handle(self) -> SessionHandle:
        """See :attr:`modeld.session.Session.handle`."""
        return self._handle

    async def ensure_prefix(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> PrefixStatus:
        """See :meth:`modeld.session.Session.ensure_prefix`."""
        self._require_open()
        async with self._bindings.bound(self._handle) as bound:
            request = Prefix(self._id(bound), bound.record.key, tuple(messages), tuple(tools), CALLER.get())
            return self._follow(bound, await bound.residency.engine.call(request, PrefixStatus))

    async def prefill_suffix(
        self,
        messages: Sequence[Message],
        *,
        think: str = "auto",
        shift: bool | None = None,
        truncate: bool | None = None,
    ) -> SuffixStatus:
        """See :meth:`modeld.session.Session.prefill_suffix`."""
        self._require_open()
        level = parse_think(think)
        async with self._bindings.bound(self._handle, continues=True) as bound:
            overflow = bound.record.config.overflow(shift, truncate)
            request = Suffix(self._id(bound), bound.record.key, tuple(messages), level, overflow, CALLER.get())
            return self._follow(bound, await bound.residency.engine.call(request, SuffixStatus))

    def decode(self, options: DecodeOptions | None = None) -> NodeStream:
        """See :meth:`modeld.session.Session.decode`."""
        self._require_open()
        wanted, caller = options or DecodeOptions(), CALLER.get()
        return NodeStream(self, lambda id_, record: Decode(id_, record.key, wanted, client=caller), continues=True)

    def turn(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        think: str = "auto",
        options: DecodeOptions | None = None,
        shift: bool | None = None,
        truncate: bool | None = None,
    ) -> NodeStream:
        """See :meth:`modeld.session.Session.turn`."""
        self._require_open()
        level = parse_think(think)
        conversation, offered, wanted = tuple(messages), tuple(tools), options or DecodeOptions()
        caller = CALLER.get()

        def request(id_: int, record: SessionRecord) -> Turn:
            overflow = record.config.overflow(shift, truncate)
            return Turn(id_, record.key, conversation, wanted, offered, level, overflow=overflow, client=caller)

        return NodeStream(self, request)

    def complete(self, prompt: str | Sequence[int], *, options: DecodeOptions | None = None) -> NodeStream:
        """See :meth:`modeld.session.Session.complete`."""
        self._require_open()
        raw, wanted, caller = raw_prompt(prompt), options or DecodeOptions(), CALLER.get()

        def request(id_: int, record: SessionRecord) -> Turn:
            return Turn(id_, record.key, (), wanted, think="off", client=caller, raw=raw)

        return NodeStream(self, request)

    async def explain(self) -> ContextReport:
        """See :meth:`modeld.session.Session.explain`."""
        self._require_open()
        if (record := self._bindings.away(self._handle)) is not None:
            return record.report()
        async with self._bindings.bound(self._handle) as bound:
            request = Explain(self._id(bound), bound.record.key)
            report = await bound.residency.engine.call(request, ContextReport)
            return msgspec.structs.replace(
                bound.record.history.put_into(report),
                workspace=self._handle.workspace,
                name=self._handle.name,
                model=self._handle.ref.name,
                generation=bound.residency.generation,
            )

    async def snapshot(self) -> SnapshotInfo:
        """See :meth:`modeld.session.Session.snapshot`."""
        self._require_open()
        store = self._bindings.snapshot_store
        async with self._bindings.bound(self._handle, continues=True) as bound:
            record, engine = bound.record, bound.residency.engine
            draft, made = await asyncio.to_thread(store.draft), ""
            ref = msgspec.structs.replace(record.ref, path="")
            # Paths of this machine say nothing where the file may go.
            adapters = tuple(msgspec.structs.replace(adapter, path="") for adapter in record.config.adapters)
            config = msgspec.structs.replace(record.config, adapters=adapters)
            request = Snapshot(self._id(bound), record.key, str(draft), ref, config)
            try:
                # To the end: who gives up must not leave a file behind that the engine still writes.
                call = engine.call(request, SnapshotInfo)
                info = await settled(call, lambda: engine.send(Cancel(request.id)))
                made = info.id
                await settled(asyncio.to_thread(store.publish, draft, made))
            except BaseException:
                await settled(asyncio.to_thread(store.discard, draft, made))
                raise
            return info

    async def restore(self, snapshot_id: str) -> PrefixStatus:
        """See :meth:`modeld.session.Session.restore`."""
        self._require_open()
        path = await asyncio.to_thread(self._bindings.snapshot_store.find, snapshot_id)
        async with self._bindings.bound(self._handle) as bound:
            request = Restore(self._id(bound), bound.record.key, str(path), snapshot_id)
            return self._follow(bound, await bound.residency.engine.call(request, PrefixStatus))

    async def fork(self, name: str, *, workspace: str = "") -> NodeSession:
        """See :meth:`modeld.session.Session.fork`."""
        self._require_open()
        async with self._bindings.bound(self._handle, continues=True) as bound:
            target, fresh = await self._bindings.branch(bound, name, workspace or self._handle.workspace)
            try:
                await bound.residency.engine.call(Fork(self._id(bound), bound.record.key, target.key), type(None))
            except BaseException:
                if fresh:
                    self._bindings.forget(target, bound.residency)
                raise
            handle = msgspec.structs.replace(
                self._handle,
                workspace=target.config.workspace,
                name=target.config.name,
                generation=bound.residency.generation,
                epoch=self._bindings.epoch,
            )
            return NodeSession(self._bindings, handle)

    async def close(self) -> None:
        """See :meth:`modeld.session.Session.close`. In the node's own process an unused session is forgotten."""
        self._closed = True
        record, self._opened = self._opened, None
        if record is not None:
            self._bindings.give_back(record)

    @property
    def bindings(self) -> SessionBindings:
        """Those of the node that the session is on."""
        return self._bindings

    def saw(self, generation: int) -> None:
        """A call ended on this generation."""
        self._handle = msgspec.structs.replace(self._handle, generation=generation, epoch=self._bindings.epoch)

    def _id(self, bound: Bound) -> int:
        return bound.residency.engine.next_id()

    def _follow(self, bound: Bound, status: Status) -> Status:
        self.saw(bound.residency.generation)
        return msgspec.structs.replace(status, receipt=bound.stamp(status.receipt))

    def _require_open(self) -> None:
        if self._closed:
            raise SessionClosedError(f"the handle of session {self._handle.name!r} was closed; open the session again")


class NodeStream(CancellableStream):
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

    async def _cancel(self) -> EndPart:
        if self._stream is None and self._starting is not None and _started(self._starting):
            self._stream = self._starting.result()
        if self._stream is not None:
            return await self._stream.cancel()
        if self._cancelled is None:
            self._cancelled = never_ran()
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
        return self._session.bindings.start_stream(self._session, self._request, continues=self._continues)

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
