"""Hazard: two conversations that share a session, or one that is spread over several."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx2
import pytest

from modeld.session.values import SessionConfig

from .conftest import Opened, Site

pytestmark = pytest.mark.anyio


@pytest.fixture
async def fresh(open_site: Opened) -> Site:
    return await open_site()


async def ask(site: Site, *said: str, headers: dict[str, str] | None = None, **body: Any) -> dict[str, Any]:
    """Ask, with what was said before: question, answer, question and so on."""
    roles = ("user", "assistant")
    messages = [{"role": roles[number % 2], "content": text} for number, text in enumerate(said)]
    async with httpx2.AsyncClient(base_url=site.url, headers=site.headers, timeout=30) as web:
        answer = await web.post(
            "/v1/chat/completions", json={"model": "fake", "messages": messages} | body, headers=headers or {}
        )
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found


def text(answer: dict[str, Any]) -> str:
    found: str = answer["choices"][0]["message"]["content"]
    return found


def reused(answer: dict[str, Any]) -> int:
    found: int = answer["modeld"]["receipt"]["reused"]
    return found


async def names(site: Site) -> set[tuple[str, str]]:
    return {(session.workspace, session.name) for session in await site.node.sessions()}


async def test_a_header_names_exactly_one_that_other_clients_find(fresh: Site) -> None:
    await ask(fresh, "one", headers={"x-modeld-session": "mine"})
    await ask(fresh, "quite another", headers={"x-modeld-session": "mine"}, metadata={"session_id": "not this"})
    await ask(fresh, "more", metadata={"session_id": "yours"}, prompt_cache_key="k")
    assert await names(fresh) == {("default", "mine"), ("default", "yours")}


async def test_of_two_names_none_is_chosen(fresh: Site) -> None:
    async with httpx2.AsyncClient(base_url=fresh.url, timeout=30) as web:
        headers = [*fresh.headers.items(), ("X-Modeld-Session", "mine"), ("x-modeld-session", "yours")]
        body = {"model": "fake", "messages": [{"role": "user", "content": "one"}]}
        answer = await web.post("/v1/chat/completions", json=body, headers=headers)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"], error["param"]) == (400, "invalid_value", "x-modeld-session")
    assert await names(fresh) == set()


async def test_a_user_is_a_person_and_no_session(fresh: Site) -> None:
    """Both conversations stay warm."""
    first, second = [await ask(fresh, start, user="ann") for start in ("alpha " * 20, "beta " * 20)]
    again = await ask(fresh, "alpha " * 20, text(first), "go on", user="ann")
    other = await ask(fresh, "beta " * 20, text(second), "go on", safety_identifier="ann")
    assert min(reused(again), reused(other)) > 100
    assert len(await names(fresh)) == 2
    assert {workspace for workspace, _ in await names(fresh)} == {"ann"}


async def test_a_cache_key_tells_conversations_apart_and_binds_nothing(fresh: Site) -> None:
    for key in ("a", "b"):
        answer = await ask(fresh, "begin", prompt_cache_key=key)
        await ask(fresh, "begin", text(answer), "and then", prompt_cache_key=key)
        await ask(fresh, "a title for this", prompt_cache_key=key)
    assert len(await names(fresh)) == 4


async def test_calls_under_one_key_do_not_wait_for_each_other(fresh: Site) -> None:
    slow = asyncio.ensure_future(ask(fresh, "!count 1000", model="fake:delay=0.001", prompt_cache_key="k"))
    async with asyncio.timeout(5):
        while not (await fresh.node.status()).active:
            await asyncio.sleep(0.01)
    for _ in range(2):
        await ask(fresh, "!count 1000", model="fake:delay=0.001", prompt_cache_key="k", max_tokens=1)
        assert not slow.done()
    slow.cancel()
    await asyncio.gather(slow, return_exceptions=True)
    await fresh.until_idle()


async def test_two_that_begin_alike_keep_a_tape_each(fresh: Site) -> None:
    """The same at temperature 0: only the second turn tells them apart."""
    begin = await ask(fresh, "begin " * 10, temperature=0)
    said: dict[str, list[str]] = {name: ["begin " * 10, text(begin)] for name in ("left", "right")}
    for turn in range(3):
        for name, before in said.items():
            answer = await ask(fresh, *before, f"{name} {turn}", temperature=0)
            if turn:
                assert answer["modeld"]["receipt"]["stop"] is None
            before += [f"{name} {turn}", text(answer)]
    assert len(await names(fresh)) == 2


@pytest.mark.parametrize(
    ("headers", "body"),
    [({"x-modeld-session": "x" * 300}, {}), ({}, {"metadata": {"session_id": "a\nb"}}), ({}, {"user": "x" * 300})],
)
async def test_what_is_no_name_is_refused(
    web: httpx2.AsyncClient, headers: dict[str, str], body: dict[str, Any]
) -> None:
    asked = {"model": "fake", "messages": [{"role": "user", "content": "x"}]} | body
    answer = await web.post("/v1/chat/completions", json=asked, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_request"


async def test_who_hears_the_end_of_a_stream_finds_the_session_warm(fresh: Site) -> None:
    """Here the next turn is asked for as soon as the finish reason is read, before the stream is closed."""
    messages: list[Any] = [{"role": "user", "content": "start " * 10}]
    async with fresh.sdk() as sdk:
        for turn in range(10):
            stream = await sdk.chat.completions.create(model="fake", messages=messages, stream=True, temperature=0)
            said = ""
            async for chunk in stream:
                said += chunk.choices[0].delta.content or ""
                if chunk.choices[0].finish_reason:
                    receipt = (chunk.model_extra or {})["modeld"]["receipt"]
                    assert receipt["stop"] is None
                    assert turn == 0 or receipt["prefilled"] < 40
                    break
            messages += [{"role": "assistant", "content": said}, {"role": "user", "content": f"turn {turn}"}]
            await stream.close()
    assert len(await names(fresh)) == 1


REFUSED: tuple[dict[str, Any], ...] = (
    {"messages": [{"role": "user", "content": "x" * 40_000}]},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"if": {}}}}},
)


@pytest.mark.parametrize("headers", [{}, {"x-modeld-session": "mine"}])
async def test_calls_that_are_refused_leave_no_session(fresh: Site, headers: dict[str, str]) -> None:
    async with httpx2.AsyncClient(base_url=fresh.url, headers=fresh.headers | headers, timeout=30) as web:

        async def refused(route: str, **body: Any) -> None:
            answer = await web.post(route, json={"model": "fake"} | body)
            assert answer.status_code == 400, answer.text
            await fresh.until_idle()

        hello = {"messages": [{"role": "user", "content": "hello"}]}
        for stream in (False, True):
            for more in REFUSED:
                await refused("/v1/chat/completions", **hello | more, stream=stream)
            await refused("/v1/messages", **REFUSED[0], max_tokens=5, stream=stream)
            await refused("/v1/responses", input="x" * 40_000, stream=stream)
            await refused("/v1/completions", prompt="x" * 40_000, stream=stream)
        # Two at a time on one name: neither of them is the one that made it alone.
        await asyncio.gather(*(refused("/v1/chat/completions", **REFUSED[0]) for _ in range(4)))
        assert await names(fresh) == set()
        assert (await web.post("/v1/chat/completions", json={"model": "fake"} | hello)).status_code == 200
        held = await names(fresh)
        assert len(held) == 1
        await refused("/v1/chat/completions", **hello | REFUSED[1])
        assert await names(fresh) >= held


async def test_what_somebody_else_opened_stays(fresh: Site) -> None:
    """Its class and pin are nowhere else: a refused call by its name must not lose them."""
    await fresh.node.open_session("fake", SessionConfig(name="mine", session_class="subagent", pin=True))
    async with httpx2.AsyncClient(base_url=fresh.url, headers=fresh.headers, timeout=30) as web:
        body = {"model": "fake"} | REFUSED[0]
        assert (await web.post("/v1/chat/completions", json=body, headers={"x-modeld-session": "mine"})).is_error
    assert await names(fresh) == {("default", "mine")}
