"""How a node runs."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from modeld.node.capacity import AUTO_CELLS

SEQUENCES = 64
"""Conversations whose KV an engine holds at a time. Each costs a row of logits: 39 MB in all for 152,000 tokens."""


class NodeConfig(Struct, frozen=True, kw_only=True):
    """How a node runs.

    :param idle_ttl: seconds without use until the engine process exits; 0 never.
    :param threads: of the engine; 0 is its own choice.
    :param sequences: conversations whose KV the engine holds at a time.
    :param cells: tokens of KV in the engine, at most, where no session asks for more.
    :param ram: bytes of main memory for KV that leaves the engine; ``None``: as :func:`ram_budget` says.
    :param disk: bytes of files for KV that leaves main memory; 0: none, as with ``ram`` 0; ``None``: as
        :func:`disk_budget` says.
    :param allow_fake: serve models named ``fake…`` by the engine without native code.
    """

    data_root: Path
    idle_ttl: float = 300.0
    threads: int = 0
    sequences: int = SEQUENCES
    cells: int = AUTO_CELLS
    ram: int | None = None
    disk: int | None = None
    allow_fake: bool = False
