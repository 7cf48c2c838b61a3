"""The four clients over any wire."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Final, get_args, overload

from msgspec import structs

from modeld.errors import (
    BackendProtocolError,
    InvalidRequestError,
    NotSupportedError,
    RefusedError,
)
from modeld.repository.contract import Texts
from modeld.repository.guard import cut_off, deadline, typed_errors
from modeld.repository.options import check_options, clamp_max_output_tokens
from modeld.repository.stream import Watch, WireStream
from modeld.repository.tracker import config_attributes
from modeld.repository.values import EmbedResult, ObservedModel
from modeld.repository.wire import Call, Wire
from modeld.thinking import parse_think
from modeld.types import (
    ChatConfig,
    ChatResult,
    EndPart,
    Message,
    PartsJoiner,
    Role,
    StreamPart,
    WarningPart,
)

_SAYS: Final = {
    "declared": "its listing says so",
    "probed": "a request showed it",
    "measured": "it was measured",
    "named": "our table of models says so",
}
ROLES: Final = get_args(Role)


class WireClient:
    """All four clients: :class:`~modeld.repository.ChatClient`, ``StreamClient``, ``PromptClient``, ``EmbedClient``.

    A client holds nothing of its own: the backend's connections are shared by all.
    """

    def __init__(self, wire: Wire, model: ObservedModel) -> None:
        self._wire = wire
        self._model = model

    async def chat(
        self, messages: Sequence[Message], config: ChatConfig | None = None, /, **options: Any
    ) -> ChatResult:
        """See :meth:`modeld.repository.ChatClient.chat`."""
        call, warnings = self._call(messages, config, options)

        async def once() -> Sequence[StreamPart]:
            with typed_errors(self._wire, self._model.name):
                return await self._wire.chat(call)

        with self._track("chat", call.config) as span:
            async with deadline(call.config.timeout):
                parts = await self._wire.options.retry.run(once)
            joiner = PartsJoiner()
            watch = Watch(span, warnings)
            for part in parts:
                for checked in watch.seen(part):
                    joiner.add(checked)
            if not isinstance(parts[-1] if parts else None, EndPart):
                raise cut_off(self._wire, self._model.name)
            result = joiner.result()
            if result.finish_reason == "refused":
                raise _refusal(self._wire.type, result)
            return result

    async def stream(
        self, messages: Sequence[Message], config: ChatConfig | None = None, /, **options: Any
    ) -> WireStream:
        """See :meth:`modeld.repository.StreamClient.stream`."""
        call, warnings = self._call(messages, config, options)
        resources = ExitStack()
        try:
            span = resources.enter_context(self._track("stream", call.config))
            stream = WireStream(self._wire, call, Watch(span, warnings), resources)
            await stream.start()
        except BaseException as error:
            # The block of the tracker ends with the error, as if it had been raised inside.
            resources.__exit__(type(error), error, error.__traceback__)
            raise
        return stream

    async def prompt(self, system: str, temperature: float | None, prompt: str) -> str:
        """See :meth:`modeld.repository.PromptClient.prompt`."""
        messages = [Message("user", prompt)]
        if system.strip():
            messages.insert(0, Message("system", system))
        return (await self.chat(messages, ChatConfig(temperature=temperature))).text

    @overload
    async def embed(self, text: str, *, dimensions: int | None = None) -> list[float]: ...

    @overload
    async def embed(self, text: Texts, *, dimensions: int | None = None) -> list[list[float]]: ...

    async def embed(self, text: str | Texts, *, dimensions: int | None = None) -> list[float] | list[list[float]]:
        """See :meth:`modeld.repository.EmbedClient.embed`."""
        texts = [text] if isinstance(text, str) else list(text)
        vectors = [list(vector) for vector in (await self.embed_result(texts, dimensions=dimensions)).vectors]
        return vectors[0] if isinstance(text, str) else vectors

    async def embed_result(self, texts: Sequence[str], *, dimensions: int | None = None) -> EmbedResult:
        """Vectors with model and usage.

        :raises InvalidRequestError: no text, an empty one, or dimensions below 1.
        """
        if not texts or not all(isinstance(text, str) and text for text in texts):
            raise InvalidRequestError("embed takes one text or a list of texts, none of them empty", parameter="text")
        if dimensions is not None and dimensions < 1:
            raise InvalidRequestError(f"dimensions must be at least 1, not {dimensions}", parameter="dimensions")

        async def once() -> EmbedResult:
            with typed_errors(self._wire, self._model.name):
                return await self._wire.embed(self._model, texts, dimensions)

        with self._wire.options.tracker.start("embed", self._wire.type, self._model.name) as span:
            result = await self._wire.options.retry.run(once)
            span.record(input_tokens=result.usage.input, response_model=result.model)
            if len(result.vectors) != len(texts):
                raise BackendProtocolError(
                    f"{self._wire.type} gave {len(result.vectors)} vectors for {len(texts)} texts",
                    backend=self._wire.type,
                )
            return result

    async def aclose(self) -> None:
        """Nothing to give back: connections belong to the catalog."""

    def _track(self, operation: str, config: ChatConfig) -> Any:
        return self._wire.options.tracker.start(
            operation, self._wire.type, self._model.name, **config_attributes(config)
        )

    def _call(
        self, messages: Sequence[Message], config: ChatConfig | None, options: dict[str, Any]
    ) -> tuple[Call, tuple[WarningPart, ...]]:
        """The request, checked, and what the caller should know of it."""
        config = config_of(config, options)
        if not all(isinstance(message, Message) for message in messages):
            raise InvalidRequestError("a conversation is a list of Message", parameter="messages")
        for message in messages:
            if message.role not in ROLES:
                roles = ", ".join(ROLES)
                raise InvalidRequestError(f"a message's role is one of {roles}, not {message.role!r}", parameter="role")
            if message.images and message.role == "system":
                raise NotSupportedError("no backend takes images in a system message", feature="images")
        if not messages or not any(m.content or m.images or m.tool_calls for m in messages if m.role != "system"):
            raise InvalidRequestError("a conversation needs a message that is not empty", parameter="messages")
        check_options(self._wire.type, self._wire.rules, config)
        self._check_known("can_vision", "images", any(message.images for message in messages))
        self._check_known("can_think", "think", parse_think(config.think) not in ("auto", "off"))
        ceiling = self._wire.capabilities(self._model).max_output_tokens
        tokens, clamped = clamp_max_output_tokens(config.max_tokens, ceiling)
        warnings: tuple[WarningPart, ...] = ()
        if clamped:
            text = f"max_tokens {config.max_tokens} is above the ceiling of {self._model.name}; {tokens} are asked for"
            warnings = (WarningPart("max_tokens_clamped", text),)
        return Call(model=self._model, messages=tuple(messages), config=config.replace(max_tokens=tokens)), warnings

    def _check_known(self, flag: str, feature: str, wanted: bool) -> None:
        """Refuse what the model is known not to do. What is unknown goes to the vendor, who knows."""
        rule = self._wire.rules["images"] if feature == "images" else None
        if wanted and rule is not None and rule.kind == "error":
            raise NotSupportedError(f"{self._wire.type} takes no images: {rule.note}", feature=feature)
        known = flag in self._model.evidence
        if wanted and known and not getattr(self._wire.capabilities(self._model), flag):
            why = _SAYS[self._model.evidence[flag]]
            raise NotSupportedError(
                f"{self._model.name} of {self._wire.type} has no {feature} ({why}); leave it out",
                feature=feature,
                backend=self._wire.type,
                model=self._model.name,
            )


def config_of(config: ChatConfig | None, options: dict[str, Any]) -> ChatConfig:
    """``config`` with what a caller gave as keywords in place of its own.

    :raises InvalidRequestError: no option of that name, or a value out of its range.
    """
    unknown = options.keys() - set(ChatConfig.__struct_fields__)
    if unknown:
        known = ", ".join(ChatConfig.__struct_fields__)
        raise InvalidRequestError(f"no option is called {sorted(unknown)[0]!r}; there are {known}", parameter="options")
    for name in ("tools", "stop"):
        if isinstance(options.get(name), list):
            options[name] = tuple(options[name])
    try:
        return structs.replace(config or ChatConfig(), **options)
    except (TypeError, AttributeError) as error:
        raise InvalidRequestError(f"an option has a value of a wrong type: {error}", parameter="options") from error


def _refusal(backend: str, result: ChatResult) -> RefusedError:
    words = result.text.strip()
    text = f"the model declined to answer: {words[:200]}" if words else "the model declined to answer"
    return RefusedError(
        text, text=result.text, backend=backend, model=result.model, id=result.id, usage=structs.asdict(result.usage)
    )
