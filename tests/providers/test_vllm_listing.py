"""Hazard: what a vLLM server is for is guessed. Its listing tells names and windows; the task is asked for."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from modeld import InvalidRequestError, NotSupportedError
from modeld.providers import vllm
from modeld.repository import BackendSpec, CatalogOptions, ObservedModel, RetryPolicy, new_catalog_provider
from modeld.repository.provider import WireCatalog
from modeld.testing.server import Recorded, Rejected, Reply
from modeld.testing.vllm_wire import CHAT_MODEL, EMBED_MODEL, OSS_MODEL, THINKING_MODEL, FakeVLLM

pytestmark = pytest.mark.anyio

ONCE = CatalogOptions(retry=RetryPolicy(attempts=1))


@asynccontextmanager
async def catalog(server: FakeVLLM, path: str = "", key: str = "test-key") -> AsyncIterator[WireCatalog]:
    async with server:
        made = new_catalog_provider(BackendSpec("vllm", server.url + path, key), ONCE)
        assert isinstance(made, WireCatalog)
        try:
            yield made
        finally:
            await made.aclose()


async def listed(server: FakeVLLM) -> dict[str, ObservedModel]:
    async with catalog(server) as made:
        return {model.name: model for model in await made.list_models()}


async def test_the_window_is_declared() -> None:
    models = await listed(FakeVLLM())
    assert models[CHAT_MODEL].context_length == 131072
    assert models[CHAT_MODEL].evidence["context_length"] == "declared"
    assert models[CHAT_MODEL].capabilities.max_output_tokens == 0
    assert "max_output_tokens" not in models[CHAT_MODEL].evidence


@pytest.mark.parametrize("refusal", [400, 501, 404])
async def test_the_task_is_probed_with_every_version(refusal: int) -> None:
    server = FakeVLLM(embed_refusal=refusal, legacy=refusal == 400)
    models = await listed(server)
    chat, embed = models[CHAT_MODEL], models[EMBED_MODEL]
    assert (chat.capabilities.can_chat, chat.capabilities.can_embed) == (True, False)
    assert (embed.capabilities.can_chat, embed.capabilities.can_stream, embed.capabilities.can_embed) == (
        False,
        False,
        True,
    )
    assert chat.evidence["can_embed"] == embed.evidence["can_embed"] == embed.evidence["can_chat"] == "probed"
    probes = [r.json for r in server.requests if r.path == "/v1/embeddings"]
    assert all(body["input"] == ["a"] for body in probes)
    assert len(probes) == len(models)
    assert server.probes == len(models) - 1


async def test_a_model_that_embeds_has_no_chat_client() -> None:
    async with catalog(FakeVLLM()) as made:
        (model,) = [m for m in await made.list_models() if m.name == EMBED_MODEL]
        with pytest.raises(NotSupportedError, match="chat"):
            await made.provider_for(model).chat_client()
        vectors = await (await made.provider_for(model).embed_client()).embed(["a", "bb"], dimensions=2)
        assert vectors == [[0.0625, 0.125], [0.125, 0.1875]]


class Broken(FakeVLLM):
    """Embeddings fail for a reason of their own."""

    async def respond(self, request: Recorded) -> Reply:
        if request.path == "/v1/embeddings":
            raise Rejected("out of memory", status=500)
        return await super().respond(request)


async def test_a_probe_that_fails_leaves_the_task_unknown() -> None:
    models = await listed(Broken())
    assert len(models) == 5
    assert models[EMBED_MODEL].capabilities.can_chat
    assert not models[EMBED_MODEL].capabilities.can_embed
    assert "can_embed" not in models[EMBED_MODEL].evidence


class Hanging(FakeVLLM):
    async def respond(self, request: Recorded) -> Reply:
        if request.path == "/v1/embeddings":
            return Reply(pieces=(), body=b"")
        return await super().respond(request)


async def test_a_probe_that_answers_nonsense_leaves_the_task_unknown() -> None:
    models = await listed(Hanging())
    assert "can_embed" not in models[CHAT_MODEL].evidence


async def test_a_slow_probe_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "PROBE_SECONDS", 0.0)
    models = await listed(FakeVLLM())
    assert "can_embed" not in models[EMBED_MODEL].evidence


async def test_thinking_is_known_by_name_and_says_so() -> None:
    models = await listed(FakeVLLM())
    for name in (THINKING_MODEL, OSS_MODEL):
        assert models[name].capabilities.can_think
        assert models[name].evidence["can_think"] == "named"
    assert "can_think" not in models[CHAT_MODEL].evidence


@pytest.mark.parametrize(
    "name", ["Qwen/Qwen3-Embedding-0.6B", "Qwen/Qwen3-Coder-30B-A3B", "Qwen/Qwen3-4B-Instruct-2507"]
)
async def test_a_name_that_only_begins_like_a_thinking_model_says_nothing(name: str) -> None:
    async with catalog(FakeVLLM()) as made:
        assert "can_think" not in made._wire.model(name).evidence


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", " "])
async def test_the_base_url_is_with_or_without_version(path: str) -> None:
    server = FakeVLLM()
    async with catalog(server, path) as made:
        assert len(await made.list_models()) == 5
        assert made.provider_for(CHAT_MODEL).backend_ids == (f"{server.url}/v1",)
        assert made.provider_for(CHAT_MODEL).id == f"vllm:{CHAT_MODEL}"


def test_there_is_no_default_url() -> None:
    with pytest.raises(InvalidRequestError, match="vllm needs a base URL"):
        new_catalog_provider(BackendSpec("vllm"))


async def test_the_key_is_optional_and_sent_where_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "somebody-elses")
    open_server = FakeVLLM(key="")
    async with catalog(open_server, key="") as made:
        await made.list_models()
    assert {r.headers.get("authorization") for r in open_server.requests} == {None}
    guarded = FakeVLLM()
    async with catalog(guarded) as made:
        await made.list_models()
    assert {r.headers.get("authorization") for r in guarded.requests} == {"Bearer test-key"}
