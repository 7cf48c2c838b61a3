"""Choosing a token: a chain of native samplers."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

from modeld.types import DecodeOptions


class LlamaSampler:
    """Penalties, top-k, top-p, min-p, temperature, and a seeded draw; greedy at temperature 0."""

    def __init__(
        self,
        native: Any,
        draw: Callable[[Any, int, bytes | None], int],
        vocabulary: int,
        options: DecodeOptions,
        seed: int,
        history: list[int],
    ) -> None:
        self._n = native
        self._draw = draw
        self._chain = native.llama_sampler_chain_init(native.llama_sampler_chain_default_params())
        for link in _links(native, vocabulary, options, seed):
            native.llama_sampler_chain_add(self._chain, link)
        if _penalizes(options):
            for token in history[-options.penalty_last_n :]:
                native.llama_sampler_accept(self._chain, token)

    def sample(self, row: int, allowed: bytes | None = None) -> int:
        """A token. ``llama_sampler_sample`` also accepts it: accepting again would count it twice."""
        return self._draw(self._chain, row, allowed)

    def close(self) -> None:
        """Free the chain and its links."""
        self._n.llama_sampler_free(self._chain)


def forbid(logits: int, count: int, allowed: bytes) -> None:
    """Make all of ``count`` logits at an address minus infinity whose bit in ``allowed`` is not set."""
    import numpy  # the binding has it already

    # A view, not a copy: the sampler reads what stands there.
    view = numpy.ctypeslib.as_array((ctypes.c_float * count).from_address(logits))
    bits = numpy.unpackbits(numpy.frombuffer(allowed, numpy.uint8), count=count, bitorder="little")
    numpy.putmask(view, bits == 0, -numpy.inf)


def _penalizes(options: DecodeOptions) -> bool:
    used = options.repeat_penalty != 1 or options.frequency_penalty or options.presence_penalty
    return bool(used and options.penalty_last_n)


def _links(native: Any, vocabulary: int, options: DecodeOptions, seed: int) -> list[Any]:
    links = []
    if _penalizes(options):
        links.append(
            native.llama_sampler_init_penalties(
                vocabulary,
                options.penalty_last_n,
                options.repeat_penalty,
                options.frequency_penalty,
                options.presence_penalty,
            )
        )
    if options.temperature == 0:
        return [*links, native.llama_sampler_init_greedy()]
    if options.top_k:
        links.append(native.llama_sampler_init_top_k(options.top_k))
    if options.top_p < 1:
        links.append(native.llama_sampler_init_top_p(options.top_p, 1))
    if options.min_p:
        links.append(native.llama_sampler_init_min_p(options.min_p, 1))
    return [*links, native.llama_sampler_init_temp(options.temperature), native.llama_sampler_init_dist(seed)]
