"""The client's end of a stream of parts."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Callable
from typing import cast

import grpc
from msgspec import Struct

from modeld.errors import CancelledError, InvalidRequestError, ModeldError
from modeld.session.streams import CancellableStream, never_ran
from modeld.transport.convert import frame_from_bytes
from modeld.transport.grpc.wire import StreamCall, Wire, cancelling
from modeld.transport.methods import CancelReply, CancelRequest
from modeld.types import EndPart, Receipt, StreamPart, Usage


class RemoteStream(CancellableStream):
    """A stream of parts from a node.

    It starts with the first read. Cancelling the task that reads cancels the whole stream on the node.

    :param request: makes the request for the id of this call. :param follow: gets the receipt of the end.
    """

    def __init__(
        self, wire: Wire, method: str, request: Callable[[str], Struct], follow: Callable[[Receipt], None]
    ) -> None:
        super().__init__()
        self._wire = wire
        self._method = method
        self._request = request
        self._follow = follow
        self._id = uuid.uuid4().hex
        self._call: StreamCall | None = None
        self._reading = asyncio.Lock()
        self._end: EndPart | None = None
        self._failure: ModeldError | None = None
        self._closed = False

    async def _cancel(self) -> EndPart:
        """A stream whose reading task was cancelled tells no usage: nobody waits for its end."""
        if self._call is None:
            self._closed = True
            return never_ran()
        if self._end is None and self._failure is None and not self._closed:
            # The node can find the call by its id once it has sent initial metadata.
            await self._call.initial_metadata()
            await self._wire.call("Cancel", CancelRequest(request_id=self._id), CancelReply)
            while await self._read():
                pass
        if self._failure is not None:
            raise self._failure
        return self._end or EndPart(finish_reason="cancelled", usage=Usage(), receipt=Receipt())

    async def aclose(self) -> None:
        """Cancel the call if it still runs; who reads it meanwhile gets :class:`CancelledError`."""
        self._ready.clear()
        if self._end is None:
            self._closed = True
            if self._call is not None:
                self._call.cancel()

    async def _read(self) -> list[StreamPart]:
        """The next frame's parts; empty after the end."""
        # One reader at a time: the rest find what it found. Cancel drains while somebody iterates.
        async with self._reading:
            if self._end is not None:
                return []
            if self._failure is not None:
                raise self._failure
            try:
                return await self._receive()
            except ModeldError as error:
                self._failure = error
                raise
            except asyncio.CancelledError:
                aclosed, self._closed = self._closed, True
                if aclosed and not cancelling():
                    raise _closed_early() from None
                raise

    async def _receive(self) -> list[StreamPart]:
        if self._closed:
            raise _closed_early()
        if self._call is None:
            self._call = self._wire.stream(self._method, self._wire.encode(self._request(self._id)))
        parts: list[StreamPart] = []
        while not parts:
            with self._wire.translated():
                data = await self._call.read()
            with self._wire.reading():
                if data is grpc.aio.EOF:
                    raise InvalidRequestError("the stream stopped without an end part")
                parts = frame_from_bytes(cast("bytes", data))
        if isinstance(end := parts[-1], EndPart):
            self._end = end
            self._follow(end.cost())
            # To the status: then the node has closed its stream, and the session is free for the next call.
            with contextlib.suppress(grpc.aio.AioRpcError):
                await self._call.read()
        return parts


def _closed_early() -> CancelledError:
    return CancelledError("the stream was closed before its end; start a new one")
