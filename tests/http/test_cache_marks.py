"""Hazard: what a client says of a vendor's cache is lost on its way, and its user pays the whole prompt every turn."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import anthropic
import openai
import pytest

from modeld.node.backends import ConfiguredBackend
from modeld.node.gateway import Gateway
from modeld.testing.anthropic import FakeAnthropic
from modeld.testing.openai import FakeOpenAI
from modeld.testing.server import Answer
from modeld.types import FunctionCall, ToolCall, Usage

from .conftest import Opened

pytestmark = pytest.mark.anyio

MODEL = "cloud:claude-opus-5"
SCHEMA = {"type": "object", "properties": {}, "required": []}
SHORT: dict[str, Any] = {"cache_control": {"type": "ephemeral"}}
LONG: dict[str, Any] = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
PIXEL: dict[str, Any] = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAEC"}}
CALL = ToolCall("toolu_01A", FunctionCall("look", '{"at": 1}'))
COUNTED = Usage(input=100, cache_read=70, cache_write=20, output=5, source="reported")


@dataclass
class World:
    """A node before both vendors, and the vendors' own clients of it."""

    anthropic: FakeAnthropic
    openai: FakeOpenAI
    claude: anthropic.AsyncAnthropic
    sdk: openai.AsyncOpenAI

    def sent(self) -> Any:
        """What Anthropic got last."""
        return self.anthropic.requests[-1].json


@pytest.fixture(scope="module")
async def world(open_site: Opened) -> AsyncIterator[World]:
    site = await open_site()
    async with FakeAnthropic() as claude, FakeOpenAI() as gpt, site.claude() as one, site.sdk() as other:
        gateway = Gateway(site.root)
        await gateway.register_backend(
            ConfiguredBackend(name="cloud", type="anthropic", base_url=claude.url), secret=claude.key
        )
        entry = ConfiguredBackend(name="gpt", type="openai", base_url=f"{gpt.url}/v1")
        await gateway.register_backend(entry, secret=gpt.key)
        yield World(claude, gpt, one, other)
        await gateway.aclose()


def text(words: str, **more: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **more}


def result(content: Any, **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": "toolu_01A", "content": content, **more}


def tool(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "input_schema": SCHEMA, **more}


USE: dict[str, Any] = {"type": "tool_use", "id": "toolu_01A", "name": "look", "input": {"at": 1}}
ASKED: dict[str, Any] = {"role": "user", "content": [text("look"), PIXEL, text(" at it")]}
PLACES: list[dict[str, Any]] = [
    {"tools": [tool("look", **LONG), tool("go", **SHORT)]},
    {"system": [text("a", **LONG), text("b"), text("c", **SHORT)]},
    {"messages": [{"role": "user", "content": [text("x", **LONG), {**PIXEL, **SHORT}, text("y")]}]},
    {"messages": [{"role": "user", "content": [PIXEL, text("x"), text("y", **SHORT)]}]},
    {
        "messages": [
            ASKED,
            {"role": "assistant", "content": [text("I "), text("look", **LONG), {**USE, **SHORT}]},
            {"role": "user", "content": [result([text("one", **SHORT), PIXEL]), text("so?", **SHORT)]},
        ]
    },
    {
        "messages": [
            ASKED,
            {"role": "assistant", "content": [USE]},
            {"role": "user", "content": [result("one", **LONG), text("so?")]},
        ]
    },
    {"cache_control": LONG["cache_control"], "system": [text("a"), text("b", **LONG)]},
]


@pytest.mark.parametrize("asked", PLACES, ids=range(len(PLACES)))
async def test_marks_stand_where_the_client_put_them(world: World, asked: dict[str, Any]) -> None:
    world.anthropic.script(Answer(text="ok"))
    body: dict[str, Any] = {"tools": [tool("look")], "messages": [{"role": "user", "content": "hi"}], **asked}
    answer = await world.claude.messages.create(model=MODEL, max_tokens=100, **body)
    sent = world.sent()
    for name, value in asked.items():
        assert sent[name] == value, name
    assert (answer.model_extra or {})["modeld"]["warnings"] == []


async def test_blocks_stay_as_they_are_when_a_mark_moves(world: World) -> None:
    """The vendor finds what it kept by blocks: one that is cut otherwise in the next turn is another one."""
    blocks = [text("a "), text("b "), PIXEL, text("c")]
    told = []
    for marked in (0, 1, 3, None):
        content = [{**block, **(SHORT if index == marked else {})} for index, block in enumerate(blocks)]
        world.anthropic.script(Answer(text="ok"))
        await world.claude.messages.create(
            model=MODEL,
            max_tokens=100,
            system=[block for block in content if block["type"] == "text"],
            messages=[{"role": "user", "content": content}],  # type: ignore[typeddict-item]
        )
        sent = world.sent()
        both = json.dumps([sent["system"], sent["messages"]])
        assert both.count("ephemeral") == (0 if marked is None else 2)
        told.append(both.replace(', "cache_control": {"type": "ephemeral"}', ""))
    assert len(set(told)) == 1


async def test_system_messages_in_the_middle_are_blocks_of_one_prompt(world: World) -> None:
    world.anthropic.script(Answer(text="ok"))
    said: Any = [{"role": "user", "content": "x"}, {"role": "system", "content": "later"}]
    await world.claude.messages.create(model=MODEL, max_tokens=100, system=[text("first", **SHORT)], messages=said)
    assert world.sent()["system"] == [text("first", **SHORT), text("\n\nlater")]


@pytest.mark.parametrize("stream", [False, True])
async def test_marks_on_an_answer_that_was_signed_stand_beside_its_thinking(world: World, stream: bool) -> None:
    options: dict[str, Any] = {"model": MODEL, "max_tokens": 2000, "tools": [tool("look")]}
    said: list[Any] = [{"role": "user", "content": "look"}]
    thought = Answer(thinking="hm", text="I look.", tool_calls=(CALL,), signature="c2ln", finish_reason="tool_calls")
    world.anthropic.script(thought)
    if stream:
        async with world.claude.messages.stream(**options, messages=said) as events:
            answer = await events.get_final_message()
    else:
        answer = await world.claude.messages.create(**options, messages=said)
    content = [block.to_dict() for block in answer.content]
    assert [block["type"] for block in content] == ["thinking", "text", "tool_use", "redacted_thinking"]
    content[1] |= SHORT
    content[2] |= SHORT
    back = {**result("a tree"), "tool_use_id": content[2]["id"]}
    world.anthropic.script(Answer(text="ok"))
    await world.claude.messages.create(
        **options, messages=[*said, {"role": "assistant", "content": content}, {"role": "user", "content": [back]}]
    )
    assert world.sent()["messages"][1]["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": "c2ln"},
        text("I look.", **SHORT),
        {**USE, **SHORT},
    ]


