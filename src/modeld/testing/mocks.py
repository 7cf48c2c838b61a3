"""A provider without a backend: it says the same to everybody, and grants only what a test grants."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from types import TracebackType
from typing import Any, Final, Literal, Self, overload

from msgspec import Struct

from modeld.errors import InvalidRequestError, NotSupportedError
from modeld.repository.contract import Texts
from modeld.types import ChatConfig, ChatResult, EndPart, Message, PartsJoiner, StreamPart, TextPart, Usage

RESPONSE: Final = "mock response"
VECTOR: Final = (0.1, 0.2, 0.3)
PARTS: Final = tuple(f"mock data part {n}" for n in (1, 2, 3))

_END: Final = EndPart(finish_reason="stop", usage=Usage(), model="mock")


class MockProvider(Struct, frozen=True, kw_only=True):
    """A :class:`modeld.repository.Provider` of type ``mock``. It cannot think, and does what its flags say.

    :param name: of the model. :param backends: where the model is said to run; ``()``: any name is taken.
    """

    id: str = "mock"
    name: str = "mock-model"
    context_length: int = 0
    max_output_tokens: int = 0
    can_chat: bool = False
    can_embed: bool = False
    can_stream: bool = False
    can_prompt: bool = False
    can_vision: bool = False
    backends: tuple[str, ...] = ()

    @property
    def backend_ids(self) -> tuple[str, ...]:
        """What ``backends`` says."""
        return self.backends

    @property
    def model_name(self) -> str:
        """What ``name`` says."""
        return self.name

    @property
    def type(self) -> Literal["mock"]:
        """``mock``."""
        return "mock"

    @property
    def can_think(self) -> Literal[False]:
        """A mock never does."""
        return False

    async def chat_client(self, backend_id: str = "") -> MockChatClient:
        """:raises NotSupportedError: ``can_chat`` is not granted."""
        self._check("chat", self.can_chat, backend_id)
        return MockChatClient()

    async def stream_client(self, backend_id: str = "") -> MockStreamClient:
        """:raises NotSupportedError: ``can_stream`` is not granted."""
        self._check("stream", self.can_stream, backend_id)
        return MockStreamClient()

    async def prompt_client(self, backend_id: str = "") -> MockPromptClient:
        """:raises NotSupportedError: ``can_prompt`` is not granted."""
        self._check("prompt", self.can_prompt, backend_id)
        return MockPromptClient()

    async def embed_client(self, backend_id: str = "") -> MockEmbedClient:
        """:raises NotSupportedError: ``can_embed`` is not granted."""
        self._check("embed", self.can_embed, backend_id)
        return MockEmbedClient()

    def _check(self, feature: str, granted: bool, backend_id: str) -> None:
        if not granted:
            text = f"mock provider {self.id} was not granted can_{feature}"
            raise NotSupportedError(text, feature=feature, backend=self.type, model=self.name)
        if backend_id and self.backends and backend_id not in self.backends:
            known = ", ".join(self.backends)
            raise InvalidRequestError(f"{self.id} does not run at {backend_id!r}, but at {known}", parameter="backend")


class _MockClient:
    async def aclose(self) -> None:
        """Nothing to give back."""


class MockChatClient(_MockClient):
    """Answers ``mock response``, whatever is asked."""

    async def chat(
        self, messages: Sequence[Message], config: ChatConfig | None = None, /, **options: Any
    ) -> ChatResult:
        """The same answer every time. Options are not looked at."""
        return ChatResult(message=Message("assistant", RESPONSE), end=_END)


class MockPromptClient(_MockClient):
    """Answers ``mock response``, whatever is asked."""

    async def prompt(self, system: str, temperature: float | None, prompt: str) -> str:
        """The same answer every time."""
        return RESPONSE


class MockEmbedClient(_MockClient):
    """Gives every text the vector 0.1, 0.2, 0.3."""

    @overload
    async def embed(self, text: str, *, dimensions: int | None = None) -> list[float]: ...

    @overload
    async def embed(self, text: Texts, *, dimensions: int | None = None) -> list[list[float]]: ...

    async def embed(self, text: str | Texts, *, dimensions: int | None = None) -> list[float] | list[list[float]]:
        """The same vector for every text; ``dimensions`` is not looked at."""
        return list(VECTOR) if isinstance(text, str) else [list(VECTOR) for _ in text]


class MockStreamClient(_MockClient):
    """Streams ``mock data part 1`` to ``3``, whatever is asked."""

    async def stream(
        self, messages: Sequence[Message], config: ChatConfig | None = None, /, **options: Any
    ) -> MockStream:
        """A new stream of the same parts. Options are not looked at."""
        return MockStream()


class MockStream:
    """Three text parts and an end part. Closed, it gives nothing more."""

    def __init__(self) -> None:
        self._parts: list[StreamPart] = [*(TextPart(text) for text in PARTS), _END]

    def __aiter__(self) -> AsyncIterator[StreamPart]:
        return self

    async def __anext__(self) -> StreamPart:
        if not self._parts:
            raise StopAsyncIteration
        return self._parts.pop(0)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def join(self) -> ChatResult:
        """See :meth:`modeld.repository.AnswerStream.join`."""
        joiner = PartsJoiner()
        async for part in self:
            joiner.add(part)
        return joiner.result()

    async def aclose(self) -> None:
        """Drop what is left. Safe to call twice."""
        self._parts.clear()
