"""All routes."""

from __future__ import annotations

from collections.abc import Collection

from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from modeld.http import pages
from modeld.http.anthropic_messages import Messages
from modeld.http.anthropic_models import AnthropicListing
from modeld.http.anthropic_request import CountRequest, MessagesRequest
from modeld.http.auth import Gate
from modeld.http.completions import Completions
from modeld.http.completions_request import CompletionsRequest
from modeld.http.embeddings import EmbeddingsRequest, EmbeddingVectors
from modeld.http.errors import Refusal
from modeld.http.exchange import Endpoint, Exchange, Handler
from modeld.http.guard import Guard
from modeld.http.metrics import Metrics
from modeld.http.models import Models
from modeld.http.node_calls import NodeCalls
from modeld.http.openai_chat import ChatCompletions
from modeld.http.openai_models import ModelListing
from modeld.http.openai_request import ChatRequest
from modeld.http.openapi import OpenApi
from modeld.http.rerank import Reranking, RerankRequest
from modeld.http.responses import Responses
from modeld.http.responses_request import ResponsesRequest
from modeld.http.scrape import Scrape
from modeld.http.texts import DetokenizeRequest, TokenizeRequest, Tokens
from modeld.node.gateway import RepositoryService
from modeld.repository.tracker import Tracker
from modeld.session.contract import ModelService


def make_app(service: ModelService, gateway: RepositoryService, gate: Gate, tracker: Tracker | None = None) -> ASGIApp:
    """Everything that is served over HTTP, behind its guard. :param tracker: hears of every answer."""
    metrics = Metrics()
    models = Models(service, gateway, tracker)
    listing, tokens, messages = ModelListing(models), Tokens(models), Messages(models)
    anthropic = AnthropicListing(models)
    calls = [
        _get("/health", _health),
        _get("/v1/models", _either(listing.all, anthropic.all)),
        _get("/v1/models/{id:path}", _either(listing.one, anthropic.one)),
        _post("/v1/chat/completions", ChatCompletions(models), ChatRequest),
        _post("/v1/responses", Responses(models), ResponsesRequest),
        _post("/v1/completions", Completions(models), CompletionsRequest),
        _post("/v1/embeddings", EmbeddingVectors(models), EmbeddingsRequest),
        _post("/v1/rerank", Reranking(models), RerankRequest),
        _post("/v1/messages", messages.create, MessagesRequest),
        _post("/v1/messages/count_tokens", messages.count, CountRequest),
        _post("/tokenize", tokens.tokenize, TokenizeRequest),
        _post("/detokenize", tokens.detokenize, DetokenizeRequest),
        *NodeCalls(service).routes(),
    ]
    calls.append(_get("/openapi.json", OpenApi(calls)))
    routes = [*calls, _get("/metrics", Scrape(service, metrics)), *pages.routes()]
    router = Router(routes, redirect_slashes=False, default=_no_route({one.path for one in calls}))
    return Guard(router, gate, metrics, routes)


def _get(path: str, handler: Handler) -> Route:
    return Route(path, Endpoint(GET=handler))


def _post(path: str, handler: Handler, body: type | None = None) -> Route:
    return Route(path, Endpoint(body, POST=handler))


def _either(openai: Handler, anthropic: Handler) -> Handler:
    """The handler of the dialect that the request is in."""

    async def handler(exchange: Exchange) -> None:
        await (anthropic if exchange.dialect == "anthropic" else openai)(exchange)

    return handler


async def _health(exchange: Exchange) -> None:
    await exchange.reply({"status": "ok"})


def _no_route(known: Collection[str]) -> ASGIApp:
    """Refuses what no route takes. A base address that lacks ``/v1``, or has it twice, is the usual reason."""

    async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        text = "there is no such route; GET /openapi.json lists all"
        if f"/v1{path}" in known:
            text = f"there is no route {path}, but /v1{path}: end the client's base URL with /v1"
        elif path.startswith("/v1/v1/") and path[3:] in known:
            text = f"there is no route {path}, but {path[3:]}: leave /v1 off the client's base URL"
        raise Refusal(404, "not_found", text)

    return refuse
