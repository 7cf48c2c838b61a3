"""The contracts: what lists a backend's models, what executes one, and the four clients it gives.

:class:`modeld.repository.provider.WireProvider` implements all of it over one :class:`modeld.repository.wire.Wire`;
who brings a backend of another kind may implement these instead.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, overload

from modeld.repository.values import BackendSpec, ObservedModel
from modeld.types import ChatConfig, ChatResult, Message, StreamPart

if TYPE_CHECKING:
    from modeld.repository.catalog import CatalogOptions

Texts = list[str] | tuple[str, ...]


class AnswerStream(Protocol):
    """An answer as it is made: typed parts, then exactly one :class:`~modeld.types.EndPart`.

    A stream that fails raises a typed error instead of the end part, also in the middle. Leaving the ``async with``
    block before the end, ``aclose``, or cancelling the reading task closes the request; the backend hears of it.
    """

    def __aiter__(self) -> AsyncIterator[StreamPart]: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None: ...

    async def join(self) -> ChatResult:
        """Read to the end and join the parts. A refusal is a result here, with finish reason ``refused``."""
        ...

    async def aclose(self) -> None:
        """Close the request if it still runs. Safe to call twice."""
        ...


class Client(Protocol):
    """What all clients have."""

    async def aclose(self) -> None:
        """Give the client back. Safe to call twice."""
        ...


class ChatClient(Client, Protocol):
    """Answers a conversation."""

    async def chat(
        self, messages: Sequence[Message], config: ChatConfig | None = None, /, **options: Any
    ) -> ChatResult:
        """The whole answer. Options are the fields of :class:`~modeld.types.ChatConfig`; they replace ``config``'s.

        :raises RefusedError: the model declined; ``text`` holds its words.
        :raises InvalidRequestError: a value is out of range. :raises NotSupportedError: the backend has no such option.
        :raises BackendError: and its subclasses, as the backend says. :raises ContextOverflowError: it does not fit.
        :raises DeadlineExceededError: the timeout passed.
        """
        ...


class StreamClient(Client, Protocol):
    """Answers a conversation, part by part."""

    async def stream(
        self, messages: Sequence[Message], config: ChatConfig | None = None, /, **options: Any
    ) -> AnswerStream:
        """The answer as a stream. Returns when the backend has taken the request; errors before are raised here."""
        ...


class PromptClient(Client, Protocol):
    """Answers one prompt."""

    async def prompt(self, system: str, temperature: float | None, prompt: str) -> str:
        """The answer's text. An empty ``system`` sends none; a ``temperature`` of ``None`` leaves it to the backend."""
        ...


class EmbedClient(Client, Protocol):
    """Turns texts into vectors."""

    @overload
    async def embed(self, text: str, *, dimensions: int | None = None) -> list[float]: ...

    @overload
    async def embed(self, text: Texts, *, dimensions: int | None = None) -> list[list[float]]: ...

    async def embed(self, text: str | Texts, *, dimensions: int | None = None) -> list[float] | list[list[float]]:
        """One vector for one text, a list for a list, in its order.

        :param dimensions: length of the vectors, where the model can choose.
        """
        ...


class Provider(Protocol):
    """Executes one model of one backend. Every flag must be answered: none has a default."""

    @property
    def backend_ids(self) -> tuple[str, ...]:
        """Where the model can run: base URLs, or names of engines."""
        ...

    @property
    def model_name(self) -> str:
        """The model's name, as it goes over the wire."""
        ...

    @property
    def id(self) -> str:
        """Type and model, unique among providers of one backend."""
        ...

    @property
    def type(self) -> str:
        """Canonical type of the backend."""
        ...

    @property
    def context_length(self) -> int:
        """Tokens of the window, 0 unknown."""
        ...

    @property
    def max_output_tokens(self) -> int:
        """Hard ceiling of an answer, 0 unknown."""
        ...

    @property
    def can_chat(self) -> bool: ...

    @property
    def can_embed(self) -> bool: ...

    @property
    def can_stream(self) -> bool: ...

    @property
    def can_prompt(self) -> bool: ...

    @property
    def can_think(self) -> bool: ...

    @property
    def can_vision(self) -> bool: ...

    async def chat_client(self, backend_id: str = "") -> ChatClient:
        """:raises NotSupportedError: the model cannot chat."""
        ...

    async def stream_client(self, backend_id: str = "") -> StreamClient:
        """:raises NotSupportedError: the model cannot stream."""
        ...

    async def prompt_client(self, backend_id: str = "") -> PromptClient:
        """:raises NotSupportedError: the model cannot take prompts."""
        ...

    async def embed_client(self, backend_id: str = "") -> EmbedClient:
        """:raises NotSupportedError: the model cannot embed."""
        ...


class CatalogProvider(Protocol):
    """Lists one backend's models and makes providers of them."""

    @property
    def type(self) -> str:
        """Canonical type of the backend."""
        ...

    async def list_models(self) -> list[ObservedModel]:
        """What the backend has now, all pages of it. Nothing is cached.

        :raises BackendError: as the backend says.
        """
        ...

    def provider_for(self, model: ObservedModel | str) -> Provider:
        """What executes ``model``; no I/O. Of a bare name nothing is known but what our tables say for it."""
        ...

    async def aclose(self) -> None:
        """Close connections as soon as no call uses them. A call that starts later opens new ones."""
        ...


class CatalogFactory(Protocol):
    """Makes catalogs of specs."""

    def new_catalog_provider(self, spec: BackendSpec, options: CatalogOptions | None = None) -> CatalogProvider:
        """No network. :raises InvalidRequestError: the spec cannot be used."""
        ...
