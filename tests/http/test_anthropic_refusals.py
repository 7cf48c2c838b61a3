"""Hazard: on Anthropic's routes somebody is answered who may not be, or refused in a shape that clients cannot read."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.types.shared import ErrorResponse

from modeld.http import bodies, guard
from modeld.http.errors import Failure, error_body

from .conftest import Opened, Site

pytestmark = pytest.mark.anyio

ASKED: dict[str, Any] = {"model": "fake", "max_tokens": 50, "messages": [{"role": "user", "content": "hello"}]}
ROUTES = ("/v1/messages", "/v1/messages/count_tokens")


def refusal(answer: httpx2.Response) -> tuple[int, str]:
    """Status and type, in Anthropic's shape."""
    body = answer.json()
    assert body.keys() == {"type", "error", "request_id"}
    assert body["type"] == "error"
    assert body["error"].keys() == {"type", "message"}
    assert body["error"]["message"]
    assert body["request_id"] == answer.headers["x-request-id"] == answer.headers["request-id"]
    if answer.status_code != 413:  # which the documentation has and the types have not
        ErrorResponse.model_validate(body, strict=True)
    return answer.status_code, body["error"]["type"]


@pytest.mark.parametrize("path", [*ROUTES, "/v1/messages/batches", "/v1/models"])
async def test_strangers(site: Site, path: str) -> None:
    version = {"anthropic-version": "2023-06-01"}
    async with httpx2.AsyncClient(base_url=site.url, headers=version) as stranger:
        assert refusal(await stranger.post(path, json=ASKED)) == (401, "authentication_error")
        for headers in ({"x-api-key": "0123456789abcdef0123"}, {"authorization": "Bearer nobody"}):
            assert refusal(await stranger.post(path, json=ASKED, headers=headers)) == (401, "authentication_error")
        own = {"x-api-key": site.token}
        assert refusal(await stranger.post(path, headers=own | {"host": "evil.example"})) == (403, "permission_error")
        foreign = own | {"origin": "https://evil.example"}
        assert refusal(await stranger.post(path, headers=foreign)) == (403, "permission_error")
        in_address = await stranger.post(path, params={"api_key": site.token}, headers=own)
        assert refusal(in_address) == (400, "invalid_request_error")


async def test_both_ways_to_send_the_token(site: Site) -> None:
    for options in ({"api_key": site.token}, {"api_key": None, "auth_token": site.token}):
        async with anthropic.AsyncAnthropic(base_url=site.url, max_retries=0, **options) as client:
            assert (await client.messages.create(**ASKED)).stop_reason == "end_turn"


async def test_routes_and_methods_that_are_not_there(web: httpx2.AsyncClient) -> None:
    assert refusal(await web.get("/v1/messages")) == (405, "invalid_request_error")
    assert refusal(await web.post("/v1/messages/batches", json={})) == (404, "not_found_error")


