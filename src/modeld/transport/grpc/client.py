"""A node over gRPC: the same service, sessions and streams as in process."""

from __future__ import annotations

import hmac
import os
from collections.abc import AsyncGenerator, AsyncIterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Self

import msgspec

from modeld.errors import DeadlineExceededError, SessionClosedError
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
from modeld.transport.grpc.chunks import download, upload
from modeld.transport.grpc.options import NO_ACCESS, Access
from modeld.transport.grpc.repository_client import RemoteRepository
from modeld.transport.grpc.stream import RemoteStream
from modeld.transport.grpc.text_calls import TextClient
from modeld.transport.grpc.wire import Wire
from modeld.transport.methods import (
    PROTOCOL,
    DecodeRequest,
    Empty,
    EnsurePrefixRequest,
    ForkRequest,
    HelloReply,
    HelloRequest,
    InstalledModels,
    LoadRequest,
    ModelRequest,
    PrefillSuffixRequest,
    RemoveSessionRequest,
    RestoreRequest,
    SessionInfos,
    SessionRequest,
    SnapshotInfos,
    SnapshotRequest,
    TurnRequest,
    UnloadRequest,
    identity_proof,
)
from modeld.types import DecodeOptions, Message, Receipt, Tool

if TYPE_CHECKING:
    from modeld.node.record import OwnerRecord


