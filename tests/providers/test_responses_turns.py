"""Hazard: over HTTP a thinking model loses its thoughts between turns, or a failed answer passes for an empty one."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from modeld import (
    BackendUnavailableError,
    FunctionCall,
    FunctionTool,
    Message,
    NotSupportedError,
    RefusedError,
    Tool,
    ToolCall,
)
from modeld.repository import BackendSpec, CatalogOptions, RetryPolicy, new_catalog_provider
from modeld.repository.client import WireClient
from modeld.repository.provider import WireCatalog
from modeld.testing.openai import FakeOpenAI
from modeld.testing.responses_requests import sealed
from modeld.testing.server import Answer

pytestmark = pytest.mark.anyio

CLOCK = Tool(FunctionTool("clock"))
CALL = ToolCall("call_1", FunctionCall("clock"))
ASK = [Message("user", "What time is it?")]


@asynccontextmanager
async def gpt_5(server: FakeOpenAI) -> AsyncIterator[WireClient]:
    spec = BackendSpec("openai", server.url + "/v1", server.key)
    catalog = new_catalog_provider(spec, CatalogOptions(retry=RetryPolicy(attempts=1)))
    assert isinstance(catalog, WireCatalog)
    try:
        yield await catalog.provider_for("gpt-5").chat_client()
    finally:
        await catalog.aclose()


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_thoughts_go_back_with_the_results_and_with_every_later_turn(streamed: bool) -> None:
    async with FakeOpenAI() as server, gpt_5(server) as client:
        server.script(
            Answer(thinking="I need the clock.", tool_calls=(CALL,), finish_reason="tool_calls"),
            Answer(thinking="Now I know.", text="Noon."),
            Answer(text="Bye."),
        )
        history = list(ASK)
        for result in (Message("tool", "12:00", tool_call_id="call_1"), Message("user", "Thanks."), None):
            options = {"tools": [CLOCK], "think": "low"}
            answer = await (
                (await client.stream(history, **options)).join() if streamed else client.chat(history, **options)
            )
            history += [answer.message, *([result] if result else [])]
        assert {request.path for request in server.requests} == {"/v1/responses"}
        first, second, third = (request.json for request in server.requests)
        assert [item["type"] for item in first["input"]] == ["message"]
        assert [item["type"] for item in second["input"]] == [
            "message",
            "reasoning",
            "function_call",
            "function_call_output",
        ]
        thought = second["input"][1]
        assert thought["encrypted_content"] == sealed(thought["id"], "sig-1")
        # What was sent before is sent again unchanged: the vendor's cache goes by the prefix.
        assert third["input"][:4] == second["input"]
        assert [item["type"] for item in third["input"][4:]] == ["reasoning", "message", "message"]
        assert all(r["store"] is False and r["truncation"] == "disabled" for r in (first, second, third))


async def test_a_failed_answer_is_an_error_that_may_pass() -> None:
    async with FakeOpenAI() as server, gpt_5(server) as client:
        failed = Answer(text="never seen", finish_reason="error")
        server.script(failed, failed)
        for call in (client.chat(ASK), client.stream(ASK)):
            with pytest.raises(BackendUnavailableError, match="failed to generate") as caught:
                await call
            assert caught.value.details["vendor_code"] == "server_error"


async def test_a_filtered_answer_is_refused_with_what_came() -> None:
    async with FakeOpenAI() as server, gpt_5(server) as client:
        filtered = Answer(text="First you", finish_reason="refused")
        server.script(filtered, filtered)
        with pytest.raises(RefusedError) as caught:
            await client.chat(ASK)
        assert caught.value.details["text"] == "First you"
        joined = await (await client.stream(ASK)).join()
        assert (joined.text, joined.finish_reason) == ("First you", "refused")


async def test_nothing_is_cut_from_a_conversation_by_the_vendor() -> None:
    async with FakeOpenAI() as server, gpt_5(server) as client:
        with pytest.raises(NotSupportedError) as caught:
            await client.chat(ASK, truncate=True)
        assert caught.value.details["feature"] == "truncate"
        assert server.requests == []
