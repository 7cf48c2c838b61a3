"""Whole answers, up to a size."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final, Protocol

from modeld.errors import BackendProtocolError

MAX_BODY: Final = 256 * 2**20
"""Bytes of a whole answer, unpacked. 2048 vectors of 3072 numbers are 130 MB; a broken server would fill memory."""


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
