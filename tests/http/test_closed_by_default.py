"""Hazard: somebody who may not, or who must not be believed, is answered. Each line of the table is a test."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from modeld.http import bodies, guard, protocol

from .conftest import Site

pytestmark = pytest.mark.anyio

CHAT = {"model": "fake", "messages": [{"role": "user", "content": "hello"}]}


LAST = "connection: close\r\n"
"""Else the server waits for the next request, and who reads until it closes for as long."""


def head(
    site: Site, path: str = "/v1/models", method: str = "GET", *, host: str = "", token: str = "", more: str = ""
) -> bytes:
    """A request by hand."""
    host = host or f"127.0.0.1:{site.port}"
    return (
        f"{method} {path} HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token or site.token}\r\n{more}\r\n"
    ).encode()


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def refusal(answer: httpx2.Response) -> tuple[int, str]:
    """Status and code, in OpenAI's shape."""
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert error["message"]
    assert answer.headers["x-request-id"]
    return answer.status_code, error["code"]


PATHS = ("/v1/models", "/v1/models/fake", "/no/such/route", "/metrics")


@pytest.mark.parametrize("path", PATHS)
async def test_no_token(site: Site, path: str) -> None:
    async with httpx2.AsyncClient(base_url=site.url) as stranger:
        assert refusal(await stranger.get(path)) == (401, "invalid_api_key")
        assert refusal(await stranger.post(path, json=CHAT)) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer 0123456789abcdef0123"},
        {"authorization": "Basic dXNlcjpwYXNz"},
        {"authorization": "Bearer"},
        {"x-api-key": "0123456789abcdef0123"},
        {"x-api-key": "\xfc\xdf" * 20},
    ],
)
async def test_a_wrong_token(site: Site, headers: dict[str, str]) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers.items()]
    async with httpx2.AsyncClient(base_url=site.url) as stranger:
        assert refusal(await stranger.get("/v1/models", headers=raw)) == (401, "invalid_api_key")


async def test_a_right_token_beside_a_wrong_one_is_refused(site: Site) -> None:
    async with httpx2.AsyncClient(base_url=site.url, headers=site.headers) as client:
        assert (await client.get("/v1/models", headers={"x-api-key": "wrong" * 8})).status_code == 401
        assert (await client.get("/v1/models", headers={"x-api-key": site.token})).status_code == 200


@pytest.mark.parametrize("name", ["token", "access_token", "api_key", "key", "TOKEN"])
async def test_a_token_in_the_address(site: Site, web: httpx2.AsyncClient, name: str) -> None:
    assert refusal(await web.get("/v1/models", params={name: site.token})) == (400, "token_in_url")


@pytest.mark.parametrize("query", ["&" * 200, "a=b&" * 200])
async def test_an_address_with_many_fields_is_no_failure_of_the_node(
    site: Site, query: str, logged: Callable[[], str]
) -> None:
    async with httpx2.AsyncClient(base_url=site.url) as stranger:
        assert refusal(await stranger.get(f"/health?{query}")) == (400, "invalid_value")
    assert "Traceback" not in logged()
    assert "failed inside the node" not in logged()


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:{port}",
        "localhost.evil:{port}",
        "127.0.0.2:{port}",
        "localhost:",
        "localhost:1:1",
        "[::1",
        "::1",
    ],
)
async def test_a_foreign_host(site: Site, host: str) -> None:
    for path in ("/v1/models", "/health"):
        answer = await site.raw(head(site, path, host=host.format(port=site.port), more=LAST))
        assert status(answer) == 403
        assert b"forbidden_host" in answer


