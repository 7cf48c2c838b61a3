"""Hazard: a request that the vendor refuses, or that says something else than was asked."""

import json
import re
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec import structs
from openai.types.chat import completion_create_params
from pydantic import TypeAdapter

from modeld import (
    ChatConfig,
    FunctionCall,
    FunctionTool,
    ImagePart,
    InvalidRequestError,
    Message,
    NotSupportedError,
    ResponseFormat,
    Tool,
    ToolCall,
)
from modeld.providers.chat_completions import ChatCodec, Dialect
from modeld.providers.openai import OpenAIWire, make_catalog
from modeld.repository import BackendSpec, CatalogOptions, RetryPolicy
from modeld.repository.names import ToolNames
from modeld.repository.provider import WireCatalog
from modeld.repository.wire import Call
from modeld.testing.openai import FakeOpenAI

pytestmark = pytest.mark.anyio

ONCE = CatalogOptions(retry=RetryPolicy(attempts=1))
WIRE = OpenAIWire(BackendSpec("openai", "http://127.0.0.1:1/v1", "k"), ONCE)
FS_LIST = Tool(FunctionTool("fs.list", "list", {"type": "object", "properties": {"path": {"type": "string"}}}))
CALLED = ToolCall("call_1", FunctionCall("fs.list", '{"path":"/tmp"}'))
HISTORY = (
    Message("system", "be terse"),
    Message("user", "list /tmp"),
    Message(
        "assistant", thinking="hidden", tool_calls=(ToolCall("call_1", FunctionCall("fs.list", '{"path":"/tmp"}')),)
    ),
    Message("tool", '{"files":["a"]}', tool_call_id="call_1", name="fs.list"),
)


def build(model: str, messages: tuple[Message, ...] = HISTORY, **options: Any) -> dict[str, Any]:
    call = Call(model=WIRE.model(model), messages=messages, config=ChatConfig(**options))
    return WIRE._prepare(call)[2]


def check(value: Any) -> Any:
    """Iterables of TypedDicts are validated lazily: look at all of it."""
    if isinstance(value, Mapping):
        return {key: check(inner) for key, inner in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str | bytes):
        return [check(inner) for inner in value]
    return value


PARAMS: TypeAdapter[Any] = TypeAdapter(completion_create_params.CompletionCreateParams)


def test_the_request_is_the_documented_one() -> None:
    body = build("gpt-4o", max_tokens=256, temperature=0.2, tools=(FS_LIST,))
    function = {
        "name": "fs_list",
        "description": "list",
        "parameters": {"type": "object", "properties": {"path": {"type": "string"}}},
    }
    called = {"name": "fs_list", "arguments": '{"path":"/tmp"}'}
    assert body == {
        "model": "gpt-4o",
        "messages": [
            {"role": "system", "content": "be terse"},
            {"role": "user", "content": "list /tmp"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "call_1", "type": "function", "function": called}],
            },
            {"role": "tool", "content": '{"files":["a"]}', "tool_call_id": "call_1"},
        ],
        "temperature": 0.2,
        "max_completion_tokens": 256,
        "tools": [{"type": "function", "function": function}],
    }


REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sampling": {"temperature": 0.5, "top_p": 0.5, "seed": 3, "stop": ("a", "b"), "max_tokens": 5},
    "penalties": {"frequency_penalty": 0.5, "presence_penalty": -0.5},
    "tools": {"tools": (FS_LIST, Tool(FunctionTool("now"))), "parallel_tool_calls": False},
    "named tool": {"tools": (FS_LIST,), "tool_choice": "fs.list"},
    "some tool": {"tools": (FS_LIST,), "tool_choice": "required"},
    "no tool": {"tools": (FS_LIST,), "tool_choice": "none"},
    "schema": {"response_format": ResponseFormat(schema={"type": "object"}, strict=False)},
    "object": {"response_format": ResponseFormat()},
    "think": {"think": "xhigh"},
}


@pytest.mark.parametrize("options", REQUESTS.values(), ids=REQUESTS.keys())
def test_the_request_is_one_of_the_sdk(options: dict[str, Any]) -> None:
    image = Message("user", "what is it?", images=(ImagePart(b"\x89PNG", "image/png"),))
    body = WIRE._chat.streaming(build("house-model", (*HISTORY, Message("assistant", "done"), image), **options))
    assert check(PARAMS.validate_python(body)) == check(body)


def test_names_of_tools_fit_and_come_back() -> None:
    tools = (Tool(FunctionTool("x" * 80)), Tool(FunctionTool("x" * 70 + ".y")), Tool(FunctionTool("ns/a b")))
    body = build("gpt-4o", tools=tools)
    sent = [tool["function"]["name"] for tool in body["tools"]]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) for name in sent)
    assert len(set(sent)) == 3


