"""Log-probabilities of logits, in numpy, which every engine that has logits brings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modeld.errors import EngineError

if TYPE_CHECKING:
    import numpy

    Logits = numpy.ndarray[tuple[int], numpy.dtype[numpy.float32]]

_STRETCH = 256
"""Logits of which only the largest is looked at, to find out which can be among the best."""


def log_sum(view: Logits) -> float:
    """The logarithm of the sum of their exponentials, which a logit lessened by is a log-probability.

    :raises EngineError: they are no numbers.
    """
    import numpy

    peak = view.max()
    if not numpy.isfinite(peak):
        raise EngineError("the model's logits are no numbers, so no token has a probability; the model is broken")
    return float(peak) + float(numpy.log(numpy.exp(view - peak).sum(dtype=numpy.float64)))


def best_tokens(view: Logits, count: int) -> list[int]:
    """Those with the largest logits, the largest first, of equal ones the smaller id; none that cannot come."""
    import numpy

    if not count:
        return []
    # The smallest of the largest of so many stretches is a bound: all that are wanted are at least as large.
    tail = len(view) % _STRETCH
    peaks = view[: len(view) - tail].reshape(-1, _STRETCH).max(1)
    bound = numpy.partition(peaks, -count)[-count] if len(peaks) > count else -numpy.inf
    found = numpy.flatnonzero((view >= bound) & (view > -numpy.inf))
    return [int(token) for token in found[numpy.argsort(-view[found], kind="stable")][:count]]
