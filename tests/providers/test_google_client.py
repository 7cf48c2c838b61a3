"""Hazard: the SDK does what nobody asked for: it reads the environment, retries, builds objects, loses a response."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from google.genai import Client, types

from modeld import (
    AuthenticationError,
    BackendProtocolError,
    BackendUnavailableError,
    FunctionCall,
    InvalidRequestError,
    Message,
    ToolCall,
    Usage,
)
from modeld.repository import BackendSpec, CatalogOptions, RetryPolicy, new_catalog_provider
from modeld.repository.client import WireClient
from modeld.testing.google import FakeGemini
from modeld.testing.server import Answer, Fault

pytestmark = pytest.mark.anyio

ASK = [Message("user", "hello")]
ENVIRONMENT = {
    "GOOGLE_API_KEY": "from-the-environment",
    "GEMINI_API_KEY": "from-the-environment",
    "GOOGLE_CLOUD_PROJECT": "p9",
    "GOOGLE_CLOUD_LOCATION": "mars",
    "GOOGLE_GENAI_USE_VERTEXAI": "true",
    "GOOGLE_GENAI_USE_ENTERPRISE": "true",
    "GOOGLE_GEMINI_BASE_URL": "http://127.0.0.1:9",
    "GOOGLE_GENAI_API_VERSION": "v9",
    "GOOGLE_GENAI_CLIENT_MODE": "replay",
    "GOOGLE_GENAI_REPLAYS_DIRECTORY": "/nowhere",
}


@asynccontextmanager
async def client_of(spec: BackendSpec, **options: Any) -> AsyncIterator[WireClient]:
    catalog = new_catalog_provider(spec, CatalogOptions(retry=RetryPolicy(attempts=1), **options))
    client = await catalog.provider_for("gemini-2.5-flash").chat_client()
    assert isinstance(client, WireClient)
    try:
        yield client
    finally:
        await catalog.aclose()


@asynccontextmanager
async def gemini(key: str = "test-key") -> AsyncIterator[tuple[FakeGemini, WireClient]]:
    async with FakeGemini() as server, client_of(BackendSpec("gemini", server.url, key)) as client:
        yield server, client


@asynccontextmanager
async def scripted(handler: Callable[[httpx2.Request], httpx2.Response], **options: Any) -> AsyncIterator[WireClient]:
    http = httpx2.AsyncClient(transport=httpx2.MockTransport(handler), **options)
    async with client_of(BackendSpec("gemini", "http://gemini.test", "k"), http_client=http) as client:
        yield client


def sse(*chunks: Any) -> httpx2.Response:
    content = b"".join(b"data: " + json.dumps(chunk).encode() + b"\r\n\r\n" for chunk in chunks)
    return httpx2.Response(200, content=content, headers={"content-type": "text/event-stream"})


def said(text: str, **candidate: Any) -> dict[str, Any]:
    return {"candidates": [{"content": {"parts": [{"text": text}]}, **candidate}]}


async def test_nothing_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    async with gemini() as (server, client):
        server.script(Answer(text="one"), Answer(text="two"))
        assert (await client.chat(ASK)).text == "one"
        assert (await (await client.stream(ASK)).join()).text == "two"
        paths = [request.path.partition(":")[0] for request in server.requests]
        assert paths == ["/v1beta/models/gemini-2.5-flash"] * 2


async def test_no_key_is_an_error_and_not_one_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", "test-key")
    async with gemini(key="") as (server, client):
        with pytest.raises(AuthenticationError, match="no API key"):
            await client.chat(ASK)
        assert server.requests == []


@pytest.mark.parametrize("streamed", [False, True])
async def test_the_sdk_does_not_try_again(streamed: bool) -> None:
    async with gemini() as (server, client):
        server.script(*[Fault(kind="status", status=503)] * 5)
        with pytest.raises(BackendUnavailableError):
            await (client.stream(ASK) if streamed else client.chat(ASK))
        assert len(server.requests) == 1


async def test_a_stream_builds_no_objects_of_the_sdk(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("an object of the SDK was built")

    async with gemini() as (server, client):
        await client.chat(ASK)
        monkeypatch.setattr(types.GenerateContentResponse, "_from_response", never)
        monkeypatch.setattr(types.GenerateContentResponse, "model_validate", never)
        server.script(Answer(text="Hello there."))
        assert (await (await client.stream(ASK)).join()).text == "Hello there."


async def test_the_body_is_ours_and_the_sdk_adds_nothing() -> None:
    async with gemini() as (server, client):
        await client.chat(ASK)
        await (await client.stream(ASK)).join()
        wanted = {"contents": [{"role": "user", "parts": [{"text": "hello"}]}], "generationConfig": {}}
        assert [request.json for request in server.requests] == [wanted, wanted]


async def test_a_cancelled_request_closes_what_was_handed_over() -> None:
    async with gemini() as (server, client):
        await client.chat(ASK)
        server.script(Fault(kind="hang", after=0))
        task = asyncio.create_task(client.stream(ASK))
        async with asyncio.timeout(5):
            while len(server.requests) < 2:
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while server.cut_off != 1:
                await asyncio.sleep(0.005)


async def test_the_timeout_of_the_http_client_is_not_taken_away() -> None:
    seen: list[Any] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.extensions["timeout"]["read"])
        return httpx2.Response(200, json=said("x", finishReason="STOP"))

    async with scripted(answer, timeout=12.5) as client:
        await client.chat(ASK)
    assert seen == [12.5]


@pytest.mark.parametrize(
    ("base_url", "path"),
    [
        ("http://g.test/", "/v1beta/models"),
        ("http://g.test/proxy/v1", "/proxy/v1/models"),
        ("http://g.test/v1beta", "/v1beta/models"),
    ],
)
async def test_a_version_in_the_address_is_kept(base_url: str, path: str) -> None:
    seen: list[str] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.append(request.url.path)
        return httpx2.Response(200, json={"models": []})

    http = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
    catalog = new_catalog_provider(BackendSpec("gemini", base_url, "k"), CatalogOptions(http_client=http))
    assert await catalog.list_models() == []
    assert seen == [path]


async def test_an_answer_past_one_requests_limit_goes_on() -> None:
    """Gemini 4 ends such a request with CONTINUATION; the tokens of all are counted."""
    bodies: list[Any] = []
    tokens = {"promptTokenCount": 10, "candidatesTokenCount": 2}

    def answer(request: httpx2.Request) -> httpx2.Response:
        bodies.append(json.loads(request.content))
        more = {"finishReason": "CONTINUATION", "continuationToken": f"t{len(bodies)}"}
        ends = said("end", finishReason="STOP") if len(bodies) % 3 == 0 else said("more ", **more)
        whole = ends | {"usageMetadata": tokens}
        return sse(whole) if request.url.query else httpx2.Response(200, json=whole)

    async with scripted(answer) as client:
        joined = await (await client.stream(ASK)).join()
        whole = await client.chat(ASK)
    assert joined.text == whole.text == "more more end"
    assert joined.usage == whole.usage == Usage(input=30, output=6, source="reported")
    assert [body.get("continuationToken") for body in bodies] == [None, "t1", "t2", None, "t4", "t5"]


async def test_an_error_without_an_events_dress_ends_the_stream_with_its_words() -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b"data: " + json.dumps(said("Hel")).encode() + b"\r\n\r\n"
        yield b'[{\n  "error": {\n    "code": 503,\n    "message": "The model'
        yield b' is overloaded.",\n    "status": "UNAVAILABLE"\n  }\n}\n]\n'

    headers = {"content-type": "text/event-stream"}
    async with scripted(lambda request: httpx2.Response(200, content=body(), headers=headers)) as client:
        with pytest.raises(BackendUnavailableError, match="overloaded"):
            await (await client.stream(ASK)).join()


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_success_without_an_answer_is_no_answer(streamed: bool) -> None:
    async with scripted(lambda r: sse({}) if r.url.query else httpx2.Response(200, json={})) as client:
        with pytest.raises((BackendProtocolError, BackendUnavailableError)):
            await (client.stream(ASK) if streamed else client.chat(ASK))


@pytest.mark.parametrize("name", ["../../secrets", "a?b=c"])
async def test_a_model_name_leads_nowhere_else(name: str) -> None:
    async with FakeGemini() as server:
        catalog = new_catalog_provider(BackendSpec("gemini", server.url, "test-key"))
        with pytest.raises(InvalidRequestError):
            await (await catalog.provider_for(name).chat_client()).chat(ASK)
        assert server.requests == []
        await catalog.aclose()


async def test_the_fakes_answers_are_what_the_sdk_understands() -> None:
    """The fake is checked by the SDK itself: its own request, its own types for what comes back."""
    call = ToolCall("x", FunctionCall("fs_list", '{"path":"/tmp"}'))
    answer = Answer(
        text="Hi.",
        thinking="Hm.",
        tool_calls=(call,),
        finish_reason="tool_calls",
        usage=Usage(input=9, output=7, reasoning=2),
    )
    async with FakeGemini() as server:
        sdk = Client(
            enterprise=False,
            api_key="test-key",
            http_options=types.HttpOptions(base_url=server.url, api_version="v1beta"),
        )
        server.script(answer, answer)
        config = types.GenerateContentConfig.model_validate(
            {"http_options": {"extra_body": {"generationConfig": {"thinkingConfig": {"includeThoughts": True}}}}}
        )
        whole = await sdk.aio.models.generate_content(model="gemini-3-flash-preview", contents="hi", config=config)
        chunks = [
            chunk
            async for chunk in await sdk.aio.models.generate_content_stream(
                model="gemini-3-flash-preview", contents="hi", config=config
            )
        ]
        models = [model async for model in await sdk.aio.models.list()]
        embedded = await sdk.aio.models.embed_content(model="gemini-embedding-001", contents=["a", "b"])
        await sdk.aio.aclose()
    assert whole.function_calls is not None
    assert whole.function_calls[0].args == {"path": "/tmp"}
    for response in (whole, chunks[-1]):
        assert response.usage_metadata is not None
        assert response.usage_metadata.thoughts_token_count == 2
        assert response.candidates is not None
        assert response.candidates[0].finish_reason == types.FinishReason.STOP
    assert "".join(chunk.text or "" for chunk in chunks) == "Hi."
    assert models[0].input_token_limit == 1_048_576
    assert len(models) == 7
    assert len(embedded.embeddings or ()) == 2
