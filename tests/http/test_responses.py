"""Hazard: an answer of the Responses API that OpenAI's client cannot read, in an order that is not the vendor's."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent
from openai.types.responses.response_create_params import (
    ResponseCreateParamsBase,
    ResponseCreateParamsNonStreaming,
    ResponseCreateParamsStreaming,
)
from pydantic import BaseModel, TypeAdapter

from modeld.http import sse
from modeld.http.responses_answer import ResponseWriter
from modeld.http.responses_request import ResponsesRequest
from modeld.testing.server import Answer
from modeld.types import EndPart, ErrorPart, FinishReason, TextPart, ToolCallDelta, ToolCallStart, Usage
from support.clouds import cloud

from .conftest import Site

pytestmark = pytest.mark.anyio

WEATHER: dict[str, Any] = {
    "type": "function",
    "name": "get_weather",
    "description": "Get the weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": None,
}
TIME: dict[str, Any] = {"type": "function", "name": "get_time", "parameters": {"type": "object"}, "strict": False}
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
UNUSED = {
    "access_programs",
    "image",
    "input_transformations",
    "moderation",
    "prompt_cache_diagnostics",
    "prompt_cache_options",
    "tool_usage",
}
"""Fields of features that no request can ask for."""


def complete(response: Response) -> Response:
    """Read again with checks: the SDK builds objects without. Nothing but what is of no use here is missing."""
    Response.model_validate(response.to_dict(mode="json"), strict=True)
    assert set(Response.model_fields) - response.model_fields_set == UNUSED
    return response


async def streamed(sdk: openai.AsyncOpenAI, **asked: Any) -> list[Any]:
    """All events, each of which is one of the vendor's, in their order."""
    stream = await sdk.responses.create(**asked, stream=True)
    events: list[Any] = [event async for event in stream]
    for event in events:
        EVENTS.validate_python(event.to_dict(mode="json"), strict=True)
        assert isinstance(event, BaseModel)
        assert event.model_fields_set >= set(type(event).model_fields) - {"status", "agent"}, event
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    complete(events[-1].response)
    return events


def kinds(events: list[Any]) -> list[str]:
    """Types of events, those that repeat once."""
    found = [event.type for event in events]
    return [kind for at, kind in enumerate(found) if not at or found[at - 1] != kind]


def alike(response: Response) -> Any:
    """Without what differs between two answers."""
    return json.loads(
        json.dumps([item.to_dict(mode="json") | {"id": "", "call_id": ""} for item in response.output], default=str)
    )


async def test_a_whole_answer(sdk: openai.AsyncOpenAI) -> None:
    raw = await sdk.responses.with_raw_response.create(model="fake", input="hello", temperature=0.0)
    answer = complete(raw.parse())
    assert answer.output_text.startswith("hello #")
    assert (answer.status, answer.error, answer.incomplete_details) == ("completed", None, None)
    assert (answer.temperature, answer.truncation, answer.tools, answer.metadata) == (0.0, "disabled", [], {})
    usage, receipt = answer.usage, json.loads(raw.headers["x-modeld-receipt"])
    assert usage is not None
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert receipt["prefilled"] + usage.input_tokens_details.cached_tokens == usage.input_tokens
    assert (answer.model_extra or {})["modeld"]["receipt"]["resident"] == receipt["resident"]


async def test_text_in_the_vendors_order(sdk: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "fake", "input": "!count 30", "instructions": "Count."}
    whole = complete(await sdk.responses.create(**asked))
    events = await streamed(sdk, **asked)
    assert kinds(events) == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text == events[-1].response.output_text
    assert alike(events[-1].response) == alike(whole)
    assert len({event.item_id for event in events if hasattr(event, "item_id")}) == 1


