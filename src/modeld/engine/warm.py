"""KV that left the engine, in RAM: blocks of a few hundred tokens, in a tree by the tokens before and in them.

A block is what a sequence held at positions ``[start, end)`` after exactly the tokens that lead to it, so a beginning
that several conversations share is stored once. Nothing here says that a block is right: who takes one back reads it
back.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from modeld.engine.session import shared_length

BLOCK = 256
"""Tokens of a block. Moving one takes well below a millisecond per MiB, so it fits between two steps of a stream."""


class Block:
    """One block, and what is known to follow it."""

    __slots__ = ("children", "end", "parent", "start", "state", "tokens", "used", "weight")

    def __init__(self, parent: Block | None, start: int, tokens: list[int], state: bytes, weight: int) -> None:
        self.parent = parent
        self.start = start
        self.end = start + len(tokens)
        self.tokens = tokens
        self.state = state
        self.weight = weight
        self.used = 0
        self.children: list[Block] = []


class WarmBlocks:
    """Blocks up to ``budget`` bytes. What will be missed least leaves first: the lightest, then the longest unused.

    A block leaves only after those that follow it: alone they could not be used.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._root = Block(None, 0, [], b"", 0)
        self._clock = itertools.count(1)
        self._leaves: set[Block] = set()
        self.bytes = 0
        """Bytes of all blocks."""

    def find(self, ids: Sequence[int], start: int) -> Block | None:
        """The block that has more of ``ids`` than their first ``start``; it may begin before, and differ at its end."""
        node, found = self._root, None
        while True:
            child, common = _best(node, ids)
            if child is None or not common:
                break
            found = child
            if common < len(child.tokens) or child.end > start:
                break
            node = child
        if found is None or found.start + shared_length(found.tokens, list(ids[found.start : found.end])) <= start:
            return None
        self._touch(found)
        return found

    def length(self, ids: Sequence[int]) -> int:
        """How many leading tokens of ``ids`` are here."""
        node = self._root
        while True:
            child, common = _best(node, ids)
            if child is None or not common:
                return node.end
            if common < len(child.tokens):
                return child.start + common
            node = child

    def missing(self, tape: Sequence[int]) -> tuple[int, int] | None:
        """The first block of ``tape`` that is not here, ``[start, end)``; ``None``: all of it is."""
        node = self._root
        while node.end < len(tape):
            end = min(node.end + BLOCK, len(tape))
            child = next((c for c in node.children if c.tokens == tape[node.end : end]), None)
            if child is None:
                longer = any(c.tokens[: end - node.end] == tape[node.end : end] for c in node.children)
                return None if longer else (node.end, end)
            node = child
        return None

    def add(self, tape: Sequence[int], start: int, end: int, weight: int, save: Callable[[], bytes]) -> bool:
        """Store the block ``[start, end)`` of ``tape``, as :meth:`missing` named it.

        :param weight: of who may miss it; heavier ones stay longer. :param save: gives its KV.
        :returns: ``False``: it does not fit, even after what is lighter or older has left.
        """
        parent = self._root
        while parent.end < start:
            (parent,) = [c for c in parent.children if c.tokens == tape[c.start : c.end]]
        tokens = list(tape[start:end])
        state = save()
        if not self._make_room(len(state), weight, keep=parent):
            return False
        for child in [c for c in parent.children if not c.children and c.tokens == tokens[: len(c.tokens)]]:
            # A shorter one of the same conversation, from before it went on.
            self._remove(child)
        block = Block(parent, start, tokens, state, weight)
        parent.children.append(block)
        self._leaves.discard(parent)
        self._leaves.add(block)
        self.bytes += len(state)
        self._touch(block)
        return True

    def drop(self, block: Block) -> None:
        """A block that did not read back: it goes, with all that follows it."""
        for child in list(block.children):
            self.drop(child)
        self._remove(block)

    def audit(self) -> list[str]:
        """Count the bytes again; a sentence where they differ."""
        found, todo = 0, [self._root]
        while todo:
            block = todo.pop()
            found += len(block.state)
            todo += block.children
        return [] if found == self.bytes else [f"RAM holds {found} bytes, the ledger {self.bytes}"]

    def _touch(self, block: Block) -> None:
        now = next(self._clock)
        node: Block | None = block
        while node is not None:
            node.used = now
            node = node.parent

    def _make_room(self, size: int, weight: int, keep: Block) -> bool:
        while self.bytes + size > self._budget:
            victims = [leaf for leaf in self._leaves if leaf is not keep and leaf.weight <= weight]
            if not victims:
                return False
            self._remove(min(victims, key=lambda leaf: (leaf.weight, leaf.used)))
        return True

    def _remove(self, block: Block) -> None:
        parent = block.parent
        assert parent is not None
        parent.children.remove(block)
        self._leaves.discard(block)
        self.bytes -= len(block.state)
        if not parent.children and parent is not self._root:
            self._leaves.add(parent)


def _best(node: Block, ids: Sequence[int]) -> tuple[Block | None, int]:
    """The child that has most of what follows in ``ids``."""
    best: tuple[Block | None, int] = (None, 0)
    for child in node.children:
        if node.end < len(ids) and child.tokens[0] == ids[node.end]:
            common = shared_length(child.tokens, list(ids[node.end : child.end]))
            if common > best[1]:
                best = (child, common)
    return best
