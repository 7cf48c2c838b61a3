"""What a module of :mod:`modeld.providers` implements: one vendor's wire, and nothing else.

Clients, option checks, deadlines, retries, tracking and joining are written once, in
:mod:`modeld.repository.client` and its neighbours.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, ClassVar

from msgspec import Struct

from modeld.errors import ModeldError, NotSupportedError
from modeld.repository.options import Rules
from modeld.repository.values import BackendSpec, CapabilityConfig, EmbedResult, ObservedModel
from modeld.types import ChatConfig, Message, StreamPart

if TYPE_CHECKING:
    from modeld.repository.catalog import CatalogOptions


class Call(Struct, frozen=True, kw_only=True):
    """One request, checked: every option of ``config`` is one the wire has a way to do."""

    model: ObservedModel
    messages: tuple[Message, ...]
    config: ChatConfig


class Wire(ABC):
    """One backend of one vendor.

    Made without network and without its SDK. All that its methods raise goes through :meth:`error`.
    """

    type: ClassVar[str]
    """Canonical type of the backend."""

    provider_id: ClassVar[str] = "{type}:{model}"
    """How providers are called."""

    rules: Rules
    """What becomes of every option."""

    def __init__(self, spec: BackendSpec, options: CatalogOptions) -> None:
        self.spec = spec
        self.options = options

    @property
    @abstractmethod
    def backend_ids(self) -> tuple[str, ...]:
        """Where a model of it runs."""

    @abstractmethod
    async def list_models(self) -> list[ObservedModel]:
        """All pages of the vendor's listing."""

    @abstractmethod
    def model(self, name: str) -> ObservedModel:
        """What is known of a model that was not listed: from tables, evidence ``named``, or nothing. No I/O."""

    def capabilities(self, model: ObservedModel) -> CapabilityConfig:
        """What ``model`` can do now; a node's answer changes with the node."""
        return model.capabilities

    def unavailable(self, model: ObservedModel, feature: str) -> ModeldError | None:
        """Why ``model`` cannot be used now, and what to do about it; ``None``: nothing is known but its flags.

        :param feature: ``chat``, ``stream``, ``prompt`` or ``embed``.
        """
        return None

    @abstractmethod
    def stream(self, call: Call) -> AsyncGenerator[StreamPart, None]:
        """The answer, part by part, one end part last. Closing the generator closes the request."""

    @abstractmethod
    async def chat(self, call: Call) -> Sequence[StreamPart]:
        """The answer of one request that does not stream, as the parts that a stream would have given.

        Both ways go through the same decoder, so that they cannot drift apart.
        """

    async def embed(self, model: ObservedModel, texts: Sequence[str], dimensions: int | None) -> EmbedResult:
        """One vector for each text.

        :raises NotSupportedError: the vendor has no embeddings.
        """
        raise NotSupportedError(f"{self.type} has no embeddings", feature="embeddings", backend=self.type)

    @abstractmethod
    def error(self, error: Exception, model: str) -> ModeldError:
        """``error``, raised by the SDK, as one of ours."""

    @abstractmethod
    async def aclose(self) -> None:
        """Close connections as soon as nobody uses them."""
