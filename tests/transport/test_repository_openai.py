"""Hazard: what a vendor says becomes another thing behind a node. The vendor's SDK, on a fake of its wire."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import structs

from modeld.client import connect
from modeld.errors import AuthenticationError, BackendUnavailableError, RateLimitError
from modeld.node.backends import ConfiguredBackend
from modeld.node.config import NodeConfig
from modeld.node.gateway import Gateway
from modeld.testing.openai import FakeOpenAI
from modeld.testing.server import Answer, Fault
from modeld.transport.host import HostConfig, hosted
from modeld.transport.leader import LeaderNode
from modeld.types import FunctionCall, FunctionTool, Message, TextPart, Tool, ToolCall

pytestmark = pytest.mark.anyio

KEY = "sk-secret-of-the-tests-4711"
ASK = [Message("user", "hello")]
MODEL = "gpt-4o"


@pytest.fixture
async def vendor() -> AsyncIterator[FakeOpenAI]:
    async with FakeOpenAI(key=KEY) as server:
        yield server


@pytest.fixture
async def client(tmp_path: Path, vendor: FakeOpenAI) -> AsyncIterator[LeaderNode]:
    root = tmp_path / "root"
    async with hosted(HostConfig(node=NodeConfig(data_root=root)), lambda: None), await connect(root) as client:
        cloud = ConfiguredBackend(name="cloud", type="openai", base_url=f"{vendor.url}/v1")
        await client.repository.register_backend(cloud, secret=KEY)
        yield client


async def test_answers_and_streams_are_those_of_a_gateway_in_process(
    client: LeaderNode, vendor: FakeOpenAI, tmp_path: Path
) -> None:
    calls = tuple(ToolCall(id=f"call_{n}", function=FunctionCall("look", f'{{"n": {n}}}')) for n in range(2))
    told = Answer(text="I look.", tool_calls=calls, finish_reason="tool_calls")
    tools = [Tool(FunctionTool("look", "looks", {"type": "object", "properties": {"n": {"type": "integer"}}}))]
    gateway = Gateway(tmp_path / "root")
    found = []
    for repository in (client.repository, gateway):
        vendor.script(told, told)
        found.append(await repository.chat("cloud", MODEL, ASK, tools=tools))
        found.append(await (await repository.stream("cloud", MODEL, ASK, tools=tools)).join())
    await gateway.aclose()
    assert found[0].tool_calls == calls
    # Every answer of a vendor has an id of its own.
    assert len({result.id for result in found}) == 4
    first, *others = [structs.replace(result, end=structs.replace(result.end, id="")) for result in found]
    assert others == [first] * 3
    assert {request.headers["authorization"] for request in vendor.requests} == {f"Bearer {KEY}"}
    assert vendor.requests[0].json == vendor.requests[2].json
    assert MODEL in {model.name for model in await client.repository.list_models("cloud")}
    embedded = await client.repository.embed("cloud", "text-embedding-3-small", ["one", "two and"])
    assert len(embedded.vectors) == 2


async def test_leaving_a_stream_closes_the_vendors_request_at_once(
    client: LeaderNode, vendor: FakeOpenAI, eventually: Any
) -> None:
    vendor.script(Fault(kind="hang", after=2), Fault(kind="hang", after=0))
    async with await client.repository.stream("cloud", MODEL, ASK) as stream:
        assert isinstance(await anext(stream), TextPart)
    await eventually(lambda: vendor.cut_off == 1)
    asking = asyncio.create_task(client.repository.stream("cloud", MODEL, ASK))
    await eventually(lambda: len(vendor.requests) == 2)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await eventually(lambda: vendor.cut_off == 2)


async def test_the_vendors_errors_arrive_typed_and_without_the_key(
    client: LeaderNode, vendor: FakeOpenAI, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    limit = Fault(kind="status", status=429, message="slow down", headers={"retry-after": "3600"})
    wrong = Fault(kind="status", status=401, message=f"Incorrect API key provided: {KEY}")
    vendor.script(limit, wrong, Fault(kind="cut", after=3))
    with pytest.raises(RateLimitError) as limited:
        await client.repository.chat("cloud", MODEL, ASK)
    assert limited.value.retry_after == 3600
    with pytest.raises(AuthenticationError) as refused:
        await client.repository.chat("cloud", MODEL, ASK)
    assert KEY not in f"{refused.value!r} {refused.value.details}"
    stream = await client.repository.stream("cloud", MODEL, ASK)
    with pytest.raises(BackendUnavailableError):
        await stream.join()
    assert KEY not in caplog.text