@pytest.mark.parametrize("path", ROUTES)
async def test_bodies(site: Site, web: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    kind = {"content-type": "application/json"}
    deep = b"[" * 1_000_000
    for body in (b"", b"{", b"\xff", b"[]", b'{"model": NaN}', deep, b'{"model":"fake","messages":' + deep):
        answer = await web.post(path, content=body, headers=kind)
        assert refusal(answer) == (400, "invalid_request_error")
    assert refusal(await web.post(path, content=b"{}", headers={"content-type": "text/plain"}))[0] == 415
    monkeypatch.setattr(bodies, "MAX_BODY", 1000)
    assert refusal(await web.post(path, content=b" " * 1001, headers=kind)) == (413, "request_too_large")


async def test_things_that_are_nested_too_deeply(web: httpx2.AsyncClient) -> None:
    schema: dict[str, Any] = {}
    for _ in range(200):
        schema = {"properties": schema}
    call = {"type": "tool_use", "id": "a", "name": "f", "input": schema}
    for change in (
        {"tools": [{"name": "f", "input_schema": schema}]},
        {"output_config": {"format": {"type": "json_schema", "schema": schema}}},
        {"messages": [{"role": "assistant", "content": [call]}, *ASKED["messages"]]},
    ):
        answer = await web.post("/v1/messages", json=ASKED | change)
        assert refusal(answer) == (400, "invalid_request_error")
        assert "nested" in answer.json()["error"]["message"]


def block(content: Any, role: str = "user") -> dict[str, Any]:
    return {"messages": [{"role": role, "content": [content]}, {"role": "user", "content": "on"}]}


IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AA=="}}
LINK = {"type": "image", "source": {"type": "url", "url": "http://127.0.0.1/"}}
TOOL = {"name": "f", "input_schema": {"type": "object"}}
CARRIED = "modeld.carried."
REFUSED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"no_such_field": 1}, "no_such_field"),
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": 1000}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -1}, "top_k"),
    ({"stop_sequences": [""]}, "stop_sequences"),
    ({"container": "c"}, "container"),
    ({"diagnostics": {"previous_message_id": None}}, "diagnostics"),
    ({"inference_geo": "us"}, "inference_geo"),
    ({"mcp_servers": []}, "mcp_servers"),
    ({"user_profile_id": "u"}, "user_profile_id"),
    ({"workspace_id": "w"}, "workspace_id"),
    ({"speed": "fast"}, "speed"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"metadata": {"other": "x"}}, "metadata.other"),
    ({"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}}, "context_management.edits[0].type"),
    ({"cache_control": {"type": "for ever"}}, "cache_control"),
    ({"thinking": {"type": "enabled", "budget_tokens": 1000}, "max_tokens": 5000}, "thinking.budget_tokens"),
    ({"thinking": {"type": "enabled", "budget_tokens": 5000}, "max_tokens": 5000}, "thinking.budget_tokens"),
    ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
    ({"output_config": {"effort": "enormous"}}, "output_config.effort"),
    ({"output_config": {"task_budget": {}}}, "output_config.task_budget"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search", "max_uses": 5}]}, "tools[0].type"),
    ({"tools": [TOOL, {"type": "bash_20250124", "name": "bash"}]}, "tools[1].type"),
    ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
    ({"tools": [TOOL | {"input_examples": [{}]}]}, "tools[0].input_examples"),
    ({"tools": [TOOL | {"defer_loading": True}]}, "tools[0].defer_loading"),
    ({"tools": [TOOL | {"allowed_callers": ["code_execution_20250825"]}]}, "tools[0].allowed_callers[0]"),
    ({"tools": [TOOL, TOOL]}, "tools"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"tool_choice": {"type": "tool", "name": "g"}, "tools": [TOOL]}, "tool_choice"),
    ({"messages": []}, "messages"),
    ({"messages": [*ASKED["messages"], {"role": "assistant", "content": "The"}]}, "messages"),
    ({"messages": [{"role": "robot", "content": ""}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    (block({"type": "document", "source": {}}), "messages[0].content[0].type"),
    (block({"type": "tool_use", "id": "a", "name": "f", "input": {}}), "messages[0].content[0].type"),
    (block(IMAGE), "messages[0].content[0]"),
    (block(LINK), "messages[0].content[0].source"),
    (block({"type": "tool_result", "tool_use_id": "a", "content": [IMAGE]}), "messages[0].content[0].content"),
    (block({"type": "text", "text": "x", "citations": [{}]}), "messages[0].content[0].citations"),
    (block({"type": "tool_use", "id": "a", "name": "f", "input": "{}"}, "assistant"), "messages[0].content[0].input"),
    (block({"type": "thinking", "thinking": "x"}, "assistant"), "messages[0].content[0].signature"),
    (block({"type": "thinking", "thinking": "", "signature": f"{CARRIED}!"}, "assistant"), "content[0].signature"),
    (block({"type": "redacted_thinking", "data": f"{CARRIED}W10="}, "assistant"), "messages[0].content[0].data"),
)  # fmt: skip


@pytest.mark.parametrize(("change", "field"), REFUSED)
async def test_what_is_not_supported_is_named(
    claude: anthropic.AsyncAnthropic, change: dict[str, Any], field: str
) -> None:
    with pytest.raises(anthropic.BadRequestError) as refused:
        await claude.post("/v1/messages", body=ASKED | change, cast_to=object)
    assert refused.value.type == "invalid_request_error"
    assert field in (refused.value.api_message or "")
    assert refused.value.request_id


async def test_errors_have_the_classes_of_the_sdk(claude: anthropic.AsyncAnthropic, site: Site) -> None:
    with pytest.raises(anthropic.NotFoundError) as missing:
        await claude.messages.create(**ASKED | {"model": "nobody"})
    assert missing.value.type == "not_found_error"
    long = {"messages": [{"role": "user", "content": "x" * 5000}]}
    for stream in (False, True):
        with pytest.raises(anthropic.BadRequestError, match=r"prompt is too long: 50\d\d tokens > 4096 maximum"):
            await claude.messages.create(**ASKED | long, stream=stream)
    with pytest.raises(anthropic.BadRequestError, match="thinking"):
        await claude.messages.count_tokens(
            model="fake", messages=ASKED["messages"], thinking={"type": "enabled", "budget_tokens": 5}
        )
    async with anthropic.AsyncAnthropic(base_url=site.url, api_key="x" * 20, max_retries=0) as stranger:
        with pytest.raises(anthropic.AuthenticationError):
            await stranger.models.list()


@pytest.mark.parametrize("model", ["../../../etc/passwd", "fake\0", "", "nobody:m"])
async def test_path_tricks_in_model_names(web: httpx2.AsyncClient, model: str) -> None:
    for path in ROUTES:
        asked = {name: value for name, value in ASKED.items() if name != "max_tokens" or path == ROUTES[0]}
        answer = await web.post(path, json=asked | {"model": model})
        assert refusal(answer) == (404, "not_found_error")
        assert "root:" not in answer.text


async def test_more_requests_than_are_answered_at_a_time(
    web: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "MAX_REQUESTS", 0)
    answer = await web.post("/v1/messages", json=ASKED)
    assert refusal(answer) == (429, "rate_limit_error")
    assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "limit=x", "after_id=nobody", "before_id=nobody"])
async def test_pages_that_are_none(web: httpx2.AsyncClient, query: str) -> None:
    answer = await web.get(f"/v1/models?{query}", headers={"anthropic-version": "2023-06-01"})
    assert refusal(answer) == (400, "invalid_request_error")
    assert query.partition("=")[0] in answer.json()["error"]["message"]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 408, 409, 415, 422, 429, 431, 500, 501, 502, 503, 504])
