"""The client without ``await``: the same names, the same errors, plain iterators.

A thread of its own runs the event loop; several threads may call. Inside a running event loop it blocks like any other
blocking code: use :mod:`modeld.client` there.

    with modeld.sync.connect() as node:
        session = node.open_session("tiny")
        with session.turn([modeld.Message("user", "Hello")]) as stream:
            for part in stream: ...
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator
from functools import partial, wraps
from types import TracebackType
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar, TypeVarTuple

from anyio import to_thread
from anyio.from_thread import BlockingPortal, start_blocking_portal

from modeld import client
from modeld.errors import InvalidRequestError
from modeld.node.gateway import RepositoryService
from modeld.repository.contract import AnswerStream
from modeld.session.contract import ModelService, PartStream, Session
from modeld.session.streams import BatchedStream
from modeld.session.values import SessionHandle, SnapshotInfo
from modeld.types import StreamPart

if TYPE_CHECKING:
    from modeld.node.record import OwnerRecord
    from modeld.transport.leader import LeaderNode, LeaderSession
    from modeld.transport.leader_repository import LeaderRepository
    from modeld.transport.leader_stream import LeaderStream

P = ParamSpec("P")
R = TypeVar("R")
Args = TypeVarTuple("Args")


class _Portal:
    """The way into the event loop's thread, and whether it is still there."""

    def __init__(self, inner: BlockingPortal) -> None:
        self._inner = inner
        self.closed = False

    def call(self, function: Callable[[*Args], Awaitable[R]], /, *args: *Args) -> R:
        """The function's result, waited for.

        :raises InvalidRequestError: the client was closed.
        """
        try:
            if not self.closed:
                return self._inner.call(function, *args)
        except RuntimeError:
            if not self.closed:
                raise
        raise InvalidRequestError("this connection was closed; connect again")


