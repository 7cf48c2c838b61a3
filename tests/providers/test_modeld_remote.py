"""Hazards of a node elsewhere: one that was started again, one that is not the pinned one, one that ends in between."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from msgspec import structs

from modeld import (
    BackendSpec,
    Daemon,
    ImagePart,
    InvalidRequestError,
    Message,
    ModelError,
    ModelNotFoundError,
    ModelRef,
    NodeUnreachableError,
    NotSupportedError,
    TextPart,
    TLSRequiredError,
    TokenWrongError,
    Usage,
)
from modeld.node.config import NodeConfig
from modeld.node.node import Node
from modeld.node.store import bundled_path
from modeld.providers import modeld as module
from modeld.providers.modeld import ModeldWire, parse_address
from modeld.repository import CatalogOptions, CatalogProvider, RetryPolicy, new_catalog_provider
from modeld.repository.client import WireClient
from modeld.repository.provider import WireCatalog
from modeld.transport.grpc.client import RemoteNode
from modeld.transport.host import HostConfig, hosted
from modeld.transport.security import own_pin, read_token

pytestmark = pytest.mark.anyio

ONCE = RetryPolicy(attempts=1)
GREEDY = {"temperature": 0, "max_tokens": 400}
TOKEN = "a-token-of-the-tests"
PIN = "sha256:" + "0" * 64


class Elsewhere:
    """A node on a port of its own that can end and come back."""

    def __init__(self, root: Path, *, tls: bool = False) -> None:
        self.root = root
        self.node: Node | None = None
        self.epochs: list[int] = []
        self._tls = tls
        self._port = 0
        self._stack = AsyncExitStack()

    async def start(self) -> None:
        config = NodeConfig(data_root=self.root, allow_fake=True)
        host = HostConfig(node=config, listen=("127.0.0.1", self._port), tls=self._tls)
        self.node, record, _ = await self._stack.enter_async_context(hosted(host, lambda: None))
        self.epochs.append(record.epoch)
        self._port = int(record.endpoints[1].rpartition(":")[2])

    async def stop(self) -> None:
        await self._stack.aclose()

    @property
    def url(self) -> str:
        if not self._tls:
            return f"modeld://127.0.0.1:{self._port}"
        return f"modeld+tls://127.0.0.1:{self._port}?pin={own_pin(self.root, None)}"

    @property
    def spec(self) -> BackendSpec:
        return BackendSpec("modeld", self.url, read_token(self.root))


@pytest.fixture
async def elsewhere(tmp_path: Path) -> AsyncIterator[Elsewhere]:
    made = Elsewhere(tmp_path / "root")
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def wire(elsewhere: Elsewhere) -> AsyncIterator[ModeldWire]:
    spec = await asyncio.to_thread(lambda: elsewhere.spec)
    made = ModeldWire(spec, CatalogOptions(retry=ONCE))
    yield made
    await made.aclose()


class Connects:
    """The addresses that were tried, and the connections that came of it."""

    def __init__(self) -> None:
        self.urls: list[str] = []
        self.made: list[RemoteNode] = []


@pytest.fixture
def connects(monkeypatch: pytest.MonkeyPatch) -> Connects:
    seen = Connects()
    connect = module.connect_remote

    async def counted(url: str, *, token: str, pin: str | None) -> RemoteNode:
        seen.urls.append(url)
        seen.made.append(await connect(url, token=token, pin=pin))
        return seen.made[-1]

    monkeypatch.setattr(module, "connect_remote", counted)
    return seen


def client_of(wire: ModeldWire, name: str = "fake") -> WireClient:
    return WireClient(wire, wire.model(name))


async def test_three_turns_prefill_only_what_is_new(wire: ModeldWire) -> None:
    client, talk, resident = client_of(wire), [Message("user", "one")], 0
    for ask in ("two", "three", "four"):
        result = await client.chat(talk, **GREEDY)
        assert (result.receipt.reused, result.receipt.dropped) == (resident, 0)
        resident = result.receipt.resident
        talk += [result.message, Message("user", ask)]


async def test_the_remote_nodes_models_are_described(elsewhere: Elsewhere) -> None:
    (elsewhere.root / "models").mkdir()
    (elsewhere.root / "models" / "bad.gguf").write_bytes(b"G" * 100)
    daemon = Daemon()
    await daemon.register_backend("there", await asyncio.to_thread(lambda: elsewhere.spec), retry=ONCE)
    bad, tiny = await daemon.list_models("there")
    assert (bad.name, bad.capabilities.can_chat) == ("bad", False)
    assert "bad.gguf" in bad.meta["error"]
    assert (tiny.name, tiny.size, tiny.meta["type"]) == ("tiny", bundled_path().stat().st_size, "llama")
    assert tiny.evidence["context_length"] == tiny.evidence["digest"] == "probed"
    provider = daemon.provider_for("there", tiny)
    assert (provider.id, provider.backend_ids) == ("modeld:tiny", (elsewhere.url,))
    assert (provider.can_chat, provider.can_prompt, provider.can_embed, provider.can_vision) == (
        True,
        True,
        True,
        False,
    )
    assert provider.context_length == tiny.context_length > 0
    result = await (await provider.chat_client(elsewhere.url)).chat([Message("user", "Hello!")], **GREEDY)
    assert (result.model, result.usage.source) == ("tiny", "counted")
    with pytest.raises(ModelError, match=r"bad\.gguf"):
        await daemon.provider_for("there", bad).chat_client()
    embedded = await (await provider.embed_client()).embed_result(["Hello!", "Bye."])
    assert (len(embedded.vectors), embedded.model, embedded.usage.source) == (2, "tiny", "counted")
    await daemon.stop()


async def test_a_listed_model_is_asked_for_by_its_identity(wire: ModeldWire) -> None:
    (tiny,) = await wire.list_models()
    assert await wire.ref(tiny) == ModelRef(name="tiny", type="llama", digest=tiny.digest)
    assert await wire.ref(wire.model("fake")) == ModelRef(name="fake")


async def test_images_are_refused_before_the_node_hears_of_them(elsewhere: Elsewhere, wire: ModeldWire) -> None:
    ask = [Message("user", "See?", images=(ImagePart(b"x", "image/png"),))]
    for call in (client_of(wire).chat, client_of(wire).stream):
        with pytest.raises(NotSupportedError) as caught:
            await call(ask, **GREEDY)
        assert (caught.value.code, caught.value.details["feature"]) == ("unsupported_feature", "images")
    assert elsewhere.node is not None
    status = await elsewhere.node.status()
    assert (status.state, status.sessions) == ("empty", 0)


async def test_usage_is_that_of_the_node_streamed_and_not(wire: ModeldWire) -> None:
    def told(usage: Usage) -> Usage:
        return structs.replace(usage, prefill_seconds=None, decode_seconds=None)

    client, asked = client_of(wire), [Message("user", "hello")]
    first, whole = [await client.chat(asked, **GREEDY) for _ in range(2)]
    assert first.usage == first.receipt.usage(first.usage.output or 0)
    assert (whole.usage.reused, whole.usage.prefilled) == ((first.usage.input or 0) - 1, 1)
    assert told((await (await client.stream(asked, **GREEDY)).join()).usage) == told(whole.usage)


async def test_errors_of_the_node_keep_their_types(wire: ModeldWire) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        await client_of(wire, "nowhere").chat([Message("user", "x")])
    assert caught.value.name == "nowhere"
    for name in ("../etc", "/tmp/x.gguf"):
        with pytest.raises(InvalidRequestError):
            await client_of(wire, name).chat([Message("user", "x")])


async def test_a_node_that_was_started_again_is_found(elsewhere: Elsewhere, wire: ModeldWire) -> None:
    client, asked = client_of(wire), [Message("user", "hello")]
    first = await client.chat(asked, **GREEDY)
    await elsewhere.stop()
    await elsewhere.start()
    assert (await client.chat(asked, **GREEDY)).text == first.text
    await elsewhere.stop()
    await elsewhere.start()
    assert [model.name for model in await WireCatalog(wire).list_models()] == ["tiny"]
    await elsewhere.stop()
    await elsewhere.start()
    async with await client.stream(asked, **GREEDY) as stream:
        assert (await stream.join()).text == first.text
    assert len(set(elsewhere.epochs)) == 4


async def test_many_calls_that_lose_the_node_share_the_way_back(
    elsewhere: Elsewhere, wire: ModeldWire, connects: Connects
) -> None:
    client = client_of(wire)
    await client.chat([Message("user", "warm")], **GREEDY)
    await elsewhere.stop()
    await elsewhere.start()
    results = await asyncio.gather(*(client.chat([Message("user", f"n{number}")], **GREEDY) for number in range(20)))
    assert [result.text.partition(" #")[0] for result in results] == [f"n{number}" for number in range(20)]
    assert len(connects.urls) == 2
    assert [node._wire._closed for node in connects.made] == [True, False]
    await wire.aclose()
    assert [node._wire._closed for node in connects.made] == [True, True]


async def test_an_answer_that_began_is_not_begun_again(
    elsewhere: Elsewhere, wire: ModeldWire, connects: Connects
) -> None:
    assert elsewhere.node is not None
    text = ""

    async def read() -> None:
        nonlocal text
        client = client_of(wire, "fake:delay=0.005")
        async with await client.stream([Message("user", "!count 400")], **GREEDY) as stream:
            async for part in stream:
                if isinstance(part, TextPart):
                    text += part.text
                    elsewhere.node.refuse(NodeUnreachableError("pulled out", endpoint="", pid=0))

    with pytest.raises(NodeUnreachableError, match="pulled out"):
        await read()
    assert "1 2 3 4 5 6 7 8 9 10".startswith(text[:20])
    assert len(connects.urls) == 1
    await elsewhere.stop()
    await elsewhere.start()
    assert (await client_of(wire).chat([Message("user", "again")], **GREEDY)).text.startswith("again #")


async def test_nobody_there_is_said_after_one_attempt(connects: Connects) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"modeld://127.0.0.1:{free.getsockname()[1]}"
    catalog = new_catalog_provider(BackendSpec("modeld", url, TOKEN), CatalogOptions(retry=ONCE))
    with pytest.raises(NodeUnreachableError):
        await catalog.list_models()
    client = await catalog.provider_for("fake").chat_client()
    with pytest.raises(NodeUnreachableError):
        await client.chat([Message("user", "x")])
    assert connects.urls == [url, url]
    await catalog.aclose()


async def test_calls_at_once_share_one_connection(wire: ModeldWire, connects: Connects) -> None:
    client, asked = client_of(wire), [Message("user", "!count 50")]
    results = await asyncio.gather(*(client.chat(asked, **GREEDY) for _ in range(8)))
    assert len({result.text for result in results}) == 1
    assert len(connects.urls) == 1


async def test_a_stream_that_is_left_ends_on_the_node(elsewhere: Elsewhere, wire: ModeldWire) -> None:
    assert elsewhere.node is not None
    async with await client_of(wire, "fake:delay=0.01").stream([Message("user", "!count 400")]) as stream:
        await anext(aiter(stream))
    assert not any(tape.busy for tapes in wire.tapes._known.values() for tape in tapes)
    async with asyncio.timeout(10):
        while (await elsewhere.node.status()).active:
            await asyncio.sleep(0.01)
    assert (await client_of(wire).chat([Message("user", "still there")], **GREEDY)).text


async def test_a_wrong_token_is_the_nodes_to_refuse(elsewhere: Elsewhere) -> None:
    catalog = new_catalog_provider(BackendSpec("modeld", elsewhere.url, TOKEN), CatalogOptions(retry=ONCE))
    with pytest.raises(TokenWrongError) as caught:
        await catalog.list_models()
    assert TOKEN not in str(caught.value.details) + caught.value.message
    await catalog.aclose()


async def test_only_the_pinned_certificate_is_trusted(tmp_path: Path) -> None:
    elsewhere = Elsewhere(tmp_path / "root", tls=True)
    await elsewhere.start()
    try:
        spec = await asyncio.to_thread(lambda: elsewhere.spec)
        good = WireCatalog(ModeldWire(spec, CatalogOptions(retry=ONCE)))
        client = await good.provider_for("fake").chat_client()
        assert (await client.chat([Message("user", "hello")], **GREEDY)).text.startswith("hello #")
        await good.aclose()
        url = spec.base_url.partition("?")[0]
        for suffix, reason in ((f"?pin={PIN}", "pin"), ("", "certificate")):
            bad = new_catalog_provider(BackendSpec("modeld", url + suffix, spec.api_key), CatalogOptions(retry=ONCE))
            with pytest.raises(NodeUnreachableError) as caught:
                await bad.list_models()
            assert caught.value.details["reason"] == reason
            await bad.aclose()
    finally:
        await elsewhere.stop()


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://127.0.0.1:1",
        "modeld://127.0.0.1",
        f"modeld://127.0.0.1:1?pin={PIN}",
        "modeld+tls://h:1?pin=",
        "modeld+tls://h:1?pin=md5:00",
        "modeld+tls://h:1?",
        "modeld+tls://h:1?token=x",
        f"modeld+tls://h:1?pin={PIN}&pin={PIN}",
        f"modeld+tls://h:1#pin={PIN}",
    ],
)
def test_a_spec_that_cannot_be_used_is_refused_at_once(url: str) -> None:
    with pytest.raises(InvalidRequestError):
        new_catalog_provider(BackendSpec("modeld", url, TOKEN))


def test_plain_beyond_loopback_and_a_missing_token_are_refused_at_once() -> None:
    with pytest.raises(TLSRequiredError):
        new_catalog_provider(BackendSpec("modeld", "modeld://192.0.2.77:1", TOKEN))
    with pytest.raises(InvalidRequestError, match="token"):
        new_catalog_provider(BackendSpec("modeld", "modeld+tls://h:1"))


def test_one_backend_serves_several_event_loops(tmp_path: Path) -> None:
    async def ask(catalog: CatalogProvider) -> str:
        client = await catalog.provider_for("fake").chat_client()
        return (await client.chat([Message("user", "hello")], **GREEDY)).text

    async def main() -> None:
        elsewhere = Elsewhere(tmp_path / "root")
        await elsewhere.start()
        spec = await asyncio.to_thread(lambda: elsewhere.spec)
        catalog = new_catalog_provider(spec, CatalogOptions(retry=ONCE))
        here = await ask(catalog)
        assert await asyncio.to_thread(asyncio.run, ask(catalog)) == here
        assert await ask(catalog) == here
        await catalog.aclose()
        await elsewhere.stop()

    asyncio.run(main())


def test_address_and_pin() -> None:
    assert parse_address(f"modeld+tls://h.example:7700?pin={PIN}") == ("modeld+tls://h.example:7700", PIN)
    assert parse_address("modeld://127.0.0.1:7700") == ("modeld://127.0.0.1:7700", None)
