"""Hazard: a request to Ollama carries less than was asked for, or more than is Ollama's business."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import httpx2
import ollama as sdk
import pytest
from ollama._types import ChatRequest as SdkChatRequest
from ollama._types import EmbedRequest as SdkEmbedRequest

from modeld import (
    BackendError,
    BackendUnavailableError,
    CapacityError,
    ContextOverflowError,
    FunctionCall,
    FunctionTool,
    ImagePart,
    InvalidRequestError,
    Message,
    ModelNotFoundError,
    NotSupportedError,
    ResponseFormat,
    Tool,
    ToolCall,
)
from modeld.providers.ollama import make_catalog
from modeld.repository import BackendSpec, CatalogOptions, CatalogProvider, RetryPolicy
from modeld.testing.ollama import MODELS, FakeModel, FakeOllama
from modeld.testing.server import Answer, Fault

pytestmark = pytest.mark.anyio

ONCE = CatalogOptions(retry=RetryPolicy(attempts=1))
ASK = [Message("user", "Hello")]
SCHEMA = {
    "type": "object",
    "$defs": {"path": {"type": "string", "minLength": 1}},
    "properties": {"path": {"anyOf": [{"$ref": "#/$defs/path"}, {"type": "null"}]}, "n": {"type": "integer"}},
    "additionalProperties": False,
}
LIST = Tool(FunctionTool("fs.list", "list", SCHEMA))
CLOCK = Tool(FunctionTool("clock"))


@asynccontextmanager
async def ollama(server: FakeOllama, spec: BackendSpec | None = None) -> AsyncIterator[CatalogProvider]:
    async with server:
        catalog = make_catalog(spec or BackendSpec("ollama", server.url, server.key), ONCE)
        try:
            yield catalog
        finally:
            await catalog.aclose()


async def sent(server: FakeOllama, catalog: CatalogProvider, messages: list[Message], **options: Any) -> Any:
    model = options.pop("model", "llama3.2:3b")
    await (await catalog.provider_for(model).chat_client()).chat(messages, **options)
    return server.requests[-1].json


async def test_the_history_of_a_tool_turn_is_whole() -> None:
    calls = (
        ToolCall("call_1", FunctionCall("fs.list", '{"path": "/tmp", "n": 1.50}')),
        ToolCall("call_2", FunctionCall("fs.list", "")),
    )
    meta = {"ollama": {"thinking": "I need the list."}, "anthropic": {"thinking": "not ours"}}
    messages = [
        *ASK,
        Message("assistant", "", thinking="never sent", tool_calls=calls, provider_meta=meta),
        Message("tool", "a", tool_call_id="call_1"),
        Message("tool", "", tool_call_id="call_2", name="given"),
        Message("assistant", "Done.", thinking="never sent", provider_meta={"openai": {"id": "x"}}),
        Message("user", "Thanks"),
    ]
    server = FakeOllama()
    async with ollama(server) as catalog:
        body = await sent(server, catalog, messages, tools=[LIST, CLOCK])
        assert body["messages"][1:5] == [
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [
                    {
                        "id": "call_1",
                        "function": {"index": 0, "name": "fs.list", "arguments": {"path": "/tmp", "n": 1.5}},
                    },
                    {"id": "call_2", "function": {"index": 1, "name": "fs.list", "arguments": {}}},
                ],
                "thinking": "I need the list.",
            },
            {"role": "tool", "content": "a", "tool_name": "fs.list", "tool_call_id": "call_1"},
            {"role": "tool", "content": "", "tool_name": "given", "tool_call_id": "call_2"},
            {"role": "assistant", "content": "Done."},
        ]
        # The SDK's own type of a tool would have dropped anyOf, $ref and additionalProperties.
        assert body["tools"][0]["function"] == {"name": "fs.list", "description": "list", "parameters": SCHEMA}
        assert body["tools"][1]["function"]["parameters"] == {"type": "object", "properties": {}}


async def test_arguments_that_are_no_object_are_named_and_not_emptied() -> None:
    broken = Message("assistant", tool_calls=(ToolCall("call_1", FunctionCall("fs.list", '{"path": ')),))
    async with ollama(FakeOllama()) as catalog:
        client = await catalog.provider_for("llama3.2:3b").chat_client()
        with pytest.raises(InvalidRequestError, match="call_1"):
            await client.chat([*ASK, broken, Message("tool", "a", tool_call_id="call_1")])


async def test_requests_are_what_the_sdk_would_send() -> None:
    server = FakeOllama()
    async with ollama(server) as catalog:
        picture = Message("user", "What is this?", images=(ImagePart(b"\x89PNG\x00\xff", "image/png"),))
        bodies = [
            await sent(server, catalog, [picture], model="gemma3:4b", temperature=0.5, top_k=3, stop=["a", "b"]),
            await sent(server, catalog, ASK, model="gpt-oss:20b", think="low", tools=[LIST], seed=1),
            await sent(server, catalog, ASK, response_format=ResponseFormat(schema=SCHEMA)),
            await sent(server, catalog, ASK, response_format=ResponseFormat()),
        ]
        for body in bodies:
            fields = {key: value for key, value in body.items() if key not in ("truncate", "shift")}
            dumped = SdkChatRequest.model_validate(fields).model_dump(exclude_none=True)
            assert dumped.keys() == fields.keys()
            assert dumped["options"] == fields["options"]
            assert [m["content"] for m in dumped["messages"]] == [m["content"] for m in fields["messages"]]
        assert bodies[0]["messages"][0]["images"] == ["iVBORwD/"]
        assert bodies[0]["options"]["stop"] == ["a", "b"]
        assert bodies[2]["format"] == SCHEMA
        assert bodies[3]["format"] == "json"
        await (await catalog.provider_for("all-minilm").embed_client()).aclose()
        (model,) = [m for m in await catalog.list_models() if m.capabilities.can_embed]
        await (await catalog.provider_for(model).embed_client()).embed("text", dimensions=4)
        embedded = server.requests[-1].json
        assert SdkEmbedRequest.model_validate(embedded).model_dump(exclude_none=True) == embedded


async def test_tool_choice_none_offers_no_tools() -> None:
    server = FakeOllama()
    async with ollama(server) as catalog:
        assert "tools" not in await sent(server, catalog, ASK, tools=[CLOCK], tool_choice="none")
        assert "tools" in await sent(server, catalog, ASK, tools=[CLOCK], tool_choice="auto")


@pytest.mark.parametrize(
    ("model", "options", "feature"),
    [
        ("llama3.2:3b", {"tools": [CLOCK], "tool_choice": "required"}, "tool_choice"),
        ("llama3.2:3b", {"tools": [CLOCK], "tool_choice": "clock"}, "tool_choice"),
        ("llama3.2:3b", {"parallel_tool_calls": True}, "parallel_tool_calls"),
        ("llama3.2:3b", {"parallel_tool_calls": False}, "parallel_tool_calls"),
        ("gemma3:4b", {"tools": [CLOCK]}, "tools"),
        ("llama3.2:3b", {"think": "high"}, "think"),
        ("qwen3:8b", {"think": "low"}, "think"),
        ("qwen3:8b", {"think": "xhigh"}, "think"),
        ("gpt-oss:20b", {"think": "off"}, "think"),
        ("gpt-oss:20b", {"think": "minimal"}, "think"),
    ],
)
async def test_what_a_model_cannot_do_is_refused_before_it_is_sent(model: str, options: Any, feature: str) -> None:
    server = FakeOllama()
    async with ollama(server) as catalog:
        client = await catalog.provider_for(model).chat_client()
        with pytest.raises(NotSupportedError) as caught:
            await client.chat(ASK, **options)
        assert caught.value.details["feature"] == feature
        assert [r.path for r in server.requests if r.path == "/api/chat"] == []


async def test_an_image_for_a_model_without_eyes_is_refused() -> None:
    async with ollama(FakeOllama()) as catalog:
        client = await catalog.provider_for("llama3.2:3b").chat_client()
        with pytest.raises(NotSupportedError, match="vision"):
            await client.chat([Message("user", "?", images=(ImagePart(b"x", "image/png"),))])


def thinker(*values: bool | str, name: str = "t", able: bool = True) -> FakeModel:
    capabilities = ("completion", "thinking") if able else ("completion",)
    return FakeModel(name=name, architecture="a", context_length=8192, capabilities=capabilities, thinking=values)


LEVELS = [
    (thinker(False, True), {"off": False, "high": True}),
    (thinker("low", "medium", "high"), {"low": "low", "medium": "medium", "high": "high"}),
    (thinker(False, "low", "medium", "xhigh"), {"off": False, "low": "low", "medium": "medium", "xhigh": "xhigh"}),
    (thinker("low", "high", "max"), {"low": "low", "high": "high", "xhigh": "max"}),
    (thinker(True), {"high": True}),
    (thinker(), {"off": False, "high": True}),
    (thinker(name="gpt-oss:120b"), {"low": "low", "medium": "medium", "high": "high"}),
    (thinker(able=False), {}),
]


@pytest.mark.parametrize(("model", "wanted"), LEVELS, ids=lambda value: str(getattr(value, "thinking", "")))
async def test_each_level_is_the_models_or_an_error_that_lists_them(model: FakeModel, wanted: dict[str, Any]) -> None:
    server = FakeOllama(models=[model])
    if not model.thinking and model.name.startswith("gpt-oss"):
        # A server before 0.34.3: it takes the words and does not list them.
        server.models = {model.name: thinker("low", "medium", "high", name=model.name)}
        server.untold = True
    async with ollama(server) as catalog:
        assert "think" not in await sent(server, catalog, ASK, model=model.name, think="auto")
        for level in ("off", "minimal", "low", "medium", "high", "xhigh"):
            if level in wanted:
                assert (await sent(server, catalog, ASK, model=model.name, think=level))["think"] == wanted[level]
            elif level == "off" and not wanted:
                assert "think" not in await sent(server, catalog, ASK, model=model.name, think=level)
            else:
                with pytest.raises(NotSupportedError) as caught:
                    await sent(server, catalog, ASK, model=model.name, think=level)
                assert all(other in str(caught.value) for other in wanted)


async def test_the_environment_does_not_leak_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "http://127.0.0.1:9")
    monkeypatch.setenv("OLLAMA_API_KEY", "secret-of-another-server")
    for key in ("", "test-key"):
        server = FakeOllama(key=key)
        async with ollama(server) as catalog:
            await sent(server, catalog, ASK)
            wanted = f"Bearer {key}" if key else None
            assert {r.headers.get("authorization") for r in server.requests} == {wanted}


async def test_a_client_that_is_given_carries_the_key_and_nothing_else() -> None:
    server = FakeOllama()
    async with server, httpx.AsyncClient() as http:
        catalog = make_catalog(BackendSpec("ollama", server.url, "test-key"), CatalogOptions(http_client=http))
        await sent(server, catalog, ASK)
        await catalog.aclose()
        assert not http.is_closed
        assert "authorization" not in http.headers


@pytest.mark.parametrize("client", [httpx2.AsyncClient, httpx.Client, object])
def test_a_client_of_another_library_is_refused(client: Any) -> None:
    with pytest.raises(InvalidRequestError, match=r"httpx\.AsyncClient"):
        make_catalog(BackendSpec("ollama"), CatalogOptions(http_client=client()))


@pytest.mark.parametrize(
    ("given", "root"),
    [
        ("", "http://127.0.0.1:11434"),
        (" http://h:1/ ", "http://h:1"),
        ("https://ollama.com/api", "https://ollama.com"),
        ("https://ollama.com/api/", "https://ollama.com"),
        ("http://h:1/prefix/api", "http://h:1/prefix"),
        ("localhost:11434", "http://localhost:11434"),
    ],
)
def test_both_forms_of_the_address_are_one(given: str, root: str) -> None:
    assert make_catalog(BackendSpec("ollama", given), ONCE).provider_for("m").backend_ids == (root,)


@pytest.mark.parametrize("url", ["ftp://h", "http://", "http://[bad", "http://h:99999999", "unix:///run/x"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        make_catalog(BackendSpec("ollama", url), ONCE)
    assert caught.value.details["parameter"] == "base_url"


async def test_a_model_that_is_not_there_can_be_pulled() -> None:
    async with ollama(FakeOllama()) as catalog:
        client = await catalog.provider_for("nobody:7b").chat_client()
        with pytest.raises(ModelNotFoundError, match="`ollama pull nobody:7b`") as caught:
            await client.chat(ASK)
        assert caught.value.name == "nobody:7b"


async def test_another_server_at_the_address_is_no_missing_model() -> None:
    server = FakeOllama()
    async with server:
        catalog = make_catalog(BackendSpec("ollama", f"{server.url}/elsewhere", "test-key"), ONCE)
        with pytest.raises(BackendError, match="no address of ollama") as caught:
            await catalog.list_models()
        assert not isinstance(caught.value, ModelNotFoundError)
        await catalog.aclose()


async def test_nobody_at_the_address_says_how_to_start_one() -> None:
    catalog = make_catalog(BackendSpec("ollama", "http://127.0.0.1:9"), ONCE)
    with pytest.raises(BackendUnavailableError, match="ollama serve") as caught:
        await catalog.list_models()
    assert caught.value.retryable
    await catalog.aclose()


SENTENCES = [
    (500, "the input length exceeds the context length", ContextOverflowError, ""),
    (400, "input exceeds maximum context length and cannot be truncated further", ContextOverflowError, ""),
    (400, '"m" does not support thinking', NotSupportedError, "thinking"),
    (400, "registry.ollama.ai/library/m does not support tools", NotSupportedError, "tools"),
    (400, 'think value "low" is not supported for this model', NotSupportedError, "think"),
    (500, "model requires more system memory (9.1 GiB) than is available (3.4 GiB)", CapacityError, ""),
    (503, "server busy, please try again.  maximum pending requests exceeded", BackendUnavailableError, ""),
    (500, '{"error":{"code":500,"message":"engine stopped","type":"server_error"}}', BackendUnavailableError, ""),
]


@pytest.mark.parametrize(("status", "message", "error", "feature"), SENTENCES)
async def test_a_sentence_of_the_server_is_typed(status: int, message: str, error: Any, feature: str) -> None:
    server = FakeOllama()
    async with ollama(server) as catalog:
        client = await catalog.provider_for("llama3.2:3b").chat_client()
        fault = Fault(kind="status", status=status, message=message)
        server.script(fault, fault)
        with pytest.raises(error) as caught:
            await client.chat(ASK)
        assert caught.value.details.get("feature", "") == feature
        assert "{" not in str(caught.value)


async def test_the_place_to_sign_in_is_told() -> None:
    class Cloud(FakeOllama):
        def error_body(self, status: int, code: str, message: str) -> bytes:
            return json.dumps({"error": message, "signin_url": "https://ollama.com/connect?name=x"}).encode()

    server = Cloud()
    async with ollama(server) as catalog:
        server.key = "another"
        with pytest.raises(BackendError, match="sign in: https"):
            await catalog.list_models()


def test_the_sdk_is_the_one_that_was_read() -> None:
    """The wire leans on a private field of the SDK's client."""
    assert isinstance(sdk.AsyncClient("http://127.0.0.1:9")._client, httpx.AsyncClient)


