"""vLLM in the conformance suite."""

from modeld.repository import BackendSpec
from modeld.testing.server import Fault
from modeld.testing.vllm_wire import CHAT_MODEL, EMBED_MODEL, THINKING_MODEL, VISION_MODEL, FakeVLLM
from support.providers import ProviderCase

MODELS_PAGE = "https://docs.vllm.ai/en/latest/serving/openai_compatible_server/"

CASES = [
    ProviderCase(
        id="vllm",
        type="vllm",
        server=FakeVLLM,
        spec=lambda server: BackendSpec("vllm", server.url, "test-key"),
        model=CHAT_MODEL,
        thinking_model=THINKING_MODEL,
        vision_model=VISION_MODEL,
        embed_model=EMBED_MODEL,
        overflow=Fault(
            kind="status",
            status=400,
            message="This model's maximum context length is 4096 tokens. However, you requested 5000 tokens (4900 in "
            "the messages, 100 in the completion). Please reduce the length of the messages or completion.",
        ),
        window=4096,
        tokens=5000,
        unlisted={
            "max_output_tokens": MODELS_PAGE,
            "can_think": MODELS_PAGE,
            "can_vision": MODELS_PAGE,
            "size": MODELS_PAGE,
            "digest": MODELS_PAGE,
        },
    )
]
