"""Hazard: the fake Ollama is only our opinion of one. The SDK's own client and types read what it writes."""

import json
from typing import Any

import httpx
import pytest
from ollama import AsyncClient, ChatResponse, ResponseError

from modeld import FunctionCall, ToolCall
from modeld.testing.ollama import FakeOllama
from modeld.testing.server import Answer, Fault

pytestmark = pytest.mark.anyio

ASK = [{"role": "user", "content": "Hello"}]
ANSWER = Answer(
    text="It is empty.", thinking="Let me see.", tool_calls=(ToolCall("call_1", FunctionCall("clock", '{"a":1}')),)
)


def client(server: FakeOllama) -> AsyncClient:
    return AsyncClient(server.url, headers={"authorization": f"Bearer {server.key}"})


async def test_the_sdk_reads_the_fake() -> None:
    async with FakeOllama() as server, client(server) as sdk:
        server.script(ANSWER, ANSWER)
        listed = await sdk.list()
        assert [model.model for model in listed.models] == list(server.models)
        assert listed.models[0].modified_at is not None
        shown = await sdk.show("qwen3:8b")
        assert shown.capabilities == ["completion", "tools", "thinking"]
        assert shown.modelinfo is not None
        assert shown.modelinfo["qwen3.context_length"] == 40960
        tools = [
            {"type": "function", "function": {"name": "clock", "parameters": {"type": "object", "properties": {}}}}
        ]
        whole = await sdk.chat("qwen3:8b", ASK, tools=tools, think=True)
        assert isinstance(whole, ChatResponse)
        frames = [frame async for frame in await sdk.chat("qwen3:8b", ASK, tools=tools, think=True, stream=True)]
        assert "".join(frame.message.content or "" for frame in frames) == whole.message.content == ANSWER.text
        assert "".join(frame.message.thinking or "" for frame in frames) == whole.message.thinking == ANSWER.thinking
        assert [call for frame in frames for call in frame.message.tool_calls or ()] == whole.message.tool_calls
        assert [frame.done for frame in frames] == [False] * (len(frames) - 1) + [True]
        assert frames[-1].done_reason == whole.done_reason == "stop"
        assert (whole.prompt_eval_count, whole.eval_count) == (11, 7)
        embedded = await sdk.embed("nomic-embed-text:latest", ["a", "bbb"], truncate=False, dimensions=2)
        assert embedded.embeddings == [[0.0625, 0.125], [0.1875, 0.25]]


async def test_the_sdk_reads_its_errors() -> None:
    async with FakeOllama() as server, client(server) as sdk:
        with pytest.raises(ResponseError, match="model 'nobody' not found") as caught:
            await sdk.show("nobody")
        assert caught.value.status_code == 404
        server.script(Fault(kind="error_event", after=2, message="it fell over"))
        frames = await sdk.chat("llama3.2:3b", ASK, stream=True)
        with pytest.raises(ResponseError, match="it fell over"):
            [frame async for frame in frames]


REJECTED: list[tuple[str, dict[str, Any], int]] = [
    ("chat", {"unknown": 1}, 400),
    ("chat", {"messages": "Hello"}, 400),
    ("chat", {"messages": [{"role": "robot", "content": ""}]}, 400),
    ("chat", {"messages": [{"role": "user", "content": None}]}, 400),
    ("chat", {"messages": [{"role": "user", "content": "", "tool_call": "x"}]}, 400),
    (
        "chat",
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}]},
        400,
    ),
    ("chat", {"model": "gemma3:4b", "messages": [{"role": "user", "images": ["not base64!"]}]}, 400),
    ("chat", {"messages": [{"role": "user", "images": ["iVBORwD/"]}]}, 400),
    ("chat", {"options": {"max_tokens": 5}}, 400),
    ("chat", {"options": {"top_k": 0.5}}, 400),
    ("chat", {"format": "xml"}, 400),
    ("chat", {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, 400),
    ("chat", {"model": "gemma3:4b", "tools": []}, 400),
    ("chat", {"think": True}, 400),
    ("chat", {"model": "qwen3:8b", "think": "low"}, 400),
    ("chat", {"model": "nomic-embed-text:latest"}, 400),
    ("chat", {"model": "nobody"}, 404),
    ("embed", {"input": 5}, 400),
    ("embed", {"model": "llama3.2:3b"}, 501),
    ("show", {"name": "llama3.2:3b"}, 400),
]
BODIES: dict[str, dict[str, Any]] = {
    "chat": {"model": "llama3.2:3b", "messages": ASK},
    "embed": {"model": "nomic-embed-text:latest", "input": "a"},
    "show": {"model": "llama3.2:3b"},
}


@pytest.mark.parametrize(("path", "change", "status"), REJECTED)
async def test_the_fake_is_strict(path: str, change: dict[str, Any], status: int) -> None:
    async with FakeOllama(key="") as server, httpx.AsyncClient() as http:
        url = f"{server.url}/api/{path}"
        assert (await http.post(url, json=BODIES[path])).status_code == 200
        response = await http.post(url, json={**BODIES[path], **change})
        assert response.status_code == status
        assert response.json()["error"]


async def test_the_fake_knows_paths_keys_and_types() -> None:
    async with FakeOllama() as server, httpx.AsyncClient(headers={"authorization": "Bearer test-key"}) as http:
        assert (await http.get(f"{server.url}/api/version")).json() == {"version": "0.34.3"}
        assert (await http.get(f"{server.url}/api/chat")).status_code == 404
        assert (await http.get(f"{server.url}/api/tags", headers={"authorization": "Bearer x"})).status_code == 401
        text = json.dumps(BODIES["chat"])
        assert (await http.post(f"{server.url}/api/chat", content=text)).status_code == 400
        stream = await http.post(f"{server.url}/api/chat", json=BODIES["chat"])
        assert stream.headers["content-type"] == "application/x-ndjson"
        assert json.loads(stream.text.splitlines()[-1])["done"] is True


async def test_the_fake_overflows_as_the_server_does() -> None:
    async with FakeOllama(key="") as server, httpx.AsyncClient() as http:
        server.prompt_tokens = 5000
        body = {**BODIES["chat"], "stream": False}
        assert (await http.post(f"{server.url}/api/chat", json=body)).json()["prompt_eval_count"] == 4096
        refused = await http.post(f"{server.url}/api/chat", json={**body, "truncate": False})
        assert refused.status_code == 400
        assert json.loads(refused.json()["error"])["error"]["n_prompt_tokens"] == 5000
        wide = {**body, "truncate": False, "options": {"num_ctx": 8192}}
        assert (await http.post(f"{server.url}/api/chat", json=wide)).json()["prompt_eval_count"] == 5000
        assert server.loads == [("llama3.2:3b", 4096), ("llama3.2:3b", 8192)]
