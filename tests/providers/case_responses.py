"""OpenAI's models that are used by the Responses API."""

from modeld.repository import BackendSpec
from modeld.testing.openai import FakeOpenAI
from modeld.testing.server import Fault
from support.providers import ProviderCase

CASES = [
    ProviderCase(
        id="openai-responses",
        type="openai",
        server=FakeOpenAI,
        spec=lambda server: BackendSpec("openai", server.url + "/v1", "test-key"),
        model="gpt-5.1",
        thinking_model="gpt-5",
        vision_model="gpt-5.1",
        embed_model="text-embedding-3-small",
        # This API gives no numbers.
        overflow=Fault(
            kind="status",
            status=400,
            code="context_length_exceeded",
            message="Your input exceeds the context window of this model. Please adjust your input and try again.",
        ),
        quota=Fault(
            kind="status",
            status=429,
            code="insufficient_quota",
            message="You exceeded your current quota, please check your plan and billing details.",
        ),
        unlisted=dict.fromkeys(
            ("context_length", "max_output_tokens", "can_think", "can_vision", "size", "digest"),
            "https://platform.openai.com/docs/api-reference/models/object",
        ),
    )
]
