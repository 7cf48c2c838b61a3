"""Catalog, provider and clients over any :class:`~modeld.repository.wire.Wire`."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import Any, Final, NoReturn, Self, get_args, overload

from msgspec import DecodeError, structs

from modeld.errors import (
    BackendProtocolError,
    BackendUnavailableError,
    CancelledError,
    DeadlineExceededError,
    InvalidRequestError,
    ModeldError,
    NotSupportedError,
    RefusedError,
)
from modeld.repository.contract import Texts
from modeld.repository.options import check_options, clamp_max_output_tokens
from modeld.repository.tracker import Attribute, Span
from modeld.repository.values import CapabilityConfig, EmbedResult, ObservedModel
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
    TextPart,
    ToolCallStart,
    WarningPart,
)

_SAYS: Final = {
    "declared": "its listing says so",
    "probed": "a request showed it",
    "measured": "it was measured",
    "named": "our table of models says so",
}
ROLES: Final = get_args(Role)

MIN_KEY: Final = 8
"""Characters of a key from which on it is looked for in errors."""


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
            with _typed(self._wire, ""):
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
            with _typed(self._wire, self._model.name):
                return await self._wire.chat(call)

        with self._track("chat", call.config) as span:
            async with _deadline(call.config.timeout):
                parts = await self._wire.options.retry.run(once)
            joiner = PartsJoiner()
            watch = _Watch(span, warnings)
            for part in parts:
                for checked in watch.seen(part):
                    joiner.add(checked)
            if not isinstance(parts[-1] if parts else None, EndPart):
                raise _cut(self._wire, self._model.name)
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
            stream = WireStream(self._wire, call, _Watch(span, warnings), resources)
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
            with _typed(self._wire, self._model.name):
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
            operation,
            self._wire.type,
            self._model.name,
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            think=config.think,
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


class WireStream:
    """:class:`modeld.repository.AnswerStream` over a wire."""

    def __init__(self, wire: Wire, call: Call, watch: _Watch, resources: ExitStack) -> None:
        self._wire = wire
        self._call = call
        self._watch = watch
        self._resources = resources
        self._ready: list[StreamPart] = []
        self._parts: AsyncGenerator[StreamPart, None] | None = None
        self._ended = False
        self._reader: asyncio.Task[Any] | None = None
        self._stopping: asyncio.Event | None = None
        timeout = call.config.timeout
        self._deadline = None if timeout is None else asyncio.get_running_loop().time() + timeout

    async def start(self) -> None:
        """Send the request and wait for its first part; tried again as the retry policy says."""
        async with _deadline_at(self._deadline, self._call.config.timeout):
            self._ready = list(self._watch.seen(await self._wire.options.retry.run(self._first)))
        self._ended = isinstance(self._ready[-1], EndPart)

    async def _first(self) -> StreamPart:
        parts = self._wire.stream(self._call)
        try:
            with _typed(self._wire, self._call.model.name):
                first = await anext(parts, None)
        except BaseException:
            await parts.aclose()
            raise
        if first is None:
            raise _cut(self._wire, self._call.model.name)
        self._parts = parts
        return first

    def __aiter__(self) -> AsyncIterator[StreamPart]:
        return self

    async def __anext__(self) -> StreamPart:
        while not self._ready:
            if self._reader is not None:
                raise InvalidRequestError("another task waits for the next part; a stream has one reader at a time")
            if self._ended or self._parts is None:
                await self.aclose()
                raise StopAsyncIteration
            self._reader = asyncio.current_task()
            try:
                part = await self._next(self._parts)
            except BaseException as error:
                await self._failed(error)
                raise
            finally:
                self._reader = None
            self._ready.extend(self._watch.seen(part))
            self._ended = isinstance(part, EndPart)
        return self._ready.pop(0)

    async def _next(self, parts: AsyncGenerator[StreamPart, None]) -> StreamPart:
        # No context managers where there is no deadline: they would cost more than decoding the part.
        try:
            if self._deadline is None:
                part = await anext(parts, None)
            else:
                async with _deadline_at(self._deadline, self._call.config.timeout):
                    part = await anext(parts, None)
        except Exception as error:
            _raise_typed(self._wire, self._call.model.name, error)
        if part is None:
            raise _cut(self._wire, self._call.model.name)
        return part

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def join(self) -> ChatResult:
        """See :meth:`modeld.repository.AnswerStream.join`."""
        joiner = PartsJoiner()
        async with self:
            async for part in self:
                joiner.add(part)
        return joiner.result()

    async def aclose(self) -> None:
        """See :meth:`modeld.repository.AnswerStream.aclose`. Who reads meanwhile gets :class:`CancelledError`."""
        reader = self._reader
        if reader is None or reader is asyncio.current_task():
            await self._close(None)
            return
        if self._stopping is None:
            # A generator that runs cannot be closed by another task: who waits in it has to leave.
            self._stopping = asyncio.Event()
            reader.cancel()
        await self._stopping.wait()

    async def _failed(self, error: BaseException) -> None:
        """:raises CancelledError: the reader was cancelled by :meth:`aclose` and by nobody else."""
        stopping = self._stopping
        ours = stopping is not None and isinstance(error, asyncio.CancelledError)
        task = asyncio.current_task()
        if ours and task is not None and task.uncancel() == 0:
            error = CancelledError("the stream was closed before its end; start a new one")
        try:
            await self._close(error)
        finally:
            if stopping is not None:
                stopping.set()
        if isinstance(error, CancelledError) and ours:
            raise error from None

    async def _close(self, error: BaseException | None) -> None:
        parts, self._parts = self._parts, None
        self._ended = True
        resources, self._resources = self._resources, ExitStack()
        try:
            if parts is not None:
                await parts.aclose()
        finally:
            resources.__exit__(type(error) if error else None, error, error.__traceback__ if error else None)


class _Watch:
    """Looks at the parts on their way: adds the warnings, and tells the tracker how it ended."""

    def __init__(self, span: Span, warnings: tuple[WarningPart, ...]) -> None:
        self._span = span
        self._warnings = warnings
        self._empty = True

    def seen(self, part: StreamPart) -> Sequence[StreamPart]:
        """``part`` with what has to go before it."""
        kind = type(part)
        if kind is TextPart and not self._warnings:
            self._empty = False
            return (part,)
        before, self._warnings = self._warnings, ()
        if kind in (TextPart, ToolCallStart):
            self._empty = False
        if isinstance(part, EndPart):
            part = _counted(part)
            self._record(part)
            if self._empty and part.finish_reason == "stop":
                before = (*before, WarningPart("empty_answer", "the model ended without text and without a tool call"))
        return (*before, part)

    def _record(self, end: EndPart) -> None:
        usage: dict[str, Attribute | None] = {
            "input_tokens": end.usage.input,
            "output_tokens": end.usage.output,
            "cache_read_tokens": end.usage.cache_read,
            "cache_write_tokens": end.usage.cache_write,
            "reasoning_tokens": end.usage.reasoning,
        }
        self._span.record(
            finish_reason=end.finish_reason, response_model=end.model or None, response_id=end.id or None, **usage
        )


def _counted(end: EndPart) -> EndPart:
    """``end`` with counts that can be counts; a negative or absurd one is unknown, and would cross no wire."""
    counts = {name: getattr(end.usage, name) for name in ("input", "cache_read", "cache_write", "output", "reasoning")}
    wrong = [name for name, count in counts.items() if count is not None and not 0 <= count < 2**53]
    if not wrong:
        return end
    return structs.replace(end, usage=structs.replace(end.usage, **dict.fromkeys(wrong)))


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


@contextmanager
def _typed(wire: Wire, model: str) -> Any:
    """What the SDK raises leaves as one of our errors."""
    try:
        yield
    except Exception as error:
        _raise_typed(wire, model, error)


def _raise_typed(wire: Wire, model: str, error: Exception) -> NoReturn:
    typed = error if isinstance(error, ModeldError) else _ours(wire, model, error)
    name = wire.options.name
    if name and name != wire.type and "backend_id" not in typed.details:
        # Of two backends of one type it has to be known which one it was.
        typed = type(typed)(f"{name}: {typed.message}", **{**typed.details, "backend_id": name})
    key = wire.spec.api_key.strip()
    # Servers and proxies quote the key they refuse. A shorter one would be found in ordinary words.
    if len(key) >= MIN_KEY and key in f"{typed.message}{typed.details}{error}":
        details = {name: v.replace(key, "[key]") if isinstance(v, str) else v for name, v in typed.details.items()}
        raise type(typed)(typed.message.replace(key, "[key]"), **details) from None
    if isinstance(error, ModeldError):
        raise typed from error.__cause__
    raise typed from error


def _ours(wire: Wire, model: str, error: Exception) -> ModeldError:
    # The interpreter's words tell what was too deep: what is sent is encoded, what came is decoded.
    if isinstance(error, RecursionError) and re.search(r"\b(serializ|encod)", str(error)):
        text = f"{wire.type}: the request is nested too deeply"
        return InvalidRequestError(text, backend=wire.type, model=model)
    if isinstance(error, RecursionError):
        text = f"{wire.type}: JSON of the answer, or of a call in the history, is nested too deeply"
        return BackendProtocolError(text, backend=wire.type, model=model)
    if isinstance(error, DecodeError | UnicodeDecodeError):
        text = f"{wire.type}: the answer cannot be understood: {error}"
        return BackendProtocolError(text, backend=wire.type, model=model)
    if isinstance(error, UnicodeEncodeError):
        # Not the error itself: it holds the whole text.
        text = f"{wire.type}: a text of the request cannot be sent ({error.reason}, character {error.start})"
        return InvalidRequestError(text, backend=wire.type, model=model)
    return wire.error(error, model)


def _cut(wire: Wire, model: str) -> ModeldError:
    text = f"the answer of {wire.type} stopped without an end; what came is incomplete"
    return BackendUnavailableError(text, backend=wire.type, model=model)


def _deadline(timeout: float | None) -> _Deadline:
    return _deadline_at(None if timeout is None else asyncio.get_running_loop().time() + timeout, timeout)


def _deadline_at(when: float | None, timeout: float | None) -> _Deadline:
    return _Deadline(when, timeout)


class _Deadline:
    """``asyncio.timeout_at`` whose error is ours. Without a deadline it costs nothing, which streams need."""

    def __init__(self, when: float | None, timeout: float | None) -> None:
        self._timeout = timeout
        self._inner = None if when is None else asyncio.timeout_at(when)

    async def __aenter__(self) -> None:
        if self._inner is not None:
            await self._inner.__aenter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._inner is None:
            return
        try:
            await self._inner.__aexit__(exc_type, exc, tb)
        except TimeoutError:
            text = f"the timeout of {self._timeout:g} s passed; the request was closed"
            raise DeadlineExceededError(text, timeout=self._timeout) from None


def _refusal(backend: str, result: ChatResult) -> RefusedError:
    words = result.text.strip()
    text = f"the model declined to answer: {words[:200]}" if words else "the model declined to answer"
    return RefusedError(
        text, text=result.text, backend=backend, model=result.model, id=result.id, usage=structs.asdict(result.usage)
    )
