"""Hazard: an engine that works for nobody: the client has left, or does not read."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from contextlib import suppress
from typing import Any

import httpx2
import pytest

from modeld.http import protocol, server, sse
from modeld.session import SessionConfig
from modeld.types import Message

from .conftest import Opened, Site

pytestmark = pytest.mark.anyio

SLOW = "fake:delay=0.002"
"""Seconds for each token: a step of 512 takes a second at most, beside a stream 0.15 s."""
NAMED = "x-modeld-session: held\r\n"


def asked(site: Site, content: str, *, stream: bool, model: str = SLOW, more: str = "") -> bytes:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": content}], "stream": stream}).encode()
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{site.port}\r\nauthorization: Bearer {site.token}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n{more}\r\n"
    ).encode() + body


async def until(site: Site, active: int, seconds: float) -> float:
    """Wait for so many calls. :returns: how long it took."""
    began = time.monotonic()
    async with asyncio.timeout(seconds):
        while (await site.node.status()).active != active:
            await asyncio.sleep(0.005)
    return time.monotonic() - began


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("phase", "content"), [("prefill", "x" * 3000), ("decode", "!count 3000")])
async def test_who_leaves_cancels(site: Site, phase: str, content: str, stream: bool) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(asked(site, content, stream=stream))
    await until(site, 1, 5)
    await asyncio.sleep(0.3)
    assert (await site.node.status()).active == 1, "it was over before"
    writer.close()
    await until(site, 0, 2)


@pytest.mark.parametrize("stream", [False, True])
async def test_who_leaves_the_queue_is_forgotten(site: Site, stream: bool) -> None:
    held = await site.node.open_session(SLOW, SessionConfig(name="held"))
    async with held.turn([Message("user", "!count 2000")]) as parts:
        await anext(aiter(parts))
        _, writer = await asyncio.open_connection("127.0.0.1", site.port)
        writer.write(asked(site, "hello", stream=stream, more=NAMED))
        await until(site, 2, 5)
        writer.close()
        await until(site, 1, 2)
    await until(site, 0, 2)


async def test_who_leaves_while_another_model_is_busy_is_forgotten(site: Site) -> None:
    held = await site.node.open_session(SLOW, SessionConfig(name="held"))
    async with held.turn([Message("user", "!count 2000")]) as parts:
        await anext(aiter(parts))
        before = len(asyncio.all_tasks())
        _, writer = await asyncio.open_connection("127.0.0.1", site.port)
        writer.write(asked(site, "hello", stream=True, model="fake:delay=0.001"))
        await asyncio.sleep(0.3)
        assert len(asyncio.all_tasks()) > before
        writer.close()
        async with asyncio.timeout(2):
            while len(asyncio.all_tasks()) > before:
                await asyncio.sleep(0.005)
    await until(site, 0, 2)
    await asyncio.sleep(0.1)
    assert (await site.node.status()).model == SLOW, "nobody waits for another any more"


async def test_a_hundred_who_leave_leave_nothing_behind(site: Site) -> None:
    before = len(asyncio.all_tasks())
    for number in range(100):
        _, writer = await asyncio.open_connection("127.0.0.1", site.port)
        data = asked(site, "!count 3000", stream=number % 2 == 0)
        writer.write(data if number % 3 else data[: len(data) * (number % 10) // 10])
        await asyncio.sleep(0.01 if number % 5 else 0.05)
        writer.transport.abort() if number % 4 else writer.close()
    await until(site, 0, 10)
    async with asyncio.timeout(5):
        while len(asyncio.all_tasks()) > before:
            await asyncio.sleep(0.01)
    sessions = [session for session in await site.node.sessions() if session.workspace == "http"]
    assert len(sessions) <= 20
    assert not (await site.node.audit()).faults


async def test_who_does_not_read_holds_no_slot(open_site: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "WRITE_SECONDS", 0.3)
    monkeypatch.setattr(server, "_SEND_BUFFER", 4096)
    site = await open_site()
    deaf = socket.socket()
    deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    deaf.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(deaf, ("127.0.0.1", site.port))
    try:
        await loop.sock_sendall(deaf, asked(site, "!count 4000", stream=True, model="fake:delay=0.0005"))
        await until(site, 1, 5)
        await until(site, 0, 10)
        data = b""
        with suppress(ConnectionResetError):
            while piece := await asyncio.wait_for(loop.sock_recv(deaf, 65536), 2):
                data += piece
        assert data
        assert b"[DONE]" not in data
    finally:
        deaf.close()


async def test_who_reads_late_loses_nothing(site: Site) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port, limit=2**22)
    writer.write(asked(site, "!count 300", stream=True, model="fake"))
    await asyncio.sleep(0.5)
    data = await asyncio.wait_for(reader.readuntil(b"[DONE]"), 30)
    writer.close()
    chunks = [json.loads(line[6:]) for line in data.decode().splitlines() if line.startswith("data: {")]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text.split() == [str(number) for number in range(1, 301)]


async def test_headers_and_heartbeats_come_before_a_long_prompt_is_read(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "HEARTBEAT_SECONDS", 0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    began = time.monotonic()
    writer.write(asked(site, "y" * 1500, stream=True))
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert b"text/event-stream" in head
    waited = time.monotonic() - began
    heard = await asyncio.wait_for(reader.readuntil(b"data: "), 20)
    writer.close()
    assert heard.count(b": still working") >= 3
    assert waited < (time.monotonic() - began) / 2


async def test_progress_is_told_to_who_asks(site: Site, web: httpx2.AsyncClient) -> None:
    body: dict[str, Any] = {"model": SLOW, "messages": [{"role": "user", "content": "z" * 1200}], "stream": True}
    for asks in (True, False):
        headers = {"x-modeld-progress": "1"} if asks else {}
        answer = await web.post(
            "/v1/chat/completions",
            json=body | {"max_tokens": 1, "prompt_cache_key": str(asks)},
            headers=headers,
            timeout=30,
        )
        chunks = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        progress = [chunk["modeld"]["progress"] for chunk in chunks if not chunk["choices"]]
        assert bool(progress) == asks
        body["messages"][0]["content"] = "w" * 1200
        for told in progress:
            assert told["done"] <= max(told["total"], told["done"])
