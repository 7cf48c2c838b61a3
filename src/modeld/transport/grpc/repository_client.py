"""The backends of a node over gRPC: the same calls as in process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Any, cast

import grpc

from modeld.errors import CancelledError, InvalidRequestError, ModeldError
from modeld.node.backends import ConfiguredBackend
from modeld.repository.client import config_of
from modeld.repository.values import EmbedResult, ObservedModel
from modeld.session.streams import BatchedStream
from modeld.transport.convert import frame_from_bytes
from modeld.transport.grpc.wire import StreamCall, Wire, cancelling
from modeld.transport.methods import Empty
from modeld.transport.repository_methods import (
    REPOSITORY,
    BackendRequest,
    ChatRequest,
    ConfiguredBackends,
    EmbedReply,
    EmbedRequest,
    ObservedModels,
    PromptReply,
    PromptRequest,
    RegisterBackendRequest,
)
from modeld.types import ChatConfig, ChatResult, EndPart, Message, StreamPart


class RemoteRepository:
    """:class:`modeld.node.gateway.RepositoryService` of the node at the other end."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def register_backend(
        self, backend: ConfiguredBackend, *, secret: str = "", replace: bool = False
    ) -> ConfiguredBackend:
        """See :meth:`modeld.node.gateway.RepositoryService.register_backend`."""
        request = RegisterBackendRequest(backend=backend, secret=secret, replace=replace)
        return await self._wire.call("RegisterBackend", request, ConfiguredBackend, service=REPOSITORY)

    async def remove_backend(self, name: str) -> None:
        """See :meth:`modeld.node.gateway.RepositoryService.remove_backend`."""
        await self._wire.call("RemoveBackend", BackendRequest(backend=name), Empty, service=REPOSITORY)

    async def list_backends(self) -> list[ConfiguredBackend]:
        """See :meth:`modeld.node.gateway.RepositoryService.list_backends`."""
        reply = await self._wire.call("ListBackends", Empty(), ConfiguredBackends, service=REPOSITORY)
        return list(reply.backends)

    async def list_models(self, backend: str) -> list[ObservedModel]:
        """See :meth:`modeld.node.gateway.RepositoryService.list_models`."""
        request = BackendRequest(backend=backend)
        return list((await self._wire.call("ListModels", request, ObservedModels, service=REPOSITORY)).models)

    async def chat(
        self, backend: str, model: str, messages: Sequence[Message], config: ChatConfig | None = None, /, **options: Any
    ) -> ChatResult:
        """See :meth:`modeld.node.gateway.RepositoryService.chat`."""
        request = _chat_request(backend, model, messages, config, options)
        return await self._wire.call("Chat", request, ChatResult, service=REPOSITORY)

    async def stream(
        self, backend: str, model: str, messages: Sequence[Message], config: ChatConfig | None = None, /, **options: Any
    ) -> RemoteAnswer:
        """See :meth:`modeld.node.gateway.RepositoryService.stream`."""
        data = self._wire.encode(_chat_request(backend, model, messages, config, options))
        answer = RemoteAnswer(self._wire, self._wire.stream("Stream", data, service=REPOSITORY))
        await answer.start()
        return answer

    async def embed(
        self, backend: str, model: str, texts: Sequence[str], *, dimensions: int | None = None
    ) -> EmbedResult:
        """See :meth:`modeld.node.gateway.RepositoryService.embed`."""
        if isinstance(texts, str):
            raise InvalidRequestError("texts is a list of texts; write [text] for one", parameter="texts")
        request = EmbedRequest(backend=backend, model=model, texts=tuple(texts), dimensions=dimensions)
        reply = await self._wire.call("Embed", request, EmbedReply, service=REPOSITORY)
        vectors = tuple(vector.values for vector in reply.vectors)
        return EmbedResult(vectors=vectors, model=reply.model, usage=reply.usage)

    async def prompt(self, backend: str, model: str, system: str, temperature: float | None, prompt: str) -> str:
        """See :meth:`modeld.node.gateway.RepositoryService.prompt`."""
        request = PromptRequest(backend=backend, model=model, system=system, temperature=temperature, prompt=prompt)
        return (await self._wire.call("Prompt", request, PromptReply, service=REPOSITORY)).text


class RemoteAnswer(BatchedStream):
    """:class:`modeld.repository.AnswerStream` from a node. Belongs to one event loop.

    Closing it, or cancelling the task that reads it, closes the backend's request. When the node is lost it raises
    ``unreachable``, which may be tried again; nothing is.
    """

    def __init__(self, wire: Wire, call: StreamCall) -> None:
        super().__init__()
        self._wire = wire
        self._call = call
        self._reading = asyncio.Lock()
        self._failure: ModeldError | None = None
        self._closed = False
        self._loop = asyncio.get_running_loop()

    def __del__(self) -> None:
        # gRPC keeps a call that runs though nobody can read it: the backend would go on, and be paid. The collector
        # may run in any thread.
        if not self._closed:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the call with it
                self._loop.call_soon_threadsafe(self._call.cancel)

    async def start(self) -> None:
        """Wait for the first parts: until then an error is the caller's, not the reader's."""
        self._ready.extend(await self._read())

    async def aclose(self) -> None:
        """Cancel the call if it still runs; who reads it meanwhile gets :class:`CancelledError`."""
        self._ready.clear()
        self._closed = True
        self._call.cancel()

    async def _read(self) -> list[StreamPart]:
        # One reader at a time: the rest find what it found.
        async with self._reading:
            if self._failure is not None:
                raise self._failure
            try:
                return await self._receive()
            except ModeldError as error:
                self._failure = error
                raise
            except asyncio.CancelledError:
                closed, self._closed = self._closed, True
                if closed and not cancelling():
                    raise CancelledError("the stream was closed before its end; start a new one") from None
                raise

    async def _receive(self) -> list[StreamPart]:
        if self._closed:
            return []
        parts: list[StreamPart] = []
        while not parts:
            with self._wire.translated():
                data = await self._call.read()
            with self._wire.reading():
                if data is grpc.aio.EOF:
                    raise InvalidRequestError("the stream stopped without an end part")
                parts = frame_from_bytes(cast("bytes", data))
        if isinstance(parts[-1], EndPart):
            self._closed = True
            # To the status: then the node has closed its own stream.
            with contextlib.suppress(grpc.aio.AioRpcError):
                await self._call.read()
        return parts


def _chat_request(
    backend: str, model: str, messages: Sequence[Message], config: ChatConfig | None, options: dict[str, Any]
) -> ChatRequest:
    if options:
        # The very function of the clients in process: the same options mean the same here.
        config = config_of(config, options)
    return ChatRequest(backend=backend, model=model, messages=tuple(messages), config=config)
