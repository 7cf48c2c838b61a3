"""Server-sent events of a byte stream, for vendors whose SDK hands out the raw response.

Source: WHATWG HTML, 9.2.6 "Interpreting an event stream".
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from modeld.errors import BackendProtocolError

MAX_EVENT: Final = 16 * 2**20
"""Bytes of one event. Thought signatures and images make long lines; without a bound a broken server fills memory."""

BOM: Final = b"\xef\xbb\xbf"
"""May stand at the very beginning, and belongs to no line."""


async def sse_data(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each event, lines of one event joined by a newline. Names, ids and comments are not of interest here.

    Lines may end in LF, CR LF or CR, and may be split anywhere. A line that the stream's end cuts off is not given; one
    that is whole is, though the standard wants a blank line after it: servers forget that one.

    :raises BackendProtocolError: an event is longer than ``MAX_EVENT``.
    """
    rest = b""
    waiting: list[bytes] = []
    data: list[bytes] = []
    size = held = 0
    first = True
    async for chunk in chunks:
        if rest and b"\n" not in chunk and b"\r" not in chunk and not rest.endswith(b"\r"):
            # Put together once, when the line ends: a long one in small chunks would be copied with each of them.
            waiting.append(chunk)
            held += len(chunk)
            if size + len(rest) + held > MAX_EVENT:
                raise too_long()
            continue
        buffer = b"".join((rest, *waiting, chunk)) if rest else chunk
        if waiting:
            waiting, held = [], 0
        if first and len(buffer) >= len(BOM):
            buffer, first = buffer.removeprefix(BOM), False
        if b"\r" in buffer:
            # A CR at the end may be half of a CR LF.
            tail = b"\r" if buffer.endswith(b"\r") else b""
            buffer = buffer[: len(buffer) - len(tail)].replace(b"\r\n", b"\n").replace(b"\r", b"\n") + tail
        *lines, rest = buffer.split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                data.append(line[6:] if line[5:6] == b" " else line[5:])
                size += len(line)
            elif not line and data:
                # An event without data is none: some servers send them to keep the connection.
                if event := data[0] if len(data) == 1 else b"\n".join(data):
                    yield event
                data, size = [], 0
        if size + len(rest) > MAX_EVENT:
            raise too_long()
    if data and rest in (b"", b"\r") and (event := b"\n".join(data)):
        yield event


def too_long() -> BackendProtocolError:
    """What an endless event is."""
    return BackendProtocolError(f"an event of a stream is longer than {MAX_EVENT} bytes; it is not read on")
