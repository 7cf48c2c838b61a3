"""A stream of parts that outlives the owner it began on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import msgspec

from modeld.errors import CancelledError, ModeldError, NodeUnreachableError, StaleEpochError
from modeld.session.streams import CancellableStream, never_ran
from modeld.transport.grpc.wire import cancelling
from modeld.transport.resume import DivergedError, Replay, TokenReplay, Transcript
from modeld.transport.route import LOST, REFUSED, Route
from modeld.types import (
    EndPart,
    LogprobsPart,
    ProgressPart,
    Receipt,
    StreamPart,
    Usage,
    WarningPart,
)

if TYPE_CHECKING:
    from modeld.transport.grpc.client import RemoteNode
    from modeld.transport.grpc.stream import RemoteStream

T = TypeVar("T")

_MOVED: Final = (*REFUSED, *LOST)


class LeaderStream(CancellableStream):
    """:class:`modeld.session.PartStream` on whoever owns the data root. It starts with the first read.

    :param where: the owner to begin on. :param start: makes the stream on an owner.
    :param settle: completes a receipt; gets the owner, and whether another one was lost meanwhile.
    :param repeat: the request can be asked again, once, of an owner that never saw it.
    """

    def __init__(
        self,
        route: Route,
        where: Callable[[], Awaitable[RemoteNode]],
        start: Callable[[RemoteNode], Awaitable[RemoteStream]],
        settle: Callable[[RemoteNode, Receipt, bool], Receipt],
        *,
        repeat: bool = False,
    ) -> None:
        super().__init__()
        self._route = route
        self._where = where
        self._start = start
        self._settle = settle
        self._repeat = repeat
        self._node: RemoteNode | None = None
        self._stream: RemoteStream | None = None
        self._lost: RemoteNode | None = None
        self._moving: asyncio.Future[Any] | None = None
        self._transcript = Transcript()
        self._replay: Replay | None = None
        self._tokens: TokenReplay | None = None
        self._prompt_again = 0
        self._reading = asyncio.Lock()
        self._end: EndPart | None = None
        self._failure: ModeldError | None = None
        self._closed = False

    async def _cancel(self) -> EndPart:
        """A stream that lost its owner and looks for another one, or whose reading task was cancelled, tells no usage:
        nobody knows it."""
        if self._failure is not None:
            raise self._failure
        if self._stream is not None and self._end is None:
            return self._finished(await self._stream.cancel())
        if self._end is None:
            self._closed = self._moving is None
            unknown = EndPart(finish_reason="cancelled", usage=Usage(), receipt=Receipt())
            self._end = never_ran() if self._lost is None else unknown
            if self._moving is not None:
                self._moving.cancel()
        return self._end

    async def aclose(self) -> None:
        """Cancel the call if it still runs; who reads it meanwhile gets :class:`modeld.CancelledError`."""
        self._ready.clear()
        if self._end is None:
            self._closed = True
            if self._moving is not None:
                self._moving.cancel()
        if self._stream is not None:
            await self._stream.aclose()

    async def _read(self) -> list[StreamPart]:
        # One reader at a time: the rest find what it found. Cancel drains while somebody iterates.
        async with self._reading:
            if self._failure is not None:
                raise self._failure
            if self._closed:
                raise _closed_early()
            if self._end is not None:
                return []
            try:
                return await self._parts()
            except ModeldError as error:
                self._failure = self._told(error)
                raise self._failure from error.__cause__
            except asyncio.CancelledError:
                if cancelling():
                    self._closed = True
                    raise
                return self._stopped()

    def _stopped(self) -> list[StreamPart]:
        """What is left to read when a cancel ended the search for an owner."""
        if self._end is None:
            raise _closed_early()
        return [self._end]

    async def _parts(self) -> list[StreamPart]:
        """What the next frame that has something new brought."""
        while True:
            try:
                stream, node = await self._running()
                parts = await stream.next_batch()
                if node.record.epoch < self._route.epoch:
                    raise StaleEpochError(
                        f"these parts are of epoch {node.record.epoch}, and epoch {self._route.epoch} was seen already",
                        epoch=node.record.epoch,
                        current=self._route.epoch,
                    )
            except _MOVED as error:
                if not self._repeat or self._lost is not None or self._node is None or self._route.closed:
                    raise
                await self._move(self._node, error)
                continue
            if not parts:
                return []
            if fresh := self._sifted(parts):
                return fresh

    async def _running(self) -> tuple[RemoteStream, RemoteNode]:
        if self._stream is None or self._node is None:
            if self._node is None:
                self._node = await self._found(self._where())
            self._stream = await self._found(self._start(self._node))
        return self._stream, self._node

    async def _move(self, lost: RemoteNode, cause: ModeldError) -> None:
        """Go to the successor; the request starts there with the next read."""
        if self._stream is not None:
            await self._stream.aclose()
        self._lost, self._stream = lost, None
        self._node = await self._found(self._route.after(lost, cause))
        if self._transcript.characters or self._transcript.runs():
            self._replay = Replay(self._transcript)
        self._tokens = TokenReplay(self._transcript)

    async def _found(self, looking: Awaitable[T]) -> T:
        """Wait in a task, so that a cancel can end the wait."""
        self._moving = task = asyncio.ensure_future(looking)
        try:
            return await task
        finally:
            self._moving = None

    def _sifted(self, parts: list[StreamPart]) -> list[StreamPart]:
        """The parts that the caller has not got yet."""
        try:
            return [new for part in parts for new in self._sifted_one(part)]
        except DivergedError:
            raise self._diverged() from None

    def _sifted_one(self, part: StreamPart) -> list[StreamPart]:
        fresh: list[StreamPart] = []
        new: StreamPart | None = part
        if isinstance(part, LogprobsPart):
            # They come anywhere between the others.
            new = self._tokens.fresh(part) if self._tokens is not None else part
        elif self._replay is not None:
            if isinstance(part, ProgressPart) and part.total:
                self._prompt_again = part.total - part.cached
            new = self._replay.fresh(part)
            if new is not None:
                self._replay = None
                fresh.append(self._owner_changed())
        if new is None:
            return []
        if isinstance(new, EndPart):
            new = self._finished(new)
        self._transcript.add(new)
        return [*fresh, new]

    def _finished(self, end: EndPart) -> EndPart:
        """The end as the caller gets it; the reader and a cancel may both have it."""
        if self._end is None:
            assert self._node is not None
            receipt = self._settle(self._node, end.cost(), self._lost is not None)
            self._end = msgspec.structs.replace(end, receipt=receipt)
        return self._end

    def _owner_changed(self) -> WarningPart:
        assert self._lost is not None
        assert self._node is not None
        prompt = f"{self._prompt_again} tokens of the prompt" if self._prompt_again else "the prompt"
        return WarningPart(
            "owner_changed",
            f"the owner of epoch {self._lost.record.epoch} was lost and epoch {self._node.record.epoch} goes on: "
            f"{prompt} and {self._transcript.characters} characters of the answer were asked for again "
            "(the receipt says what of it was computed)",
        )

    def _diverged(self) -> NodeUnreachableError:
        assert self._lost is not None
        assert self._node is not None
        return NodeUnreachableError(
            f"the owner of epoch {self._lost.record.epoch} was lost after {self._transcript.characters} characters, "
            f"and the answer of epoch {self._node.record.epoch} differs from them; ask again",
            endpoint=self._lost.record.endpoint,
            pid=self._lost.record.pid,
        )

    def _told(self, error: ModeldError) -> ModeldError:
        """The error, with how many characters the caller has got where an owner was lost."""
        if isinstance(error, _MOVED) or self._lost is not None:
            return type(error)(error.message, **{**error.details, "delivered": self._transcript.characters})
        return error


def _closed_early() -> CancelledError:
    return CancelledError("the stream was closed before its end; start a new one")