def test_every_status_has_a_type_that_the_client_knows(status: int) -> None:
    body = json.loads(error_body("anthropic", Failure(status, "x", "y"), "id"))
    ErrorResponse.model_validate(body, strict=True)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("phase", "content"), [("prefill", "x" * 3000), ("decode", "!count 3000")])
async def test_who_leaves_cancels(site: Site, phase: str, content: str, stream: bool) -> None:
    async with site.claude() as claude:
        asked = ASKED | {"model": "fake:delay=0.002", "max_tokens": 5000, "stream": stream}
        asked["messages"] = [{"role": "user", "content": content}]

        async def ask() -> None:
            answer: Any = await claude.messages.create(**asked)
            async for _ in answer:
                pass

        asking = asyncio.ensure_future(ask())
        async with asyncio.timeout(5):
            while not (await site.node.status()).active:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.3)
        assert (await site.node.status()).active == 1, "it was over before"
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await site.until_idle(2)


async def test_pages_of_a_configured_origin_may_send_the_clients_headers(open_site: Opened) -> None:
    site = await open_site(origins=("https://chat.example",))
    async with httpx2.AsyncClient(base_url=site.url) as browser:
        asked = await browser.options("/v1/messages", headers={"origin": "https://chat.example"})
    allowed = asked.headers["access-control-allow-headers"]
    assert {"x-api-key", "anthropic-version", "anthropic-beta"} <= set(allowed.split(", "))
