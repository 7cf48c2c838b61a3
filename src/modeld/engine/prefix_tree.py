"""A radix tree over token ids: which sequence holds the KV of which beginning of a conversation.

Each node is a run of tokens whose KV is in the engine once, however many sequences hold it. A sequence holds the nodes
from the root to the end of its tape, and nothing else. So the tokens of all nodes are the cells in use, exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from modeld.engine.session import shared_length


class Double(NamedTuple):
    """Positions ``[start, end)`` of a sequence that ``donor`` holds as well, in cells of its own."""

    start: int
    end: int
    donor: int


class _Node:
    __slots__ = ("children", "holders", "parent", "start", "tokens")

    def __init__(self, parent: _Node | None, start: int, tokens: list[int], holders: set[int]) -> None:
        self.parent = parent
        self.start = start
        self.tokens = tokens
        self.holders = holders
        self.children: dict[int, _Node] = {}

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


class PrefixTree:
    """Tapes by sequence. Every node but the root has tokens and at least one holder."""

    def __init__(self) -> None:
        self._root = _Node(None, 0, [], set())
        self._ends: dict[int, _Node] = {}
        self.cells = 0
        """Tokens of all nodes."""

    def length(self, sequence: int) -> int:
        """Tokens of a sequence's tape."""
        return self._ends.get(sequence, self._root).end

    def tape(self, sequence: int) -> list[int]:
        """The tokens that a sequence holds."""
        node: _Node | None = self._ends.get(sequence, self._root)
        runs = []
        while node is not None:
            runs.append(node.tokens)
            node = node.parent
        tape: list[int] = []
        for run in reversed(runs):
            tape += run
        return tape

    def match(self, ids: Sequence[int]) -> tuple[int, int | None]:
        """How many leading tokens of ``ids`` are held, and a sequence that holds them (``None`` for no token)."""
        node, donor = self._root, None
        while node.end < len(ids):
            child = node.children.get(ids[node.end])
            if child is None:
                break
            common = shared_length(child.tokens, list(ids[child.start : child.end]))
            donor = next(iter(child.holders))
            if common < len(child.tokens):
                return child.start + common, donor
            node = child
        return node.end, donor

    def shared_with(self, sequences: set[int], ids: Sequence[int]) -> int:
        """How many leading tokens of ``ids`` one of ``sequences`` holds."""
        node = self._root
        while node.end < len(ids):
            child = node.children.get(ids[node.end])
            if child is None or sequences.isdisjoint(child.holders):
                break
            common = shared_length(child.tokens, list(ids[child.start : child.end]))
            if common < len(child.tokens):
                return child.start + common
            node = child
        return node.end

    def extend(self, sequence: int, tokens: Sequence[int]) -> list[Double]:
        """Append to a sequence's tape.

        :returns: what others hold already. Its cells are counted once here: let the sequence take those of the donor.
        """
        node = self._ends.get(sequence, self._root)
        rest = list(tokens)
        doubles: list[Double] = []
        while rest:
            child = node.children.get(rest[0])
            if child is None:
                node = self._append(node, sequence, rest)
                break
            common = shared_length(child.tokens, rest[: len(child.tokens)])
            donor = next(iter(child.holders))
            if common < len(child.tokens):
                child = self._split(child, common)
            child.holders.add(sequence)
            doubles.append(Double(child.start, child.end, donor))
            node, rest = child, rest[common:]
        self._ends[sequence] = node
        return doubles

    def _append(self, node: _Node, sequence: int, tokens: list[int]) -> _Node:
        self.cells += len(tokens)
        if node is not self._root and node.holders == {sequence} and not node.children:
            node.tokens += tokens
            return node
        child = node.children[tokens[0]] = _Node(node, node.end, tokens, {sequence})
        return child

    def share(self, source: int, target: int, length: int) -> None:
        """Let ``target``, whose tape is empty, hold the first ``length`` tokens of ``source``."""
        node = self._ends.get(source, self._root)
        while (parent := node.parent) is not None and node.start >= length:
            node = parent
        if node.end > length:
            node = self._split(node, length - node.start)
        if node is self._root:
            return
        self._ends[target] = node
        while (parent := node.parent) is not None:
            node.holders.add(target)
            node = parent

    def cut(self, sequence: int, keep: int) -> None:
        """Shorten a sequence's tape to ``keep`` tokens; 0 forgets the sequence."""
        node = self._ends.pop(sequence, self._root)
        while (parent := node.parent) is not None and node.end > keep:
            if node.start < keep:
                parent = self._split(node, keep - node.start)
            self._leave(node, sequence)
            node = parent
        if node is not self._root:
            self._ends[sequence] = node

    def held_by(self, sequences: set[int]) -> int:
        """Cells that at least one of ``sequences`` holds."""
        seen: set[_Node] = set()
        for sequence in sequences:
            node: _Node | None = self._ends.get(sequence, self._root)
            while node is not None and node not in seen:
                seen.add(node)
                node = node.parent
        return sum(len(node.tokens) for node in seen)

    def alone(self, sequence: int) -> int:
        """Cells that only this sequence holds."""
        node, count = self._ends.get(sequence, self._root), 0
        while node.parent is not None and len(node.holders) == 1:
            count += len(node.tokens)
            node = node.parent
        return count

    def _leave(self, node: _Node, sequence: int) -> None:
        node.holders.discard(sequence)
        if not node.holders:
            assert node.parent is not None
            assert not node.children
            del node.parent.children[node.tokens[0]]
            self.cells -= len(node.tokens)

    def _split(self, node: _Node, at: int) -> _Node:
        """Divide a node after ``at`` tokens; the node becomes the second half.

        :returns: the first half, with the same holders.
        """
        assert node.parent is not None
        first = _Node(node.parent, node.start, node.tokens[:at], set(node.holders))
        node.parent.children[first.tokens[0]] = first
        node.parent, node.start, node.tokens = first, node.start + at, node.tokens[at:]
        first.children[node.tokens[0]] = node
        return first
