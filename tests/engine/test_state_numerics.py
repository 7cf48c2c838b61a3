"""Hazard: a state that is not that of its tokens. The bounds are those of docs/engines.md."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from modeld.engine.backend import Slice, StepResult
from modeld.engine.llama.backend import LlamaBackend
from modeld.engine.llama.runtime import LlamaRuntime
from modeld.engine.protocol import Load
from support.shapes import write_hybrid, write_recurrent, write_windowed

from .test_llama_numerics import compute, prompt

Model = tuple[LlamaBackend, float]

BOUNDS = {write_windowed: 0.1, write_hybrid: 0.1, write_recurrent: 0.02}


@pytest.fixture(scope="module", params=BOUNDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Model]:
    path = tmp_path_factory.mktemp("shape") / "shape.gguf"
    request.param(path)
    backend = LlamaRuntime().load(Load(str(path), "shape", "d", 2048, 2048, sequences=4))
    yield backend, BOUNDS[request.param]
    backend.close()


@pytest.fixture(autouse=True)
def empty(model: Model) -> None:
    for sequence in range(4):
        model[0].remove(sequence, 0)


def differ(one: list[float], other: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def test_warm_logits_are_within_the_stated_bound_of_cold_ones(model: Model) -> None:
    backend, bound = model
    random_ = random.Random(1)
    for seed in range(10):
        ids = prompt(backend, seed)
        cold = compute(backend, 0, 0, ids)
        backend.remove(0, 0)
        done = random_.randrange(1, len(ids))
        warm = compute(backend, 1, 0, ids[:done])
        while done < len(ids):
            size = min(random_.choice([1, 1, 1, 7, 32]), len(ids) - done)
            warm = compute(backend, 1, done, ids[done : done + size])
            done += size
        backend.remove(1, 0)
        assert differ(cold, warm) <= bound


def test_a_state_comes_back_bit_for_bit_and_another_one_would_show(model: Model) -> None:
    backend, bound = model
    ids = prompt(backend, 1)
    middle = len(ids) // 2
    cold = compute(backend, 0, 0, ids)
    backend.remove(0, 0)
    compute(backend, 0, 0, ids[:middle])
    state = backend.save(0)
    compute(backend, 0, middle, ids[middle:])
    assert backend.restore(1, state)
    assert backend.save(1) == state
    assert differ(cold, compute(backend, 1, middle, ids[middle:])) <= bound
    compute(backend, 2, 0, list(range(300, 300 + middle)))
    assert differ(cold, compute(backend, 2, middle, ids[middle:])) > bound


def test_two_that_share_a_state_go_on_apart(model: Model) -> None:
    backend, bound = model
    ids = prompt(backend, 2)
    middle = len(ids) // 2
    cold = compute(backend, 0, 0, ids)
    backend.remove(0, 0)
    compute(backend, 0, 0, ids[:middle])
    backend.share(0, 1)
    state = backend.save(1)
    assert differ(cold, compute(backend, 0, middle, ids[middle:])) <= bound
    assert backend.save(1) == state
    backend.remove(0, 0)
    assert differ(cold, compute(backend, 1, middle, ids[middle:])) <= bound


def test_unequal_sequences_in_one_batch_do_not_mix(model: Model) -> None:
    backend, bound = model
    ids, other = prompt(backend, 3), prompt(backend, 4)
    cold = [compute(backend, 0, 0, tokens) for tokens in (ids, other) if backend.remove(0, 0)]
    backend.remove(0, 0)
    compute(backend, 2, 0, other)
    state = backend.save(2)
    compute(backend, 0, 0, ids[:-1])
    slices = [Slice(0, len(ids) - 1, ids[-1:], True), Slice(1, 0, other, True)]
    assert backend.step(slices) is StepResult.OK
    assert differ(cold[0], backend.logits(0)) <= bound
    assert differ(cold[1], backend.logits(1)) <= bound
    assert backend.save(2) == state


def test_an_ended_step_leaves_others_as_they_were(model: Model) -> None:
    backend, _ = model
    ids = prompt(backend, 5)
    compute(backend, 0, 0, ids)
    compute(backend, 1, 0, ids)
    state = backend.save(0)
    backend.request_abort()
    assert backend.step([Slice(1, len(ids), ids, False)]) is StepResult.ABORTED
    backend.clear_abort()
    assert backend.remove(1, len(ids)) is backend.shares
    assert backend.save(0) == state
