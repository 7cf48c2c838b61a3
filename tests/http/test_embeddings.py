"""Hazard: vectors that are another text's, cut without a word, or changed by the way they are written."""

from __future__ import annotations

import base64
import struct
from typing import Any

import httpx2
import openai
import pytest
from openai.types import CreateEmbeddingResponse

from modeld.http.embeddings import EmbeddingsRequest
from modeld.testing.server import Answer
from support.clouds import cloud
from support.encoders import write_ranking

from .conftest import Site

pytestmark = pytest.mark.anyio

TEXTS = ["a river", "two stones", "snow \N{SNOWMAN}"]


def strict(answer: CreateEmbeddingResponse) -> None:
    CreateEmbeddingResponse.model_validate(answer.model_dump(), strict=True)


async def test_the_sdk_gets_the_vectors_of_the_node(site: Site, sdk: openai.AsyncOpenAI) -> None:
    expected = await site.node.embed("tiny", TEXTS)
    # Left to itself the SDK asks for base64.
    for options in ({}, {"encoding_format": "float"}):
        answer = await sdk.embeddings.create(model="tiny", input=TEXTS, **options)
        strict(answer)
        assert [item.index for item in answer.data] == [0, 1, 2]
        assert [tuple(item.embedding) for item in answer.data] == list(expected.vectors)
        assert (answer.object, answer.model, answer.data[0].object) == ("list", "tiny", "embedding")
        assert answer.usage.prompt_tokens == answer.usage.total_tokens == expected.usage.input


async def test_base64_is_little_endian(site: Site, web: httpx2.AsyncClient) -> None:
    asked = {"model": "tiny", "input": "a river", "encoding_format": "base64", "dimensions": 4, "user": "u"}
    body = (await web.post("/v1/embeddings", json=asked)).json()
    numbers = struct.unpack("<4f", base64.b64decode(body["data"][0]["embedding"]))
    assert numbers == (await site.node.embed("tiny", ["a river"], dimensions=4)).vectors[0]
    assert body["modeld"] == {"pooling": "mean", "normalized": True, "truncated": []}


async def test_texts_and_their_tokens_are_the_same(site: Site, sdk: openai.AsyncOpenAI) -> None:
    ids = [list((await site.node.tokenize("tiny", text)).tokens) for text in TEXTS]
    texts = await sdk.embeddings.create(model="tiny", input=TEXTS)
    tokens = await sdk.embeddings.create(model="tiny", input=ids)
    one_text = await sdk.embeddings.create(model="tiny", input=TEXTS[0])
    one = await sdk.embeddings.create(model="tiny", input=ids[0])
    assert tokens.data == texts.data
    assert one.data == one_text.data == texts.data[:1]


async def test_what_is_too_long_is_an_error_unless_it_may_be_cut(sdk: openai.AsyncOpenAI) -> None:
    long = "word " * 5000
    with pytest.raises(openai.BadRequestError) as refused:
        await sdk.embeddings.create(model="tiny", input=["short", long])
    assert refused.value.code == "context_length_exceeded"
    cut = await sdk.embeddings.create(model="tiny", input=["short", long], extra_body={"truncate": True})
    assert (cut.model_extra or {})["modeld"]["truncated"] == [1]
    assert cut.usage.prompt_tokens < 5000


REFUSED: tuple[tuple[dict[str, Any], str], ...] = (
    ({"input": []}, "input"),
    ({"input": ""}, "input"),
    ({"input": ["a", ""]}, "input"),
    ({"input": [[]]}, "input"),
    ({"input": [1, "a"]}, "input"),
    ({"input": [10**9]}, "input"),
    ({"input": [[-1]]}, "input[0][0]"),
    ({"input": [2**70]}, "input[0]"),
    ({"input": [1.5]}, "input[0]"),
    ({"input": None}, "input"),
    ({"dimensions": 0}, "dimensions"),
    ({"dimensions": 10**6}, "dimensions"),
    ({"encoding_format": "int8"}, "encoding_format"),
    ({"no_such_field": 1}, "no_such_field"),
)  # fmt: skip


@pytest.mark.parametrize(("change", "param"), REFUSED)
async def test_what_is_none_is_named(web: httpx2.AsyncClient, change: dict[str, Any], param: str) -> None:
    answer = await web.post("/v1/embeddings", json={"model": "tiny", "input": "a"} | change)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param), answer.text


async def test_a_backends_vectors(site: Site, sdk: openai.AsyncOpenAI) -> None:
    asked: dict[str, Any] = {"model": "cloud:text-embedding-3-small", "input": ["a", "b"]}
    async with cloud(site.root) as vendor:
        vendor.script(Answer(vectors=((0.5, 0.25), (1.0, -2.0))))
        answer = await sdk.embeddings.create(**asked, dimensions=2)
        strict(answer)
        assert [item.embedding for item in answer.data] == [[0.5, 0.25], [1.0, -2.0]]
        assert answer.model == asked["model"]
        sent = vendor.requests[-1].json
        assert (sent["model"], sent["input"], sent["dimensions"]) == ("text-embedding-3-small", ["a", "b"], 2)
        for change, param in (({"input": [1, 2]}, "input"), ({"extra_body": {"truncate": True}}, "truncate")):
            with pytest.raises(openai.BadRequestError) as refused:
                await sdk.embeddings.create(**asked | change)
            assert refused.value.param == param


async def test_documents_in_the_order_of_their_scores(site: Site, web: httpx2.AsyncClient) -> None:
    (site.root / "models").mkdir(exist_ok=True)
    write_ranking(site.root / "models" / "ranks.gguf")
    documents = ["a river runs", {"text": "stone"}, "snow"]
    asked = {"model": "ranks", "query": "what runs?", "documents": documents, "return_documents": True, "top_n": 2}
    body = (await web.post("/v1/rerank", json=asked)).json()
    expected = await site.node.rerank("ranks", "what runs?", ["a river runs", "stone", "snow"])
    assert [item["index"] for item in body["results"]] == list(expected.order[:2])
    assert [item["relevance_score"] for item in body["results"]] == [expected.scores[i] for i in expected.order[:2]]
    assert body["results"][0]["document"] == {"text": ["a river runs", "stone", "snow"][expected.order[0]]}
    assert body["usage"]["total_tokens"] == expected.usage.input
    for change, param in (({"top_n": 0}, "top_n"), ({"documents": []}, "documents"), ({"query": ""}, "query")):
        refused = await web.post("/v1/rerank", json=asked | change)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    # What a model cannot do is about the model: neither route has a field `rerank` or `embeddings`.
    vectors = {"model": "ranks", "input": "a"}
    for route, wrong in (("/v1/rerank", asked | {"model": "tiny"}), ("/v1/embeddings", vectors)):
        refused = await web.post(route, json=wrong)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "model")


def test_every_field_of_the_vendor_is_known() -> None:
    known = openai.types.EmbeddingCreateParams.__annotations__
    assert known.keys() <= set(EmbeddingsRequest.__struct_fields__)
