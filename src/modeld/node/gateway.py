"""The gateway: every backend that is registered in a data root, behind one set of calls.

``backends.json`` is the truth, whoever writes it: each call looks at the file's stamp, and what changed is taken over
before the call goes on. Keys are looked up when a backend is first called, and a key in a file again at each call, so
that a changed one is used at once. Calls that run go on with the key and the address they began with.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from msgspec import Struct, structs

from modeld.errors import AuthenticationError, InvalidRequestError
from modeld.node.backends import (
    ConfiguredBackend,
    Stamp,
    add_backend,
    backends_stamp,
    checked_backend,
    list_backends,
    read_secret,
    remove_backend,
    unknown_backend,
)
from modeld.node.secrets import check_secret
from modeld.repository.catalog import CatalogOptions, default_catalog_factory
from modeld.repository.client import WireClient
from modeld.repository.contract import AnswerStream, CatalogProvider, Provider
from modeld.repository.daemon import Daemon
from modeld.repository.values import BackendSpec, EmbedResult, ObservedModel
from modeld.session.contract import ModelService
from modeld.types import ChatConfig, ChatResult, Message

Service = Callable[[], Awaitable[ModelService]]


class RepositoryService(Protocol):
    """What a node offers of its backends, in process or over a wire. ``backend`` is the name of one."""

    async def register_backend(
        self, backend: ConfiguredBackend, *, secret: str = "", replace: bool = False
    ) -> ConfiguredBackend:
        """Register it for good, and return it as it was written. It is not called.

        :param secret: the key itself; the node stores it, and never tells it. Else ``backend.key`` says where it is.
        :param replace: take the place of one of that name.
        :raises InvalidRequestError: the name is taken, or the type or the address is none; nothing was changed.
        :raises AuthenticationError: there is no key where the reference says; nothing was changed.
        :raises PermissionDeniedError: over TCP. Only who is on the machine may say where keys are sent.
        """
        ...

    async def remove_backend(self, name: str) -> None:
        """Forget it and the key that is stored for it. Its running calls go on.

        :raises BackendNotFoundError: none of that name. :raises PermissionDeniedError: over TCP.
        """
        ...

    async def list_backends(self) -> list[ConfiguredBackend]:
        """All of them, by name. No keys: where they are."""
        ...

    async def list_models(self, backend: str) -> list[ObservedModel]:
        """What the backend offers now.

        :raises BackendNotFoundError: none of that name. :raises BackendError: as the backend says.
        """
        ...

    async def chat(
        self, backend: str, model: str, messages: Sequence[Message], config: ChatConfig | None = None, /, **options: Any
    ) -> ChatResult:
        """See :meth:`modeld.repository.ChatClient.chat`."""
        ...

    async def stream(
        self, backend: str, model: str, messages: Sequence[Message], config: ChatConfig | None = None, /, **options: Any
    ) -> AnswerStream:
        """See :meth:`modeld.repository.StreamClient.stream`. Over a wire a lost node ends it with ``unreachable``.

        It is not asked again of a successor: what it cost the vendor would be paid twice.
        """
        ...

    async def embed(
        self, backend: str, model: str, texts: Sequence[str], *, dimensions: int | None = None
    ) -> EmbedResult:
        """One vector for each text. See :meth:`modeld.repository.EmbedClient.embed`."""
        ...

    async def prompt(self, backend: str, model: str, system: str, temperature: float | None, prompt: str) -> str:
        """See :meth:`modeld.repository.PromptClient.prompt`."""
        ...


class _Registered(Struct, frozen=True):
    """What the daemon was given for a name."""

    backend: ConfiguredBackend
    secret: str

    def __repr__(self) -> str:
        return f"_Registered({self.backend!r})"


class _Factory:
    """The registry's catalogs, with the way to the node that executes local models."""

    def __init__(self, service: Service | None) -> None:
        self._service = service

    def new_catalog_provider(self, spec: BackendSpec, options: CatalogOptions | None = None) -> CatalogProvider:
        """See :func:`modeld.repository.new_catalog_provider`."""
        options = structs.replace(options or CatalogOptions(), service=self._service)
        return default_catalog_factory().new_catalog_provider(spec, options)


