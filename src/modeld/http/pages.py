"""The console: one page that shows the node and talks to its models. Its files need no token, and hold no secret."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from starlette.routing import Route

from modeld.http.errors import Headers
from modeld.http.exchange import Endpoint, Exchange

FILES: Final = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/console.css": ("console.css", "text/css; charset=utf-8"),
    "/console.js": ("console.js", "text/javascript; charset=utf-8"),
}
"""By path. Others are not served, whatever lies beside them."""

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
"""Nothing from elsewhere, nothing inline, in no frame: what a model writes can only ever be text."""

_FOLDER: Final = Path(__file__).with_name("console")
_HEADERS: Final[Headers] = (
    ("content-security-policy", POLICY),
    ("referrer-policy", "no-referrer"),
    ("cross-origin-opener-policy", "same-origin"),
    ("cross-origin-resource-policy", "same-origin"),
    ("cache-control", "no-cache"),
)


def routes() -> list[Route]:
    """All files."""
    return [Route(path, Endpoint(GET=_File(name, kind))) for path, (name, kind) in FILES.items()]


class _File:
    """One file, read at its first request."""

    def __init__(self, name: str, kind: str) -> None:
        self._path, self._kind = _FOLDER / name, kind
        self._data = b""

    async def __call__(self, exchange: Exchange) -> None:
        if not self._data:
            self._data = await asyncio.to_thread(self._path.read_bytes)
        length = ("content-length", str(len(self._data)))
        await exchange.start(200, self._kind, (length, *_HEADERS))
        await exchange.write(self._data, more=False)
