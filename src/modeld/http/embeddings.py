"""``POST /v1/embeddings``: vectors, by models of this node and of its backends."""

from __future__ import annotations

import asyncio
import base64
from array import array
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from modeld.errors import InvalidRequestError, NotSupportedError
from modeld.http.exchange import Exchange
from modeld.http.models import Models, Target
from modeld.session.text_values import packed, unpacked
from modeld.types import Usage

TokenId = Annotated[int, Meta(ge=0, lt=2**31)]


class EmbeddingsRequest(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """:param truncate: modeld's own: an input that is too long is cut, where it would be an error."""

    model: str
    input: str | list[str | TokenId | list[TokenId]]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None
    user: str | None = None
    truncate: bool | None = None

    def inputs(self) -> list[str | list[int]]:
        """Texts, and token ids as they are.

        :raises InvalidRequestError: ids stand beside texts or lists.
        """
        if isinstance(self.input, str):
            return [self.input]
        if ids := [item for item in self.input if isinstance(item, int)]:
            if len(ids) < len(self.input):
                text = "input is one text, one list of token ids, or a list of texts and of lists of ids"
                raise InvalidRequestError(text, parameter="input")
            return [ids]
        return [item for item in self.input if not isinstance(item, int)]


class _Made(Struct, frozen=True):
    """``data``: all vectors, numbers of 32 bits; ``count`` of them. ``extension``: what stands under ``modeld``."""

    data: bytes
    count: int
    usage: Usage
    extension: dict[str, Any] | None = None


class EmbeddingVectors:
    """The route. Holds nothing of its own."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request."""
        request = await exchange.read(EmbeddingsRequest)
        inputs = request.inputs()
        target = await self._models.find(request.model)
        exchange.is_from(request.user or "")
        made = await (self._by_backend if target.backend else self._by_node)(target, request, inputs)
        # Some 32 MiB of numbers become 160 MiB of JSON: other streams go on meanwhile.
        await exchange.reply(await asyncio.to_thread(_encoded, request, made))

    async def _by_node(self, target: Target, request: EmbeddingsRequest, inputs: Sequence[str | list[int]]) -> _Made:
        overflow: Literal["truncate", "error"] = "truncate" if request.truncate else "error"
        try:
            found = await self._models.service.embed(
                target.ref, inputs, dimensions=request.dimensions, overflow=overflow
            )
        except InvalidRequestError as error:
            if error.details.get("parameter") in ("inputs", "tokens"):
                raise InvalidRequestError(error.message, **error.details | {"parameter": "input"}) from None
            raise
        cut = [index for index, item in enumerate(found.items) if item.truncated]
        extension = {"pooling": found.pooling, "normalized": found.normalized, "truncated": cut}
        return _Made(found.data, len(found.items), found.usage, extension)

    async def _by_backend(self, target: Target, request: EmbeddingsRequest, inputs: Sequence[str | list[int]]) -> _Made:
        if request.truncate:
            text = "truncate is for models of this node: what backends do with long inputs, they decide"
            raise NotSupportedError(text, feature="truncate")
        texts = [item for item in inputs if isinstance(item, str)]
        if len(texts) < len(inputs):
            raise NotSupportedError("backends take texts only: input holds token ids", feature="input")
        found = await self._models.embed(target, texts, request.dimensions)
        data = b"".join(packed(array("f", vector)) for vector in found.vectors)
        return _Made(data, len(found.vectors), found.usage)


def _encoded(request: EmbeddingsRequest, made: _Made) -> msgspec.Raw:
    size = len(made.data) // max(1, made.count)
    vectors = [made.data[start : start + size] for start in range(0, len(made.data), size or 1)]
    body: dict[str, Any] = {
        "object": "list",
        "data": [
            {"object": "embedding", "index": index, "embedding": _written(vector, request.encoding_format)}
            for index, vector in enumerate(vectors)
        ],
        "model": request.model,
        "usage": vector_usage(made.usage),
    }
    return msgspec.Raw(msgspec.json.encode(body | ({"modeld": made.extension} if made.extension else {})))


def _written(vector: bytes, form: str | None) -> str | list[float]:
    return base64.b64encode(vector).decode() if form == "base64" else unpacked(vector).tolist()


def vector_usage(usage: Usage) -> dict[str, int] | None:
    """``None`` where a vendor told no number."""
    return None if usage.input is None else {"prompt_tokens": usage.input, "total_tokens": usage.input}
