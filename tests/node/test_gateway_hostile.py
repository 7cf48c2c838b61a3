"""Hazards of a gateway: a keyring that never answers, an entry that makes the list unreadable, false addresses."""

from __future__ import annotations

import asyncio
import gc
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from modeld.client import connect
from modeld.errors import AuthenticationError, InvalidRequestError
from modeld.node import backends
from modeld.node.backends import ConfiguredBackend, add_backend, list_backends
from modeld.node.config import NodeConfig
from modeld.node.gateway import Gateway
from modeld.node.secrets import check_reference, resolve
from modeld.transport.host import HostConfig, hosted
from modeld.types import Message
from support.echo_backend import KEY, echo_registered

pytestmark = pytest.mark.anyio

ASK = [Message("user", "to be")]


async def test_a_keyring_that_never_answers_takes_no_thread_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, asked = threading.Event(), []

    def ask(*words: str) -> str:
        asked.append(words)
        answer.wait(20)
        return KEY

    monkeypatch.setitem(__import__("sys").modules, "keyring", SimpleNamespace(get_password=ask))
    with echo_registered():
        gateway = Gateway(tmp_path)
        for name in ("slow", "slower"):
            entry = ConfiguredBackend(name=name, type="echo", key=f"keyring:{name}/b")
            await asyncio.to_thread(add_backend, tmp_path, entry)
        for _ in range(40):
            for name in ("slow", "slower"):
                call = asyncio.create_task(gateway.chat(name, "echo", ASK))
                await asyncio.sleep(0.002)
                call.cancel()
                await asyncio.gather(call, return_exceptions=True)
        async with asyncio.timeout(5):
            assert len(await gateway.list_backends()) == 2
        assert len(asked) == 2
        answer.set()
        assert (await gateway.chat("slow", "echo", ASK)).text == "tobe"
        await gateway.aclose()


async def test_an_answer_that_is_forgotten_ends_behind_the_node_too(tmp_path: Path) -> None:
    with echo_registered() as echo:
        config = HostConfig(node=NodeConfig(data_root=tmp_path / "root"))
        async with hosted(config, lambda: None), await connect(tmp_path / "root") as client:
            await client.repository.register_backend(ConfiguredBackend(name="a", type="echo"))
            answer = await client.repository.stream("a", "endless", ASK)
            assert echo.closed == 0
            del answer
            gc.collect()
            async with asyncio.timeout(5):
                while echo.closed == 0:
                    await asyncio.sleep(0.01)


@pytest.mark.parametrize("url", ["http://[::1", "x" * 5000])
async def test_an_address_that_is_none_is_refused(tmp_path: Path, url: str) -> None:
    gateway = Gateway(tmp_path)
    with pytest.raises(InvalidRequestError) as caught:
        await gateway.register_backend(ConfiguredBackend(name="a", type="openai", base_url=url), secret=KEY)
    assert len(str(caught.value)) < 500
    assert await gateway.list_backends() == []


def test_a_list_that_could_not_be_read_again_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "MAX_BYTES", 1000)
    add_backend(tmp_path, ConfiguredBackend(name="a", type="openai", base_url="http://h/v1"), secret=KEY)
    long = ConfiguredBackend(name="b", type="openai", base_url="http://h/" + "x" * 1000)
    with pytest.raises(InvalidRequestError, match="at most 1000"):
        add_backend(tmp_path, long, secret=KEY)
    assert [backend.name for backend in list_backends(tmp_path)] == ["a"]
    assert not (tmp_path / "secrets" / "b").exists()


def test_a_reference_to_nobodys_home_is_a_missing_key(tmp_path: Path) -> None:
    with pytest.raises(AuthenticationError, match="no such user"):
        resolve("file:~nobody-of-that-name/key", tmp_path)
    with pytest.raises(InvalidRequestError):
        check_reference("file:\ud800")
