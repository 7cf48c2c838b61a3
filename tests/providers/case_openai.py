"""OpenAI: Chat Completions, and Responses for what thinks."""

from modeld.repository import BackendSpec
from modeld.testing.openai import FakeOpenAI
from modeld.testing.server import Fault
from support.providers import ProviderCase

CASES = [
    ProviderCase(
        id="openai",
        type="openai",
        server=FakeOpenAI,
        spec=lambda server: BackendSpec("openai", server.url + "/v1", server.key),
        model="gpt-4o",
        thinking_model="gpt-5",
        vision_model="gpt-4o",
        embed_model="text-embedding-3-small",
        overflow=Fault(
            kind="status",
            status=400,
            code="context_length_exceeded",
            message="This model's maximum context length is 128000 tokens. However, your messages resulted in "
            "150000 tokens. Please reduce the length of the messages.",
        ),
        window=128_000,
        tokens=150_000,
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
