"""Hazards of the gateway: a backend that breaks the others, a list that is out of date, a key that is used too long."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from modeld.errors import (
    AuthenticationError,
    BackendError,
    BackendNotFoundError,
    InvalidRequestError,
    NodeError,
    NotSupportedError,
    RefusedError,
)
from modeld.node.backends import FILE_NAME, ConfiguredBackend, add_backend, list_backends, remove_backend
from modeld.node.gateway import Gateway
from modeld.types import Message, TextPart
from support.echo_backend import KEY, MODELS, Echo, echo_registered

pytestmark = pytest.mark.anyio

ASK = [Message("user", "to be or not")]


def backend(name: str = "cloud", **fields: str) -> ConfiguredBackend:
    return ConfiguredBackend(**{"name": name, "type": "echo", "base_url": "here", **fields})


@pytest.fixture
def echo() -> Iterator[type[Echo]]:
    with echo_registered() as made:
        yield made


@pytest.fixture
async def gateway(tmp_path: Path, echo: type[Echo]) -> AsyncIterator[Gateway]:
    made = Gateway(tmp_path)
    yield made
    await made.aclose()


async def added(root: Path, entry: ConfiguredBackend, **how: str | bool) -> None:
    """As another process would do it."""
    await asyncio.to_thread(add_backend, root, entry, **how)


async def test_every_call_reaches_the_backend_it_names(gateway: Gateway, echo: type[Echo]) -> None:
    written = await gateway.register_backend(backend(), secret=KEY)
    assert written == backend(key="file:secrets/cloud")
    assert await gateway.list_backends() == [written]
    models = await gateway.list_models("cloud")
    assert [model.name for model in models] == list(MODELS)
    assert models[0].meta == {"from": "here"}
    result = await gateway.chat("cloud", "echo", ASK, temperature=0.5, stop=["x"])
    assert (result.text, result.finish_reason, result.id) == ("tobeornot", "stop", "a-1")
    assert (echo.calls[0].config.temperature, echo.calls[0].config.stop) == (0.5, ("x",))
    async with await gateway.stream("cloud", "echo", ASK) as stream:
        assert await anext(aiter(stream)) == TextPart("to")
    assert echo.closed == 1
    embedded = await gateway.embed("cloud", "echo", ["a", "bc"], dimensions=2)
    assert embedded.vectors == ((0.1, 0.1), (0.1, 0.1))
    assert (embedded.model, embedded.usage.input) == ("echo", 5)
    assert await gateway.prompt("cloud", "echo", "", 0.0, "hello there") == "hellothere"
    assert {spec.api_key for spec in echo.specs} == {KEY}
    await gateway.remove_backend("cloud")
    assert await gateway.list_backends() == []


async def test_errors_of_the_backend_pass_as_they_are(gateway: Gateway) -> None:
    await gateway.register_backend(backend())
    with pytest.raises(RefusedError):
        await gateway.chat("cloud", "refuse", ASK)
    with pytest.raises(BackendError):
        await (await gateway.stream("cloud", "cut", ASK)).join()
    for call in (gateway.chat, gateway.stream):
        with pytest.raises(NotSupportedError):
            await call("cloud", "nothing", ASK)
        with pytest.raises(InvalidRequestError, match="no_such_option"):
            await call("cloud", "echo", ASK, no_such_option=1)


async def test_a_backend_that_is_not_there_is_named_with_those_that_are(gateway: Gateway) -> None:
    await gateway.register_backend(backend())
    for name, error in (("other", BackendNotFoundError), ("", InvalidRequestError)):
        for call in (
            gateway.list_models(name),
            gateway.chat(name, "echo", ASK),
            gateway.stream(name, "echo", ASK),
            gateway.embed(name, "echo", ["a"]),
            gateway.prompt(name, "echo", "", None, "x"),
            gateway.remove_backend(name),
        ):
            with pytest.raises(error) as caught:
                await call
            assert error is InvalidRequestError or "cloud" in str(caught.value)


async def test_what_others_write_is_taken_over_by_the_next_call(gateway: Gateway, tmp_path: Path) -> None:
    await added(tmp_path, backend(base_url="one"))
    assert (await gateway.list_models("cloud"))[0].meta == {"from": "one"}
    await added(tmp_path, backend(base_url="two"), replace=True)
    assert (await gateway.list_models("cloud"))[0].meta == {"from": "two"}
    await asyncio.to_thread(remove_backend, tmp_path, "cloud")
    with pytest.raises(BackendNotFoundError):
        await gateway.list_models("cloud")
    (tmp_path / FILE_NAME).unlink()
    assert await gateway.list_backends() == []


async def test_the_file_is_read_when_it_changed_and_not_else(
    gateway: Gateway, tmp_path: Path, echo: type[Echo], monkeypatch: pytest.MonkeyPatch
) -> None:
    await added(tmp_path, backend(), secret=KEY)
    await gateway.chat("cloud", "echo", ASK)
    reads = []
    monkeypatch.setattr("modeld.node.gateway.list_backends", lambda root: reads.append(root) or list_backends(root))
    for _ in range(3):
        await gateway.chat("cloud", "echo", ASK)
    assert reads == []
    assert len(echo.specs) == 1
    os.utime(tmp_path / FILE_NAME)
    await gateway.chat("cloud", "echo", ASK)
    assert len(reads) == 1
    assert len(echo.specs) == 1, "nothing of it changed"


async def test_a_missing_key_is_the_trouble_of_its_own_backend(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    await added(tmp_path, backend("broken", key="env:NO_KEY"))
    await added(tmp_path, backend("fine"), secret=KEY)
    for _ in range(2):
        with pytest.raises(AuthenticationError, match="NO_KEY"):
            await gateway.chat("broken", "echo", ASK)
        assert (await gateway.chat("fine", "echo", ASK)).text == "tobeornot"
    assert [entry.name for entry in await gateway.list_backends()] == ["broken", "fine"]
    monkeypatch.setenv("NO_KEY", KEY)
    assert (await gateway.chat("broken", "echo", ASK)).text == "tobeornot"


async def test_a_slow_keyring_holds_up_nobody_else(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import threading
    from types import SimpleNamespace

    answer, asked = threading.Event(), []

    def ask(*words: str) -> str:
        asked.append(words)
        answer.wait(10)
        return KEY

    monkeypatch.setitem(__import__("sys").modules, "keyring", SimpleNamespace(get_password=ask))
    await added(tmp_path, backend("slow", key="keyring:a/b"))
    await added(tmp_path, backend("fine"), secret=KEY)
    waiting = [asyncio.create_task(gateway.chat("slow", "echo", ASK)) for _ in range(3)]
    while not asked:
        await asyncio.sleep(0.01)
    assert (await gateway.chat("fine", "echo", ASK)).text == "tobeornot"
    answer.set()
    assert {(await task).text for task in waiting} == {"tobeornot"}
    assert len(asked) == 1


async def test_a_key_file_that_changed_is_used_at_once(gateway: Gateway, tmp_path: Path, echo: type[Echo]) -> None:
    key = tmp_path / "key"
    key.write_text("sk-old")
    key.chmod(0o600)
    await added(tmp_path, backend(key="file:key"))
    with pytest.raises(AuthenticationError, match="not taken"):
        await gateway.chat("cloud", "echo", ASK)
    key.write_text(KEY)
    assert (await gateway.chat("cloud", "echo", ASK)).text == "tobeornot"
    assert [spec.api_key for spec in echo.specs] == ["sk-old", KEY]
    assert [spec.api_key for spec in echo.aclosed] == ["sk-old"]


async def test_what_cannot_be_used_is_not_written(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    await gateway.register_backend(backend())
    before = (tmp_path / FILE_NAME).read_bytes()
    for wrong, error in (
        (backend(base_url="broken"), InvalidRequestError),
        (backend(type="nonsense"), InvalidRequestError),
        (backend(key="env:NO_KEY"), AuthenticationError),
    ):
        with pytest.raises(error):
            await gateway.register_backend(wrong, replace=True)
    with pytest.raises(InvalidRequestError, match="already"):
        await gateway.register_backend(backend())
    assert (tmp_path / FILE_NAME).read_bytes() == before
    assert (await gateway.chat("cloud", "echo", ASK)).text == "tobeornot"
    assert (await gateway.register_backend(backend("later", key="env:NO_KEY"), known_key=False)).name == "later"


async def test_a_running_stream_goes_on_when_its_backend_is_replaced_or_removed(gateway: Gateway) -> None:
    await gateway.register_backend(backend())
    async with await gateway.stream("cloud", "echo", ASK) as stream:
        await gateway.register_backend(backend(base_url="two"), replace=True)
        await gateway.list_models("cloud")
        await gateway.remove_backend("cloud")
        assert (await stream.join()).text == "tobeornot"


async def test_a_list_that_cannot_be_read_is_said_and_mended(gateway: Gateway, tmp_path: Path) -> None:
    await gateway.register_backend(backend())
    path = tmp_path / FILE_NAME
    path.chmod(0o644)
    os.utime(path)
    for call in (gateway.list_backends, lambda: gateway.chat("cloud", "echo", ASK)):
        with pytest.raises(NodeError, match="chmod 600"):
            await call()
    path.chmod(0o600)
    assert (await gateway.chat("cloud", "echo", ASK)).text == "tobeornot"


async def test_local_models_get_the_node_itself(tmp_path: Path, echo: type[Echo]) -> None:
    node = object()

    async def service() -> object:
        return node

    gateway = Gateway(tmp_path, service)
    await gateway.register_backend(backend())
    await gateway.chat("cloud", "local", ASK)
    await gateway.aclose()
    await gateway.aclose()
    assert echo.services == [node]


async def test_no_repr_holds_a_key(gateway: Gateway) -> None:
    await gateway.register_backend(backend(), secret=KEY)
    await gateway.chat("cloud", "echo", ASK)
    assert "cloud" in repr(gateway._registered)
    assert KEY not in repr(vars(gateway))


async def test_many_who_write_and_call_at_once_see_a_backend_whole_or_not_at_all(
    gateway: Gateway, tmp_path: Path
) -> None:
    end = asyncio.get_running_loop().time() + 1.5
    seen = {"answers": 0}

    async def write(name: str) -> None:
        while asyncio.get_running_loop().time() < end:
            for url in ("one", "two"):
                await added(tmp_path, backend(name, base_url=url), secret=KEY, replace=True)
                await asyncio.sleep(0)
            await asyncio.to_thread(remove_backend, tmp_path, name)

    async def call(name: str) -> None:
        while asyncio.get_running_loop().time() < end:
            try:
                models = await gateway.list_models(name)
            except (BackendNotFoundError, AuthenticationError):
                continue  # it, or its key, was removed between two looks
            assert models[0].meta["from"] in ("one", "two")
            seen["answers"] += 1

    names = ("a", "b")
    await asyncio.gather(*(write(name) for name in names), *(call(name) for name in names for _ in range(4)))
    assert seen["answers"] > 10
    await added(tmp_path, backend("a", base_url="last"))
    assert (await gateway.list_models("a"))[0].meta == {"from": "last"}
    with pytest.raises(BackendNotFoundError):
        await gateway.list_models("b")
