"""Hazard: an answer that breaks off looks like one that has ended."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import httpx2
import pytest

from modeld.engine.fake.lexicon import END, START
from modeld.errors import LeaseLostError
from modeld.http import server
from modeld.http.door import HttpConfig, HttpDoor
from modeld.node.config import NodeConfig
from modeld.node.node import Node
from modeld.transport import host
from modeld.transport.host import HostConfig, hosted
from modeld.transport.security import read_token

pytestmark = pytest.mark.anyio

SLOW = "fake:delay=0.005"
ROUTES = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
GRACE = 0.4
Events = list[dict[str, Any]]


def body_of(route: str, words: str) -> dict[str, Any]:
    body: dict[str, Any] = {"model": SLOW, "stream": True}
    match route:
        case "/v1/responses":
            return body | {"input": words}
        case "/v1/completions":
            return body | {"prompt": f"{START}user {words}{END}{START}assistant ", "max_tokens": 5000}
    return body | {"messages": [{"role": "user", "content": words}], "max_tokens": 5000}


def events_of(text: str) -> Events:
    return [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: {") and line.endswith("}")]


def check_end(route: str, text: str, code: str, words: str) -> None:
    """The last event is the dialect's for an error, and nothing says that the answer is whole."""
    events = events_of(text)
    last = events[-1]
    assert "[DONE]" not in text
    assert "message_stop" not in text
    assert "response.completed" not in text
    if route == "/v1/messages":
        assert text.rstrip().splitlines()[-2] == "event: error"
        assert last["type"] == "error"
        assert words in last["error"]["message"]
    elif route == "/v1/responses":
        assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
        assert words in last["response"]["error"]["message"]
        assert last["response"]["modeld"]["code"] == code
        assert (events[-2]["type"], events[-2]["code"]) == ("error", code)
    else:
        assert last["error"]["code"] == code
        assert words in last["error"]["message"]


@asynccontextmanager
async def streams(
    root: Path, monkeypatch: pytest.MonkeyPatch, words: str = "!count 2000"
) -> AsyncIterator[tuple[Node, dict[str, asyncio.Task[str]], Callable[[], float]]]:
    """A node in the middle of an answer on each route; it stops at the end of the block. What each told until then."""
    monkeypatch.setattr(host, "DRAIN_SECONDS", GRACE)
    config = HostConfig(node=NodeConfig(data_root=root, allow_fake=True))
    door = HttpDoor(HttpConfig(data_root=root, host="127.0.0.1", port=0, required=True))
    async with httpx2.AsyncClient(timeout=20) as web:
        async with hosted(config, lambda: None, door) as (node, _, _):
            web.headers["authorization"] = f"Bearer {read_token(root)}"
            told: dict[str, str] = {}

            async def read(route: str) -> str:
                async with web.stream("POST", door.state + route, json=body_of(route, words)) as answer:
                    assert answer.status_code == 200
                    told[route] = ""
                    async for piece in answer.aiter_text():
                        told[route] += piece
                return told[route]

            tasks = {route: asyncio.ensure_future(read(route)) for route in ROUTES}
            async with asyncio.timeout(10):
                least = 8 if words.startswith("!count") else 0
                while len(told) < len(ROUTES) or min(len(events_of(text)) for text in told.values()) < least:
                    await asyncio.sleep(0.01)
            began = time.monotonic()
            yield node, tasks, lambda: time.monotonic() - began
        await asyncio.wait(tasks.values(), timeout=5)


@pytest.mark.parametrize("phase", ["prefill", "decode"])
async def test_a_node_that_stops_ends_streams_with_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    words = "!count 2000" if phase == "decode" else "x" * 3000
    async with streams(tmp_path, monkeypatch, words) as (_, tasks, waited):
        pass
    assert waited() < GRACE + 3
    for route, task in tasks.items():
        check_end(route, await task, "unavailable", "the node stops")


async def test_an_engine_that_dies_ends_streams_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with streams(tmp_path, monkeypatch) as (node, tasks, _):
        engine = (await node.status()).engine
        assert engine is not None
        os.kill(engine.pid, signal.SIGKILL)
        for route, task in tasks.items():
            check_end(route, await asyncio.wait_for(task, 5), "engine_crashed", "engine")


async def test_a_lost_lease_ends_streams_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with streams(tmp_path, monkeypatch) as (node, tasks, _):
        node.refuse(LeaseLostError("another node took over", reason="evicted"))
        for route, task in tasks.items():
            check_end(route, await asyncio.wait_for(task, 5), "lease_lost", "took over")


async def test_an_answer_that_ends_in_time_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "DRAIN_SECONDS", 10)
    ends = ("[DONE]", "[DONE]", "response.completed", "message_stop")
    async with streams(tmp_path, monkeypatch, "!count 60") as (_, tasks, _):
        monkeypatch.setattr(host, "DRAIN_SECONDS", 10)
    for task, end in zip(tasks.values(), ends, strict=True):
        assert end in await task


async def test_a_client_that_does_not_read_holds_up_no_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_SEND_BUFFER", 4096)
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.setblocking(False)
    loop = asyncio.get_running_loop()
    body = json.dumps(body_of("/v1/messages", "!count 3000")).encode()
    with closing(deaf):
        async with streams(tmp_path, monkeypatch, "!count 3000") as (node, tasks, waited):
            port = int((node.http or "").rpartition(":")[2])
            head = f"POST /v1/messages HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nx-api-key: {read_token(tmp_path)}\r\n"
            head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
            await loop.sock_connect(deaf, ("127.0.0.1", port))
            await loop.sock_sendall(deaf, head.encode() + body)
            await asyncio.sleep(2)
            began = waited()
        assert waited() - began < GRACE + 3
        for route, task in tasks.items():
            check_end(route, await task, "unavailable", "the node stops")
