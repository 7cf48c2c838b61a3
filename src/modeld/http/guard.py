"""What every request passes before a route is looked for, and what every failure ends as."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import time
import uuid
from collections.abc import Collection, Sequence
from typing import Final

from starlette.routing import Match, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modeld.errors import ModeldError
from modeld.http.auth import ORIGIN_HINT, Gate, check_url, values_of
from modeld.http.bodies import ClientGone
from modeld.http.errors import STOPPING, Failure, Refusal, dialect_of, error_body, failure_of
from modeld.http.metrics import TRACE, Metrics, Trace
from modeld.http.protocol import MAX_HEADER
from modeld.transport.errors import public_error

MAX_HEADERS: Final = 100
"""Lines of a request's header."""
MAX_REQUESTS: Final = 256
"""Requests that are answered at a time. Further ones are told to come back, and do not wait unseen."""
PUBLIC: Final = frozenset({"/health", "/", "/console.css", "/console.js"})
"""Paths that ask for no token: they tell nothing, and the console's files are the same everywhere."""
REQUEST_ID: Final = "modeld.request_id"
"""Key in the scope."""

_ALLOW: Final = (
    ("access-control-allow-methods", "GET, POST, DELETE"),
    (
        "access-control-allow-headers",
        "authorization, content-type, x-api-key, anthropic-version, anthropic-beta, x-modeld-session, x-request-id",
    ),
    ("access-control-max-age", "600"),
)
_ID: Final = re.compile(rb"[A-Za-z0-9._-]{1,100}")
_FIELD: Final = re.compile(r"[A-Za-z0-9_.\[\]]{1,40}")
"""Names that are logged. Where a field is meant anything can stand; the token is longer than this."""

log = logging.getLogger(__name__)


class Guard:
    """Admits requests to ``app``, and answers for it when it fails. Belongs to one event loop.

    :param routes: those of ``app``, under which requests are counted that never come to it.
    """

    def __init__(self, app: ASGIApp, gate: Gate, metrics: Metrics, routes: Sequence[Route]) -> None:
        self._app = app
        self._routes = routes
        self._gate = gate
        self._metrics = metrics
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        answer, trace = _Answer(scope, send, self._request_id(scope), self._routes), Trace(self._metrics)
        TRACE.set(trace)
        self._running += 1
        try:
            self._admit(scope, answer)
            if scope["method"] == "OPTIONS":
                await answer.allow_page()
            else:
                await self._app(scope, receive, answer.send)
        except ClientGone:
            self._metrics.left(trace)
        except asyncio.CancelledError:
            # The server stops. The task ends here, so nobody waits for the cancellation.
            await answer.fail(STOPPING)
        except Refusal as error:
            await answer.fail(failure_of(error))
        except Exception as error:
            known = error if isinstance(error, ModeldError) else public_error(error, answer.route)
            await answer.fail(failure_of(known, answer.fields))
        finally:
            self._running -= 1
            answer.tell()
            self._metrics.request(answer.route, answer.status)

    def _admit(self, scope: Scope, answer: _Answer) -> None:
        """:raises Refusal: it may not come in."""
        headers, gate = scope["headers"], self._gate
        # What comes in one piece passes the bound of the parser.
        if len(headers) > MAX_HEADERS or sum(len(name) + len(value) for name, value in headers) > MAX_HEADER:
            text = f"a header has at most {MAX_HEADERS} lines and {MAX_HEADER:,} bytes"
            raise Refusal(431, "header_too_large", text)
        gate.check_host(headers)
        if values_of(headers, b"transfer-encoding") and values_of(headers, b"content-length"):
            # Two lengths: whoever stands between may believe the other one.
            text = "a body has one length: content-length or transfer-encoding"
            raise Refusal(400, "invalid_http", text, headers=(("connection", "close"),))
        answer.allowed = gate.check_origin(headers)
        check_url(scope["query_string"])
        if scope["method"] == "OPTIONS":
            # What a browser asks before a page's call: it has no token yet.
            if not answer.allowed:
                raise Refusal(403, "forbidden_origin", f"no page of another origin may call the node; {ORIGIN_HINT}")
            return
        if scope["path"] not in PUBLIC:
            gate.check_token(headers)
        if self._running > MAX_REQUESTS:
            text = f"{MAX_REQUESTS} requests are being answered; come back later"
            raise Refusal(429, "rate_limited", text, headers=(("retry-after", "1"),))

    def _request_id(self, scope: Scope) -> str:
        """The client's, where it is one and tells no secret to the log."""
        given = values_of(scope["headers"], b"x-request-id")
        if len(given) == 1 and _ID.fullmatch(given[0]) and self._gate.token.encode() not in given[0]:
            found = given[0].decode()
        else:
            found = uuid.uuid4().hex
        scope[REQUEST_ID] = found
        return found


class _Answer:
    """One request and what was answered."""

    def __init__(self, scope: Scope, send: Send, request_id: str, routes: Sequence[Route]) -> None:
        self._scope, self._send, self._id, self._routes = scope, send, request_id, routes
        self._dialect = dialect_of(scope["path"], scope["headers"])
        self._began = time.monotonic()
        self.status = 0
        self.allowed = ""
        self._why = ""

    @property
    def route(self) -> str:
        """The pattern that matched, never the address itself: anything can stand there."""
        refused = (one for one in self._routes if one.matches(self._scope)[0] is not Match.NONE)
        route = self._scope.get("route") or next(refused, None)
        return f"{self._scope['method'][:10]} {getattr(route, 'path', '(no route)')}"

    @property
    def fields(self) -> Collection[str] | None:
        """Those of the body that the route takes; ``None``: any."""
        found: Collection[str] | None = getattr(getattr(self._scope.get("route"), "endpoint", None), "fields", None)
        return found

    async def send(self, message: Message) -> None:
        """To the client, with the headers that every answer has."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            extra = [(b"x-request-id", self._id.encode()), (b"x-content-type-options", b"nosniff")]
            if self._dialect == "anthropic":
                extra.append((b"request-id", self._id.encode()))  # where its clients look
            if self.allowed:
                extra += [(b"access-control-allow-origin", self.allowed.encode()), (b"vary", b"origin")]
            message = {**message, "headers": [*message.get("headers", ()), *extra]}
        await self._send(message)

    async def allow_page(self) -> None:
        """Answer a browser that asks whether a page of a configured origin may call."""
        headers = [(name.encode(), value.encode()) for name, value in _ALLOW]
        await self.send({"type": "http.response.start", "status": 204, "headers": headers})
        await self._send({"type": "http.response.body", "body": b""})

    async def fail(self, failure: Failure) -> None:
        """Answer with the dialect's error. An answer that has begun cannot be taken back: it ends as it is."""
        if self.status:
            return
        self._why = failure.code
        if failure.param and _FIELD.fullmatch(failure.param):
            self._why += f" ({failure.param})"
        body = error_body(self._dialect, failure, self._id)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        headers += [(name.encode(), value.encode()) for name, value in failure.headers]
        with contextlib.suppress(OSError):
            await self.send({"type": "http.response.start", "status": failure.status, "headers": headers})
            await self._send({"type": "http.response.body", "body": body})

    def tell(self) -> None:
        """Write the request to the log, and why it was refused: neither its address nor its header."""
        level = logging.INFO if self.status >= 400 or not self.status else logging.DEBUG
        seconds = time.monotonic() - self._began
        answered = f"{self.status or 'left'} {self._why}".rstrip()
        log.log(level, "%s %s in %.3f s, request %s", self.route, answered, seconds, self._id)