class _Facade:
    """Something of the event loop, and the portal that leads there. Any: the methods below name what they call."""

    def __init__(self, portal: _Portal, inner: Any) -> None:
        self._portal = portal
        self._inner = inner

    def _run(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return self._portal.call(partial(getattr(self._inner, method), *args, **kwargs))


def _blocking(method: Callable[Concatenate[Any, P], Awaitable[R]]) -> Callable[Concatenate[_Facade, P], R]:
    """The same method, waited for."""

    @wraps(method)
    def call(self: _Facade, /, *args: P.args, **kwargs: P.kwargs) -> R:
        result: R = self._run(method.__name__, *args, **kwargs)
        return result

    return call


def _opening(
    method: Callable[Concatenate[Any, P], Awaitable[Session]],
) -> Callable[Concatenate[_Facade, P], SyncSession]:
    """The same method, waited for, with its session wrapped."""

    @wraps(method)
    def call(self: _Facade, /, *args: P.args, **kwargs: P.kwargs) -> SyncSession:
        return SyncSession(self._portal, self._run(method.__name__, *args, **kwargs))

    return call


def _streaming(
    method: Callable[Concatenate[Any, P], PartStream],
) -> Callable[Concatenate[_Facade, P], SyncStream]:
    """The same method with its stream wrapped. It is made in the loop, where its locks belong."""

    @wraps(method)
    def call(self: _Facade, /, *args: P.args, **kwargs: P.kwargs) -> SyncStream:
        return SyncStream(self._portal, self._run(method.__name__, *args, **kwargs))

    return call


def _answering(
    method: Callable[Concatenate[Any, P], Awaitable[AnswerStream]],
) -> Callable[Concatenate[_Facade, P], SyncAnswer]:
    """The same method, waited for, with its stream wrapped."""

    @wraps(method)
    def call(self: _Facade, /, *args: P.args, **kwargs: P.kwargs) -> SyncAnswer:
        return SyncAnswer(self._portal, self._run(method.__name__, *args, **kwargs))

    return call


class SyncAnswer(_Facade):
    """See :class:`modeld.repository.AnswerStream`. Leaving the ``with`` block before the end closes the request."""

    _inner: BatchedStream

    def __init__(self, portal: _Portal, inner: BatchedStream) -> None:
        super().__init__(portal, inner)
        self._ready: deque[StreamPart] = deque()

    def __iter__(self) -> Iterator[StreamPart]:
        return self

    def __next__(self) -> StreamPart:
        # A frame at a time: crossing to the other thread costs more than a token.
        if not self._ready:
            self._ready.extend(self._portal.call(self._inner.next_batch))
            if not self._ready:
                raise StopIteration
        return self._ready.popleft()

    join = _blocking(PartStream.join)

    def close(self) -> None:
        """Cancel if it still runs, and forget the stream. Closing the client has done that already."""
        self._ready.clear()
        if not self._portal.closed:
            self._portal.call(self._inner.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


class SyncStream(SyncAnswer):
    """See :class:`modeld.session.PartStream`. Leaving the ``with`` block before the end cancels the work."""

    _inner: LeaderStream

    cancel = _blocking(PartStream.cancel)


class SyncSession(_Facade):
    """See :class:`modeld.session.Session`."""

    _inner: LeaderSession

    @property
    def handle(self) -> SessionHandle:
        """Workspace, name, resolved model and the generation last seen."""
        return self._inner.handle

    ensure_prefix = _blocking(Session.ensure_prefix)
    prefill_suffix = _blocking(Session.prefill_suffix)
    decode = _streaming(Session.decode)
    turn = _streaming(Session.turn)
    complete = _streaming(Session.complete)
    explain = _blocking(Session.explain)
    snapshot = _blocking(Session.snapshot)
    restore = _blocking(Session.restore)
    fork = _opening(Session.fork)
    close = _blocking(Session.close)


class SyncRepository(_Facade):
    """See :class:`modeld.node.gateway.RepositoryService`."""

    _inner: LeaderRepository

    register_backend = _blocking(RepositoryService.register_backend)
    remove_backend = _blocking(RepositoryService.remove_backend)
    list_backends = _blocking(RepositoryService.list_backends)
    list_models = _blocking(RepositoryService.list_models)
    chat = _blocking(RepositoryService.chat)
    stream = _answering(RepositoryService.stream)
    embed = _blocking(RepositoryService.embed)
    prompt = _blocking(RepositoryService.prompt)


class SyncClient(_Facade):
    """See :class:`modeld.session.ModelService`. Close it: it owns a connection and a thread."""

    _inner: LeaderNode

    def __init__(self, portal: _Portal, inner: LeaderNode, resources: contextlib.ExitStack) -> None:
        super().__init__(portal, inner)
        self._resources = resources

    @property
    def record(self) -> OwnerRecord:
        """Who answers."""
        return self._inner.record

    @property
    def repository(self) -> SyncRepository:
        """The backends that are registered on the node."""
        return SyncRepository(self._portal, self._inner.repository)

    open_session = _opening(ModelService.open_session)
    describe = _blocking(ModelService.describe)
    models = _blocking(ModelService.models)
    load = _blocking(ModelService.load)
    unload = _blocking(ModelService.unload)
    embed = _blocking(ModelService.embed)
    rerank = _blocking(ModelService.rerank)
    tokenize = _blocking(ModelService.tokenize)
    detokenize = _blocking(ModelService.detokenize)
    render = _blocking(ModelService.render)
    status = _blocking(ModelService.status)
    sessions = _blocking(ModelService.sessions)
    audit = _blocking(ModelService.audit)
    remove_session = _blocking(ModelService.remove_session)
    snapshots = _blocking(ModelService.snapshots)
    remove_snapshot = _blocking(ModelService.remove_snapshot)

    def export_snapshot(self, snapshot_id: str) -> Generator[bytes, None, None]:
        """The file of a snapshot, in pieces. See :meth:`modeld.session.ModelService.export_snapshot`."""
        pieces: AsyncGenerator[bytes, None] = self._run("export_snapshot", snapshot_id)
        try:
            while (data := self._portal.call(anext, pieces, None)) is not None:
                yield data
        finally:
            if not self._portal.closed:
                self._portal.call(pieces.aclose)

    def import_snapshot(self, data: Iterable[bytes], *, snapshot_id: str = "") -> SnapshotInfo:
        """Store a snapshot's file. See :meth:`modeld.session.ModelService.import_snapshot`."""
        info: SnapshotInfo = self._run("import_snapshot", _read_in_thread(data), snapshot_id=snapshot_id)
        return info

    def attach(self, handle: SessionHandle) -> SyncSession:
        """The session that ``handle`` names, without asking anybody."""
        return SyncSession(self._portal, self._inner.attach(handle))

    def shutdown(self) -> None:
        """Ask the node to end. It answers first; that it is gone shows in its lock."""
        self._portal.call(self._inner.shutdown)

    def close(self) -> None:
        """Close connection and thread. Calls that still run fail with ``unreachable``. Safe to call twice.

        Sessions and streams of it, and what it is asked afterwards, raise :class:`modeld.InvalidRequestError`.
        """
        self._portal.closed = True
        self._resources.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.close()


async def _read_in_thread(data: Iterable[bytes]) -> AsyncIterator[bytes]:
    """What a blocking iterable gives. The event loop does not wait for it."""
    reading = iter(data)
    while (piece := await to_thread.run_sync(next, reading, None)) is not None:
        yield piece


def _connecting(function: Callable[P, Awaitable[LeaderNode]]) -> Callable[P, SyncClient]:
    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> SyncClient:
        with contextlib.ExitStack() as stack:
            portal = stack.enter_context(start_blocking_portal())
            node = portal.call(partial(function, *args, **kwargs))
            stack.callback(portal.call, node.aclose)
            return SyncClient(_Portal(portal), node, stack.pop_all())

    return call


connect = _connecting(client.connect)