def test_images_go_with_their_text_and_only_from_the_user() -> None:
    image = ImagePart(b"\x00\x01", "image/webp")
    body = build("gpt-4o", (Message("user", "", images=(image,)), Message("user", "and", images=(image, image))))
    url = {"type": "image_url", "image_url": {"url": "data:image/webp;base64,AAE="}}
    assert [message["content"] for message in body["messages"]] == [[url], [{"type": "text", "text": "and"}, url, url]]
    with pytest.raises(NotSupportedError, match="role 'tool'"):
        build("gpt-4o", (Message("user", "x"), Message("tool", "y", tool_call_id="c", images=(image,))))


def test_more_stops_than_the_vendor_takes_are_not_cut() -> None:
    assert build("gpt-4o", stop=("a", "b", "c", "d"))["stop"] == ("a", "b", "c", "d")
    with pytest.raises(InvalidRequestError, match="4 stop strings"):
        build("gpt-4o", stop=("a", "b", "c", "d", "e"))


def test_what_says_nothing_without_tools_is_not_sent() -> None:
    """The vendor rejects both without tools."""
    body = build("gpt-4o", tool_choice="auto", parallel_tool_calls=True)
    assert body.keys() == {"model", "messages"}


def test_a_dialect_is_data() -> None:
    dialect = Dialect(
        backend="other",
        fields={"max_tokens": "max_tokens", "seed": "random_seed"},
        id_length=9,
        result_name=True,
        required_choice="any",
        efforts={"off": "no", "high": "yes"},
        think={"yes": {"thinking": {"on": True}}},
        usage_option=False,
        details_field="details",
        extra={"safe_prompt": True},
    )
    meta = {"other": {"details": [1]}, "openai": {"details": [2]}}
    history = (
        *HISTORY[:2],
        Message("assistant", "x", tool_calls=(CALLED,), provider_meta=meta),
        HISTORY[3],
    )
    config = ChatConfig(max_tokens=7, seed=1, think="on", tools=(FS_LIST,), tool_choice="required")
    call = Call(model=WIRE.model("m"), messages=history, config=config)
    body = ChatCodec(dialect).build(call, ToolNames(config.tools, dialect.name_limit), None)
    assert body | {"messages": [], "tools": []} == {
        "model": "m",
        "messages": [],
        "tools": [],
        "max_tokens": 7,
        "random_seed": 1,
        "tool_choice": "any",
        "thinking": {"on": True},
        "safe_prompt": True,
    }
    assistant, result = body["messages"][2:]
    assert assistant["details"] == [1]
    assert assistant["content"] == "x"
    assert re.fullmatch("[a-z0-9]{9}", result["tool_call_id"])
    assert assistant["tool_calls"][0]["id"] == result["tool_call_id"]
    assert result["name"] == "fs_list"
    assert ChatCodec(dialect).streaming({}) == {"stream": True}
    call = Call(model=WIRE.model("m"), messages=history, config=ChatConfig(think="low"))
    with pytest.raises(NotSupportedError, match="it has auto, off, high"):
        ChatCodec(dialect).build(call, ToolNames((), 64), None)


def path_of(model: str) -> str:
    return WIRE.codec(WIRE.find(model)).path


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ("gpt-4o", "/chat/completions"),
        ("o3-mini", "/chat/completions"),
        ("o4-mini-2025-04-16", "/chat/completions"),
        ("gpt-5-chat-latest", "/chat/completions"),
        ("gpt-oss-20b", "/chat/completions"),
        ("olmo-3", "/chat/completions"),
        ("qwen3:8b", "/chat/completions"),
        ("gpt-5", "/responses"),
        ("GPT-5", "/responses"),
        ("openai/gpt-5-mini", "/responses"),
        ("gpt-5.1-2025-11-13", "/responses"),
        ("gpt-5.9-unheard-of", "/responses"),
        ("gpt-6-astra", "/responses"),
        ("o1-pro", "/responses"),
        ("o3-pro-2025-06-10", "/responses"),
        ("codex-mini-latest", "/responses"),
    ],
)
def test_the_api_is_the_models(model: str, path: str) -> None:
    assert path_of(model) == path


EFFORTS = [
    ("gpt-5", "minimal", "minimal"),
    ("gpt-5", "high", "high"),
    ("gpt-5", "off", None),
    ("gpt-5", "xhigh", None),
    ("gpt-5.1", "off", "none"),
    ("gpt-5.1", "minimal", None),
    ("gpt-5.1", "xhigh", None),
    ("gpt-5.2", "xhigh", "xhigh"),
    ("gpt-5.4", "off", "none"),
    ("gpt-5.4", "xhigh", "xhigh"),
    ("gpt-5-pro", "high", "high"),
    ("gpt-5-pro", "low", None),
    ("o3-mini", "medium", "medium"),
    ("o3-mini", "off", None),
    ("o1-mini", "low", None),
    ("house-model", "xhigh", "xhigh"),
    ("house-model", "off", "none"),
]


