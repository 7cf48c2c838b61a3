"""An answer as it comes, over any wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, Self

from msgspec import structs

from modeld.errors import (
    CancelledError,
    InvalidRequestError,
)
from modeld.repository.guard import cut_off, deadline_at, raise_typed, typed_errors
from modeld.repository.tracker import Span, record_end
from modeld.repository.wire import Call, Wire
from modeld.types import (
    ChatResult,
    EndPart,
    PartsJoiner,
    StreamPart,
    TextPart,
    ToolCallStart,
    WarningPart,
)


class WireStream:
    """:class:`modeld.repository.AnswerStream` over a wire."""

    def __init__(self, wire: Wire, call: Call, watch: Watch, resources: ExitStack) -> None:
        self._wire = wire
        self._call = call
        self._watch = watch
        self._resources = resources
        self._ready: list[StreamPart] = []
        self._parts: AsyncGenerator[StreamPart, None] | None = None
        self._ended = False
        self._reader: asyncio.Task[Any] | None = None
        self._stopping: asyncio.Event | None = None
        timeout = call.config.timeout
        self._deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout

    async def start(self) -> None:
        """Send the request and wait for its first part; tried again as the retry policy says."""
        async with deadline_at(self._deadline, self._call.config.timeout):
            self._ready = list(self._watch.seen(await self._wire.options.retry.run(self._first)))
        self._ended = isinstance(self._ready[-1], EndPart)

    async def _first(self) -> StreamPart:
        parts = self._wire.stream(self._call)
        try:
            with typed_errors(self._wire, self._call.model.name):
                first = await anext(parts, None)
        except BaseException:
            await parts.aclose()
            raise
        if first is None:
            raise cut_off(self._wire, self._call.model.name)
        self._parts = parts
        return first

    def __aiter__(self) -> AsyncIterator[StreamPart]:
        return self

    async def __anext__(self) -> StreamPart:
        while not self._ready:
            if self._reader is not None:
                raise InvalidRequestError("another task waits for the next part; a stream has one reader at a time")
            if self._ended or self._parts is None:
                await self.aclose()
                raise StopAsyncIteration
            self._reader = asyncio.current_task()
            try:
                part = await self._next(self._parts)
            except BaseException as error:
                await self._failed(error)
                raise
            finally:
                self._reader = None
            self._ready.extend(self._watch.seen(part))
            self._ended = isinstance(part, EndPart)
        return self._ready.pop(0)

    async def _next(self, parts: AsyncGenerator[StreamPart, None]) -> StreamPart:
        # No context managers where there is no deadline: they would cost more than decoding the part.
        try:
            if self._deadline is None:
                part = await anext(parts, None)
            else:
                async with deadline_at(self._deadline, self._call.config.timeout):
                    part = await anext(parts, None)
        except Exception as error:
            raise_typed(self._wire, self._call.model.name, error)
        if part is None:
            raise cut_off(self._wire, self._call.model.name)
        return part

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def join(self) -> ChatResult:
        """See :meth:`modeld.repository.AnswerStream.join`."""
        joiner = PartsJoiner()
        async with self:
            async for part in self:
                joiner.add(part)
        return joiner.result()

    async def aclose(self) -> None:
        """See :meth:`modeld.repository.AnswerStream.aclose`. Who reads meanwhile gets :class:`CancelledError`."""
        reader = self._reader
        if reader is None or reader is asyncio.current_task():
            await self._close(None)
            return
        if self._stopping is None:
            # A generator that runs cannot be closed by another task: who waits in it has to leave.
            self._stopping = asyncio.Event()
            reader.cancel()
        await self._stopping.wait()

    async def _failed(self, error: BaseException) -> None:
        """:raises CancelledError: the reader was cancelled by :meth:`aclose` and by nobody else."""
        stopping = self._stopping
        ours = stopping is not None and isinstance(error, asyncio.CancelledError)
        task = asyncio.current_task()
        if ours and task is not None and task.uncancel() == 0:
            error = CancelledError("the stream was closed before its end; start a new one")
        try:
            await self._close(error)
        finally:
            if stopping is not None:
                stopping.set()
        if isinstance(error, CancelledError) and ours:
            raise error from None

    async def _close(self, error: BaseException | None) -> None:
        parts, self._parts = self._parts, None
        self._ended = True
        resources, self._resources = self._resources, ExitStack()
        try:
            if parts is not None:
                await parts.aclose()
        finally:
            resources.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)


class Watch:
    """Looks at the parts on their way: adds the warnings, and tells the tracker how it ended."""

    def __init__(self, span: Span, warnings: tuple[WarningPart, ...]) -> None:
        self._span = span
        self._warnings = warnings
        self._empty = True

    def seen(self, part: StreamPart) -> Sequence[StreamPart]:
        """``part`` with what has to go before it."""
        kind = type(part)
        if kind is TextPart and not self._warnings:
            self._empty = False
            return (part,)
        before, self._warnings = self._warnings, ()
        if kind in (TextPart, ToolCallStart):
            self._empty = False
        if isinstance(part, EndPart):
            part = _counted(part)
            record_end(self._span, part)
            if self._empty and part.finish_reason == "stop":
                before = (*before, WarningPart("empty_answer", "the model ended without text and without a tool call"))
        return (*before, part)


def _counted(end: EndPart) -> EndPart:
    """``end`` with counts that can be counts; a negative or absurd one is unknown, and would cross no wire."""
    counts = {name: count for name, count in structs.asdict(end.usage).items() if name != "source"}
    wrong = [name for name, count in counts.items() if count is not None and not 0 <= count < 2**53]
    if not wrong:
        return end
    return structs.replace(end, usage=structs.replace(end.usage, **dict.fromkeys(wrong)))
