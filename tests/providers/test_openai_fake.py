"""Hazard: a fake that agrees with us and with nobody else.

The vendor's SDK reads its answers, and it refuses what the vendor refuses.
"""

import json
from typing import Any

import httpx2
import openai
import pytest
from openai import AsyncOpenAI
from openai.types import CreateEmbeddingResponse, Model
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from modeld import FunctionCall, ToolCall, Usage
from modeld.testing.openai import FakeOpenAI
from modeld.testing.server import Answer, Fault, FaultKind

pytestmark = pytest.mark.anyio

CALLS = (ToolCall("call_1", FunctionCall("f", '{"a":1}')), ToolCall("call_2", FunctionCall("g", "{}")))
ANSWERS = [
    Answer(text="Hello there", usage=Usage(input=5, output=2, cache_read=1, reasoning=1)),
    Answer(text="", tool_calls=CALLS, finish_reason="tool_calls"),
    Answer(text="Let me see", tool_calls=CALLS, finish_reason="tool_calls"),
    Answer(refusal="I cannot."),
    Answer(text="cut", finish_reason="length"),
    Answer(finish_reason="refused"),
]
ASK: dict[str, Any] = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}


async def send(server: FakeOpenAI, path: str, body: Any, **headers: str) -> httpx2.Response:
    async with httpx2.AsyncClient() as client:
        own = {"authorization": f"Bearer {server.key}", **headers}
        return await client.post(server.url + path, json=body, headers=own)


def known(model: Any) -> None:
    """No field that the SDK does not know, at any depth."""
    extra = getattr(model, "model_extra", None) or {}
    assert set(extra) <= {"obfuscation"}, extra
    for name in getattr(type(model), "model_fields", {}):
        value = getattr(model, name)
        for inner in value if isinstance(value, list) else [value]:
            if hasattr(inner, "model_extra"):
                known(inner)


@pytest.mark.parametrize("answer", ANSWERS)
async def test_answers_are_those_of_the_sdk(answer: Answer) -> None:
    async with FakeOpenAI() as server:
        server.script(answer, answer)
        whole = ChatCompletion.model_validate_json(
            (await send(server, "/v1/chat/completions", ASK)).content, strict=True
        )
        known(whole)
        assert whole.choices[0].message.refusal == (answer.refusal or None)
        body = {**ASK, "stream": True, "stream_options": {"include_usage": True}}
        response = await send(server, "/v1/chat/completions", body)
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        *events, done, rest = response.text.split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        chunks = [ChatCompletionChunk.model_validate_json(e.removeprefix("data: "), strict=True) for e in events]
        for chunk in chunks:
            known(chunk)
        assert [chunk.usage is None for chunk in chunks] == [True] * (len(chunks) - 1) + [False]
        assert chunks[-1].choices == []
        assert chunks[-1].usage == whole.usage
        assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == (
            whole.choices[0].message.content or ""
        )


async def test_the_sdks_own_stream_helper_puts_the_answer_together() -> None:
    async with FakeOpenAI() as server:
        client = AsyncOpenAI(api_key=server.key, base_url=server.url + "/v1", max_retries=0)
        server.script(ANSWERS[2])
        tools: Any = [{"type": "function", "function": {"name": name}} for name in ("f", "g")]
        async with client.chat.completions.stream(model="gpt-4o", messages=ASK["messages"], tools=tools) as stream:
            final = await stream.get_final_completion()
        calls = final.choices[0].message.tool_calls or []
        assert [(c.id, c.function.name, c.function.arguments) for c in calls] == [
            ("call_1", "f", '{"a":1}'),
            ("call_2", "g", "{}"),
        ]
        await client.close()


