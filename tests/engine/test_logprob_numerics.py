"""Hazard: log-probabilities that are not the model's. Each token of answers against formulas in numpy."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest

from modeld.node.config import NodeConfig
from modeld.node.node import Node
from modeld.session import ModelRef, SessionConfig
from modeld.types import DecodeOptions, FunctionTool, Message, ResponseFormat, Tool
from support.encoders import Reference
from support.engines import TINY_F16

pytestmark = pytest.mark.anyio

BOUND = 0.05
"""Of docs/engines.md: what the KV in 16 bits and the order of sums may change."""

REF = ModelRef(path=str(TINY_F16))
WEATHER = Tool(FunctionTool("get_weather", parameters={"type": "object", "properties": {"city": {"type": "string"}}}))
CASES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "sampled": {"temperature": 1.5, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 3},
    "penalised": {"temperature": 0.7, "seed": 4, "repeat_penalty": 1.8, "frequency_penalty": 0.5},
    # The mask is put on the logits themselves: the log-probabilities must be of what was there before.
    "held": {"temperature": 0, "response_format": ResponseFormat(regex="[ab]{8}c")},
}


@pytest.fixture(scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[Node]:
    node = Node(NodeConfig(data_root=tmp_path_factory.mktemp("root"), disk=0))
    yield node
    await node.aclose()


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("think", ["off", "high"])
async def test_each_token_has_the_probability_of_the_reference(node: Node, name: str, think: str) -> None:
    reference = Reference(TINY_F16)
    messages = [Message("user", "What is the weather in Oslo?")]
    session = await node.open_session(REF, SessionConfig(name=f"{name} {think}"))
    tools = (WEATHER,) if name == "greedy" else ()
    options = DecodeOptions(max_tokens=60, logprobs=True, top_logprobs=5, **CASES[name])
    result = await session.turn(messages, tools=tools, think=think, options=options).join()
    prompt = await node.render(REF, messages, tools=tools, think=think)
    told = result.logprobs
    assert len(told) == result.usage.output >= 8
    ids = [token.token for token in told if token.token is not None]
    logits = reference.logits([*prompt.tokens, *ids])[len(prompt.tokens) - 1 : -1]
    peaks = logits.max(1, keepdims=True)
    wanted = logits - peaks - np.log(np.exp(logits - peaks).sum(1, keepdims=True))
    compared = 0
    for token, row in zip(told, wanted, strict=True):
        assert token.logprob == pytest.approx(row[token.token], abs=BOUND)
        best = [int(i) for i in np.argsort(-row)[:6]]
        for place, other in enumerate(token.top):
            assert other.token is not None
            assert other.logprob == pytest.approx(row[other.token], abs=BOUND)
            # In the same place, where its neighbours are further from it than the bound lets them move.
            gaps = np.abs(row[best[place]] - np.delete(row, best[place]))
            if gaps.min() > 2 * BOUND:
                assert other.token == best[place]
                compared += 1
        assert len(token.top) == 5
    assert compared > 2 * len(told)
