"""Hazard: an answer that ends and does not fit the schema it was asked for."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import date, datetime
from ipaddress import IPv4Address, IPv6Address
from uuid import UUID

import jsonschema
import pytest

from modeld.node.config import NodeConfig
from modeld.node.node import Node
from modeld.session import ModelRef, SessionConfig
from modeld.types import ChatResult, DecodeOptions, FunctionTool, Message, ResponseFormat, Tool
from random_schemas import Maker
from support.engines import TINY_F16

pytestmark = pytest.mark.anyio

ASKS = ("Hello!", "Count to 12.", "What is the weather in Oslo?", "Repeat: amber kite")
READS: dict[str, Callable[[str], object]] = {
    # Python has no year 0.
    "date": lambda text: date.fromisoformat(re.sub("^0000", "2000", text)),
    "ipv4": IPv4Address,
    "ipv6": IPv6Address,
    "uuid": UUID,
    # RFC 3339 has leap seconds and small letters.
    "date-time": lambda text: datetime.fromisoformat(re.sub("^0000", "2000", text.upper()).replace(":60", ":59")),
}
CHECKER = jsonschema.FormatChecker(formats=())
for name, read in READS.items():
    CHECKER.checks(name, ValueError)(lambda value, read=read: not isinstance(value, str) or bool(str(read(value))))


@pytest.fixture(scope="module")
async def node(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[Node]:
    node = Node(NodeConfig(data_root=tmp_path_factory.mktemp("root"), disk=0))
    yield node
    await node.aclose()


async def answers(node: Node, seeds: range, think: str) -> list[tuple[dict[str, object], ChatResult]]:
    async def one(seed: int, lane: int) -> tuple[dict[str, object], ChatResult]:
        session = await node.open_session(ModelRef(path=str(TINY_F16)), SessionConfig(name=f"lane {think} {lane}"))
        schema = Maker(seed).make()
        options = DecodeOptions(
            max_tokens=400,
            seed=random.Random(seed).randrange(2**32 - 1),
            temperature=1.2,
            response_format=ResponseFormat(schema=schema),
        )
        turn = session.turn([Message("user", ASKS[seed % len(ASKS)])], think=think, options=options)
        return schema, await turn.join()

    async def run(lane: int) -> list[tuple[dict[str, object], ChatResult]]:
        return [await one(seed, lane) for seed in seeds[lane::8]]

    return [pair for lane in await asyncio.gather(*map(run, range(8))) for pair in lane]


@pytest.mark.parametrize(("seeds", "think"), [(range(120), "off"), (range(120, 240), "high")])
async def test_what_ends_by_itself_fits(node: Node, seeds: range, think: str) -> None:
    ends: Counter[str] = Counter()
    for schema, result in await answers(node, seeds, think):
        ends[result.finish_reason] += 1
        if result.finish_reason == "stop":
            jsonschema.validate(json.loads(result.text), schema, format_checker=CHECKER)
            assert bool(result.thinking) == (think == "high")
        else:
            assert (result.finish_reason, result.usage.output) == ("length", 400)
    # Most do end, or nothing was shown: some schemas leave room that tiny fills for ever.
    assert ends["stop"] >= 0.8 * len(seeds), ends


@pytest.mark.parametrize("think", ["off", "high"])
async def test_a_call_fits_beside_thinking_and_a_format(node: Node, think: str) -> None:
    """Tools, a format and thinking together: who may answer or call does either, and both fit."""

    async def one(seed: int, schema: dict[str, object]) -> ChatResult:
        config = SessionConfig(name=f"tools {think} {seed}")
        session = await node.open_session(ModelRef(path=str(TINY_F16)), config)
        options = DecodeOptions(
            max_tokens=400,
            seed=seed,
            temperature=1.2,
            tool_choice="required" if seed % 2 else "auto",
            parallel_tool_calls=False,
            response_format=None if seed % 2 else ResponseFormat(schema=schema),
        )
        tool = Tool(FunctionTool("look", "looks it up", schema, strict=True))
        ask = [Message("user", ASKS[seed % len(ASKS)])]
        return await session.turn(ask, tools=(tool,), think=think, options=options).join()

    made = [(seed, Maker(seed).make()) for seed in range(1000, 1060)]
    made = [(seed, schema) for seed, schema in made if schema.get("type") == "object"][:40]
    results = await asyncio.gather(*(one(seed, schema) for seed, schema in made))
    ended = 0
    for (seed, schema), result in zip(made, results, strict=True):
        if result.finish_reason == "length":
            assert result.usage.output == 400
            continue
        ended += 1
        assert bool(result.thinking) == (think == "high")
        assert len(result.tool_calls) <= 1
        assert result.tool_calls or seed % 2 == 0
        said = result.tool_calls[0].function.arguments if result.tool_calls else result.text
        jsonschema.validate(json.loads(said), schema, format_checker=CHECKER)
    # 33 of 40; which ones hangs on the machine's arithmetic.
    assert ended >= 0.75 * len(made)
