"""Hazard: answers over HTTP that a trace does not show, or that it shows with what was said."""

from __future__ import annotations

import httpx2
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from modeld.repository import otel

from .conftest import Opened

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("set_up", [True, False])
async def test_each_answer_is_a_span_where_the_process_was_set_up_for_it(
    open_site: Opened, monkeypatch: pytest.MonkeyPatch, set_up: bool
) -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    made = otel.OpenTelemetryTracker(provider)
    monkeypatch.setattr(otel, "OpenTelemetryTracker", lambda: made)
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    if set_up:
        monkeypatch.setenv("OTEL_SERVICE_NAME", "modeld")
    site = await open_site()
    body = {"model": "fake", "messages": [{"role": "user", "content": "secret words"}], "temperature": 0.5}
    async with httpx2.AsyncClient(base_url=site.url, headers=site.headers) as web:
        usage = (await web.post("/v1/chat/completions", json=body)).json()["usage"]
        await web.post("/v1/chat/completions", json=body | {"stream": True})
        refused = await web.post("/v1/chat/completions", json=body | {"model": "fake:window=64", "messages": LONG})
        assert refused.status_code == 400
    spans = exporter.get_finished_spans()
    if not set_up:
        assert spans == ()
        return
    first, _, failed = [dict(span.attributes or {}) for span in spans]
    assert first["gen_ai.operation.name"] == "chat"
    assert first["gen_ai.provider.name"] == "modeld"
    assert first["gen_ai.request.temperature"] == 0.5
    assert first["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert first["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert failed["error.type"] == "context_overflow"
    assert "secret" not in str([span.to_json() for span in spans])


LONG = [{"role": "user", "content": "secret words " * 100}]