async def test_two_hosts_and_none(site: Site) -> None:
    own = f"host: 127.0.0.1:{site.port}\r\n"
    assert status(await site.raw(head(site, more=own))) in (400, 403)
    assert status(await site.raw(b"GET /health HTTP/1.0\r\n\r\n")) == 403
    assert status(await site.raw(b"GET /health HTTP/1.1\r\n\r\n")) == 400


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST", "[::1]", "127.0.0.1"])
async def test_names_of_loopback_are_ours_with_a_forwarded_port_too(site: Site, host: str) -> None:
    for own in (f"{host}:{site.port}", f"{host}:8000", host):
        assert status(await site.raw(head(site, "/health", host=own, more=LAST))) == 200
        asked = head(site, "/health", host=own, more=f"{LAST}origin: http://{own}\r\n")
        assert status(await site.raw(asked)) == 200
        asked = head(site, "/health", host=own, more=f"{LAST}origin: http://{host}:9999\r\n")
        assert status(await site.raw(asked)) == 403


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1", "http://localhost:1", "data:"])
async def test_a_foreign_origin(web: httpx2.AsyncClient, origin: str) -> None:
    for answer in (
        await web.post("/v1/chat/completions", json=CHAT, headers={"origin": origin}),
        await web.get("/health", headers={"origin": origin}),
    ):
        assert refusal(answer) == (403, "forbidden_origin")
        assert not [name for name in answer.headers if name.startswith("access-control")]


async def test_our_own_origin_and_none(site: Site, web: httpx2.AsyncClient) -> None:
    assert (await web.get("/v1/models", headers={"origin": site.url})).status_code == 200
    assert (await web.get("/v1/models")).status_code == 200


async def test_a_preflight(site: Site) -> None:
    async with httpx2.AsyncClient(base_url=site.url) as browser:
        asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
        assert refusal(await browser.options("/v1/chat/completions", headers=asked)) == (403, "forbidden_origin")
        assert refusal(await browser.options("/v1/chat/completions")) == (403, "forbidden_origin")
        for headers in (asked, {"origin": "https://evil.example"}):
            refused = await browser.request("OPTIONS" if len(headers) > 1 else "GET", "/v1/models", headers=headers)
            assert "--http-origin" in refused.json()["error"]["message"]


async def test_a_configured_origin_may_call_and_nobody_else(open_site: Callable[..., Any]) -> None:
    site = await open_site(origins=("https://chat.example",))
    async with httpx2.AsyncClient(base_url=site.url) as browser:
        ours, foreign = {"origin": "https://chat.example"}, {"origin": "https://evil.example"}
        asked = await browser.options("/v1/chat/completions", headers=ours)
        assert asked.status_code == 204
        assert asked.headers["access-control-allow-origin"] == "https://chat.example"
        assert (await browser.options("/v1/chat/completions", headers=foreign)).status_code == 403
        answer = await browser.get("/v1/models", headers=ours | site.headers)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://chat.example")
        refused = await browser.get("/v1/models", headers=ours)
        # The page must be able to read why.
        assert (refused.status_code, refused.headers.get("access-control-allow-origin")) == (
            401,
            "https://chat.example",
        )


@pytest.mark.parametrize(
    "model",
    ["../../../etc/passwd", "/etc/passwd", "..%2f..%2fetc", "fake\0", "a" * 10_000, "", "models/x.gguf", "nobody:m"],
)
async def test_path_tricks_in_model_names(web: httpx2.AsyncClient, model: str) -> None:
    refused = await web.post("/v1/chat/completions", json=CHAT | {"model": model})
    assert refusal(refused) == (404, "model_not_found")
    assert refused.json()["error"]["param"] == "model"
    assert "root:" not in refused.text


async def test_path_tricks_in_addresses(site: Site) -> None:
    for path in (
        "/v1/models/../../../etc/passwd",
        "/v1/models/%2e%2e%2fetc%2fpasswd",
        "//v1/models",
        "/v1//models",
        "/v1/models/",
    ):
        answer = await site.raw(head(site, path, more=LAST))
        assert status(answer) == 404, path


