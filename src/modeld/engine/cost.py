"""How long a step takes, learned from the steps that were, and how much of a prompt fits beside running streams.

A token of a prompt costs more the further back its prompt begins, because it attends to all before it, and more in a
small piece than in a large one. Measured on the 90m shape, two cores, milliseconds a token:

    tokens in the step      at position 0     2,000     8,000
                    16               0.9       3.1       9.3
                   128               0.7       2.5       5.5
                   512               0.7       1.8       3.8

So one number of seconds per token is wrong by ten, and what whole batches cost says little of small pieces. Here two
curves are kept, of steps beside streams alone: seconds of a step that only decodes, by the number of streams, and
seconds of one more token of a prompt, by its position. What a curve does not know yet it takes for dearer than it is.
"""

from __future__ import annotations

from collections.abc import Sequence

STEP_SECONDS = 0.15
"""How long a step with pieces of prompts may take beside running streams.

Text then comes at 6 to 7 tokens a second at least, faster than people read (about 5). A prompt of 8,000 tokens keeps a
third of its speed on the 90m shape. Half of these seconds would cost it a tenth more, three times as many would gain a
third (7 ms a token at position 8,000 in pieces of 64), and text would stutter at two tokens a second.
"""

DECODES = 2.0
"""Where a step that only decodes is slow by itself, one with pieces of prompts may take this many of it, so that at
least half of the time goes into prompts."""

MIN_CHUNK = 8
"""Tokens of prompts in a step at least, whatever they cost: prompts must come to an end."""

GAIN = 0.3
OUTLIER = 2.0
"""A measurement moves a curve by this part of the difference, and counts as at most twice or half of what was
expected: one step that another program held up must not shrink the next ten."""


class Curve:
    """A positive value at a growing place, known at knots that lie a factor of two apart, linear between them.

    :param first: where the second knot lies; the first is at 0.
    """

    def __init__(self, first: int) -> None:
        self._first = first
        self._values: dict[int, float] = {}

    def at(self, place: float) -> float | None:
        """The value; ``None``: nothing was measured anywhere.

        Below all that is known: the nearest value. Above: it grows with the place.
        """
        left, right, share = self._between(place)
        low, high = self._value(left), self._value(right)
        return None if low is None or high is None else low + share * (high - low)

    def learn(self, place: float, value: float) -> None:
        """A measurement of the value at a place."""
        left, right, share = self._between(place)
        known = self.at(place) or value
        factor = min(OUTLIER, max(1 / OUTLIER, value / known))
        for knot, weight in ((left, 1 - share), (right, share)):
            if weight:
                # An unknown knot starts where the line through the others has it.
                self._values[knot] = (self._value(knot) or value) * (1 + GAIN * weight * (factor - 1))

    def _between(self, place: float) -> tuple[int, int, float]:
        """The knots around a place, and how far between them it lies."""
        left, right = 0, self._first
        while right <= place:
            left, right = right, 2 * right
        return left, right, (place - left) / (right - left)

    def _value(self, knot: int) -> float | None:
        if (value := self._values.get(knot)) is not None or not self._values:
            return value
        below = [known for known in self._values if known < knot]
        if not below:
            return self._values[min(self._values)]
        nearest = max(below)
        # At most proportional: a part of the cost does not depend on the place.
        return self._values[nearest] * max(1.0, knot / max(nearest, self._first))


class StepCost:
    """What steps beside streams cost on this machine, with this model. Belongs to the scheduler's thread."""

    def __init__(self) -> None:
        self._streams = Curve(1)
        self._prompts = Curve(512)

    def allowed(self, streams: int) -> float:
        """Seconds that a step beside so many streams may take."""
        return max(STEP_SECONDS, DECODES * self.decode(streams))

    def decode(self, streams: int) -> float:
        """Seconds of a step that only decodes; 0 where none was seen yet."""
        return self._streams.at(streams) or 0.0

    def tokens(self, seconds: float, position: int) -> int:
        """How many tokens of a prompt, from ``position`` on, can be computed in so many seconds more."""
        each = self._prompts.at(position)
        return 0 if each is None else int(seconds / each)

    def seconds(self, tokens: int, position: int) -> float:
        """What so many tokens from ``position`` on cost; 0 where nothing was measured."""
        return tokens * (self._prompts.at(position + tokens / 2) or 0.0)

    def dearer(self, done: int, total: int) -> float:
        """How much more a token costs between these places of a prompt than at the first; 1 where nobody knows."""
        here, ahead = self._prompts.at(done), self._prompts.at((done + total) / 2)
        return ahead / here if here and ahead else 1.0

    def learn(self, streams: int, pieces: Sequence[tuple[int, int]], seconds: float) -> None:
        """A step ended.

        :param pieces: tokens and position of each piece of a prompt in it.
        """
        if not streams:
            return
        if not pieces:
            self._streams.learn(streams, seconds)
            return
        # Never nothing: a decode that was measured on a busy machine may have taken longer than this whole step.
        spent = max(seconds / 10, seconds - self.decode(streams))
        expected = sum(self.seconds(tokens, position) for tokens, position in pieces)
        whole = sum(tokens for tokens, _ in pieces)
        for tokens, position in pieces:
            known = self.seconds(tokens, position) / expected if expected else tokens / whole
            self._prompts.learn(position + tokens / 2, spent * known / tokens)
