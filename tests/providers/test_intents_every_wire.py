"""Hazard: what holds for one wire does not hold for the next. More behaviours of all, beside the conformance suite."""

import asyncio
import base64
import contextlib
import gc
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from modeld import (
    FunctionCall,
    FunctionTool,
    ImagePart,
    InvalidRequestError,
    Message,
    NotSupportedError,
    TextPart,
    Tool,
    ToolCall,
)
from modeld.repository import CatalogOptions, RetryPolicy, new_catalog_provider
from modeld.repository.client import WireClient
from modeld.repository.provider import WireCatalog
from modeld.testing.server import Answer, FakeServer, Fault
from support.providers import ProviderCase, first_of, provider_cases

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("case", provider_cases(), ids=lambda case: case.id)]

ASK = [Message("system", "be terse"), Message("user", "list /tmp")]
LIST = Tool(FunctionTool("fs.list", "list", {"type": "object", "properties": {"path": {"type": "string"}}}))
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


class Backend:
    """A fake and the catalog that points at it."""

    def __init__(self, case: ProviderCase, server: FakeServer, catalog: WireCatalog) -> None:
        self.case = case
        self.server = server
        self.catalog = catalog

    async def client(self, model: str = "") -> WireClient:
        return await self.catalog.provider_for(model or self.case.model).chat_client()

    @property
    def sent(self) -> list[dict[str, Any]]:
        """Bodies of the requests that ask for an answer."""
        return [r.json for r in self.server.requests if r.method == "POST" and not r.path.endswith(("/show", "/token"))]


@asynccontextmanager
async def backend(case: ProviderCase, server: FakeServer | None = None) -> AsyncIterator[Backend]:
    async with server or case.server() as running:
        catalog = new_catalog_provider(case.spec(running), CatalogOptions(retry=RetryPolicy(attempts=1)))
        assert isinstance(catalog, WireCatalog)
        try:
            yield Backend(case, running, catalog)
        finally:
            await catalog.aclose()


def values_at(body: Any, wire: str) -> list[Any]:
    """What stands at the places ``a.b | c`` of a body."""
    found = []
    for path in wire.split("|"):
        value = body
        for key in path.strip().split("."):
            value = value.get(key) if isinstance(value, dict) else None
        found += [] if value is None else [value]
    return found


async def refusal(client: WireClient, messages: list[Message]) -> Exception | None:
    """Why the messages are not sent, if they are not."""
    try:
        await client.chat(messages)
    except (InvalidRequestError, NotSupportedError) as error:
        return error
    return None


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_more_than_a_models_ceiling_is_lowered_to_it_and_said(case: ProviderCase) -> None:
    async with backend(case) as b:
        (model,) = [m for m in await b.catalog.list_models() if m.name == case.model]
        ceiling = model.capabilities.max_output_tokens
        client = await b.catalog.provider_for(model).chat_client()
        asked = (ceiling or 5000) + 1
        whole = await client.chat(ASK, max_tokens=asked)
        joined = await (await client.stream(ASK, max_tokens=asked)).join()
        place = b.catalog.wire.rules["max_tokens"].wire
        assert [values_at(body, place) for body in b.sent[-2:]] == [[ceiling or asked]] * 2
        told = ["max_tokens_clamped"] if ceiling else []
        assert [w.code for w in whole.warnings] == [w.code for w in joined.warnings] == told


async def test_the_temperature_of_a_prompt_arrives(case: ProviderCase) -> None:
    async with backend(case) as b:
        client = await b.catalog.provider_for(case.model).prompt_client()
        b.server.script(Answer(text="Yes."), Answer(text="No."))
        assert await client.prompt("be terse", 0.25, "Is it?") == "Yes."
        assert await client.prompt("be terse", None, "Is it?") == "No."
        place = b.catalog.wire.rules["temperature"].wire
        assert [values_at(body, place) for body in b.sent] == [[0.25], []]


async def test_a_stream_asks_for_the_same_as_a_whole_answer(case: ProviderCase) -> None:
    async with backend(case) as b:
        client = await b.client(case.thinking_model)
        options: dict[str, Any] = {"think": "high", "tools": [LIST], "max_tokens": 3000}
        await client.chat(ASK, **options)
        await (await client.stream(ASK, **options)).join()
        whole, stream = [{k: v for k, v in body.items() if k not in ("stream", "stream_options")} for body in b.sent]
        assert whole == stream
        assert "fs" in json.dumps(stream["tools"])


