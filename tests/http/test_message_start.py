"""Hazard: the first event of a message says that its prompt has no tokens, and that is what clients show."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from modeld.http import sse
from modeld.http.anthropic_answer import Answer as Written
from modeld.http.anthropic_answer import Blocks, Events
from modeld.node.backends import ConfiguredBackend
from modeld.node.gateway import Gateway
from modeld.testing.anthropic import FakeAnthropic
from modeld.testing.openai import FakeOpenAI
from modeld.testing.server import Answer, Fault
from modeld.types import EndPart, ProgressPart, TextPart, ThinkingPart, ToolCallEnd, ToolCallStart, Usage, WarningPart

from .conftest import Opened, Site

pytestmark = pytest.mark.anyio

SLOW = "fake:delay=0.002"
COUNTS = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
COUNTED = Usage(input=100, cache_read=70, cache_write=20, output=5, source="reported")


def events_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]


def counts(usage: dict[str, Any]) -> tuple[int | None, ...]:
    return tuple(usage[name] for name in COUNTS)


async def streamed(web: httpx2.AsyncClient, model: str, content: str, **more: Any) -> list[dict[str, Any]]:
    body = {"model": model, "max_tokens": 9, "stream": True, "messages": [{"role": "user", "content": content}]}
    answer = await web.post("/v1/messages", json=body | more, timeout=30)
    assert answer.status_code == 200, answer.text
    return events_of(answer.text)


@pytest.mark.parametrize("model", ["fake", SLOW, "tiny"])
async def test_a_model_of_the_node_has_counted_before(web: httpx2.AsyncClient, model: str) -> None:
    for words in ("one " * 100, "one " * 100 + "two", "one " * 100 + "two"):
        events = await streamed(web, model, words)
        assert events[0]["type"] == "message_start"
        first, last = events[0]["message"]["usage"], events[-2]["usage"]
        assert counts(first) == counts(last)
        assert first["input_tokens"] > 0
        assert first["output_tokens"] == 0
    assert first["cache_read_input_tokens"] > 100
    assert first["input_tokens"] == 1, "asked again: the last token is computed, for what comes after it"


async def test_calls_of_tools_come_after_the_counts(web: httpx2.AsyncClient) -> None:
    tool = {"name": "f", "input_schema": {"type": "object"}}
    events = await streamed(web, "fake", '!call f {"a": 1}', tools=[tool], max_tokens=99)
    assert counts(events[0]["message"]["usage"]) == counts(events[-2]["usage"])
    assert "tool_use" in json.dumps(events)


async def test_comments_and_no_events_come_before_the_prompt_is_known(
    site: Site, web: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one holds the session: nobody looks at the prompt before it ends."""
    monkeypatch.setattr(sse, "HEARTBEAT_SECONDS", 0.2)
    body: dict[str, Any] = {"model": SLOW, "stream": True, "max_tokens": 400, "metadata": {"session_id": "held"}}
    held = asyncio.ensure_future(
        web.post("/v1/messages", json=body | {"messages": [{"role": "user", "content": "!count 400"}]}, timeout=30)
    )
    await asyncio.sleep(0.3)
    said = [{"role": "user", "content": "hello"}]
    headers = {"x-modeld-progress": "1"}
    async with web.stream("POST", "/v1/messages", json=body | {"messages": said}, headers=headers, timeout=30) as waits:
        assert waits.status_code == 200
        text = "".join([piece async for piece in waits.aiter_text()])
    before, mark, after = text.partition("event: message_start")
    assert mark
    assert "event:" not in before
    assert before.count(": still working") + before.count(': {"progress"') >= 3
    assert counts(events_of(mark + after)[0]["message"]["usage"])[0]
    assert (await held).status_code == 200


@asynccontextmanager
async def backends(site: Site) -> AsyncIterator[tuple[FakeAnthropic, FakeOpenAI]]:
    async with FakeAnthropic() as claude, FakeOpenAI() as gpt:
        gateway = Gateway(site.root)
        for name, vendor, url in (("anthropic", claude, claude.url), ("openai", gpt, f"{gpt.url}/v1")):
            await gateway.register_backend(ConfiguredBackend(name=name, type=name, base_url=url), secret=vendor.key)
        yield claude, gpt
        await gateway.aclose()