@pytest.mark.parametrize("summary", [None, "auto"])
async def test_thinking_is_reasoning(sdk: openai.AsyncOpenAI, summary: str | None) -> None:
    asked: dict[str, Any] = {"model": "fake", "input": "hello", "reasoning": {"effort": "high", "summary": summary}}
    whole = complete(await sdk.responses.create(**asked))
    thought: Any = whole.output[0]
    assert [item.type for item in whole.output] == ["reasoning", "message"]
    told = thought.summary if summary else thought.content
    assert told[0].text
    assert whole.usage is not None
    assert whole.usage.output_tokens_details.reasoning_tokens > 0
    events = await streamed(sdk, **asked)
    words = "reasoning_summary_text" if summary else "reasoning_text"
    frame = "reasoning_summary_part" if summary else "content_part"
    assert kinds(events)[2:9] == [
        "response.output_item.added",
        f"response.{frame}.added",
        f"response.{words}.delta",
        f"response.{words}.done",
        f"response.{frame}.done",
        "response.output_item.done",
        "response.output_item.added",
    ]
    assert "".join(event.delta for event in events if event.type == f"response.{words}.delta") == told[0].text


async def test_a_tool_is_called_and_its_result_goes_back(sdk: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "fake", "tools": [WEATHER]}
    said = {"role": "user", "content": '!call get_weather {"city": "Oslo"}'}
    whole = complete(await sdk.responses.create(**asked, input=[said]))
    events = await streamed(sdk, **asked, input=[said])
    assert kinds(events)[2:] == [
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert alike(events[-1].response) == alike(whole)
    call: Any = whole.output[0]
    assert (call.type, call.name, json.loads(call.arguments)) == ("function_call", "get_weather", {"city": "Oslo"})
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    # As programs do it: the items themselves, and all of them as dicts with what is null.
    for back in (whole.output, [item.model_dump() for item in whole.output]):
        again = complete(await sdk.responses.create(**asked, input=[said, *back, result]))
        assert again.output


async def test_two_calls_at_once(sdk: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "fake", "tools": [WEATHER, TIME]}
    said = '!call get_weather {"city": "Oslo"} && get_time {}'
    whole = complete(await sdk.responses.create(**asked, input=said))
    events = await streamed(sdk, **asked, input=said)
    assert [(item.type, item.name) for item in whole.output] == [  # type: ignore[union-attr]
        ("function_call", "get_weather"),
        ("function_call", "get_time"),
    ]
    assert alike(events[-1].response) == alike(whole)
    done = [event for event in events if event.type == "response.function_call_arguments.done"]
    assert [(event.output_index, json.loads(event.arguments)) for event in done] == [(0, {"city": "Oslo"}), (1, {})]
    async with sdk.responses.stream(**asked, input=said) as stream:
        final = await stream.get_final_response()
    assert len(final.output) == 2


async def test_the_sdks_own_accumulator(sdk: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "input": "What time is it?", "tools": [WEATHER, TIME]}
    options: dict[str, Any] = {"tool_choice": "required", "reasoning": {"effort": "none"}, "temperature": 0.0}
    async with sdk.responses.stream(**asked, **options, max_output_tokens=100) as stream:
        async for _ in stream:
            pass
        final = await stream.get_final_response()
    assert "function_call" in {item.type for item in final.output}
    async with sdk.responses.stream(model="fake", input="hello", reasoning={"effort": "high"}) as stream:
        final = await stream.get_final_response()
    assert final.output_text


NAMED = {"type": "function", "name": "get_time"}
ALLOWED = {"type": "allowed_tools", "mode": "required", "tools": [NAMED]}


@pytest.mark.parametrize("choice", ["auto", "none", "required", NAMED, ALLOWED])
async def test_every_tool_choice(sdk: openai.AsyncOpenAI, choice: Any) -> None:
    answer = await sdk.responses.create(
        model="tiny", input="What time is it?", tools=[WEATHER, TIME], tool_choice=choice, temperature=0,  # type: ignore[list-item]
        max_output_tokens=60, reasoning={"effort": "none"}, parallel_tool_calls=False,
    )  # fmt: skip
    complete(answer)
    calls = [item for item in answer.output if item.type == "function_call"]
    assert len(calls) <= 1
    if choice == "none":
        assert not calls
    if isinstance(choice, dict):
        assert [call.name for call in calls] == ["get_time"]


async def test_a_schema_holds_the_answer(sdk: openai.AsyncOpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["kiwi", "lotus"]}},
        "required": ["name"],
        "additionalProperties": False,
    }
    for form in ({"type": "json_schema", "name": "fruit", "schema": schema, "strict": True}, {"type": "json_object"}):
        answer = await sdk.responses.create(
            model="tiny", input="Give me a fruit.", text={"format": form}, max_output_tokens=80, temperature=0,  # type: ignore[typeddict-item]
            reasoning={"effort": "none"},
        )  # fmt: skip
        complete(answer)
        if form["type"] == "json_schema":
            assert json.loads(answer.output_text)["name"] in ("kiwi", "lotus")
        else:
            assert answer.output_text.lstrip().startswith("{")


