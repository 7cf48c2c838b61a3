"""What a node can be asked of its backends over a wire. Apart from the others: the values' rooms load asyncio."""

from __future__ import annotations

from typing import Final

from msgspec import Struct

from modeld.node.backends import ConfiguredBackend
from modeld.repository.values import ObservedModel
from modeld.transport.methods import Empty, Method
from modeld.types import ChatConfig, ChatResult, Message, Usage

REPOSITORY: Final = "modeld.v1.Repository"


class RegisterBackendRequest(Struct, frozen=True, kw_only=True):
    """See :meth:`modeld.node.gateway.RepositoryService.register_backend`. ``secret`` is not in ``repr``."""

    backend: ConfiguredBackend
    secret: str = ""
    replace: bool = False

    def __repr__(self) -> str:
        return f"RegisterBackendRequest({self.backend!r}, replace={self.replace})"


class BackendRequest(Struct, frozen=True, kw_only=True):
    """A call that needs nothing but the name of a backend."""

    backend: str


class ConfiguredBackends(Struct, frozen=True, kw_only=True):
    """Answer of ``ListBackends``."""

    backends: tuple[ConfiguredBackend, ...] = ()


class ObservedModels(Struct, frozen=True, kw_only=True):
    """Answer of the repository's ``ListModels``."""

    models: tuple[ObservedModel, ...] = ()


class ChatRequest(Struct, frozen=True, kw_only=True):
    """See :meth:`modeld.repository.ChatClient.chat`."""

    backend: str
    model: str
    messages: tuple[Message, ...] = ()
    config: ChatConfig | None = None


class EmbedRequest(Struct, frozen=True, kw_only=True):
    """See :meth:`modeld.repository.EmbedClient.embed`."""

    backend: str
    model: str
    texts: tuple[str, ...] = ()
    dimensions: int | None = None


class Vector(Struct, frozen=True, kw_only=True):
    """One of the vectors of an :class:`EmbedReply`."""

    values: tuple[float, ...] = ()


class EmbedReply(Struct, frozen=True, kw_only=True):
    """A :class:`modeld.repository.EmbedResult`: the wire has no list of lists."""

    vectors: tuple[Vector, ...] = ()
    model: str = ""
    usage: Usage = Usage()


class PromptRequest(Struct, frozen=True, kw_only=True):
    """See :meth:`modeld.repository.PromptClient.prompt`."""

    backend: str
    model: str
    system: str = ""
    temperature: float | None = None
    prompt: str = ""


class PromptReply(Struct, frozen=True, kw_only=True):
    """The answer's text."""

    text: str


REPOSITORY_METHODS: Final = (
    Method("RegisterBackend", RegisterBackendRequest, ConfiguredBackend, fenced=True, service=REPOSITORY, local=True),
    Method("RemoveBackend", BackendRequest, Empty, fenced=True, service=REPOSITORY, local=True),
    Method("ListBackends", Empty, ConfiguredBackends, service=REPOSITORY),
    Method("ListModels", BackendRequest, ObservedModels, service=REPOSITORY),
    Method("Chat", ChatRequest, ChatResult, service=REPOSITORY),
    Method("Stream", ChatRequest, None, service=REPOSITORY),
    Method("Embed", EmbedRequest, EmbedReply, service=REPOSITORY),
    Method("Prompt", PromptRequest, PromptReply, service=REPOSITORY),
)
"""Of the service ``Repository``. Asking a backend changes nothing of the node: those calls need no epoch."""
