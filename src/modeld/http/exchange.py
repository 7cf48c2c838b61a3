"""One request, read and answered: what handlers are written against."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping
from typing import Any, Final, TypeVar

import msgspec
from starlette.types import Receive, Scope, Send

from modeld.http.bodies import ClientGone, decode, decode_query, read_body
from modeld.http.errors import Dialect, Headers, Refusal, dialect_of
from modeld.http.guard import REQUEST_ID
from modeld.node.caller import CALLER

_OWN: Final = "x-modeld-"

_T = TypeVar("_T")


class Exchange:
    """A request whose body is here, and the way to answer it.

    Its ``headers`` have the last value of each, names in small letters; ``path`` is what the route's pattern caught.

    :param fields: that the body may have; ``None``: any.
    :raises Refusal: a header of modeld's own stands there twice.
    """

    def __init__(self, scope: Scope, body: bytes, send: Send, fields: Collection[str] | None = None) -> None:
        self.fields = fields
        self.headers = _headers(scope["headers"])
        self.path: Mapping[str, str] = scope.get("path_params", {})
        self.request_id: str = scope[REQUEST_ID]
        self.dialect: Dialect = dialect_of(scope["path"], scope["headers"])
        self.client: str = (scope.get("client") or ("",))[0]
        self.raw_query: bytes = scope["query_string"]
        self._body = body
        self._send = send

    async def read(self, into: type[_T]) -> _T:
        """The body as ``into``. :raises Refusal: it is none."""
        return await decode(self._body, into)

    def query(self, into: type[_T]) -> _T:
        """What stands behind the ``?``, as ``into``. :raises Refusal: it is none, or a name stands there twice."""
        return decode_query(self.raw_query, into)

    async def reply(self, value: Any, *, headers: Headers = ()) -> None:
        """Answer with ``value`` as JSON."""
        body = msgspec.json.encode(value)
        await self.start(200, "application/json", (("content-length", str(len(body))), *headers))
        await self.write(body, more=False)

    async def start(self, status: int, content_type: str, headers: Headers = ()) -> None:
        """Send status and headers."""
        raw = [(name.encode(), value.encode("latin-1")) for name, value in (("content-type", content_type), *headers)]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """Send a piece of the body. Waits while the client does not read."""
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    def is_from(self, client: str) -> None:
        """Say who calls, for the engine's turns: see :data:`modeld.node.caller.CALLER`."""
        CALLER.set(f"http {self.client} {client}")


def _headers(raw: Iterable[tuple[bytes, bytes]]) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for name, value in raw:
        key = name.decode("latin-1")
        # Of two sessions that are named, no choice would be right.
        if key in found and key.startswith(_OWN):
            raise Refusal(400, "invalid_value", f"the header {key} stands there twice; send it once", param=key)
        found[key] = value.decode("latin-1")
    return found


Handler = Callable[[Exchange], Coroutine[Any, Any, None]]


class Endpoint:
    """Handlers, by method, as an ASGI app: a body is read first, and the work ends when the client leaves.

    :param body: what the handler of ``POST`` reads, as ``GET /openapi.json`` tells it; ``None``: any object.
    """

    def __init__(self, body: type | None = None, **handlers: Handler) -> None:
        self.body = body
        self.fields: Collection[str] | None = getattr(body, "__struct_fields__", None)
        self.methods = tuple(handlers)
        self._handlers = handlers | ({"HEAD": handlers["GET"]} if "GET" in handlers else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["method"] not in self._handlers:
            allowed = ", ".join(self._handlers)
            raise Refusal(405, "method_not_allowed", f"this route takes {allowed}", headers=(("allow", allowed),))
        body = await read_body(scope, receive) if scope["method"] == "POST" else b""
        await while_connected(self._handlers[scope["method"]](Exchange(scope, body, send, self.fields)), receive)


async def while_connected(work: Coroutine[Any, Any, None], receive: Receive) -> None:
    """Do ``work``; cancel it as soon as the client has left, and wait until it has ended.

    :raises ClientGone: it left before the end.
    """
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_left(receive))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
    if working.cancelled():
        raise ClientGone
    working.result()


async def _left(receive: Callable[[], Awaitable[Any]]) -> None:
    """Until there is nobody to answer; the end of the answer counts as well."""
    while (await receive())["type"] != "http.disconnect":
        pass
