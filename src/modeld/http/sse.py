"""Answers as server-sent events: headers at once, a heartbeat by the clock, little in memory that is not yet read."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Final, Protocol, Self, runtime_checkable

from modeld.errors import CancelledError, ModeldError
from modeld.http.errors import STOPPING, Failure, Refusal, error_body, failure_of
from modeld.http.exchange import Exchange
from modeld.http.metrics import TRACE, Parts
from modeld.transport.errors import public_error
from modeld.types import EndPart, StreamPart

HEADERS_SECONDS: Final = 0.25
"""An answer that is refused at once is refused by its status; later headers are out, and an event says so."""
HEARTBEAT_SECONDS: Final = 5.0
"""A stream that is silent for so long says that it lives, whatever the engine does."""

LAST_SECONDS: Final = 0.5
"""How long a client may take that does not read, when its stream is ended before its end."""

_BUFFER: Final = 64
"""Parts that are read ahead of the client. The engine has its own bound behind them."""
COMMENT: Final = b": still working\n\n"
"""What no client takes for an event."""


class Encoder(Protocol):
    """A dialect's events."""

    def part(self, part: StreamPart) -> bytes:
        """The events for one part; empty where it has none."""
        ...

    def heartbeat(self) -> bytes:
        """What says that the answer is still being made. It may be the first of all."""
        ...

    def end(self) -> bytes:
        """What follows the last one."""
        ...


@runtime_checkable
class Failing(Protocol):
    """An :class:`Encoder` whose dialect has an event of its own for what goes wrong in the middle."""

    def failed(self, failure: Failure) -> bytes:
        """The last event."""
        ...


class Feed:
    """Reads an answer in a task of its own, a few parts ahead. Leaving the block ends the answer."""

    def __init__(self, answer: AbstractAsyncContextManager[Parts]) -> None:
        self._answer = answer
        self._ready: asyncio.Queue[StreamPart | Exception | None] = asyncio.Queue(_BUFFER)

    async def __aenter__(self) -> Self:
        self._task = asyncio.ensure_future(self._read())
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def next(self, seconds: float) -> list[StreamPart | Exception | None]:
        """All that is ready, at least one; nothing when none came in this time. ``None``: the answer is complete.

        An answer that somebody else has cancelled fails.
        """
        try:
            async with asyncio.timeout(seconds):
                found = [await self._ready.get()]
        except TimeoutError:
            if self._task.done() and self._ready.empty():
                return [CancelledError("the answer was cancelled inside the node")]
            return []
        while not self._ready.empty():
            found.append(self._ready.get_nowait())
        return found

    async def _read(self) -> None:
        try:
            end: EndPart | None = None
            async with self._answer as parts:
                async for part in parts:
                    if end is not None:  # of one choice of several
                        await self._ready.put(end)
                        end = None
                    if isinstance(part, EndPart):
                        end = part
                    else:
                        await self._ready.put(part)
            # Not before the session is free again: who hears the end may ask the next question at once.
            if end is not None:
                await self._ready.put(end)
            await self._ready.put(None)
        except Exception as error:
            await self._ready.put(error)


async def send_events(exchange: Exchange, answer: AbstractAsyncContextManager[Parts], encoder: Encoder) -> None:
    """Answer with events until the end part. What goes wrong in the middle is the last event.

    :raises Exception: what went wrong before the headers were sent.
    """
    TRACE.get().streamed = True
    async with Feed(answer) as feed:
        items = await feed.next(HEADERS_SECONDS)
        if items and isinstance(items[0], Exception):
            raise items[0]
        await exchange.start(200, "text/event-stream; charset=utf-8", (("cache-control", "no-store"),))
        try:
            await _write_all(exchange, feed, items, encoder)
        except asyncio.CancelledError:
            # The server stops, and its clients are to know that this was no end. One that has left hears nothing.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_SECONDS):
                    await exchange.write(_failed(exchange, STOPPING, encoder), more=False)
            raise


async def _write_all(
    exchange: Exchange, feed: Feed, items: Sequence[StreamPart | Exception | None], encoder: Encoder
) -> None:
    told = -math.inf
    while True:
        data, over = _encoded(exchange, items, encoder)
        # By the clock: an answer may make parts all the time of which none is an event.
        if not data and not over and time.monotonic() - told >= HEARTBEAT_SECONDS:
            data = encoder.heartbeat()
        if data or over:
            await exchange.write(data, more=not over)
            told = time.monotonic()
        if over:
            return
        items = await feed.next(max(0.0, told + HEARTBEAT_SECONDS - time.monotonic()))


def _encoded(
    exchange: Exchange, items: Sequence[StreamPart | Exception | None], encoder: Encoder
) -> tuple[bytes, bool]:
    data: list[bytes] = []
    for item in items:
        if item is None:
            return b"".join([*data, encoder.end()]), True
        if isinstance(item, Exception):
            known = item if isinstance(item, ModeldError | Refusal) else public_error(item, "stream")
            return b"".join([*data, _failed(exchange, failure_of(known, exchange.fields), encoder)]), True
        data.append(encoder.part(item))
    return b"".join(data), False


def _failed(exchange: Exchange, failure: Failure, encoder: Encoder) -> bytes:
    if isinstance(encoder, Failing):
        return encoder.failed(failure)
    body = error_body(exchange.dialect, failure, exchange.request_id)
    return (b"event: error\n" if exchange.dialect == "anthropic" else b"") + event(body)


def event(data: bytes) -> bytes:
    """One event. JSON has no line break in it."""
    return b"data: " + data + b"\n\n"
