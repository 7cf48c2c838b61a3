"""Who called lately, for ``modeld who``. What clients say of themselves: a help to people, no proof."""

from __future__ import annotations

import os
import re
import sys
from time import monotonic
from typing import Any, Final

from modeld.session.values import ClientInfo
from modeld.transport.methods import CLIENT_KEY

KEPT_SECONDS: Final = 60.0
"""A client that has not called for so long is not listed any more."""

_MOST: Final = 256
_CLIENT: Final = re.compile(r"(\d{1,10}) ([ -~]{1,60})")


def introduction() -> tuple[str, str]:
    """The metadata by which this process names itself: its pid and its program."""
    path = sys.argv[0] if sys.argv else ""
    if os.path.basename(path) == "__main__.py":
        path = os.path.dirname(path)  # python -m PACKAGE
    program = re.sub(r"[^ -~]", "?", os.path.basename(path) or "python")[:60]
    return CLIENT_KEY, f"{os.getpid()} {program}"


class Callers:
    """The latest callers, in the order they were last heard. Belongs to the server's event loop."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, int, str], tuple[float, int]] = {}

    def heard(self, context: Any) -> str:
        """A call came.

        :returns: a name for its client, for :data:`modeld.node.caller.CALLER`.
        """
        said = next((str(value) for key, value in context.invocation_metadata() or () if key == CLIENT_KEY), "")
        match = _CLIENT.fullmatch(said)
        peer = context.peer()
        # The port of a TCP peer is another one for each connection; a unix peer has no address.
        address = "unix" if peer.startswith("unix:") else peer.rpartition(":")[0]
        key = (address, int(match[1]) if match else 0, match[2] if match else "unknown")
        _, calls = self._seen.pop(key, (0.0, 0))
        self._seen[key] = (monotonic(), calls + 1)
        if len(self._seen) > _MOST:
            del self._seen[next(iter(self._seen))]
        return " ".join(map(str, key))

    def latest(self) -> tuple[ClientInfo, ...]:
        """Those of the last minute, the latest first."""
        now = monotonic()
        self._seen = {key: seen for key, seen in self._seen.items() if now - seen[0] <= KEPT_SECONDS}
        return tuple(
            ClientInfo(pid=pid, program=program, address=address, calls=calls, idle_seconds=now - last)
            for (address, pid, program), (last, calls) in reversed(self._seen.items())
        )