async def test_a_body_of_100_mb_is_not_read(site: Site) -> None:
    more = f"content-type: application/json\r\ncontent-length: {100 * 10**6}\r\n"
    answer = await site.raw(head(site, "/v1/chat/completions", "POST", more=more))
    assert status(answer) == 413
    assert b"request_too_large" in answer


async def test_a_chunked_body_that_never_ends(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "MAX_BODY", 100_000)
    more = "content-type: application/json\r\ntransfer-encoding: chunked\r\n"
    piece = b"10000\r\n" + b" " * 0x10000 + b"\r\n"
    answer = await site.raw(head(site, "/v1/chat/completions", "POST", more=more) + piece * 3)
    assert status(answer) == 413


async def test_json_of_depth_1_000_000(web: httpx2.AsyncClient) -> None:
    headers = {"content-type": "application/json"}
    deep = b"[" * 1_000_000
    for body in (deep, deep + b"]" * 1_000_000, b'{"model":"fake","messages":[],"tools":' + deep):
        answer = await web.post("/v1/chat/completions", content=body, headers=headers)
        assert answer.status_code == 400


async def test_a_schema_that_is_nested_too_deeply(web: httpx2.AsyncClient) -> None:
    schema: dict[str, Any] = {}
    for _ in range(200):
        schema = {"properties": schema}
    function = {"name": "f", "parameters": schema}
    answer = await web.post("/v1/chat/completions", json=CHAT | {"tools": [{"type": "function", "function": function}]})
    assert refusal(answer) == (400, "invalid_json")
    assert answer.json()["error"]["param"] == "tools[0].function.parameters"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"nul", b"\xff\xfe", b'{"model": "\\ud800"}', b"[]", b"3", b'{"model": NaN}']
)
async def test_a_body_that_is_none(web: httpx2.AsyncClient, body: bytes) -> None:
    answer = await web.post("/v1/chat/completions", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_types_that_browsers_send_without_asking(web: httpx2.AsyncClient, kind: str) -> None:
    answer = await web.post("/v1/chat/completions", content=json.dumps(CHAT), headers={"content-type": kind})
    assert refusal(answer) == (415, "unsupported_media_type")


async def test_a_header_flood(site: Site) -> None:
    assert status(await site.raw(head(site, more="x: y\r\n" * 200))) == 431
    assert status(await site.raw(head(site, more=f"x: {'y' * 40_000}\r\n"))) == 431
    endless = b"GET / HTTP/1.1\r\n" + b"x: yyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n" * 20_000
    answer = await site.raw(endless)
    assert not answer or status(answer) == 431, "closed, and where it can still be told, told why"


async def test_slowloris(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    try:
        answer = asyncio.ensure_future(reader.readline())
        for letter in b"GET / HTTP/1.1\r\nhost: ":
            if not answer.done():
                writer.write(bytes([letter]))
                await asyncio.sleep(0.02)
        assert status(await asyncio.wait_for(answer, 2)) == 408
    finally:
        writer.close()


async def test_a_connection_that_says_nothing(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    try:
        async with asyncio.timeout(2):
            assert status(await reader.read()) == 408
    finally:
        writer.close()


async def test_a_second_request_that_is_slow(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    try:
        writer.write(head(site, "/health") + b"GET /he")
        await reader.readuntil(b'{"status":"ok"}')
        writer.write(b"alth")
        async with asyncio.timeout(2):
            assert status(await reader.read()) == 408
    finally:
        writer.close()


async def test_a_slow_body(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "BODY_SECONDS", 0.2)
    more = "content-type: application/json\r\ncontent-length: 50\r\n"
    answer = await site.raw(head(site, "/v1/chat/completions", "POST", more=more) + b"{")
    assert status(answer) == 408


SMUGGLED = b"GET /v1/models HTTP/1.1\r\nhost: evil\r\n\r\n"


@pytest.mark.parametrize(
    "more",
    [
        "content-length: 5\r\ncontent-length: 6\r\n",
        "content-length: 5, 6\r\n",
        "content-length: +5\r\n",
        "content-length: -1\r\n",
        "content-length: 5\r\ntransfer-encoding: chunked\r\n",
        "transfer-encoding: chunked, identity\r\n",
        "transfer-encoding: xchunked\r\n",
        "transfer-encoding : chunked\r\n",
        "transfer-encoding:\x0bchunked\r\n",
        "x: y\r\n transfer-encoding: chunked\r\n\x00: z\r\n",
        "content-length: 5\rtransfer-encoding: chunked\r\n",
    ],
)
async def test_smuggling(site: Site, more: str) -> None:
    """No second request is seen in what may be the body of the first."""
    kind = "content-type: application/json\r\n"
    answer = await site.raw(head(site, "/v1/chat/completions", "POST", more=kind + more) + b"0\r\n\r\n" + SMUGGLED)
    assert status(answer) in (400, 501)
    assert answer.count(b"HTTP/1.1 ") == 1, answer


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x00" * 100,
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / \xff HTTP/1.1\r\n\r\n",
        b"\r\n\r\n\r\n\r\nGET",
        b"POST /v1/models HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nZZZ\r\n",
    ],
)
async def test_bytes_that_are_no_request(site: Site, data: bytes) -> None:
    answer = await site.raw(data, end=True)
    assert not answer or 400 <= status(answer) < 502
    assert status(await site.raw(head(site, "/health", more=LAST))) == 200


async def test_garbage_behind_a_body_ends_the_connection_only(site: Site) -> None:
    body = json.dumps(CHAT).encode()
    more = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
    answer = await site.raw(
        head(site, "/v1/chat/completions", "POST", more=more) + body + b"\x00garbage\r\n\r\n", seconds=5
    )
    assert status(answer) == 200
    await site.until_idle()


async def test_an_upgrade_is_none(site: Site) -> None:
    more = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\nsec-websocket-version: 13\r\n"
    assert status(await site.raw(head(site, "/health", more=more))) == 200


async def test_the_token_is_in_no_log_and_no_answer(site: Site, logged: Callable[[], str]) -> None:
    loggers = [logging.getLogger(name) for name in ("", "modeld", "uvicorn.error", "uvicorn.access")]
    assert all(logger.isEnabledFor(logging.DEBUG) for logger in loggers[:2])
    async with httpx2.AsyncClient(base_url=site.url, headers=site.headers) as client:
        answers = [
            await client.post("/v1/chat/completions", json=CHAT),
            await client.get("/v1/models", headers={"x-request-id": site.token}),
            await client.get("/v1/models", params={"token": site.token}),
            await client.get(f"/v1/models/{site.token}-"),
            await client.get(f"/{site.token}"),
            await client.get("/v1/models", headers={"host": site.token}),
            await client.get("/v1/models", headers={"origin": site.token}),
            await client.post("/v1/chat/completions", json=CHAT | {site.token: 1}),
        ]
    assert site.token not in logged()
    assert all(site.token not in str(answer.headers) for answer in answers)
    assert "request" in logged()


async def test_the_log_says_why_a_request_was_refused(
    site: Site, web: httpx2.AsyncClient, logged: Callable[[], str]
) -> None:
    body = {"model": "fake", "messages": [{"role": "user", "content": "x"}]}
    for field in ("logit_bias", "with blanks in it", site.token):
        assert (await web.post("/v1/chat/completions", json=body | {field: 1})).status_code == 400
    await web.get("/nothing/of-this", headers={"authorization": "Bearer other"})
    assert "POST /v1/chat/completions 400 unsupported_parameter (logit_bias) in" in logged()
    assert "POST /v1/chat/completions 400 unknown_parameter in" in logged()
    assert "GET (no route) 401 token_wrong in" in logged()
    for secret in ("with blanks", site.token, "of-this"):
        assert secret not in logged()


@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("/chat/completions", "/v1/chat/completions: end the client's base URL with /v1"),
        ("/v1/v1/messages", "/v1/messages: leave /v1 off the client's base URL"),
        ("/v1/chat/completion", "GET /openapi.json lists all"),
        ("/v1/v1/nothing", "GET /openapi.json lists all"),
    ],
)
async def test_a_base_url_that_is_off_by_v1_is_told(web: httpx2.AsyncClient, asked: str, meant: str) -> None:
    refused = await web.post(asked, json={})
    assert refused.status_code == 404
    assert refused.json()["error"]["message"].endswith(meant)