async def test_a_whole_answer_that_is_not_done_is_none() -> None:
    class Unfinished(FakeOllama):
        def _chat(self, body: Any) -> Any:
            reply = super()._chat(body)
            return type(reply)(body=reply.body.replace(b'"done":true', b'"done":false'))

    async with ollama(Unfinished()) as catalog:
        client = await catalog.provider_for(MODELS[0].name).chat_client()
        with pytest.raises(BackendError, match="not done"):
            await client.chat(ASK)


async def test_an_answer_keeps_what_the_model_wants_to_see_again() -> None:
    server = FakeOllama()
    call = ToolCall("call_1", FunctionCall("clock"))
    async with ollama(server) as catalog:
        client = await catalog.provider_for("qwen3:8b").chat_client()
        server.script(Answer(thinking="What time?", tool_calls=(call,)), Answer(thinking="Hm.", text="Noon."))
        first = await client.chat(ASK, tools=[CLOCK])
        assert first.message.provider_meta == {"ollama": {"thinking": "What time?"}}
        result = Message("tool", "12:00", tool_call_id=first.tool_calls[0].id)
        second = await client.chat([*ASK, first.message, result], tools=[CLOCK])
        assert server.requests[-1].json["messages"][1]["thinking"] == "What time?"
        assert second.message.provider_meta is None
