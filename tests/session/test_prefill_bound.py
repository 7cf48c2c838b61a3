"""Hazard: a node that computes what it had, or could have had, in its KV already."""

from __future__ import annotations

from pathlib import Path

import pytest

from modeld.node.config import NodeConfig
from modeld.node.node import Node
from support.engines import ENGINES
from support.traces import Size, Trace, least_prefill, prefilled, run_trace

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("clients", [1, 4, 16, 64])
async def test_agents_side_by_side_prefill_nothing_twice(tmp_path: Path, clients: int) -> None:
    # An agent and its branch come back, so each has a sequence id; subagents and titles take turns with what is left.
    node = Node(NodeConfig(data_root=tmp_path, sequences=2 * clients + 8, ram=0))
    try:
        made = await run_trace(node, ENGINES["llama"], Trace(clients, seed=1))
        cells = (await node.status()).ledger.cells
    finally:
        await node.aclose()
    bound = least_prefill(made)
    assert bound.cells <= cells, "the working set has to fit"
    receipts = [one.result.receipt for one in made]
    assert sum(receipt.restored for receipt in receipts) == 0
    # What the test counts is what the node was asked: here and there the model spells an answer in other tokens.
    assert sum(receipt.input for receipt in receipts) == pytest.approx(sum(len(m.prompt) for m in made), rel=0.002)
    # Below the bound it would be the receipts that are wrong.
    computed = prefilled(made)
    assert 0.98 * bound.new <= computed <= 1.02 * bound.new <= 1.02 * bound.prompts


@pytest.mark.parametrize("clients", [1, 4, 16, 64])
async def test_a_quarter_of_the_cells_and_ram_for_the_rest(tmp_path: Path, clients: int) -> None:
    """What comes back from RAM is not computed again; only what never reached a block is.

    Few clients have many subagents, or a quarter of the cells would not hold the longest.
    """
    more = max(1, 32 // clients)
    trace = Trace(clients, seed=1, size=Size(subagents=more))
    for name in ("large", "small"):
        (tmp_path / name).mkdir()
    ids = clients * (2 + more) + 8
    large = Node(NodeConfig(data_root=tmp_path / "large", sequences=ids, ram=0))
    try:
        working_set = least_prefill(await run_trace(large, ENGINES["llama"], trace)).cells
    finally:
        await large.aclose()
    small = Node(NodeConfig(data_root=tmp_path / "small", sequences=ids, cells=working_set // 4, ram=10**9))
    try:
        made = await run_trace(small, ENGINES["llama"], trace)
        cells = (await small.status()).ledger.cells
    finally:
        await small.aclose()
    # The planner rounds up to 256 cells, and a window has to hold the longest conversation.
    assert cells <= max(1024, working_set // 4 + 256)
    assert prefilled(made) <= 1.05 * least_prefill(made).prompts, (cells, working_set)
    # Of few clients those that come back may fit in a quarter; of many they do not, and RAM has them.
    assert clients < 16 or sum(one.result.receipt.restored for one in made) > 0
