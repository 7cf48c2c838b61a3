"""Hazard: vLLM's own fields are dropped, sent in the wrong place, or misread; its failures pass for answers."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import (
    CompletionCreateParamsNonStreaming,
    CompletionCreateParamsStreaming,
)
from pydantic import TypeAdapter

from modeld import (
    BackendError,
    BackendUnavailableError,
    ContextOverflowError,
    FunctionCall,
    FunctionTool,
    InvalidRequestError,
    Message,
    NotSupportedError,
    Tool,
    ToolCall,
)
from modeld.repository import BackendSpec, CatalogOptions, RetryPolicy, new_catalog_provider
from modeld.repository.client import WireClient
from modeld.repository.provider import WireCatalog
from modeld.testing.server import Answer, Fault
from modeld.testing.vllm_wire import CHAT_MODEL, OSS_MODEL, THINKING_MODEL, FakeVLLM
from modeld.types import EndPart, Usage

pytestmark = pytest.mark.anyio

ASK = [Message("user", "list /tmp")]
LIST = Tool(FunctionTool("fs.list", "list", {"type": "object", "properties": {"path": {"type": "string"}}}))
CALL = ToolCall("chatcmpl-tool-1", FunctionCall("fs.list", '{"path":"/tmp"}'))


@asynccontextmanager
async def client(server: FakeVLLM, model: str = CHAT_MODEL) -> AsyncIterator[WireClient]:
    async with server:
        spec = BackendSpec("vllm", server.url, "test-key")
        catalog = new_catalog_provider(spec, CatalogOptions(retry=RetryPolicy(attempts=1)))
        assert isinstance(catalog, WireCatalog)
        try:
            yield await catalog.provider_for(model).chat_client()
        finally:
            await catalog.aclose()


def sent(server: FakeVLLM) -> list[dict[str, Any]]:
    return [request.json for request in server.requests]


async def test_sampling_options_are_at_the_top_level() -> None:
    server = FakeVLLM()
    async with client(server) as chat:
        await chat.chat(ASK, top_k=7, min_p=0.1, repeat_penalty=1.1, max_tokens=9, seed=2**40, stop=["x"] * 9)
    (body,) = sent(server)
    assert (body["top_k"], body["min_p"], body["repetition_penalty"]) == (7, 0.1, 1.1)
    assert (body["max_tokens"], body["seed"], len(body["stop"])) == (9, 2**40, 9)


LEVELS = [
    (CHAT_MODEL, "off", {"chat_template_kwargs": {"enable_thinking": False}}),
    (CHAT_MODEL, "low", {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": True}}),
    (CHAT_MODEL, "xhigh", {"reasoning_effort": "xhigh", "chat_template_kwargs": {"enable_thinking": True}}),
    (THINKING_MODEL, "off", {"chat_template_kwargs": {"enable_thinking": False}}),
    (THINKING_MODEL, "high", {"chat_template_kwargs": {"enable_thinking": True}}),
    (OSS_MODEL, "medium", {"reasoning_effort": "medium", "chat_template_kwargs": {"enable_thinking": True}}),
]


@pytest.mark.parametrize(("model", "level", "fields"), LEVELS)
async def test_a_level_is_what_the_models_template_reads(model: str, level: str, fields: dict[str, Any]) -> None:
    server = FakeVLLM()
    async with client(server, model) as chat:
        await chat.chat(ASK)
        await chat.chat(ASK, think=level)
    plain, thinking = sent(server)
    assert thinking == {**plain, **fields}


@pytest.mark.parametrize(
    ("model", "level", "has"), [(THINKING_MODEL, "low", "off, high"), (OSS_MODEL, "off", "low, me")]
)
async def test_a_level_the_template_does_not_read_is_refused(model: str, level: str, has: str) -> None:
    server = FakeVLLM()
    async with client(server, model) as chat:
        with pytest.raises(NotSupportedError, match=f"{level}.*it has auto, {has}"):
            await chat.chat(ASK, think=level)
    assert server.requests == []


async def test_neutral_fields_do_not_leak_and_names_stay() -> None:
    server = FakeVLLM()
    history = [
        *ASK,
        Message("assistant", "", thinking="secret", tool_calls=(CALL,), provider_meta={"anthropic": {"x": 1}}),
        Message("tool", "[]", tool_call_id=CALL.id, name="fs.list"),
    ]
    async with client(server) as chat:
        await chat.chat(history, tools=[LIST])
    (body,) = sent(server)
    assert body["tools"][0]["function"]["name"] == "fs.list"
    assert body["messages"][1] == {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": CALL.id, "type": "function", "function": {"name": "fs.list", "arguments": '{"path":"/tmp"}'}}
        ],
    }
    assert body["messages"][2] == {"role": "tool", "content": "[]", "tool_call_id": CALL.id}


@pytest.mark.parametrize("legacy", [False, True])
async def test_thinking_is_read_under_both_names(legacy: bool) -> None:
    server = FakeVLLM(legacy=legacy)
    answer = Answer(text="42.", thinking="Let me see.", usage=Usage(input=9, output=3, cache_read=4, source="reported"))
    server.script(answer, answer)
    async with client(server, THINKING_MODEL) as chat:
        whole = await chat.chat(ASK)
        joined = await (await chat.stream(ASK)).join()
    assert whole.thinking == joined.thinking == "Let me see."
    assert whole.usage == joined.usage == Usage(input=9, output=3, cache_read=4, source="reported")


OVERFLOWS = [
    "This model's maximum context length is 4096 tokens. However, your request has 5000 input tokens.",
    "This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4900 in the messages, 100 "
    "in the completion). Please reduce the length of the messages or completion.",
    "You passed 5000 input tokens and requested 1 output tokens. However, the model's context length is only 4096 "
    "tokens, resulting in a maximum input length of 4095 tokens. Please reduce the length of the input prompt.",
]


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("words", OVERFLOWS)
async def test_an_overflow_has_its_numbers_in_every_version(legacy: bool, words: str) -> None:
    server = FakeVLLM(legacy=legacy)
    server.script(Fault(kind="status", status=400, message=words), Fault(kind="status", status=400, message="nope"))
    async with client(server) as chat:
        with pytest.raises(ContextOverflowError) as caught:
            await chat.chat(ASK)
        assert (caught.value.details["tokens"], caught.value.details["window"]) == (5000, 4096)
        with pytest.raises(InvalidRequestError, match="nope"):
            await chat.stream(ASK)


async def test_an_error_object_in_a_stream_is_raised() -> None:
    server = FakeVLLM()
    server.script(Fault(kind="error_event", after=2, message="EngineCore encountered an issue"))
    async with client(server) as chat:
        with pytest.raises(BackendUnavailableError, match="EngineCore") as caught:
            await (await chat.stream(ASK)).join()
        assert caught.value.details["status"] == 500


class Ending(FakeVLLM):
    """Answers end for a reason that the test names."""

    def __init__(self, reason: str, stop: Any = None) -> None:
        super().__init__()
        self.reason = reason
        self.stop = stop

    def finish_reason(self, answer: Answer) -> str:
        return self.reason

    def choice(self, **fields: Any) -> dict[str, Any]:
        choice = super().choice(**fields)
        return {**choice, "stop_reason": self.stop} if choice.get("finish_reason") else choice


async def test_an_aborted_answer_is_never_a_whole_one() -> None:
    async with client(Ending("abort")) as chat:
        with pytest.raises(BackendError):
            await chat.chat(ASK)
        with pytest.raises(BackendError):
            await (await chat.stream(ASK)).join()


@pytest.mark.parametrize(("stop", "said"), [("END", "END"), (151643, ""), (None, "")])
async def test_the_stop_string_is_named_and_a_token_is_not_one(stop: Any, said: str) -> None:
    async with client(Ending("stop", stop)) as chat:
        assert (await chat.chat(ASK)).end.stop == said
        assert (await (await chat.stream(ASK)).join()).end.stop == said


async def test_one_end_comes_after_the_usage() -> None:
    server = FakeVLLM()
    async with client(server) as chat, await chat.stream(ASK) as stream:
        parts = [part async for part in stream]
    assert [isinstance(part, EndPart) for part in parts] == [False] * (len(parts) - 1) + [True]
    assert sent(server)[0]["stream_options"] == {"include_usage": True}


async def test_fake_and_requests_are_what_the_sdk_says_they_are() -> None:
    server = FakeVLLM()
    answer = Answer(text="Let me see.", thinking="Hm.", tool_calls=(CALL,), finish_reason="tool_calls")
    async with client(server) as chat:
        await chat.chat(ASK, tools=[LIST], tool_choice="fs.list", top_k=3, temperature=0.5)
        await (await chat.stream(ASK, tools=[LIST], stop=["x"])).join()
    whole, streamed = sent(server)
    TypeAdapter(CompletionCreateParamsNonStreaming).validate_python(whole, strict=True)
    TypeAdapter(CompletionCreateParamsStreaming).validate_python(streamed, strict=True)
    request = server.decoded(server.requests[1].body, server.request_type)
    ChatCompletion.model_validate(server.whole(request, answer))
    for piece in server.pieces(request, answer)[:-1]:
        ChatCompletionChunk.model_validate_json(piece.removeprefix(b"data: "))
