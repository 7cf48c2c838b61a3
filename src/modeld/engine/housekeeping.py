"""What the engine does when nobody waits for it: KV goes where it survives, and the node hears what is held."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from modeld.engine.ahead import Ahead
from modeld.engine.pool import Pool
from modeld.engine.protocol import Held, Reply

REST_SECONDS = 1.0
"""How long a session has rested before it leaves the engine for RAM beside running streams."""

THIN_SECONDS = 0.01
"""Between two looks at who could leave, or two blocks copied to RAM beside running streams."""


class Housekeeping:
    """Work for pauses. Belongs to the scheduler's thread; each call does a small piece.

    :param send: writes a frame to the node; may block.
    """

    def __init__(self, pool: Pool, ahead: Ahead, send: Callable[[Reply], None]) -> None:
        self._pool = pool
        self._ahead = ahead
        self._send = send
        self._thinned = 0.0
        self._told = Held()

    def idle(self) -> float | None:
        """Nobody computes: do a piece.

        :returns: seconds until there may be more to do; 0 is at once, ``None`` not before somebody computes again.
        """
        if self._ahead.step() or self._pool.save_next():
            return 0.0
        self.tell()
        return None

    def beside(self) -> None:
        """Streams run: do a piece that they will not notice."""
        if (now := monotonic()) - self._thinned > THIN_SECONDS:
            self._thinned = now
            self._pool.thin_out(REST_SECONDS)

    def settle(self, seconds: float) -> None:
        """The engine will end: do all there is to do, for at most ``seconds``."""
        end = monotonic() + seconds
        while monotonic() < end and self.idle() is not None:
            pass

    def tell(self) -> None:
        """Let the node know what is held, if that has changed."""
        if (held := self._pool.held()) != self._told:
            self._told = held
            self._send(held)
