"""Hazard: a listing without an end or with invented facts; vectors lost or mixed."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest

from modeld import BackendProtocolError, NotSupportedError
from modeld.repository import BackendSpec, CatalogOptions, CatalogProvider, RetryPolicy, new_catalog_provider
from modeld.repository.client import WireClient
from modeld.testing.google import MODELS, FakeGemini, FakeVertex

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def gemini() -> AsyncIterator[tuple[FakeGemini, CatalogProvider]]:
    async with FakeGemini() as server:
        catalog = new_catalog_provider(BackendSpec("gemini", server.url, "test-key"))
        yield server, catalog
        await catalog.aclose()


@asynccontextmanager
async def vertex() -> AsyncIterator[tuple[FakeVertex, CatalogProvider]]:
    async with FakeVertex() as server:
        catalog = new_catalog_provider(BackendSpec("vertex", server.base_url, server.service_account()))
        yield server, catalog
        await catalog.aclose()


def answering(*pages: Any) -> CatalogProvider:
    left = list(pages)

    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(200, json=left.pop(0) if len(left) > 1 else left[0])

    http = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
    options = CatalogOptions(http_client=http, retry=RetryPolicy(attempts=1))
    return new_catalog_provider(BackendSpec("gemini", "http://g.test", "k"), options)


async def test_all_pages_are_read_and_facts_are_declared() -> None:
    async with gemini() as (server, catalog):
        models = {model.name: model for model in await catalog.list_models()}
        assert list(models) == list(MODELS)
        assert [request.query.get("pageToken") for request in server.requests] == [None, "page+3", "page+6"]
    flash = models["gemini-2.5-flash"]
    assert (flash.context_length, flash.capabilities.max_output_tokens) == (1_048_576, 65_536)
    assert flash.evidence["context_length"] == flash.evidence["can_think"] == "declared"
    assert flash.evidence["can_vision"] == "named"
    assert flash.meta == {"display_name": "gemini-2.5-flash", "version": "001"}
    embedder = models["gemini-embedding-001"].capabilities
    assert (embedder.can_embed, embedder.can_chat) == (True, False)


async def test_vertex_lists_names_and_the_table_says_the_rest() -> None:
    async with vertex() as (server, catalog):
        models = {model.name: model for model in await catalog.list_models()}
        assert list(models) == list(MODELS)
        listings = [request for request in server.requests if request.method == "GET"]
        assert {request.path for request in listings} == {"/v1beta1/publishers/google/models"}
        assert len(listings) == 3
    pro = models["gemini-3.1-pro-preview"]
    assert pro.evidence["context_length"] == pro.evidence["can_think"] == "named"
    assert pro.meta == {"version": "default"}
    assert models["text-embedding-005"].capabilities.can_embed
    assert not models["text-embedding-005"].capabilities.can_chat


@pytest.mark.parametrize("token", ["again", "other"])
async def test_a_listing_that_turns_in_a_circle_is_an_error(token: str) -> None:
    page = {"models": [{"name": "models/a"}], "nextPageToken": "again"}
    with pytest.raises(BackendProtocolError, match="does not end"):
        await answering(page, page | {"nextPageToken": token}, page).list_models()


async def test_a_model_that_says_nothing_of_itself_is_listed() -> None:
    found = await answering({"models": [{"name": "models/new-thing"}, {"name": "tunedModels/mine"}, {}]}).list_models()
    assert [model.name for model in found] == ["new-thing", "tunedModels/mine"]
    assert found[0].evidence == {}
    assert found[0].capabilities.can_chat


@pytest.mark.parametrize("page", [{"models": "x"}, ["x"]])
async def test_a_listing_that_is_none_is_an_error(page: Any) -> None:
    with pytest.raises(BackendProtocolError):
        await answering(page).list_models()


async def test_providers_are_named_by_type_and_model() -> None:
    async with gemini() as (server, catalog):
        provider = catalog.provider_for("models/gemini-2.5-pro")
        assert (provider.id, provider.model_name) == ("gemini-gemini-2.5-pro", "gemini-2.5-pro")
        assert provider.backend_ids == (server.url,)
    async with vertex() as (fake, catalog):
        provider = catalog.provider_for("gemini-2.5-pro")
        assert (provider.id, provider.type) == ("vertex-google:gemini-2.5-pro", "vertex-google")
        assert provider.backend_ids == (fake.base_url,)


async def embedder(catalog: CatalogProvider, model: str) -> WireClient:
    client = await catalog.provider_for(model).embed_client()
    assert isinstance(client, WireClient)
    return client


async def test_many_texts_go_in_batches_and_keep_their_order() -> None:
    async with gemini() as (server, catalog):
        client = await embedder(catalog, "gemini-embedding-001")
        texts = ["x" * (n % 7 + 1) for n in range(230)]
        vectors = await client.embed(texts, dimensions=2)
        assert vectors == [[round((len(text) + i) / 16, 4) for i in range(2)] for text in texts]
        assert [len(request.json["requests"]) for request in server.requests] == [100, 100, 30]


@pytest.mark.parametrize(
    ("model", "count", "method", "tokens"),
    [
        ("text-embedding-005", 3, "predict", 12),
        ("gemini-embedding-001", 1, "embedContent", 4),
        ("gemini-embedding-001", 3, "batchEmbedContents", None),
    ],
)
async def test_vertex_embeds_by_what_the_model_has(model: str, count: int, method: str, tokens: int | None) -> None:
    async with vertex() as (server, catalog):
        client = await embedder(catalog, model)
        result = await client.embed_result(["a", "bbb", "cc"][:count], dimensions=2)
        assert [vector[0] for vector in result.vectors] == [0.0625, 0.1875, 0.125][:count]
        assert {len(vector) for vector in result.vectors} == {2}
        assert server.requests[-1].path.endswith(f"{model}:{method}")
        assert result.usage.input == tokens


async def test_a_list_for_a_model_of_many_kinds_is_not_melted_into_one_vector() -> None:
    """Of bare strings the SDK makes one content for gemini-embedding-2."""
    seen: list[Any] = []

    def answer(request: httpx2.Request) -> httpx2.Response:
        seen.extend(json.loads(request.content)["requests"])
        return httpx2.Response(200, json={"embeddings": [{"values": [1.0]}, {"values": [2.0]}]})

    http = httpx2.AsyncClient(transport=httpx2.MockTransport(answer))
    catalog = new_catalog_provider(BackendSpec("gemini", "http://g.test", "k"), CatalogOptions(http_client=http))
    client = await embedder(catalog, "gemini-embedding-2")
    assert await client.embed(["a", "b"]) == [[1.0], [2.0]]
    assert [[part["text"] for part in one["content"]["parts"]] for one in seen] == [["a"], ["b"]]


async def test_a_chat_model_does_not_embed() -> None:
    async with vertex() as (_, catalog):
        with pytest.raises(NotSupportedError):
            await catalog.provider_for("gemini-2.5-pro").embed_client()