class RemoteNode(TextClient):
    """A connection to the node that ``record`` names. It belongs to the event loop it was made in.

    Nothing is sent before the first call, and only :meth:`prove` finds out who answers. A node that took over since is
    not followed: calls that change something fail with ``stale_epoch``, and connecting again is the caller's.

    ``repository`` is the node's :class:`modeld.node.gateway.RepositoryService`.

    :param endpoint: ``unix:/path``, ``HOST:PORT`` or ``modeld+tls://HOST:PORT``, one of the record's.
    :param timeout: seconds that each call, and each stream as a whole, may take; ``None`` is no deadline.
    :param access: token and certificate, for TCP.
    :raises TLSRequiredError: the endpoint is plain TCP beyond loopback.
    """

    def __init__(
        self, endpoint: str, record: OwnerRecord, *, timeout: float | None = None, access: Access = NO_ACCESS
    ) -> None:
        self.record = record
        self._wire = Wire(endpoint, record, timeout, access)
        self.repository = RemoteRepository(self._wire)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def prove(self, seconds: float | None = None) -> None:
        """Check that who answers is the instance of the record, and speaks this protocol.

        :raises NodeUnreachableError: nobody answers in time, or it is somebody else.
        """
        nonce = os.urandom(32)
        try:
            reply = await self._wire.call("Hello", HelloRequest(nonce=nonce), HelloReply, seconds=seconds)
        except DeadlineExceededError as error:
            raise self._wire.unreachable(f"the node did not answer within {seconds:g} s") from error
        expected = identity_proof(self.record.instance_id, self.record.epoch, nonce)
        if not hmac.compare_digest(reply.proof, expected):
            raise self._wire.unreachable("somebody else answers: another instance than the owner record names")
        if reply.protocol != PROTOCOL:
            versions = f"protocol {reply.protocol} (version {reply.version}), this client {PROTOCOL}"
            raise self._wire.unreachable(f"the node speaks {versions}; restart the older one")

    async def open_session(self, ref: ModelRef | str, config: SessionConfig | None = None) -> RemoteSession:
        """See :meth:`modeld.session.ModelService.open_session`."""
        return self.attach(await self._wire.call("OpenSession", _model_request(ref, config), SessionHandle))

    def attach(self, handle: SessionHandle) -> RemoteSession:
        """See :meth:`modeld.session.ModelService.attach`."""
        return RemoteSession(self._wire, handle)

    async def describe(self, ref: ModelRef | str, config: SessionConfig | None = None) -> ModelDescription:
        """See :meth:`modeld.session.ModelService.describe`."""
        return await self._wire.call("Describe", _model_request(ref, config), ModelDescription)

    async def models(self) -> list[InstalledModel]:
        """See :meth:`modeld.session.ModelService.models`."""
        return list((await self._wire.call("ListModels", Empty(), InstalledModels)).models)

    async def load(
        self, ref: ModelRef | str, config: SessionConfig | None = None, *, generation: int = 0
    ) -> NodeStatus:
        """See :meth:`modeld.session.ModelService.load`."""
        request = LoadRequest(ref=ModelRef.of(ref), config=config and config.absolute(), generation=generation)
        return await self._wire.call("Load", request, NodeStatus)

    async def unload(self, *, generation: int = 0) -> NodeStatus:
        """See :meth:`modeld.session.ModelService.unload`."""
        return await self._wire.call("Unload", UnloadRequest(generation=generation), NodeStatus)

    async def status(self) -> NodeStatus:
        """See :meth:`modeld.session.ModelService.status`."""
        return await self._wire.call("Status", Empty(), NodeStatus)

    async def sessions(self) -> list[SessionInfo]:
        """See :meth:`modeld.session.ModelService.sessions`."""
        return list((await self._wire.call("ListSessions", Empty(), SessionInfos)).sessions)

    async def audit(self) -> AuditReport:
        """See :meth:`modeld.session.ModelService.audit`."""
        return await self._wire.call("Audit", Empty(), AuditReport)

    async def remove_session(self, name: str, *, workspace: str = "default", model: str = "") -> None:
        """See :meth:`modeld.session.ModelService.remove_session`."""
        request = RemoveSessionRequest(name=name, workspace=workspace, model=model)
        await self._wire.call("RemoveSession", request, Empty)

    async def snapshots(self) -> list[SnapshotInfo]:
        """See :meth:`modeld.session.ModelService.snapshots`."""
        return list((await self._wire.call("ListSnapshots", Empty(), SnapshotInfos)).snapshots)

    async def remove_snapshot(self, snapshot_id: str) -> None:
        """See :meth:`modeld.session.ModelService.remove_snapshot`."""
        await self._wire.call("RemoveSnapshot", SnapshotRequest(snapshot_id=snapshot_id), Empty)

    def export_snapshot(self, snapshot_id: str) -> AsyncGenerator[bytes, None]:
        """See :meth:`modeld.session.ModelService.export_snapshot`."""
        return download(self._wire, snapshot_id)

    async def import_snapshot(self, data: AsyncIterable[bytes], *, snapshot_id: str = "") -> SnapshotInfo:
        """See :meth:`modeld.session.ModelService.import_snapshot`."""
        return await upload(self._wire, data, snapshot_id)

    async def shutdown(self) -> None:
        """Ask the node to end. It answers first; that it is gone shows in its lock."""
        await self._wire.call("Shutdown", Empty(), Empty)

    async def aclose(self) -> None:
        """Close the connection. Calls that still run fail with ``unreachable``. Safe to call twice."""
        await self._wire.aclose()


