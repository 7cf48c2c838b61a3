"""Files over the wire, a piece at a time, either way: no more than two pieces are in memory."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator
from typing import cast

import grpc

from modeld.errors import ModeldError
from modeld.session.contract import ModelService
from modeld.session.values import SnapshotInfo
from modeld.transport.convert import from_bytes, to_bytes
from modeld.transport.grpc.relay import Context
from modeld.transport.grpc.wire import Wire
from modeld.transport.methods import SnapshotChunk, SnapshotRequest

REFUSED_SECONDS = 2.0
"""How long the rest of a file that is refused is taken and thrown away."""


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
        try:
            return await self._service.import_snapshot(_pieces(named, reading), snapshot_id=named.snapshot_id)
        except ModeldError:
            # A sender that is in the middle of a write would get "Internal error from Core" in place of this error.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFUSED_SECONDS):
                    async for _ in reading:
                        pass
            raise


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
    try:
        with wire.translated():
            # The node may refuse before it has all: then writing fails, and its answer says why.
            with contextlib.suppress(asyncio.InvalidStateError):
                await call.write(wire.encode(SnapshotChunk(data=b"", snapshot_id=snapshot_id)))
                async for piece in data:
                    await call.write(wire.encode(SnapshotChunk(data=piece)))
                await call.done_writing()
            answer = await call
    finally:
        call.cancel()
    with wire.reading():
        return from_bytes(SnapshotInfo, answer)
