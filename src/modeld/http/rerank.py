"""``POST /v1/rerank``: documents in the order in which they answer a query, as Jina and Cohere write it."""

from __future__ import annotations

from typing import Any

from msgspec import Struct

from modeld.errors import InvalidRequestError
from modeld.http.embeddings import vector_usage
from modeld.http.exchange import Exchange
from modeld.http.models import Models


class RankedText(Struct, frozen=True, forbid_unknown_fields=True):
    """A document as an object."""

    text: str


class RerankRequest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """:param truncate: modeld's own: documents that are too long are cut, where it would be an error."""

    model: str
    query: str
    documents: list[str | RankedText]
    top_n: int | None = None
    return_documents: bool | None = None
    user: str | None = None
    truncate: bool | None = None


class Reranking:
    """The route. For models of this node."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request."""
        request = await exchange.read(RerankRequest)
        if request.top_n is not None and request.top_n < 1:
            raise InvalidRequestError(f"top_n must be at least 1, not {request.top_n}", parameter="top_n")
        documents = [item if isinstance(item, str) else item.text for item in request.documents]
        target = await self._models.local(request.model, "rerank")
        exchange.is_from(request.user or "")
        ranked = await self._models.service.rerank(
            target.ref, request.query, documents, overflow="truncate" if request.truncate else "error"
        )
        results: list[dict[str, Any]] = []
        for index in ranked.order[: request.top_n]:
            shown = {"document": {"text": documents[index]}} if request.return_documents else {}
            results.append({"index": index, "relevance_score": ranked.scores[index]} | shown)
        cut = [index for index, item in enumerate(ranked.items) if item.truncated]
        body = {"object": "list", "model": request.model, "results": results, "usage": vector_usage(ranked.usage)}
        await exchange.reply(body | {"modeld": {"truncated": cut}})
