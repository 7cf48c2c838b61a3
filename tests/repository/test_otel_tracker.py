"""Hazard: a call is not traced, traced under names that no tool knows, or what was said leaks into a trace."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.semconv._incubating.attributes import gen_ai_attributes as known

from modeld import Message, QuotaError
from modeld.repository import ChainedTracker, NoopTracker, RetryPolicy
from modeld.repository import otel as otel_module
from modeld.repository.otel import OpenTelemetryTracker

pytestmark = pytest.mark.anyio

ASK = [Message("user", "a secret question")]


class Watched:
    """A tracker and what it reported."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.reader = InMemoryMetricReader()
        traces = TracerProvider()
        traces.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracker = OpenTelemetryTracker(traces, MeterProvider([self.reader]))

    @property
    def spans(self) -> list[Any]:
        return list(self.exporter.get_finished_spans())

    def metrics(self) -> dict[str, list[Any]]:
        data = self.reader.get_metrics_data()
        assert data is not None
        found = data.resource_metrics[0].scope_metrics[0].metrics
        return {metric.name: list(metric.data.data_points) for metric in found}


async def test_a_call_is_a_span_with_usage(make_wire: Callable) -> None:
    watched = Watched()
    _, catalog = make_wire(tracker=watched.tracker)
    client = await catalog.provider_for("m").chat_client()
    await client.chat(ASK, temperature=0.5)
    await (await client.stream(ASK)).join()
    await catalog.list_models()
    await client.embed("secret")
    chat, stream, listing, embed = watched.spans
    assert chat.name == stream.name == "chat m"
    assert (listing.name, embed.name) == ("list_models", "embeddings m")
    assert chat.attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "echo",
        "gen_ai.request.model": "m",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.usage.input_tokens": 1,
        "gen_ai.usage.output_tokens": 1,
        "gen_ai.response.model": "m",
        "gen_ai.response.finish_reasons": ("stop",),
    }
    assert "secret" not in "".join(span.to_json() for span in watched.spans)
    metrics = watched.metrics()
    assert sum(point.count for point in metrics["gen_ai.client.operation.duration"]) == 4
    kinds = {point.attributes["gen_ai.token.type"] for point in metrics["gen_ai.client.token.usage"]}
    assert kinds == {"input", "output"}


async def test_an_error_is_its_code(make_wire: Callable) -> None:
    watched = Watched()
    wire, catalog = make_wire(tracker=watched.tracker, retry=RetryPolicy(attempts=1))
    client = await catalog.provider_for("m").chat_client()
    for call in (client.chat, client.stream):
        wire.failures = [QuotaError("nothing left, says the secret letter")]
        with pytest.raises(QuotaError):
            await call(ASK)
    assert [span.attributes["error.type"] for span in watched.spans] == ["quota_exceeded"] * 2
    assert {span.status.status_code.name for span in watched.spans} == {"ERROR"}
    assert "secret letter" not in "".join(span.to_json() for span in watched.spans)


async def test_a_stream_may_be_closed_by_another_task(make_wire: Callable) -> None:
    watched = Watched()
    _, catalog = make_wire(tracker=watched.tracker)
    stream = await (await catalog.provider_for("m").stream_client()).stream(ASK)
    assert watched.spans == []
    await asyncio.create_task(stream.aclose())
    assert [span.name for span in watched.spans] == ["chat m"]


def test_every_name_is_one_of_the_convention() -> None:
    names = {value for key, value in vars(known).items() if key.startswith("GEN_AI")}
    ours = {name for name in otel_module._ATTRIBUTES.values() if name.startswith("gen_ai.")}
    assert ours <= names
    values = {member.value for member in known.GenAiProviderNameValues}
    assert set(otel_module._PROVIDERS.values()) <= values


async def test_a_chain_tells_all(make_wire: Callable) -> None:
    first, second = Watched(), Watched()
    _, catalog = make_wire(tracker=ChainedTracker([first.tracker, NoopTracker(), second.tracker]))
    await (await catalog.provider_for("m").chat_client()).chat(ASK)
    assert [span.attributes["gen_ai.usage.input_tokens"] for span in first.spans + second.spans] == [1, 1]
