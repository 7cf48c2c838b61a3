"""The backends of whoever owns a data root.

They are registered in the data root, not in a process: a successor has the same ones. What asks a backend is never
repeated on a successor: nobody knows whether the vendor has answered, and been paid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modeld.node.backends import ConfiguredBackend
from modeld.repository.values import EmbedResult, ObservedModel
from modeld.transport.grpc.repository_client import RemoteAnswer
from modeld.transport.route import Route
from modeld.types import ChatConfig, ChatResult, Message


class LeaderRepository:
    """:class:`modeld.node.gateway.RepositoryService` of the owner. A lost one is ``unreachable``: try again."""

    def __init__(self, route: Route) -> None:
        self._route = route

    async def register_backend(
        self, backend: ConfiguredBackend, *, secret: str = "", replace: bool = False
    ) -> ConfiguredBackend:
        """See :meth:`modeld.node.gateway.RepositoryService.register_backend`."""
        return await self._route.call(
            lambda node: node.repository.register_backend(backend, secret=secret, replace=replace), repeat=False
        )

    async def remove_backend(self, name: str) -> None:
        """See :meth:`modeld.node.gateway.RepositoryService.remove_backend`."""
        await self._route.call(lambda node: node.repository.remove_backend(name), repeat=False)

    async def list_backends(self) -> list[ConfiguredBackend]:
        """See :meth:`modeld.node.gateway.RepositoryService.list_backends`."""
        return await self._route.call(lambda node: node.repository.list_backends(), repeat=True)

    async def list_models(self, backend: str) -> list[ObservedModel]:
        """See :meth:`modeld.node.gateway.RepositoryService.list_models`."""
        return await self._route.call(lambda node: node.repository.list_models(backend), repeat=True)

    async def chat(
        self, backend: str, model: str, messages: Sequence[Message], config: ChatConfig | None = None, /, **options: Any
    ) -> ChatResult:
        """See :meth:`modeld.node.gateway.RepositoryService.chat`."""
        return await self._route.call(
            lambda node: node.repository.chat(backend, model, messages, config, **options), repeat=False
        )

    async def stream(
        self, backend: str, model: str, messages: Sequence[Message], config: ChatConfig | None = None, /, **options: Any
    ) -> RemoteAnswer:
        """See :meth:`modeld.node.gateway.RepositoryService.stream`."""
        return await self._route.call(
            lambda node: node.repository.stream(backend, model, messages, config, **options), repeat=False
        )

    async def embed(
        self, backend: str, model: str, texts: Sequence[str], *, dimensions: int | None = None
    ) -> EmbedResult:
        """See :meth:`modeld.node.gateway.RepositoryService.embed`."""
        return await self._route.call(
            lambda node: node.repository.embed(backend, model, texts, dimensions=dimensions), repeat=False
        )

    async def prompt(self, backend: str, model: str, system: str, temperature: float | None, prompt: str) -> str:
        """See :meth:`modeld.node.gateway.RepositoryService.prompt`."""
        return await self._route.call(
            lambda node: node.repository.prompt(backend, model, system, temperature, prompt), repeat=False
        )
