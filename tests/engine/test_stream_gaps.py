"""Hazard: a long prompt stalls a running stream, or a stream starves a prompt. In the time of a simulated machine."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeld.engine.backend import Slice, StepResult
from modeld.engine.cost import STEP_SECONDS, Curve, StepCost
from modeld.engine.protocol import Load, Turn
from modeld.types import DecodeOptions, Message

from .test_scheduler_states import Engine

Cost = Callable[[list[Slice]], float]


def shape_90m(slices: list[Slice]) -> float:
    """The 90m shape on two cores, as it was measured: seconds of a step."""
    seconds = 0.004
    for part in slices:
        tokens = len(part.tokens)
        if tokens > 1:
            # Attention costs 2.5 times as much in small pieces.
            small = 1 + 1.5 * max(0.0, 1 - tokens / 256)
            seconds += tokens * (0.0007 + small * 4.0e-7 * (part.start + tokens / 2))
    return seconds


def slow_machine(slices: list[Slice]) -> float:
    """A model of 7,000 m parameters on the same: 0.2 s to read the weights, 0.05 s a token."""
    return 0.2 + 0.05 * sum(len(part.tokens) for part in slices if len(part.tokens) > 1)


class Machine:
    """An engine whose steps take simulated time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cost: Cost, noise: float = 0.0) -> None:
        load = Load(path="", name="fake", digest="d", cells=40_000, window=12_000, sequences=8, batch=512)
        self.engine = Engine(load)
        self.now = 1000.0
        self.steps: list[tuple[float, list[Slice]]] = []
        self._step = self.engine.backend.step
        self._random = random.Random(5)
        self._noise = noise
        self._cost = cost
        self.engine.backend.step = self.step  # type: ignore[method-assign]
        for module in ("scheduler", "batch", "progress", "job"):
            monkeypatch.setattr(f"modeld.engine.{module}.monotonic", lambda: self.now)

    def step(self, slices: list[Slice]) -> StepResult:
        seconds = self._cost(slices) * (1 + self._noise * self._random.random())
        if self._noise and self._random.random() < 0.02:
            seconds *= 1.7
        self.now += seconds
        self.steps.append((seconds, slices))
        return self._step(slices)

    def ask(self, id_: int, text: str, tokens: int) -> None:
        options = DecodeOptions(temperature=0, max_tokens=tokens)
        self.engine.ask(Turn(id_, id_, (Message("user", text),), options, credit=10**9, client=str(id_)))

    def prefill_beside_a_stream(self, size: int, known: bool = True) -> tuple[list[float], float]:
        """:returns: the gaps of a stream while a prompt is computed, and tokens a second of that prompt."""
        self.ask(1, "!count 3000", 9000)
        self.engine.steps(100 if known else 1)
        self.steps.clear()
        began = self.now
        self.ask(2, "x" * size, 1)
        sequence = self.engine.scheduler._pool.get(2)
        while not sequence.jobs or not sequence.hot:
            self.engine.steps(1)
        while sequence.jobs:
            self.engine.steps(1)
        return [seconds for seconds, slices in self.steps if len(slices) > 1], size / (self.now - began)


@pytest.mark.parametrize("noise", [0.0, 0.3], ids=["quiet", "noisy"])
@pytest.mark.parametrize("known", [True, False], ids=["warm", "first-steps"])
def test_stream_flows_while_8000_tokens_are_prefilled(
    monkeypatch: pytest.MonkeyPatch, noise: float, known: bool
) -> None:
    machine = Machine(monkeypatch, shape_90m, noise)
    gaps, rate = machine.prefill_beside_a_stream(8000, known)
    assert max(gaps) <= 3 * statistics.median(gaps)
    assert statistics.median(gaps) <= 1.2 * STEP_SECONDS
    # A piece of 512 tokens costs half of what small ones do; the rest is the stream's share.
    alone = 8000 / sum(shape_90m([Slice(0, at, [0] * 500, False)]) for at in range(0, 8000, 500))
    assert rate > 0.3 * alone


def test_stream_keeps_half_the_time_of_a_slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, slow_machine)
    gaps, rate = machine.prefill_beside_a_stream(400)
    assert max(gaps) <= 3 * 0.2 + 8 * 0.05
    assert rate > 0.4 / 0.05 / 2


def test_second_prompt_does_not_lengthen_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """One far behind costs ten times as much a token as one that begins: the step counts each at its own price."""
    machine = Machine(monkeypatch, shape_90m)
    machine.ask(1, "!count 3000", 9000)
    machine.engine.steps(100)
    machine.ask(2, "x" * 8000, 1)
    machine.engine.steps(150)
    machine.steps.clear()
    machine.ask(3, "y" * 3000, 1)
    machine.ask(4, "z" * 3000, 1)
    machine.engine.steps(200)
    gaps = [seconds for seconds, slices in machine.steps if len(slices) > 1]
    assert len(gaps) > 30
    assert max(gaps) <= 3 * statistics.median(gaps)


def test_without_streams_a_step_is_a_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, shape_90m)
    machine.ask(1, "x" * 4000, 1)
    machine.engine.steps(100)
    assert [len(slices[0].tokens) for _, slices in machine.steps][:7] == [512] * 7


def test_one_outlier_does_not_shrink_the_steps_that_follow() -> None:
    cost = StepCost()
    for _ in range(50):
        cost.learn(1, [(100, 1000)], 0.1)
    before = cost.tokens(0.1, 1000)
    cost.learn(1, [(100, 1000)], 10.0)
    assert cost.tokens(0.1, 1000) > 0.6 * before


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40_000), st.floats(1e-6, 10)), min_size=1, max_size=30),
    st.integers(0, 100_000),
    st.integers(0, 100_000),
)
def test_curve_is_positive_whatever_it_is_told(told: list[tuple[int, float]], a: int, b: int) -> None:
    curve = Curve(512)
    assert curve.at(a) is None
    for place, value in told:
        curve.learn(place, value)
    low, high = curve.at(a), curve.at(b)
    assert low is not None
    assert high is not None
    assert min(low, high) > 0
    # Between its measurements and beyond: never more than proportional to the place.
    most = max(value for _, value in told)
    assert max(low, high) <= 1.5 * most * max(1, max(a, b) / 512)
