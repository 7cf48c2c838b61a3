"""Hazard: work that a receipt does not show, or shows twice; and text so long that counting it stalls everybody."""

from __future__ import annotations

import time

import pytest

from modeld.engine.llama.runtime import LlamaRuntime
from modeld.engine.prompts import COUNTED_BYTES
from modeld.engine.protocol import Cancel, Credit, Done, Failed, Fork, Load, Turn, decode_result
from modeld.engine.spans import Positions
from modeld.types import DecodeOptions, EndPart, Message
from support.engines import TINY_F16, tiny_tokens

from .test_scheduler_states import Engine

GREEDY = DecodeOptions(temperature=0)


def ends(engine: Engine) -> dict[int, EndPart]:
    done = [reply for reply in engine.replies if isinstance(reply, Done)]
    return {reply.id: decode_result(reply.result, EndPart) for reply in done}


def small(**settings: int) -> Engine:
    wanted = {"cells": 300, "window": 300, "sequences": 2, "batch": 32, **settings}
    return Engine(Load(path="", name="fake", digest="d", **wanted))


def test_preempted_prompt_counts_each_time_it_was_computed() -> None:
    engine = small()
    engine.ask(Turn(1, 1, (Message("user", "!count 100"),), GREEDY, credit=100))
    assert engine.steps(1000)
    engine.ask(Turn(2, 2, (Message("user", "x" * 200),), GREEDY))
    assert engine.steps(1000)
    engine.ask(Credit(1, 10**6))
    assert engine.steps(1000)
    first, second = ends(engine)[1], ends(engine)[2]
    receipts = [first.cost(), second.cost()]
    assert receipts[0].recomputed > 100
    assert receipts[1].recomputed == 0
    for end, receipt in zip((first, second), receipts, strict=True):
        usage = end.usage
        assert receipt.input == usage.input == usage.reused + usage.restored + usage.prefilled  # type: ignore[operator]
        assert usage.cache_read == receipt.reused + receipt.restored
        assert usage.prefilled == receipt.prefilled - receipt.recomputed
    # All that was computed is in the receipts: prompts, and a step for each token but the first, which comes with them.
    assert first.usage.output is not None
    assert second.usage.output is not None
    decoded = engine.computed.total() - sum(receipt.prefilled for receipt in receipts)
    assert decoded == (first.usage.output - 1) + (second.usage.output - 1)


def test_preempted_and_cancelled_prompt_says_what_it_cost() -> None:
    engine = small()
    engine.ask(Turn(1, 1, (Message("user", "!count 100"),), GREEDY, credit=100))
    assert engine.steps(1000)
    engine.ask(Turn(2, 2, (Message("user", "x" * 200),), GREEDY))
    assert engine.steps(1000)
    engine.ask(Cancel(1))
    engine.control.cancel(1)
    assert engine.steps(1000)
    end = ends(engine)[1]
    receipt = end.cost()
    assert end.finish_reason == "cancelled"
    assert receipt.prefilled == end.usage.input == receipt.input > 0
    assert receipt.resident == receipt.recomputed == 0


def test_positions_count_once_what_came_twice() -> None:
    computed, restored = Positions(), Positions()
    computed.add(10, 40)
    computed.add(40, 50)
    computed.add(0, 30)
    assert (computed.added, computed.below(100), computed.below(20)) == (70, 50, 20)
    restored.add(40, 80)
    restored.add(5, 5)
    assert (restored.below(100, without=computed), restored.below(60, without=computed)) == (30, 10)


def test_hopeless_text_is_refused_without_being_tokenised() -> None:
    engine = small()
    engine.backend.tokenize = lambda text, *, add_special: pytest.fail("it was tokenised")  # type: ignore[method-assign]
    engine.ask(Turn(1, 1, (Message("user", "x" * (COUNTED_BYTES + 1)),), GREEDY))
    assert engine.steps(10)
    (failed,) = engine.replies
    assert isinstance(failed, Failed)
    assert (failed.code, failed.details["window"]) == ("context_overflow", 300)
    assert 300 < failed.details["additional"] <= COUNTED_BYTES


def test_bound_of_tiny_is_true_and_tight() -> None:
    backend = LlamaRuntime().load(Load(str(TINY_F16), "tiny", "d", 512, 512, sequences=1))
    try:
        longest = max(len(backend.piece(token)) for token in range(backend.vocabulary))
        assert backend.longest == longest
        for text in (
            "river stone lotus " * 50,
            " " * 1000,
            "\N{PILE OF POO}" * 100,
            "<|im_start|>" * 100,
            "a\n\tb" * 99,
        ):
            assert len(tiny_tokens(text)) * longest >= len(text.encode())
        began = time.perf_counter()
        backend._longest_piece()
        assert time.perf_counter() - began < 1
    finally:
        backend.close()


def test_fork_of_a_session_whose_kv_has_left_says_why_it_is_computed() -> None:
    engine = small(cells=2000)
    talk = (Message("user", "x" * 100),)
    engine.ask(Turn(1, 1, talk, GREEDY))
    assert engine.steps(1000)
    engine.scheduler._pool.evict(engine.scheduler._pool.sessions[1])
    engine.ask(Fork(2, 1, 2))
    assert engine.steps(1000)
    engine.ask(Turn(3, 2, talk, GREEDY))
    assert engine.steps(1000)
    receipt = decode_result(engine.replies[-1].result, EndPart).cost()  # type: ignore[union-attr]
    assert receipt.stop is not None
    assert (receipt.reused, receipt.stop.reason) == (0, "evicted")
