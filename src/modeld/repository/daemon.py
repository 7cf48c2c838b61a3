"""The process's backends: register, replace, remove, list, execute."""

from __future__ import annotations

import asyncio
import threading
from typing import ClassVar

from msgspec import Struct

from modeld.errors import BackendNotFoundError, InvalidRequestError
from modeld.repository.catalog import CatalogOptions, default_catalog_factory
from modeld.repository.contract import CatalogFactory, CatalogProvider, Provider
from modeld.repository.hooks import shutdown
from modeld.repository.retry import RetryPolicy
from modeld.repository.tracker import NoopTracker, Tracker
from modeld.repository.values import BackendSpec, ObservedModel


class _Backend(Struct, frozen=True):
    spec: BackendSpec
    catalog: CatalogProvider


class Daemon:
    """Backends by id. May be used by tasks of several loops and by threads at once.

    A call that runs goes on with the backend it started with, also when that is replaced or removed meanwhile.
    """

    _default: ClassVar[Daemon | None] = None
    _default_lock: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, *, catalog_factory: CatalogFactory | None = None) -> None:
        self._factory: CatalogFactory = catalog_factory or default_catalog_factory()
        self._lock = threading.Lock()
        # Never changed, only replaced: who reads it needs no lock and sees no half of anything.
        self._backends: dict[str, _Backend] = {}

    @classmethod
    def default(cls) -> Daemon:
        """The one of this process, made at the first call."""
        with Daemon._default_lock:
            if Daemon._default is None:
                Daemon._default = Daemon()
            return Daemon._default

    async def register_backend(
        self,
        id: str,
        spec: BackendSpec,
        *,
        http_client: object = None,
        tracker: Tracker | None = None,
        retry: RetryPolicy | None = None,
    ) -> None:
        """Register ``spec`` under ``id``, or replace what is there at once. The backend is not called.

        :param http_client: see :class:`~modeld.repository.CatalogOptions`.
        :raises InvalidRequestError: no id, an unknown type, or a spec that cannot be used; what was there stays.
        """
        if not id:
            raise InvalidRequestError("a backend needs an id", parameter="id")
        options = CatalogOptions(
            name=id, http_client=http_client, tracker=tracker or NoopTracker(), retry=retry or RetryPolicy()
        )
        # In a thread: entry points are read from the disk.
        catalog = await asyncio.to_thread(self._factory.new_catalog_provider, spec, options)
        with self._lock:
            old = self._backends.get(id)
            self._backends = {**self._backends, id: _Backend(spec, catalog)}
        if old is not None:
            await old.catalog.aclose()

    def remove_backend(self, id: str) -> None:
        """Forget a backend; one that is not there is no error. Its connections close when its last call has ended."""
        with self._lock:
            old = self._backends.get(id)
            self._backends = {key: value for key, value in self._backends.items() if key != id}
        if old is not None:
            _close_soon(old.catalog)

    def list_backends(self) -> list[str]:
        """The ids, sorted."""
        return sorted(self._backends)

    def spec(self, id: str) -> BackendSpec:
        """What a backend was registered with. :raises BackendNotFoundError: none of that id."""
        return self._backend(id).spec

    async def list_models(self, id: str) -> list[ObservedModel]:
        """What the backend offers now.

        :raises BackendNotFoundError: none of that id. :raises BackendError: as the backend says.
        """
        return await self._backend(id).catalog.list_models()

    def provider_for(self, id: str, model: ObservedModel | str) -> Provider:
        """What executes ``model`` of a backend. The model is not looked for.

        :raises BackendNotFoundError: none of that id.
        """
        return self._backend(id).catalog.provider_for(model)

    async def stop(self) -> None:
        """Close the connections and run the process's shutdown hooks. The backends stay registered and usable.

        :raises ExceptionGroup: hooks failed; see :func:`modeld.repository.shutdown`.
        """
        for backend in self._backends.values():
            await backend.catalog.aclose()
        await shutdown()

    def _backend(self, id: str) -> _Backend:
        backends = self._backends
        found = backends.get(id)
        if found is None:
            known = ", ".join(sorted(backends)) or "none is registered"
            raise BackendNotFoundError(f"no backend is called {id[:80]!r} ({known})", id=id)
        return found


def _close_soon(catalog: CatalogProvider) -> None:
    """Without a loop there is nothing to close by: its sockets close with the objects."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    task = loop.create_task(catalog.aclose())
    _closing.add(task)
    task.add_done_callback(_closing.discard)


_closing: set[asyncio.Task[None]] = set()
"""The loop itself holds tasks weakly."""
