"""Hazard: a node that is well by its numbers only: requests, tokens or clients that left, and nobody counted them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from modeld.session import SessionConfig
from modeld.types import Message

from .conftest import Opened, Site

pytestmark = pytest.mark.anyio

BOARD = (Path(__file__).parents[2] / "docs" / "grafana.json").read_text()
DOCS = (Path(__file__).parents[2] / "docs" / "http.md").read_text()
SLOW = "fake:delay=0.002"


async def scraped(web: httpx2.AsyncClient) -> Callable[..., float]:
    """All samples now, as a function of name and labels."""
    text = (await web.get("/metrics")).text
    found = {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    return lambda name, **labels: found.get((name, frozenset(labels.items())), 0.0)


def chat(content: str, model: str = "fake", **more: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": content}], **more}


async def test_requests_and_tokens_add_up(site: Site, web: httpx2.AsyncClient) -> None:
    before = await scraped(web)
    totals = (await site.node.status()).totals
    answer = (await web.post("/v1/chat/completions", json=chat("!count 30"))).json()
    await web.post("/v1/chat/completions", json=chat("!count 30", stream=True))
    await web.post("/v1/chat/completions", json=chat("x", model="nobody"))
    now = await scraped(web)
    route = "POST /v1/chat/completions"
    for status, count in (("200", 2), ("404", 1)):
        name = "modeld_http_requests_total"
        assert now(name, route=route, status=status) - before(name, route=route, status=status) == count
    after = (await site.node.status()).totals
    for kind in ("reused", "restored", "prefilled", "generated"):
        assert now("modeld_tokens_total", kind=kind) == getattr(after, kind)
    usage = answer["usage"]
    assert after.generated - totals.generated == 2 * usage["completion_tokens"]
    assert after.reused + after.prefilled - totals.reused - totals.prefilled == 2 * usage["prompt_tokens"]
    for name in ("time_to_first_token", "time_between_tokens"):
        assert now(f"modeld_http_{name}_seconds_count") > before(f"modeld_http_{name}_seconds_count")


async def test_who_was_not_let_in_is_counted_under_the_route_and_strangers_under_none(
    site: Site, web: httpx2.AsyncClient
) -> None:
    """A path from outside is no label: each would be a line for ever."""
    before = await scraped(web)
    wrong = {"authorization": "Bearer wrong"}
    await web.post("/v1/chat/completions", json=chat("x"), headers=wrong)
    await web.post("/v1/chat/completions", json=chat("x"), headers={"host": "evil.example"})
    await web.get("/v1/models/some/name", headers=wrong)
    for path in ("/one", "/two/v1/models", "/v1/chat/completions/"):
        await web.get(path, headers=wrong)
    now = await scraped(web)
    expected = {
        ("POST /v1/chat/completions", "401"): 1,
        ("POST /v1/chat/completions", "403"): 1,
        ("GET /v1/models/{id:path}", "401"): 1,
        ("GET (no route)", "401"): 3,
    }
    name = "modeld_http_requests_total"
    for (route, status), count in expected.items():
        assert now(name, route=route, status=status) - before(name, route=route, status=status) == count, route


async def test_the_nodes_numbers_are_those_of_its_status(site: Site, web: httpx2.AsyncClient) -> None:
    session = await site.node.open_session("fake", SessionConfig(name="not over HTTP"))
    await session.turn([Message("user", "hello")]).join()
    status, now = await site.node.status(), await scraped(web)
    assert now("modeld_kv_bytes", tier="hot") == status.ledger.hot > 0
    assert now("modeld_kv_budget_bytes", tier="hot") == status.ledger.hot_budget
    assert now("modeld_lease_epoch") == status.epoch
    assert now("modeld_sessions") == status.sessions
    assert now("modeld_engine_starts_total") == status.generation
    assert now("modeld_calls_total") == status.totals.calls
    labels = {"model": "fake", "digest": status.digest, "version": status.version}
    assert now("modeld_model_info", **labels) == 1


async def test_a_crash_is_counted_and_an_unload_is_not(open_site: Opened) -> None:
    site = await open_site()
    async with httpx2.AsyncClient(base_url=site.url, headers=site.headers) as web:
        await web.post("/modeld/v1/load", json={"model": "fake"})
        await web.post("/modeld/v1/unload", json={})
        assert (await scraped(web))("modeld_engine_crashes_total") == 0
        loaded = (await web.post("/modeld/v1/load", json={"model": "fake"})).json()
        os.kill(loaded["engine"]["pid"], signal.SIGKILL)
        async with asyncio.timeout(5):
            while (await scraped(web))("modeld_engine_crashes_total") != 1:
                await asyncio.sleep(0.02)
        assert (await web.post("/v1/chat/completions", json=chat("hello"))).status_code == 200
        now = await scraped(web)
        assert (now("modeld_engine_crashes_total"), now("modeld_engine_starts_total")) == (1, 3)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("phase", "content", "seconds"),
    [("prefill", "x" * 4000, 0.15), ("prefill", "y" * 4000, 1.2), ("decode", "!count 3000", 0.3)],
)
async def test_who_leaves_is_counted_by_phase(
    site: Site, web: httpx2.AsyncClient, phase: str, content: str, seconds: float, stream: bool
) -> None:
    await site.node.load(SLOW)
    before = await scraped(web)
    body = chat(content, SLOW, stream=stream)
    # Nobody asked this before, so nothing is reused.
    body["messages"].insert(0, {"role": "system", "content": f"{seconds} {stream}"})
    await leaves(site, body, seconds)
    await counted(web, before, phase, stream)


@pytest.mark.parametrize("stream", [False, True])
async def test_who_leaves_the_queue_is_counted_there(site: Site, web: httpx2.AsyncClient, stream: bool) -> None:
    before = await scraped(web)
    held = await site.node.open_session(SLOW, SessionConfig(name="held"))
    async with held.turn([Message("user", "!count 2000")]) as parts:
        await anext(aiter(parts))
        await leaves(site, chat("hello", SLOW, stream=stream), 0.2, "x-modeld-session: held\r\n")
        await leaves(site, chat("hello", "fake:delay=0.003", stream=stream), 0.2)
        await counted(web, before, "queue", stream, 2)


async def leaves(site: Site, body: dict[str, Any], seconds: float, more: str = "") -> None:
    data = json.dumps(body).encode()
    _, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{site.port}\r\nauthorization: Bearer {site.token}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n{more}\r\n".encode()
        + data
    )
    await asyncio.sleep(seconds)
    writer.close()


async def counted(
    web: httpx2.AsyncClient, before: Callable[..., float], phase: str, stream: bool, count: int = 1
) -> None:
    """One more of that phase, none of any other, and no answer is being made any more."""
    labels = [(p, m) for p in ("queue", "prefill", "decode", "other") for m in ("stream", "whole")]
    wanted = {label: float(count * (label == (phase, "stream" if stream else "whole"))) for label in labels}
    name = "modeld_http_disconnects_total"
    async with asyncio.timeout(5):
        while True:
            now = await scraped(web)
            found = {(p, m): now(name, phase=p, mode=m) - before(name, phase=p, mode=m) for p, m in labels}
            making = sum(now("modeld_http_answers", phase=p) for p in ("queue", "prefill", "decode"))
            if sum(found.values()) >= count and not making:
                break
            await asyncio.sleep(0.02)
    assert found == wanted


async def test_strangers_make_no_lines(site: Site, web: httpx2.AsyncClient) -> None:
    async with httpx2.AsyncClient(base_url=site.url) as stranger:
        await stranger.get("/health")
        before = (await web.get("/metrics")).text.count("\n")
        for number in range(5):
            await stranger.request(f"BREW{number}", f"/{number}")
            await stranger.get(f"/v1/models/{number}")
        now = (await web.get("/metrics")).text.count("\n")
    assert now - before <= 8


async def test_two_nodes_in_a_process_count_apart(site: Site, open_site: Opened, web: httpx2.AsyncClient) -> None:
    await web.get("/v1/models")
    other = await open_site()
    async with httpx2.AsyncClient(base_url=other.url, headers=other.headers) as second:
        assert "/v1/models" not in (await second.get("/metrics")).text


async def test_dashboard_and_page_name_what_is_there(web: httpx2.AsyncClient) -> None:
    """And all of it is on the page."""
    families = text_string_to_metric_families((await web.get("/metrics")).text)
    found = {family.name + "_total" * (family.type == "counter") for family in families}
    found = {name for name in found if not name.endswith("_created")}
    named = set(re.findall(r"\bmodeld_\w+", BOARD))
    assert {re.sub(r"_bucket$", "", name) for name in named} == found
    assert set(re.findall(r"`(modeld_\w+)`", DOCS)) == found


def test_the_dashboards_panels_do_not_overlap() -> None:
    panels = json.loads(BOARD)["panels"]
    at = [(panel["gridPos"]["x"] + x, panel["gridPos"]["y"]) for panel in panels for x in range(panel["gridPos"]["w"])]
    assert len(set(at)) == len(at)
    assert max(x for x, _ in at) < 24
