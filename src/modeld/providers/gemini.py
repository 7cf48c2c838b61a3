"""Gemini by API key, on the official SDK ``google-genai``. Source: https://ai.google.dev/api"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from msgspec import structs

from modeld.errors import AuthenticationError, InvalidRequestError
from modeld.providers.facts import observe
from modeld.providers.failures import header_key, is_http
from modeld.providers.google_facts import google_facts
from modeld.providers.google_sdk import GoogleWire, Link, open_link
from modeld.repository.provider import WireCatalog
from modeld.repository.values import BackendSpec, CapabilityConfig, ObservedModel

if TYPE_CHECKING:
    from google.genai.types import Model

    from modeld.repository.catalog import CatalogOptions

BASE_URL: Final = "https://generativelanguage.googleapis.com"
VERSION: Final = "v1beta"
PAGE: Final = 1000
"""Models in one page, the most there are (models.list)."""


class GeminiWire(GoogleWire):
    """The Gemini API."""

    type = "gemini"
    provider_id = "gemini-{model}"

    def __init__(self, spec: BackendSpec, options: CatalogOptions) -> None:
        super().__init__(spec, options)
        root = (spec.base_url.strip() or BASE_URL).rstrip("/")
        if not is_http(root):
            raise InvalidRequestError(f"gemini needs a base URL such as {BASE_URL}, not {root!r}", parameter="base_url")
        # An address that names the version already is as good as one that does not.
        before, _, last = root.rpartition("/")
        self._root, self._version = (before, last) if last in ("v1", "v1alpha", VERSION) else (root, VERSION)

    @property
    def backend_ids(self) -> tuple[str, ...]:
        """The address of the service."""
        return (f"{self._root}/{self._version}" if self._version != VERSION else self._root,)

    def _open(self) -> Link:
        key = header_key(self.type, self.spec.api_key)
        if not key:
            # The SDK would take one from the environment.
            raise AuthenticationError("gemini: there is no API key; give one as api_key", backend=self.type)
        return open_link(self.options.http_client, self._root, self._version, enterprise=False, api_key=key)

    async def list_models(self) -> list[ObservedModel]:
        """See :meth:`modeld.repository.CatalogProvider.list_models`."""
        return [_observed(model) for model in await self._listed(PAGE) if model.name]

    def model(self, name: str) -> ObservedModel:
        """See :meth:`modeld.repository.wire.Wire.model`."""
        name = name.removeprefix("models/")
        return observe(name, google_facts(name))


def _observed(model: Model) -> ObservedModel:
    """What models.list says of a model; what it leaves out is asked of the table."""
    name = (model.name or "").removeprefix("models/")
    actions = model.supported_actions
    chats = "generateContent" in (actions or ())
    said: dict[str, Any] = {
        "context_length": model.input_token_limit,
        "max_output_tokens": model.output_token_limit,
        "can_chat": None if actions is None else chats,
        "can_embed": None
        if actions is None
        else any(action.endswith("mbedContents") or action.endswith("mbedContent") for action in actions),
        "can_think": model.thinking,
    }
    known = [field for field, value in said.items() if value is not None]
    declared = CapabilityConfig(
        context_length=model.input_token_limit or 0,
        max_output_tokens=model.output_token_limit or 0,
        can_chat=chats,
        can_stream=chats,
        can_prompt=chats,
        can_embed=bool(said["can_embed"]),
        can_think=bool(model.thinking),
        can_vision=False,
    )
    meta = {key: value for key in ("display_name", "version") if (value := getattr(model, key))}
    found = observe(name, google_facts(name), declared, known, meta=meta)
    return structs.replace(found, evidence={**found.evidence, **dict.fromkeys(meta, "declared")})


def make_catalog(spec: BackendSpec, options: CatalogOptions) -> WireCatalog:
    """A catalog of the Gemini API. No network, no SDK.

    :raises InvalidRequestError: the address is no HTTP URL.
    """
    return WireCatalog(GeminiWire(spec, options))
