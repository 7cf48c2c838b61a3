"""KV of one sequence: the states of an infer request, which can be read, cut, and written into another one."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy

from modeld.engine.openvino.group import Array, Group, Layers

_HEAD = struct.Struct(">4sII")
_MAGIC = b"OVKV"


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
        self._heads = heads
        self._pieces: list[Layers] = []
        self.kind = kind
        self.group: Group | None = None
        """Has the states, maybe with those of others."""
        self.tokens = 0
        """Tokens it holds."""

    def measured(self) -> int:
        """Tokens, counted in the states, or where there are none, in the arrays."""
        if self.group is not None:
            return self.group.measured(self)
        return sum(piece[0].shape[2] for piece in self._pieces)

    def alone(self) -> Group:
        """A group of which it is the only member. :raises StateError: states do not hold what they should."""
        if self.group is None or len(self.group.members) > 1:
            self.detach()
            return Group(self._make(), [self])
        return self.group

    # What its group calls

    @property
    def copied(self) -> bool:
        """Whether there are arrays, too."""
        return bool(self._pieces)

    def seated(self, group: Group) -> None:
        """The group's states hold it."""
        self.group, self._pieces = group, []

    def grew(self, count: int) -> None:
        """The group has computed so many tokens more."""
        self.tokens += count
        self._pieces = []

    def keep(self, layers: Layers) -> None:
        """The group's states have these."""
        self._pieces = [layers]

    def leave(self) -> None:
        """What arrays have is all that it holds."""
        if self.group is not None:
            self.group.forget(self)
            self.group = None

    # Arrays

    def _joined(self, layer: int) -> Array:
        parts = [piece[layer] for piece in self._pieces]
        return parts[0] if len(parts) == 1 else numpy.concatenate(parts, axis=2)

    def layers(self) -> Layers:
        """All it holds; kept until :meth:`forget_copy` or the next step. :raises StateError: a state is not as long."""
        if not self.tokens:
            return self._empty()
        if not self._pieces and self.group is not None:
            self._pieces = self.group.read([self])
        if len(self._pieces) > 1:
            self._pieces = [[self._joined(layer) for layer in range(len(self._heads))]]
        return self._pieces[0]

    def forget_copy(self) -> None:
        """Free the arrays where the states have the same."""
        if self.group is not None:
            self._pieces = []

    def part(self, start: int, end: int) -> Layers:
        """Copies of positions ``[start, end)``."""
        return [values[:, :, start:end].copy() for values in self.layers()]

    def cut(self, keep: int) -> None:
        """Hold the first ``keep`` tokens only."""
        pieces = [self.part(0, keep)] if keep else []
        self.leave()
        self._pieces, self.tokens = pieces, keep

    def detach(self) -> None:
        """Hold it in arrays only."""
        self.layers()
        self.leave()

    def append(self, layers: Layers) -> None:
        """Hold these behind the others."""
        self.detach()
        self._pieces.append(layers)
        self.tokens += layers[0].shape[2]

    def _empty(self) -> Layers:
        return [numpy.empty((1, heads, 0, length), self.kind) for heads, length in self._heads]

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
        size = numpy.dtype(self.kind).itemsize
        expected = _HEAD.size + size * count * sum(heads * length for heads, length in self._heads)
        end = first + count if end < 0 else end
        if magic != _MAGIC or len(data) != expected or not first <= start < end <= first + count:
            return None
        layers, at = [], _HEAD.size
        for heads, length in self._heads:
            values = numpy.frombuffer(data, self.kind, heads * count * length, at).reshape(1, heads, count, length)
            layers.append(values[:, :, start - first : end - first].copy())
            at += values.nbytes
        return layers
