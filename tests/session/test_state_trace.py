"""Hazard: a state put back at the wrong place, or of other tokens, so that the model says something else.

Few sequences and little RAM: sessions leave the engine all the time, and come back from kept states or are computed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from modeld.engine.llama.runtime import LlamaRuntime
from modeld.engine.protocol import Load
from modeld.node.config import NodeConfig
from modeld.node.node import Node
from modeld.session import ModelRef
from support.engines import ENGINES
from support.shapes import write_hybrid, write_recurrent, write_windowed
from support.traces import Size, Trace, prefilled, run_trace

from .test_trace_numerics import Cold, said

pytestmark = pytest.mark.anyio

BOUNDS = {write_windowed: 0.1, write_hybrid: 0.1, write_recurrent: 0.02}
"""Largest difference of a logit in other batch shapes."""
LITTLE = {write_windowed: 2 * 10**6, write_hybrid: 8 * 10**6, write_recurrent: 4 * 10**5}
"""Bytes of RAM: some states of these models, not all that the trace makes."""


@dataclass
class Shape:
    """A model in two engines: a node's, and a cold one."""

    path: Path
    cold: Cold
    bound: float
    little: int


@pytest.fixture(scope="module", params=BOUNDS)
def shape(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shape]:
    path = tmp_path_factory.mktemp("shape") / "shape.gguf"
    request.param(path)
    backend = LlamaRuntime().load(Load(str(path), "shape", "d", 8192, 8192, sequences=1, threads=1))
    yield Shape(path, Cold(backend), BOUNDS[request.param], LITTLE[request.param])
    backend.close()


@pytest.mark.parametrize("plenty", [True, False])
async def test_what_agents_hear_is_what_each_would_hear_alone(tmp_path: Path, shape: Shape, plenty: bool) -> None:
    ram = 10**9 if plenty else shape.little
    engine = replace(ENGINES["llama"], ref=ModelRef(path=str(shape.path)))
    cold = Cold(shape.cold.backend)
    node = Node(NodeConfig(data_root=tmp_path, sequences=3, cells=1024, ram=ram, threads=1))
    try:
        trace = await run_trace(node, engine, Trace(3, seed=1, size=Size(system=150, turns=2, max_tokens=16)))
        assert (await node.status()).ledger.ram <= ram
    finally:
        await node.aclose()
    warm = sum(made.result.receipt.input for made in trace) - prefilled(trace)
    assert warm > prefilled(trace), "or else the answers are cold ones"
    assert sum(made.result.receipt.restored for made in trace) > 0
    for made in trace:
        prompt, answer, alone = cold.answer(made)
        assert made.result.receipt.input == len(prompt)
        if said(made.result) != said(alone):
            assert_near(cold, prompt, answer, made.answer, shape.bound)


def assert_near(cold: Cold, prompt: list[int], alone: list[int], heard: list[int], bound: float) -> None:
    """Where the answers part, both tokens are within what another batch shape makes of the same logits."""
    same = next(n for n, (a, b) in enumerate(zip(alone, heard, strict=False)) if a != b)
    logits = cold.logits(prompt + alone[:same])
    assert logits[alone[same]] - logits[heard[same]] <= 2 * bound
