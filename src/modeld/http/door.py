"""HTTP as a way into a node: opened with it, drained and closed with it. Nothing of HTTP is imported before."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from modeld.errors import InvalidRequestError, MissingDependencyError, ModeldError
from modeld.node.gateway import RepositoryService
from modeld.session.contract import ModelService
from modeld.transport.security import IDENTITY_NAME, make_listener

if TYPE_CHECKING:
    from modeld.http.server import HttpServer
    from modeld.repository.tracker import Tracker

log = logging.getLogger(__name__)


class HttpConfig(Struct, frozen=True, kw_only=True):
    """How to serve HTTP.

    :param required: the node does not start without it. Else it starts, and says why it has none.
    :param tls: ``None``: beyond loopback. :param tls_cert: PEM, with ``tls_key``, instead of a self-made one.
    :param origins: of pages that may call, such as ``https://chat.example``; nothing else has CORS headers.
    """

    data_root: Path
    host: str
    port: int
    required: bool = False
    tls: bool | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    origins: tuple[str, ...] = ()


class HttpDoor:
    """:class:`modeld.transport.host.Door` over HTTP."""

    def __init__(self, config: HttpConfig) -> None:
        self._config = config
        self._server: HttpServer | None = None
        self.state = "off"

    async def open(self, service: ModelService, gateway: RepositoryService) -> str:
        """Listen. Without :attr:`HttpConfig.required` a failure is told by :attr:`state` and the log.

        :returns: the endpoint, ``""`` for none.
        :raises MissingDependencyError: the extra is not installed. :raises InvalidRequestError: the port is taken.
        :raises ModeldError: as :func:`modeld.transport.security.make_listener`.
        """
        try:
            self.state = await self._open(service, gateway)
        except ModeldError as error:
            if self._config.required:
                raise
            self.state = f"off: {error.message}"
            log.warning("HTTP is %s", self.state)
            return ""
        return self.state

    async def close(self, grace: float) -> None:
        """Give running requests ``grace`` seconds. Safe to call twice."""
        if self._server is not None:
            await self._server.stop(grace)

    async def _open(self, service: ModelService, gateway: RepositoryService) -> str:
        await asyncio.to_thread(_require_extra)
        from modeld.http.auth import make_gate
        from modeld.http.routes import make_app
        from modeld.http.server import HttpServer

        config = self._config
        listening, token, tls = await asyncio.to_thread(_prepare, config)
        try:
            port = listening.getsockname()[1]
            names = await asyncio.to_thread(_names)
            gate = make_gate(config.host, token, tls=tls is not None, origins=config.origins, names=names)
            tracker = await asyncio.to_thread(_tracker)
            server = HttpServer(make_app(service, gateway, gate, tracker), tls)
            await server.start(listening)
        except BaseException:
            listening.close()
            raise
        self._server = server
        host = f"[{config.host}]" if ":" in config.host else config.host
        return f"{'http' if tls is None else 'https'}://{host}:{port}"


def _require_extra() -> None:
    """Import what is needed, in a thread: it reads some hundred files.

    :raises MissingDependencyError: it is not installed.
    """
    try:
        import modeld.http.routes
        import modeld.http.server  # noqa: F401
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("modeld"):
            raise
        text = f"HTTP needs {error.name}: pip install 'modeld[http]'"
        raise MissingDependencyError(text, extra="http") from error


def _prepare(config: HttpConfig) -> tuple[socket.socket, str, ssl.SSLContext | None]:
    """Socket, token and TLS, as for gRPC over TCP: beyond loopback nothing is plain."""
    from modeld.http.server import bound_socket

    listener = make_listener(
        config.data_root, config.host, config.port, tls=config.tls, certificate=config.tls_cert, key=config.tls_key
    )
    tls = None
    if listener.identity is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        own = config.data_root / IDENTITY_NAME
        try:
            tls.load_cert_chain(config.tls_cert or own, config.tls_key or own)
        except (OSError, ssl.SSLError) as error:
            raise InvalidRequestError(f"the certificate cannot be used: {error}", parameter="tls_cert") from None
    return bound_socket(config.host, config.port), listener.token, tls


def _tracker() -> Tracker | None:
    """OpenTelemetry's, where this process was set up for it by its variables."""
    if not any(name.startswith("OTEL_") for name in os.environ):
        return None
    from modeld.repository.otel import OpenTelemetryTracker

    try:
        return OpenTelemetryTracker()
    except MissingDependencyError as error:
        log.warning("answers are not traced: %s", error.message)
        return None


def _names() -> tuple[str, ...]:
    return (socket.gethostname(),)
