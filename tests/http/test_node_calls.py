"""Hazard: calls of the node that say something else over HTTP than by every other way, or do more than was asked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest

from modeld.http import node_calls
from modeld.session import ContextReport, ModelDescription, NodeStatus, SessionConfig, SessionInfo
from modeld.types import Message

from .conftest import Site

pytestmark = pytest.mark.anyio

DOCS = (Path(__file__).parents[2] / "docs" / "http.md").read_text()


def code(answer: httpx2.Response) -> tuple[int, str]:
    found: str = answer.json()["error"]["code"]
    return answer.status_code, found


async def talked(site: Site, name: str, workspace: str = "default") -> None:
    session = await site.node.open_session("fake", SessionConfig(name=name, workspace=workspace))
    await session.turn([Message("user", "hello")]).join()
    await session.turn([Message("user", "other")]).join()


async def test_status_is_the_nodes(site: Site, web: httpx2.AsyncClient) -> None:
    await talked(site, "status")
    told = msgspec.json.decode((await web.get("/modeld/v1/status")).content, type=NodeStatus)
    own = await site.node.status()
    assert (told.model, told.plan, told.totals, told.http) == (own.model, own.plan, own.totals, site.url)
    assert told.totals.calls >= 2
    assert told.plan is not None
    assert told.ledger.hot <= told.plan.kv


async def test_load_describe_unload(site: Site, web: httpx2.AsyncClient) -> None:
    described = (await web.post("/modeld/v1/describe", json={"model": "tiny", "context": 1024})).content
    assert msgspec.json.decode(described, type=ModelDescription).plan.context == 1024
    loaded = (await web.post("/modeld/v1/load", json={"model": "fake"})).json()
    assert (loaded["model"], loaded["state"]) == ("fake", "ready")
    stale = await web.post("/modeld/v1/unload", json={"generation": loaded["generation"] + 1})
    assert code(stale) == (409, "stale_generation")
    assert (await site.node.status()).model == "fake"
    unloaded = (await web.post("/modeld/v1/unload", json={})).json()
    assert (unloaded["model"], unloaded["state"], unloaded["plan"]) == ("", "empty", None)
    models = (await web.get("/modeld/v1/models")).json()["models"]
    assert [model["name"] for model in models if model["bundled"]] == ["tiny"]


async def test_what_does_not_fit_is_refused_with_the_arithmetic(site: Site, web: httpx2.AsyncClient) -> None:
    body = {"model": "tiny", "context": 900_000}
    refused = await web.post("/modeld/v1/load", json=body)
    assert code(refused) == (400, "does_not_fit")
    assert "trained" in refused.json()["error"]["message"]
    plan = (await web.post("/modeld/v1/describe", json=body)).json()["plan"]
    assert not plan["fits"]
    assert plan["alternatives"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "fake", "path": "/etc/passwd"}, "path"),
        ({"model": "fake", "context": -1}, None),
        ({"model": "fake", "kv_type": "f64"}, "kv_type"),
        ({"model": "fake", "adapters": [{"path": "/etc/passwd"}]}, "adapters"),
        ({"context": 1}, "model"),
    ],
)
async def test_what_is_no_load_is_refused(web: httpx2.AsyncClient, body: dict[str, Any], param: str | None) -> None:
    for route in ("load", "describe"):
        answer = await web.post(f"/modeld/v1/{route}", json=body)
        assert answer.status_code == 400
        assert answer.json()["error"]["param"] in (param, "context")


async def test_a_name_never_becomes_a_path(web: httpx2.AsyncClient) -> None:
    for name in ("/etc/passwd", "../../x.gguf", "x.gguf"):
        assert (await web.post("/modeld/v1/load", json={"model": name})).status_code in (400, 404)


async def test_a_session_is_told_and_forgotten(site: Site, web: httpx2.AsyncClient) -> None:
    name = "a/b c?d"
    await talked(site, name)
    listed = (await web.get("/modeld/v1/sessions", params={"limit": "1"})).json()
    assert listed["total"] >= len(listed["sessions"]) == 1
    info = msgspec.convert(listed["sessions"][0], SessionInfo)
    assert info.name == name
    assert info.last_receipt is not None
    one = (await web.get("/modeld/v1/session", params={"name": name, "model": "fake"})).json()
    report = msgspec.convert(one["report"], ContextReport)
    assert report.last_receipt == info.last_receipt
    assert [segment.kind for segment in report.segments] == ["user"]
    assert report.last_receipt is not None
    assert report.last_receipt.stop is not None
    assert report.last_receipt.stop.reason == "message_changed"
    assert (await web.delete("/modeld/v1/session", params={"name": name})).json() == {"removed": name}
    for method in ("GET", "DELETE"):
        gone = await web.request(method, "/modeld/v1/session", params={"name": name})
        assert code(gone) == (404, "session_not_found")


async def test_a_name_on_two_models_is_not_guessed(site: Site, web: httpx2.AsyncClient) -> None:
    for model in ("fake", "fake:window=4096"):
        await site.node.open_session(model, SessionConfig(name="twice"))
    for method in ("GET", "DELETE"):
        assert code(await web.request(method, "/modeld/v1/session", params={"name": "twice"}))[0] == 400
    one = await web.get("/modeld/v1/session", params={"name": "twice", "model": "fake"})
    assert one.json()["session"]["model"] == "fake"


async def test_to_look_keeps_nothing_alive(site: Site, web: httpx2.AsyncClient) -> None:
    """A console that is left open must not hold the model for ever."""
    await talked(site, "watched")
    before = {info.name: info.last_used for info in await site.node.sessions()}
    idle = (await site.node.status()).idle_seconds
    for path in ("status", "sessions", "models"):
        assert (await web.get(f"/modeld/v1/{path}")).status_code == 200
    assert (await site.node.status()).idle_seconds > idle
    assert {info.name: info.last_used for info in await site.node.sessions()} == before


@pytest.mark.parametrize("query", ["name=a&name=b", "name=a&nme=b", "workspace=x", "name=a&limit=1", "limit=x"])
async def test_a_query_that_is_none(web: httpx2.AsyncClient, query: str) -> None:
    assert (await web.get(f"/modeld/v1/session?{query}")).status_code == 400
    assert (await web.get(f"/modeld/v1/sessions?{query}")).status_code == 400


async def test_strangers_get_none_of_it(site: Site) -> None:
    async with httpx2.AsyncClient(base_url=site.url) as stranger:
        for route in node_calls.NodeCalls(site.node).routes():
            for method in ("GET", "POST", "DELETE"):
                assert (await stranger.request(method, route.path)).status_code == 401
        assert (await stranger.get("/metrics")).status_code == 401


def test_every_route_is_written_down(site: Site) -> None:
    source = Path(node_calls.__file__).read_text()
    found = re.findall(r'Route\("([^"]+)", Endpoint\((.*)\)\)', source)
    assert len(found) == len(node_calls.NodeCalls(site.node).routes())
    for path, handlers in found:
        for method in re.findall(r"([A-Z]+)=", handlers):
            assert f"`{method} {path}`" in DOCS
