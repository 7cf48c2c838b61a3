"""How fast a prompt comes along."""

from __future__ import annotations

PACE_SECONDS = 2.0
"""A rate is that of the last two to four seconds, or of all there were."""


class Pace:
    """How fast a prompt comes along. Given the tokens that are done, now and then."""

    def __init__(self, now: float, done: int) -> None:
        self._older = self._newer = (now, done)

    def rate(self, now: float, done: int) -> float:
        """Tokens a second lately; 0 where nobody can tell yet. What was taken away again begins anew."""
        if done < self._newer[1]:
            self._older = self._newer = (now, done)
        elif now - self._newer[0] >= PACE_SECONDS:
            self._older, self._newer = self._newer, (now, done)
        since, before = self._older
        return (done - before) / (now - since) if now > since else 0.0
