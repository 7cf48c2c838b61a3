"""What models there are, and one typed way to call them all.

    daemon = Daemon.default()
    await daemon.register_backend("cloud", BackendSpec("openai", api_key=key))
    client = await daemon.provider_for("cloud", "gpt-5").chat_client()
    result = await client.chat([Message("user", "Hello")], think="low")

Importing this does no work: each name is imported when it is first used, and a vendor's SDK, which is an extra, at the
first call of its type.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from modeld._lazy import lazy_names

if TYPE_CHECKING:
    from modeld.repository.catalog import (
        CatalogOptions,
        canonical_backend_type,
        default_catalog_factory,
        new_catalog_provider,
        register_catalog_provider,
    )
    from modeld.repository.contract import (
        AnswerStream,
        CatalogFactory,
        CatalogProvider,
        ChatClient,
        EmbedClient,
        PromptClient,
        Provider,
        StreamClient,
    )
    from modeld.repository.daemon import Daemon
    from modeld.repository.hooks import register_shutdown_hook, shutdown
    from modeld.repository.options import clamp_max_output_tokens
    from modeld.repository.retry import RetryPolicy
    from modeld.repository.tracker import ChainedTracker, NoopTracker, Span, Tracker
    from modeld.repository.values import BackendSpec, CapabilityConfig, EmbedResult, Evidence, ObservedModel

__all__ = [
    "AnswerStream",
    "BackendSpec",
    "CapabilityConfig",
    "CatalogFactory",
    "CatalogOptions",
    "CatalogProvider",
    "ChainedTracker",
    "ChatClient",
    "Daemon",
    "EmbedClient",
    "EmbedResult",
    "Evidence",
    "NoopTracker",
    "ObservedModel",
    "PromptClient",
    "Provider",
    "RetryPolicy",
    "Span",
    "StreamClient",
    "Tracker",
    "canonical_backend_type",
    "clamp_max_output_tokens",
    "default_catalog_factory",
    "new_catalog_provider",
    "register_catalog_provider",
    "register_shutdown_hook",
    "shutdown",
]

_MODULES: Final = {
    "catalog": (
        "CatalogOptions",
        "canonical_backend_type",
        "default_catalog_factory",
        "new_catalog_provider",
        "register_catalog_provider",
    ),
    "contract": (
        "AnswerStream",
        "CatalogFactory",
        "CatalogProvider",
        "ChatClient",
        "EmbedClient",
        "PromptClient",
        "Provider",
        "StreamClient",
    ),
    "daemon": ("Daemon",),
    "hooks": (
        "register_shutdown_hook",
        "shutdown",
    ),
    "options": ("clamp_max_output_tokens",),
    "retry": ("RetryPolicy",),
    "tracker": (
        "ChainedTracker",
        "NoopTracker",
        "Span",
        "Tracker",
    ),
    "values": (
        "BackendSpec",
        "CapabilityConfig",
        "EmbedResult",
        "Evidence",
        "ObservedModel",
    ),
}

__getattr__, __dir__ = lazy_names(
    __name__, {name: (f"{__name__}.{module}", name) for module, names in _MODULES.items() for name in names}
)
