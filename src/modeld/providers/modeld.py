"""``modeld``: a node elsewhere, reached over TCP.

``base_url`` is the node's address, ``modeld+tls://HOST:PORT``, or ``modeld://HOST:PORT`` on loopback. Behind a ``?``
comes the pin of its certificate, as the node prints it at its start: ``modeld+tls://10.0.0.5:7700?pin=sha256:...``;
without one, a public authority must have issued the certificate for that host. ``api_key`` is the node's token.

One connection for each event loop. When the node was started again, or another owner took over at that address, a call
of which no part has come yet is sent once more over a new connection.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl

from modeld.errors import (
    InvalidRequestError,
    LeaseLostError,
    NodeUnreachableError,
    NotOwnerError,
    StaleEpochError,
)
from modeld.providers.node_wire import NodeWire
from modeld.remote import check_remote, connect_remote
from modeld.repository.connections import Connections
from modeld.repository.provider import WireCatalog
from modeld.repository.values import BackendSpec, EmbedResult, ObservedModel
from modeld.repository.wire import Call
from modeld.session.conversations import Tapes
from modeld.session.values import ModelRef
from modeld.types import StreamPart

if TYPE_CHECKING:
    from modeld.repository.catalog import CatalogOptions
    from modeld.session.contract import ModelService

_LOST: Final = (StaleEpochError, NotOwnerError, NodeUnreachableError, LeaseLostError)
"""Nobody answers any more, or another owner does."""


def make_catalog(spec: BackendSpec, options: CatalogOptions) -> WireCatalog:
    """See :func:`modeld.repository.new_catalog_provider`."""
    return WireCatalog(ModeldWire(spec, options))


class ModeldWire(NodeWire):
    """A remote node.

    :raises InvalidRequestError: address, pin or token is none. :raises TLSRequiredError: plain and beyond loopback.
    """

    type = "modeld"

    def __init__(self, spec: BackendSpec, options: CatalogOptions) -> None:
        super().__init__(spec, options)
        self.tapes = Tapes()
        self._url, self._pin = parse_address(spec.base_url)
        check_remote(self._url, token=spec.api_key, pin=self._pin)
        self._lock = threading.Lock()
        self._connections = self._unconnected()

    @property
    def backend_ids(self) -> tuple[str, ...]:
        """The address, as it was given."""
        return (self.spec.base_url,)

    @asynccontextmanager
    async def service(self) -> AsyncGenerator[ModelService, None]:
        """See :meth:`NodeWire.service`. A connection whose node is lost is not used again."""
        connections = self._connections
        async with connections.use() as remote:
            node = await remote.node()
            try:
                yield node
            except _LOST:
                await self._retire(connections)
                raise

    async def ref(self, model: ObservedModel) -> ModelRef:
        """See :meth:`NodeWire.ref`. Names only: paths are those of another machine."""
        return ModelRef(name=model.name, type=model.meta.get("type", ""), digest=model.digest)

    async def list_models(self) -> list[ObservedModel]:
        """What the node can name, as it describes it."""
        before = self._connections
        try:
            return await self._listed()
        except _LOST:
            if before is self._connections:
                raise
            return await self._listed()

    async def embed(self, model: ObservedModel, texts: Sequence[str], dimensions: int | None) -> EmbedResult:
        """See :meth:`NodeWire.embed`."""
        before = self._connections
        try:
            return await super().embed(model, texts, dimensions)
        except _LOST:
            if before is self._connections:
                raise
            return await super().embed(model, texts, dimensions)

    async def stream(self, call: Call) -> AsyncGenerator[StreamPart, None]:
        """See :meth:`NodeWire.stream`."""
        before = self._connections
        parts = super().stream(call)
        try:
            first = await anext(parts)
        except _LOST:
            if before is self._connections:
                raise  # the node could not be reached in the first place
            parts = super().stream(call)
            first = await anext(parts)
        async with aclosing(parts):
            yield first
            async for part in parts:
                yield part

    async def aclose(self) -> None:
        """Close the connections that nobody uses, the others when their last call ends."""
        await self._connections.aclose()

    async def _listed(self) -> list[ObservedModel]:
        async with self.service() as service:
            models = {model.name: model for model in reversed(await service.models())}
            found = [(model, ModelRef(name=name, type=model.type)) for name, model in sorted(models.items())]
            return [await self.observed(service, model, ref) for model, ref in found]

    def _unconnected(self) -> Connections[_Remote]:
        return Connections(lambda: _Remote(self._url, self.spec.api_key, self._pin), _Remote.aclose)

    async def _retire(self, lost: Connections[_Remote]) -> None:
        """Whoever comes now connects anew; calls that still run on ``lost`` end by themselves."""
        with self._lock:
            if self._connections is lost:
                self._connections = self._unconnected()
        await lost.aclose()


class _Remote:
    """A loop's connection: made by the first call, shared by all."""

    def __init__(self, url: str, token: str, pin: str | None) -> None:
        self._address = url, token, pin
        self._connecting = asyncio.Lock()
        self._open = AsyncExitStack()
        self._node: ModelService | None = None

    async def node(self) -> ModelService:
        """The node, connected. :raises NodeError: as :func:`modeld.connect_remote`."""
        async with self._connecting:
            if self._node is None:
                url, token, pin = self._address
                self._node = await self._open.enter_async_context(await connect_remote(url, token=token, pin=pin))
            return self._node

    async def aclose(self) -> None:
        """Close it."""
        await self._open.aclose()


def parse_address(text: str) -> tuple[str, str | None]:
    """Address and pin in a ``base_url``, neither of them checked.

    :raises InvalidRequestError: behind the ``?`` is something else.
    """
    url, mark, query = text.partition("?")
    if not mark:
        return url, None
    options = parse_qsl(query, keep_blank_values=True)
    if [name for name, _ in options] != ["pin"]:
        rule = f"behind the ? of a node's address comes pin=sha256:... and nothing else, not {query[:80]!r}"
        raise InvalidRequestError(rule, parameter="base_url")
    return url, options[0][1]
