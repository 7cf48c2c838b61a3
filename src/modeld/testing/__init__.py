"""What tests of programs that use modeld need: mocks, and servers that speak the vendors' wires.

Names are loaded at their first use. The servers need the extra ``testing``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from modeld._lazy import lazy_names

if TYPE_CHECKING:
    from modeld.testing.mocks import MockChatClient, MockEmbedClient, MockPromptClient, MockProvider, MockStreamClient
    from modeld.testing.server import Answer, FakeServer, Fault, Recorded
    from modeld.testing.vllm import setup_vllm_local_instance

__all__ = [
    "Answer",
    "FakeServer",
    "Fault",
    "MockChatClient",
    "MockEmbedClient",
    "MockPromptClient",
    "MockProvider",
    "MockStreamClient",
    "Recorded",
    "setup_vllm_local_instance",
]

_MODULES: Final = {
    "mocks": ("MockChatClient", "MockEmbedClient", "MockPromptClient", "MockProvider", "MockStreamClient"),
    "server": ("Answer", "FakeServer", "Fault", "Recorded"),
    "vllm": ("setup_vllm_local_instance",),
}

__getattr__, __dir__ = lazy_names(
    __name__, {name: (f"{__name__}.{module}", name) for module, names in _MODULES.items() for name in names}
)
