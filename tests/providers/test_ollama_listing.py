"""Hazard: one model that cannot be looked up hides the others, or a fact about a model is guessed."""

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest

from modeld import AuthenticationError, BackendProtocolError, NotSupportedError
from modeld.providers.ollama import make_catalog
from modeld.providers.ollama_models import Shown
from modeld.repository import BackendSpec, CatalogOptions, RetryPolicy
from modeld.testing.ollama import FakeModel, FakeOllama
from modeld.testing.server import Recorded, Reply

pytestmark = pytest.mark.anyio

ONCE = CatalogOptions(retry=RetryPolicy(attempts=1))


async def listing(server: FakeOllama, key: str = "test-key") -> dict[str, Any]:
    async with server:
        catalog = make_catalog(BackendSpec("ollama", server.url, key), ONCE)
        try:
            return {model.name: model for model in await catalog.list_models()}
        finally:
            await catalog.aclose()


async def test_a_listing_has_what_the_server_declares() -> None:
    models = await listing(FakeOllama())
    assert list(models) == ["llama3.2:3b", "qwen3:8b", "gpt-oss:20b", "gemma3:4b", "nomic-embed-text:latest"]
    qwen, gemma, embedder = models["qwen3:8b"], models["gemma3:4b"], models["nomic-embed-text:latest"]
    assert qwen.context_length == 40960
    assert qwen.capabilities.can_think
    assert not qwen.capabilities.can_vision
    assert gemma.capabilities.can_vision
    assert not gemma.capabilities.can_think
    flags = ("can_chat", "can_stream", "can_prompt", "can_embed")
    assert [getattr(embedder.capabilities, flag) for flag in flags] == [False, False, False, True]
    assert set(qwen.evidence.values()) == {"declared"}
    assert qwen.evidence.keys() >= {"context_length", "can_think", "can_vision", "display_name"}
    assert "max_output_tokens" not in qwen.evidence
    assert qwen.size == 2019393189
    assert len(qwen.digest) == 64
    assert qwen.modified_at.astimezone(UTC) == datetime(2026, 8, 4, 15, 52, 19, 385406, UTC)
    assert qwen.meta == {"display_name": "qwen3:8b", "capabilities": "completion thinking tools"}


async def test_a_model_that_cannot_be_looked_up_is_listed_without_its_facts() -> None:
    server = FakeOllama()
    server.unshown = {"qwen3:8b", "gpt-oss:20b"}
    models = await listing(server)
    assert len(models) == 5
    assert models["qwen3:8b"].capabilities.can_chat
    assert models["qwen3:8b"].context_length == 0
    assert set(models["qwen3:8b"].evidence) == {"display_name"}
    assert models["qwen3:8b"].meta["error"].startswith("not looked up: ")
    assert models["gpt-oss:20b"].evidence["can_think"] == "named"
    assert models["llama3.2:3b"].context_length == 131072


async def test_look_ups_go_eight_at_a_time() -> None:
    class Slow(FakeOllama):
        now = most = 0

        async def respond(self, request: Recorded) -> Reply:
            if request.path != "/api/show":
                return await super().respond(request)
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0.01)
            self.now -= 1
            return await super().respond(request)

    server = Slow(
        models=[
            FakeModel(name=f"m{n}", architecture="a", context_length=n, capabilities=("completion",))
            for n in range(1, 31)
        ]
    )
    models = await listing(server)
    assert [model.context_length for model in models.values()] == list(range(1, 31))
    assert server.most == 8


async def test_a_wrong_key_is_no_empty_list() -> None:
    with pytest.raises(AuthenticationError):
        await listing(FakeOllama(), key="wrong")


@pytest.mark.parametrize("body", [b"[]", b'{"models": 1}', b"\xff", b'{"models": [{"size": "big"}]}'])
async def test_what_is_no_list_is_not_taken_for_one(body: bytes) -> None:
    class Broken(FakeOllama):
        async def respond(self, request: Recorded) -> Reply:
            return Reply(body=body)

    with pytest.raises(BackendProtocolError):
        await listing(Broken())


async def test_an_empty_server_has_no_models() -> None:
    class Empty(FakeOllama):
        async def respond(self, request: Recorded) -> Reply:
            return Reply(body=b'{"models": null}')

    assert await listing(Empty()) == {}


@pytest.mark.parametrize(
    ("info", "length"),
    [
        ({"general.architecture": "qwen3", "qwen3.context_length": 40960}, 40960),
        ({"a.context_length": 1, "general.architecture": "b", "b.context_length": 2, "c.context_length": 3}, 2),
        ({"general.architecture": "b", "c.context_length": 3}, 0),
        ({"c.context_length": 3}, 0),
        ({"general.architecture": "b", "b.context_length": "many"}, 0),
        (None, 0),
    ],
)
def test_the_context_is_the_architectures_own(info: Any, length: int) -> None:
    assert Shown(model_info=info).context_length == length


async def test_a_name_alone_says_what_a_table_of_ours_says() -> None:
    catalog = make_catalog(BackendSpec("ollama"), ONCE)
    assert catalog.provider_for("library/gpt-oss:20b").can_think
    assert (await catalog.provider_for("nomic-embed-text").embed_client()) is not None
    with pytest.raises(NotSupportedError):
        await catalog.provider_for("nomic-embed-text").chat_client()
    with pytest.raises(NotSupportedError, match="list_models"):
        await catalog.provider_for("llama3.2").embed_client()
