"""All routes."""

from __future__ import annotations

from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from modeld.http import pages
from modeld.http.auth import Gate
from modeld.http.errors import Refusal
from modeld.http.exchange import Endpoint, Exchange, Handler
from modeld.http.guard import Guard
from modeld.http.metrics import Metrics
from modeld.http.models import Models
from modeld.http.node_calls import NodeCalls
from modeld.http.openai_chat import ChatCompletions
from modeld.http.openai_models import ModelListing
from modeld.http.scrape import Scrape
from modeld.http.texts import Tokens
from modeld.node.gateway import RepositoryService
from modeld.repository.tracker import Tracker
from modeld.session.contract import ModelService


def make_app(service: ModelService, gateway: RepositoryService, gate: Gate, tracker: Tracker | None = None) -> ASGIApp:
    """Everything that is served over HTTP, behind its guard. :param tracker: hears of every answer."""
    metrics = Metrics()
    models = Models(service, gateway, tracker)
    listing, tokens = ModelListing(models), Tokens(models)
    routes = [
        _get("/health", _health),
        _get("/v1/models", listing.all),
        _get("/v1/models/{id:path}", listing.one),
        _post("/v1/chat/completions", ChatCompletions(models)),
        _post("/tokenize", tokens.tokenize),
        _post("/detokenize", tokens.detokenize),
        _get("/metrics", Scrape(service, metrics)),
        *NodeCalls(service).routes(),
        *pages.routes(),
    ]
    return Guard(Router(routes, redirect_slashes=False, default=_no_route), gate, metrics)


def _get(path: str, handler: Handler) -> Route:
    return Route(path, Endpoint(GET=handler))


def _post(path: str, handler: Handler) -> Route:
    return Route(path, Endpoint(POST=handler))


async def _health(exchange: Exchange) -> None:
    await exchange.reply({"status": "ok"})


async def _no_route(scope: Scope, receive: Receive, send: Send) -> None:
    raise Refusal(404, "not_found", "there is no such route; docs/http.md lists all")
