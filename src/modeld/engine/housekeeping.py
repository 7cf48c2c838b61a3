"""What the engine does when nobody waits for it: KV goes where it survives, and the node hears what is held."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from modeld.engine.pool import Pool
from modeld.engine.protocol import Held, Reply
from modeld.engine.states import States

REST_SECONDS = 1.0
"""How long a session has rested before the node is told of it, and before it leaves for RAM beside running streams."""

THIN_SECONDS = 0.01
"""Between two looks at who could leave, or two blocks copied to RAM beside running streams."""


class Housekeeping:
    """Work for pauses. Belongs to the scheduler's thread; each call does a small piece.

    :param send: writes a frame to the node; may block.
    """

    def __init__(self, pool: Pool, states: States, send: Callable[[Reply], None]) -> None:
        self._pool = pool
        self._states = states
        self._send = send
        self._thinned = 0.0
        self._told = Held()

    def idle(self) -> float | None:
        """Nobody computes: do a piece.

        :returns: seconds until there may be more to do; 0 is at once, ``None`` not before somebody computes again.
        """
        rest = self._states.tell_next(REST_SECONDS)
        if rest == 0.0 or self._pool.save_next():
            return 0.0
        self.tell()
        return rest

    def beside(self) -> None:
        """Streams run: do a piece that they will not notice."""
        if (now := monotonic()) - self._thinned > THIN_SECONDS:
            self._thinned = now
            self._states.tell_next(REST_SECONDS)
            self._pool.thin_out(REST_SECONDS)

    def settle(self, seconds: float) -> None:
        """The engine will end: do all there is to do, for at most ``seconds``."""
        end = monotonic() + seconds
        while monotonic() < end and self._states.tell_next(0.0) is not None:
            pass
        while monotonic() < end and self.idle() is not None:
            pass

    def tell(self) -> None:
        """Let the node know what is held, if that has changed."""
        if (held := self._pool.held()) != self._told:
            self._told = held
            self._send(held)
