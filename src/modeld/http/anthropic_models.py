"""``GET /v1/models`` and ``GET /v1/models/{id}`` as Anthropic's clients read them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import parse_qs

from modeld.http.errors import Refusal
from modeld.http.exchange import Exchange
from modeld.http.models import Listed, Models

MOST: Final = 1000
"""Models of a page at most; so many are on one where nobody says how many."""


class AnthropicListing:
    """The routes."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def all(self, exchange: Exchange) -> None:
        """A page. Backends that could not list theirs are named under ``modeld``."""
        asked = {name: values[-1] for name, values in parse_qs(exchange.raw_query.decode("latin-1")).items()}
        limit = _limit(asked.get("limit", str(MOST)))
        listed, failed = await self._models.all()
        ids = [model.id for model in listed]
        first, last = 0, len(ids)
        if "after_id" in asked:
            first = _place(ids, asked["after_id"], "after_id") + 1
        elif "before_id" in asked:
            last = _place(ids, asked["before_id"], "before_id")
            first = max(0, last - limit)
        page = listed[first : min(last, first + limit)]
        body: dict[str, Any] = {
            "data": [_model(model) for model in page],
            "has_more": first > 0 if "before_id" in asked else first + len(page) < last,
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
        }
        await exchange.reply(body | ({"modeld": {"failed": failed}} if failed else {}))

    async def one(self, exchange: Exchange) -> None:
        """One of them."""
        await exchange.reply(_model(await self._models.one(exchange.path["id"])))


def _limit(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 4 and 1 <= int(text) <= MOST):
        raise Refusal(400, "invalid_value", f"limit: a page has 1 to {MOST} models, not {text[:20]!r}", param="limit")
    return int(text)


def _place(ids: list[str], id: str, param: str) -> int:
    if id not in ids:
        raise Refusal(400, "invalid_value", f"{param}: there is no model {id[:100]!r} in the list", param=param)
    return ids.index(id)


def _model(model: Listed) -> dict[str, Any]:
    """What nobody knows is null, and the date 1970 as the vendor has it."""
    return {
        "id": model.id,
        "type": "model",
        "display_name": model.id,
        "created_at": datetime.fromtimestamp(max(0, min(model.created, 2**32)), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "lifecycle": "active",
        "deprecated_at": None,
        "retires_at": None,
        "line": None,
        "max_input_tokens": None,
        "max_tokens": None,
        "capabilities": None,
    }
