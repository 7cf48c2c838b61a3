"""A node with HTTP in this process, and clients of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest

from modeld.http.door import HttpConfig, HttpDoor
from modeld.node.config import NodeConfig
from modeld.node.node import Node
from modeld.transport.host import HostConfig, hosted
from modeld.transport.security import read_token


@dataclass
class Site:
    """Where the node serves HTTP."""

    node: Node
    url: str
    token: str
    door: HttpDoor
    root: Path

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"}

    def sdk(self, **options: Any) -> openai.AsyncOpenAI:
        """The official client, that tries nothing twice."""
        return openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key=self.token, max_retries=0, **options)

    def claude(self, **options: Any) -> anthropic.AsyncAnthropic:
        """Anthropic's official client, likewise."""
        return anthropic.AsyncAnthropic(base_url=self.url, api_key=self.token, max_retries=0, **options)

    async def until_idle(self, seconds: float = 5.0) -> None:
        """Wait until no call runs."""
        async with asyncio.timeout(seconds):
            while (await self.node.status()).active:
                await asyncio.sleep(0.005)

    async def raw(self, data: bytes, *, end: bool = False, seconds: float = 0.3) -> bytes:
        """What comes back for bytes until the server closes, or is silent for so long."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(data)
            if end:
                writer.write_eof()
            found = b""
            with suppress(TimeoutError, ConnectionResetError):
                while piece := await asyncio.wait_for(reader.read(65536), seconds):
                    found += piece
            return found
        finally:
            writer.close()


Opened = Callable[..., Awaitable[Site]]


@pytest.fixture(scope="module")
async def open_site(tmp_path_factory: pytest.TempPathFactory, anyio_backend: str) -> AsyncIterator[Opened]:
    """Start a node with HTTP on a free port; it ends with the module."""
    async with AsyncExitStack() as stack:

        async def start(*, node: dict[str, Any] | None = None, **http: Any) -> Site:
            root = tmp_path_factory.mktemp("root")
            config = HostConfig(node=NodeConfig(data_root=root, allow_fake=True, **(node or {})))
            door = HttpDoor(HttpConfig(data_root=root, host="127.0.0.1", port=0, required=True, **http))
            served, record, _ = await stack.enter_async_context(hosted(config, lambda: None, door))
            assert door.state == record.endpoints[-1] == served.http
            return Site(served, door.state, read_token(root), door, root)

        yield start


@pytest.fixture(scope="module")
async def site(open_site: Opened) -> Site:
    return await open_site()


@pytest.fixture
async def sdk(site: Site) -> AsyncIterator[openai.AsyncOpenAI]:
    async with site.sdk() as client:
        yield client


@pytest.fixture
async def claude(site: Site) -> AsyncIterator[anthropic.AsyncAnthropic]:
    async with site.claude() as client:
        yield client


@pytest.fixture
async def web(site: Site) -> AsyncIterator[httpx2.AsyncClient]:
    """Requests with the token."""
    async with httpx2.AsyncClient(base_url=site.url, headers=site.headers) as client:
        yield client


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """All that was logged so far, but by the clients in this process."""
    caplog.set_level(logging.DEBUG)
    return lambda: "\n".join(
        record.getMessage()
        for record in caplog.records
        if not record.name.startswith(("httpx2", "httpcore2", "openai", "anthropic"))
    )