async def test_what_a_backend_tells_at_its_start_is_told(open_site: Opened, tmp_path: Path) -> None:
    site = await open_site()
    async with backends(site) as (claude, gpt), httpx2.AsyncClient(base_url=site.url, headers=site.headers) as web:
        claude.script(Answer(text="ok", usage=COUNTED), Answer(thinking="hm", text="ok", usage=COUNTED))
        for _ in range(2):
            events = await streamed(web, "anthropic:claude-opus-5", "x")
            assert counts(events[0]["message"]["usage"]) == counts(events[-2]["usage"]) == (10, 70, 20)
        gpt.script(Answer(text="ok", usage=COUNTED))
        events = await streamed(web, "openai:gpt-4o", "x")
        assert counts(events[0]["message"]["usage"]) == (0, None, None), "nobody told"
        assert events[-2]["usage"]["cache_read_input_tokens"] == 70


async def test_a_backend_that_fails_after_its_counts_is_asked_again(open_site: Opened) -> None:
    site = await open_site()
    async with backends(site) as (claude, _), httpx2.AsyncClient(base_url=site.url, headers=site.headers) as web:
        claude.script(Fault(kind="error_event", after=1, code="overloaded_error", message="busy"), Answer(text="ok"))
        events = await streamed(web, "anthropic:claude-opus-5", "x")
        assert [event["type"] for event in events].count("message_start") == 1
        assert events[-1]["type"] == "message_stop"
        assert len(claude.requests) == 2


def first_of(*parts: Any) -> tuple[list[bytes], dict[str, Any]]:
    """What each part became, and the first event's usage."""
    events = Events(Written("msg_1", "m", Blocks("0" * 12)), progress=False)
    data = [events.part(part) for part in parts]
    return data, events_of(b"".join(data).decode())[0]["message"]["usage"]


END = EndPart(finish_reason="stop", usage=Usage(input=9, cache_read=4, output=2, reasoning=1))


@pytest.mark.parametrize(
    ("parts", "known", "at"),
    [
        (
            (ProgressPart(0, 0, 0, position=2), ProgressPart(4, 4, 9), ProgressPart(6, 7, 9), TextPart("x")),
            (3, 6, 0),
            2,
        ),
        ((ProgressPart(9, 9, 9, cache_write=0), ThinkingPart("x")), (0, 9, 0), 0),
        ((ProgressPart(4, 9, 9, cache_write=3), TextPart("x")), (2, 4, 3), 0),
        ((WarningPart("a", "b"), TextPart("x"), ProgressPart(1, 2, 9)), (0, None, None), 1),
        ((ToolCallStart(0, "c", "f"), ToolCallEnd(0), END), (0, None, None), 1),
        ((TextPart(""), END), (5, 4, 0), 1),
    ],
    ids=["waits", "all-cached", "vendor", "unknown", "call", "empty"],
)
def test_the_first_event_comes_with_what_is_sure(parts: Any, known: tuple[Any, ...], at: int) -> None:
    data, usage = first_of(*parts)
    assert counts(usage) == known
    assert usage["output_tokens"] == 0
    assert usage["output_tokens_details"] is None
    assert [bool(piece) for piece in data[: at + 1]] == [False] * at + [True]


async def test_counts_that_are_none_are_not_told(open_site: Opened) -> None:
    site = await open_site()
    absurd = Usage(input=2**60, cache_read=1, cache_write=2, output=5, source="reported")
    async with backends(site) as (claude, _), httpx2.AsyncClient(base_url=site.url, headers=site.headers) as web:
        claude.script(Answer(text="ok", usage=absurd))
        events = await streamed(web, "anthropic:claude-opus-5", "x")
        assert counts(events[0]["message"]["usage"]) == (0, None, None)
        assert events[-1]["type"] == "message_stop"
