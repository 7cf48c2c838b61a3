"""A channel to a node: bytes out, bytes in, and errors of modeld instead of gRPC's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeVar

import grpc
from msgspec import Struct

from modeld.errors import InvalidRequestError, NodeUnreachableError
from modeld.transport.convert import from_bytes, to_bytes
from modeld.transport.errors import from_rpc
from modeld.transport.grpc.callers import introduction
from modeld.transport.grpc.options import NO_ACCESS, Access, open_channel
from modeld.transport.methods import EPOCH_KEY, MAX_MESSAGE, METHODS, SERVICE
from modeld.transport.repository_methods import REPOSITORY_METHODS

if TYPE_CHECKING:
    from modeld.node.record import OwnerRecord

S = TypeVar("S", bound=Struct)
StreamCall = grpc.aio.UnaryStreamCall[bytes, bytes]
UploadCall = grpc.aio.StreamUnaryCall[bytes, bytes]


class Wire:
    """One channel. It connects at the first call and belongs to the event loop it was made in.

    :param timeout: seconds that each call, and each stream as a whole, may take; ``None`` is no deadline.
    :param access: for TCP.
    :raises TLSRequiredError: the endpoint is plain TCP beyond loopback.
    """

    def __init__(self, endpoint: str, record: OwnerRecord, timeout: float | None, access: Access = NO_ACCESS) -> None:
        self.endpoint = endpoint
        self.epoch = record.epoch
        self._pid = record.pid
        self._timeout = timeout
        self._metadata = ((EPOCH_KEY, str(record.epoch)), introduction(), *access.metadata)
        self._closed = False
        self._channel = channel = open_channel(endpoint, access)
        methods = (*METHODS, *REPOSITORY_METHODS)
        self._unary: dict[str, grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]] = {
            method.path: channel.unary_unary(method.path) for method in methods if method.reply and not method.chunks
        }
        self._streaming: dict[str, grpc.aio.UnaryStreamMultiCallable[bytes, bytes]] = {
            method.path: channel.unary_stream(method.path)
            for method in methods
            if not method.reply or method.chunks == "reply"
        }

    async def aclose(self) -> None:
        """Close the channel. Calls that still run fail with ``unreachable``. Safe to call twice."""
        self._closed = True
        await self._channel.close()

    async def call(
        self, name: str, request: Struct, reply: type[S], *, seconds: float | None = None, service: str = SERVICE
    ) -> S:
        """One unary method of the wire.

        :raises NodeUnreachableError: the connection is lost, or the answer cannot be read.
        :raises DeadlineExceededError: ``seconds`` have passed.
        :raises ModeldError: what the node raised.
        """
        data = self.encode(request)
        with self.translated():
            answer = await self._unary[f"/{service}/{name}"](
                data, metadata=self._metadata, timeout=seconds or self._timeout
            )
        with self.reading():
            return from_bytes(reply, answer)

    def stream(self, name: str, data: bytes, *, service: str = SERVICE) -> StreamCall:
        """Start a streaming method of the wire."""
        return self._streaming[f"/{service}/{name}"](data, metadata=self._metadata, timeout=self._timeout)

    def upload(self, name: str) -> UploadCall:
        """Start a method of the wire that takes a stream."""
        # Made for each call: one in a lifetime is many.
        return self._channel.stream_unary(f"/{SERVICE}/{name}")(metadata=self._metadata, timeout=self._timeout)

    def encode(self, request: Struct) -> bytes:
        """``request`` as bytes.

        :raises InvalidRequestError: it holds wrong types, is too large, or the connection was closed.
        """
        if self._closed:
            raise InvalidRequestError("this connection was closed; connect again")
        data = to_bytes(request)
        if len(data) > MAX_MESSAGE:
            raise InvalidRequestError(f"the request has {len(data)} bytes, the wire takes {MAX_MESSAGE}")
        return data

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Errors of gRPC become errors of modeld."""
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise from_rpc(error, endpoint=self.endpoint, pid=self._pid) from None
        except (asyncio.CancelledError, grpc.aio.UsageError):
            # gRPC cancels the calls of a channel that is closed. Only a cancelled task may see that as a cancellation.
            if self._closed and not cancelling():
                raise self.unreachable("the connection was closed while the call ran") from None
            raise

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """What cannot be understood here is the node's fault, not the caller's."""
        try:
            yield
        except InvalidRequestError as error:
            raise self.unreachable(
                f"its answer cannot be understood ({error.message}); restart the older of both"
            ) from error

    def unreachable(self, reason: str) -> NodeUnreachableError:
        """The error that says so."""
        text = f"no node can be reached at {self.endpoint} (pid {self._pid}): {reason}"
        return NodeUnreachableError(text, endpoint=self.endpoint, pid=self._pid)


def cancelling() -> bool:
    """Whether somebody asked the running task to stop. gRPC raises ``CancelledError`` for other reasons too."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
