"""The node's gRPC server: raw bytes in, a call of the service, typed errors out.

Requests are parsed inside the handlers, so that bytes of any kind end in ``invalid_request``. Everything runs in one
asyncio loop; the server holds no state but the streams that run.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import stat
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, cast

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from msgspec import Struct, structs

from modeld._version import __version__
from modeld.errors import InvalidRequestError, NodeError, PermissionDeniedError, StaleEpochError
from modeld.node.caller import CALLER
from modeld.node.gateway import RepositoryService
from modeld.session.contract import ModelService, PartStream, Session
from modeld.session.values import NodeStatus
from modeld.transport.convert import from_bytes, to_bytes
from modeld.transport.errors import DETAILS_KEY, public_error, to_status
from modeld.transport.grpc.auth import TokenRequired
from modeld.transport.grpc.callers import Callers
from modeld.transport.grpc.chunks import ChunkCalls
from modeld.transport.grpc.options import server_options, target
from modeld.transport.grpc.relay import Context, StreamRelay
from modeld.transport.grpc.repository_server import RepositoryCalls
from modeld.transport.grpc.text_calls import text_calls
from modeld.transport.methods import (
    EPOCH_KEY,
    METHODS,
    PROTOCOL,
    SERVICE,
    CancelReply,
    CancelRequest,
    DecodeRequest,
    Empty,
    EnsurePrefixRequest,
    ForkRequest,
    HelloReply,
    HelloRequest,
    InstalledModels,
    Method,
    ModelRequest,
    PrefillSuffixRequest,
    RemoveSessionRequest,
    RestoreRequest,
    SessionInfos,
    SessionRequest,
    SnapshotInfos,
    SnapshotRequest,
    TurnRequest,
    identity_proof,
)
from modeld.transport.repository_methods import REPOSITORY, REPOSITORY_METHODS
from modeld.transport.security import TLS_SCHEME, Listener, require_loopback

log = logging.getLogger(__name__)

Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"

_METHODS = {method.name: method for method in METHODS}


class GrpcServer:
    """Serves a :class:`ModelService` over a unix socket, and over TCP where asked, to those who have the token.

    :param instance_id: of the owner; proved to clients, never sent. :param epoch: calls of another one are refused.
    :param on_shutdown: called in the loop once the answer to ``Shutdown`` is out.
    :param gateway: served as ``modeld.v1.Repository``; ``None``: that service is not there.
    """

    def __init__(
        self,
        service: ModelService,
        *,
        instance_id: str,
        epoch: int,
        on_shutdown: Callable[[], None],
        gateway: RepositoryService | None = None,
    ) -> None:
        self._service = service
        self._gateway = gateway
        self._instance_id = instance_id
        self._epoch = epoch
        self._on_shutdown = on_shutdown
        self._streams = StreamRelay()
        self._chunks = ChunkCalls(service)
        self._callers = Callers()
        self._health = health.aio.HealthServicer()
        self._servers: list[grpc.aio.Server] = []
        self._socket: tuple[Path, os.stat_result] | None = None

    async def start(self, unix_path: Path, tcp: Listener | None = None) -> tuple[str, ...]:
        """Listen, and return the endpoints, the unix socket first.

        Call it as the owner only: what lies at ``unix_path`` is taken for the socket of a dead one and replaced.

        :raises TLSRequiredError: a TCP address beyond loopback, without TLS.
        :raises InvalidRequestError: a path that is no socket or too long, a taken port.
        """
        if self._servers:
            raise InvalidRequestError("this server was started already; make a new one")
        endpoints = [f"unix:{unix_path}"]
        # Two servers, so that no look at a peer's name decides who needs the token: the file's mode guards the socket.
        servers = [self._make(local=True)]
        if tcp is not None:
            servers.append(self._make(TokenRequired(tcp.token), local=False))
            endpoints.append(_listen(servers[1], tcp))
        with _unix_socket(servers[0], unix_path):
            for server in servers:
                await server.start()
        self._servers = servers
        self._socket = (unix_path, os.lstat(unix_path))
        for name in self._services():
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return tuple(endpoints)

    async def stop(self, grace: float | None = None) -> None:
        """Refuse new calls, give running ones ``grace`` seconds, cancel the rest. Safe to call twice."""
        if not self._servers:
            return
        await self._health.enter_graceful_shutdown()
        await asyncio.gather(*(server.stop(grace) for server in self._servers))
        if self._socket is not None:
            path, mine = self._socket
            self._socket = None
            # A successor may have put its own there.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.lstat(path), mine):
                    path.unlink()

    def _services(self) -> tuple[str, ...]:
        return (SERVICE,) if self._gateway is None else (SERVICE, REPOSITORY)

    def _make(self, *interceptors: grpc.aio.ServerInterceptor, local: bool) -> grpc.aio.Server:
        server = grpc.aio.server(interceptors=interceptors, options=server_options())
        handlers = {SERVICE: self._handlers()}
        if self._gateway is not None:
            handlers[REPOSITORY] = self._repository_handlers(self._gateway, local)
        server.add_generic_rpc_handlers(
            tuple(grpc.method_handlers_generic_handler(name, served) for name, served in handlers.items())
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        reflection.enable_server_reflection((*self._services(), health.SERVICE_NAME, reflection.SERVICE_NAME), server)
        return server

    def _handlers(self) -> dict[str, Handler]:
        calls = self._calls()
        streams = {
            "Decode": lambda request, context: self._streams.relay(request.request_id, self._decode(request), context),
            "Turn": lambda request, context: self._streams.relay(request.request_id, self._turn(request), context),
            "ExportSnapshot": self._chunks.send,
        }
        served = {name: self._unary(_METHODS[name], call) for name, call in calls.items()}
        served |= {name: self._streaming(_METHODS[name], relay) for name, relay in streams.items()}
        return {**served, "ImportSnapshot": self._receiving(_METHODS["ImportSnapshot"])}

    def _repository_handlers(self, gateway: RepositoryService, local: bool) -> dict[str, Handler]:
        served = RepositoryCalls(gateway)
        calls = served.unary()
        return {
            method.name: self._unary(method, calls[method.name] if local or not method.local else _refused(method))
            if method.reply
            else self._streaming(method, served.stream)
            for method in REPOSITORY_METHODS
        }

    def _unary(self, method: Method, call: Callable[[Any], Awaitable[Struct]]) -> Handler:
        async def handle(data: bytes, context: Context) -> bytes:
            try:
                CALLER.set(self._callers.heard(context))
                self._check_epoch(method, context)
                reply = to_bytes(await call(from_bytes(method.request, data)))
            except Exception as error:
                await _abort(context, method, error)
            if method.name == "Shutdown":
                # Not before: the answer must be out when the server starts to stop.
                context.add_done_callback(cast("Any", lambda _: self._on_shutdown()))
            return reply

        return grpc.unary_unary_rpc_method_handler(cast("Any", handle))

    def _streaming(self, method: Method, relay: Callable[[Any, Context], Awaitable[None]]) -> Handler:
        async def handle(data: bytes, context: Context) -> None:
            try:
                CALLER.set(self._callers.heard(context))
                self._check_epoch(method, context)
                await relay(from_bytes(method.request, data), context)
            except grpc.aio.InternalError:
                # A part could not be written: the reader has gone, and the stream was closed on the way here.
                log.debug("%s: the client left", method.name)
            except Exception as error:
                await _abort(context, method, error)

        return grpc.unary_stream_rpc_method_handler(cast("Any", handle))

    def _receiving(self, method: Method) -> Handler:
        async def handle(requests: AsyncIterator[bytes], context: Context) -> bytes:
            try:
                self._callers.heard(context)
                self._check_epoch(method, context)
                return to_bytes(await self._chunks.receive(requests))
            except Exception as error:
                await _abort(context, method, error)

        return grpc.stream_unary_rpc_method_handler(cast("Any", handle))

    def _check_epoch(self, method: Method, context: Context) -> None:
        if not method.fenced:
            return
        metadata = context.invocation_metadata() or ()
        values = [value for key, value in metadata if key == EPOCH_KEY]
        if not values:
            if context.peer().startswith("unix:"):
                return
            raise InvalidRequestError(f"over TCP {method.name} needs the metadata {EPOCH_KEY}", parameter=EPOCH_KEY)
        text = str(values[0])
        if len(values) > 1 or not (text.isascii() and text.isdigit() and len(text) < 20):
            raise InvalidRequestError(f"{EPOCH_KEY} is one whole number, not {text[:40]!r}", parameter=EPOCH_KEY)
        if int(text) != self._epoch:
            raise StaleEpochError(
                f"the call is meant for epoch {text} and this owner has {self._epoch}; connect again",
                epoch=int(text),
                current=self._epoch,
            )

    def _calls(self) -> dict[str, Callable[[Any], Awaitable[Struct]]]:
        return {
            "Hello": self._hello,
            "Status": self._status,
            "ListModels": self._list_models,
            "ListSessions": self._list_sessions,
            "Audit": lambda request: self._service.audit(),
            "Describe": lambda request: self._service.describe(request.ref, request.config),
            "Load": lambda request: self._service.load(request.ref, request.config, generation=request.generation),
            "Unload": lambda request: self._service.unload(generation=request.generation),
            **text_calls(self._service),
            "OpenSession": self._open_session,
            "EnsurePrefix": self._ensure_prefix,
            "PrefillSuffix": self._prefill_suffix,
            "Cancel": self._cancel,
            "Explain": lambda request: self._session(request).explain(),
            "Snapshot": lambda request: self._session(request).snapshot(),
            "Restore": self._restore,
            "Fork": self._fork,
            "RemoveSession": self._remove_session,
            "ListSnapshots": self._list_snapshots,
            "RemoveSnapshot": self._remove_snapshot,
            "Shutdown": self._shutdown,
        }

    def _session(
        self,
        request: SessionRequest
        | EnsurePrefixRequest
        | PrefillSuffixRequest
        | DecodeRequest
        | TurnRequest
        | RestoreRequest
        | ForkRequest,
    ) -> Session:
        return self._service.attach(request.handle)

    async def _hello(self, request: HelloRequest) -> HelloReply:
        if not 16 <= len(request.nonce) <= 64:
            raise InvalidRequestError(f"a nonce has 16 to 64 bytes, not {len(request.nonce)}", parameter="nonce")
        proof = identity_proof(self._instance_id, self._epoch, request.nonce)
        return HelloReply(protocol=PROTOCOL, version=__version__, proof=proof)

    async def _status(self, request: Empty) -> NodeStatus:
        return structs.replace(await self._service.status(), clients=self._callers.latest())

    async def _list_models(self, request: Empty) -> InstalledModels:
        return InstalledModels(models=tuple(await self._service.models()))

    async def _list_sessions(self, request: Empty) -> SessionInfos:
        return SessionInfos(sessions=tuple(await self._service.sessions()))

    async def _open_session(self, request: ModelRequest) -> Struct:
        return (await self._service.open_session(request.ref, request.config)).handle

    async def _ensure_prefix(self, request: EnsurePrefixRequest) -> Struct:
        return await self._session(request).ensure_prefix(request.messages, request.tools)

    async def _prefill_suffix(self, request: PrefillSuffixRequest) -> Struct:
        return await self._session(request).prefill_suffix(
            request.messages, think=request.think, shift=request.shift, truncate=request.truncate
        )

    def _decode(self, request: DecodeRequest) -> PartStream:
        return self._session(request).decode(request.options)

    def _turn(self, request: TurnRequest) -> PartStream:
        if request.raw is not None:
            prompt = request.raw.tokens or request.raw.text
            return self._session(request).complete(prompt, options=request.options)
        return self._session(request).turn(
            request.messages,
            tools=request.tools,
            think=request.think,
            options=request.options,
            shift=request.shift,
            truncate=request.truncate,
        )

    async def _cancel(self, request: CancelRequest) -> CancelReply:
        return CancelReply(found=await self._streams.cancel(request.request_id))

    async def _restore(self, request: RestoreRequest) -> Struct:
        return await self._session(request).restore(request.snapshot_id)

    async def _fork(self, request: ForkRequest) -> Struct:
        return (await self._session(request).fork(request.name, workspace=request.workspace)).handle

    async def _remove_session(self, request: RemoveSessionRequest) -> Empty:
        await self._service.remove_session(request.name, workspace=request.workspace, model=request.model)
        return Empty()

    async def _list_snapshots(self, request: Empty) -> SnapshotInfos:
        return SnapshotInfos(snapshots=tuple(await self._service.snapshots()))

    async def _remove_snapshot(self, request: SnapshotRequest) -> Empty:
        await self._service.remove_snapshot(request.snapshot_id)
        return Empty()

    async def _shutdown(self, request: Empty) -> Empty:
        return request


async def _abort(context: Context, method: Method, error: Exception) -> NoReturn:
    status = to_status(public_error(error, method.name))
    code = next(code for code in grpc.StatusCode if code.value[0] == status.code)
    await context.abort(code, status.message, ((DETAILS_KEY, status.SerializeToString()),))


def _refused(method: Method) -> Callable[[Any], Awaitable[Struct]]:
    async def refuse(request: Struct) -> Struct:
        raise PermissionDeniedError(
            f"{method.name} is taken over the unix socket only: run `modeld backends` on the node's own machine"
        )

    return refuse


def _listen(server: grpc.aio.Server, listener: Listener) -> str:
    """Bind, and return the endpoint."""
    identity = listener.identity
    if identity is None:
        require_loopback(listener.host, "listen")
        credentials = None
    else:
        credentials = grpc.ssl_server_credentials([(identity.key, identity.chain)])
    port = _bind(server, listener.address, credentials)
    return ("" if credentials is None else TLS_SCHEME) + f"{listener.address.rpartition(':')[0]}:{port}"


def _bind(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None = None) -> int:
    try:
        if credentials is not None:
            return server.add_secure_port(address, credentials)
        return server.add_insecure_port(address)
    except RuntimeError as error:
        raise InvalidRequestError(f"cannot listen on {address}: {error}", parameter="listen") from None


@contextlib.contextmanager
def _unix_socket(server: grpc.aio.Server, path: Path) -> Iterator[None]:
    """Bind a socket of mode 0600 and, when the body has started the server, put it at ``path``.

    It is bound in a new folder of mode 0700, so there is no moment at which its mode is that of the umask. The rename
    replaces a dead owner's socket in one step, and gRPC, which unlinks the path it bound, cannot unlink a successor's.
    """
    if len(os.fsencode(path)) > 100:
        raise InvalidRequestError(f"a unix socket path has at most 100 bytes, {path} is longer", parameter="unix_path")
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise NodeError(f"{path} is in the way of the socket and is none; move it", path=str(path))
    with tempfile.TemporaryDirectory(prefix=".", dir=path.parent) as folder:
        bound = Path(folder, "s")
        _bind(server, target(f"unix:{bound}"))
        bound.chmod(0o600)
        yield
        bound.rename(path)