async def test_a_request_id_goes_through(web: httpx2.AsyncClient, logged: Callable[[], str]) -> None:
    answer = await web.get("/v1/models/nobody", headers={"x-request-id": "trace-42.a_b"})
    assert answer.headers["x-request-id"] == "trace-42.a_b"
    assert "trace-42.a_b" in logged()
    forged = await web.get("/v1/models", headers={"x-request-id": "a b\t{}"})
    assert forged.headers["x-request-id"] != "a b\t{}"


async def test_other_methods(web: httpx2.AsyncClient) -> None:
    for method, path in (("GET", "/v1/chat/completions"), ("DELETE", "/v1/models"), ("BREW", "/health")):
        assert refusal(await web.request(method, path)) == (405, "method_not_allowed")
    assert refusal(await web.get("/v1/nothing")) == (404, "not_found")


async def test_health_tells_strangers_nothing(site: Site) -> None:
    async with httpx2.AsyncClient(base_url=site.url) as stranger:
        answer = await stranger.get("/health")
        assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
        assert "server" not in answer.headers


async def test_more_requests_than_are_answered_at_a_time(
    site: Site, web: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "MAX_REQUESTS", 1)
    body = CHAT | {"model": "fake:delay=0.005", "messages": [{"role": "user", "content": "!count 900"}]}
    slow = asyncio.ensure_future(web.post("/v1/chat/completions", json=body))
    async with asyncio.timeout(5):
        while not (await site.node.status()).active:
            await asyncio.sleep(0.005)
    answer = await web.get("/v1/models")
    assert refusal(answer) == (429, "rate_limit_exceeded")
    assert answer.headers["retry-after"] == "1"
    slow.cancel()
    await asyncio.gather(slow, return_exceptions=True)
    await site.until_idle()
    assert (await web.get("/v1/models")).status_code == 200


