"""``GET /v1/models`` and ``GET /v1/models/{id}``."""

from __future__ import annotations

from typing import Any

from modeld.http.exchange import Exchange
from modeld.http.models import Listed, Models


class ModelListing:
    """The routes."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def all(self, exchange: Exchange) -> None:
        """Every model. Backends that could not list theirs are named under ``modeld``."""
        found, failed = await self._models.all()
        body: dict[str, Any] = {"object": "list", "data": [_model(model) for model in found]}
        await exchange.reply(body | ({"modeld": {"failed": failed}} if failed else {}))

    async def one(self, exchange: Exchange) -> None:
        """One of them."""
        await exchange.reply(_model(await self._models.one(exchange.path["id"])))


def _model(model: Listed) -> dict[str, Any]:
    return {"id": model.id, "object": "model", "created": model.created, "owned_by": model.owner}