@pytest.mark.parametrize(("model", "level", "effort"), EFFORTS)
def test_a_level_is_the_models_or_an_error_that_lists_its_levels(model: str, level: str, effort: str | None) -> None:
    if effort is None:
        with pytest.raises(NotSupportedError, match=f"{re.escape(model)} .* it has auto") as caught:
            build(model, think=level)
        assert caught.value.details["feature"] == "think"
    else:
        body = build(model, think=level)
        assert effort in (body.get("reasoning_effort"), body.get("reasoning", {}).get("effort"))
    assert not build(model).keys() & {"reasoning_effort", "reasoning"}


def test_off_asks_a_model_that_does_not_think_for_nothing() -> None:
    assert "reasoning_effort" not in build("gpt-4o", think="off")
    assert "reasoning_effort" not in build("gpt-4o", think="auto")
    bare = structs.replace(WIRE.model("gpt-4o"), evidence={})
    call = Call(model=bare, messages=HISTORY, config=ChatConfig(think="off"))
    assert "reasoning_effort" not in WIRE._prepare(call)[2]


TAKEN = [
    ("gpt-4o", "temperature", {}, True),
    ("o3-mini", "temperature", {}, False),
    ("o3-mini", "parallel_tool_calls", {"tools": (FS_LIST,)}, False),
    ("o3", "stop", {}, False),
    ("o3-mini", "seed", {}, True),
    ("gpt-5", "temperature", {}, False),
    ("gpt-5", "top_p", {"think": "minimal"}, False),
    ("gpt-5.1", "temperature", {}, True),
    ("gpt-5.1", "temperature", {"think": "off"}, True),
    ("gpt-5.1", "top_p", {"think": "low"}, False),
    ("gpt-5.4", "temperature", {"think": "high"}, False),
    ("gpt-5.5", "temperature", {}, False),
    ("gpt-5.5", "temperature", {"think": "off"}, True),
    ("gpt-6-astra", "temperature", {}, False),
    ("house-model", "temperature", {"think": "high"}, True),
]
VALUES = {"temperature": 0.5, "top_p": 0.5, "seed": 1, "stop": ("x",), "parallel_tool_calls": False}


@pytest.mark.parametrize(("model", "option", "more", "taken"), TAKEN)
def test_what_a_model_rejects_is_refused_by_name(model: str, option: str, more: dict[str, Any], taken: bool) -> None:
    if taken:
        assert build(model, **more, **{option: VALUES[option]})[option] == VALUES[option]
        return
    with pytest.raises(NotSupportedError, match=re.escape(model)) as caught:
        build(model, **more, **{option: VALUES[option]})
    assert caught.value.details["feature"] == option
    assert "https://" in str(caught.value)


@asynccontextmanager
async def catalog_of(server: FakeOpenAI, **spec: str) -> AsyncIterator[WireCatalog]:
    given = {"base_url": server.url + "/v1", "api_key": server.key, **spec}
    catalog = make_catalog(BackendSpec("openai", **given), ONCE)
    try:
        yield catalog
    finally:
        await catalog.aclose()


async def test_a_reasoning_model_of_the_o_series_is_asked_as_the_vendor_wants() -> None:
    """The fake refuses what the vendor refuses."""
    async with FakeOpenAI() as server, catalog_of(server) as catalog:
        client = await catalog.provider_for("o3-mini").chat_client()
        await client.chat([Message("user", "x")], think="low", max_tokens=10, seed=3)
        assert server.requests[-1].json["reasoning_effort"] == "low"
        assert server.requests[-1].json["max_completion_tokens"] == 10


async def test_vectors_have_dimensions_and_the_order_of_the_texts() -> None:
    class Shuffled(FakeOpenAI):
        async def respond(self, request: Any) -> Any:
            reply = await super().respond(request)
            body = json.loads(reply.body)
            return structs.replace(reply, body=json.dumps({**body, "data": body["data"][::-1]}).encode())

    async with Shuffled() as server, catalog_of(server) as catalog:
        client = await catalog.provider_for("text-embedding-3-small").embed_client()
        result = await client.embed_result(["a", "bbb"], dimensions=4)
        assert [vector[0] for vector in result.vectors] == [1 / 16, round(3 / 16, 4)]
        assert {len(vector) for vector in result.vectors} == {4}
        assert (result.usage.input, result.usage.output, result.usage.source) == (2, None, "reported")
        sent = server.requests[-1].json
        assert (sent["input"], sent["dimensions"], sent["encoding_format"]) == (["a", "bbb"], 4, "float")


async def test_a_chat_model_gives_no_vectors_and_an_embedding_model_no_answers() -> None:
    async with FakeOpenAI() as server, catalog_of(server) as catalog:
        with pytest.raises(NotSupportedError):
            await catalog.provider_for("gpt-4o").embed_client()
        for model in ("text-embedding-3-small", "whisper-1", "omni-moderation-latest"):
            with pytest.raises(NotSupportedError):
                await catalog.provider_for(model).chat_client()
        assert server.requests == []
