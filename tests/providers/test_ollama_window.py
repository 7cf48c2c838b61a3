"""Hazard: Ollama cuts a conversation that does not fit its window, and says nothing."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from modeld import ContextOverflowError, ImagePart, Message
from modeld.repository import BackendSpec, CatalogOptions, CatalogProvider, RetryPolicy, new_catalog_provider
from modeld.testing.ollama import FakeModel, FakeOllama
from modeld.testing.server import Answer, Fault
from modeld.types import Usage

pytestmark = pytest.mark.anyio

MODEL = "llama3.2:3b"
ASK = [Message("user", "Hello")]


@asynccontextmanager
async def ollama(server: FakeOllama) -> AsyncIterator[CatalogProvider]:
    async with server:
        spec = BackendSpec("ollama", server.url, server.key)
        catalog = new_catalog_provider(spec, CatalogOptions(retry=RetryPolicy(attempts=1)))
        try:
            yield catalog
        finally:
            await catalog.aclose()


def asked(server: FakeOllama) -> list[int]:
    return [r.json["options"]["num_ctx"] for r in server.requests if r.path in ("/api/chat", "/api/embed")]


def counted(tokens: int, output: int = 7, **more: Any) -> Answer:
    return Answer(text="Yes.", usage=Usage(input=tokens, output=output, source="reported"), **more)


async def test_a_window_holds_prompt_and_answer_and_only_grows() -> None:
    server = FakeOllama()
    async with ollama(server) as catalog:
        client = await catalog.provider_for(MODEL).chat_client()
        await client.chat(ASK)
        await client.chat(ASK, max_tokens=20000)
        await client.chat(ASK)
        await client.chat([Message("user", "word " * 30000)])
        await client.chat(ASK, max_tokens=10**6)
        assert asked(server) == [8192, 32768, 32768, 65536, 131072]
        # The server loads when the window changes, and not at every turn.
        assert [size for _, size in server.loads] == [8192, 32768, 65536, 131072]


async def test_a_window_of_the_modelfile_is_not_made_smaller() -> None:
    model = FakeModel(
        name="mine",
        architecture="llama",
        context_length=131072,
        capabilities=("completion",),
        parameters="temperature                    0.6\nnum_ctx                        32768",
    )
    server = FakeOllama(models=[model])
    async with ollama(server) as catalog:
        await (await catalog.provider_for("mine").chat_client()).chat(ASK)
        assert asked(server) == [32768]


async def test_images_have_room() -> None:
    server = FakeOllama()
    async with ollama(server) as catalog:
        client = await catalog.provider_for("gemma3:4b").chat_client()
        # Six pictures of a megabyte each: counted as pictures, not by their base64.
        await client.chat([Message("user", "?", images=(ImagePart(bytes(10**6), "image/png"),) * 6)])
        assert asked(server) == [32768]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_a_text_of_many_tokens_gets_the_window_that_the_server_counted(streamed: bool) -> None:
    server = FakeOllama()
    async with ollama(server) as catalog:
        provider = catalog.provider_for(MODEL)
        server.prompt_tokens = 15000
        if streamed:
            result = await (await (await provider.stream_client()).stream(ASK)).join()
        else:
            result = await (await provider.chat_client()).chat(ASK)
        assert result.text == "ok"
        assert asked(server) == [8192, 32768]
        assert result.warnings == ()


async def test_an_overflow_without_numbers_gets_the_most_it_can_need() -> None:
    server = FakeOllama()
    words = (
        "the prompt is longer than the context length currently available to the model; shorten the prompt, adjust "
        "the context length in settings, or use a model with a longer context length"
    )
    async with ollama(server) as catalog:
        client = await catalog.provider_for(MODEL).chat_client()
        server.script(Fault(kind="status", status=400, message=words), Answer(text="ok"))
        assert (await client.chat([Message("user", "ก" * 5000)])).text == "ok"
        assert asked(server) == [16384, 32768]
        fault = Fault(kind="status", status=400, message=words)
        server.script(fault, fault)
        with pytest.raises(ContextOverflowError, match="longer than the context length"):
            await client.chat([Message("user", "ก" * 11000)])
        assert asked(server)[2:] == [32768, 65536]


async def test_beyond_the_model_is_an_error_with_numbers_and_no_second_load() -> None:
    server = FakeOllama()
    async with ollama(server) as catalog:
        client = await catalog.provider_for(MODEL).chat_client()
        server.prompt_tokens = 200000
        with pytest.raises(ContextOverflowError) as caught:
            await client.chat(ASK)
        assert (caught.value.details["tokens"], caught.value.details["window"]) == (200000, 8192)
        assert not caught.value.retryable
        assert asked(server) == [8192]


async def test_cutting_is_off_unless_it_is_asked_for() -> None:
    server = FakeOllama()
    async with ollama(server) as catalog:
        client = await catalog.provider_for(MODEL).chat_client()
        for options in ({}, {"truncate": True}, {"shift": True}, {"truncate": False, "shift": False}):
            await client.chat(ASK, **options)
        said = [(r.json["truncate"], r.json["shift"]) for r in server.requests if r.path == "/api/chat"]
        assert said == [(False, False), (True, False), (False, True), (False, False)]


SMALL = FakeModel(name="small", architecture="llama", context_length=4096, capabilities=("completion",))


async def test_a_cut_that_was_asked_for_is_told() -> None:
    server = FakeOllama(models=[SMALL])
    async with ollama(server) as catalog:
        client = await catalog.provider_for("small").chat_client()
        server.script(counted(3000), counted(20))
        result = await client.chat([Message("user", "word " * 5000)], truncate=True)
        assert [w.code for w in result.warnings] == ["context_cut"]
        assert "3000" in result.warnings[0].message
        assert "4096" in result.warnings[0].message
        assert (await client.chat(ASK, truncate=True)).warnings == ()


async def test_an_answer_that_shifted_is_told() -> None:
    server = FakeOllama(models=[SMALL])
    async with ollama(server) as catalog:
        client = await catalog.provider_for("small").chat_client()
        server.script(counted(3000, output=2000), counted(3000, output=2000))
        assert [w.code for w in (await client.chat(ASK, shift=True)).warnings] == ["context_cut"]


@pytest.mark.parametrize(("tokens", "told"), [(2051, True), (4095, True), (3900, False)])
async def test_a_server_that_cut_all_the_same_is_told(tokens: int, told: bool) -> None:
    """Servers before 0.12.6 do not know ``truncate``: of 20,000 bytes nobody makes 2051 tokens."""
    server = FakeOllama(models=[SMALL])
    async with ollama(server) as catalog:
        client = await catalog.provider_for("small").chat_client()
        server.script(counted(tokens))
        result = await client.chat([Message("user", "word " * 4000)])
        assert [w.code for w in result.warnings] == (["context_cut"] if told else [])


async def test_a_full_window_is_no_wish_for_a_short_answer() -> None:
    server = FakeOllama()
    async with ollama(server) as catalog:
        client = await catalog.provider_for(MODEL).chat_client()
        server.script(
            Answer(text="and so", finish_reason="context_full"),
            Answer(text="on", finish_reason="length"),
            counted(100, output=50, finish_reason="length"),
        )
        assert (await client.chat(ASK)).finish_reason == "context_full"
        assert (await client.chat(ASK)).finish_reason == "length"
        assert (await client.chat(ASK, max_tokens=50)).finish_reason == "length"
        # The next call after a full window has twice the room.
        assert asked(server) == [8192, 16384, 16384]


async def test_texts_to_embed_are_not_cut() -> None:
    server = FakeOllama()
    name = "nomic-embed-text:latest"
    async with ollama(server) as catalog:
        client = await catalog.provider_for(name).embed_client()
        await client.embed(["a", "b" * 6000], dimensions=5)
        sent = server.requests[-1].json
        assert sent["truncate"] is False
        assert sent["dimensions"] == 5
        assert sent["options"] == {"num_ctx": 2048}
        server.prompt_tokens = 3000
        with pytest.raises(ContextOverflowError):
            await client.embed("b" * 6000)
