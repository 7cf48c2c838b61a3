"""One SDK client per event loop, made at its first use, closed when nobody uses it any more."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future
from contextlib import asynccontextmanager
from importlib import import_module
from types import ModuleType
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from modeld.errors import MissingDependencyError

T = TypeVar("T")


def require(module: str, extra: str) -> ModuleType:
    """Import an SDK.

    :raises MissingDependencyError: it is not installed; the message is the command that installs it.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise MissingDependencyError(f"pip install 'modeld[{extra}]'", extra=extra, module=module) from error


class _Connection(Generic[T]):
    def __init__(self, client: asyncio.Task[T]) -> None:
        self.client = client
        self.users = 0
        self.retired = False

    @property
    def failed(self) -> bool:
        # Cancelled too: whoever ends all tasks of a loop, which may go on, ends this one.
        return self.client.done() and (self.client.cancelled() or self.client.exception() is not None)


class Connections(Generic[T]):
    """SDK clients belong to the loop they were first used in; a backend may be used in several.

    :param open: makes a client; runs in a thread, because importing an SDK takes up to half a second.
    :param close: closes one; ``None``: it is not ours to close.
    """

    def __init__(self, open: Callable[[], T], close: Callable[[T], Awaitable[None]] | None) -> None:
        self._open = open
        self._close = close
        self._lock = threading.Lock()
        self._by_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, _Connection[T]] = WeakKeyDictionary()
        self._ending: WeakKeyDictionary[asyncio.AbstractEventLoop, list[Future[None]]] = WeakKeyDictionary()

    @asynccontextmanager
    async def use(self) -> AsyncIterator[T]:
        """The running loop's client. It stays open at least until the block ends."""
        connection = self._enter()
        try:
            # Shielded: the client is for everybody, whoever asked first may be cancelled.
            yield await asyncio.shield(connection.client)
        finally:
            await self._leave(connection)

    def _enter(self) -> _Connection[T]:
        loop = asyncio.get_running_loop()
        with self._lock:
            # The entry of a loop holds the loop, so that it would never leave by itself, nor would its sockets.
            for other in [other for other in self._by_loop if other.is_closed()]:
                del self._by_loop[other]
            connection = self._by_loop.get(loop)
            if connection is None or connection.failed:
                connection = self._by_loop[loop] = _Connection(loop.create_task(asyncio.to_thread(self._open)))
            connection.users += 1
            return connection

    async def _leave(self, connection: _Connection[T]) -> None:
        with self._lock:
            connection.users -= 1
            last = connection.retired and connection.users == 0
        if last:
            await self._end(connection)

    async def _end(self, connection: _Connection[T]) -> None:
        if self._close is not None:
            try:
                client = await connection.client
            except Exception:
                return
            await self._close(client)

    async def aclose(self) -> None:
        """Close the clients that nobody uses, the others when their last call ends. A later call opens a new one.

        Those of the running loop are closed when it returns; another loop closes its own when it comes to it, and may
        never run again, so nobody waits for that but ``aclose()`` in that loop.
        """
        here = asyncio.get_running_loop()
        with self._lock:
            ending = self._ending.pop(here, [])
            retired = dict(self._by_loop)
            self._by_loop.clear()
            for connection in retired.values():
                connection.retired = True
            idle = {loop: c for loop, c in retired.items() if c.users == 0}
        for loop, connection in idle.items():
            if loop is here:
                await self._end(connection)
            elif not loop.is_closed():
                end = self._end(connection)
                try:
                    future = asyncio.run_coroutine_threadsafe(end, loop)
                except RuntimeError:
                    end.close()  # its thread closed the loop meanwhile
                    continue
                with self._lock:
                    self._ending.setdefault(loop, []).append(future)
        for future in ending:
            await asyncio.wrap_future(future)
