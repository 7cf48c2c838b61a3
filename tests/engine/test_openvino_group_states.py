"""Hazard: any order of steps, cuts, copies and failures over sequences that are computed together. No wrong number, no
wrong length, nobody's room taken, nobody's KV lost with another's.

Beside it runs the same engine that computes each sequence alone: lengths and results must be equal, logits and KV too,
but for the rounding of batches.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from modeld.engine.backend import Slice, StepResult
from modeld.engine.openvino.backend import OpenvinoBackend
from modeld.engine.openvino.group import Gathering, Group
from modeld.engine.openvino.runtime import OpenvinoRuntime
from support.examples import examples

from .test_openvino_groups import NUMBERS, state
from .test_openvino_numerics import WARM_BOUND, apart, loaded

SEQUENCES, CELLS = 5, 400

sequences = st.integers(0, SEQUENCES - 1)
some = st.sets(sequences, min_size=2)
text = random.Random(1).choices(range(300, 1900), k=900)


@cache
def engines() -> tuple[OpenvinoBackend, OpenvinoBackend]:
    """One that computes together whenever it can, and one that never does."""
    runtime = OpenvinoRuntime()
    ours, theirs = (loaded(runtime, cells=CELLS, window=CELLS, sequences=SEQUENCES) for _ in range(2))
    ours._gathering = Gathering(NUMBERS, price=0.0)
    theirs.together = False
    return ours, theirs


@pytest.fixture(scope="module", autouse=True)
def ended() -> Iterator[None]:
    yield
    for backend in engines():
        backend.close()
    engines.cache_clear()


class Together(RuleBasedStateMachine):
    """Both engines do the same."""

    @initialize()
    def begin(self) -> None:
        self.ours, self.theirs = engines()
        self.held = [0] * SEQUENCES
        for backend in engines():
            assert all(backend.remove(number, 0) for number in range(SEQUENCES))

    @property
    def free(self) -> int:
        return CELLS - sum(self.held)

    def both(self, slices: list[Slice]) -> None:
        results = [backend.step(slices) for backend in (self.ours, self.theirs)]
        if sum(len(part.tokens) for part in slices) > self.free:
            assert results == [StepResult.NO_SPACE] * 2
            return
        assert results == [StepResult.OK] * 2
        for part in slices:
            self.held[part.sequence] += len(part.tokens)
        for row in range(len(slices)):
            assert apart(list(self.ours.logits(row)), list(self.theirs.logits(row))) <= WARM_BOUND["f16"]

    def next(self, number: int, count: int = 1) -> Slice:
        start = self.held[number]
        return Slice(number, start, text[start + 7 * number :][:count], True)

    @rule(number=sequences, count=st.integers(2, 90))
    def prompt(self, number: int, count: int) -> None:
        self.both([self.next(number, count)])

    @rule(running=some, steps=st.integers(1, 6))
    def decode(self, running: set[int], steps: int) -> None:
        for _ in range(steps):
            self.both([self.next(number) for number in sorted(running)])

    @rule(running=some, number=sequences, count=st.integers(2, 30))
    def decode_beside_a_prompt(self, running: set[int], number: int, count: int) -> None:
        slices = [self.next(one) for one in running - {number}]
        self.both([*slices, self.next(number, count)])

    @rule(number=sequences, part=st.floats(0, 1))
    def cut(self, number: int, part: float) -> None:
        self.held[number] = keep = int(self.held[number] * part)
        assert all(backend.remove(number, keep) for backend in (self.ours, self.theirs))

    @rule(source=sequences, into=sequences, part=st.floats(0, 1))
    def share(self, source: int, into: int, part: float) -> None:
        end = int(self.held[source] * part)
        if self.held[into] or end > self.free:
            return
        for backend in (self.ours, self.theirs):
            backend.share(source, into, 0, end)
        self.held[into] = end

    @rule(source=sequences, into=sequences)
    def save_and_restore(self, source: int, into: int) -> None:
        count = self.held[source]
        values = [state(backend, source) for backend in (self.ours, self.theirs)]
        assert len(values[0]) == len(values[1]) == count * NUMBERS
        if count:
            assert numpy.abs(values[0] - values[1]).max() <= WARM_BOUND["f16"]
        if self.held[into] or not 0 < count <= self.free:
            return
        for backend in (self.ours, self.theirs):
            saved = backend.save(source)
            assert backend.restore(into, saved)
            assert backend.save(into) == backend.save(source) == saved
        self.held[into] = count

    @precondition(lambda self: self.free > SEQUENCES)
    @rule(running=some, inside=st.booleans())
    def fail(self, running: set[int], inside: bool) -> None:
        """Before or after the states have grown. All keep what they had, whoever is to blame."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Group, "infer", failing(inside))
            result = self.ours.step([self.next(number) for number in sorted(running)])
        assert result is StepResult.FAILED
        for number in running:
            assert self.ours.remove(number, self.held[number])

    @precondition(lambda self: self.free > SEQUENCES)
    @rule(running=some)
    def end(self, running: set[int]) -> None:
        self.ours.request_abort()
        assert self.ours.step([self.next(number) for number in sorted(running)]) is StepResult.ABORTED
        self.ours.clear_abort()
        for number in running:
            assert self.ours.remove(number, self.held[number])

    @invariant()
    def lengths_are_those_of_the_tapes(self) -> None:
        if hasattr(self, "held"):
            for backend in (self.ours, self.theirs):
                assert [backend.length(number) for number in range(SEQUENCES)] == self.held

    @invariant()
    def states_take_no_more_than_there_is(self) -> None:
        if hasattr(self, "held"):
            groups = {one.group for one in self.ours._sequences if one.group is not None}
            assert sum(self.held) + sum(group.padding for group in groups) <= CELLS


def failing(inside: bool) -> Any:
    def infer(group: Group, feeds: dict[str, Any]) -> Any:
        if inside:
            group.request.infer(feeds, share_inputs=True)
        raise RuntimeError("no memory")

    return infer


def test_any_order_computes_what_each_alone_would() -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Together,
        settings=settings(
            max_examples=examples(25), stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
        ),
    )
