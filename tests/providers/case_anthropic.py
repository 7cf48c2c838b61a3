"""Anthropic's wire for the conformance suite."""

from modeld.repository import BackendSpec
from modeld.testing.anthropic import FakeAnthropic
from modeld.testing.server import FakeServer, Fault
from support.providers import ProviderCase

LISTING = "https://platform.claude.com/docs/en/api/models/list"


def spec(server: FakeServer) -> BackendSpec:
    return BackendSpec("anthropic", server.url, server.key)


CASES: list[ProviderCase] = [
    ProviderCase(
        id="anthropic",
        type="anthropic",
        server=FakeAnthropic,
        spec=spec,
        model="claude-sonnet-4-6",
        thinking_model="claude-opus-5",
        vision_model="claude-sonnet-4-6",
        embed_model="",
        no_embed="https://platform.claude.com/docs/en/build-with-claude/embeddings",
        overflow=Fault(
            kind="status",
            status=400,
            code="invalid_request_error",
            message="prompt is too long: 213462 tokens > 200000 maximum",
        ),
        window=200000,
        tokens=213462,
        quota=Fault(
            kind="status",
            status=402,
            code="billing_error",
            message="Your credit balance is too low to access the Anthropic API.",
        ),
        samples={"prompt_cache": "1h"},
        unlisted={"size": LISTING, "digest": LISTING, "can_chat": LISTING, "can_embed": LISTING},
    )
]
