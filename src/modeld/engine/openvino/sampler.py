"""Choosing a token from logits: the chain of llama.cpp's samplers, in numpy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy

from modeld.engine.backend import Scored
from modeld.engine.distribution import best_tokens, log_sum
from modeld.errors import EngineError
from modeld.types import DecodeOptions

Logits = numpy.ndarray[tuple[int], numpy.dtype[numpy.float32]]
Tokens = numpy.ndarray[Any, numpy.dtype[numpy.int64]]


class LogitsSampler:
    """Penalties, top-k, top-p, min-p, temperature, and a seeded draw; greedy at temperature 0.

    The order and the arithmetic are those of :class:`modeld.engine.llama.sampler.LlamaSampler`; the draw is numpy's, so
    one seed gives other tokens than there.

    :param logits: gives a row of the last step, which the sampler may change.
    """

    def __init__(
        self, logits: Callable[[int], Logits], vocabulary: int, options: DecodeOptions, seed: int, history: list[int]
    ) -> None:
        self._logits = logits
        self._vocabulary = vocabulary
        self._options = options
        self._random = numpy.random.default_rng(seed)
        used = options.repeat_penalty != 1 or options.frequency_penalty or options.presence_penalty
        self._last = options.penalty_last_n if used else 0
        self._history = history[-self._last :] if self._last else []

    def sample(self, row: int, allowed: bytes | None = None) -> int:
        """See :meth:`modeld.engine.backend.Sampler.sample`. :raises EngineError: the logits are no numbers."""
        logits = self._logits(row)
        if allowed is not None:
            bits = numpy.unpackbits(numpy.frombuffer(allowed, numpy.uint8), count=self._vocabulary, bitorder="little")
            logits[bits == 0] = -numpy.inf
        self._penalize(logits)
        if not numpy.isfinite(logits.max()):
            raise EngineError("the model's logits are no numbers, or no token is allowed")
        token = int(logits.argmax()) if self._options.temperature == 0 else self._draw(logits)
        if self._last:
            self._history = [*self._history, token][-self._last :]
        return token

    def scored(self, row: int, top: int, allowed: bytes | None = None) -> Scored:
        """See :meth:`modeld.engine.backend.Sampler.scored`."""
        # Choosing changes them where they stand: masks and penalties.
        logits = self._logits(row)[: self._vocabulary].copy()
        whole = log_sum(logits)
        best = tuple((token, float(logits[token]) - whole) for token in best_tokens(logits, top))
        token = self.sample(row, allowed)
        return Scored(token, float(logits[token]) - whole, best)

    def close(self) -> None:
        """Nothing to free."""

    def _penalize(self, logits: Logits) -> None:
        if not self._history:
            return
        options = self._options
        tokens, counts = numpy.unique(numpy.array(self._history), return_counts=True)
        values = logits[tokens]
        values = numpy.where(values <= 0, values * options.repeat_penalty, values / options.repeat_penalty)
        logits[tokens] = values - counts * options.frequency_penalty - options.presence_penalty

    def _draw(self, logits: Logits) -> int:
        options = self._options
        count = min(options.top_k or len(logits), len(logits))
        kept: Tokens = numpy.argpartition(-logits, count - 1)[:count]
        kept = kept[numpy.argsort(-logits[kept], kind="stable")]
        values = logits[kept].astype(numpy.float64)
        if options.top_p < 1:
            ends = int(numpy.searchsorted(numpy.cumsum(_softmax(values)), options.top_p)) + 1
            values = values[:ends]
        if options.min_p:
            values = values[values >= values[0] + numpy.log(options.min_p)]
        chances = numpy.cumsum(_softmax(values / options.temperature))
        drawn = int(numpy.searchsorted(chances, self._random.random() * chances[-1], side="right"))
        return int(kept[min(drawn, len(values) - 1)])


def _softmax(values: Any) -> Any:
    """Chances of values of which the first is the greatest."""
    powers = numpy.exp(values - values[0])
    return powers / powers.sum()