async def test_a_line_of_any_length_is_read(case: ProviderCase) -> None:
    async with backend(case) as b:
        client = await b.client()
        long = Answer(text="word " * 60_000, pieces=1)
        b.server.script(long, long)
        whole = await client.chat(ASK)
        joined = await (await client.stream(ASK)).join()
        assert whole.text == joined.text == long.text


async def test_an_image_of_any_length_arrives_whole(case: ProviderCase) -> None:
    """Of three lengths in a row one needs no padding in base64, and two do."""
    async with backend(case) as b:
        client = await b.client(case.vision_model)
        for more in range(3):
            image = ImagePart(PIXEL + bytes(more), "image/png")
            await client.chat([Message("user", "What is this?", images=(image,))])
            assert base64.b64encode(image.data).decode() in json.dumps(b.sent[-1])


@pytest.mark.parametrize("role", ["assistant", "tool"])
async def test_an_image_outside_a_question_arrives_or_is_refused(case: ProviderCase, role: Any) -> None:
    async with backend(case) as b:
        client = await b.client(case.vision_model)
        image = ImagePart(PIXEL, "image/png")
        called = ToolCall("call_aaaaaaaaaaaaaaaaaaaaaaaa", FunctionCall("fs.list"))
        history = {
            "assistant": [Message("assistant", "See.", images=(image,)), Message("user", "go on")],
            "tool": [
                Message("assistant", tool_calls=(called,)),
                Message("tool", "x", tool_call_id=called.id, name="fs.list", images=(image,)),
            ],
        }[role]
        error = await refusal(client, [*ASK, *history])
        if error is None:
            assert base64.b64encode(PIXEL).decode() in json.dumps(b.sent[-1])
        else:
            assert "image" in str(error)
            assert b.sent == []


async def test_tools_whose_names_become_alike_are_told_apart(case: ProviderCase) -> None:
    async with backend(case) as b:
        client = await b.client()
        tools = [LIST, Tool(FunctionTool("fs_list", "another", {"type": "object", "properties": {}}))]
        await client.chat(ASK, tools=tools)
        declared = json.dumps(b.sent[-1]["tools"])
        names = [part.split('"')[0] for part in declared.split('"name": "')[1:]]
        assert len(set(names)) == 2
        calls = tuple(ToolCall(f"call_{n}" + "a" * 23, FunctionCall(name)) for n, name in enumerate(names))
        answer = Answer(tool_calls=calls, finish_reason="tool_calls")
        b.server.script(answer, answer)
        whole = await client.chat(ASK, tools=tools)
        joined = await (await client.stream(ASK, tools=tools)).join()
        for result in (whole, joined):
            assert [call.function.name for call in result.tool_calls] == ["fs.list", "fs_list"]


async def test_cancelling_whoever_reads_a_stream_closes_the_request(case: ProviderCase) -> None:
    async with backend(case) as b:
        client = await b.client()
        b.server.script(Fault(kind="hang", after=4))
        read: list[Any] = []

        async def reader() -> None:
            async with await client.stream(ASK) as stream:
                async for part in stream:
                    read.append(part)

        task = asyncio.create_task(reader())
        await until(lambda: read)
        assert b.server.cut_off == 0
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()
        await until(lambda: b.server.cut_off == 1)


async def test_a_stream_that_is_dropped_without_a_word_closes_the_request(case: ProviderCase) -> None:
    async with backend(case) as b:
        client = await b.client()
        b.server.script(Fault(kind="hang", after=4))
        stream = await client.stream(ASK)
        assert isinstance(await first_of(stream), TextPart)
        assert b.server.cut_off == 0
        del stream
        gc.collect()
        await until(lambda: b.server.cut_off == 1)
        b.server.script(Answer(text="still there"))
        assert (await client.chat(ASK)).text == "still there"


async def test_providers_made_anew_for_each_call_share_connection_and_credentials(case: ProviderCase) -> None:
    server = case.server()
    ports: set[int] = set()
    serve = server._connected

    async def connected(reader: Any, writer: Any) -> None:
        ports.add(writer.get_extra_info("peername")[1])
        await serve(reader, writer)

    server._connected = connected  # type: ignore[method-assign]
    async with backend(case, server) as b:
        for _ in range(5):
            assert (await (await b.client()).chat(ASK)).text == "ok"
        fetched = [request for request in server.requests if request.path.endswith("/token")]
        assert len(fetched) == (case.id == "vertex")
        # The token comes over a connection of its own.
        assert len(ports) == 1 + len(fetched)
