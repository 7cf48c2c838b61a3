"""The server: a socket of its own in the node's event loop, uvicorn's protocol on it, and an end that drains."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import socket
import ssl

from starlette.types import ASGIApp
from uvicorn.config import Config
from uvicorn.server import ServerState

from modeld.errors import InvalidRequestError
from modeld.http.protocol import KEEP_ALIVE_SECONDS, MAX_HEADER, BoundedProtocol

_TLS_SECONDS = 10.0
_LAST_SECONDS = 0.5
_BACKLOG = 128
_SEND_BUFFER = 128 * 1024


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that listens there; blocks while a name is looked up.

    :raises InvalidRequestError: nobody can listen there: the port is taken, or the address is none of this machine.
    """
    place = f"[{host}]" if ":" in host else host
    where = f"{place}:{port}"
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        try:
            # What a node that has just ended leaves behind does not count as taken.
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            # Each connection inherits it: the kernel would buffer megabytes for a client that does not read.
            found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            found.bind(address)
            found.listen(_BACKLOG)
            found.setblocking(False)
        except BaseException:
            found.close()
            raise
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or error
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            reason = f"another node or program has that port (`modeld serve --http {place}:0` takes a free one)"
        raise InvalidRequestError(f"cannot serve HTTP on {where}: {reason}", parameter="http") from None
    return found


class HttpServer:
    """Serves one ASGI app. No signal is handled, no file is written, nothing is logged but failures of its own."""

    def __init__(self, app: ASGIApp, tls: ssl.SSLContext | None = None) -> None:
        # What uvicorn would do beyond the protocol is off: its log, lifespan, signals, and trust in proxies.
        self._config = Config(
            app,
            http=BoundedProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            h11_max_incomplete_event_size=MAX_HEADER,
        )
        self._tls = tls
        self._state = ServerState()
        self._server: asyncio.Server | None = None

    async def start(self, listening: socket.socket) -> None:
        """Serve what comes to the socket, which belongs to the server from here on."""
        logging.getLogger("modeld.http.protocol").setLevel(logging.ERROR)  # anybody can send garbage, line after line
        self._config.load()
        handshake = None if self._tls is None else _TLS_SECONDS
        self._server = await asyncio.get_running_loop().create_server(
            self._protocol, sock=listening, ssl=self._tls, ssl_handshake_timeout=handshake
        )

    async def stop(self, grace: float) -> None:
        """Take no new connection, give running requests ``grace`` seconds, end the rest. Safe to call twice."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for connection in list(self._state.connections):
            # One that has sent half a request cannot be told.
            with contextlib.suppress(Exception):
                connection.shutdown()
        if self._state.tasks:
            await asyncio.wait(set(self._state.tasks), timeout=grace)
        running = set(self._state.tasks)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        await self._let_go()

    async def _let_go(self) -> None:
        """Let last answers leave, for half a second; then end what is still open."""
        connections = [one for one in self._state.connections if isinstance(one, BoundedProtocol)]
        if connections:
            await asyncio.wait([connection.lost for connection in connections], timeout=_LAST_SECONDS)
            for connection in connections:
                connection.transport.abort()
            await asyncio.wait([connection.lost for connection in connections])

    def _protocol(self) -> BoundedProtocol:
        return BoundedProtocol(self._config, self._state, {})
