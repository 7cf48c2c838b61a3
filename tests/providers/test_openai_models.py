"""Hazard: a listing that has no end, and facts about models that nobody stands for."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime
from fnmatch import fnmatchcase
from typing import get_args

import pytest
from openai.types.shared import all_models, chat_model

from modeld import BackendProtocolError
from modeld.providers.facts import find_facts
from modeld.providers.openai import make_catalog
from modeld.providers.openai_facts import FACTS
from modeld.repository import BackendSpec, CatalogOptions, RetryPolicy
from modeld.repository.provider import WireCatalog
from modeld.testing.openai import FakeOpenAI
from modeld.testing.server import Recorded, Reply
from modeld.thinking import LEVELS
from modeld.types import ChatConfig

pytestmark = pytest.mark.anyio

ONCE = CatalogOptions(retry=RetryPolicy(attempts=1))


@asynccontextmanager
async def catalog_of(server: FakeOpenAI) -> AsyncIterator[WireCatalog]:
    catalog = make_catalog(BackendSpec("openai", server.url + "/v1", server.key), ONCE)
    try:
        yield catalog
    finally:
        await catalog.aclose()


async def test_pages_are_followed_to_the_last() -> None:
    async with FakeOpenAI() as whole, FakeOpenAI(page_size=4) as paged:
        async with catalog_of(whole) as catalog:
            at_once = await catalog.list_models()
        async with catalog_of(paged) as catalog:
            by_pages = await catalog.list_models()
        assert by_pages == at_once
        assert len(whole.requests) == 1
        afters = [request.query.get("after") for request in paged.requests]
        assert afters == [None, *(at_once[i].name for i in range(3, len(at_once) - 1, 4))]


class Circle(FakeOpenAI):
    """Its pages have no end."""

    async def respond(self, request: Recorded) -> Reply:
        self.requests.append(request)
        body = b'{"object":"list","data":[{"id":"a","object":"model"}],"has_more":true,"last_id":"a"}'
        return Reply(body=body)


async def test_pages_in_a_circle_are_an_error_and_not_a_loop() -> None:
    async with Circle() as server, catalog_of(server) as catalog:
        with pytest.raises(BackendProtocolError, match="does not end"):
            await catalog.list_models()
        assert len(server.requests) < 10


class Odd(FakeOpenAI):
    """Sends less than is documented, as servers do that speak this wire."""

    body = b""

    async def respond(self, request: Recorded) -> Reply:
        return Reply(body=self.body)


@pytest.mark.parametrize(
    ("body", "names"),
    [
        (b'{"data":[]}', []),
        (b'{"data":[],"has_more":true}', []),
        (b'{"data":[{"id":"m"},{"id":null},{},{"id":"m"}],"has_more":null}', ["m"]),
        (b'{"data":[{"id":"m","created":null,"owned_by":3}],"object":"list","last_id":"m"}', ["m"]),
    ],
)
async def test_a_poor_listing_is_still_one(body: bytes, names: list[str]) -> None:
    async with Odd() as server, catalog_of(server) as catalog:
        server.body = body
        assert [model.name for model in await catalog.list_models()] == names


@pytest.mark.parametrize("body", [b'{"data":null}', b"{}", b"[]", b'{"data":["m"]}'])
async def test_what_is_no_listing_is_a_protocol_error(body: bytes) -> None:
    async with Odd() as server, catalog_of(server) as catalog:
        server.body = body
        with pytest.raises(BackendProtocolError):
            await catalog.list_models()


async def test_what_the_listing_says_is_declared_and_what_tables_say_is_named() -> None:
    async with FakeOpenAI() as server, catalog_of(server) as catalog:
        models = {model.name: model for model in await catalog.list_models()}
    gpt_5 = models["gpt-5"]
    assert gpt_5.modified_at == datetime(2024, 5, 10, 18, 50, 49, tzinfo=UTC)
    assert gpt_5.meta == {"owned_by": "system"}
    assert gpt_5.evidence["owned_by"] == "declared"
    assert (gpt_5.context_length, gpt_5.capabilities.max_output_tokens) == (400_000, 128_000)
    assert gpt_5.evidence["max_output_tokens"] == "named"
    unknown = models["house-model"]
    assert unknown.capabilities.can_chat
    assert unknown.evidence == {"owned_by": "declared"}
    assert (unknown.context_length, unknown.capabilities.can_think) == (0, False)


def test_every_row_says_where_it_is_from_and_can_be_reached() -> None:
    names = [*get_args(chat_model.ChatModel), *(n for arg in get_args(all_models.AllModels) for n in get_args(arg))]
    names += ["gpt-realtime", "gpt-audio", "gpt-4o-transcribe", "gpt-4o-mini-tts", "tts-1", "whisper-1", "dall-e-3"]
    names += ["gpt-image-1", "sora-2", "omni-moderation-latest", "babbage-002", "davinci-002"]
    names += ["gpt-3.5-turbo-instruct", "text-embedding-3-small", "gpt-5.4-pro", "gpt-5.2-codex", "gpt-5.9"]
    for facts in FACTS:
        assert facts.source.startswith("https://developers.openai.com/")
        assert date.fromisoformat(facts.checked) <= date(2026, 12, 31)
        assert any(find_facts(FACTS, name) is facts for name in names), facts.match
        assert set(facts.efforts or ()) <= set(LEVELS) - {"auto"}
        assert set(facts.refuses) <= set(ChatConfig.__struct_fields__)
        if facts.efforts == {} and facts.can_chat:
            assert facts.can_think is False or fnmatchcase("o1-mini", facts.match) or facts.match == "o1-preview*"


def test_models_that_only_one_api_has_are_asked_by_it() -> None:
    """``AllModels`` of the SDK lists apart what is not for Chat Completions."""
    chat = set(get_args(chat_model.ChatModel))
    every = {name for arg in get_args(all_models.AllModels) for name in get_args(arg)} - chat
    without = {name for name in every if (facts := find_facts(FACTS, name)) is None or facts.api != "responses"}
    assert without == set()


VISION = {
    "gpt-4o": True,
    "gpt-4": False,
    "o3-mini": False,
    "o4-mini": True,
    "gpt-4-turbo-preview": False,
    "gpt-5": True,
}


@pytest.mark.parametrize(("name", "sees"), VISION.items())
def test_who_sees_pictures(name: str, sees: bool) -> None:
    facts = find_facts(FACTS, name)
    assert facts is not None
    assert facts.can_vision is sees


@pytest.mark.parametrize("name", ["gpt-4o-audio-preview", "gpt-4o-mini-tts", "whisper-1", "gpt-image-1", "sora-2"])
def test_what_does_not_chat_is_known(name: str) -> None:
    facts = find_facts(FACTS, name)
    assert facts is not None
    assert facts.can_chat is False
