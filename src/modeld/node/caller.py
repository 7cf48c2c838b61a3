"""Who calls. Engines let clients take turns, so they must know whose a request is."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Final

CALLER: Final[ContextVar[str]] = ContextVar("CALLER", default="")
"""The client on whose behalf the current task works, as it names itself: a server sets it for each call. Empty: the
program that the node runs in. A client that takes several names gets several turns."""
