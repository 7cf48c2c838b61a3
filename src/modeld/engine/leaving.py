"""Who of the blocks leaves main memory or loses its file when there is too little room, and in which order.

All payloads have about as many bytes for a token and a token's prefill about the same cost, so the seconds that a byte
saves differ by who would miss it and how soon: class and pin first, then the latest use.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from heapq import heapify, heappop, heappush

from modeld.engine.blocks import Block


def may_leave(block: Block, chosen: Container[Block]) -> bool:
    """It is in main memory alone, and nothing follows it but what has been ``chosen`` to leave."""
    held = block.state is not None and not block.writing and not block.gone
    return held and not block.file and all(child in chosen for child in block.children)


def may_lose_file(block: Block, chosen: Container[Block]) -> bool:
    """No other file is of use only with this one, but those ``chosen``; and no payload that has none."""
    if not block.file or block.reading or block.gone:
        return False
    if any(child not in chosen and (child.file or child.writing) for child in block.children):
        return False
    return block.state is not None or all(child in chosen and child.state is None for child in block.children)


def leave_in_order(
    first: Iterable[Block], may: Callable[[Block, Container[Block]], bool], size: int, bytes_of: Callable[[Block], int]
) -> list[Block] | None:
    """Blocks that may leave to free ``size`` bytes, what is worth least first and each before the one it follows.

    ``None``: all of them together have too little.
    """
    heap = [(value_of(block), block.key, block) for block in first if may(block, ())] if size > 0 else []
    heapify(heap)
    chosen: dict[Block, None] = {}
    while heap and size > 0:
        block = heappop(heap)[2]
        chosen[block] = None
        size -= bytes_of(block)
        if (parent := block.parent) is not None and parent.parent is not None and may(parent, chosen):
            heappush(heap, (value_of(parent), parent.key, parent))
    return list(chosen) if size <= 0 else None


def value_of(block: Block) -> tuple[int, int]:
    """What it is worth to keep a block: who would miss it, then how soon."""
    return block.weight, block.used
