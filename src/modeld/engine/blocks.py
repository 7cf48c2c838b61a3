"""Blocks of KV that left the engine, in a tree by the tokens before and in them.

A block is what a sequence held at positions ``[start, end)`` after exactly the tokens that lead to it, so a beginning
that several conversations share is kept once. Its payload may be in main memory, in a file, or both. Nothing here says
that a block is right: who takes one back reads it back. Who stays and who leaves is :mod:`modeld.engine.tiers`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from hashlib import sha256

from modeld.engine.session import shared_length
from modeld.session.manifest import pack_tokens

BLOCK = 256
"""Tokens of a block. Moving one takes well below a millisecond per MiB, so it fits between two steps of a stream."""

TOKEN_BYTES = 8
"""Of a packed token (:func:`modeld.session.manifest.pack_tokens`)."""


class Block:
    """One block, and what is known to follow it.

    ``tokens`` are packed. ``key`` names the block among all: it is made of all tokens up to its end and the manifest.
    """

    __slots__ = (
        "children",
        "end",
        "file",
        "gone",
        "key",
        "parent",
        "reading",
        "since",
        "size",
        "start",
        "state",
        "tokens",
        "used",
        "weight",
        "writing",
    )

    def __init__(self, parent: Block | None, tokens: bytes, key: bytes, weight: int = 0) -> None:
        self.parent = parent
        self.tokens = tokens
        self.key = key
        self.weight = weight
        self.start: int = parent.end if parent is not None else 0
        self.end: int = self.start + len(tokens) // TOKEN_BYTES
        # Sorted by their tokens: what begins most like something else is its neighbour.
        self.children: list[Block] = []
        # The payload where it is in main memory, and its bytes wherever it is.
        self.state: bytes | None = None
        self.size = 0
        # Bytes of its file, 0: it has none.
        self.file = 0
        # The files' thread is at it.
        self.reading = self.writing = False
        # When it came to main memory, and a counter of uses; both of this engine only.
        self.since = 0.0
        self.used = 0
        # It is in the tree no more.
        self.gone = False

    @property
    def whole(self) -> bool:
        """Nothing but a whole block can be followed by others."""
        return self.end - self.start == BLOCK or self.parent is None

    @property
    def on_disk(self) -> bool:
        """What follows it can be found again after a restart."""
        return self.file > 0 or self.parent is None


def block_key(parent: bytes, tokens: bytes) -> bytes:
    """Name of the block of packed ``tokens`` behind the block ``parent``; the first one follows the manifest."""
    return sha256(parent + tokens).digest()


class Blocks:
    """The tree.

    :param root: digest of the manifest: 32 bytes.
    """

    def __init__(self, root: bytes) -> None:
        self.root = Block(None, b"", root)

    def walk(self, ids: Sequence[int]) -> Iterator[tuple[Block, int]]:
        """The blocks that lead along ``ids``, and how many tokens of each do: of all but the last, all."""
        node, common = self.root, BLOCK
        while node.whole and common == BLOCK:
            child, common = _closest(node.children, pack_tokens(ids[node.end : node.end + BLOCK]))
            if child is None:
                return
            yield child, common
            node = child

    def ahead(self, ids: Sequence[int], start: int) -> list[tuple[Block, int]]:
        """The blocks that have more of ``ids`` than their first ``start``, and where ``ids`` leave each.

        The first may begin before ``start``, and the last differ at its end.
        """
        path = [(block, block.start + common) for block, common in self.walk(ids)]
        return [(block, end) for block, end in path if end > start]

    def length(self, ids: Sequence[int]) -> int:
        """How many leading tokens of ``ids`` are here."""
        return max((block.start + common for block, common in self.walk(ids)), default=0)

    def missing(self, tape: Sequence[int]) -> tuple[int, int] | None:
        """The first block of ``tape`` that is not here, ``[start, end)``; ``None``: all of it is."""
        at = 0
        for block, common in self.walk(tape):
            if block.start + common == len(tape):
                return None
            if common < BLOCK:
                break
            at = block.end
        return (at, min(at + BLOCK, len(tape))) if at < len(tape) else None

    def before(self, tape: Sequence[int], start: int) -> Block:
        """The block that ends at ``start``, which :meth:`missing` named."""
        node = self.root
        for block, _ in self.walk(tape[:start]):
            node = block
        assert node.end == start
        return node

    def insert(self, parent: Block, tokens: bytes, weight: int) -> Block:
        """A new block behind ``parent``."""
        block = Block(parent, tokens, block_key(parent.key, tokens), weight)
        parent.children.insert(_place(parent.children, tokens), block)
        return block

    def remove(self, block: Block) -> None:
        """Take a block that nothing follows out of the tree."""
        assert block.parent is not None
        assert not block.children
        siblings = block.parent.children
        del siblings[_place(siblings, block.tokens)]
        block.gone = True


def descendants(block: Block) -> list[Block]:
    """The block and all that follows it, each behind those that it follows."""
    found = [block]
    for one in found:
        found += one.children
    return found


def _place(children: list[Block], tokens: bytes) -> int:
    return bisect_left(children, tokens, key=lambda child: child.tokens)


def _closest(children: list[Block], rest: bytes) -> tuple[Block | None, int]:
    """The child that has most of ``rest``, and how many tokens; in the order of bytes it is next to it."""
    place = _place(children, rest)
    if place < len(children) and children[place].tokens == rest:
        return children[place], len(rest) // TOKEN_BYTES
    best: tuple[Block | None, int] = (None, 0)
    for child in children[max(0, place - 1) : place + 1]:
        common = shared_length(child.tokens, rest) // TOKEN_BYTES
        if common > best[1]:
            best = (child, common)
    return best
