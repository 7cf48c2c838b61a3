"""Hazard: credentials are fetched too often, on the event loop, from the wrong place, or shown."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from google.auth import credentials as google_credentials
from google.oauth2 import service_account

from modeld import AuthenticationError, InvalidRequestError, Message
from modeld.repository import BackendSpec, CatalogOptions, CatalogProvider, RetryPolicy, new_catalog_provider
from modeld.testing.google import FakeVertex
from modeld.testing.server import Answer

pytestmark = pytest.mark.anyio

ASK = [Message("user", "hello")]
ROOT = "https://us-central1-aiplatform.googleapis.com/v1/projects/p/locations/us-central1"


@asynccontextmanager
async def catalog_of(server: FakeVertex, key: str | None = None) -> AsyncIterator[CatalogProvider]:
    spec = BackendSpec("vertex-google", server.base_url, server.service_account() if key is None else key)
    catalog = new_catalog_provider(spec, CatalogOptions(retry=RetryPolicy(attempts=1)))
    try:
        yield catalog
    finally:
        await catalog.aclose()


async def say(catalog: CatalogProvider) -> str:
    return (await (await catalog.provider_for("gemini-2.5-flash").chat_client()).chat(ASK)).text


async def test_one_token_serves_many_calls_and_loops() -> None:
    async with FakeVertex() as server, catalog_of(server) as catalog:

        async def elsewhere() -> None:
            await say(catalog)
            await catalog.aclose()

        await asyncio.gather(*[say(catalog) for _ in range(10)])
        await catalog.list_models()
        await asyncio.to_thread(asyncio.run, elsewhere())
        assert server.tokens == 1


async def test_a_token_is_fetched_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    refresh = service_account.Credentials.refresh

    def look(self: Any, request: Any) -> None:
        threads.append(threading.get_ident())
        refresh(self, request)

    monkeypatch.setattr(service_account.Credentials, "refresh", look)
    async with FakeVertex() as server, catalog_of(server) as catalog:
        assert await say(catalog) == "ok"
    assert len(threads) == 1
    assert threads[0] != threading.get_ident()


async def test_a_token_that_ran_out_is_fetched_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeVertex() as server, catalog_of(server) as catalog:
        await say(catalog)
        monkeypatch.setattr(google_credentials.Credentials, "expired", property(lambda self: server.tokens < 2))
        await say(catalog)
        assert server.tokens == 2


async def test_the_environment_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_API_KEY", "from-the-environment")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "p9")
    monkeypatch.setenv("GOOGLE_CLOUD_LOCATION", "mars")
    monkeypatch.setenv("GOOGLE_VERTEX_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("GOOGLE_GENAI_API_VERSION", "v9")
    async with FakeVertex() as server, catalog_of(server) as catalog:
        assert await say(catalog) == "ok"
        chat = server.requests[-1]
        assert chat.path == (
            "/v1/projects/p1/locations/us-central1/publishers/google/models/gemini-2.5-flash:generateContent"
        )
        assert "x-goog-user-project" not in chat.headers


async def test_an_empty_key_means_the_default_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with FakeVertex() as server:
        (tmp_path / "key.json").write_text(server.service_account())
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "key.json"))
        server.script(Answer(text="by default"))
        async with catalog_of(server, "") as catalog:
            assert await say(catalog) == "by default"
            await catalog.list_models()
        # A person's credentials have no project; listing needs one to be billed to.
        assert {r.headers.get("x-goog-user-project") for r in server.requests if r.path != "/token"} == {"p1"}


async def test_no_default_credentials_is_a_failed_authentication(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    async with FakeVertex() as server, catalog_of(server, "") as catalog:
        with pytest.raises(AuthenticationError):
            await say(catalog)


async def test_an_account_that_is_not_taken_is_named_and_not_shown() -> None:
    async with FakeVertex() as server:
        account = json.loads(server.service_account())
        for wrong in ({"client_email": "other@p1"}, {"private_key": "-----BEGIN PRIVATE KEY-----\nAAAA\n"}):
            async with catalog_of(server, json.dumps(account | wrong)) as catalog:
                with pytest.raises(AuthenticationError) as caught:
                    await say(catalog)
            assert "PRIVATE KEY" not in f"{caught.value} {caught.value.details}"


@pytest.mark.parametrize("key", ["{broken", "[]", '{"type": "authorized_user"}', "AIzaSyKey"])
def test_a_key_that_is_no_service_account_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(InvalidRequestError, match="service account") as caught:
        new_catalog_provider(BackendSpec("vertex", ROOT, key))
    assert key not in str(caught.value)


@pytest.mark.parametrize("base_url", ["", "https://x.googleapis.com", ROOT.replace("/v1/", "/"), ROOT + "/publishers"])
def test_an_address_without_project_and_location_is_refused(base_url: str) -> None:
    with pytest.raises(InvalidRequestError, match="projects/P/locations/R"):
        new_catalog_provider(BackendSpec("vertex", base_url))


async def test_a_key_file_that_gave_no_token_can_be_tried_again() -> None:
    async with FakeVertex() as server, catalog_of(server) as catalog:
        key, server.key = server.key, "another"
        with pytest.raises(AuthenticationError):
            await say(catalog)
        server.key = key
        assert await say(catalog) == "ok"
