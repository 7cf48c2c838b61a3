"""Hazard: an object that OpenAI's own client cannot read, or that lacks what its programs look for."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from modeld.http import sse
from modeld.node.backends import ConfiguredBackend
from modeld.node.gateway import Gateway

from .conftest import Site

pytestmark = pytest.mark.anyio

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Get the weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TIME: dict[str, Any] = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object"}}}


def said(text: str) -> list[Any]:
    return [{"role": "user", "content": text}]


def strict(answer: ChatCompletion | ChatCompletionChunk) -> None:
    """The SDK builds objects without checking: read it again, with checks."""
    type(answer).model_validate(answer.model_dump(exclude_unset=True), strict=True)


async def test_a_whole_answer(sdk: openai.AsyncOpenAI) -> None:
    raw = await sdk.chat.completions.with_raw_response.create(model="fake", messages=said("hello"), temperature=0)
    answer = raw.parse()
    strict(answer)
    choice = answer.choices[0]
    assert (choice.index, choice.finish_reason, choice.message.role) == (0, "stop", "assistant")
    assert choice.message.content is not None
    assert choice.message.content.startswith("hello #")
    usage = answer.usage
    assert usage is not None
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    receipt = json.loads(raw.headers["x-modeld-receipt"])
    assert usage.prompt_tokens_details is not None
    assert receipt["prefilled"] + (usage.prompt_tokens_details.cached_tokens or 0) == usage.prompt_tokens
    assert usage.completion_tokens_details is not None
    assert usage.completion_tokens_details.reasoning_tokens == 0
    assert answer._request_id == raw.headers["x-request-id"]


async def test_a_stream_joins_to_the_whole_answer(sdk: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "fake", "messages": said("!count 30"), "temperature": 0}
    whole = await sdk.chat.completions.create(**asked)
    stream = await sdk.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    for chunk in chunks:
        strict(chunk)
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    finished = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices and chunk.choices[0].finish_reason]
    assert finished == ["stop"]
    last = chunks[-1]
    assert last.choices == []
    assert last.usage is not None
    assert whole.usage is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert (last.model_extra or {})["modeld"]["receipt"]["resident"] > 0


async def test_a_stream_without_usage_ends_with_its_reason(sdk: openai.AsyncOpenAI) -> None:
    stream = await sdk.chat.completions.create(model="fake", messages=said("hello"), stream=True)
    chunks = [chunk async for chunk in stream]
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert (chunks[-1].model_extra or {})["modeld"]["receipt"]["prefilled"] >= 1
    assert "usage" not in chunks[-1].model_fields_set


async def test_the_sdks_own_accumulator(sdk: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "fake",
        "messages": said('!call get_weather {"city": "Oslo"}'),
        "tools": [WEATHER],
    }
    async with sdk.chat.completions.stream(**asked) as stream:
        kinds = {event.type async for event in stream}
        final = await stream.get_final_completion()
    assert {"chunk", "tool_calls.function.arguments.delta", "tool_calls.function.arguments.done"} <= kinds
    calls = final.choices[0].message.tool_calls
    assert calls is not None
    assert json.loads(calls[0].function.arguments) == {"city": "Oslo"}


@pytest.mark.parametrize("stream", [False, True])
async def test_a_tool_is_called_and_its_result_goes_back(sdk: openai.AsyncOpenAI, stream: bool) -> None:
    messages = said('!call get_weather {"city": "Oslo"}')
    if stream:
        async with sdk.chat.completions.stream(model="fake", messages=messages, tools=[WEATHER]) as events:
            answer: Any = await events.get_final_completion()
    else:
        answer = await sdk.chat.completions.create(model="fake", messages=messages, tools=[WEATHER])
    message = answer.choices[0].message
    assert answer.choices[0].finish_reason == "tool_calls"
    assert [(call.type, call.function.name) for call in message.tool_calls] == [("function", "get_weather")]
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "sunny"}
    # As programs do it: the message itself, and all of it as a dict with what is null.
    for back in (message, message.model_dump()):
        again = await sdk.chat.completions.create(model="fake", messages=[*messages, back, result], tools=[WEATHER])
        assert again.choices[0].finish_reason in ("stop", "tool_calls")


async def test_two_calls_at_once(sdk: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "fake", "tools": [WEATHER, TIME]}
    messages = said('!call get_weather {"city": "Oslo"} && get_time {}')
    whole = await sdk.chat.completions.create(**asked, messages=messages)
    async with sdk.chat.completions.stream(**asked, messages=messages) as events:
        streamed = await events.get_final_completion()
    for answer in (whole, streamed):
        calls: Any = answer.choices[0].message.tool_calls
        assert [call.function.name for call in calls] == ["get_weather", "get_time"]
        assert [json.loads(call.function.arguments) for call in calls] == [{"city": "Oslo"}, {}]
        assert len({call.id for call in calls}) == 2


NAMED = {"type": "function", "function": {"name": "get_time"}}
ALLOWED = {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [NAMED]}}


@pytest.mark.parametrize("choice", ["auto", "none", "required", NAMED, ALLOWED])
async def test_every_tool_choice(sdk: openai.AsyncOpenAI, choice: Any) -> None:
    answer = await sdk.chat.completions.create(
        model="tiny", messages=said("What time is it?"), tools=[WEATHER, TIME], tool_choice=choice, temperature=0,
        max_tokens=60, extra_body={"think": False}, parallel_tool_calls=False,
    )  # fmt: skip
    calls = answer.choices[0].message.tool_calls or []
    assert not calls or len(calls) == 1
    if choice == "none":
        assert not calls
    if isinstance(choice, dict):
        assert [call.function.name for call in calls] == ["get_time"]  # type: ignore[union-attr]


async def test_a_schema_holds_the_answer(sdk: openai.AsyncOpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["kiwi", "lotus"]}, "count": {"type": "integer", "maximum": 9}},
        "required": ["name", "count"],
        "additionalProperties": False,
    }
    answer = await sdk.chat.completions.create(
        model="tiny",
        messages=said("Give me a fruit."),
        response_format={"type": "json_schema", "json_schema": {"name": "fruit", "schema": schema, "strict": True}},
        max_tokens=60,
        extra_body={"think": "off"},
    )
    found = json.loads(answer.choices[0].message.content or "")
    assert found["name"] in ("kiwi", "lotus")
    assert isinstance(found["count"], int)


async def test_thinking_is_reasoning_content(sdk: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "fake", "messages": said("hello"), "reasoning_effort": "high"}
    whole = await sdk.chat.completions.create(**asked)
    thought = (whole.choices[0].message.model_extra or {})["reasoning_content"]
    assert thought
    assert whole.usage is not None
    assert whole.usage.completion_tokens_details is not None
    assert (whole.usage.completion_tokens_details.reasoning_tokens or 0) > 0
    stream = await sdk.chat.completions.create(**asked, stream=True)
    deltas = [chunk.choices[0].delta.model_extra or {} async for chunk in stream]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == thought


async def test_every_role_and_form_of_content(sdk: openai.AsyncOpenAI) -> None:
    marked = {"type": "text", "text": "two", "cache_control": {"type": "ephemeral"}}
    text = [{"type": "text", "text": "one ", "prompt_cache_breakpoint": {"mode": "explicit"}}, marked]
    messages: list[Any] = [
        {"role": "developer", "content": text},
        {"role": "system", "content": "s"},
        {"role": "user", "content": text},
        {"role": "assistant", "content": None, "refusal": "no"},
        {"role": "assistant", "content": [*text, {"type": "refusal", "refusal": "r"}], "reasoning_content": "hm"},
        {"role": "user", "content": "last"},
    ]
    answer = await sdk.chat.completions.create(model="fake", messages=messages)
    assert (answer.choices[0].message.content or "").startswith("last #")


async def test_every_option_that_is_taken(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.create(
        model="fake", messages=said("!count 50"), temperature=0.5, top_p=0.9, seed=7, stop=["20"],
        max_completion_tokens=30, frequency_penalty=0.1, presence_penalty=0.1, n=1, user="u", metadata={"a": "b"},
        prompt_cache_key="k", store=False, service_tier="auto", modalities=["text"], verbosity="medium", logprobs=False,
        parallel_tool_calls=True, response_format={"type": "text"},
        extra_body={"top_k": 5, "min_p": 0.1, "repeat_penalty": 1.1, "shift": False, "truncate": False},
    )  # fmt: skip
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 30


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
REFUSED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"n": 2}, "n"),
    ({"top_logprobs": 3}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"logit_bias": {"1": 2}}, "logit_bias"),
    ({"store": True}, "store"),
    ({"service_tier": "priority"}, "service_tier"),
    ({"verbosity": "high"}, "verbosity"),
    ({"modalities": ["audio"]}, "modalities[0]"),
    ({"functions": []}, "functions"),
    ({"prediction": {"type": "content", "content": "x"}}, "prediction"),
    ({"no_such_field": 1}, "no_such_field"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": 1000}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**40}, "seed"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
    ({"think": "on", "reasoning_effort": "low"}, "think"),
    ({"reasoning_effort": "enormous"}, "reasoning_effort"),
    ({"stop": [""]}, "stop"),
    ({"stream_options": {"include_usage": True}}, "stream_options"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
    ({"shift": True, "truncate": True}, "truncate"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "robot", "content": ""}]}, "messages[0].role"),
    ({"messages": [{"role": "user", "content": "x", "name": "bob"}]}, "messages[0].name"),
    ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[0].content[0].type"),
    ({"messages": [{"role": "user", "content": [PICTURE]}]}, "messages[0].content[0].image_url"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"model": None}, "model"),
)  # fmt: skip


@pytest.mark.parametrize(("change", "param"), REFUSED)
async def test_what_is_not_supported_is_named(sdk: openai.AsyncOpenAI, change: dict[str, Any], param: str) -> None:
    body = {"model": "fake", "messages": said("hello")} | change
    with pytest.raises(openai.BadRequestError) as refused:
        await sdk.post("/chat/completions", body=body, cast_to=object)
    assert refused.value.param == param, refused.value.body
    assert refused.value.type == "invalid_request_error"
    assert refused.value.code
    assert refused.value.request_id


async def test_errors_have_the_classes_of_the_sdk(site: Site, sdk: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        await sdk.chat.completions.create(model="nobody", messages=said("x"))
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as long:
        await sdk.chat.completions.create(model="fake", messages=said("x" * 5000))
    assert long.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError):
        await sdk.chat.completions.create(model="fake", messages=said("x" * 5000), stream=True)
    async with openai.AsyncOpenAI(base_url=f"{site.url}/v1", api_key="x" * 20, max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError):
            await stranger.models.list()


async def test_a_failure_in_the_middle_of_a_stream_is_an_event(
    sdk: openai.AsyncOpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "HEADERS_SECONDS", 0)
    stream = await sdk.chat.completions.create(model="fake", messages=said("!fail"), stream=True)
    with pytest.raises(openai.APIError):
        async for _ in stream:
            pass


async def test_models_are_listed(sdk: openai.AsyncOpenAI) -> None:
    models = [model async for model in sdk.models.list()]
    assert [model.id for model in models] == ["tiny"]
    assert (models[0].object, models[0].owned_by) == ("model", "modeld")
    assert (await sdk.models.retrieve("tiny")).id == "tiny"
    with pytest.raises(openai.NotFoundError):
        await sdk.models.retrieve("nobody")


async def test_a_backends_models_have_its_name_before_them(open_site: Callable[..., Any]) -> None:
    """Here the backend is the node's own engine, by way of the gateway."""
    site: Site = await open_site()
    gateway = Gateway(site.root)
    await gateway.register_backend(ConfiguredBackend(name="mine", type="llama"))
    async with site.sdk() as sdk:
        assert [model.id async for model in sdk.models.list()] == ["tiny", "mine:tiny"]
        assert (await sdk.models.retrieve("mine:tiny")).owned_by == "mine"
        answer = await sdk.chat.completions.create(
            model="mine:tiny", messages=said("Hello!"), max_tokens=5, extra_body={"think": "off"}
        )
        assert answer.model == "mine:tiny"
        assert answer.usage is not None
        stream = await sdk.chat.completions.create(
            model="mine:tiny", messages=said("Hello!"), max_tokens=5, stream=True
        )
        assert [chunk async for chunk in stream][-1].choices[0].finish_reason == "length"
        with pytest.raises(openai.NotFoundError):
            await sdk.models.retrieve("mine:nobody")
    await gateway.aclose()


async def test_tokens_there_and_back(web: Any) -> None:
    text = "river \N{SNOWMAN} stone"
    there = await web.post("/tokenize", json={"model": "tiny", "text": text})
    body = there.json()
    assert body["count"] == len(body["tokens"]) > 3
    back = await web.post("/detokenize", json={"model": "tiny", "tokens": body["tokens"]})
    assert back.json() == {"model": "tiny", "text": text}
    cut = await web.post("/detokenize", json={"model": "tiny", "tokens": body["tokens"][2:4]})
    assert cut.status_code == 200
    assert (await web.post("/detokenize", json={"model": "tiny", "tokens": [10**9]})).status_code == 400
