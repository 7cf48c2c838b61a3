"""Vertex AI with a service account."""

from modeld.repository import BackendSpec
from modeld.testing.google import FakeVertex
from modeld.testing.server import FakeServer, Fault
from support.providers import ProviderCase

LISTING_PAGE = "https://docs.cloud.google.com/vertex-ai/docs/reference/rest/v1beta1/publishers.models"
TOO_LONG = "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576)."
NO_MORE_TODAY = "You exceeded your current quota, please check your plan and billing details."


def spec(server: FakeServer) -> BackendSpec:
    assert isinstance(server, FakeVertex)
    return BackendSpec("vertex-google", server.base_url, server.service_account())


CASES = [
    ProviderCase(
        id="vertex",
        type="vertex-google",
        server=FakeVertex,
        spec=spec,
        model="gemini-2.5-flash",
        thinking_model="gemini-3.1-pro-preview",
        vision_model="gemini-2.5-flash",
        embed_model="text-embedding-005",
        overflow=Fault(kind="status", status=400, code="INVALID_ARGUMENT", message=TOO_LONG),
        window=1048576,
        tokens=1200000,
        quota=Fault(
            kind="status", status=429, code="GenerateContentRequestsPerDayPerProjectPerModel", message=NO_MORE_TODAY
        ),
        unlisted=dict.fromkeys(
            ("size", "digest", "modified_at", "context_length", "max_output_tokens", "can_think", "can_vision"),
            LISTING_PAGE,
        ),
    )
]