async def test_marks_on_an_answer_of_another_model_stay(world: World) -> None:
    world.anthropic.script(Answer(thinking="hm", text="Yes.", signature="c2ln"))
    said: list[Any] = [{"role": "user", "content": "is it?"}]
    answer = await world.claude.messages.create(model=MODEL, max_tokens=2000, messages=said)
    content = [block.to_dict() for block in answer.content]
    content[1] |= SHORT
    world.anthropic.script(Answer(text="ok"))
    said += [{"role": "assistant", "content": content}, {"role": "user", "content": "sure?"}]
    await world.claude.messages.create(model="cloud:claude-sonnet-4-6", max_tokens=100, messages=said)
    assert world.sent()["messages"][1]["content"] == [text("Yes.", **SHORT)]


async def test_an_empty_text_cannot_be_marked(world: World) -> None:
    said: Any = [{"role": "user", "content": [text("x"), text("", **SHORT)]}]
    with pytest.raises(anthropic.BadRequestError, match="cache_control cannot be set for an empty text"):
        await world.claude.messages.create(model=MODEL, max_tokens=100, messages=said)


@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_cache_gave_and_took_is_told(world: World, stream: bool) -> None:
    said: Any = [{"role": "user", "content": [text("x", **SHORT)]}]
    world.anthropic.script(Answer(text="ok", usage=COUNTED), Answer(text="ok", usage=COUNTED))
    options: dict[str, Any] = {"model": MODEL, "max_tokens": 100, "messages": said}
    if stream:
        async with world.claude.messages.stream(**options) as events:
            usage = (await events.get_final_message()).usage
        chunks = await world.sdk.chat.completions.create(stream=True, stream_options={"include_usage": True}, **options)
        counts = [chunk.usage async for chunk in chunks][-1]
    else:
        usage = (await world.claude.messages.create(**options)).usage
        counts = (await world.sdk.chat.completions.create(**options)).usage
    assert (usage.input_tokens, usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (10, 70, 20)
    assert counts is not None
    assert counts.prompt_tokens_details is not None
    assert counts.prompt_tokens == 100
    assert counts.prompt_tokens_details.cached_tokens == 70
    assert counts.prompt_tokens_details.cache_write_tokens == 20


async def test_marks_of_chat_completions_go_on_too(world: World) -> None:
    world.anthropic.script(Answer(text="ok"))
    function = {"name": "look", "parameters": SCHEMA}
    call = {"id": "toolu_02B", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAEC"}}
    said: Any = [
        {"role": "system", "content": [text("a", **SHORT), text("b")]},
        {"role": "user", "content": [text("x"), {**image, **SHORT}, text("y")]},
        {"role": "assistant", "content": [text("one "), text("two")], "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "toolu_02B", "content": [text("a tree", **SHORT)]},
    ]
    tools: Any = [{"type": "function", "function": function, **LONG}]
    await world.sdk.chat.completions.create(model=MODEL, messages=said, tools=tools)
    sent = world.sent()
    assert sent["tools"] == [tool("look", **LONG)]
    assert sent["system"] == [text("a", **SHORT), text("b")]
    assert [turn["content"] for turn in sent["messages"]] == [
        [text("x"), {**PIXEL, **SHORT}, text("y")],
        [text("one "), text("two"), {**USE, "id": "toolu_02B"}],
        [{**result([text("a tree", **SHORT)]), "tool_use_id": "toolu_02B"}],
    ]
    world.anthropic.script(Answer(text="ok"))
    await world.sdk.chat.completions.create(model=MODEL, messages=said[1:2], extra_body=SHORT)
    assert world.sent()["cache_control"] == {"type": "ephemeral", "ttl": "5m"}


@pytest.mark.parametrize(
    ("words", "cut"),
    [
        (("a", "\n", "b"), ("a\n", "b")),
        (("\n", " ", "a", "b", " "), ("\n a", "b ")),
        (("", "\n", "a"), ("\na",)),
    ],
)
async def test_blanks_are_no_block_of_their_own(world: World, words: tuple[str, ...], cut: tuple[str, ...]) -> None:
    """The vendor refuses them; clients of OpenAI's may send them."""
    for marked in (False, True):
        content: Any = [text(word) for word in words]
        world.anthropic.script(Answer(text="ok"))
        if marked:
            content[words.index("a")] |= SHORT
        await world.sdk.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": content}])
        blocks = world.sent()["messages"][0]["content"]
        assert tuple(block["text"] for block in blocks) == cut
        assert [("cache_control" in block) for block in blocks] == [marked and "a" in block["text"] for block in blocks]


@pytest.mark.parametrize("model", ["gpt:gpt-4o", "gpt:o1-pro"])
async def test_key_and_time_go_to_openai(world: World, model: str) -> None:
    asked: dict[str, Any] = {"model": model, "prompt_cache_key": "k", "prompt_cache_retention": "24h"}
    world.openai.script(Answer(text="ok"), Answer(text="ok"))
    answer = await world.sdk.chat.completions.create(messages=[{"role": "user", "content": "x"}], **asked)
    chatted = world.openai.requests[-1].json
    other = await world.sdk.responses.create(input="x", **asked)
    for sent in (chatted, world.openai.requests[-1].json):
        assert (sent["prompt_cache_key"], sent["prompt_cache_retention"]) == ("k", "24h")
    for told in (answer, other):
        assert (told.model_extra or {})["modeld"]["warnings"] == []


@pytest.mark.parametrize("stream", [False, True])
async def test_what_is_not_sent_on_is_said(world: World, stream: bool) -> None:
    point = {"prompt_cache_breakpoint": {"mode": "explicit"}}
    said: Any = [{"role": "user", "content": [text("x", **SHORT), text("y", **point)]}]
    world.openai.script(Answer(text="ok"))
    options: dict[str, Any] = {"model": "gpt:gpt-4o", "messages": said}
    options["prompt_cache_options"] = {"mode": "implicit"}
    if stream:
        chunks = [chunk async for chunk in await world.sdk.chat.completions.create(stream=True, **options)]
        more = (chunks[-1].model_extra or {})["modeld"]
    else:
        more = ((await world.sdk.chat.completions.create(**options)).model_extra or {})["modeld"]
    assert [warning["code"] for warning in more["warnings"]] == ["cache_marks_kept_here"]
    assert more["warnings"][0]["message"].startswith("3 marks")
    parts: Any = [{"role": "user", "content": [{"type": "input_text", "text": "x", **point}]}]
    world.anthropic.script(Answer(text="ok"))
    other = await world.sdk.responses.create(model=MODEL, input=parts, prompt_cache_retention="24h")
    more = (other.model_extra or {})["modeld"]
    assert more["warnings"][0]["message"].startswith("2 marks")


async def test_nothing_changes_for_a_model_of_the_node(world: World) -> None:
    marked: Any = [{"role": "user", "content": [text("a ", **SHORT), text("b")]}]
    plain: Any = [{"role": "user", "content": "a b"}]
    options: dict[str, Any] = {"model": "fake", "max_tokens": 5}
    tools = [tool("look", **SHORT)]
    first = await world.claude.messages.create(
        messages=plain, system="s", tools=[tool("look")], cache_control=None, **options
    )
    second = await world.claude.messages.create(
        messages=marked, system=[text("s", **LONG)], tools=tools, cache_control=SHORT["cache_control"], **options
    )
    for answer in (first, second):
        assert (answer.model_extra or {})["modeld"]["warnings"] == []
    usage = second.usage
    assert usage.input_tokens == 1, "the same prompt, to the last token"
    assert usage.cache_read_input_tokens is not None
    assert usage.input_tokens + usage.cache_read_input_tokens == first.usage.input_tokens
