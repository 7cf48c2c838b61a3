"""Hazard: a body that nobody thought of ends in a 500, in an error that no client can read, or is taken for another."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from modeld.http.openai_request import ChatRequest

from .conftest import Site

ROOT = Path(__file__).parents[2]
SECONDS = 120


@pytest.mark.anyio
async def test_the_document_has_every_route_and_field(site: Site, web: httpx2.AsyncClient) -> None:
    document = (await web.get("/openapi.json")).json()
    assert {"/v1/chat/completions", "/v1/responses", "/v1/models/{id}", "/openapi.json"} <= document["paths"].keys()
    schema = document["components"]["schemas"]["ChatRequest"]
    assert schema["properties"].keys() == set(ChatRequest.__struct_fields__)
    assert schema["additionalProperties"] is False
    for path, operations in document["paths"].items():
        for operation in operations.values():
            content = operation["responses"]["4XX"]["content"]["application/json"]
            dialect = "anthropic" if path.startswith("/v1/messages") else "openai"
            assert content["schema"]["$ref"].endswith(f"/Error_{dialect}")
    async with httpx2.AsyncClient(base_url=site.url) as stranger:
        assert (await stranger.get("/openapi.json")).status_code == 401


@pytest.mark.timeout(2 * SECONDS)
def test_what_the_document_allows_and_what_it_forbids() -> None:
    """For two minutes; ``make long`` has ten, and another seed each time."""
    command = [sys.executable, str(ROOT / "scripts" / "fuzz.py"), f"--seconds={SECONDS}", "--seed=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
    assert "generated" in done.stdout
