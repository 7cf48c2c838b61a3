"""Hazard: what a vendor signed is lost or changed on its way through the node, and the vendor refuses the next turn."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest

from modeld.node.backends import ConfiguredBackend
from modeld.node.gateway import Gateway
from modeld.testing.anthropic import FakeAnthropic
from modeld.testing.server import Answer
from modeld.types import FunctionCall, ToolCall, Usage

from .conftest import Opened

pytestmark = pytest.mark.anyio

MODEL = "cloud:claude-opus-5"
TOOL: Any = {"name": "get_weather", "input_schema": {"type": "object", "properties": {}, "required": []}}
CALLS = (ToolCall("toolu_01A", FunctionCall("get_weather", '{"city": "Oslo"}')),)


@pytest.fixture(scope="module")
async def cloud(open_site: Opened) -> AsyncIterator[tuple[FakeAnthropic, anthropic.AsyncAnthropic]]:
    """The vendor, and its own client of a node before it."""
    site = await open_site()
    async with FakeAnthropic() as vendor, site.claude() as claude:
        gateway = Gateway(site.root)
        entry = ConfiguredBackend(name="cloud", type="anthropic", base_url=vendor.url)
        await gateway.register_backend(entry, secret=vendor.key)
        yield vendor, claude
        await gateway.aclose()


Cloud = tuple[FakeAnthropic, anthropic.AsyncAnthropic]


async def asked(claude: anthropic.AsyncAnthropic, stream: bool, **options: Any) -> Any:
    if not stream:
        return await claude.messages.create(**options)
    async with claude.messages.stream(**options) as events:
        return await events.get_final_message()


@pytest.mark.parametrize("stream", [False, True])
async def test_signed_thinking_goes_back_unchanged(cloud: Cloud, stream: bool) -> None:
    vendor, claude = cloud
    options: dict[str, Any] = {"model": MODEL, "max_tokens": 2000, "tools": [TOOL], "thinking": {"type": "adaptive"}}
    said: list[Any] = [{"role": "user", "content": "weather?"}]
    vendor.script(
        Answer(thinking="hm, Oslo", text="I look.", tool_calls=CALLS, signature="c2ln+/=", finish_reason="tool_calls")
    )
    answer = await asked(claude, stream, **options, messages=said)
    assert [block.type for block in answer.content] == ["thinking", "text", "tool_use", "redacted_thinking"]
    assert answer.content[0].thinking == "hm, Oslo"
    assert answer.stop_reason == "tool_use"
    call = answer.content[2]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
    said += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    vendor.script(Answer(text="Sunny."))
    await asked(claude, stream, **options, messages=said)
    sent = vendor.requests[-1].json["messages"]
    assert sent[1] == {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "hm, Oslo", "signature": "c2ln+/="},
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": "toolu_01A", "name": "get_weather", "input": {"city": "Oslo"}},
        ],
    }
    assert sent[2]["content"][0]["tool_use_id"] == "toolu_01A"
    assert vendor.requests[-1].json["thinking"]["type"] == "adaptive"
    assert vendor.requests[-1].json["output_config"] == {"effort": "high"}


async def test_blocks_that_a_client_has_from_the_vendor_go_there(cloud: Cloud) -> None:
    vendor, claude = cloud
    content = [
        {"type": "redacted_thinking", "data": "EmwKAhgB"},
        {"type": "thinking", "thinking": "so", "signature": "EqQB"},
        {"type": "text", "text": "Yes."},
    ]
    vendor.script(Answer(text="ok"))
    said: list[Any] = [
        {"role": "user", "content": "is it?"},
        {"role": "assistant", "content": content},
        {"role": "user", "content": "sure?"},
    ]
    await claude.messages.create(model=MODEL, max_tokens=100, messages=said)
    assert vendor.requests[-1].json["messages"][1]["content"] == content
    assert "thinking" not in vendor.requests[-1].json


async def test_thinking_of_the_nodes_own_models_is_not_sent_to_a_vendor(cloud: Cloud) -> None:
    vendor, claude = cloud
    said: list[Any] = [{"role": "user", "content": "hello"}]
    own = await claude.messages.create(
        model="fake", max_tokens=2000, messages=said, thinking={"type": "enabled", "budget_tokens": 1024}
    )
    assert own.content[0].type == "thinking"
    vendor.script(Answer(text="ok"))
    said += [{"role": "assistant", "content": own.content}, {"role": "user", "content": "and you?"}]
    await claude.messages.create(model=MODEL, max_tokens=100, messages=said)
    assert [block["type"] for block in vendor.requests[-1].json["messages"][1]["content"]] == ["text"]


async def test_pictures_go_to_a_vendor_and_its_counts_come_back(cloud: Cloud) -> None:
    vendor, claude = cloud
    usage = Usage(input=30, cache_read=10, cache_write=5, output=7, source="reported")
    vendor.script(Answer(text="a dot", usage=usage))
    image: Any = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAEC"}}
    marked: Any = {"type": "text", "text": "what?", "cache_control": {"type": "ephemeral"}}
    answer = await claude.messages.create(
        model=MODEL, max_tokens=100, messages=[{"role": "user", "content": [image, marked]}]
    )
    shown = vendor.requests[-1].json["messages"][0]["content"]
    assert shown == [image, marked]
    told = answer.usage
    assert (told.input_tokens, told.cache_read_input_tokens, told.cache_creation_input_tokens) == (15, 10, 5)
    assert told.output_tokens == 7
    more = (answer.model_extra or {})["modeld"]
    assert more["receipt"] is None
    assert more["warnings"] == []


async def test_a_refusal_is_one(cloud: Cloud) -> None:
    vendor, claude = cloud
    for stream in (False, True):
        vendor.script(Answer(refusal="I would rather not."))
        answer = await asked(
            claude, stream, model=MODEL, max_tokens=100, messages=[{"role": "user", "content": "do it"}]
        )
        assert answer.stop_reason == "refusal"
        assert answer.stop_details is not None
        assert answer.stop_details.type == "refusal"


async def test_pages_of_models(cloud: Cloud) -> None:
    _, claude = cloud
    whole = [model.id async for model in claude.models.list()]
    assert whole[0] == "tiny"
    assert MODEL in whole
    assert [model.id async for model in claude.models.list(limit=2)] == whole
    page = await claude.models.list(before_id=whole[3], limit=2)
    assert ([model.id for model in page.data], page.has_more) == (whole[1:3], True)
    assert (await claude.models.retrieve(MODEL)).id == MODEL


async def test_tokens_of_a_backends_model_are_not_guessed(cloud: Cloud) -> None:
    _, claude = cloud
    with pytest.raises(anthropic.BadRequestError, match="count_tokens is for models of this node"):
        await claude.messages.count_tokens(model=MODEL, messages=[{"role": "user", "content": "x"}])
