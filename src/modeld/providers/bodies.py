"""Reading answers: whole ones up to a size, and what is left behind the end of a stream."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final, Protocol

from modeld.errors import BackendProtocolError

MAX_BODY: Final = 256 * 2**20
"""Bytes of a whole answer, unpacked. 2048 vectors of 3072 numbers are 130 MB; a broken server would fill memory."""

DRAIN_SECONDS: Final = 0.2
"""How long the end of a stream's body is waited for."""


class Response(Protocol):
    """An open response of either HTTP library."""

    def aiter_bytes(self) -> AsyncIterator[bytes]:
        """The body, unpacked."""


async def read_body(response: Response, backend: str) -> bytes:
    """The whole body. The caller closes the response.

    :raises BackendProtocolError: it is longer than ``MAX_BODY``; the rest is not read.
    """
    pieces: list[bytes] = []
    size = 0
    async for piece in response.aiter_bytes():
        size += len(piece)
        if size > MAX_BODY:
            raise BackendProtocolError(f"an answer of {backend} is longer than {MAX_BODY} bytes", backend=backend)
        pieces.append(piece)
    return b"".join(pieces)


async def drain(events: AsyncIterator[bytes]) -> None:
    """Read what follows the answer's end, so that the connection can be used again.

    The answer is whole: a server that keeps the connection open, or breaks it now, changes nothing about it.
    """
    with contextlib.suppress(Exception):
        async with asyncio.timeout(DRAIN_SECONDS):
            async for _ in events:
                pass
