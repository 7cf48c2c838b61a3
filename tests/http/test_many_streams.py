"""Hazard: many streams at once: one that breaks, tokens that are lost between, a client that others starve."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from .conftest import Site

pytestmark = pytest.mark.anyio

WORDS = ("river", "stone", "lotus", "amber", "copper", "kite", "maple", "silver")
STREAMS = 32
TOKENS = 96


async def events(web: httpx2.AsyncClient, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The chunks of a streamed answer, and that it has its end."""
    said = ""
    async with web.stream("POST", "/v1/chat/completions", json=body | {"stream": True}, timeout=60) as response:
        assert response.status_code == 200
        async for line in response.aiter_lines():
            said = line or said
            if line.startswith("data: {"):
                yield json.loads(line[6:])
    assert said == "data: [DONE]"


async def test_every_stream_has_all_its_tokens(site: Site, web: httpx2.AsyncClient) -> None:
    """The model says one word again and again: what was said often is wanted more, and nothing else is."""

    async def one(number: int) -> tuple[int, dict[str, Any]]:
        word = WORDS[number % len(WORDS)]
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": f"{number}: " + " ".join([word] * 40)}],
            "max_tokens": TOKENS,
            "temperature": 0,
            "frequency_penalty": -2,
            "user": f"user-{number % 4}",
            "stream_options": {"include_usage": True},
        }
        chunks = [chunk async for chunk in events(web, body)]
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"])
        assert text.split() == [word] * TOKENS
        return len(chunks), chunks[-1]

    answers = await asyncio.gather(*map(one, range(STREAMS)))
    assert [last["usage"]["completion_tokens"] for _, last in answers] == [TOKENS] * STREAMS
    assert all(last["modeld"]["finish_reason"] == "length" for _, last in answers)
    assert all(count > 3 for count, _ in answers), "text came while it was made"
    assert not (await site.node.audit()).faults
    assert (await site.node.status()).active == 0


async def test_one_user_does_not_wait_for_all_that_another_asked_before(site: Site, web: httpx2.AsyncClient) -> None:
    """Whoever is new has a turn after one of each other user: here one prompt."""
    begun: list[str] = []

    async def one(user: str, number: int, runes: int) -> None:
        content = f"{user}{number}" + user * runes
        body = {"model": "fake:delay=0.0005", "messages": [{"role": "user", "content": content}], "max_tokens": 1}
        async for chunk in events(web, body | {"user": user}):
            if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                begun.append(user)

    await site.node.open_session("fake:delay=0.0005")
    greedy = [asyncio.ensure_future(one("a", number, 400)) for number in range(10)]
    async with asyncio.timeout(10):
        while (await site.node.status()).active < len(greedy):
            await asyncio.sleep(0.001)
    modest = asyncio.ensure_future(one("b", 0, 100))
    await asyncio.gather(*greedy, modest)
    assert begun.count("a") == 10
    assert begun.index("b") <= 5
