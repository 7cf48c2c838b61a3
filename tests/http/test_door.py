"""Hazard: a node that opens what nobody asked for, dies of a port, or ends in the middle of an answer."""

from __future__ import annotations

import asyncio
import builtins
import socket
import ssl
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest

from modeld.errors import InvalidRequestError, LeaseLostError, MissingDependencyError, TLSRequiredError
from modeld.http.door import HttpConfig, HttpDoor
from modeld.http.server import bound_socket
from modeld.node.config import NodeConfig
from modeld.node.gateway import Gateway
from modeld.node.node import Node

from .conftest import Opened

pytestmark = pytest.mark.anyio


async def opened(root: Path, **config: Any) -> tuple[HttpDoor, str]:
    door = HttpDoor(HttpConfig(**{"data_root": root, "host": "127.0.0.1", "port": 0} | config))
    return door, await door.open(Node(NodeConfig(data_root=root, allow_fake=True)), Gateway(root))


async def test_a_taken_port_is_told_and_not_fatal_unless_it_was_asked_for(tmp_path: Path) -> None:
    with bound_socket("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        door, endpoint = await opened(tmp_path, port=port)
        assert endpoint == ""
        assert door.state.startswith(f"off: cannot serve HTTP on 127.0.0.1:{port}: ")
        await door.close(1)
        with pytest.raises(InvalidRequestError, match=str(port)):
            await opened(tmp_path, port=port, required=True)


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid", "x" * 70])
async def test_an_address_that_is_none_of_ours(tmp_path: Path, host: str) -> None:
    with pytest.raises(InvalidRequestError, match="cannot serve HTTP"):
        bound_socket(host, 0)


async def test_without_the_extra_the_node_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "starlette":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *rest)

    for name in [name for name in sys.modules if name.startswith(("modeld.http.", "starlette"))]:
        if name != "modeld.http.door":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    door, endpoint = await opened(tmp_path)
    assert endpoint == ""
    assert "pip install 'modeld[http]'" in door.state
    with pytest.raises(MissingDependencyError):
        await opened(tmp_path, required=True)


async def test_beyond_loopback_nothing_is_plain(tmp_path: Path) -> None:
    with pytest.raises(TLSRequiredError):
        await opened(tmp_path, host="0.0.0.0", tls=False, required=True)


async def test_tls_with_a_certificate_of_its_own(open_site: Opened) -> None:
    site = await open_site(tls=True)
    assert site.url.startswith("https://127.0.0.1:")
    trust = ssl.create_default_context(cadata=(site.root / "tls.pem").read_text().partition("-----BEGIN CERT")[2].join(
        ("-----BEGIN CERT", "")))  # fmt: skip
    async with httpx2.AsyncClient(base_url=site.url, headers=site.headers, verify=trust) as web:
        assert (await web.get("/v1/models")).status_code == 200
    with socket.create_connection(("127.0.0.1", site.port), 5) as plain:
        plain.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        plain.settimeout(5)
        assert b"200" not in await asyncio.to_thread(plain.recv, 100)


async def test_a_running_answer_ends_before_the_door_closes(open_site: Opened) -> None:
    site = await open_site()
    body = {"model": "fake:delay=0.005", "messages": [{"role": "user", "content": "!count 30"}]}
    async with httpx2.AsyncClient(base_url=site.url, headers=site.headers) as web:
        answer = asyncio.ensure_future(web.post("/v1/chat/completions", json=body))
        async with asyncio.timeout(5):
            while not (await site.node.status()).active:
                await asyncio.sleep(0.005)
        await site.door.close(10)
        assert (await answer).json()["choices"][0]["message"]["content"].endswith("30")
        with pytest.raises(httpx2.ConnectError):
            await web.get("/health")


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_outlasts_the_grace_is_ended(open_site: Opened, stream: bool) -> None:
    site = await open_site()
    body = {"model": "fake:delay=0.005", "messages": [{"role": "user", "content": "!count 900"}], "stream": stream}
    async with httpx2.AsyncClient(base_url=site.url, headers=site.headers) as web:
        answer = asyncio.ensure_future(web.post("/v1/chat/completions", json=body, timeout=20))
        await asyncio.sleep(1)
        await site.door.close(0.1)
        if stream:
            assert '"code":"unavailable"' in (await answer).text.splitlines()[-2]
        else:
            assert (await answer).status_code == 503
    await site.until_idle()


async def test_a_lost_lease_is_503(open_site: Opened) -> None:
    site = await open_site()
    site.node.refuse(LeaseLostError("the lease is lost", reason="lock-lost"))
    async with httpx2.AsyncClient(base_url=site.url, headers=site.headers) as web:
        answer = await web.post(
            "/v1/chat/completions", json={"model": "fake", "messages": [{"role": "user", "content": "x"}]}
        )
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "lease_lost")
        assert answer.headers["retry-after"] == "1"


async def test_a_crash_of_the_engine_is_503_and_the_next_call_is_answered(open_site: Opened) -> None:
    site = await open_site()
    async with httpx2.AsyncClient(base_url=site.url, headers=site.headers) as web:
        for content, status in (("!abort", 503), ("hello", 200)):
            body = {"model": "fake", "messages": [{"role": "user", "content": content}]}
            answer = await web.post("/v1/chat/completions", json=body)
            assert answer.status_code == status, answer.text
