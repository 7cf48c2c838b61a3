"""A tracker for OpenTelemetry: spans and metrics of the GenAI semantic conventions. Extra ``otel``.

    tracker = OpenTelemetryTracker()
    await daemon.register_backend("cloud", spec, tracker=tracker)

Source of the names: https://opentelemetry.io/docs/specs/semconv/gen-ai/ (status "development": they may still change).
Prompts and answers are not recorded: the tracker never sees them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from modeld._version import __version__
from modeld.errors import ModeldError
from modeld.repository.connections import require
from modeld.repository.tracker import Attribute

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Span, TracerProvider

_OPERATIONS: Final = {"chat": "chat", "stream": "chat", "embed": "embeddings"}

_PROVIDERS: Final = {"gemini": "gcp.gemini", "vertex-google": "gcp.vertex_ai", "mistral": "mistral_ai"}
"""Where the convention's name differs from our type."""

_ATTRIBUTES: Final = {
    "max_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "think": "modeld.request.think",
    "input_tokens": "gen_ai.usage.input_tokens",
    "output_tokens": "gen_ai.usage.output_tokens",
    "cache_read_tokens": "gen_ai.usage.cache_read.input_tokens",
    "cache_write_tokens": "gen_ai.usage.cache_creation.input_tokens",
    "reasoning_tokens": "gen_ai.usage.reasoning.output_tokens",
    "response_model": "gen_ai.response.model",
    "response_id": "gen_ai.response.id",
    "models": "modeld.response.models",
}

_TOKEN_BOUNDS: Final = [4.0**n for n in range(14)]
_SECOND_BOUNDS: Final = [0.01 * 2**n for n in range(14)]


class OpenTelemetryTracker:
    """Reports each call as a client span, with its duration and tokens as metrics.

    The span does not become the current one: a stream may be read and closed in other tasks than the one it began in.

    :param tracer_provider: ``None`` takes the process's. :param meter_provider: likewise.
    :raises MissingDependencyError: the extra is not installed.
    """

    def __init__(
        self, tracer_provider: TracerProvider | None = None, meter_provider: MeterProvider | None = None
    ) -> None:
        self._trace = require("opentelemetry.trace", "otel")
        metrics = require("opentelemetry.metrics", "otel")
        self._tracer = self._trace.get_tracer("modeld", __version__, tracer_provider)
        meter = metrics.get_meter("modeld", __version__, meter_provider)
        self._duration = meter.create_histogram(
            "gen_ai.client.operation.duration", "s", explicit_bucket_boundaries_advisory=_SECOND_BOUNDS
        )
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage", "{token}", explicit_bucket_boundaries_advisory=_TOKEN_BOUNDS
        )

    @contextmanager
    def start(
        self, operation: str, backend: str, model: str, **attributes: Attribute | None
    ) -> Iterator[OpenTelemetrySpan]:
        """See :class:`modeld.repository.Tracker`."""
        common: dict[str, Any] = {
            "gen_ai.operation.name": _OPERATIONS.get(operation, operation),
            "gen_ai.provider.name": _PROVIDERS.get(backend, backend),
        }
        if model:
            common["gen_ai.request.model"] = model
        name = f"{common['gen_ai.operation.name']} {model}".strip()
        inner = self._tracer.start_span(name, kind=self._trace.SpanKind.CLIENT, attributes=common)
        span = OpenTelemetrySpan(inner)
        span.record(**attributes)
        began = time.monotonic()
        try:
            yield span
        except BaseException as error:
            common["error.type"] = error.code if isinstance(error, ModeldError) else type(error).__name__
            inner.set_attribute("error.type", common["error.type"])
            inner.set_status(self._trace.Status(self._trace.StatusCode.ERROR, common["error.type"]))
            raise
        finally:
            inner.end()
            self._duration.record(time.monotonic() - began, common)
            for kind, count in span.tokens.items():
                self._tokens.record(count, {**common, "gen_ai.token.type": kind})


class OpenTelemetrySpan:
    """One call."""

    def __init__(self, inner: Span) -> None:
        self._inner = inner
        self.tokens: dict[str, int] = {}

    def record(self, **attributes: Attribute | None) -> None:
        """See :class:`modeld.repository.Span`."""
        for name, value in attributes.items():
            if value is None:
                continue
            if name == "finish_reason":
                self._inner.set_attribute("gen_ai.response.finish_reasons", [str(value)])
            elif name in _ATTRIBUTES:
                self._inner.set_attribute(_ATTRIBUTES[name], value)
            if name in ("input_tokens", "output_tokens") and isinstance(value, int):
                self.tokens[name.removesuffix("_tokens")] = value
