"""The vendors that are data rows, in the conformance suite."""

from modeld.repository import BackendSpec
from modeld.testing import mistral, openrouter
from modeld.testing.server import Fault
from support.providers import ProviderCase

MISTRAL_MODELS = "https://docs.mistral.ai/api/endpoint/models"
OPENROUTER_MODELS = "https://openrouter.ai/docs/guides/overview/models"

CASES = [
    ProviderCase(
        id="mistral",
        type="mistral",
        server=mistral.FakeMistral,
        spec=lambda server: BackendSpec("mistral", f"{server.url}/v1", "test-key"),
        model=mistral.CHAT_MODEL,
        thinking_model=mistral.THINKING_MODEL,
        vision_model=mistral.CHAT_MODEL,
        embed_model=mistral.EMBED_MODEL,
        overflow=Fault(
            kind="status",
            status=400,
            code="3051",
            message="Prompt contains 40046 tokens and 0 draft tokens, too large for model with 32768 maximum context "
            "length",
        ),
        window=32768,
        tokens=40046,
        can_refuse=False,
        unlisted={"max_output_tokens": MISTRAL_MODELS, "size": MISTRAL_MODELS, "digest": MISTRAL_MODELS},
    ),
    ProviderCase(
        id="openrouter",
        type="openrouter",
        server=openrouter.FakeOpenRouter,
        spec=lambda server: BackendSpec("openrouter", f"{server.url}/api/v1", "test-key"),
        model=openrouter.CHAT_MODEL,
        thinking_model=openrouter.THINKING_MODEL,
        vision_model=openrouter.CHAT_MODEL,
        embed_model=openrouter.EMBED_MODEL,
        overflow=Fault(
            kind="status",
            status=400,
            message="This endpoint's maximum context length is 131072 tokens. However, you requested about 140000 "
            "tokens (139000 of text input, 1000 in the output). Please reduce the length of either one.",
        ),
        window=131072,
        tokens=140000,
        quota=Fault(kind="status", status=402, code="payment_required", message="Insufficient credits."),
        unlisted={"size": OPENROUTER_MODELS, "digest": OPENROUTER_MODELS},
    ),
]
