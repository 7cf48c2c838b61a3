"""Hazard: Mistral is taken for OpenAI. Its fields, ids, contents and listing are its own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from modeld import (
    AuthenticationError,
    BackendError,
    BackendUnavailableError,
    FunctionCall,
    FunctionTool,
    InvalidRequestError,
    Message,
    NotSupportedError,
    Tool,
    ToolCall,
)
from modeld.providers.chat_completions import ChatCodec
from modeld.providers.chat_decoder import ChatDecoder
from modeld.providers.compatible import MISTRAL
from modeld.repository import BackendSpec, CatalogOptions, RetryPolicy, new_catalog_provider
from modeld.repository.client import WireClient
from modeld.repository.names import ToolNames
from modeld.repository.provider import WireCatalog
from modeld.testing.mistral import CHAT_MODEL, EMBED_MODEL, NATIVE_MODEL, OCR_MODEL, THINKING_MODEL, FakeMistral
from modeld.testing.server import Answer, Fault
from modeld.types import PartsJoiner

pytestmark = pytest.mark.anyio

ASK = [Message("user", "list /tmp")]
BARE = Tool(FunctionTool("clock"))
LIST = Tool(FunctionTool("fs.list", "list", {"type": "object", "properties": {"path": {"type": "string"}}}))
FOREIGN = "toolu_01A09q90qw90lq917835lq9"


@asynccontextmanager
async def catalog(server: FakeMistral) -> AsyncIterator[WireCatalog]:
    async with server:
        spec = BackendSpec("mistral", f"{server.url}/v1/", "test-key")
        made = new_catalog_provider(spec, CatalogOptions(retry=RetryPolicy(attempts=1)))
        assert isinstance(made, WireCatalog)
        try:
            yield made
        finally:
            await made.aclose()


@asynccontextmanager
async def client(server: FakeMistral, model: str = CHAT_MODEL) -> AsyncIterator[WireClient]:
    async with catalog(server) as made:
        yield await made.provider_for(model).chat_client()


def sent(server: FakeMistral) -> list[dict[str, Any]]:
    return [request.json for request in server.requests if request.method == "POST"]


async def test_fields_have_the_vendors_names() -> None:
    server = FakeMistral()
    async with client(server) as chat:
        await chat.chat(ASK, seed=7, max_tokens=9, tools=[LIST], tool_choice="required")
        await (await chat.stream(ASK, tools=[BARE], tool_choice="clock")).join()
    first, second = sent(server)
    assert (first["random_seed"], first["max_tokens"], first["tool_choice"]) == (7, 9, "any")
    assert "seed" not in first
    assert second["tool_choice"] == {"type": "function", "function": {"name": "clock"}}
    assert second["tools"][0]["function"]["parameters"] == {"type": "object", "properties": {}}
    assert "stream_options" not in second


async def test_ids_of_other_vendors_become_nine_letters_for_call_and_result_alike() -> None:
    server = FakeMistral()
    calls = tuple(ToolCall(name, FunctionCall("clock")) for name in (FOREIGN, "call_1", "abcDEF123"))
    results = [Message("tool", "noon", tool_call_id=call.id, name="clock") for call in reversed(calls)]
    history = [*ASK, Message("assistant", tool_calls=calls), *results]
    async with client(server) as chat:
        await chat.chat(history, tools=[BARE])
        await chat.chat(history, tools=[BARE])
    first, second = sent(server)
    assert first == second
    ids = [call["id"] for call in first["messages"][1]["tool_calls"]]
    assert len(set(ids)) == 3
    assert ids[2] == "abcDEF123"
    assert [message["tool_call_id"] for message in first["messages"][2:]] == list(reversed(ids))
    assert first["messages"][2]["name"] == "clock"


@given(st.lists(st.text(min_size=1), min_size=2, max_size=8, unique=True))
def test_every_id_is_mapped_and_two_are_never_made_one(names: list[str]) -> None:
    codec = ChatCodec(MISTRAL.dialect)
    mapped = [codec._id(name) for name in names]
    assert all(len(name) == 9 and name.isascii() and name.isalnum() for name in mapped)
    assert len(set(mapped)) == len(names)


async def test_levels_are_those_of_the_model() -> None:
    server = FakeMistral()
    async with catalog(server) as made:
        small = await made.provider_for(THINKING_MODEL).chat_client()
        native = await made.provider_for(NATIVE_MODEL).chat_client()
        await small.chat(ASK, think="off")
        await small.chat(ASK, think="high")
        await native.chat(ASK, think="high")
        for chat, level, has in ((small, "low", "auto, off, high"), (native, "off", "auto, high")):
            with pytest.raises(NotSupportedError, match=f"it has {has}"):
                await chat.chat(ASK, think=level)
    added = [{key: body.get(key) for key in ("reasoning_effort", "prompt_mode")} for body in sent(server)]
    assert added == [
        {"reasoning_effort": "none", "prompt_mode": None},
        {"reasoning_effort": "high", "prompt_mode": None},
        {"reasoning_effort": None, "prompt_mode": "reasoning"},
    ]


async def test_a_listing_declares_what_it_can_and_tables_say_the_rest() -> None:
    async with catalog(FakeMistral()) as made:
        models = {model.name: model for model in await made.list_models()}
        assert OCR_MODEL not in models
        chat, small, embed = models[CHAT_MODEL], models[THINKING_MODEL], models[EMBED_MODEL]
        assert chat.context_length == 131072
        assert chat.evidence["can_vision"] == chat.evidence["context_length"] == "declared"
        assert (chat.capabilities.can_vision, chat.capabilities.can_think) == (True, False)
        assert small.capabilities.can_think
        assert (embed.capabilities.can_chat, embed.capabilities.can_embed) == (False, True)
        assert (embed.evidence["can_chat"], embed.evidence["can_embed"]) == ("declared", "named")
        with pytest.raises(NotSupportedError, match="has no think"):
            await (await made.provider_for(chat).chat_client()).chat(ASK, think="high")
        vectors = await (await made.provider_for(embed).embed_client()).embed(["a"], dimensions=2)
        assert len(vectors[0]) == 2


async def test_a_full_window_is_not_a_stop() -> None:
    server = FakeMistral()
    answer = Answer(text="so far", finish_reason="context_full")
    server.script(answer, answer)
    async with client(server) as chat:
        assert (await chat.chat(ASK)).finish_reason == "context_full"
        assert (await (await chat.stream(ASK)).join()).finish_reason == "context_full"


async def test_an_answer_that_failed_is_raised() -> None:
    server = FakeMistral()
    failed = Answer(text="so f", finish_reason="error")
    server.script(failed, failed, Fault(kind="error_event", after=2, message="it broke"))
    async with client(server) as chat:
        with pytest.raises(BackendUnavailableError):
            await chat.chat(ASK)
        with pytest.raises(BackendUnavailableError):
            await (await chat.stream(ASK)).join()
        with pytest.raises(BackendError, match="it broke"):
            await (await chat.stream(ASK)).join()


BODIES: list[tuple[int, Any, type[Exception]]] = [
    (401, {"detail": "no such key"}, AuthenticationError),
    (401, {"message": "no such key", "request_id": "r-1"}, AuthenticationError),
    (422, {"detail": [{"loc": ["body"], "msg": "no such key"}]}, InvalidRequestError),
    (400, {"object": "error", "message": {"detail": [{"msg": "no such key"}]}, "type": "x"}, InvalidRequestError),
    (400, {"object": "error", "message": "no such key", "type": "invalid_request_error"}, InvalidRequestError),
]


@pytest.mark.parametrize(("status", "body", "error"), BODIES)
async def test_every_form_of_an_error_keeps_its_words(status: int, body: Any, error: type[Exception]) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(status, json=body, request=request)

    async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as http_client:
        made = new_catalog_provider(
            BackendSpec("mistral", api_key="key"),
            CatalogOptions(http_client=http_client, retry=RetryPolicy(attempts=1)),
        )
        with pytest.raises(error, match="no such key"):
            await (await made.provider_for(CHAT_MODEL).chat_client()).chat(ASK)


def decoder() -> ChatDecoder:
    return ChatDecoder(MISTRAL.dialect, CHAT_MODEL, ToolNames((LIST, BARE), 64))


def joined(events: list[bytes]) -> Any:
    joiner = PartsJoiner()
    read = decoder()
    for data in events:
        for part in read.feed(data):
            joiner.add(part)
    return joiner.result()


def chunk(delta: dict[str, Any], reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": reason}
    return msgspec.json.encode({"id": "x", "model": CHAT_MODEL, "choices": [choice]})


async def test_contents_as_lists_and_texts_may_take_turns() -> None:
    thinking = [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}, {"type": "reference", "ids": [1]}]}]
    result = joined(
        [
            chunk({"content": thinking}),
            chunk({"content": [{"type": "text", "text": "a"}, {"type": "new_kind", "x": 1}]}),
            chunk({"content": "b"}),
            chunk({"content": None}),
            chunk({"content": []}, "stop"),
            b"[DONE]",
        ]
    )
    assert (result.thinking, result.text) == ("Hm", "ab")


@pytest.mark.parametrize("numbered", [True, False])
async def test_calls_that_come_whole_are_kept_apart(numbered: bool) -> None:
    calls = [
        {"id": name, "function": {"name": "clock", "arguments": f'{{"n":{n}}}'}, **({"index": 0} if numbered else {})}
        for n, name in enumerate(("aaaaaaaaa", "bbbbbbbbb"))
    ]
    result = joined([chunk({"tool_calls": calls}, "tool_calls"), b"[DONE]"])
    assert [(c.id, c.function.arguments) for c in result.tool_calls] == [
        ("aaaaaaaaa", '{"n":0}'),
        ("bbbbbbbbb", '{"n":1}'),
    ]


async def test_the_fake_is_what_the_sdk_says_it_is() -> None:
    server = FakeMistral()
    async with client(server) as chat:
        await (await chat.stream(ASK)).join()
    request = server.decoded(server.requests[0].body, server.request_type)
    answer = Answer(text="It is empty.")
    ChatCompletion.model_validate(server.whole(request, answer))
    for piece in server.pieces(request, answer)[:-1]:
        ChatCompletionChunk.model_validate_json(piece.removeprefix(b"data: "))