async def test_the_next_turn_finds_the_tape_of_the_last(sdk: openai.AsyncOpenAI) -> None:
    """A tool loop with thinking: reasoning, message and call of one answer go back as the items they came as."""
    items: list[Any] = [{"role": "user", "content": '!call get_weather {"city": "Bergen"}'}]
    asked: dict[str, Any] = {"model": "fake", "tools": [WEATHER], "instructions": "Be brief and call tools."}
    first = await sdk.responses.create(**asked, input=items)
    call: Any = first.output[-1]
    items += [*first.output, {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}]
    second = await sdk.responses.create(**asked, input=items)
    assert first.usage is not None
    assert second.usage is not None
    assert second.usage.input_tokens_details.cached_tokens >= first.usage.input_tokens


async def test_thinking_comes_back_sealed_summed_up_and_as_text(sdk: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "fake", "include": ["reasoning.encrypted_content"]}
    first = await sdk.responses.create(**asked, input="hello", reasoning={"effort": "high"})
    thought: Any = first.output[0]
    said = {"role": "user", "content": "hello"}
    for change in (
        {"content": None},
        {"encrypted_content": None},
        {"content": None, "encrypted_content": None, "summary": [{"type": "summary_text", "text": "Hm."}]},
    ):
        item = thought.to_dict(mode="json") | change
        again = await sdk.responses.create(**asked, input=[said, item, first.output[1], said])
        assert again.output_text
    foreign = {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAAA"}
    with pytest.raises(openai.BadRequestError) as refused:
        await sdk.responses.create(**asked, input=[said, foreign])
    assert (refused.value.code, refused.value.param) == (
        "invalid_encrypted_content",
        "input[1].encrypted_content",
    )


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_are_of_the_text(sdk: openai.AsyncOpenAI, stream: bool) -> None:
    asked: dict[str, Any] = {
        "model": "tiny",
        "input": "Where is Anna?",
        "temperature": 0,
        "max_output_tokens": 30,
        "reasoning": {"effort": "none"},
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 2,
    }
    if stream:
        events = await streamed(sdk, **asked)
        told = [token for event in events if "output_text.delta" in event.type for token in event.logprobs]
        answer = events[-1].response
    else:
        answer = complete(await sdk.responses.create(**asked))
        told = answer.output[0].content[0].logprobs  # type: ignore[union-attr]
    assert "".join(token.token for token in told) == answer.output_text
    assert all(len(token.top_logprobs) == 2 for token in told)


async def test_what_was_cut_says_so(sdk: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "fake", "input": "!count 100", "max_output_tokens": 10}
    whole = complete(await sdk.responses.create(**asked))
    events = await streamed(sdk, **asked)
    for response in (whole, events[-1].response):
        assert (response.status, response.incomplete_details.reason) == ("incomplete", "max_output_tokens")
        assert [item.status for item in response.output] == ["incomplete"]
    assert events[-1].type == "response.incomplete"


async def test_every_option_and_item_that_is_taken(sdk: openai.AsyncOpenAI) -> None:
    text = [{"type": "input_text", "text": "a", "prompt_cache_breakpoint": {"mode": "explicit"}}]
    items: list[Any] = [
        {"role": "developer", "content": text},
        {"type": "message", "role": "system", "content": "s", "status": "completed"},
        {"type": "message", "role": "user", "content": text},
        {"role": "assistant", "content": "plain", "phase": "commentary"},
        {"type": "message", "role": "assistant", "id": "m", "content": [{"type": "refusal", "refusal": "no"}]},
        {"type": "reasoning", "id": "rs_2", "summary": []},
        {"type": "function_call", "call_id": "c", "name": "get_time", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "noon"}]},
        {"role": "user", "content": "last"},
    ]
    answer = await sdk.responses.create(
        model="fake", input=items, tools=[TIME], max_output_tokens=50, temperature=0.5, top_p=0.9,  # type: ignore[list-item]
        parallel_tool_calls=True, store=False, background=False, metadata={"a": "b"}, user="u", truncation="auto",
        prompt_cache_key="k", prompt_cache_retention="24h", service_tier="auto", text={"verbosity": "medium"},
        include=["reasoning.encrypted_content"],
        extra_body={"seed": 7, "stop": ["20"], "top_k": 5, "min_p": 0.1, "repeat_penalty": 1.1, "shift": False},
    )  # fmt: skip
    complete(answer)
    assert answer.output_text.startswith("last #")
    assert (answer.truncation, answer.metadata, answer.user, answer.tools[0].type) == (
        "auto",
        {"a": "b"},
        "u",
        "function",
    )


