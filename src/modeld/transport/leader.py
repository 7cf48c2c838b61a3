"""The node of a data root, whichever process that is: find its owner, prove it, call it, and follow the next one.

What it does *not* do. A call that may have been carried out is not repeated unless that is safe, so ``load``,
``unload`` and ``restore`` fail when the connection breaks under them. What lived in the owner that is gone is gone:
``decode``, ``prefill_suffix``, ``snapshot`` and ``fork`` of a session that another owner served raise ``stale_epoch``
until ``ensure_prefix``, ``turn`` or ``restore`` has put something on its tape again. Receipts say what was lost as far
as this client knew it: by the last receipt it got.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

import msgspec

from modeld.errors import (
    InvalidRequestError,
    SessionClosedError,
)
from modeld.node.record import OwnerRecord
from modeld.session.text_values import raw_prompt
from modeld.session.values import (
    AuditReport,
    ContextReport,
    InstalledModel,
    ModelDescription,
    ModelRef,
    NodeStatus,
    PrefixStatus,
    SessionConfig,
    SessionHandle,
    SessionInfo,
    SnapshotInfo,
    SuffixStatus,
)
from modeld.transport.grpc.client import RemoteNode, RemoteSession
from modeld.transport.grpc.stream import RemoteStream
from modeld.transport.leader_repository import LeaderRepository
from modeld.transport.leader_stream import LeaderStream
from modeld.transport.leader_texts import LeaderTexts
from modeld.transport.route import Route, Starter
from modeld.types import DecodeOptions, Message, Receipt, ReuseStop, Tool

PATIENCE: Final = 5.0
"""Seconds that a call waits for a successor of the owner it lost."""

_MAX_SEED: Final = 2**32 - 2

Status = TypeVar("Status", PrefixStatus, SuffixStatus)


class LeaderNode(LeaderTexts):
    """:class:`modeld.session.ModelService` of whoever owns ``data_root``. Belongs to the event loop it is used in.

    A call whose owner is gone waits for a successor and is repeated there, once, where that is safe.
    ``repository`` is the owner's :class:`modeld.node.gateway.RepositoryService`.

    :param patience: seconds to wait for a successor.
    :param starter: starts a node where none runs; without one the first call fails at once when there is none.
    """

    def __init__(
        self, data_root: str | os.PathLike[str], *, patience: float = PATIENCE, starter: Starter | None = None
    ) -> None:
        self._route = Route(Path(data_root), patience, starter)
        self.repository = LeaderRepository(self._route)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def record(self) -> OwnerRecord:
        """Of the owner that answered last.

        :raises InvalidRequestError: before the first call.
        """
        if self._route.node is None:
            raise InvalidRequestError("nobody was asked yet: call connect first")
        return self._route.node.record

    async def connect(self, seconds: float | None = None) -> None:
        """Find the owner and have it prove that it is the one the record names.

        :param seconds: for all of it, a start included.
        :raises NodeError: see :func:`modeld.connect`.
        """
        await self._route.after(None, seconds=seconds)

    async def open_session(self, ref: ModelRef | str, config: SessionConfig | None = None) -> LeaderSession:
        """See :meth:`modeld.session.ModelService.open_session`."""

        config = config or SessionConfig()

        async def opened(node: RemoteNode) -> SessionHandle:
            handle = (await node.open_session(ref, config)).handle
            return msgspec.structs.replace(handle, epoch=node.record.epoch)

        return LeaderSession(self._route, await self._route.call(opened, repeat=True), config)

    def attach(self, handle: SessionHandle) -> LeaderSession:
        """See :meth:`modeld.session.ModelService.attach`."""
        return LeaderSession(self._route, handle, None)

    async def describe(self, ref: ModelRef | str, config: SessionConfig | None = None) -> ModelDescription:
        """See :meth:`modeld.session.ModelService.describe`."""
        return await self._route.call(lambda node: node.describe(ref, config), repeat=True)

    async def models(self) -> list[InstalledModel]:
        """See :meth:`modeld.session.ModelService.models`."""
        return await self._route.call(lambda node: node.models(), repeat=True)

    async def load(
        self, ref: ModelRef | str, config: SessionConfig | None = None, *, generation: int = 0
    ) -> NodeStatus:
        """See :meth:`modeld.session.ModelService.load`."""
        return await self._route.call(lambda node: node.load(ref, config, generation=generation), repeat=False)

    async def unload(self, *, generation: int = 0) -> NodeStatus:
        """See :meth:`modeld.session.ModelService.unload`."""
        return await self._route.call(lambda node: node.unload(generation=generation), repeat=False)

    async def status(self) -> NodeStatus:
        """See :meth:`modeld.session.ModelService.status`."""
        return await self._route.call(lambda node: node.status(), repeat=True)

    async def sessions(self) -> list[SessionInfo]:
        """See :meth:`modeld.session.ModelService.sessions`."""
        return await self._route.call(lambda node: node.sessions(), repeat=True)

    async def audit(self) -> AuditReport:
        """See :meth:`modeld.session.ModelService.audit`."""
        return await self._route.call(lambda node: node.audit(), repeat=True)

    async def remove_session(self, name: str, *, workspace: str = "default", model: str = "") -> None:
        """See :meth:`modeld.session.ModelService.remove_session`."""

        async def removed(node: RemoteNode) -> None:
            await node.remove_session(name, workspace=workspace, model=model)

        await self._route.call(removed, repeat=False)

    async def snapshots(self) -> list[SnapshotInfo]:
        """See :meth:`modeld.session.ModelService.snapshots`."""
        return await self._route.call(lambda node: node.snapshots(), repeat=True)

    async def remove_snapshot(self, snapshot_id: str) -> None:
        """See :meth:`modeld.session.ModelService.remove_snapshot`."""
        await self._route.call(lambda node: node.remove_snapshot(snapshot_id), repeat=False)

    async def export_snapshot(self, snapshot_id: str) -> AsyncGenerator[bytes, None]:
        """See :meth:`modeld.session.ModelService.export_snapshot`. An owner that is lost ends it."""
        node = await self._route.current(sure=True)
        async with contextlib.aclosing(node.export_snapshot(snapshot_id)) as pieces:
            async for data in pieces:
                yield data

    async def import_snapshot(self, data: AsyncIterable[bytes], *, snapshot_id: str = "") -> SnapshotInfo:
        """See :meth:`modeld.session.ModelService.import_snapshot`. An owner that is lost ends it."""
        node = await self._route.current(sure=True)
        return await node.import_snapshot(data, snapshot_id=snapshot_id)

    async def shutdown(self) -> None:
        """Ask the node that answered last to end, and no successor of it. It answers first."""
        if self._route.node is None:
            await self.connect()
        assert self._route.node is not None
        await self._route.node.shutdown()

    async def aclose(self) -> None:
        """Close the connection. Calls that still run fail with ``unreachable``. Safe to call twice."""
        await self._route.aclose()


class LeaderSession:
    """:class:`modeld.session.Session` by name: on a new owner it is the session of the same name there.

    It holds the handle and what its last receipt said is resident.

    :param config: how it was opened, and is opened again on a new owner; ``None``: that is not known here.
    """

    def __init__(self, route: Route, handle: SessionHandle, config: SessionConfig | None) -> None:
        self._route = route
        self._handle = handle
        self._config = config
        self._resident = 0
        self._closed = False

    @property
    def handle(self) -> SessionHandle:
        """See :attr:`modeld.session.Session.handle`."""
        return self._handle

    async def ensure_prefix(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> PrefixStatus:
        """See :meth:`modeld.session.Session.ensure_prefix`."""

        async def ensured(node: RemoteNode) -> PrefixStatus:
            return self._settled(node, await (await self._on(node)).ensure_prefix(messages, tools))

        return await self._route.call(ensured, repeat=True)

    async def prefill_suffix(
        self,
        messages: Sequence[Message],
        *,
        think: str = "auto",
        shift: bool | None = None,
        truncate: bool | None = None,
    ) -> SuffixStatus:
        """See :meth:`modeld.session.Session.prefill_suffix`.

        :raises StaleEpochError: the owner that had the prefix is gone, and its successor has it not; nothing was done.
        """
        self._require_open()
        node = await self._route.current()
        session = await self._on(node)
        status = await session.prefill_suffix(messages, think=think, shift=shift, truncate=truncate)
        return self._settled(node, status)

    def decode(self, options: DecodeOptions | None = None) -> LeaderStream:
        """See :meth:`modeld.session.Session.decode`. A decode that began is not repeated on another owner.

        :raises StaleEpochError: from the stream: the owner that had the tape is gone, and its successor has it not.
        """
        self._require_open()

        async def start(node: RemoteNode) -> RemoteStream:
            return (await self._on(node)).decode(options)

        return LeaderStream(self._route, self._route.current, start, self.settle)

    def turn(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        think: str = "auto",
        options: DecodeOptions | None = None,
        shift: bool | None = None,
        truncate: bool | None = None,
    ) -> LeaderStream:
        """See :meth:`modeld.session.Session.turn`.

        When the owner is lost before the end, its successor is asked the same with the same seed. What the caller has
        already is compared and left out, and a warning ``owner_changed`` comes before what follows it.

        :raises NodeUnreachableError: from the stream: no successor turned up, or its answer is another one than what
            was delivered (``delivered`` characters): nothing is repeated or mixed.
        """
        self._require_open()
        options = _seeded(options)
        asked = tuple(messages), tuple(tools)

        async def start(node: RemoteNode) -> RemoteStream:
            session = await self._on(node)
            return session.turn(asked[0], tools=asked[1], think=think, options=options, shift=shift, truncate=truncate)

        return LeaderStream(self._route, self._route.current, start, self.settle, repeat=True)

    def complete(self, prompt: str | Sequence[int], *, options: DecodeOptions | None = None) -> LeaderStream:
        """See :meth:`modeld.session.Session.complete`; a lost owner is as in :meth:`turn`."""
        self._require_open()
        options, raw = _seeded(options), raw_prompt(prompt)

        async def start(node: RemoteNode) -> RemoteStream:
            return (await self._on(node)).complete(raw.text or raw.tokens, options=options)

        return LeaderStream(self._route, self._route.current, start, self.settle, repeat=True)

    async def explain(self) -> ContextReport:
        """See :meth:`modeld.session.Session.explain`."""

        async def explained(node: RemoteNode) -> ContextReport:
            return await (await self._on(node)).explain()

        return await self._route.call(explained, repeat=True)

    async def snapshot(self) -> SnapshotInfo:
        """See :meth:`modeld.session.Session.snapshot`.

        :raises StaleEpochError: the owner that had the tape is gone, and its successor has it not; nothing was saved.
        """
        self._require_open()
        return await (await self._on(await self._route.current(sure=True))).snapshot()

    async def restore(self, snapshot_id: str) -> PrefixStatus:
        """See :meth:`modeld.session.Session.restore`."""

        async def restored(node: RemoteNode) -> PrefixStatus:
            return self._settled(node, await (await self._on(node)).restore(snapshot_id))

        return await self._route.call(restored, repeat=False)

    async def fork(self, name: str, *, workspace: str = "") -> LeaderSession:
        """See :meth:`modeld.session.Session.fork`.

        :raises StaleEpochError: the owner that had the tape is gone, and its successor has it not; nothing was copied.
        """
        self._require_open()
        made = await (await self._on(await self._route.current(sure=True))).fork(name, workspace=workspace)
        handle = made.handle
        config = self._config and msgspec.structs.replace(self._config, workspace=handle.workspace, name=handle.name)
        copy = LeaderSession(self._route, handle, config)
        copy._resident = self._resident
        return copy

    async def close(self) -> None:
        """Forget the handle: the node holds nothing for it. Safe to call twice."""
        self._closed = True

    def settle(self, node: RemoteNode, receipt: Receipt, repeated: bool) -> Receipt:
        """Take over what a call on ``node`` left behind, and complete its receipt by what only this side knows.

        :param repeated: an owner was lost while this very call ran on it.
        """
        before, now = self._handle.epoch, node.record.epoch
        if now < before:
            return receipt  # an end that came late: the handle is a newer owner's already
        moved = now != before or repeated
        if moved and not (receipt.reused or receipt.restored) and receipt.stop is None and (repeated or self._resident):
            detail = f"the owner before epoch {now} is gone, and with it the KV of {self._resident} tokens"
            stop = ReuseStop(reason="engine_lost", detail=detail, advice="the log of that node says why it ended")
            receipt = msgspec.structs.replace(receipt, dropped=receipt.dropped + self._resident)
            receipt = receipt.charged(stop, self._resident)
        if repeated and not receipt.rebound:
            receipt = msgspec.structs.replace(receipt, rebound=True)
        self._resident = receipt.resident
        generation = receipt.generation or self._handle.generation
        self._handle = msgspec.structs.replace(self._handle, generation=generation, epoch=now)
        return receipt

    def _settled(self, node: RemoteNode, status: Status) -> Status:
        return msgspec.structs.replace(status, receipt=self.settle(node, status.receipt, False))

    async def _on(self, node: RemoteNode) -> RemoteSession:
        """The session there. The handle stays the one of before, so that the node's receipt says ``rebound``.

        :raises SessionClosedError: after :meth:`close`.
        """
        self._require_open()
        if self._config is not None and node.record.epoch != self._handle.epoch:
            # A handle does not say how the session was opened: context, KV type, class, pin.
            await node.open_session(self._handle.ref, self._config)
        return node.attach(self._handle)

    def _require_open(self) -> None:
        if self._closed:
            raise SessionClosedError(f"session {self._handle.name!r} was closed here; open it again")


def _seeded(options: DecodeOptions | None) -> DecodeOptions:
    """The same with a seed, where chance decides.

    Drawn here: the node tells its own only at the end, which a lost owner does not reach.
    """
    options = options or DecodeOptions()
    if options.seed is None and options.temperature > 0:
        return msgspec.structs.replace(options, seed=secrets.randbelow(_MAX_SEED + 1))
    return options