class Gateway:
    """:class:`RepositoryService` in process. Belongs to one event loop; files are touched in threads.

    :param service: opens the node that executes ``llama`` and ``openvino`` models.
    """

    def __init__(self, data_root: Path, service: Service | None = None) -> None:
        self._root = data_root
        self._factory = _Factory(service)
        self._daemon = Daemon(catalog_factory=self._factory)
        self._stamp: Stamp | None = None
        self._configured: dict[str, ConfiguredBackend] = {}
        self._registered: dict[str, _Registered] = {}
        self._reading = asyncio.Lock()
        # One for each name that was ever called: a slow keyring must not hold up the others.
        self._registering: dict[str, asyncio.Lock] = {}
        self._asked: dict[ConfiguredBackend, asyncio.Future[str]] = {}

    async def register_backend(
        self, backend: ConfiguredBackend, *, secret: str = "", replace: bool = False, known_key: bool = True
    ) -> ConfiguredBackend:
        """See :meth:`RepositoryService.register_backend`.

        :param known_key: there must be a key where the reference says, for this process too.
        """
        backend = checked_backend(backend)
        await self._try(backend, secret, known_key)
        written = await asyncio.to_thread(add_backend, self._root, backend, secret=secret, replace=replace)
        await self._reload()
        return written

    async def remove_backend(self, name: str) -> None:
        """See :meth:`RepositoryService.remove_backend`."""
        _require_name(name)
        await asyncio.to_thread(remove_backend, self._root, name)
        await self._reload()

    async def list_backends(self) -> list[ConfiguredBackend]:
        """See :meth:`RepositoryService.list_backends`."""
        await self._reload()
        return list(self._configured.values())

    async def list_models(self, backend: str) -> list[ObservedModel]:
        """See :meth:`RepositoryService.list_models`."""
        await self.ready(backend)
        return await self._daemon.list_models(backend)

    async def chat(
        self, backend: str, model: str, messages: Sequence[Message], config: ChatConfig | None = None, /, **options: Any
    ) -> ChatResult:
        """See :meth:`RepositoryService.chat`."""
        client = await (await self._provider(backend, model)).chat_client()
        return await client.chat(messages, config, **options)

    async def stream(
        self, backend: str, model: str, messages: Sequence[Message], config: ChatConfig | None = None, /, **options: Any
    ) -> AnswerStream:
        """See :meth:`RepositoryService.stream`."""
        client = await (await self._provider(backend, model)).stream_client()
        return await client.stream(messages, config, **options)

    async def embed(
        self, backend: str, model: str, texts: Sequence[str], *, dimensions: int | None = None
    ) -> EmbedResult:
        """See :meth:`RepositoryService.embed`. Model and usage are known where our own clients are used."""
        client = await (await self._provider(backend, model)).embed_client()
        if isinstance(client, WireClient):
            return await client.embed_result(texts, dimensions=dimensions)
        vectors = await client.embed(list(texts), dimensions=dimensions)
        return EmbedResult(vectors=tuple(tuple(vector) for vector in vectors))

    async def prompt(self, backend: str, model: str, system: str, temperature: float | None, prompt: str) -> str:
        """See :meth:`RepositoryService.prompt`."""
        client = await (await self._provider(backend, model)).prompt_client()
        return await client.prompt(system, temperature, prompt)

    async def aclose(self) -> None:
        """Close the connections to the backends. Safe to call twice."""
        await self._daemon.stop()

    async def _provider(self, backend: str, model: str) -> Provider:
        await self.ready(backend)
        return self._daemon.provider_for(backend, model)

    async def ready(self, name: str) -> None:
        """Have the daemon know the backend as it is configured now.

        :raises BackendNotFoundError: none of that name. :raises ModeldError: its key cannot be had.
        """
        _require_name(name)
        await self._reload()
        if name not in self._configured:
            raise unknown_backend(name, list(self._configured.values()))
        async with self._registering.setdefault(name, asyncio.Lock()):
            while (backend := self._configured.get(name)) is not None:
                before = self._registered.get(name)
                if before is not None and before.backend == backend and not backend.key.startswith("file:"):
                    return
                wanted = _Registered(backend, await self._secret(backend))
                if wanted == before:
                    return
                await self._daemon.register_backend(name, _spec(wanted.backend, wanted.secret))
                self._registered[name] = wanted
                # Meanwhile the file may have been read again.
            self._drop(name)
            raise unknown_backend(name, list(self._configured.values()))

    async def _reload(self) -> None:
        """Read the file again where it changed."""
        async with self._reading:
            stamp, found = await asyncio.to_thread(self._read, self._stamp)
            if found is None:
                return
            self._configured = {backend.name: backend for backend in found}
            self._stamp = stamp
            for name, registered in list(self._registered.items()):
                if self._configured.get(name) != registered.backend:
                    self._drop(name)

    def _read(self, known: Stamp | None) -> tuple[Stamp | None, list[ConfiguredBackend] | None]:
        """The stamp, and the backends where they are not those of ``known``."""
        stamp = backends_stamp(self._root)
        if stamp is not None and stamp == known:
            return stamp, None
        # The stamp was taken before: a write that comes between is seen again at the next call.
        return stamp, list_backends(self._root)

    def _drop(self, name: str) -> None:
        self._registered.pop(name, None)
        self._daemon.remove_backend(name)

    async def _secret(self, backend: ConfiguredBackend) -> str:
        """The backend's key. Of a keyring it is asked once, however many wait for it and leave again."""
        if not backend.key.startswith("keyring:"):
            return await asyncio.to_thread(read_secret, self._root, backend)
        asked = self._asked.get(backend)
        if asked is None:
            asked = self._asked[backend] = _apart(lambda: read_secret(self._root, backend))
            asked.add_done_callback(lambda _: self._asked.pop(backend))
        return await asyncio.shield(asked)

    async def _try(self, backend: ConfiguredBackend, secret: str, known_key: bool) -> None:
        """Make its catalog, and forget it: what cannot be used is not written."""
        try:
            key = check_secret(secret) if secret else await self._secret(backend)
        except AuthenticationError:
            if known_key:
                raise
            return
        await asyncio.to_thread(self._factory.new_catalog_provider, _spec(backend, key))


def _apart(call: Callable[[], str]) -> asyncio.Future[str]:
    """``call``'s result, from a thread of its own.

    A keyring that waits for its user may never come back: it must hold none of the threads that all share, and not the
    end of the process.
    """
    loop = asyncio.get_running_loop()
    found: asyncio.Future[str] = loop.create_future()

    def run() -> None:
        try:
            value = call()
        except Exception as error:
            # As a value: the name is gone when the block ends.
            tell = partial(found.set_exception, error)
        else:
            tell = partial(found.set_result, value)
        with contextlib.suppress(RuntimeError):  # the loop is gone
            loop.call_soon_threadsafe(tell)

    threading.Thread(target=run, name="keyring", daemon=True).start()
    return found


def _spec(backend: ConfiguredBackend, secret: str) -> BackendSpec:
    """A pin goes with the address: see :mod:`modeld.providers.modeld`."""
    url = f"{backend.base_url}?pin={backend.pin}" if backend.pin else backend.base_url
    return BackendSpec(backend.type, url, secret)


def _require_name(name: str) -> None:
    if not name:
        raise InvalidRequestError("a call names its backend", parameter="backend")
