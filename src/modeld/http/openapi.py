"""``GET /openapi.json``: all routes, with what their bodies may hold, made of the types that decode them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from typing import Any, Final

import msgspec
from starlette.routing import Route

from modeld._version import __version__
from modeld.http.errors import Dialect, dialect_of
from modeld.http.exchange import Endpoint, Exchange
from modeld.http.guard import PUBLIC

Json = dict[str, Any]

_ERRORS: Final[dict[Dialect, Json]] = {
    "openai": {
        "type": "object",
        "required": ["error"],
        "additionalProperties": False,
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "additionalProperties": False,
                "properties": {
                    "message": {"type": "string", "minLength": 1},
                    "type": {"type": "string", "minLength": 1},
                    "param": {"type": ["string", "null"]},
                    "code": {"type": "string", "minLength": 1},
                },
            }
        },
    },
    "anthropic": {
        "type": "object",
        "required": ["type", "error", "request_id"],
        "additionalProperties": False,
        "properties": {
            "type": {"const": "error"},
            "request_id": {"type": "string"},
            "error": {
                "type": "object",
                "required": ["type", "message"],
                "additionalProperties": False,
                "properties": {
                    "type": {"type": "string", "minLength": 1},
                    "message": {"type": "string", "minLength": 1},
                },
            },
        },
    },
}
_REF: Final = "#/components/schemas/{name}"
_PARAMETER: Final = re.compile(r"{(\w+)(?::\w+)?}")


class OpenApi:
    """The route. The document is made when it is first asked for. :param routes: that it tells of."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self._routes = routes

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request."""
        await exchange.reply(self._document)

    @cached_property
    def _document(self) -> Json:
        return document(self._routes)


def document(routes: Iterable[Route]) -> Json:
    """OpenAPI 3.1 of ``routes``. Answers are described where they are errors."""
    told = [(route.path, route.endpoint) for route in routes if isinstance(route.endpoint, Endpoint)]
    bodies = [endpoint.body for _, endpoint in told if endpoint.body is not None]
    refs, components = msgspec.json.schema_components(bodies, ref_template=_REF)
    schemas = dict(zip(bodies, refs, strict=True))
    components |= {f"Error_{dialect}": schema for dialect, schema in _ERRORS.items()}
    paths: Json = {}
    for path, endpoint in told:
        shown = _PARAMETER.sub(r"{\1}", path)
        for method in endpoint.methods:
            paths.setdefault(shown, {})[method.lower()] = _operation(path, method, endpoint, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "modeld", "version": __version__, "description": "See docs/http.md."},
        "paths": paths,
        "security": [{"token": []}],
        "components": {"schemas": components, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
    }


def _operation(path: str, method: str, endpoint: Endpoint, schemas: dict[type, Json]) -> Json:
    kinds: Json = {"application/json": {"schema": {"type": "object"}}}
    if endpoint.body is not None and "stream" in getattr(endpoint.body, "__struct_fields__", ()):
        event = {"type": "object", "required": ["data"], "properties": {"data": {"type": "string"}}}
        kinds["text/event-stream"] = {"schema": event}
    error = {"schema": {"$ref": _REF.format(name=f"Error_{dialect_of(path, ())}")}}
    failed = {"description": "an error", "content": {"application/json": error}}
    found: Json = {
        "operationId": f"{method.lower()}{re.sub('[^a-z0-9]+', '_', path)}".rstrip("_"),
        "responses": {"200": {"description": "an answer", "content": kinds}, "4XX": failed, "5XX": failed},
    }
    if names := _PARAMETER.findall(path):
        # An empty one is another address, or none.
        schema = {"type": "string", "minLength": 1}
        found["parameters"] = [{"name": name, "in": "path", "required": True, "schema": schema} for name in names]
    if method == "POST":
        schema = schemas[endpoint.body] if endpoint.body is not None else {"type": "object"}
        found["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return found | ({"security": []} if path in PUBLIC else {})
