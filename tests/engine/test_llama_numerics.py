"""Hazard: warm KV that is not what a cold run would compute. The bounds are those of docs/engines.md."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from modeld.engine.backend import Slice, StepResult
from modeld.engine.llama.backend import LlamaBackend
from modeld.engine.llama.runtime import LlamaRuntime
from modeld.engine.protocol import Load
from modeld.node.store import bundled_path
from modeld.types import DecodeOptions
from support.engines import TINY_F16

WORDS = ("river", "stone", "lotus", "amber", "copper", "kite", "maple", "silver", "ocean", "brick", "cedar", "cloud")


@pytest.fixture(scope="module")
def runtime() -> LlamaRuntime:
    return LlamaRuntime()


def loaded(runtime: LlamaRuntime, path: Path) -> LlamaBackend:
    return runtime.load(Load(str(path), "tiny", "d", 4096, 4096, sequences=4))


@pytest.fixture
def backend(runtime: LlamaRuntime) -> Iterator[LlamaBackend]:
    backend = loaded(runtime, TINY_F16)
    yield backend
    backend.close()


def prompt(backend: LlamaBackend, seed: int) -> list[int]:
    random_ = random.Random(seed)
    words = " ".join(random_.choices(WORDS, k=random_.randrange(3, 200)))
    text = f"<|im_start|>user\nRepeat: {words}<|im_end|>\n<|im_start|>assistant\n"
    return backend.tokenize(text.encode(), add_special=False)


def compute(backend: LlamaBackend, sequence: int, start: int, tokens: list[int]) -> list[float]:
    """Logits after ``tokens``, computed as one batch."""
    assert backend.step([Slice(sequence, start, tokens, True)]) is StepResult.OK
    return backend.logits(0)


@pytest.mark.parametrize(("path", "bound"), [(TINY_F16, 0.05), (bundled_path(), 0.6)], ids=["f16", "q8_0"])
def test_warm_logits_are_within_the_stated_bound_of_cold_ones(runtime: LlamaRuntime, path: Path, bound: float) -> None:
    backend = loaded(runtime, path)
    random_ = random.Random(1)
    for seed in range(25):
        ids = prompt(backend, seed)[:500]
        cold = compute(backend, 0, 0, ids)
        backend.remove(0, 0)
        done = random_.randrange(1, len(ids))
        compute(backend, 1, 0, ids[:done])
        warm: list[float] = []
        while done < len(ids):
            size = min(random_.choice([1, 1, 1, 7, 32]), len(ids) - done)
            warm = compute(backend, 1, done, ids[done : done + size])
            done += size
        backend.remove(1, 0)
        assert max(abs(a - b) for a, b in zip(cold, warm, strict=True)) <= bound
        first, second = sorted(cold)[-1:-3:-1]
        if first - second > 2 * bound:  # else the text has no clear next token, and either is right
            assert cold.index(first) == warm.index(max(warm))
    backend.close()


def test_state_survives_save_and_restore_bit_for_bit(backend: LlamaBackend) -> None:
    ids = prompt(backend, 3)
    compute(backend, 0, 0, ids[:-1])
    state = backend.save(0)
    before = compute(backend, 0, len(ids) - 1, ids[-1:])
    backend.remove(0, len(ids) - 1)
    assert backend.restore(2, state)
    assert backend.save(2) == state == backend.save(0)
    after = compute(backend, 2, len(ids) - 1, ids[-1:])
    assert max(abs(a - b) for a, b in zip(before, after, strict=True)) < 1e-3


def test_shared_cells_outlive_the_sequence_they_came_from(backend: LlamaBackend) -> None:
    ids = prompt(backend, 4)
    compute(backend, 0, 0, ids[:-1])
    backend.share(0, 1)
    state = backend.save(1)
    compute(backend, 0, len(ids) - 1, ids[-1:])
    backend.remove(0, 0)
    assert backend.save(1) == state


@pytest.mark.parametrize("damage", ["cut", "empty", "header"])
def test_state_that_is_not_one_is_refused_and_leaves_nothing(backend: LlamaBackend, damage: str) -> None:
    compute(backend, 0, 0, prompt(backend, 5))
    state = backend.save(0)
    broken = {"cut": state[:-7], "empty": b"", "header": b"\xff" * 16 + state[16:]}[damage]
    assert not backend.restore(1, broken)
    assert backend.save(0) == state
    compute(backend, 1, 0, prompt(backend, 6))


def test_aborted_step_leaves_the_sequence_as_it_was(backend: LlamaBackend) -> None:
    ids = prompt(backend, 7)
    compute(backend, 0, 0, ids)
    state = backend.save(0)
    backend.request_abort()
    assert backend.step([Slice(0, len(ids), ids * 3, False)]) is StepResult.ABORTED
    backend.remove(0, len(ids))
    backend.clear_abort()
    assert backend.save(0) == state
    assert backend.step([Slice(0, len(ids), ids, False)]) is StepResult.OK


def test_full_cache_says_so_and_changes_nothing(runtime: LlamaRuntime) -> None:
    backend = runtime.load(Load(str(TINY_F16), "tiny", "d", 256, 256, sequences=2))
    ids = (prompt(backend, 8) * 20)[:200]
    compute(backend, 0, 0, ids)
    state = backend.save(0)
    assert backend.step([Slice(1, 0, ids[:100], False)]) is StepResult.NO_SPACE
    assert backend.save(0) == state
    compute(backend, 0, 200, ids[:50])
    backend.close()


def test_pieces_join_to_the_text_also_inside_a_character(backend: LlamaBackend) -> None:
    text = "snow \N{SNOWMAN} and \N{PILE OF POO}\n\ttabs".encode()
    assert b"".join(map(backend.piece, backend.tokenize(text, add_special=False))) == text


@pytest.mark.parametrize(
    "options",
    [
        DecodeOptions(seed=1),
        DecodeOptions(seed=1, top_k=0, top_p=1, min_p=0),
        DecodeOptions(temperature=0, repeat_penalty=1.2, penalty_last_n=8),
    ],
)
def test_samplers_are_made_and_freed(backend: LlamaBackend, options: DecodeOptions) -> None:
    ids = prompt(backend, 9)
    compute(backend, 0, 0, ids)
    draws = []
    for _ in range(2):
        sampler = backend.sampler(options, 1, ids)
        draws.append(sampler.sample(0))
        sampler.close()
    assert draws[0] == draws[1]
