"""A backend without network, of the type ``echo``: its models do what their names say. What happened is in ``Echo``."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import ClassVar

from modeld.errors import AuthenticationError, InvalidRequestError, ModeldError, NotSupportedError
from modeld.repository import BackendSpec, CapabilityConfig, EmbedResult, ObservedModel
from modeld.repository.catalog import CatalogOptions, default_catalog_factory, register_catalog_provider
from modeld.repository.options import OPTIONS, make_rules, native
from modeld.repository.provider import WireCatalog
from modeld.repository.wire import Call, Wire
from modeld.types import EndPart, StreamPart, TextPart, ThinkingPart, Usage

KEY = "sk-secret-of-the-tests-4711"
MODELS = ("echo", "endless", "silent", "slow", "refuse", "cut", "think")


class Echo:
    """What the backends of this process saw."""

    parts = 0
    closed = 0
    calls: ClassVar[list[Call]] = []
    specs: ClassVar[list[BackendSpec]] = []
    services: ClassVar[list[object]] = []
    aclosed: ClassVar[list[BackendSpec]] = []

    @classmethod
    def clear(cls) -> None:
        cls.parts = cls.closed = 0
        for log in (cls.calls, cls.specs, cls.services, cls.aclosed):
            log.clear()


class EchoWire(Wire):
    """``base_url`` of ``broken`` cannot be used. Every key but :data:`KEY` and none is refused by the calls."""

    type = "echo"
    rules = make_rules(images=native("images"), **{name: native(name) for name in OPTIONS if name != "timeout"})

    def __init__(self, spec: BackendSpec, options: CatalogOptions) -> None:
        super().__init__(spec, options)
        if spec.base_url == "broken":
            raise InvalidRequestError("an echo is not broken", parameter="base_url")
        Echo.specs.append(spec)

    @property
    def backend_ids(self) -> tuple[str, ...]:
        return (self.spec.base_url,)

    async def list_models(self) -> list[ObservedModel]:
        self.check()
        listed = [self.model(name) for name in MODELS]
        return [
            ObservedModel(
                name=model.name,
                capabilities=model.capabilities,
                modified_at=datetime(2026, 1, 2, tzinfo=UTC),
                meta={"from": self.spec.base_url},
                evidence={"context_length": "declared", "can_think": "named"},
            )
            for model in listed
        ]

    def model(self, name: str) -> ObservedModel:
        flags = dict.fromkeys(("can_chat", "can_embed", "can_stream", "can_prompt"), name != "nothing")
        return ObservedModel(
            name=name,
            capabilities=CapabilityConfig(
                context_length=4096, max_output_tokens=0, can_think=name == "think", can_vision=False, **flags
            ),
        )

    def check(self) -> None:
        if self.spec.api_key not in ("", KEY):
            raise AuthenticationError("echo: the key was not taken", backend="echo")

    async def stream(self, call: Call) -> AsyncGenerator[StreamPart, None]:
        self.check()
        Echo.calls.append(call)
        ended = False
        try:
            async for part in self.answer(call):
                Echo.parts += 1
                ended = isinstance(part, EndPart)
                yield part
        finally:
            Echo.closed += not ended

    async def answer(self, call: Call) -> AsyncGenerator[StreamPart, None]:
        said = call.messages[-1].content
        match call.model.name:
            case "local" if self.options.service is not None:
                Echo.services.append(await self.options.service())
            case "silent":
                await asyncio.Event().wait()
            case "endless":
                while True:
                    yield TextPart("x" * 1000)
                    await asyncio.sleep(0)
            case "slow":
                for number in range(2000):
                    yield TextPart(f"{number} ")
                    await asyncio.sleep(0.01)
            case "cut":
                yield TextPart("half")
                return
            case "think":
                yield ThinkingPart("Hm.")
        for word in said.split(" "):
            yield TextPart(word)
        reason = "refused" if call.model.name == "refuse" else "stop"
        usage = Usage(input=11, cache_read=3, output=7, reasoning=2, source="reported")
        yield EndPart(finish_reason=reason, usage=usage, model=call.model.name, id="a-1")

    async def chat(self, call: Call) -> Sequence[StreamPart]:
        return [part async for part in self.stream(call)]

    async def embed(self, model: ObservedModel, texts: Sequence[str], dimensions: int | None) -> EmbedResult:
        if model.name == "cut":
            raise NotSupportedError("cut has no embeddings", feature="embeddings")
        vectors = tuple((0.1,) * (dimensions or len(text)) for text in texts)
        return EmbedResult(vectors=vectors, model=model.name, usage=Usage(input=5, source="reported"))

    def error(self, error: Exception, model: str) -> ModeldError:
        raise error

    async def aclose(self) -> None:
        Echo.aclosed.append(self.spec)


def make_catalog(spec: BackendSpec, options: CatalogOptions) -> WireCatalog:
    """Also the entry point of the package that tests of the command line install."""
    return WireCatalog(EchoWire(spec, options))


@contextmanager
def echo_registered() -> Iterator[type[Echo]]:
    """The type is known to this process while the block runs."""
    Echo.clear()
    register_catalog_provider("echo", make_catalog)
    try:
        yield Echo
    finally:
        del default_catalog_factory()._constructors["echo"]
