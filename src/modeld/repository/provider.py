"""Catalog and provider over any :class:`~modeld.repository.wire.Wire`."""

from __future__ import annotations

from modeld.errors import (
    InvalidRequestError,
    NotSupportedError,
)
from modeld.repository.client import WireClient
from modeld.repository.guard import typed_errors
from modeld.repository.values import CapabilityConfig, ObservedModel
from modeld.repository.wire import Wire


class WireCatalog:
    """:class:`modeld.repository.CatalogProvider` over a wire."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    @property
    def wire(self) -> Wire:
        """What speaks to the backend."""
        return self._wire

    @property
    def type(self) -> str:
        """Canonical type of the backend."""
        return self._wire.type

    async def list_models(self) -> list[ObservedModel]:
        """See :meth:`modeld.repository.CatalogProvider.list_models`."""

        async def once() -> list[ObservedModel]:
            with typed_errors(self._wire, ""):
                return await self._wire.list_models()

        with self._wire.options.tracker.start("list_models", self.type, "") as span:
            models = await self._wire.options.retry.run(once)
            span.record(models=len(models))
            return models

    def provider_for(self, model: ObservedModel | str) -> WireProvider:
        """See :meth:`modeld.repository.CatalogProvider.provider_for`."""
        if isinstance(model, str):
            if not model.strip():
                raise InvalidRequestError("a model needs a name", parameter="model")
            model = self._wire.model(model)
        return WireProvider(self._wire, model)

    async def aclose(self) -> None:
        """See :meth:`modeld.repository.CatalogProvider.aclose`."""
        await self._wire.aclose()


class WireProvider:
    """:class:`modeld.repository.Provider` over a wire."""

    def __init__(self, wire: Wire, model: ObservedModel) -> None:
        self._wire = wire
        self._model = model

    def __repr__(self) -> str:
        return f"<provider {self.id}>"

    @property
    def backend_ids(self) -> tuple[str, ...]:
        """Where the model can run."""
        return self._wire.backend_ids

    @property
    def model_name(self) -> str:
        """The model's name, as it goes over the wire."""
        return self._model.name

    @property
    def id(self) -> str:
        """Type and model."""
        return self._wire.provider_id.format(type=self._wire.type, model=self._model.name)

    @property
    def type(self) -> str:
        """Canonical type of the backend."""
        return self._wire.type

    @property
    def capabilities(self) -> CapabilityConfig:
        """What the model can do now."""
        return self._wire.capabilities(self._model)

    @property
    def context_length(self) -> int:
        """Tokens of the window, 0 unknown."""
        return self.capabilities.context_length

    @property
    def max_output_tokens(self) -> int:
        """Hard ceiling of an answer, 0 unknown."""
        return self.capabilities.max_output_tokens

    @property
    def can_chat(self) -> bool:
        """Whether :meth:`chat_client` gives one."""
        return self.capabilities.can_chat

    @property
    def can_embed(self) -> bool:
        """Whether :meth:`embed_client` gives one."""
        return self.capabilities.can_embed

    @property
    def can_stream(self) -> bool:
        """Whether :meth:`stream_client` gives one."""
        return self.capabilities.can_stream

    @property
    def can_prompt(self) -> bool:
        """Whether :meth:`prompt_client` gives one."""
        return self.capabilities.can_prompt

    @property
    def can_think(self) -> bool:
        """Whether the model is known to think."""
        return self.capabilities.can_think

    @property
    def can_vision(self) -> bool:
        """Whether the model is known to take images."""
        return self.capabilities.can_vision

    async def chat_client(self, backend_id: str = "") -> WireClient:
        """:raises NotSupportedError: the model cannot chat."""
        return self._client("chat", self.can_chat, backend_id)

    async def stream_client(self, backend_id: str = "") -> WireClient:
        """:raises NotSupportedError: the model cannot stream."""
        return self._client("stream", self.can_stream, backend_id)

    async def prompt_client(self, backend_id: str = "") -> WireClient:
        """:raises NotSupportedError: the model cannot take prompts."""
        return self._client("prompt", self.can_prompt, backend_id)

    async def embed_client(self, backend_id: str = "") -> WireClient:
        """:raises NotSupportedError: the model cannot embed."""
        return self._client("embed", self.can_embed, backend_id)

    def _client(self, feature: str, granted: bool, backend_id: str) -> WireClient:
        if not granted:
            reason = self._wire.unavailable(self._model, feature)
            if reason is not None:
                raise reason
            raise NotSupportedError(
                f"{self.id} is not known to {feature}; list_models() says what it can, or give provider_for() an "
                f"ObservedModel that says so",
                feature=feature,
                backend=self.type,
                model=self.model_name,
            )
        if backend_id and backend_id not in self.backend_ids:
            known = ", ".join(self.backend_ids)
            raise InvalidRequestError(f"{self.id} does not run at {backend_id!r}, but at {known}", parameter="backend")
        return WireClient(self._wire, self._model)
