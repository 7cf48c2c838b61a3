"""Hazard: a node that computes what it had, or could have had, in its KV already."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from modeld.node.config import NodeConfig
from modeld.node.node import Node
from support.engines import ENGINES
from support.traces import Made, Size, Trace, least_prefill, prefilled, run_trace

pytestmark = pytest.mark.anyio

Hot = Callable[[int, Size], Awaitable[tuple[list[Made], int]]]


@pytest.fixture(scope="module")
def hot(tmp_path_factory: pytest.TempPathFactory) -> Hot:
    """A trace of so many clients where all of it fits and there is no RAM, and the cells there were. Each is played
    once: with 64 clients that takes 20 s."""
    played: dict[tuple[int, Size], tuple[list[Made], int]] = {}

    async def play(clients: int, size: Size) -> tuple[list[Made], int]:
        if (clients, size) not in played:
            # An agent and its branch come back, so each has a sequence id; subagents and titles take turns with what
            # is left.
            config = NodeConfig(data_root=tmp_path_factory.mktemp("hot"), sequences=2 * clients + 8, ram=0, threads=1)
            node = Node(config)
            try:
                made = await run_trace(node, ENGINES["llama"], Trace(clients, seed=1, size=size))
                played[clients, size] = made, (await node.status()).ledger.cells
            finally:
                await node.aclose()
        return played[clients, size]

    return play


@pytest.mark.parametrize("clients", [1, 4, 16, 64])
async def test_agents_side_by_side_prefill_nothing_twice(hot: Hot, clients: int) -> None:
    made, cells = await hot(clients, Size())
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
async def test_a_quarter_of_the_cells_and_ram_for_the_rest(tmp_path: Path, hot: Hot, clients: int) -> None:
    """What comes back from RAM is not computed again; only what never reached a block is.

    Few clients have many subagents, or a quarter of the cells would not hold the longest.
    """
    more = max(1, 32 // clients)
    size = Size(subagents=more)
    trace, working_set = Trace(clients, seed=1, size=size), least_prefill((await hot(clients, size))[0]).cells
    ids = clients * (2 + more) + 8
    small = Node(NodeConfig(data_root=tmp_path, sequences=ids, cells=working_set // 4, ram=10**9, threads=1))
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
