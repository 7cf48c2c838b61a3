"""Hazards of a node that comes and goes: flags that lie, calls that dial in vain, errors that do not say what to do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import modeld
from modeld import (
    BackendMismatchError,
    BackendSpec,
    Daemon,
    Message,
    ModelError,
    NodeNotRunningError,
    NodeStaleError,
    NodeUnreachableError,
)
from modeld.node.config import NodeConfig
from modeld.node.record import probe
from modeld.providers.llama import LlamaWire
from modeld.providers.openvino import OpenvinoWire
from modeld.repository import CatalogOptions, Provider, RetryPolicy, new_catalog_provider
from modeld.repository.provider import WireCatalog
from modeld.transport import host
from modeld.transport.host import HostConfig, hosted
from support.engines import TINY_F16

pytestmark = pytest.mark.anyio

ONCE = RetryPolicy(attempts=1)
GREEDY = {"temperature": 0, "max_tokens": 40}
ASK = [Message("user", "Count to 5.")]


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The data root that everybody here uses; nobody owns it yet."""
    monkeypatch.setenv("PYTHONPATH", str(Path(modeld.__file__).parent.parent))
    modeld.set_data_root(tmp_path / "root")
    yield tmp_path / "root"
    modeld.set_data_root(None)


@pytest.fixture
async def owner(root: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    """A node of this very process, without OpenVINO whatever is installed."""
    monkeypatch.setattr(host, "serves_openvino", lambda: False)
    async with hosted(HostConfig(node=NodeConfig(data_root=root)), lambda: None):
        yield
        if modeld.available():
            await (await modeld.client.shared_client()).aclose()


def start(root: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "modeld", "serve", "--data-root", str(root)]
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 20
    while (record := probe(root).record) is None or record.pid != child.pid or not record.endpoint:
        assert time.monotonic() < end
        time.sleep(0.01)
    return child


def flags(provider: Provider) -> set[bool]:
    return {provider.can_chat, provider.can_stream, provider.can_prompt}


def provider_of(type_: str, model: str = "tiny") -> Provider:
    return new_catalog_provider(BackendSpec(type_), CatalogOptions(retry=ONCE)).provider_for(model)


def test_flags_follow_the_owners_life_and_dial_nobody(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def blocked(*arguments: object) -> None:
        raise AssertionError("a socket was made")

    provider = provider_of("llama")
    assert flags(provider) == {False}
    assert not root.exists()
    child = start(root)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "socket", blocked)
            assert flags(provider) == {True}
            assert (provider.can_embed, provider.can_vision, provider.can_think) == (True, False, False)
            assert not provider_of("openvino").can_embed
            assert flags(provider_of("openvino")) == {"openvino" in modeld.client.owner().serves}
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert flags(provider) == {False}
    wire = LlamaWire(BackendSpec("llama"), CatalogOptions())
    reason = wire.unavailable(wire.model("tiny"), "chat")
    assert isinstance(reason, NodeStaleError)
    assert "modeld serve" in reason.message


async def test_without_a_node_the_reason_says_how_to_start_one(root: Path) -> None:
    for wire in (LlamaWire(BackendSpec("local"), CatalogOptions()), OpenvinoWire(BackendSpec("x"), CatalogOptions())):
        reason = wire.unavailable(wire.model("tiny"), "chat")
        assert isinstance(reason, NodeNotRunningError)
        assert "modeld serve" in reason.message
        provider = WireCatalog(wire).provider_for("tiny")
        for connect in (provider.chat_client, provider.stream_client, provider.prompt_client, provider.embed_client):
            with pytest.raises(NodeNotRunningError, match="modeld serve"):
                await connect()


async def test_a_client_from_better_days_says_that_no_node_runs(root: Path) -> None:
    child = start(root)
    try:
        client = await provider_of("llama").chat_client()
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    with pytest.raises(NodeStaleError, match="modeld serve"):
        await client.chat(ASK)
    os.unlink(root / "owner.json")
    with pytest.raises(NodeNotRunningError, match="modeld serve"):
        await client.chat(ASK)


async def test_an_owner_that_does_not_serve_the_type_is_named(root: Path, owner: None) -> None:
    assert modeld.available()
    provider = provider_of("openvino", "vino")
    assert flags(provider) == {False}
    with pytest.raises(BackendMismatchError):
        await provider.chat_client()
    wire = OpenvinoWire(BackendSpec("openvino"), CatalogOptions())
    reason = wire.unavailable(wire.model("vino"), "chat")
    assert isinstance(reason, BackendMismatchError)
    assert (reason.wanted, reason.served) == ("openvino", ["llama"])
    assert "pip install 'modeld[openvino]'" in reason.message
    assert LlamaWire(BackendSpec("llama"), CatalogOptions()).unavailable(wire.model("tiny"), "chat") is None


async def test_an_owner_of_several_engines_serves_each(root: Path, owner: None) -> None:
    text = (root / "owner.json").read_text()
    (root / "owner.json").write_text(text.replace('"serves":["llama"]', '"serves":["llama","openvino"]'))
    assert modeld.backend() == "llama"
    assert flags(provider_of("openvino")) == flags(provider_of("llama")) == {True}


async def test_a_model_the_node_cannot_use_says_why(root: Path, owner: None, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "bad.gguf").write_bytes(b"G" * 100)
    wire = LlamaWire(BackendSpec("llama", str(tmp_path / "models")), CatalogOptions(retry=ONCE))
    (bad,) = await WireCatalog(wire).list_models()
    provider = WireCatalog(wire).provider_for(bad)
    assert flags(provider) == {False}
    assert isinstance(wire.unavailable(bad, "chat"), ModelError)
    with pytest.raises(ModelError, match=r"bad\.gguf"):
        await provider.chat_client()


class Dying:
    """A node that ends while it is asked."""

    async def describe(self, ref: object) -> None:
        raise NodeUnreachableError("gone", endpoint="", pid=0)


async def test_a_node_that_ends_during_the_listing_leaves_what_is_on_the_disk(tmp_path: Path) -> None:
    (tmp_path / "one.gguf").write_bytes(b"G")

    async def service() -> Dying:
        return Dying()

    options = CatalogOptions(retry=ONCE, service=service)  # type: ignore[arg-type]
    (model,) = await new_catalog_provider(BackendSpec("llama", str(tmp_path)), options).list_models()
    assert (model.name, model.size, model.meta) == ("one", 1, {"type": "llama"})


async def test_a_backend_named_local_is_registered_listed_and_called(root: Path, owner: None, tmp_path: Path) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "models" / "mine" / "model.gguf").write_bytes(TINY_F16.read_bytes())
    folder = str(tmp_path / "models")
    daemon = Daemon()
    await daemon.register_backend("box", BackendSpec("local", folder))
    (listed,) = await daemon.list_models("box")
    assert (listed.name, listed.capabilities.can_chat, len(listed.digest)) == ("mine", True, 64)
    for model in (listed, "mine"):
        provider = daemon.provider_for("box", model)
        assert (provider.id, provider.type, provider.backend_ids) == ("llama:mine", "llama", (folder,))
        assert flags(provider) == {True}
        result = await (await provider.chat_client(folder)).chat(ASK, **GREEDY)
        assert result.model == "mine"
        joined = await (await (await provider.stream_client()).stream(ASK, **GREEDY)).join()
        assert joined.text == result.text
        assert await (await provider.prompt_client()).prompt("", 0, "Count to 5.") == result.text
        embedder = await provider.embed_client()
        one, two = await embedder.embed(["Hello!", "Count to 5."])
        assert (len(one), len(two)) == (128, 128)
        assert sum(a * a for a in one) == pytest.approx(1)
        assert await embedder.embed("Hello!", dimensions=4) == pytest.approx(
            [a / sum(b * b for b in one[:4]) ** 0.5 for a in one[:4]], abs=1e-5
        )
    await daemon.stop()


async def test_relative_folders_and_the_home_folder_are_found(
    root: Path, owner: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.gguf").write_bytes(TINY_F16.read_bytes())
    monkeypatch.setenv("HOME", str(tmp_path))
    daemon = Daemon()
    await daemon.register_backend("box", BackendSpec("llama", "~/models"))
    assert [model.name for model in await daemon.list_models("box")] == ["mine"]
    monkeypatch.chdir(tmp_path)
    await daemon.register_backend("box", BackendSpec("llama", "models"))
    monkeypatch.chdir("/")
    client = await daemon.provider_for("box", "mine").chat_client()
    assert (await client.chat(ASK, **GREEDY)).text