class RemoteSession:
    """A session on a node. It holds nothing but the handle, whose generation follows the receipts."""

    def __init__(self, wire: Wire, handle: SessionHandle) -> None:
        self._wire = wire
        self._handle = handle
        self._closed = False

    @property
    def handle(self) -> SessionHandle:
        """See :attr:`modeld.session.Session.handle`."""
        return self._handle

    async def ensure_prefix(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> PrefixStatus:
        """See :meth:`modeld.session.Session.ensure_prefix`."""
        request = EnsurePrefixRequest(handle=self._live_handle(), messages=tuple(messages), tools=tuple(tools))
        status = await self._wire.call("EnsurePrefix", request, PrefixStatus)
        self._follow(status.receipt)
        return status

    async def prefill_suffix(
        self,
        messages: Sequence[Message],
        *,
        think: str = "auto",
        shift: bool | None = None,
        truncate: bool | None = None,
    ) -> SuffixStatus:
        """See :meth:`modeld.session.Session.prefill_suffix`."""
        request = PrefillSuffixRequest(
            handle=self._live_handle(), messages=tuple(messages), think=think, shift=shift, truncate=truncate
        )
        status = await self._wire.call("PrefillSuffix", request, SuffixStatus)
        self._follow(status.receipt)
        return status

    def decode(self, options: DecodeOptions | None = None) -> RemoteStream:
        """See :meth:`modeld.session.Session.decode`."""
        self._live_handle()
        return RemoteStream(
            self._wire,
            "Decode",
            lambda id_: DecodeRequest(handle=self._live_handle(), options=options, request_id=id_),
            self._follow,
        )

    def turn(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        think: str = "auto",
        options: DecodeOptions | None = None,
        shift: bool | None = None,
        truncate: bool | None = None,
    ) -> RemoteStream:
        """See :meth:`modeld.session.Session.turn`."""
        template = TurnRequest(
            handle=self._live_handle(),
            messages=tuple(messages),
            tools=tuple(tools),
            think=think,
            options=options,
            shift=shift,
            truncate=truncate,
        )
        return self._turn(template)

    def complete(self, prompt: str | Sequence[int], *, options: DecodeOptions | None = None) -> RemoteStream:
        """See :meth:`modeld.session.Session.complete`."""
        return self._turn(TurnRequest(handle=self._live_handle(), raw=raw_prompt(prompt), options=options))

    def _turn(self, template: TurnRequest) -> RemoteStream:
        # The handle of the moment it starts: another call may have moved the generation on.
        return RemoteStream(
            self._wire,
            "Turn",
            lambda id_: msgspec.structs.replace(template, handle=self._live_handle(), request_id=id_),
            self._follow,
        )

    async def explain(self) -> ContextReport:
        """See :meth:`modeld.session.Session.explain`."""
        return await self._wire.call("Explain", SessionRequest(handle=self._live_handle()), ContextReport)

    async def snapshot(self) -> SnapshotInfo:
        """See :meth:`modeld.session.Session.snapshot`."""
        return await self._wire.call("Snapshot", SessionRequest(handle=self._live_handle()), SnapshotInfo)

    async def restore(self, snapshot_id: str) -> PrefixStatus:
        """See :meth:`modeld.session.Session.restore`."""
        request = RestoreRequest(handle=self._live_handle(), snapshot_id=snapshot_id)
        status = await self._wire.call("Restore", request, PrefixStatus)
        self._follow(status.receipt)
        return status

    async def fork(self, name: str, *, workspace: str = "") -> RemoteSession:
        """See :meth:`modeld.session.Session.fork`."""
        request = ForkRequest(handle=self._live_handle(), name=name, workspace=workspace)
        made = await self._wire.call("Fork", request, SessionHandle)
        return RemoteSession(self._wire, msgspec.structs.replace(made, epoch=self._wire.epoch))

    async def close(self) -> None:
        """Forget the handle: the node holds nothing for it. Safe to call twice."""
        self._closed = True

    def _live_handle(self) -> SessionHandle:
        """The handle.

        :raises SessionClosedError: after :meth:`close`.
        """
        if self._closed:
            raise SessionClosedError(f"session {self._handle.name!r} was closed here; open it again")
        return self._handle

    def _follow(self, receipt: Receipt) -> None:
        """Take over the generation that served a call, and the epoch: its fence let the call pass."""
        seen = (receipt.generation, self._wire.epoch)
        if receipt.generation and seen != (self._handle.generation, self._handle.epoch):
            self._handle = msgspec.structs.replace(self._handle, generation=seen[0], epoch=seen[1])


def _model_request(ref: ModelRef | str, config: SessionConfig | None) -> ModelRequest:
    return ModelRequest(ref=ModelRef.of(ref), config=config and config.absolute())
