"""Hazard: an engine that works for nobody: the client has left, or does not read."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import socket
import time
from contextlib import suppress
from typing import Any

import httpx2
import psutil
import pytest

from modeld.engine.protocol import Cancel
from modeld.http import protocol, server, sse
from modeld.node.engine_process import EngineProcess
from modeld.session import SessionConfig
from modeld.types import Message

from .conftest import Opened, Site

pytestmark = pytest.mark.anyio

DELAY = 0.002
SLOW = f"fake:delay={DELAY}"
"""Seconds for each token: a step of 512 takes a second at most, beside a stream 0.15 s."""
BATCH = 512
ROUTES = ("/v1/chat/completions", "/v1/messages")


def asked(
    site: Site, content: str, *, stream: bool, model: str = SLOW, more: str = "", route: str = ROUTES[0]
) -> bytes:
    asks = {"model": model, "messages": [{"role": "user", "content": content}], "stream": stream, "max_tokens": 20000}
    body = json.dumps(asks).encode()
    return (
        f"POST {route} HTTP/1.1\r\nhost: 127.0.0.1:{site.port}\r\nauthorization: Bearer {site.token}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n{more}\r\n"
    ).encode() + body


async def until(site: Site, active: int, seconds: float) -> float:
    """Wait for so many calls. :returns: how long it took."""
    began = time.monotonic()
    async with asyncio.timeout(seconds):
        while (await site.node.status()).active != active:
            await asyncio.sleep(0.005)
    return time.monotonic() - began


class Cancels:
    """What the node has told engines to cancel."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        send = EngineProcess.send

        def counted(engine: EngineProcess, frame: Any) -> None:
            self.count += isinstance(frame, Cancel)
            send(engine, frame)

        monkeypatch.setattr(EngineProcess, "send", counted)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(("phase", "step"), [("prefill", BATCH), ("decode", 2)])
async def test_who_leaves_has_one_more_batch_computed_at_most(
    site: Site, monkeypatch: pytest.MonkeyPatch, phase: str, step: int, route: str, stream: bool
) -> None:
    """The engine is stopped while the client leaves, so that what it computes until then is bounded by the clock.

    Of a decode two steps may follow: one was begun, and one begins while the cancel is being read.
    """
    name = f"{phase}-{stream}-{route[-4:]}"
    content = "!count 3000" if phase == "decode" else name + "x" * 3000
    session = await site.node.open_session(SLOW, SessionConfig(name=name))
    engine = (await site.node.status()).engine
    assert engine is not None
    cancels = Cancels(monkeypatch)
    began = time.monotonic()
    _, writer = await asyncio.open_connection("127.0.0.1", site.port)
    writer.write(asked(site, content, stream=stream, route=route, more=f"x-modeld-session: {name}\r\n"))
    await until(site, 1, 5)
    await asyncio.sleep(0.3)
    assert (await site.node.status()).active == 1, "it was over before"
    os.kill(engine.pid, signal.SIGSTOP)
    try:
        most = (time.monotonic() - began) / DELAY + step
        writer.close()
        async with asyncio.timeout(2):
            while not cancels.count:
                await asyncio.sleep(0.005)
    finally:
        os.kill(engine.pid, signal.SIGCONT)
    await until(site, 0, 2)
    report = await session.explain()
    assert report.prefill_tokens + report.decode_tokens <= most
    assert cancels.count == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("route", ROUTES)
async def test_who_leaves_the_queue_is_forgotten(site: Site, route: str, stream: bool) -> None:
    name = f"queue-{stream}-{route[-4:]}"
    held = await site.node.open_session(SLOW, SessionConfig(name=name))
    async with held.turn([Message("user", "!count 2000")]) as parts:
        await anext(aiter(parts))
        _, writer = await asyncio.open_connection("127.0.0.1", site.port)
        writer.write(asked(site, "hello", stream=stream, more=f"x-modeld-session: {name}\r\n", route=route))
        await until(site, 2, 5)
        writer.close()
        await until(site, 1, 2)
    await until(site, 0, 2)
    report = await held.explain()
    assert report.decode_calls == 1, "nothing of it was computed"


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


async def test_five_hundred_who_leave_leave_nothing_behind(site: Site) -> None:
    await site.node.open_session(SLOW, SessionConfig())
    engine = (await site.node.status()).engine
    assert engine is not None
    processes = [psutil.Process(), psutil.Process(engine.pid)]
    tasks, files = len(asyncio.all_tasks()), [process.num_fds() for process in processes]
    left = iter(range(500))

    async def leave(seed: int) -> None:
        chance = random.Random(seed)
        for number in left:
            await come_and_go(site, chance, number)

    async with asyncio.timeout(40):
        await asyncio.gather(*map(leave, range(10)))
    await until(site, 0, 10)
    async with asyncio.timeout(5):
        while len(asyncio.all_tasks()) > tasks or any(
            process.num_fds() > before for process, before in zip(processes, files, strict=True)
        ):
            await asyncio.sleep(0.01)
    now = (await site.node.status()).engine
    assert now is not None
    assert now.pid == engine.pid
    sessions = [session for session in await site.node.sessions() if session.workspace == "http"]
    assert not any(session.active or session.handles for session in sessions)
    assert len(sessions) <= 100
    assert not (await site.node.audit()).faults
    answered = await site.raw(asked(site, "!count 9", stream=False), seconds=3)
    assert b"1 2 3 4 5 6 7 8 9" in answered


async def come_and_go(site: Site, chance: random.Random, number: int) -> None:
    """Connect, send nothing, some or all of a request, perhaps read some of the answer, and leave in some way."""
    content = chance.choice([f"!count 300{number % 5}", f"{number % 5}" + "x" * 2000])
    data = asked(site, content, stream=chance.random() < 0.5, route=chance.choice(ROUTES))
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    whole = chance.random() < 0.7
    writer.write(data if whole else data[: chance.randrange(len(data))])
    await asyncio.sleep(chance.choice([0, 0.005, 0.05, 0.2]))
    if whole and chance.random() < 0.3:
        with suppress(TimeoutError):
            await asyncio.wait_for(reader.read(100), 0.3)
    writer.transport.abort() if chance.random() < 0.5 else writer.close()


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
