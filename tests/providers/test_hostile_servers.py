"""Hazard: a server, or a key, that makes us send or show what is nobody's business, or fills memory."""

from __future__ import annotations

import gzip
import logging
import traceback
from typing import Any

import pytest

from modeld.errors import AuthenticationError, BackendProtocolError, InvalidRequestError, ModeldError
from modeld.providers import bodies
from modeld.repository import BackendSpec
from modeld.repository.catalog import CatalogOptions, new_catalog_provider
from modeld.repository.retry import RetryPolicy
from modeld.testing.server import FakeServer, Recorded, Reply
from modeld.types import Message, Usage

pytestmark = pytest.mark.anyio

KEY = "zq9-no-prefix-of-a-vendor-77"
ASK = [Message("user", "private words")]
WIRES = {
    "openai": ("gpt-4o", "/v1"),
    "vllm": ("any", "/v1"),
    "anthropic": ("claude-sonnet-4-6", ""),
    "gemini": ("gemini-2.5-flash", ""),
    "ollama": ("llama3.2:3b", ""),
}


class Scripted(FakeServer):
    """Gives one reply to everything."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(key=KEY)
        self.reply = reply

    async def respond(self, request: Recorded) -> Reply:
        if request.path == "/api/show":
            return Reply(body=b'{"capabilities": ["completion"]}')
        return self.reply

    def error_body(self, status: int, code: str, message: str) -> bytes:
        return b""

    def error_event(self, code: str, message: str) -> bytes:
        return b""


async def failed(type: str, url: str, *, key: str = KEY, streamed: bool = False) -> ModeldError:
    model, path = WIRES[type]
    catalog = new_catalog_provider(BackendSpec(type, url + path, key), CatalogOptions(retry=RetryPolicy(attempts=1)))
    provider = catalog.provider_for(model)
    call = (await provider.stream_client()).stream if streamed else (await provider.chat_client()).chat
    with pytest.raises(ModeldError) as caught:
        await call(ASK)
    await catalog.aclose()
    return caught.value


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("status", [302, 307])
@pytest.mark.parametrize("type", WIRES)
async def test_a_redirect_takes_neither_key_nor_words_elsewhere(type: str, status: int, streamed: bool) -> None:
    async with Scripted(Reply(body=b"{}")) as other:
        away = Reply(status=status, headers={"location": other.url.replace("127.0.0.1", "localhost")})
        async with Scripted(away) as server:
            error = await failed(type, server.url, streamed=streamed)
        assert other.requests == []
    assert "localhost" in error.message


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("type", WIRES)
async def test_a_key_that_the_server_quotes_is_shown_nowhere(
    type: str, streamed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    body = f'{{"error": {{"message": "wrong token {KEY}", "type": "x"}}}}'.encode()
    async with Scripted(Reply(status=401, body=body)) as server:
        error = await failed(type, server.url, streamed=streamed)
    assert isinstance(error, AuthenticationError)
    shown = "".join(traceback.format_exception(error)) + repr(error.details)
    assert KEY not in shown
    assert "[key]" in error.message
    assert KEY not in caplog.text
    assert KEY not in "".join(repr(record.args) for record in caplog.records)


@pytest.mark.parametrize("key", [f"{KEY}\nx-other: 1", f"{KEY}\0", f"{KEY}…"])
@pytest.mark.parametrize("type", WIRES)
async def test_a_key_that_breaks_a_header_is_not_quoted(type: str, key: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with Scripted(Reply(body=b"{}")) as server:
        error = await failed(type, server.url, key=key)
        assert server.requests == []
    assert isinstance(error, AuthenticationError)
    assert KEY not in "".join(traceback.format_exception(error)) + caplog.text


@pytest.mark.parametrize("type", WIRES)
async def test_a_line_end_after_a_key_is_no_part_of_it(type: str) -> None:
    async with Scripted(Reply(status=401, body=b"{}")) as server:
        await failed(type, server.url, key=f" {KEY}\n")
        sent = [value for request in server.requests for value in request.headers.values() if KEY in value]
    assert sent
    assert all(value.removeprefix("Bearer ") == KEY for value in sent)


@pytest.mark.parametrize("type", [type for type in WIRES if type != "gemini"])
async def test_a_bomb_does_not_fill_memory(type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MAX_BODY", 2**20)
    packed = gzip.compress(bytes(2**24))
    async with Scripted(Reply(body=packed, headers={"content-encoding": "gzip"})) as server:
        error = await failed(type, server.url)
    assert isinstance(error, BackendProtocolError)
    assert "longer than" in error.message


@pytest.mark.parametrize("type", WIRES)
async def test_text_that_is_no_unicode_is_the_callers_fault(type: str) -> None:
    model, path = WIRES[type]
    async with Scripted(Reply(status=400, body=b"{}")) as server:
        catalog = new_catalog_provider(BackendSpec(type, server.url + path, KEY), CatalogOptions())
        with pytest.raises(InvalidRequestError):
            await (await catalog.provider_for(model).chat_client()).chat([Message("user", "a\ud800b")])
        await catalog.aclose()


@pytest.mark.parametrize("said", [-5, 10**30])
async def test_a_count_that_cannot_be_is_unknown(said: int) -> None:
    body: Any = b'{"message":{"content":"x"},"done":true,"done_reason":"stop","eval_count":%d}' % said
    async with Scripted(Reply(body=body)) as server:
        catalog = new_catalog_provider(BackendSpec("ollama", server.url, KEY), CatalogOptions())
        result = await (await catalog.provider_for("m").chat_client()).chat(ASK)
        await catalog.aclose()
    assert result.usage == Usage(source="reported")