async def test_more_connections_than_are_held(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_CONNECTIONS", 3)
    opened = [await asyncio.open_connection("127.0.0.1", site.port) for _ in range(6)]
    try:
        await asyncio.sleep(0.1)
        closed = [reader for reader, _ in opened if reader.at_eof() or reader.exception() is not None]
        assert len(closed) >= 3
    finally:
        for _, writer in opened:
            writer.close()
    await asyncio.sleep(0.05)
    assert status(await site.raw(head(site, "/health", more=LAST))) == 200


LONG = "\x7f" * (1 << 20)


@pytest.mark.parametrize(
    "odd",
    [
        {"stop": LONG},
        {"stop": [LONG[:1000]] * 1000},
        {"tools": [{"type": "function", "function": {"name": "f", "description": LONG}}] * 2},
        {"think": LONG},
        {"tool_choice": {"type": "function", "function": {"name": LONG}}},
        {"tool_choice": {"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [
            {"type": "function", "function": {"name": LONG}}]}}},
        {"reasoning_effort": LONG},
        {LONG: 1},
        {"messages": [{"role": LONG, "content": "x"}]},
        {"prompt_cache_key": "\u00e9" * 100, "max_tokens": 10**30},
    ],
)  # fmt: skip
async def test_what_is_refused_does_not_come_back_whole(web: httpx2.AsyncClient, odd: dict[str, Any]) -> None:
    answer = await web.post("/v1/chat/completions", json=CHAT | odd)
    assert answer.status_code == 400
    assert len(answer.content) < 10_000
    assert answer.json()["error"]["param"], "the field is named"
