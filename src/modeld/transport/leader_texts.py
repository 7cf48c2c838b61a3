"""Calls without a session on whoever is the owner. They change nothing: where an owner is lost they are asked again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

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
from modeld.transport.route import Route
from modeld.types import Message, Tool


class LeaderTexts:
    """See :class:`modeld.session.ModelService`."""

    _route: Route

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
        checked = embed_inputs(inputs)
        return await self._route.call(
            lambda node: node.embed(
                ref, checked, normalize=normalize, dimensions=dimensions, overflow=overflow, context=context
            ),
            repeat=True,
        )

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
        return await self._route.call(
            lambda node: node.rerank(ref, query, checked, overflow=overflow, context=context), repeat=True
        )

    async def tokenize(self, ref: ModelRef | str, text: str, *, add_special: bool = True) -> TokenList:
        """See :meth:`modeld.session.ModelService.tokenize`."""
        return await self._route.call(lambda node: node.tokenize(ref, text, add_special=add_special), repeat=True)

    async def detokenize(self, ref: ModelRef | str, tokens: Sequence[int]) -> bytes:
        """See :meth:`modeld.session.ModelService.detokenize`."""
        return await self._route.call(lambda node: node.detokenize(ref, tokens), repeat=True)

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
        return await self._route.call(
            lambda node: node.render(ref, messages, tools=tools, think=think, generate=generate), repeat=True
        )
