"""The calls of ``modeld.v1.Repository``, as the server hands them to the node's gateway."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from msgspec import Struct

from modeld.node.gateway import RepositoryService
from modeld.transport.grpc.relay import Context, relay_answer
from modeld.transport.methods import Empty
from modeld.transport.repository_methods import (
    BackendRequest,
    ChatRequest,
    ConfiguredBackends,
    EmbedReply,
    EmbedRequest,
    ObservedModels,
    PromptReply,
    PromptRequest,
    RegisterBackendRequest,
    Vector,
)


class RepositoryCalls:
    """One call of the gateway for each method of the wire."""

    def __init__(self, gateway: RepositoryService) -> None:
        self._gateway = gateway

    def unary(self) -> dict[str, Callable[[Any], Awaitable[Struct]]]:
        """Those that answer once, by name."""
        return {
            "RegisterBackend": self._register,
            "RemoveBackend": self._remove,
            "ListBackends": self._list_backends,
            "ListModels": self._list_models,
            "Chat": self._chat,
            "Embed": self._embed,
            "Prompt": self._prompt,
        }

    async def stream(self, request: ChatRequest, context: Context) -> None:
        """The one that streams."""
        answer = await self._gateway.stream(request.backend, request.model, request.messages, request.config)
        await relay_answer(answer, context)

    async def _register(self, request: RegisterBackendRequest) -> Struct:
        return await self._gateway.register_backend(request.backend, secret=request.secret, replace=request.replace)

    async def _remove(self, request: BackendRequest) -> Empty:
        await self._gateway.remove_backend(request.backend)
        return Empty()

    async def _list_backends(self, request: Empty) -> ConfiguredBackends:
        return ConfiguredBackends(backends=tuple(await self._gateway.list_backends()))

    async def _list_models(self, request: BackendRequest) -> ObservedModels:
        return ObservedModels(models=tuple(await self._gateway.list_models(request.backend)))

    async def _chat(self, request: ChatRequest) -> Struct:
        return await self._gateway.chat(request.backend, request.model, request.messages, request.config)

    async def _embed(self, request: EmbedRequest) -> EmbedReply:
        result = await self._gateway.embed(request.backend, request.model, request.texts, dimensions=request.dimensions)
        vectors = tuple(Vector(values=vector) for vector in result.vectors)
        return EmbedReply(vectors=vectors, model=result.model, usage=result.usage)

    async def _prompt(self, request: PromptRequest) -> PromptReply:
        text = await self._gateway.prompt(
            request.backend, request.model, request.system, request.temperature, request.prompt
        )
        return PromptReply(text=text)
