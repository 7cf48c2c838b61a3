"""Calls without a session over gRPC, both ends: vectors, scores, tokens, prompts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from msgspec import Struct

from modeld.session.contract import ModelService
from modeld.session.text_values import (
    Embeddings,
    EmbedInput,
    InputOverflow,
    Ranking,
    RenderedPrompt,
    TokenList,
    embed_inputs,
    rank_documents,
)
from modeld.session.values import ModelRef
from modeld.transport.grpc.wire import Wire
from modeld.transport.methods import (
    DetokenizeReply,
    DetokenizeRequest,
    RenderRequest,
    RerankRequest,
    TokenizeRequest,
    VectorsRequest,
)
from modeld.types import Message, Tool


class TextClient:
    """The client's end; see :class:`modeld.session.ModelService`."""

    _wire: Wire

    async def embed(
        self,
        ref: ModelRef | str,
        inputs: Iterable[str | Sequence[int] | EmbedInput],
        *,
        normalize: bool = True,
        dimensions: int | None = None,
        overflow: InputOverflow = "error",
        context: int = 0,
    ) -> Embeddings:
        """See :meth:`modeld.session.ModelService.embed`."""
        request = VectorsRequest(
            ref=ModelRef.of(ref),
            inputs=embed_inputs(inputs),
            normalize=normalize,
            dimensions=dimensions,
            overflow=overflow,
            context=context,
        )
        return await self._wire.call("Embed", request, Embeddings)

    async def rerank(
        self,
        ref: ModelRef | str,
        query: str,
        documents: Iterable[str],
        *,
        overflow: InputOverflow = "error",
        context: int = 0,
    ) -> Ranking:
        """See :meth:`modeld.session.ModelService.rerank`."""
        checked = rank_documents(query, documents)
        request = RerankRequest(
            ref=ModelRef.of(ref), query=query, documents=checked, overflow=overflow, context=context
        )
        return await self._wire.call("Rerank", request, Ranking)

    async def tokenize(self, ref: ModelRef | str, text: str, *, add_special: bool = True) -> TokenList:
        """See :meth:`modeld.session.ModelService.tokenize`."""
        request = TokenizeRequest(ref=ModelRef.of(ref), text=text, add_special=add_special)
        return await self._wire.call("Tokenize", request, TokenList)

    async def detokenize(self, ref: ModelRef | str, tokens: Sequence[int]) -> bytes:
        """See :meth:`modeld.session.ModelService.detokenize`."""
        request = DetokenizeRequest(ref=ModelRef.of(ref), tokens=tuple(tokens))
        return (await self._wire.call("Detokenize", request, DetokenizeReply)).data

    async def render(
        self,
        ref: ModelRef | str,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        think: str = "auto",
        generate: bool = True,
    ) -> RenderedPrompt:
        """See :meth:`modeld.session.ModelService.render`."""
        request = RenderRequest(
            ref=ModelRef.of(ref), messages=tuple(messages), tools=tuple(tools), think=think, generate=generate
        )
        return await self._wire.call("Render", request, RenderedPrompt)


def text_calls(service: ModelService) -> dict[str, Callable[[Any], Awaitable[Struct]]]:
    """The server's end: what answers which method."""

    async def embed(request: VectorsRequest) -> Embeddings:
        return await service.embed(
            request.ref,
            request.inputs,
            normalize=request.normalize,
            dimensions=request.dimensions,
            overflow=request.overflow,
            context=request.context,
        )

    async def rerank(request: RerankRequest) -> Ranking:
        return await service.rerank(
            request.ref, request.query, request.documents, overflow=request.overflow, context=request.context
        )

    async def tokenize(request: TokenizeRequest) -> TokenList:
        return await service.tokenize(request.ref, request.text, add_special=request.add_special)

    async def detokenize(request: DetokenizeRequest) -> DetokenizeReply:
        return DetokenizeReply(data=await service.detokenize(request.ref, request.tokens))

    async def render(request: RenderRequest) -> RenderedPrompt:
        return await service.render(
            request.ref, request.messages, tools=request.tools, think=request.think, generate=request.generate
        )

    return {"Embed": embed, "Rerank": rerank, "Tokenize": tokenize, "Detokenize": detokenize, "Render": render}
