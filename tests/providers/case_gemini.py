"""Gemini by API key."""

from modeld.repository import BackendSpec
from modeld.testing.google import FakeGemini
from modeld.testing.server import FakeServer, Fault
from support.providers import ProviderCase

MODELS_PAGE = "https://ai.google.dev/api/models"
TOO_LONG = "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."
NO_MORE_TODAY = "You exceeded your current quota, please check your plan and billing details."


def spec(server: FakeServer) -> BackendSpec:
    return BackendSpec("gemini", server.url, "test-key")


CASES = [
    ProviderCase(
        id="gemini",
        type="gemini",
        server=FakeGemini,
        spec=spec,
        model="gemini-2.5-flash",
        thinking_model="gemini-3-flash-preview",
        vision_model="gemini-2.5-flash",
        embed_model="gemini-embedding-001",
        overflow=Fault(kind="status", status=400, code="INVALID_ARGUMENT", message=TOO_LONG),
        window=1048576,
        tokens=1200000,
        quota=Fault(
            kind="status",
            status=429,
            code="GenerateRequestsPerDayPerProjectPerModel-FreeTier",
            message=NO_MORE_TODAY,
        ),
        unlisted={"size": MODELS_PAGE, "digest": MODELS_PAGE, "modified_at": MODELS_PAGE, "can_vision": MODELS_PAGE},
    )
]
