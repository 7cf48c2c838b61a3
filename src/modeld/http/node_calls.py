"""``/modeld/v1/...``: the node's own calls as JSON, in the Structs of the session contract."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from msgspec import Struct
from starlette.routing import Route

from modeld.errors import InvalidRequestError, SessionNotFoundError
from modeld.http.exchange import Endpoint, Exchange
from modeld.session.adapters import Adapter
from modeld.session.contract import ModelService
from modeld.session.values import KVType, ModelRef, SessionConfig, SessionInfo


class _Strict(Struct, frozen=True, forbid_unknown_fields=True):
    pass


class ModelRequest(_Strict, frozen=True):
    """:param model: its name: over HTTP no text becomes a path. The others as in :class:`SessionConfig`.

    :param generation: as for :meth:`ModelService.load`; :meth:`NodeCalls.describe` does not look at it.
    """

    model: str
    context: int = 0
    kv_type: KVType = "f16"
    adapters: tuple[Adapter, ...] = ()
    generation: int = 0

    @property
    def ref(self) -> ModelRef:
        """The model."""
        return ModelRef(name=self.model)

    def config(self) -> SessionConfig:
        """:raises InvalidRequestError: a value out of its range, or an adapter by its path."""
        if any(adapter.path for adapter in self.adapters):
            raise InvalidRequestError("over HTTP an adapter goes by its name", parameter="adapters")
        return SessionConfig(context=self.context, kv_type=self.kv_type, adapters=self.adapters)


class UnloadRequest(_Strict, frozen=True):
    """:param generation: as for :meth:`ModelService.unload`."""

    generation: int = 0


class SessionQuery(_Strict, frozen=True):
    """Which session. :param model: name or digest, where sessions of that name are on several."""

    name: str
    workspace: str = "default"
    model: str = ""


class ListQuery(_Strict, frozen=True):
    """:param limit: of the sessions, the last used first; 0: all."""

    limit: int = 0


class Nothing(_Strict, frozen=True):
    """No parameter."""


class NodeCalls:
    """The routes."""

    def __init__(self, service: ModelService) -> None:
        self._service = service

    def routes(self) -> list[Route]:
        """All of them."""
        return [
            Route("/modeld/v1/status", Endpoint(GET=self.status)),
            Route("/modeld/v1/models", Endpoint(GET=self.models)),
            Route("/modeld/v1/describe", Endpoint(ModelRequest, POST=self.describe)),
            Route("/modeld/v1/load", Endpoint(ModelRequest, POST=self.load)),
            Route("/modeld/v1/unload", Endpoint(UnloadRequest, POST=self.unload)),
            Route("/modeld/v1/sessions", Endpoint(GET=self.sessions)),
            Route("/modeld/v1/session", Endpoint(GET=self.session, DELETE=self.remove_session)),
        ]

    async def status(self, exchange: Exchange) -> None:
        """The node's state."""
        exchange.query(Nothing)
        await _tell(exchange, await self._service.status())

    async def models(self, exchange: Exchange) -> None:
        """Installed models."""
        exchange.query(Nothing)
        await _tell(exchange, {"models": await self._service.models()})

    async def describe(self, exchange: Exchange) -> None:
        """A model and its plan. Nothing is loaded."""
        request = await exchange.read(ModelRequest)
        await _tell(exchange, await self._service.describe(request.ref, request.config()))

    async def load(self, exchange: Exchange) -> None:
        """Make a model resident; answers when it is."""
        request = await exchange.read(ModelRequest)
        status = await self._service.load(request.ref, request.config(), generation=request.generation)
        await _tell(exchange, status)

    async def unload(self, exchange: Exchange) -> None:
        """End the engine; answers when it has ended."""
        request = await exchange.read(UnloadRequest)
        await _tell(exchange, await self._service.unload(generation=request.generation))

    async def sessions(self, exchange: Exchange) -> None:
        """Sessions, the last used first, and how many there are."""
        limit = exchange.query(ListQuery).limit
        found = await self._service.sessions()
        await _tell(exchange, {"sessions": found[:limit] if limit > 0 else found, "total": len(found)})

    async def session(self, exchange: Exchange) -> None:
        """One session, and what ``explain`` tells of it."""
        wanted = exchange.query(SessionQuery)
        info = _the_one(await self._service.sessions(), wanted)
        handle = info.handle(await self._service.status())
        report = await self._service.attach(handle).explain()
        await _tell(exchange, {"session": info, "report": report})

    async def remove_session(self, exchange: Exchange) -> None:
        """Forget a session."""
        wanted = exchange.query(SessionQuery)
        await self._service.remove_session(wanted.name, workspace=wanted.workspace, model=wanted.model)
        await _tell(exchange, {"removed": wanted.name})


def _the_one(sessions: list[SessionInfo], wanted: SessionQuery) -> SessionInfo:
    """:raises SessionNotFoundError: there is none. :raises InvalidRequestError: there are several."""
    found = [
        session
        for session in sessions
        if (session.workspace, session.name) == (wanted.workspace, wanted.name)
        and wanted.model in ("", session.model, session.digest)
    ]
    if not found:
        text = (
            f"there is no session {wanted.name!r} in workspace {wanted.workspace!r}; GET /modeld/v1/sessions lists all"
        )
        raise SessionNotFoundError(text, name=wanted.name, workspace=wanted.workspace)
    if len(found) > 1:
        models = ", ".join(f"{session.model} ({session.digest[:12]})" for session in found)
        raise InvalidRequestError(f"{wanted.name!r} is on several models: name one of {models}", parameter="model")
    return found[0]


async def _tell(exchange: Exchange, value: Any) -> None:
    try:
        body = msgspec.json.encode(value)
    except UnicodeEncodeError:
        # The name of a file need not be UTF-8: its odd bytes become lone surrogates, escaped.
        body = json.dumps(msgspec.to_builtins(value)).encode()
    await exchange.start(200, "application/json", (("content-length", str(len(body))), ("cache-control", "no-store")))
    await exchange.write(body, more=False)
