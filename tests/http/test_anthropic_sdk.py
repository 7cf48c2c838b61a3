"""Hazard: an object that Anthropic's own client cannot read, or that lacks what its programs look for."""

from __future__ import annotations

import json
from typing import Any

import anthropic
import pytest
from anthropic import BaseModel
from anthropic.types import Message, ModelInfo, TextBlock, ThinkingBlock, ToolUseBlock

from modeld.http import sse
from modeld.types import Message as Said
from support.engines import ENGINES

from .conftest import Opened, Site

pytestmark = pytest.mark.anyio

WEATHER: dict[str, Any] = {
    "name": "get_weather",
    "description": "Get the weather in a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TIME: dict[str, Any] = {"name": "get_time", "input_schema": {"type": "object"}, "type": "custom"}
GREEDY: dict[str, Any] = {"temperature": 0}
"""The client no longer has a parameter for it; its programs send it beside."""
CALL = '!call get_weather {"city":"Oslo"}'


def said(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def complete(value: Any) -> None:
    """The SDK builds objects without checking: read it again, with checks. No field of its types is missing."""
    if isinstance(value, BaseModel):
        type(value).model_validate(value.model_dump(exclude_unset=True), strict=True)
        assert set(type(value).model_fields) <= value.model_fields_set, type(value)
        for name in type(value).model_fields:
            complete(getattr(value, name))
    elif isinstance(value, list):
        for item in value:
            complete(item)


def text(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


async def test_a_whole_answer(claude: anthropic.AsyncAnthropic) -> None:
    raw = await claude.messages.with_raw_response.create(
        model="fake", max_tokens=50, messages=said("hello"), extra_body=GREEDY
    )
    answer = await raw.parse()
    complete(answer)
    assert (answer.type, answer.role, answer.model, answer.stop_reason) == ("message", "assistant", "fake", "end_turn")
    assert text(answer).startswith("hello #")
    receipt = json.loads(raw.headers["x-modeld-receipt"])
    usage = answer.usage
    assert usage.input_tokens == receipt["prefilled"] > 0
    assert usage.cache_read_input_tokens == receipt["reused"] + receipt["restored"]
    assert usage.cache_creation_input_tokens == 0
    assert (answer.model_extra or {})["modeld"]["receipt"]["prefilled"] == receipt["prefilled"]
    assert answer._request_id == raw.headers["x-request-id"] == raw.headers["request-id"]


async def test_a_second_turn_reads_from_the_cache(open_site: Opened) -> None:
    site = await open_site()
    async with site.claude() as claude:
        first = await claude.messages.create(model="fake", max_tokens=50, messages=said("hello " * 20))
        history = [*said("hello " * 20), first.to_param(), *said("more")]
        second = await claude.messages.create(model="fake", max_tokens=50, messages=history)
    assert (second.usage.cache_read_input_tokens or 0) > 100
    assert second.usage.input_tokens < 60
    assert len(await site.node.sessions()) == 1


async def test_the_order_of_events(claude: anthropic.AsyncAnthropic) -> None:
    stream = await claude.messages.create(
        model="fake", max_tokens=200, messages=said(CALL), tools=[WEATHER], stream=True,
        thinking={"type": "adaptive"}, output_config={"effort": "high"},
    )  # fmt: skip
    events = [event async for event in stream]
    for event in events:
        complete(event)
    kinds = [event.type for event in events]
    assert kinds[0] == "message_start"
    assert kinds[-2:] == ["message_delta", "message_stop"]
    blocks: list[str] = []
    is_open = False
    for event in events[1:-2]:
        if event.type == "content_block_start":
            assert not is_open
            assert event.index == len(blocks)
            blocks.append(event.content_block.type)
        elif event.type in ("content_block_delta", "content_block_stop"):
            assert is_open
            assert event.index == len(blocks) - 1
        is_open = event.type != "content_block_stop"
    assert blocks == ["thinking", "tool_use"]
    deltas = [event.delta.type for event in events if event.type == "content_block_delta"]
    assert deltas[-2:] == ["signature_delta", "input_json_delta"]
    assert set(deltas[:-2]) == {"thinking_delta"}
    last = events[-2]
    assert last.type == "message_delta"
    assert last.delta.stop_reason == "tool_use"
    assert (last.usage.input_tokens or 0) > 0
    assert (last.model_extra or {})["modeld"]["receipt"]["resident"] > 0


@pytest.mark.parametrize("asked", ["!count 30", CALL, "plain"])
async def test_the_sdks_stream_joins_to_the_whole_answer(claude: anthropic.AsyncAnthropic, asked: str) -> None:
    options: dict[str, Any] = {
        "model": "fake", "max_tokens": 300, "messages": said(asked), "tools": [WEATHER],
        "thinking": {"type": "enabled", "budget_tokens": 2048}, "extra_body": {"seed": 7, "max_tokens": 3000},
    }  # fmt: skip
    whole = await claude.messages.create(**options)
    async with claude.messages.stream(**options) as stream:
        pieces = [piece async for piece in stream.text_stream]
        final = await stream.get_final_message()
    assert "".join(pieces) == text(whole)
    assert (final.stop_reason, final.usage.output_tokens) == (whole.stop_reason, whole.usage.output_tokens)
    unlike = {"id", "caller", "parsed_output"}
    shown = [[block.to_dict() for block in message.content] for message in (final, whole)]
    for blocks in shown:
        for block in blocks:
            for name in unlike:
                block.pop(name, None)
    assert shown[0] == shown[1]


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_is_called_and_its_result_goes_back(claude: anthropic.AsyncAnthropic, stream: bool) -> None:
    asked: dict[str, Any] = {"model": "fake", "max_tokens": 200, "messages": said(CALL), "tools": [WEATHER, TIME]}
    if stream:
        async with claude.messages.stream(**asked) as events:
            answer: Any = await events.get_final_message()
    else:
        answer = await claude.messages.create(**asked)
    assert answer.stop_reason == "tool_use"
    call = answer.content[-1]
    assert isinstance(call, ToolUseBlock)
    assert (call.name, call.input) == ("get_weather", {"city": "Oslo"})
    results = (
        {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"},
        {"type": "tool_result", "tool_use_id": call.id, "content": [{"type": "text", "text": "no"}], "is_error": True},
        {"type": "tool_result", "tool_use_id": call.id},
    )
    # As programs do it: the blocks themselves, the message, and all of it as a dict with what is null.
    for content in (answer.content, answer.model_dump()["content"], [block.to_dict() for block in answer.content]):
        for result in results:
            back = [{"role": "assistant", "content": content}, {"role": "user", "content": [result]}]
            again = await claude.messages.create(**{**asked, "messages": [*said(CALL), *back]})
            assert again.stop_reason in ("end_turn", "tool_use")


async def test_parallel_calls_are_blocks_with_ids_of_their_own(claude: anthropic.AsyncAnthropic) -> None:
    asked: dict[str, Any] = {
        "model": "tiny", "max_tokens": 200, "tools": [WEATHER, TIME], "extra_body": GREEDY,
        "messages": said("What is the weather in Oslo and in Paris?"), "thinking": {"type": "disabled"},
    }  # fmt: skip
    answers = [await claude.messages.create(**asked) for _ in range(2)]
    calls = [[block for block in answer.content if block.type == "tool_use"] for answer in answers]
    assert [call.input for call in calls[0]] == [call.input for call in calls[1]]
    assert len(calls[0]) == 2, "tiny calls a tool for each city"
    assert len({call.id for each in calls for call in each}) == 4
    alone = await claude.messages.create(**asked, tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert sum(block.type == "tool_use" for block in alone.content) == 1


@pytest.mark.parametrize("choice", ["auto", "none", "any", "tool"])
async def test_every_tool_choice(claude: anthropic.AsyncAnthropic, choice: str) -> None:
    named = {"name": "get_time"} if choice == "tool" else {}
    answer = await claude.messages.create(
        model="tiny", messages=said("What time is it?"), tools=[WEATHER, TIME], extra_body=GREEDY, max_tokens=60,
        tool_choice={"type": choice, **named}, thinking={"type": "disabled"},
    )  # type: ignore[call-overload]  # fmt: skip
    calls = [block.name for block in answer.content if block.type == "tool_use"]
    if choice == "none":
        assert not calls
    if choice in ("any", "tool"):
        assert answer.stop_reason in ("tool_use", "max_tokens")
        assert calls[:1] == (["get_time"] if choice == "tool" else calls[:1])


async def test_a_schema_holds_the_answer(claude: anthropic.AsyncAnthropic) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["kiwi", "lotus"]}, "count": {"type": "integer", "maximum": 9}},
        "required": ["name", "count"],
        "additionalProperties": False,
    }
    answer = await claude.messages.create(
        model="tiny", messages=said("Give me a fruit."), max_tokens=60, thinking={"type": "disabled"},
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )  # fmt: skip
    found = json.loads(text(answer))
    assert found["name"] in ("kiwi", "lotus")
    assert isinstance(found["count"], int)


async def test_thinking_has_a_block_and_goes_back(claude: anthropic.AsyncAnthropic) -> None:
    asked: dict[str, Any] = {
        "model": "fake",
        "max_tokens": 4000,
        "thinking": {"type": "enabled", "budget_tokens": 3000},
    }
    answer = await claude.messages.create(**asked, messages=said("hello"))
    thought, spoken = answer.content
    assert isinstance(thought, ThinkingBlock)
    assert isinstance(spoken, TextBlock)
    assert thought.thinking
    assert thought.signature == "modeld.unsigned"
    assert answer.usage.output_tokens_details is not None
    assert answer.usage.output_tokens_details.thinking_tokens > 0
    foreign = {"type": "thinking", "thinking": "as Claude did", "signature": "EqQBCkYI" * 20}
    for content in (answer.content, [foreign, spoken], [{"type": "redacted_thinking", "data": "EmwKAhgB"}, spoken]):
        history = [*said("hello"), {"role": "assistant", "content": content}, *said("on")]
        again = await claude.messages.create(**asked, messages=history)
        codes = [warning["code"] for warning in (again.model_extra or {})["modeld"]["warnings"]]
        assert codes == (["thinking_not_read"] if "redacted" in str(content) else [])


async def test_thinking_that_is_not_shown_comes_back_with_its_block(claude: anthropic.AsyncAnthropic) -> None:
    """What the next prompt is made of is the same as if it had been shown."""
    asked: dict[str, Any] = {"model": "tiny", "max_tokens": 1100, "extra_body": GREEDY, "messages": said("Hello!")}
    shown, hidden = [
        await claude.messages.create(**asked, thinking={"type": "enabled", "budget_tokens": 1024, "display": display})
        for display in ("summarized", "omitted")
    ]
    assert [block.type for block in hidden.content] == [block.type for block in shown.content]
    assert isinstance(hidden.content[0], ThinkingBlock)
    assert isinstance(shown.content[0], ThinkingBlock)
    assert hidden.content[0].thinking == ""
    assert shown.content[0].thinking not in str(hidden.content)
    counts = [
        await claude.messages.count_tokens(
            model="tiny", messages=[*said("Hello!"), {"role": "assistant", "content": answer.content}, *said("on")]
        )
        for answer in (shown, hidden)
    ]
    assert counts[0] == counts[1]


@pytest.mark.parametrize(
    ("thinking", "effort", "thinks"),
    [
        ({"type": "disabled"}, None, False),
        ({"type": "between_tools"}, None, False),
        ({"type": "disabled"}, "max", False),
        ({"type": "enabled", "budget_tokens": 1024}, None, True),
        ({"type": "adaptive"}, "max", True),
        (None, "low", True),
    ],
)
async def test_thinking_is_mapped(claude: anthropic.AsyncAnthropic, thinking: Any, effort: Any, thinks: bool) -> None:
    answer = await claude.messages.create(
        model="fake", max_tokens=1100, messages=said("hello"), thinking=thinking or anthropic.omit,
        output_config={"effort": effort} if effort else anthropic.omit,
    )  # fmt: skip
    assert any(block.type == "thinking" for block in answer.content) == thinks
    codes = [warning["code"] for warning in (answer.model_extra or {})["modeld"]["warnings"]]
    assert codes == (["effort_without_thinking"] if effort and not thinks else [])


@pytest.mark.parametrize(
    ("asked", "options", "reason", "sequence"),
    [
        ("hello", {}, "end_turn", None),
        ("!count 50", {"max_tokens": 5}, "max_tokens", None),
        ("!count 50", {"stop_sequences": ["31", "12"]}, "stop_sequence", "12"),
        (CALL, {}, "tool_use", None),
        ("!count 4000", {"max_tokens": 9000}, "model_context_window_exceeded", None),
    ],
)
async def test_why_an_answer_ended(
    claude: anthropic.AsyncAnthropic, asked: str, options: dict[str, Any], reason: str, sequence: str | None
) -> None:
    options = {"model": "fake", "max_tokens": 500, "tools": [WEATHER], "messages": said(asked)} | options
    whole = await claude.messages.create(**options)
    async with claude.messages.stream(**options) as stream:
        streamed = await stream.get_final_message()
    for answer in (whole, streamed):
        assert (answer.stop_reason, answer.stop_sequence) == (reason, sequence)


async def test_count_tokens_is_the_engines_count(claude: anthropic.AsyncAnthropic) -> None:
    tool = ENGINES["llama"].tool
    offered = {"name": tool.function.name, "description": tool.function.description,
               "input_schema": tool.function.parameters}  # fmt: skip
    asked: dict[str, Any] = {
        "model": "tiny", "messages": said("What is the weather in Oslo?"), "tools": [offered],
        "thinking": {"type": "disabled"},
        "system": [{"type": "text", "text": "Be "}, {"type": "text", "text": "short."}],
    }  # fmt: skip
    count = await claude.messages.count_tokens(**asked)
    complete(count)
    answer = await claude.messages.create(**asked, max_tokens=5)
    usage = answer.usage
    assert count.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
    messages = [Said("system", "Be short."), Said("user", "What is the weather in Oslo?")]
    assert count.input_tokens == len(ENGINES["llama"].prompt(messages, [tool], "off"))


async def test_every_role_and_form_of_content(claude: anthropic.AsyncAnthropic) -> None:
    marked: Any = {"type": "text", "text": "two", "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    blocks: Any = [{"type": "text", "text": "one "}, marked]
    call: Any = {"type": "tool_use", "id": "toolu_01", "name": "get_weather", "input": {"city": "Oslo"},
                 "caller": {"type": "direct"}}  # fmt: skip
    messages: list[Any] = [
        {"role": "user", "content": blocks},
        {"role": "assistant", "content": [*blocks, call]},
        {"role": "user", "content": [
            {"type": "tool_result", "tool_use_id": "toolu_01", "content": blocks, "is_error": False},
            marked,
        ]},
        {"role": "system", "content": "from now on"},
        {"role": "assistant", "content": []},
        {"role": "user", "content": "last"},
    ]  # fmt: skip
    answer = await claude.messages.create(
        model="fake", max_tokens=100, messages=messages, system=blocks, tools=[WEATHER | {"strict": False}]
    )
    assert text(answer).startswith("last #")


async def test_every_option_that_is_taken(claude: anthropic.AsyncAnthropic) -> None:
    extra = {"temperature": 0.5, "top_p": 0.9, "top_k": 5, "seed": 7, "min_p": 0.1, "repeat_penalty": 1.1,
             "shift": False, "truncate": False, "context_management": {"edits": [
                 {"type": "clear_thinking_20251015", "keep": "all"}]}}  # fmt: skip
    answer = await claude.messages.create(
        model="fake", max_tokens=30, messages=said("!count 50"), stop_sequences=["20"], metadata={"user_id": "u"},
        service_tier="auto", speed="standard", cache_control={"type": "ephemeral"}, extra_body=extra,
        extra_headers={"anthropic-beta": "interleaved-thinking-2025-05-14,unheard-of-2030-01-01"}, tools=[],
    )  # fmt: skip
    assert answer.stop_reason == "max_tokens"
    assert answer.usage.output_tokens == 30


async def test_beta_clients_are_answered_too(claude: anthropic.AsyncAnthropic) -> None:
    answer = await claude.beta.messages.create(
        model="fake", max_tokens=50, messages=said("hello"), betas=["context-management-2025-06-27"]
    )
    assert text(answer).startswith("hello #")
    assert [model.id async for model in claude.beta.models.list()] == ["tiny"]


async def test_a_failure_in_the_middle_of_a_stream_is_an_event(
    claude: anthropic.AsyncAnthropic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "HEADERS_SECONDS", 0)
    stream = await claude.messages.create(model="fake", max_tokens=50, messages=said("!fail"), stream=True)
    with pytest.raises(anthropic.APIStatusError) as failed:
        async for _ in stream:
            pass
    assert failed.value.type == "invalid_request_error"
    assert failed.value.body["request_id"]  # type: ignore[index]


async def test_models_are_listed_as_the_client_reads_them(claude: anthropic.AsyncAnthropic, site: Site) -> None:
    models = [model async for model in claude.models.list()]
    assert [model.id for model in models] == ["tiny"]
    one = await claude.models.retrieve("tiny")
    assert one == models[0]
    complete(ModelInfo.model_validate(one.to_dict()))
    assert (one.type, one.lifecycle, one.display_name) == ("model", "active", "tiny")
    with pytest.raises(anthropic.NotFoundError) as missing:
        await claude.models.retrieve("nobody")
    assert missing.value.type == "not_found_error"
    async with site.sdk() as openai:
        assert (await openai.models.retrieve("tiny")).object == "model"


def test_a_message_has_no_field_that_is_not_told() -> None:
    """Should a newer client have more fields, this says so."""
    assert set(Message.model_fields) == {
        "id", "type", "role", "model", "content", "stop_reason", "stop_sequence", "stop_details", "container",
        "diagnostics", "usage",
    }  # fmt: skip
