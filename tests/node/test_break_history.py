"""Hazard: what breaks cost a session is forgotten or counted twice; KV of another kind is refused without a reason."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from modeld.node.breaks import KEPT_BREAKS, BreakHistory, manifest_change
from modeld.session import ContextReport, Manifest
from modeld.types import Receipt, ReuseReason, ReuseStop

REPORT = ContextReport(
    workspace="w", name="n", model="m", generation=1, resident=0, prefix_tokens=0, window=9, available=9, tape_hash=""
)
REASONS: tuple[ReuseReason, ...] = ("volatile_header", "evicted", "tool_order")
receipts = st.builds(
    Receipt,
    prefilled=st.integers(0, 100),
    stop=st.none()
    | st.builds(ReuseStop, reason=st.sampled_from(REASONS), tokens=st.integers(0, 9), seconds=st.floats(0, 99)),
)


@given(st.lists(receipts, max_size=40))
def test_the_last_are_kept_and_all_are_counted(made: list[Receipt]) -> None:
    history = BreakHistory()
    for receipt in made:
        history.note(receipt)
    report = history.put_into(REPORT)
    stops = [receipt.stop for receipt in made if receipt.stop is not None and receipt.stop.tokens]
    assert report.last_receipt == (made[-1] if made else None)
    assert [b.stop for b in report.breaks] == stops[-KEPT_BREAKS:]
    assert sum(total.count for total in report.break_totals) == len(stops)
    for total in report.break_totals:
        same = [stop for stop in stops if stop.reason == total.reason]
        assert (total.count, total.tokens) == (len(same), sum(stop.tokens for stop in same))
        assert total.seconds == pytest.approx(sum(stop.seconds for stop in same))
    assert [t.seconds for t in report.break_totals] == sorted((t.seconds for t in report.break_totals), reverse=True)


@pytest.mark.parametrize(
    ("field", "value", "reason", "words"),
    [
        ("engine_build", "llama 2", "model_changed", "the engine build was llama 1 and is llama 2"),
        ("template_digest", "b" * 64, "template_changed", f"the template digest was {'a' * 12} and is {'b' * 12}"),
        ("kv_type", "q8_0", "model_changed", "the kv type was f16 and is q8_0"),
        ("adapters", ("abc:1.0",), "model_changed", "the adapters was nothing and is abc*1.0"),
        ("add_bos", True, "model_changed", "the add bos was False and is True"),
    ],
)
def test_the_field_that_differs_is_named(field: str, value: object, reason: str, words: str) -> None:
    old = Manifest(engine="llama", engine_build="llama 1", model_digest="m" * 64, template_digest="a" * 64)
    assert manifest_change(old, structs.replace(old, **{field: value})) == (reason, words)
    assert manifest_change(old, structs.replace(old)) is None
    assert manifest_change(None, old) is None


@given(st.integers(0, 1000), st.integers(0, 1000), st.floats(0, 1000))
def test_no_break_costs_more_than_its_call(prefilled: int, tokens: int, seconds: float) -> None:
    receipt = Receipt(prefilled=prefilled, prefill_seconds=seconds).charged(ReuseStop(reason="evicted"), tokens)
    assert receipt.stop is not None
    assert receipt.stop.tokens == min(prefilled, tokens)
    assert 0 <= receipt.stop.seconds <= seconds * (1 + 1e-9)
    assert (receipt.stop.seconds > 0) <= (receipt.stop.tokens > 0)
