"""Hazard: an answer that ends and does not fit the schema it was asked for."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import AsyncIterator
from datetime import date, datetime
from ipaddress import IPv4Address, IPv6Address
from uuid import UUID

import jsonschema
import pytest

from modeld.node.node import Node, NodeConfig
from modeld.session import ModelRef, SessionConfig
from modeld.types import ChatResult, DecodeOptions, Message, ResponseFormat
from support.engines import TINY_F16
from support.schemas import Maker

pytestmark = pytest.mark.anyio

ASKS = ("Hello!", "Count to 12.", "What is the weather in Oslo?", "Repeat: amber kite")
CHECKER = jsonschema.FormatChecker(formats=())
CHECKER.checks("date", ValueError)(lambda text: bool(date.fromisoformat(text)))
CHECKER.checks("date-time", ValueError)(lambda text: bool(datetime.fromisoformat(text.upper().replace(":60", ":59"))))
CHECKER.checks("ipv4", ValueError)(lambda text: bool(IPv4Address(text)) or True)
CHECKER.checks("ipv6", ValueError)(lambda text: bool(IPv6Address(text)) or True)
CHECKER.checks("uuid", ValueError)(lambda text: bool(UUID(text)) or True)


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


@pytest.mark.parametrize(("seeds", "think"), [(range(200), "off"), (range(200, 250), "high")])
async def test_what_ends_by_itself_fits(node: Node, seeds: range, think: str) -> None:
    ends: Counter[str] = Counter()
    for schema, result in await answers(node, seeds, think):
        ends[result.finish_reason] += 1
        if result.finish_reason == "stop":
            jsonschema.validate(json.loads(result.text), schema, format_checker=CHECKER)
            assert bool(result.thinking) == (think == "high")
        else:
            assert (result.finish_reason, result.usage.output) == ("length", 400)
    # Most do end, or nothing was shown.
    assert ends["stop"] >= 0.9 * len(seeds), ends
