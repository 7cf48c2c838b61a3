"""Ollama."""

from modeld.repository import BackendSpec
from modeld.testing.ollama import FakeOllama, overflow_text
from modeld.testing.server import Fault
from support.providers import ProviderCase

TAGS = "https://docs.ollama.com/api/tags"
SHOW = "https://docs.ollama.com/api-reference/show-model-details"

CASES = [
    ProviderCase(
        id="ollama",
        type="ollama",
        server=FakeOllama,
        spec=lambda server: BackendSpec("ollama", server.url, "test-key"),
        model="llama3.2:3b",
        thinking_model="qwen3:8b",
        vision_model="gemma3:4b",
        embed_model="nomic-embed-text:latest",
        # More than the model's largest window, or the call is tried again with a larger one.
        overflow=Fault(kind="status", status=400, message=overflow_text(140000, 131072)),
        window=131072,
        tokens=140000,
        can_refuse=False,
        unlisted={"max_output_tokens": SHOW},
    )
]
