"""A wire without a vendor, for what is the same for all."""

from collections.abc import AsyncGenerator, Callable, Sequence

import pytest

from modeld import BackendError, EndPart, ModeldError, StreamPart, TextPart, Usage
from modeld.repository import BackendSpec, CapabilityConfig, CatalogOptions, EmbedResult, ObservedModel
from modeld.repository.options import OPTIONS, Rule, Rules
from modeld.repository.provider import WireCatalog
from modeld.repository.wire import Call, Wire

FULL = CapabilityConfig(
    context_length=8192,
    max_output_tokens=100,
    can_chat=True,
    can_embed=True,
    can_stream=True,
    can_prompt=True,
    can_think=True,
    can_vision=False,
)


class EchoWire(Wire):
    """Answers with the last message. ``failures`` are raised first, one for each call."""

    type = "echo"

    def __init__(self, spec: BackendSpec, options: CatalogOptions) -> None:
        super().__init__(spec, options)
        self.rules: Rules = {name: Rule("native", name) for name in (*OPTIONS, "images")}
        self.calls: list[Call] = []
        self.failures: list[Exception] = []
        self.closed = 0

    @property
    def backend_ids(self) -> tuple[str, ...]:
        return (self.spec.base_url,)

    async def list_models(self) -> list[ObservedModel]:
        self._fail()
        return [self.model("echo-1")]

    def model(self, name: str) -> ObservedModel:
        return ObservedModel(name=name, capabilities=FULL, evidence={"can_vision": "declared"})

    def _fail(self) -> None:
        if self.failures:
            raise self.failures.pop(0)

    async def stream(self, call: Call) -> AsyncGenerator[StreamPart, None]:
        for part in await self.chat(call):
            yield part

    async def chat(self, call: Call) -> Sequence[StreamPart]:
        self.calls.append(call)
        self._fail()
        end = EndPart(finish_reason="stop", usage=Usage(input=1, output=1, source="reported"), model=call.model.name)
        return [TextPart(call.messages[-1].content), end]

    async def embed(self, model: ObservedModel, texts: Sequence[str], dimensions: int | None) -> EmbedResult:
        self._fail()
        return EmbedResult(vectors=tuple((float(len(text)),) for text in texts))

    def error(self, error: Exception, model: str) -> ModeldError:
        return BackendError(f"echo: {error}")

    async def aclose(self) -> None:
        self.closed += 1


@pytest.fixture
def make_wire() -> Callable[..., tuple[EchoWire, WireCatalog]]:
    def make(**options: object) -> tuple[EchoWire, WireCatalog]:
        wire = EchoWire(BackendSpec("echo", "echo://here"), CatalogOptions(**options))  # type: ignore[arg-type]
        return wire, WireCatalog(wire)

    return make


@pytest.fixture
def echo_spec() -> BackendSpec:
    return BackendSpec("echo", "echo://here")
