"""What the engine does when nobody waits for it: KV goes where it survives, and the node hears what is held."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

from modeld.engine.ahead import Ahead
from modeld.engine.pool import Pool
from modeld.engine.protocol import Held, Reply
from modeld.engine.states import States
from modeld.engine.tiers import WRITE_SECONDS, Tiers

REST_SECONDS = 1.0
"""How long a session has rested before the node is told of it, and before it leaves for RAM beside running streams."""

THIN_SECONDS = 0.01
"""Between two looks at who could leave, or two blocks copied to RAM beside running streams."""


class Housekeeping:
    """Work for pauses. Belongs to the scheduler's thread; each call does a small piece.

    A session that rests for five seconds is in files by then, where the disk keeps up and has room.

    :param send: writes a frame to the node; may block.
    """

    def __init__(
        self, pool: Pool, ahead: Ahead, states: States, tiers: Tiers | None, send: Callable[[Reply], None]
    ) -> None:
        self._pool = pool
        self._ahead = ahead
        self._states = states
        self._tiers = tiers
        self._send = send
        self._thinned = 0.0
        self._told = Held()

    def idle(self) -> float | None:
        """Nobody computes: do a piece.

        :returns: seconds until there may be more to do; 0 is at once, ``None`` not before somebody computes again.
        """
        rest = self._states.tell_next(REST_SECONDS)
        if rest == 0.0 or self._ahead.step() or self._pool.save_next():
            return 0.0
        due = self._write(WRITE_SECONDS)
        self.tell()
        return min((seconds for seconds in (rest, due) if seconds is not None), default=None)

    def beside(self) -> None:
        """Streams run: do a piece that they will not notice."""
        if (now := monotonic()) - self._thinned > THIN_SECONDS:
            self._thinned = now
            self._states.tell_next(REST_SECONDS)
            self._pool.thin_out(REST_SECONDS)
            self._write(WRITE_SECONDS)

    def _write(self, rest: float) -> float | None:
        if self._tiers is None:
            return None
        due = [self._tiers.write(rest), self._tiers.patience()]
        return min((seconds for seconds in due if seconds is not None), default=None)

    def collect(self) -> None:
        """Take note of what was read and written meanwhile."""
        if self._tiers is not None:
            self._tiers.collect()

    def measured(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        if self._tiers is not None:
            self._tiers.measured(tokens, seconds)

    def settle(self, seconds: float) -> None:
        """The engine will end: do all there is to do, for at most ``seconds``."""
        end = monotonic() + seconds
        while monotonic() < end and self._states.tell_next(0.0) is not None:
            pass
        while (left := end - monotonic()) > 0:
            self.collect()
            if self._pool.save_next():
                continue
            self._write(0.0)
            if self._tiers is None or not self._tiers.busy:
                break
            self._tiers.wait(left)
        self.tell()

    def tell(self) -> None:
        """Let the node know what is held, if that has changed."""
        if (held := self._pool.held()) != self._told:
            self._told = held
            self._send(held)
