"""All routes."""

from __future__ import annotations

from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from modeld.http.auth import Gate
from modeld.http.completions import Completions
from modeld.http.embeddings import EmbeddingVectors
from modeld.http.errors import Refusal
from modeld.http.exchange import Endpoint, Exchange, Handler
from modeld.http.guard import Guard
from modeld.http.models import Models
from modeld.http.openai_chat import ChatCompletions
from modeld.http.openai_models import ModelListing
from modeld.http.rerank import Reranking
from modeld.http.responses import Responses
from modeld.http.texts import Tokens
from modeld.node.gateway import RepositoryService
from modeld.session.contract import ModelService


def make_app(service: ModelService, gateway: RepositoryService, gate: Gate) -> ASGIApp:
    """Everything that is served over HTTP, behind its guard."""
    models = Models(service, gateway)
    listing, tokens = ModelListing(models), Tokens(models)
    routes = [
        _get("/health", _health),
        _get("/v1/models", listing.all),
        _get("/v1/models/{id:path}", listing.one),
        _post("/v1/chat/completions", ChatCompletions(models)),
        _post("/v1/responses", Responses(models)),
        _post("/v1/completions", Completions(models)),
        _post("/v1/embeddings", EmbeddingVectors(models)),
        _post("/v1/rerank", Reranking(models)),
        _post("/tokenize", tokens.tokenize),
        _post("/detokenize", tokens.detokenize),
    ]
    return Guard(Router(routes, redirect_slashes=False, default=_no_route), gate)


def _get(path: str, handler: Handler) -> Route:
    return Route(path, Endpoint(handler, "GET"))


def _post(path: str, handler: Handler) -> Route:
    return Route(path, Endpoint(handler, "POST"))


async def _health(exchange: Exchange) -> None:
    await exchange.reply({"status": "ok"})


async def _no_route(scope: Scope, receive: Receive, send: Send) -> None:
    raise Refusal(404, "not_found", "there is no such route; docs/http.md lists all")