async def test_listing_and_vectors_are_those_of_the_sdk() -> None:
    async with FakeOpenAI() as server, httpx2.AsyncClient() as client:
        listed = await client.get(server.url + "/v1/models", headers={"authorization": f"Bearer {server.key}"})
        for card in listed.json()["data"]:
            known(Model.model_validate(card, strict=True))
        body = {"model": "text-embedding-3-small", "input": ["a", "b"]}
        answer = await send(server, "/v1/embeddings", body)
        known(CreateEmbeddingResponse.model_validate_json(answer.content, strict=True))


TOOL = {"type": "function", "function": {"name": "f"}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "string"}}}
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
}
REFUSED: dict[str, dict[str, Any]] = {
    "unknown field": {"top_k": 5},
    "neutral field": {"messages": [{"role": "user", "content": "x", "thinking": "y"}]},
    "wrong type": {"temperature": "hot"},
    "out of range": {"temperature": 2.5},
    "old limit": {"max_tokens": 5},
    "too many stops": {"stop": ["a", "b", "c", "d", "e"]},
    "choice without tools": {"tool_choice": "auto"},
    "parallel without tools": {"parallel_tool_calls": False},
    "no tools": {"tools": []},
    "a tool's name": {"tools": [{"type": "function", "function": {"name": "fs.list"}}]},
    "a long name": {"tools": [{"type": "function", "function": {"name": "x" * 65}}]},
    "one name twice": {"tools": [TOOL, TOOL]},
    "a choice that is not offered": {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "g"}}},
    "a call without its result": {"messages": [CALLED, {"role": "user", "content": "x"}]},
    "a result without its call": {"messages": [{"role": "tool", "content": "x", "tool_call_id": "c"}]},
    "an answer without content": {"messages": [{"role": "assistant", "content": None}]},
    "options of a stream": {"stream_options": {"include_usage": True}},
    "a loose schema": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "strict": True, "schema": SCHEMA}}
    },
    "an object nobody spoke of": {"response_format": {"type": "json_object"}},
    "effort without thinking": {"reasoning_effort": "low"},
    "sampling of what thinks": {"model": "o3-mini", "temperature": 1},
    "effort that is not there": {"model": "o3-mini", "reasoning_effort": "minimal"},
    "parallel calls of the o series": {"model": "o3-mini", "tools": [TOOL], "parallel_tool_calls": True},
    "stop of o4": {"model": "o4-mini", "stop": ["x"]},
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED.keys())
async def test_what_the_vendor_refuses_is_refused(change: dict[str, Any]) -> None:
    async with FakeOpenAI() as server:
        response = await send(server, "/v1/chat/completions", {**ASK, **change})
        assert response.status_code == 400
        error = response.json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert (await send(server, "/v1/chat/completions", ASK)).status_code == 200


@pytest.mark.parametrize(
    ("path", "model", "status"),
    [
        ("/v1/chat/completions", "o1-pro", 404),
        ("/v1/chat/completions", "text-embedding-3-small", 404),
        ("/v1/chat/completions", "nobody", 404),
        ("/v1/embeddings", "gpt-4o", 403),
        ("/v2/embeddings", "gpt-4o", 404),
    ],
)
async def test_who_is_not_there_is_said(path: str, model: str, status: int) -> None:
    async with FakeOpenAI() as server:
        body = {"model": model, "input": ["a"]} if "embed" in path else {**ASK, "model": model}
        assert (await send(server, path, body)).status_code == status


KINDS: list[tuple[FaultKind, type[Exception]]] = [
    ("error_event", openai.APIError),
    ("broken_json", json.JSONDecodeError),
    ("cut", openai.APIConnectionError),
]


@pytest.mark.parametrize(("kind", "error"), KINDS)
async def test_faults_are_faults_for_the_sdk_too(kind: FaultKind, error: type[Exception]) -> None:
    async with FakeOpenAI() as server:
        client = AsyncOpenAI(api_key=server.key, base_url=server.url + "/v1", max_retries=0)
        server.script(Fault(kind=kind, after=2))
        with pytest.raises(error):
            async for _ in await client.chat.completions.create(**ASK, stream=True):
                pass
        await client.close()
