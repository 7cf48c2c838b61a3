"""Hazard: OpenRouter passes a request to a host that drops half of it, or hides a failure in a 200."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming
from pydantic import TypeAdapter

from modeld import (
    BackendError,
    BackendUnavailableError,
    FunctionCall,
    FunctionTool,
    Message,
    NotSupportedError,
    QuotaError,
    RateLimitError,
    RefusedError,
    ResponseFormat,
    Tool,
    ToolCall,
)
from modeld.providers.chat_decoder import ChatDecoder
from modeld.providers.compatible import OPENROUTER, catalog_of
from modeld.providers.sse import sse_data
from modeld.repository import BackendSpec, CatalogOptions, ObservedModel, RetryPolicy, new_catalog_provider
from modeld.repository.names import ToolNames
from modeld.repository.provider import WireCatalog
from modeld.testing.compatible import dump
from modeld.testing.openrouter import (
    BARE_MODEL,
    CHAT_MODEL,
    EMBED_MODEL,
    IMAGE_MODEL,
    SWITCH_MODEL,
    THINKING_MODEL,
    FakeOpenRouter,
    OpenRouterRequest,
)
from modeld.testing.server import Answer, Fault
from modeld.types import PartsJoiner, Usage

pytestmark = pytest.mark.anyio

ASK = [Message("user", "list /tmp")]
CLOCK = Tool(FunctionTool("clock", "what time it is", {"type": "object", "properties": {}}))
CALL = ToolCall("call_1", FunctionCall("clock"))
ONCE = RetryPolicy(attempts=1)


@asynccontextmanager
async def catalog(server: FakeOpenRouter) -> AsyncIterator[WireCatalog]:
    async with server:
        spec = BackendSpec("openrouter", f"{server.url}/api/v1", "test-key")
        made = new_catalog_provider(spec, CatalogOptions(retry=ONCE))
        assert isinstance(made, WireCatalog)
        try:
            yield made
        finally:
            await made.aclose()


async def listed(made: WireCatalog) -> dict[str, ObservedModel]:
    return {model.name: model for model in await made.list_models()}


def sent(server: FakeOpenRouter) -> list[dict[str, Any]]:
    return [request.json for request in server.requests if request.method == "POST"]


async def test_a_listing_keeps_what_writes_text_or_embeds() -> None:
    async with catalog(FakeOpenRouter()) as made:
        models = await listed(made)
        assert set(models) == {CHAT_MODEL, THINKING_MODEL, SWITCH_MODEL, BARE_MODEL, EMBED_MODEL}
        assert IMAGE_MODEL not in models
        chat, bare = models[CHAT_MODEL], models[BARE_MODEL]
        assert (chat.context_length, chat.capabilities.max_output_tokens) == (262144, 65536)
        assert (chat.capabilities.can_vision, bare.capabilities.can_vision) == (True, False)
        assert (chat.capabilities.can_think, models[THINKING_MODEL].capabilities.can_think) == (False, True)
        assert set(chat.evidence.values()) == {"declared"}
        assert bare.capabilities.max_output_tokens == 0
        assert "max_output_tokens" not in bare.evidence


def entry(**changes: Any) -> dict[str, Any]:
    (card,) = [card for card in FakeOpenRouter().cards({}) if card["id"] == CHAT_MODEL]
    return {**card, **changes}


def observed(card: dict[str, Any]) -> ObservedModel | None:
    made = catalog_of(OPENROUTER)(BackendSpec("openrouter"), CatalogOptions())
    assert isinstance(made, WireCatalog)
    wire: Any = made._wire
    model: ObservedModel | None = wire.listed(card)
    return model


@pytest.mark.parametrize("provider", [{"context_length": None}, {}, None])
async def test_the_models_own_window_is_the_second_choice(provider: Any) -> None:
    model = observed(entry(top_provider=provider))
    assert model is not None
    assert model.context_length == 524288
    assert model.capabilities.max_output_tokens == 0


async def test_an_image_that_comes_out_is_no_vision() -> None:
    architecture = {"input_modalities": ["text"], "output_modalities": ["text", "image"]}
    model = observed(entry(architecture=architecture))
    assert model is not None
    assert not model.capabilities.can_vision


async def test_an_option_the_model_does_not_list_is_refused_by_name() -> None:
    server = FakeOpenRouter()
    async with catalog(server) as made:
        models = await listed(made)
        chat = await made.provider_for(models[BARE_MODEL]).chat_client()
        for option, value in (("seed", 1), ("tools", (CLOCK,)), ("response_format", ResponseFormat()), ("top_k", 3)):
            with pytest.raises(NotSupportedError, match=f"{BARE_MODEL} of openrouter does not take {option}"):
                await chat.chat(ASK, **{option: value})
        with pytest.raises(NotSupportedError, match="has no think"):
            await chat.chat(ASK, think="high")
        assert sent(server) == []
        await chat.chat(ASK, temperature=0.5)


async def test_no_host_may_drop_an_option() -> None:
    server = FakeOpenRouter()
    async with catalog(server) as made:
        chat = await made.provider_for(BARE_MODEL).chat_client()
        with pytest.raises(NotSupportedError, match="No endpoints found"):
            await chat.chat(ASK, seed=1)
    assert [body["provider"] for body in sent(server)] == [{"require_parameters": True}]


async def test_levels_are_those_that_the_listing_names() -> None:
    server = FakeOpenRouter()
    async with catalog(server) as made:
        models = await listed(made)
        deep = await made.provider_for(models[THINKING_MODEL]).chat_client()
        switch = await made.provider_for(models[SWITCH_MODEL]).chat_client()
        unlisted = await made.provider_for(THINKING_MODEL).chat_client()
        for chat, level in ((deep, "high"), (deep, "off"), (switch, "medium"), (switch, "off"), (unlisted, "xhigh")):
            await chat.chat(ASK, think=level)
        for chat, level, has in ((deep, "xhigh", "off, minimal, low, medium, high"), (switch, "high", "off, medium")):
            with pytest.raises(NotSupportedError, match=f"it has auto, {has}"):
                await chat.chat(ASK, think=level)
    assert [body["reasoning"] for body in sent(server)] == [
        {"effort": "high"},
        {"effort": "none"},
        {"enabled": True},
        {"effort": "none"},
        {"effort": "xhigh"},
    ]


async def test_thinking_that_cannot_be_switched_off_says_so() -> None:
    parameters = ["reasoning", "max_tokens"]
    model = observed(
        entry(supported_parameters=parameters, reasoning={"supported_efforts": ["high"], "mandatory": True})
    )
    assert model is not None
    server = FakeOpenRouter()
    async with catalog(server) as made:
        with pytest.raises(NotSupportedError, match="it has auto, high"):
            await (await made.provider_for(model).chat_client()).chat(ASK, think="off")
    assert server.requests == []


async def test_all_levels_are_fine_where_the_listing_says_null() -> None:
    model = observed(entry(supported_parameters=["reasoning"], reasoning={"supported_efforts": None}))
    assert model is not None
    async with catalog(FakeOpenRouter()) as made:
        unlisted = await made.provider_for(THINKING_MODEL).chat_client()
        await unlisted.chat(ASK, think="minimal")
    assert "reasoning.supported_efforts" not in model.meta


@pytest.mark.parametrize("streamed", [False, True])
async def test_signed_thinking_goes_back_as_it_came(streamed: bool) -> None:
    server = FakeOpenRouter()
    server.script(Answer(thinking="I need the time.", tool_calls=(CALL,), finish_reason="tool_calls", signature="s-9"))
    async with catalog(server) as made:
        chat = await made.provider_for(THINKING_MODEL).chat_client()
        first = (
            await (await chat.stream(ASK, tools=[CLOCK])).join() if streamed else await chat.chat(ASK, tools=[CLOCK])
        )
        result = Message("tool", "noon", tool_call_id=first.tool_calls[0].id)
        assert (await chat.chat([*ASK, first.message, result], tools=[CLOCK])).text == "ok"
    details = [
        {
            "type": "reasoning.text",
            "text": "I need the time.",
            "format": "anthropic-claude-v1",
            "index": 0,
            "signature": "s-9",
        }
    ]
    assert first.message.provider_meta == {"openrouter": {"reasoning_details": details}}
    replayed = sent(server)[1]["messages"][1]
    assert replayed["reasoning_details"] == details
    assert "reasoning" not in replayed


async def test_an_error_in_a_200_is_raised() -> None:
    server = FakeOpenRouter()
    server.script(Fault(kind="error_event", after=3, message="Provider disconnected"))
    async with catalog(server) as made:
        chat = await made.provider_for(CHAT_MODEL).chat_client()
        with pytest.raises(BackendUnavailableError, match="Provider disconnected") as caught:
            await (await chat.stream(ASK)).join()
        assert caught.value.details["vendor_code"] == "provider_unavailable"


CUT = {"code": 502, "message": "Provider disconnected mid-stream", "metadata": {"error_type": "provider_unavailable"}}
BODIES: list[tuple[int, Any, type[Exception]]] = [
    (
        200,
        {"choices": [{"message": {"content": "pa"}, "finish_reason": "error", "error": CUT}]},
        BackendUnavailableError,
    ),
    (200, {"error": {"code": 429, "message": "slow down"}}, RateLimitError),
    (402, {"error": {"code": 402, "message": "Insufficient credits"}}, QuotaError),
    (400, {"error": {"code": 400, "message": "no", "metadata": {"error_type": "refusal"}}}, RefusedError),
    (200, {"error": {"code": 400, "message": "no", "metadata": {"error_type": "refusal"}}}, RefusedError),
    (400, {"error": {"code": 400, "message": "no", "metadata": {"error_type": "token_limit_exceeded"}}}, QuotaError),
]


@pytest.mark.parametrize(("status", "body", "error"), BODIES)
async def test_a_failure_is_typed_by_the_vendors_own_word(status: int, body: Any, error: type[BackendError]) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status, json=body, request=request)

    async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as http_client:
        made = new_catalog_provider(
            BackendSpec("openrouter", api_key="key"), CatalogOptions(http_client=http_client, retry=ONCE)
        )
        with pytest.raises(error):
            await (await made.provider_for(CHAT_MODEL).chat_client()).chat(ASK)


@given(cuts=st.lists(st.integers(0, 4000), max_size=12), calls=st.booleans(), thinking=st.sampled_from(["", "Hm. 🎈"]))
async def test_a_stream_cut_anywhere_is_the_whole_answer(cuts: list[int], calls: bool, thinking: str) -> None:
    answer = Answer(
        text="Ünïcödé",
        thinking=thinking,
        tool_calls=(CALL,) if calls else (),
        finish_reason="tool_calls" if calls else "stop",
    )
    server = FakeOpenRouter()
    request = OpenRouterRequest(model=THINKING_MODEL, messages=Raw(b"[]"))
    recording = b"".join(server.pieces(request, answer))
    edges = [0, *sorted(cut for cut in cuts if cut < len(recording)), len(recording)]

    async def pieces() -> AsyncIterator[bytes]:
        for start, end in pairwise(edges):
            yield recording[start:end]

    joiner = PartsJoiner()
    decoder = ChatDecoder(OPENROUTER.dialect, THINKING_MODEL, ToolNames((CLOCK,), 64))
    async for data in sse_data(pieces()):
        for part in decoder.feed(data):
            joiner.add(part)
    whole = PartsJoiner()
    for part in ChatDecoder(OPENROUTER.dialect, THINKING_MODEL, ToolNames((CLOCK,), 64)).whole(
        dump(server.whole(request, answer))
    ):
        whole.add(part)
    joined, expected = joiner.result(), whole.result()
    assert joined.message == expected.message
    assert joined.end.usage == expected.end.usage
    assert joined.finish_reason == expected.finish_reason


async def test_usage_has_what_was_cached_and_thought() -> None:
    server = FakeOpenRouter()
    usage = Usage(input=100, cache_read=40, cache_write=7, output=30, reasoning=20, source="reported")
    server.script(Answer(text="x", usage=usage), Answer(text="x", usage=usage))
    async with catalog(server) as made:
        chat = await made.provider_for(CHAT_MODEL).chat_client()
        assert (await chat.chat(ASK)).usage == usage
        assert (await (await chat.stream(ASK)).join()).usage == usage
    assert "stream_options" not in sent(server)[1]


async def test_embeddings_are_listed_and_made() -> None:
    async with catalog(FakeOpenRouter()) as made:
        model = (await listed(made))[EMBED_MODEL]
        assert (model.capabilities.can_chat, model.capabilities.can_embed) == (False, True)
        assert len(await (await made.provider_for(model).embed_client()).embed("abc", dimensions=5)) == 5


async def test_fake_and_requests_are_what_the_sdk_says_they_are() -> None:
    server = FakeOpenRouter()
    async with catalog(server) as made:
        chat = await made.provider_for(THINKING_MODEL).chat_client()
        await (await chat.stream(ASK, tools=[CLOCK], tool_choice="required", think="low", top_k=3)).join()
    (body,) = sent(server)
    TypeAdapter(CompletionCreateParamsStreaming).validate_python(body, strict=True)
    request = server.decoded(server.requests[0].body, server.request_type)
    answer = Answer(text="It is noon.", thinking="Hm.", tool_calls=(CALL,), finish_reason="tool_calls")
    ChatCompletion.model_validate(server.whole(request, answer))
    for piece in server.pieces(request, answer)[:-1]:
        ChatCompletionChunk.model_validate_json(piece.rpartition(b"data: ")[2])