SAID = {"role": "user", "content": "x"}
REFUSED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"input": []}, "input"),
    ({"input": None}, "input"),
    ({"input": [{"role": "user"}]}, "input[0].content"),
    ({"input": [{"content": "x"}]}, "input[0].role"),
    ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
    ({"input": [SAID, {"type": "item_reference", "id": "x"}]}, "input[1].type"),
    ({"input": [SAID, {"type": "function_call", "call_id": "c", "name": "f"}]}, "input[1].arguments"),
    ({"input": [SAID, {"type": "function_call_output", "call_id": "c", "output": ""}]}, "input"),
    ({"input": [SAID | {"arguments": "{}"}]}, "input[0].arguments"),
    ({"input": [{"role": "user", "content": [{"type": "output_text", "text": ""}]}]}, "input[0].content[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type"),
    (
        {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:image/png;base64,AA=="}]}]},
        "input[0].content[0].image_url",
    ),
    ({"store": True}, "store"),
    ({"previous_response_id": "resp_1"}, "previous_response_id"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"background": True}, "background"),
    ({"prompt": {"id": "p"}}, "prompt"),
    ({"max_tool_calls": 3}, "max_tool_calls"),
    ({"include": ["file_search_call.results"]}, "include[0]"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "custom", "name": "x"}]}, "tools[0].type"),
    ({"tool_choice": {"type": "mcp", "server_label": "x"}}, "tool_choice.type"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [TIME], "tool_choice": ALLOWED | {"tools": [NAMED | {"name": "x"}]}}, "tool_choice"),
    ({"text": {"verbosity": "high"}}, "text.verbosity"),
    ({"reasoning": {"effort": "enormous"}}, "reasoning.effort"),
    ({"reasoning": {"mode": "pro"}}, "reasoning.mode"),
    ({"top_logprobs": 21}, "top_logprobs"),
    ({"max_output_tokens": 0}, "max_output_tokens"),
    ({"truncation": "auto", "shift": True}, "truncation"),
    ({"stream_options": {"include_obfuscation": True}}, "stream_options"),
    ({"stream": True, "stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"user": "a", "safety_identifier": "b"}, "user"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"no_such_field": 1}, "no_such_field"),
)  # fmt: skip


@pytest.mark.parametrize(("change", "param"), REFUSED)
async def test_what_is_not_supported_is_named(web: httpx2.AsyncClient, change: dict[str, Any], param: str) -> None:
    answer = await web.post("/v1/responses", json={"model": "fake", "input": "hello"} | change)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


async def test_a_failure_in_the_middle_is_the_vendors_event(
    sdk: openai.AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(openai.APIStatusError):
        await sdk.responses.create(model="fake", input="!fail")
    monkeypatch.setattr(sse, "HEADERS_SECONDS", 0)
    events = [event async for event in await sdk.responses.create(model="fake", input="!fail", stream=True)]
    assert [event.type for event in events] == ["response.created", "response.in_progress", "error", "response.failed"]
    for event in events[-2:]:
        EVENTS.validate_python(event.to_dict(mode="json"), strict=True)


def written(*parts: Any) -> tuple[list[Any], dict[str, Any]]:
    """The events for these parts, read with checks, and the object at the end."""
    writer = ResponseWriter(ResponsesRequest(model="m", input="x"))
    lines = b"".join(map(writer.part, parts)).split(b"\n")
    events = [EVENTS.validate_json(line[6:]) for line in lines if line.startswith(b"data: ")]
    return events, writer.response


def test_a_malformed_call_is_taken_back() -> None:
    events, response = written(
        ToolCallStart(0, "call_0", "f"),
        ToolCallDelta(0, "{"),
        TextPart("<tool_call>{"),
        ErrorPart("malformed_tool_call", "it is none", call=0),
        ToolCallStart(1, "call_1", "g"),
        EndPart(finish_reason="tool_calls", usage=Usage()),
    )
    done = [event.item for event in events if event.type == "response.output_item.done"]
    assert [(item.type, item.status) for item in done if item.type == "function_call"] == [
        ("function_call", "incomplete"),
        ("function_call", "completed"),
    ]
    assert [item.get("name") for item in response["output"]] == [None, "g"]
    assert response["modeld"]["errors"][0].code == "malformed_tool_call"
    assert response["usage"] is None


@pytest.mark.parametrize(
    ("reason", "status"),
    [
        ("stop", "completed"),
        ("tool_calls", "completed"),
        ("length", "incomplete"),
        ("context_full", "incomplete"),
        ("refused", "incomplete"),
        ("error", "failed"),
        ("cancelled", "failed"),
    ],
)
def test_every_finish_reason_is_a_status(reason: FinishReason, status: str) -> None:
    events, response = written(EndPart(finish_reason=reason, usage=Usage(input=3, output=1)))
    assert events[-1].type == f"response.{status}"
    assert response["status"] == events[-1].response.status == status
    assert [item["content"][0]["text"] for item in response["output"]] == [""]


async def test_a_backend_answers_in_the_same_form(site: Site, sdk: openai.AsyncOpenAI) -> None:
    async with cloud(site.root) as vendor:
        vendor.script(Answer(text="Hello there", thinking="Hm."), Answer(text="Hello there", thinking="Hm."))
        asked: dict[str, Any] = {"model": "cloud:gpt-5", "input": "hi", "reasoning": {"effort": "low"}}
        answer = complete(await sdk.responses.create(**asked))
        assert answer.output_text == "Hello there"
        events = await streamed(sdk, **asked)
        assert events[-1].response.output_text == "Hello there"
        assert vendor.requests[-1].json["model"] == "gpt-5"


def test_every_field_of_the_vendor_is_known() -> None:
    vendors = (ResponseCreateParamsBase, ResponseCreateParamsNonStreaming, ResponseCreateParamsStreaming)
    known = {name for params in vendors for name in params.__annotations__}
    assert known <= set(ResponsesRequest.__struct_fields__)


async def test_what_codex_sends_is_taken(web: httpx2.AsyncClient) -> None:
    """By its source: for a model that it does not know, with web search and subagents off (`modeld launch codex`)."""
    body = {
        "model": "tiny",
        "instructions": "You are a coding agent.",
        "input": [
            {"type": "message", "role": "developer", "content": [{"type": "input_text", "text": "Be short."}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Count to 3."}]},
        ],
        "tools": [WEATHER | {"strict": False}],
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "reasoning": None,
        "store": False,
        "stream": True,
        "include": [],
        "prompt_cache_key": "0199a213-81c0-7800-8aa1-bbab2a035a53",
        "client_metadata": {"x-codex-installation-id": "0199a213"},
    }
    answer = await web.post("/v1/responses", json=body)
    assert answer.status_code == 200, answer.text
    assert "response.completed" in answer.text
    searching = await web.post("/v1/responses", json=body | {"tools": [{"type": "web_search"}]})
    assert searching.status_code == 400
    assert searching.json()["error"]["message"] == "tools[0].type: 'web_search' is none of 'function', 'namespace'"
