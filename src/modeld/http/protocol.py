"""One connection: uvicorn's HTTP/1.1, with bounds on time and on how many there are.

uvicorn waits for ever for the rest of a header, and for a client that does not read; here both end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from typing import Any, Final

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from modeld.http.errors import Dialect, Failure, dialect_of, error_body

HEADER_SECONDS: Final = 10.0
"""From the first byte of a request to the end of its header; also from the connection to there."""
KEEP_ALIVE_SECONDS: Final = 30
"""A connection is kept open for so long after an answer."""
WRITE_SECONDS: Final = 60.0
"""Who takes less than three quarters of :data:`WRITE_BUFFER` in this time is gone: its answer is cancelled."""
WRITE_BUFFER: Final = 16 * 1024
"""Bytes that wait for a client before its answer does; the kernel holds some more. Some 70 chunks."""
MAX_HEADER: Final = 32 * 1024
"""Bytes of a request's header."""
MAX_CONNECTIONS: Final = 512
"""Further ones are closed at once: strangers too can connect, and a process has 1,024 descriptors on many systems."""

_LINE: Final = 200
"""Bytes of a request that are kept until its header is whole: the path, on which the shape of an error depends."""

log = logging.getLogger(__name__)


class BoundedProtocol(H11Protocol):
    """See the module."""

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.logger = log
        # Its lines hold whole addresses.
        self.access_log = False
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None
        self._idle = False
        self._line = b""
        self.lost: asyncio.Future[None] = self.loop.create_future()
        """Done when the connection has ended."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See :class:`asyncio.Protocol`."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.abort()
            return
        transport.set_write_buffer_limits(high=WRITE_BUFFER)
        self._await_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """See :class:`asyncio.Protocol`."""
        self._stop_timers()
        super().connection_lost(exc)
        self.lost.set_result(None)

    def data_received(self, data: bytes) -> None:
        """See :class:`asyncio.Protocol`."""
        if self._idle:
            self._idle = False
            self._await_header()
        self._line += data[: _LINE - len(self._line)]
        super().data_received(data)
        if self._answering:
            self._cancel_header_timer()

    def pause_writing(self) -> None:
        """The client does not read."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def on_response_complete(self) -> None:
        """Wait for the next request, or for what is left of this one's body."""
        self._idle, self._line = True, b""
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Called while h11's error is handled: its header was too large, or it is no HTTP."""
        status = getattr(sys.exception(), "error_status_hint", 400)
        if status == 431:
            self._refuse(Failure(431, "header_too_large", f"a header has at most {MAX_HEADER:,} bytes"))
        else:
            self._refuse(Failure(400, "invalid_http", "this is no request of HTTP/1.1"))

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _dialect(self) -> Dialect:
        """Of the path that was asked, so far as it came."""
        if self.cycle is not None and self._answering:
            return dialect_of(self.cycle.scope["path"], tuple(self.cycle.scope["headers"]))
        words = self._line.partition(b"\r\n")[0].split(b" ")
        return dialect_of(words[1].partition(b"?")[0].decode("latin-1"), ()) if len(words) > 1 else "openai"

    def _await_header(self) -> None:
        self._cancel_header_timer()
        self._header_timer = self.loop.call_later(HEADER_SECONDS, self._too_slow)

    def _too_slow(self) -> None:
        if not self._answering:
            self._refuse(Failure(408, "header_timeout", f"no whole header came within {HEADER_SECONDS:g} seconds"))

    def _refuse(self, failure: Failure) -> None:
        """Answer where no answer has begun, and close."""
        body = error_body(self._dialect(), failure, "")
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        headers = [
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("connection", "close"),
        ]
        events = (h11.Response(status_code=failure.status, headers=headers), h11.Data(data=body), h11.EndOfMessage())
        with contextlib.suppress(h11.LocalProtocolError):  # an answer has begun: its end is all that can be told
            for event in events:
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _cancel_header_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _stop_timers(self) -> None:
        self._cancel_header_timer()
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
