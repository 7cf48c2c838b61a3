"""Hazard: a quirk of one vendor that was handled once is forgotten."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from modeld import (
    ChatConfig,
    FunctionTool,
    ImagePart,
    InvalidRequestError,
    Message,
    ModelNotFoundError,
    NotSupportedError,
    Tool,
)
from modeld.providers.anthropic_facts import facts_of
from modeld.providers.anthropic_messages import build_request as build_anthropic
from modeld.providers.chat_completions import CODES
from modeld.providers.compatible import MISTRAL, OPENROUTER, Vendor, catalog_of
from modeld.providers.facts import observe
from modeld.providers.failures import Failure, failure_error
from modeld.providers.generate_content import NAME_LIMIT, build_request
from modeld.providers.google_facts import google_facts
from modeld.providers.openai import OpenAIWire
from modeld.repository import BackendSpec, CatalogOptions, ObservedModel, RetryPolicy, new_catalog_provider
from modeld.repository.names import ToolNames
from modeld.repository.provider import WireCatalog
from modeld.repository.wire import Call
from modeld.testing.anthropic import FakeAnthropic
from modeld.testing.openai import FakeOpenAI
from modeld.testing.server import Answer, FakeServer, Fault, Recorded, Reply

pytestmark = pytest.mark.anyio

ASK = [Message("user", "list /tmp")]
ONCE = CatalogOptions(retry=RetryPolicy(attempts=1))


@asynccontextmanager
async def catalog_of_fake(server: FakeServer, type: str, path: str = "") -> AsyncIterator[WireCatalog]:
    async with server:
        catalog = new_catalog_provider(BackendSpec(type, server.url + path, server.key), ONCE)
        assert isinstance(catalog, WireCatalog)
        try:
            yield catalog
        finally:
            await catalog.aclose()


# Listings.

ODD = ["ft:gpt-4o:acme::a&b=c", "models/x y?z#1", "100%25+1", "ü"]


def page_of(after: str | None) -> bytes:
    at = ODD.index(after) + 1 if after is not None else 0
    more = at < len(ODD) - 1
    entry = {"id": ODD[at], "object": "model", "type": "model"}
    return json.dumps({"object": "list", "data": [entry], "has_more": more, "last_id": ODD[at]}).encode()


class OddOpenAI(FakeOpenAI):
    async def respond(self, request: Recorded) -> Reply:
        self.requests.append(request)
        return Reply(body=page_of(request.query.get("after")))


class OddAnthropic(FakeAnthropic):
    async def respond(self, request: Recorded) -> Reply:
        return Reply(body=page_of(request.query.get("after_id")))


@pytest.mark.parametrize(("server", "type"), [(OddOpenAI, "openai"), (OddAnthropic, "anthropic")])
async def test_a_cursor_is_sent_back_as_it_came(server: type[FakeServer], type: str) -> None:
    """Ids with characters that mean something in an address are no end of the listing."""
    async with catalog_of_fake(server(), type) as catalog:
        assert [model.name for model in await catalog.list_models()] == ODD


def observed(vendor: Vendor, entry: dict[str, Any]) -> ObservedModel | None:
    catalog = catalog_of(vendor)(BackendSpec(vendor.type), CatalogOptions())
    assert isinstance(catalog, WireCatalog)
    wire: Any = catalog.wire
    model: ObservedModel | None = wire.listed(entry)
    return model


@pytest.mark.parametrize("capabilities", [None, {}, {"vision": None}, "vision"])
def test_a_listing_without_capabilities_declares_none(capabilities: Any) -> None:
    model = observed(MISTRAL, {"id": "pixtral-vision-99", "object": "model", "capabilities": capabilities})
    assert model is not None
    assert (model.capabilities.can_vision, model.capabilities.can_think) == (False, False)
    assert not {"can_vision", "can_think", "can_chat"} & model.evidence.keys()


def test_a_listing_without_modalities_declares_none() -> None:
    model = observed(OPENROUTER, {"id": "some/vision-embed", "architecture": {"modality": "text+image->text"}})
    assert model is not None
    assert not model.capabilities.can_vision
    assert not {"can_vision", "can_embed", "can_chat"} & model.evidence.keys()


# OpenAI.


@pytest.mark.parametrize("name", ["gpt-3.5-turbo-instruct", "davinci-002", "babbage-002", "text-moderation-latest"])
async def test_models_of_older_apis_get_no_client(name: str) -> None:
    """They are asked by endpoints that nothing here speaks."""
    async with catalog_of_fake(server := FakeOpenAI(), "openai", "/v1") as catalog:
        provider = catalog.provider_for(name)
        for connect in (provider.chat_client, provider.stream_client, provider.prompt_client, provider.embed_client):
            with pytest.raises(NotSupportedError):
                await connect()
    assert server.requests == []


@pytest.mark.parametrize(
    ("name", "sees"), [("gpt-4o-audio-preview", False), ("o1-mini", False), ("gpt-3.5-turbo", False), ("gpt-4.1", True)]
)
async def test_pictures_are_for_models_that_see(name: str, sees: bool) -> None:
    async with catalog_of_fake(FakeOpenAI(), "openai", "/v1") as catalog:
        assert catalog.provider_for(name).can_vision is sees


async def test_thinking_of_a_model_that_does_not_think_is_refused_and_not_dropped() -> None:
    async with catalog_of_fake(server := FakeOpenAI(), "openai", "/v1") as catalog:
        client = await catalog.provider_for("gpt-4o").chat_client()
        for call in (client.chat, client.stream):
            with pytest.raises(NotSupportedError, match="gpt-4o") as caught:
                await call(ASK, think="high")
            assert caught.value.details["feature"] == "think"
        assert server.requests == []
        assert (await client.chat(ASK, think="off")).text == "ok"


async def test_a_model_whose_name_begins_with_o_is_not_one_of_the_o_series() -> None:
    async with catalog_of_fake(server := FakeOpenAI(), "openai", "/v1") as catalog:
        client = await catalog.provider_for("olmo-3-32b").chat_client()
        with pytest.raises(ModelNotFoundError, match="olmo-3-32b"):
            await client.chat(ASK, temperature=0.5, top_p=0.5)
        sent = server.requests[-1]
        assert sent.path == "/v1/chat/completions"
        assert (sent.json["temperature"], sent.json["top_p"]) == (0.5, 0.5)
        assert not sent.json.keys() & {"reasoning_effort", "max_completion_tokens"}


@pytest.mark.parametrize("model", ["gpt-5.5", "gpt-5.5-2026-04-23", "gpt-5.6-sol"])
@pytest.mark.parametrize(("level", "effort"), [("off", "none"), ("low", "low"), ("high", "high"), ("xhigh", "xhigh")])
def test_new_models_have_the_levels_of_their_family(model: str, level: str, effort: str) -> None:
    wire = OpenAIWire(BackendSpec("openai", "http://127.0.0.1:1/v1", "k"), ONCE)
    codec, _, body = wire._prepare(Call(model=wire.model(model), messages=tuple(ASK), config=ChatConfig(think=level)))
    assert codec.path == "/responses"
    assert body["reasoning"]["effort"] == effort


# Google.


def google(*messages: Message, tools: tuple[Tool, ...] = ()) -> dict[str, Any]:
    model = "gemini-2.5-flash"
    call = Call(model=observe(model, google_facts(model)), messages=messages, config=ChatConfig(tools=tools))
    return build_request("gemini", call, ToolNames(tools, NAME_LIMIT))


def test_a_picture_stands_behind_its_words() -> None:
    picture = ImagePart(b"\x89PNG", "image/png")
    inline = {"inlineData": {"mimeType": "image/png", "data": "iVBORw=="}}
    (turn,) = google(Message("user", "What is this?", images=(picture, picture)))["contents"]
    assert turn == {"role": "user", "parts": [{"text": "What is this?"}, inline, inline]}
    assert "inlineData" not in json.dumps(google(Message("user", "no picture")))


SCHEMAS: dict[str, dict[str, Any]] = {
    "no type": {"properties": {"a": {}}},
    "anyOf": {"type": "object", "properties": {"a": {"anyOf": [{"type": "string"}, {"type": "null"}]}}},
    "refs": {"$defs": {"p": {"type": "string"}}, "type": "object", "properties": {"a": {"$ref": "#/$defs/p"}}},
    "nested arrays": {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"type": "array", "items": {"enum": [1, "x", None]}}}},
    },
    "keywords": {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "additionalProperties": False,
        "properties": {"a": {"type": ["integer", "null"], "const": 3, "default": 3, "minimum": 1, "format": "int64"}},
    },
    "a property called type": {"type": "object", "properties": {"type": {"type": "string"}, "items": {}}},
}


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS.keys())
def test_a_schema_of_a_tool_goes_to_google_whole(schema: dict[str, Any]) -> None:
    (tools,) = google(*ASK, tools=(Tool(FunctionTool("f", "", schema)),))["tools"]
    (declared,) = tools["functionDeclarations"]
    assert declared["parametersJsonSchema"] == schema
    assert "parameters" not in declared


def test_a_tool_without_parameters_declares_none_to_google() -> None:
    (tools,) = google(*ASK, tools=(Tool(FunctionTool("f")),))["tools"]
    assert "parametersJsonSchema" not in tools["functionDeclarations"][0]


# Anthropic.

ADAPTIVE = {"type": "adaptive", "display": "summarized"}


@pytest.mark.parametrize(
    ("model", "level", "thinking", "effort"),
    [
        ("claude-opus-4-7", "xhigh", ADAPTIVE, "xhigh"),
        ("claude-opus-4-7-20260416", "off", {"type": "disabled"}, None),
        ("claude-fable-5", "high", ADAPTIVE, "high"),
        ("claude-fable-5", "off", None, None),
        ("claude-sonnet-5", "low", ADAPTIVE, "low"),
        ("claude-opus-4-6", "off", {"type": "disabled"}, None),
        ("claude-sonnet-4-5", "minimal", {"type": "enabled", "budget_tokens": 1024}, None),
        ("claude-sonnet-4-5", "medium", {"type": "enabled", "budget_tokens": 8192}, None),
    ],
)
def test_a_model_thinks_in_the_way_of_its_generation(model: str, level: str, thinking: Any, effort: str | None) -> None:
    def build(**options: Any) -> dict[str, Any]:
        config = ChatConfig(**options)
        call = Call(model=observe(model, facts_of(model)), messages=tuple(ASK), config=config)
        return build_anthropic(call, ToolNames((), 128))

    if thinking is None:
        with pytest.raises(NotSupportedError, match=f"{model} .* it has auto, low"):
            build(think=level)
        return
    body = build(think=level)
    assert body["thinking"] == thinking
    assert body.get("output_config", {}).get("effort") == effort


@pytest.mark.parametrize(("model", "takes"), [("claude-fable-5", False), ("claude-sonnet-4-5", True)])
def test_sampling_is_kept_or_refused_and_never_stripped(model: str, takes: bool) -> None:
    for name in ("temperature", "top_p"):
        call = Call(model=observe(model, facts_of(model)), messages=tuple(ASK), config=ChatConfig(**{name: 0.5}))
        if takes:
            assert build_anthropic(call, ToolNames((), 128))[name] == 0.5
        else:
            with pytest.raises(NotSupportedError, match=model):
                build_anthropic(call, ToolNames((), 128))


async def test_an_answer_of_only_thinking_and_an_empty_one_are_the_same_both_ways() -> None:
    async with catalog_of_fake(server := FakeAnthropic(), "anthropic") as catalog:
        client = await catalog.provider_for("claude-opus-5").chat_client()
        for answer in (Answer(thinking="hm"), Answer()):
            server.script(answer, answer)
            whole = await client.chat(ASK, think="high")
            joined = await (await client.stream(ASK, think="high")).join()
            for result in (whole, joined):
                assert (result.text, result.thinking, result.finish_reason) == ("", answer.thinking, "stop")
                assert [warning.code for warning in result.warnings] == ["empty_answer"]


# Errors.

MISLEADING = [
    "messages.3: 429 is not of type string",
    "expected 500 tokens of model gpt-503 at port 4031, got 401",
    "the tool rate_limit_exceeded timed out; the service is overloaded: unauthorized",
]


@pytest.mark.parametrize("said", MISLEADING)
def test_numbers_and_words_in_a_message_do_not_make_the_error(said: str) -> None:
    error = failure_error("x", "m", Failure(message=said, status=400), CODES)
    assert type(error) is InvalidRequestError
    assert not error.retryable


@pytest.mark.parametrize("said", MISLEADING)
async def test_what_a_message_says_of_numbers_is_not_tried_again(said: str) -> None:
    server = FakeOpenAI()
    async with server:
        options = CatalogOptions(retry=RetryPolicy(attempts=3, base=0.0, cap=0.0))
        catalog = new_catalog_provider(BackendSpec("openai", server.url + "/v1", server.key), options)
        client = await catalog.provider_for("gpt-4o").chat_client()
        server.script(Fault(kind="status", status=400, message=said))
        with pytest.raises(InvalidRequestError):
            await client.chat(ASK)
        await catalog.aclose()
    assert len(server.requests) == 1
