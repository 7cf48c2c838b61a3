"""``POST /tokenize`` and ``POST /detokenize``: modeld's own, for models of this node."""

from __future__ import annotations

import base64
from typing import Any

from msgspec import Struct

from modeld.http.exchange import Exchange
from modeld.http.models import Models


class TokenizeRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """:param add_special: with what the model wants before and behind every text."""

    model: str
    text: str
    add_special: bool = True


class DetokenizeRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Tokens by their ids."""

    model: str
    tokens: list[int]


class Tokens:
    """The routes."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def tokenize(self, exchange: Exchange) -> None:
        """The ids of a text."""
        request = await exchange.read(TokenizeRequest)
        target = await self._models.local(request.model, "tokenize")
        found = await self._models.service.tokenize(target.ref, request.text, add_special=request.add_special)
        await exchange.reply({"model": request.model, "tokens": found.tokens, "count": len(found.tokens)})

    async def detokenize(self, exchange: Exchange) -> None:
        """The text of ids. Where they cut a character, ``text`` has U+FFFD and ``base64`` the bytes themselves."""
        request = await exchange.read(DetokenizeRequest)
        target = await self._models.local(request.model, "detokenize")
        data = await self._models.service.detokenize(target.ref, request.tokens)
        text = data.decode("utf-8", "replace")
        body: dict[str, Any] = {"model": request.model, "text": text}
        if text.encode() != data:
            body["base64"] = base64.b64encode(data).decode()
        await exchange.reply(body)
