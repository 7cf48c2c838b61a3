"""Files over the wire, a piece at a time, either way: no more than two pieces are in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Coroutine
from typing import Any, TypeVar, cast

import grpc

from modeld.session.contract import ModelService
from modeld.session.values import SnapshotInfo
from modeld.transport.convert import from_bytes, to_bytes
from modeld.transport.grpc.relay import Context
from modeld.transport.grpc.wire import UploadCall, Wire
from modeld.transport.methods import SnapshotChunk, SnapshotRequest

T = TypeVar("T")

_OVERWRITTEN = "Internal error from Core"
"""What grpc.aio (1.85) says of a call whose write failed, whatever the server said: most refused uploads of 300 kB."""

_LATE_SECONDS = 2.0
"""How long the server's word may come after a write that failed because of it. Milliseconds, as far as seen."""


class ChunkCalls:
    """The server's end."""

    def __init__(self, service: ModelService) -> None:
        self._service = service

    async def send(self, request: SnapshotRequest, context: Context) -> None:
        """Write a snapshot's file, as fast as its reader takes it."""
        async with contextlib.aclosing(self._service.export_snapshot(request.snapshot_id)) as pieces:
            async for data in pieces:
                await context.write(to_bytes(SnapshotChunk(data=data)))

    async def receive(self, requests: AsyncIterable[bytes]) -> SnapshotInfo:
        """Store a snapshot's file as it comes."""
        reading = aiter(requests)
        first = await anext(reading, b"")
        named = from_bytes(SnapshotChunk, first)
        return await self._service.import_snapshot(_pieces(named, reading), snapshot_id=named.snapshot_id)


async def _pieces(first: SnapshotChunk, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first.data
    async for data in rest:
        yield from_bytes(SnapshotChunk, data).data


async def download(wire: Wire, snapshot_id: str) -> AsyncGenerator[bytes, None]:
    """The client's end of an export."""
    call = wire.stream("ExportSnapshot", wire.encode(SnapshotRequest(snapshot_id=snapshot_id)))
    try:
        while True:
            with wire.translated():
                data = await call.read()
            if data is grpc.aio.EOF:
                return
            with wire.reading():
                piece = from_bytes(SnapshotChunk, cast("bytes", data)).data
            yield piece
    finally:
        call.cancel()


async def upload(wire: Wire, data: AsyncIterable[bytes], snapshot_id: str) -> SnapshotInfo:
    """The client's end of an import."""
    call = wire.upload("ImportSnapshot")
    refusal = _Refusal(call)
    try:
        with wire.translated():
            try:
                # The node may refuse before it has all: then writing fails, and its answer says why.
                with contextlib.suppress(asyncio.InvalidStateError):
                    await call.write(wire.encode(SnapshotChunk(data=b"", snapshot_id=snapshot_id)))
                    async for piece in data:
                        await call.write(wire.encode(SnapshotChunk(data=piece)))
                    await call.done_writing()
                answer = await call
            except grpc.aio.AioRpcError as error:
                raise await refusal.instead_of(error) from None
    finally:
        call.cancel()
    with wire.reading():
        return from_bytes(SnapshotInfo, answer)


class _Refusal:
    """What the server said of an upload, which a write that fails at that moment makes grpc.aio forget.

    Its word comes first, and is seen here before it is overwritten, or it comes after the failure and takes its place.
    """

    def __init__(self, call: UploadCall) -> None:
        self._call = call
        self._error: grpc.aio.AioRpcError | None = None
        call.add_done_callback(self._ended)

    async def instead_of(self, error: grpc.aio.AioRpcError) -> grpc.aio.AioRpcError:
        """The error that the call ended with, where ``error`` only says that a write failed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LATE_SECONDS):
                while error.details() == _OVERWRITTEN:
                    error = self._error or await self._now()
                    await asyncio.sleep(0.002)
        return error

    def _ended(self, _: object) -> None:
        error = _at_once(self._now())
        if error is not None and error.details() != _OVERWRITTEN:
            self._error = error

    async def _now(self) -> grpc.aio.AioRpcError:
        code, trailing = await self._call.code(), await self._call.trailing_metadata()
        return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing, details=await self._call.details())


def _at_once(coroutine: Coroutine[Any, Any, T]) -> T | None:
    """Its result where it does not wait: not even one turn of the loop may pass here."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return cast("T", done.value)
    coroutine.close()
    return None
