"""Hazard: keys, the environment, addresses and connections: what goes where nobody meant it to go."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import pytest
from msgspec import structs

from modeld import (
    AuthenticationError,
    BackendError,
    BackendProtocolError,
    BackendUnavailableError,
    ContextOverflowError,
    FunctionTool,
    InvalidRequestError,
    Message,
    ModelNotFoundError,
    PermissionDeniedError,
    QuotaError,
    RateLimitError,
    RefusedError,
    Tool,
)
from modeld.providers.openai import make_catalog
from modeld.repository import BackendSpec, CatalogOptions, RetryPolicy
from modeld.repository.provider import WireCatalog
from modeld.testing.openai import ChatRequest, FakeOpenAI
from modeld.testing.server import Answer, Fault, Recorded, Reply

pytestmark = pytest.mark.anyio

ONCE = CatalogOptions(retry=RetryPolicy(attempts=1))
ASK = [Message("user", "hello")]


@asynccontextmanager
async def catalog_of(server: FakeOpenAI, **spec: str) -> AsyncIterator[WireCatalog]:
    given = {"base_url": server.url + "/v1", "api_key": server.key, **spec}
    catalog = make_catalog(BackendSpec("openai", **given), ONCE)
    try:
        yield catalog
    finally:
        await catalog.aclose()


async def ask(catalog: WireCatalog, model: str = "gpt-4o", stream: bool = False) -> str:
    client = await catalog.provider_for(model).chat_client()
    return (await (await client.stream(ASK)).join() if stream else await client.chat(ASK)).text


async def test_nothing_of_the_environment_goes_along(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "leak-key")
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "leak-admin")
    monkeypatch.setenv("OPENAI_ORG_ID", "leak-org")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "leak-project")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1/leak")
    headers = "Authorization: Bearer leak\nX-Own: leak\ncontent-type: leak/leak\nUser-Agent: leak\nno colon"
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", headers)
    async with FakeOpenAI() as server, catalog_of(server) as catalog:
        await catalog.list_models()
        await ask(catalog)
        await ask(catalog, stream=True)
        assert [request.headers["authorization"] for request in server.requests] == ["Bearer test-key"] * 3
        assert not [request for request in server.requests if "leak" in str(request.headers).lower()]


async def test_a_server_without_keys_is_sent_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "leak-key")
    async with FakeOpenAI(key="") as server, catalog_of(server) as catalog:
        assert await ask(catalog, "house-model") == "ok"
        await catalog.list_models()
        assert not [request for request in server.requests if "authorization" in request.headers]


async def test_the_vendor_is_not_asked_without_a_key() -> None:
    for url in ("", "https://api.openai.com/v1/"):
        catalog = make_catalog(BackendSpec("openai", url), ONCE)
        with pytest.raises(AuthenticationError, match="needs an API key"):
            await ask(catalog)
        with pytest.raises(AuthenticationError):
            await catalog.list_models()
        await catalog.aclose()


async def test_a_key_that_cannot_be_one_is_not_shown() -> None:
    async with FakeOpenAI() as server, catalog_of(server, api_key="secret\r\nX-Evil: 1") as catalog:
        with pytest.raises(AuthenticationError) as caught:
            await ask(catalog)
        assert "secret" not in str(caught.value)
        assert server.requests == []


async def test_the_vendors_words_about_a_key_are_masked() -> None:
    async with FakeOpenAI() as server, catalog_of(server) as catalog:
        server.script(
            Fault(kind="status", status=401, code="invalid_api_key", message="Incorrect key sk-abcdefghijkl.")
        )
        with pytest.raises(AuthenticationError) as caught:
            await ask(catalog)
        assert "abcdefghijkl" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["", "/", "//", "  "])
async def test_slashes_after_the_address_change_nothing(suffix: str) -> None:
    async with FakeOpenAI() as server, catalog_of(server, base_url=f" {server.url}/v1{suffix}") as catalog:
        assert await ask(catalog) == "ok"
        assert catalog.provider_for("gpt-4o").backend_ids == (server.url + "/v1",)
        assert catalog.provider_for("gpt-4o").id == "openai-gpt-4o"


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http://", "/v1", "nonsense"])
async def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="base URL"):
        make_catalog(BackendSpec("openai", url, "k"), ONCE)


async def test_nobody_there_is_unavailable() -> None:
    async with FakeOpenAI() as server:
        url = server.url
    catalog = make_catalog(BackendSpec("openai", url, "k"), ONCE)
    for stream in (False, True):
        with pytest.raises(BackendUnavailableError, match=r"127\.0\.0\.1") as caught:
            await ask(catalog, stream=stream)
        assert caught.value.retryable
    await catalog.aclose()


FAILURES = [
    (429, "insufficient_quota", QuotaError),
    (429, "rate_limit_exceeded", RateLimitError),
    (400, "content_policy_violation", RefusedError),
    (400, "bio_policy", RefusedError),
    (400, "context_length_exceeded", ContextOverflowError),
    (403, "unsupported_country_region_territory", PermissionDeniedError),
    (404, "model_not_found", ModelNotFoundError),
    (400, "unknown_parameter", InvalidRequestError),
    (402, "", QuotaError),
    (418, "teapot", BackendError),
]


@pytest.mark.parametrize(("status", "code", "error"), FAILURES)
async def test_the_vendors_code_says_what_failed(status: int, code: str, error: type[Exception]) -> None:
    async with FakeOpenAI() as server, catalog_of(server) as catalog:
        headers = {"x-request-id": "req_1"}
        server.script(Fault(kind="status", status=status, code=code, message="no", headers=headers))
        with pytest.raises(error) as caught:
            await ask(catalog)
        assert type(caught.value) is error
        details = caught.value.details  # type: ignore[attr-defined]
        assert (details["status"], details["vendor_code"]) == (status, code or "invalid_request_error")
        assert details["request_id"] == "req_1"


WAITS: list[tuple[dict[str, str], float | None]] = [
    ({"retry-after": "7", "x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "99s"}, 7),
    ({"retry-after-ms": "1500"}, 1.5),
    ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "6m0.5s"}, 360.5),
    ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "120ms"}, 0.12),
    ({"x-ratelimit-remaining-requests": "5", "x-ratelimit-reset-requests": "1h"}, None),
    ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "soon"}, None),
    ({}, None),
]


@pytest.mark.parametrize(("headers", "wait"), WAITS)
async def test_a_rate_limit_says_how_long_in_each_of_its_ways(headers: dict[str, str], wait: float | None) -> None:
    async with FakeOpenAI() as server, catalog_of(server) as catalog:
        server.script(Fault(kind="status", status=429, code="rate_limit_exceeded", headers=headers))
        with pytest.raises(RateLimitError) as caught:
            await ask(catalog)
        assert caught.value.retry_after == wait


class Raw(FakeOpenAI):
    """Answers with one reply, whatever is asked."""

    reply = Reply()

    async def respond(self, request: Recorded) -> Reply:
        return self.reply


BODIES = [
    (502, "text/html", b"<html>Bad gateway</html>", BackendUnavailableError),
    (500, "application/json", b"", BackendUnavailableError),
    (400, "application/json", b'{"object":"error","message":"too odd","code":400}', InvalidRequestError),
    (400, "application/json", b'{"error":"too odd"}', InvalidRequestError),
    (422, "application/json", b'{"detail":[{"msg":"too odd"}]}', InvalidRequestError),
    (404, "text/plain", b"404 page not found", ModelNotFoundError),
    (200, "application/json", b'{"error":{"message":"too odd","code":503}}', BackendUnavailableError),
    (200, "application/json", b"[]", BackendProtocolError),
    (200, "text/plain", b'{"choices":[{"message":{"content":"x"},"finish_reason":"stop"}]}', BackendProtocolError),
]


@pytest.mark.parametrize(("status", "kind", "body", "error"), BODIES)
async def test_servers_that_fail_in_ways_of_their_own(
    status: int, kind: str, body: bytes, error: type[Exception]
) -> None:
    async with Raw() as server, catalog_of(server) as catalog:
        server.reply = Reply(status=status, content_type=kind, body=body)
        with pytest.raises(error) as caught:
            await ask(catalog)
        assert b"too odd" not in body or "too odd" in str(caught.value)


class Counting(FakeOpenAI):
    """Counts its connections."""

    connections = 0

    async def _connected(self, reader: Any, writer: Any) -> None:
        self.connections += 1
        await super()._connected(reader, writer)


async def test_a_connection_is_used_again_after_a_stream() -> None:
    async with Counting() as server, catalog_of(server) as catalog:
        for stream in (True, True, False, True):
            assert await ask(catalog, stream=stream) == "ok"
        assert await ask(catalog, "gpt-5", stream=True) == "ok"
        assert server.connections == 1


class Lingering(FakeOpenAI):
    """Has one more thing to send after the end."""

    def pieces(self, request: Any, answer: Answer) -> list[bytes]:
        return [*super().pieces(request, answer), b": bye\n\n"]


async def test_a_server_that_keeps_a_whole_answer_open_is_not_waited_for() -> None:
    async with Lingering() as server, catalog_of(server) as catalog:
        count = len(server.pieces(_streaming_request(), Answer(text="x", pieces=1)))
        server.script(Fault(kind="hang", after=count - 1, answer=Answer(text="x", pieces=1)))
        async with asyncio.timeout(5):
            assert await ask(catalog, stream=True) == "x"


def _streaming_request() -> Any:
    said = {"model": "gpt-4o", "messages": [], "stream": True, "stream_options": {"include_usage": True}}
    return msgspec.json.decode(json.dumps(said), type=ChatRequest)


class Zipping(FakeOpenAI):
    """Sends what it has compressed."""

    async def respond(self, request: Recorded) -> Reply:
        reply = await super().respond(request)
        packed = gzip.compress(b"".join(reply.pieces) if reply.pieces is not None else reply.body)
        pieces = tuple(packed[i : i + 7] for i in range(0, len(packed), 7))
        return structs.replace(reply, pieces=pieces, headers={"content-encoding": "gzip"})


async def test_compressed_answers_are_read() -> None:
    async with Zipping() as server, catalog_of(server) as catalog:
        server.script(Answer(text="packed"), Answer(text="packed"))
        assert await ask(catalog) == "packed"
        assert await ask(catalog, stream=True) == "packed"
        assert await catalog.list_models()


async def test_what_is_no_json_is_not_sent() -> None:
    async with FakeOpenAI() as server, catalog_of(server) as catalog:
        client = await catalog.provider_for("gpt-4o").chat_client()
        tool = Tool(FunctionTool("f", "", {"default": object()}))
        with pytest.raises(InvalidRequestError, match="no JSON"):
            await client.chat(ASK, tools=[tool])
        assert server.requests == []
