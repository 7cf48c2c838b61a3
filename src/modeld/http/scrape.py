"""``GET /metrics``: what HTTP counted, and the node's own numbers of that moment, as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from modeld.http.exchange import Exchange
from modeld.http.metrics import Metrics
from modeld.session.contract import ModelService
from modeld.session.values import NodeStatus

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"


class Scrape:
    """The route."""

    def __init__(self, service: ModelService, metrics: Metrics) -> None:
        self._service = service
        self._metrics = metrics

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request."""
        text = generate_latest(_All(await self._service.status(), self._metrics))
        await exchange.start(200, CONTENT_TYPE, (("content-length", str(len(text))),))
        await exchange.write(text, more=False)


class _All:
    """What :func:`generate_latest` reads."""

    def __init__(self, node: NodeStatus, metrics: Metrics) -> None:
        self._node, self._metrics = node, metrics

    def collect(self) -> Iterator[Metric]:
        yield from _of_node(self._node)
        yield from self._metrics.collect()


def _of_node(node: NodeStatus) -> Iterator[Metric]:
    """The node's numbers: of all ways in, not of HTTP alone."""
    ledger, totals = node.ledger, node.totals
    tokens = {name: getattr(totals, name) for name in ("reused", "restored", "prefilled", "generated")}
    yield _counter("modeld_tokens", "Tokens by what became of them.", tokens, "kind")
    yield _counter("modeld_calls", "Calls on sessions that ended with a receipt.", totals.calls)
    yield _gauge("modeld_calls_running", "Calls that the engine works on, or has in its queue.", node.active)
    yield _gauge("modeld_calls_waiting", "Calls that wait for a model to be resident.", node.waiting)
    held = {tier: getattr(ledger, tier) for tier in ("hot", "ram", "disk")}
    yield _gauge("modeld_kv_bytes", "KV by where it is.", held, "tier")
    budgets = {tier: getattr(ledger, f"{tier}_budget") for tier in held}
    yield _gauge("modeld_kv_budget_bytes", "Room for KV by where it is.", budgets, "tier")
    yield _gauge("modeld_kv_cells", "KV cells of the engine, a token each.", ledger.cells)
    yield _gauge("modeld_kv_cells_used", "Those that hold one; shared ones count once.", ledger.cells_used)
    yield _counter("modeld_engine_starts", "Loads of a model, each by an engine of its own.", node.generation)
    yield _counter("modeld_engine_crashes", "Engines that died by themselves.", totals.crashes)
    yield _gauge("modeld_lease_epoch", "Number of this owner of the data root.", node.epoch)
    yield _gauge("modeld_sessions", "Sessions that the node remembers.", node.sessions)
    memory = {"node": node.rss, "engine": node.engine.rss if node.engine is not None else 0}
    yield _gauge("modeld_memory_bytes", "Resident memory.", memory, "process")
    yield _gauge("modeld_uptime_seconds", "Since the node started.", node.uptime)
    info = GaugeMetricFamily("modeld_model_info", "1 for the resident model.", labels=("model", "digest", "version"))
    if node.model:
        info.add_metric((node.model, node.digest, node.version), 1)
    yield info


def _gauge(name: str, what: str, values: dict[str, int] | float, label: str = "") -> Metric:
    return _filled(GaugeMetricFamily(name, what, labels=(label,) if label else ()), values)


def _counter(name: str, what: str, values: dict[str, int] | float, label: str = "") -> Metric:
    return _filled(CounterMetricFamily(name, what, labels=(label,) if label else ()), values)


def _filled(family: GaugeMetricFamily | CounterMetricFamily, values: dict[str, int] | float) -> Metric:
    if isinstance(values, dict):
        for name, value in values.items():
            family.add_metric((name,), value)
    else:
        family.add_metric((), values)
    return family
