"""Streams on their way out of the server: written as fast as their reader takes them, closed whatever happens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Protocol, cast

import grpc

from modeld.errors import EngineProtocolError, InvalidRequestError
from modeld.repository.contract import AnswerStream
from modeld.session.contract import PartStream
from modeld.transport.convert import frame_to_bytes
from modeld.types import EndPart, StreamPart

Context = grpc.aio.ServicerContext[bytes, bytes]


class BatchStream(Protocol):
    """What a :class:`PartStream` offers beyond the contract where it can: all parts that are ready, at once.

    After ``cancel()`` its iterator ends, with or without the end part.
    """

    def batches(self) -> AsyncIterator[Sequence[StreamPart]]:
        """Lists of parts, none empty."""
        ...


class _Running:
    """A stream that ``Cancel`` can find. Several cancels are one."""

    def __init__(self, stream: PartStream) -> None:
        self._stream = stream
        self._cancel: asyncio.Task[EndPart] | None = None

    @property
    def cancelled(self) -> bool:
        return self._cancel is not None

    async def cancel(self) -> EndPart:
        if self._cancel is None:
            self._cancel = asyncio.ensure_future(self._stream.cancel())
        # Shielded: who asked may leave; the stream still needs its end part.
        return await asyncio.shield(self._cancel)


class StreamRelay:
    """The streams of sessions that run on a server, by the ids their callers gave them."""

    def __init__(self) -> None:
        self._streams: dict[str, _Running] = {}

    async def relay(self, request_id: str, stream: PartStream, context: Context) -> None:
        """Write the stream's parts, and close it whatever happens."""
        running = _Running(stream)
        ended = False
        try:
            with self._registered(request_id, running):
                await context.send_initial_metadata(())
                async for parts in _batches(stream):
                    # Waits while the reader's window is full: meanwhile the next batch grows, and nothing else does.
                    await context.write(frame_to_bytes(parts))
                    ended = isinstance(parts[-1], EndPart)
                if not ended:
                    if not running.cancelled:
                        raise EngineProtocolError("the engine's stream stopped without an end part; ask again")
                    await context.write(frame_to_bytes([await running.cancel()]))
        finally:
            await stream.aclose()

    async def cancel(self, request_id: str) -> bool:
        """Cancel the stream of that id; whether there was one."""
        running = self._streams.get(request_id)
        if running is None:
            return False
        await running.cancel()
        return True

    @contextlib.contextmanager
    def _registered(self, request_id: str, running: _Running) -> Iterator[None]:
        if not request_id:
            yield
            return
        if request_id in self._streams or len(request_id) > 200:
            rule = "at most 200 characters and not that of a running call"
            raise InvalidRequestError(f"a request id is {rule}, not {request_id[:40]!r}", parameter="request_id")
        self._streams[request_id] = running
        try:
            yield
        finally:
            del self._streams[request_id]


async def relay_answer(stream: AnswerStream, context: Context) -> None:
    """Write a backend's answer. The next part is read when the reader's window has room for it, so that the backend is
    slowed down too; when the call is cancelled the backend's request is closed at once."""
    async with stream:
        await context.send_initial_metadata(())
        async for part in stream:
            await context.write(frame_to_bytes((part,)))


async def _batches(stream: PartStream) -> AsyncIterator[Sequence[StreamPart]]:
    if hasattr(stream, "batches"):
        async for parts in cast("BatchStream", stream).batches():
            yield parts
    else:
        async for part in stream:
            yield (part,)
