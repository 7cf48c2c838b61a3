"""Hazard: the SDK brings what the backend does not name; a listing does not end, or is read for more than it says."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from anthropic.types import ModelInfo as VendorModelInfo
from msgspec import structs

from modeld import (
    AuthenticationError,
    BackendProtocolError,
    BackendUnavailableError,
    DeadlineExceededError,
    FunctionCall,
    FunctionTool,
    InvalidRequestError,
    Message,
    NotSupportedError,
    QuotaError,
    RateLimitError,
    Tool,
    ToolCall,
)
from modeld.providers.anthropic import AnthropicWire, make_catalog
from modeld.providers.anthropic_facts import ModelInfo, observed
from modeld.repository import BackendSpec, CatalogOptions, RetryPolicy
from modeld.repository.provider import WireCatalog
from modeld.testing.anthropic import FakeAnthropic, model_info
from modeld.testing.anthropic_request import MODELS
from modeld.testing.server import Answer, Fault, Recorded, Reply

pytestmark = pytest.mark.anyio

ASK = [Message("user", "list /tmp")]
LIST = Tool(FunctionTool("fs.list", "list", {"type": "object", "properties": {"path": {"type": "string"}}}))
CALL = ToolCall("toolu_1", FunctionCall("fs.list", '{"path":"/tmp"}'))
ONCE = CatalogOptions(retry=RetryPolicy(attempts=1))


@asynccontextmanager
async def backend(server: FakeAnthropic, key: str = "test-key", path: str = "") -> AsyncIterator[WireCatalog]:
    async with server:
        catalog = make_catalog(BackendSpec("anthropic", server.url + path, key), ONCE)
        try:
            yield catalog
        finally:
            await catalog.aclose()


async def chat(catalog: WireCatalog, model: str = "claude-sonnet-4-6", **options: Any) -> Any:
    return await (await catalog.provider_for(model).chat_client()).chat(ASK, **options)


async def test_nothing_of_the_environment_reaches_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {
        "API_KEY": "leaked",
        "AUTH_TOKEN": "leaked",
        "BASE_URL": "http://leaked.invalid",
        "PROFILE": "leaked",
        "CUSTOM_HEADERS": "X-Team: leaked\nAuthorization: Bearer leaked\nx-api-key: leaked\nanthropic-beta: leaked",
    }
    for name, value in environment.items():
        monkeypatch.setenv(f"ANTHROPIC_{name}", value)
    async with backend(server := FakeAnthropic()) as catalog:
        await chat(catalog)
        await catalog.list_models()
    for request in server.requests:
        assert "leaked" not in str(request.headers)
        assert request.headers["authorization"] == "Bearer test-key"
        assert request.headers["anthropic-version"] == "2026-10-21"


async def test_a_server_without_a_key_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "leaked")
    async with backend(server := FakeAnthropic(), key="") as catalog:
        with pytest.raises(AuthenticationError):
            await chat(catalog)
    assert "authorization" not in server.requests[0].headers
    assert "leaked" not in str(server.requests[0].headers)


@pytest.mark.parametrize("key", ["", "  ", "kéy", "a\nb"])
async def test_a_key_that_cannot_be_one_is_not_sent(key: str) -> None:
    catalog = make_catalog(BackendSpec("anthropic", "", key), ONCE)
    with pytest.raises(AuthenticationError):
        await catalog.list_models()


@pytest.mark.parametrize("url", ["ftp://x", "api.anthropic.com", "http://"])
def test_a_base_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="base URL"):
        make_catalog(BackendSpec("anthropic", url, "k"), ONCE)


async def test_the_version_in_a_base_url_is_not_doubled() -> None:
    async with backend(server := FakeAnthropic(), path="/v1/") as catalog:
        await chat(catalog)
    assert server.requests[0].path == "/v1/messages"


async def test_only_sampling_asks_for_the_old_version() -> None:
    async with backend(server := FakeAnthropic()) as catalog:
        await chat(catalog, temperature=0.5)
        await chat(catalog, top_k=0)
        with pytest.raises(NotSupportedError):
            await chat(catalog, "claude-opus-5", temperature=0.5)
    assert [r.headers["anthropic-version"] for r in server.requests] == ["2023-06-01", "2026-10-21"]


async def test_a_prompt_with_a_temperature_reaches_a_model_that_takes_one() -> None:
    async with backend(server := FakeAnthropic()) as catalog:
        client = await catalog.provider_for("claude-haiku-4-5-20251001").prompt_client()
        assert await client.prompt("be terse", 0.25, "Is it?") == "ok"
    assert server.requests[0].json["temperature"] == 0.25


async def test_every_page_is_read_and_says_what_it_says() -> None:
    async with backend(server := FakeAnthropic(page=2)) as catalog:
        models = {model.name: model for model in await catalog.list_models()}
    assert list(models) == [model.id for model in MODELS]
    assert [r.query.get("after_id") for r in server.requests] == [None, "claude-sonnet-5-5", "claude-sonnet-4-6"]
    assert {r.query["limit"] for r in server.requests} == {"1000"}
    opus = models["claude-opus-5-5"]
    assert opus.context_length == 1_000_000
    assert opus.capabilities.max_output_tokens == 128_000
    assert opus.capabilities.can_think
    assert opus.capabilities.can_vision
    assert not opus.capabilities.can_embed
    assert opus.modified_at == datetime(2026, 2, 5, tzinfo=UTC)
    assert opus.meta["thinking_off"] == "never"
    assert set(opus.evidence.values()) == {"declared"}
    assert models["claude-sonnet-5-5"].meta["thinking_off"] == "between_tools"
    assert models["claude-haiku-4-5-20251001"].meta["thinking"] == "enabled"


async def test_listing_and_table_agree_on_every_model_of_the_fake() -> None:
    """The table stands in where nobody listed, so both have to lead to the same requests."""
    async with backend(FakeAnthropic()) as catalog:
        for model in await catalog.list_models():
            named = catalog.provider_for(model.name).capabilities
            assert named == structs.replace(model.capabilities), model.name
            for level in ("off", "minimal", "low", "medium", "high", "xhigh"):
                outcomes = []
                for subject in (model, model.name):
                    client = await catalog.provider_for(subject).chat_client()
                    try:
                        await client.chat(ASK, think=level)
                        outcomes.append("taken")
                    except NotSupportedError as error:
                        outcomes.append(str(error))
                assert outcomes[0] == outcomes[1], (model.name, level)


def test_the_fake_lists_what_the_vendors_types_take() -> None:
    for model in MODELS:
        info = model_info(model)
        dumped = VendorModelInfo.model_validate(info).model_dump(mode="json", exclude_unset=True)
        assert dumped == info


def test_what_a_listing_leaves_out_comes_from_the_table_or_is_unknown() -> None:
    known = observed(ModelInfo(id="claude-opus-4-8", created_at="1970-01-01T00:00:00Z"))
    assert known.modified_at is None
    assert known.capabilities.can_think
    assert known.evidence["can_think"] == "named"
    other = observed(ModelInfo(id="glm-9", created_at="soon", max_input_tokens=0, capabilities={"thinking": "yes"}))
    assert other.modified_at is None
    assert "context_length" not in other.evidence
    assert not other.capabilities.can_think
    assert not observed(ModelInfo(id="glm-9")).evidence


async def test_a_listing_that_goes_in_circles_ends() -> None:
    class Circle(FakeAnthropic):
        async def respond(self, request: Recorded) -> Reply:
            return Reply(body=b'{"data":[{"id":"a"}],"has_more":true,"last_id":"a"}')

    async with backend(server := Circle()) as catalog:
        with pytest.raises(BackendProtocolError, match="does not end"):
            await catalog.list_models()
    assert len(server.requests) == 2


@pytest.mark.parametrize("body", [b'{"data":[],"has_more":true,"last_id":null}', b'{"data":[{"id":"a"}]}'])
async def test_a_page_without_a_cursor_is_the_last(body: bytes) -> None:
    class Short(FakeAnthropic):
        async def respond(self, request: Recorded) -> Reply:
            return Reply(body=body)

    async with backend(server := Short()) as catalog:
        await catalog.list_models()
    assert len(server.requests) == 1


@pytest.mark.parametrize("streamed", [True, False])
async def test_a_turn_with_thinking_and_calls_is_taken_back(streamed: bool) -> None:
    async with backend(server := FakeAnthropic()) as catalog:
        client = await catalog.provider_for("claude-opus-5").chat_client()
        server.script(Answer(text="See.", thinking="hm", tool_calls=(CALL,), finish_reason="tool_calls"), Answer())
        options: dict[str, Any] = {"tools": [LIST], "think": "high"}
        stream = await client.stream(ASK, **options) if streamed else None
        first = await stream.join() if stream else await client.chat(ASK, **options)
        result = Message("tool", "[]", tool_call_id=first.tool_calls[0].id)
        await client.chat([*ASK, first.message, result], **options)
        sent = server.requests[-1].json["messages"][1]["content"]
        assert sent[0] == {"type": "thinking", "thinking": "hm", "signature": "sig-1"}
        assert [block["type"] for block in sent] == ["thinking", "text", "tool_use"]
        with pytest.raises(InvalidRequestError, match="signature"):
            await client.chat([*ASK, structs.replace(first.message, provider_meta=None), result], **options)


async def test_a_connection_is_used_again_after_a_stream() -> None:
    ports = set()

    class Counting(FakeAnthropic):
        async def _connected(self, reader: Any, writer: Any) -> None:
            ports.add(writer.get_extra_info("peername")[1])
            await super()._connected(reader, writer)

    async with backend(Counting()) as catalog:
        client = await catalog.provider_for("claude-sonnet-4-6").stream_client()
        for _ in range(5):
            await (await client.stream(ASK)).join()
    assert len(ports) == 1


async def test_a_status_keeps_the_vendors_code_and_request() -> None:
    async with backend(server := FakeAnthropic()) as catalog:
        server.script(
            Fault(
                kind="status", status=529, code="overloaded_error", headers={"request-id": "req_7", "retry-after": "3"}
            )
        )
        with pytest.raises(BackendUnavailableError) as caught:
            await chat(catalog)
    details = caught.value.details
    assert (details["status"], details["vendor_code"], details["request_id"]) == (529, "overloaded_error", "req_7")
    assert details["retry_after"] == 3


async def test_a_spent_account_is_told_from_a_rate_limit() -> None:
    class Spent(FakeAnthropic):
        def error_body(self, status: int, code: str, message: str) -> bytes:
            return (
                super().error_body(status, code, message).replace(b'"message"', b'"details":' + details + b',"message"')
            )

    for cause, error in (("enforced_spend_limit_reached", QuotaError), ("ramp_limit_exceeded", RateLimitError)):
        details = f'{{"error_code":"{cause}"}}'.encode()
        async with backend(server := Spent()) as catalog:
            server.script(Fault(kind="status", status=429))
            with pytest.raises(error):
                await chat(catalog)


async def test_a_body_that_is_no_error_of_the_vendor_is_typed_by_its_status() -> None:
    class Proxy(FakeAnthropic):
        def error_body(self, status: int, code: str, message: str) -> bytes:
            return b"<html>Bad gateway</html>"

    async with backend(server := Proxy()) as catalog:
        server.script(Fault(kind="status", status=502))
        with pytest.raises(BackendUnavailableError, match="Bad gateway"):
            await chat(catalog)


async def test_a_server_that_is_not_there_is_unavailable() -> None:
    async with FakeAnthropic() as server:
        url = server.url
    catalog = make_catalog(BackendSpec("anthropic", url, "secret-key"), ONCE)
    with pytest.raises(BackendUnavailableError, match=url) as caught:
        await chat(catalog)
    assert "secret-key" not in str(caught.value)
    await catalog.aclose()


def test_a_timeout_of_the_library_is_a_deadline() -> None:
    import httpx2

    wire = AnthropicWire(BackendSpec("anthropic", "", "k"), ONCE)
    assert isinstance(wire.error(httpx2.ReadTimeout("slow"), "m"), DeadlineExceededError)


async def test_a_schema_that_is_no_json_is_not_sent() -> None:
    async with backend(server := FakeAnthropic()) as catalog:
        with pytest.raises(InvalidRequestError, match="no JSON"):
            await chat(catalog, tools=[Tool(FunctionTool("x", parameters={"default": object()}))])
    assert server.requests == []


async def test_embeddings_are_refused_with_the_page_that_names_others() -> None:
    wire = AnthropicWire(BackendSpec("anthropic", "", "k"), ONCE)
    with pytest.raises(NotSupportedError, match=r"https://platform\.claude\.com/.*embeddings"):
        await wire.embed(wire.model("claude-opus-5"), ["x"], None)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"temperature": 1.0}, "Extra inputs"),
        ({"colour": "red"}, "colour"),
        ({"max_tokens": 10**6}, "max_tokens"),
        ({"tools": [{"name": "a", "input_schema": {}}]}, "input_schema"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "max_tokens"),
        ({"thinking": {"type": "between_tools"}}, "between_tools"),
        ({"output_config": {"effort": "xhigh"}}, "effort"),
        ({"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}}, "additionalProperties"),
        ({"messages": [{"role": "user", "content": ""}]}, "length"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}, "prefill"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a"}]}]}, "tool_result"),
    ],
)
async def test_the_fake_refuses_what_the_vendor_refuses(change: dict[str, Any], said: str) -> None:
    import httpx2

    body = {"model": "claude-sonnet-4-6", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}], **change}
    headers = {"authorization": "Bearer test-key", "anthropic-version": "2026-10-21"}
    async with FakeAnthropic() as server, httpx2.AsyncClient(headers=headers) as client:
        answer = await client.post(f"{server.url}/v1/messages", json=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert said in answer.json()["error"]["message"]
