"""What every stream of parts does with the batches it gets, wherever they come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from modeld.errors import InvalidRequestError
from modeld.types import ChatResult, EndPart, PartsJoiner, Receipt, StreamPart


def never_ran() -> EndPart:
    """The end of a stream that was cancelled before anybody worked on it: it cost nothing."""
    receipt = Receipt()
    return EndPart(finish_reason="cancelled", usage=receipt.usage(), receipt=receipt)


class BatchedStream(ABC):
    """The reading half of :class:`modeld.session.PartStream`; a subclass brings batches and ``aclose``."""

    def __init__(self) -> None:
        self._ready: deque[StreamPart] = deque()
        self._joined: ChatResult | None = None

    @abstractmethod
    async def _read(self) -> list[StreamPart]:
        """Wait for parts: all that are there, at least one; none after the end part."""

    @abstractmethod
    async def aclose(self) -> None:
        """See :meth:`modeld.session.PartStream.aclose`."""

    def __aiter__(self) -> AsyncIterator[StreamPart]:
        return self

    async def __anext__(self) -> StreamPart:
        ready = self._ready
        if not ready:
            ready.extend(await self._read())
            if not ready:
                raise StopAsyncIteration
        return ready.popleft()

    async def next_batch(self) -> list[StreamPart]:
        """All parts that are ready, at least one; empty when the stream is at its end."""
        if self._ready:
            parts = list(self._ready)
            self._ready.clear()
            return parts
        return await self._read()

    async def batches(self) -> AsyncIterator[list[StreamPart]]:
        """The parts as they come, all that are ready at once: where thousands of tokens a second come, one step for
        many of them."""
        while parts := await self.next_batch():
            yield parts

    async def join(self) -> ChatResult:
        """See :meth:`modeld.session.PartStream.join`. Called again, it gives the same result."""
        if self._joined is None:
            joiner, begun = PartsJoiner(), False
            async for parts in self._to_join():
                begun = True
                for part in parts:
                    joiner.add(part)
            if not begun:
                raise InvalidRequestError("there is nothing to join: the stream was read to its end already, or closed")
            self._joined = joiner.result()
        return self._joined

    def _to_join(self) -> AsyncIterator[list[StreamPart]]:
        """What is left to be joined."""
        return self.batches()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()


class CancellableStream(BatchedStream):
    """A stream that its reader, or anybody else, can cancel; a subclass brings ``_cancel`` too."""

    def __init__(self) -> None:
        super().__init__()
        self._cancelling = False

    @abstractmethod
    async def _cancel(self) -> EndPart:
        """End the work; called again, the same end part."""

    async def cancel(self) -> EndPart:
        """See :meth:`modeld.session.PartStream.cancel`."""
        self._ready.clear()
        self._cancelling = True
        return await self._cancel()

    async def _to_join(self) -> AsyncIterator[list[StreamPart]]:
        ended = False
        if not self._cancelling:
            async for parts in self.batches():
                ended = isinstance(parts[-1], EndPart)
                yield parts
        # Who cancels may have been given the end.
        if self._cancelling and not ended:
            yield [await self.cancel()]
