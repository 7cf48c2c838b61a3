"""KV of one sequence: the states of an infer request, which can be read, cut, and written into another one."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy

Array = numpy.ndarray[Any, Any]
Layers = list[Array]
"""Keys and values of each layer: ``[1, heads, tokens, head length]``."""

_HEAD = struct.Struct(">4sII")
_MAGIC = b"OVKV"


class StateError(Exception):
    """States do not hold what was written into them, or are not as long as they must be."""


class SequenceKV:
    """What one sequence holds, in the states of a request, in arrays of ours, or in both.

    Reading the states copies all of them, and so does writing. So what is cut, shared or restored stays in arrays until
    the next step, and what was read for one piece is kept for the next. The buffer of a request is only given back
    with the request.

    :param make: a new request. :param kind: of KV: arrays have no more bits than the engine has.
    :param heads: heads and their length for each state.
    """

    def __init__(
        self, make: Callable[[], Any], kind: type[numpy.floating[Any]], heads: Sequence[tuple[int, int]]
    ) -> None:
        self._make = make
        self._kind = kind
        self._heads = heads
        self._request: Any = None
        self._pieces: list[Layers] = []
        self.tokens = 0
        """Tokens it holds."""

    def measured(self) -> int:
        """Tokens, counted in the states, or where there are none, in the arrays."""
        if self._request is not None:
            return int(self._request.query_state()[0].state.shape[2])
        return sum(piece[0].shape[2] for piece in self._pieces)

    def request(self) -> Any:
        """The request, whose states hold exactly :attr:`tokens`.

        :raises StateError: they do not read back as they were written.
        """
        if self._request is None:
            request = self._make()
            if self.tokens:
                self._write(request)
            self._request = request
        self._pieces = []
        return self._request

    def _write(self, request: Any) -> None:
        for layer, state in enumerate(request.query_state()):
            values = self._joined(layer)
            held = state.state
            wanted = numpy.ascontiguousarray(values, dtype=held.data.dtype)
            state.state = type(held)(wanted)
            if not numpy.array_equal(state.state.data, wanted):
                raise StateError(f"state {layer} does not hold what was written into it")

    def _joined(self, layer: int) -> Array:
        parts = [piece[layer] for piece in self._pieces]
        return parts[0] if len(parts) == 1 else numpy.concatenate(parts, axis=2)

    def layers(self) -> Layers:
        """All it holds; kept until :meth:`forget_copy` or the next step. :raises StateError: a state is not as long."""
        if self._pieces or not self.tokens:
            if len(self._pieces) > 1:
                self._pieces = [[self._joined(layer) for layer in range(len(self._heads))]]
            return self._pieces[0] if self._pieces else self._empty()
        layers = []
        for state in self._request.query_state():
            values = state.state.data
            if values.shape[2] != self.tokens:
                raise StateError(f"a state has {values.shape[2]} tokens and should have {self.tokens}")
            layers.append(values.astype(self._kind))
        self._pieces = [layers]
        return layers

    def forget_copy(self) -> None:
        """Free the arrays where the states have the same."""
        if self._request is not None:
            self._pieces = []

    def part(self, start: int, end: int) -> Layers:
        """Copies of positions ``[start, end)``."""
        return [values[:, :, start:end].copy() for values in self.layers()]

    def cut(self, keep: int) -> None:
        """Hold the first ``keep`` tokens only."""
        layers = [values[:, :, :keep].copy() for values in self.layers()] if keep else []
        self._request = None
        self._pieces = [layers] if keep else []
        self.tokens = keep

    def detach(self) -> None:
        """Hold it in arrays only."""
        self.layers()
        self._request = None

    def append(self, layers: Layers) -> None:
        """Hold these behind the others."""
        if self.tokens:
            self.layers()
        self._request = None
        self._pieces.append(layers)
        self.tokens += layers[0].shape[2]

    def _empty(self) -> Layers:
        return [numpy.empty((1, heads, 0, length), self._kind) for heads, length in self._heads]

    # Bytes

    def save(self, start: int, end: int) -> bytes:
        """Positions ``[start, end)`` as bytes."""
        head = _HEAD.pack(_MAGIC, start, end - start)
        return head + b"".join(values[:, :, start:end].tobytes() for values in self.layers())

    def read(self, data: bytes, start: int, end: int) -> Layers | None:
        """Positions ``[start, end)`` of what :meth:`save` wrote, up to its end where ``end`` is negative.

        ``None``: it is not that.
        """
        if len(data) < _HEAD.size:
            return None
        magic, first, count = _HEAD.unpack_from(data)
        size = numpy.dtype(self._kind).itemsize
        expected = _HEAD.size + size * count * sum(heads * length for heads, length in self._heads)
        end = first + count if end < 0 else end
        if magic != _MAGIC or len(data) != expected or not first <= start < end <= first + count:
            return None
        layers, at = [], _HEAD.size
        for heads, length in self._heads:
            values = numpy.frombuffer(data, self._kind, heads * count * length, at).reshape(1, heads, count, length)
            layers.append(values[:, :, start - first : end - first].copy())
            at += values.nbytes
        return layers
