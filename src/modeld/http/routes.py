"""All routes."""

from __future__ import annotations

from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from modeld.http.anthropic_messages import Messages
from modeld.http.anthropic_models import AnthropicListing
from modeld.http.auth import Gate
from modeld.http.errors import Refusal
from modeld.http.exchange import Endpoint, Exchange, Handler
from modeld.http.guard import Guard
from modeld.http.models import Models
from modeld.http.openai_chat import ChatCompletions
from modeld.http.openai_models import ModelListing
from modeld.http.texts import Tokens
from modeld.node.gateway import RepositoryService
from modeld.session.contract import ModelService


def make_app(service: ModelService, gateway: RepositoryService, gate: Gate) -> ASGIApp:
    """Everything that is served over HTTP, behind its guard."""
    models = Models(service, gateway)
    listing, tokens, messages = ModelListing(models), Tokens(models), Messages(models)
    anthropic = AnthropicListing(models)
    routes = [
        _get("/health", _health),
        _get("/v1/models", _either(listing.all, anthropic.all)),
        _get("/v1/models/{id:path}", _either(listing.one, anthropic.one)),
        _post("/v1/chat/completions", ChatCompletions(models)),
        _post("/v1/messages", messages.create),
        _post("/v1/messages/count_tokens", messages.count),
        _post("/tokenize", tokens.tokenize),
        _post("/detokenize", tokens.detokenize),
    ]
    return Guard(Router(routes, redirect_slashes=False, default=_no_route), gate)


def _get(path: str, handler: Handler) -> Route:
    return Route(path, Endpoint(handler, "GET"))


def _post(path: str, handler: Handler) -> Route:
    return Route(path, Endpoint(handler, "POST"))


def _either(openai: Handler, anthropic: Handler) -> Handler:
    """The handler of the dialect that the request is in."""

    async def handler(exchange: Exchange) -> None:
        await (anthropic if exchange.dialect == "anthropic" else openai)(exchange)

    return handler


async def _health(exchange: Exchange) -> None:
    await exchange.reply({"status": "ok"})


async def _no_route(scope: Scope, receive: Receive, send: Send) -> None:
    raise Refusal(404, "not_found", "there is no such route; docs/http.md lists all")
