"""Hazard: cells of a windowed layer that llama.cpp has given to another sequence. Compared with cold runs."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from modeld.engine.backend import Slice, StepResult
from modeld.engine.llama.backend import LlamaBackend
from modeld.engine.llama.runtime import LlamaRuntime
from modeld.engine.protocol import Load
from modeld.errors import CapacityError
from support.shapes import WINDOW, write_windowed

BOUND = 0.1
"""Of a logit in other batch shapes; without the cells that are needed it is 0.4 and more."""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shape") / "windowed.gguf"
    write_windowed(path)
    return path


@pytest.fixture
def backend(path: Path) -> Iterator[LlamaBackend]:
    backend = LlamaRuntime().load(Load(str(path), "windowed", "d", 2048, 2048, sequences=8))
    yield backend
    backend.close()


def tokens(seed: int, count: int) -> list[int]:
    random_ = random.Random(seed)
    return [random_.randrange(300, 2000) for _ in range(count)]


def compute(backend: LlamaBackend, sequence: int, start: int, ids: list[int]) -> list[float]:
    """Logits after ``ids``, computed as one batch."""
    assert backend.step([Slice(sequence, start, ids, True)]) is StepResult.OK
    return backend.logits(0)


def assert_as_cold(backend: LlamaBackend, sequence: int, held: list[int], more: list[int]) -> None:
    """What the sequence makes of ``more`` is what an empty one makes of all."""
    warm = compute(backend, sequence, len(held), more)
    backend.remove(sequence, len(held))
    backend.remove(7, 0)
    cold = compute(backend, 7, 0, held + more)
    backend.remove(7, 0)
    assert max(abs(a - b) for a, b in zip(warm, cold, strict=True)) < BOUND


def test_writers_do_not_take_what_has_left_the_window(backend: LlamaBackend) -> None:
    first, gone, long = tokens(1, 40), tokens(2, 300), tokens(3, 400)
    compute(backend, 0, 0, first)
    compute(backend, 1, 0, gone)
    compute(backend, 2, 0, long)
    # Writing goes on from the first cell that was freed, and comes to the long one's.
    backend.remove(0, 0)
    for n in range(3, 6):
        compute(backend, n, 0, tokens(n + 10, 200))
    for keep in (5, WINDOW, 3 * WINDOW + 1, 399):
        backend.share(2, 6, 0, keep)
        assert_as_cold(backend, 6, long[:keep], tokens(20 + keep, 30))
        backend.remove(6, 0)
    for keep in (390, 200, 10):
        backend.remove(2, keep)
        assert_as_cold(backend, 2, long[:keep], tokens(20 + keep, 30))


def test_a_share_keeps_what_its_source_forgets(backend: LlamaBackend) -> None:
    long = tokens(1, 300)
    compute(backend, 6, 0, tokens(8, 40))
    compute(backend, 0, 0, long)
    backend.share(0, 1, 0, 250)
    backend.remove(0, 0)
    backend.remove(6, 0)
    for n in range(2, 6):
        compute(backend, n, 0, tokens(n, 350))
    backend.remove(1, 100)
    assert_as_cold(backend, 1, long[:100], tokens(9, 20))


@pytest.mark.parametrize("cut", [300, 130, 20])
def test_restored_cells_are_guarded(backend: LlamaBackend, cut: int) -> None:
    long = tokens(4, 300)
    compute(backend, 6, 0, tokens(8, 400))
    compute(backend, 0, 0, long)
    state = backend.save(0)
    backend.remove(0, 0)
    assert backend.restore(1, state)
    backend.remove(6, 0)
    for n in range(2, 6):
        compute(backend, n, 0, tokens(n, 300))
    backend.remove(1, cut)
    assert_as_cold(backend, 1, long[:cut], tokens(5, 20))


@pytest.mark.parametrize(("start", "end", "cut"), [(0, 300, 300), (0, 300, 130), (0, 300, 20), (50, 250, 170)])
def test_saved_cells_are_all_there(backend: LlamaBackend, start: int, end: int, cut: int) -> None:
    long = tokens(4, 300)
    compute(backend, 0, 0, long)
    state = backend.save(0, start, end)
    if start:
        backend.share(0, 1, 0, start)
    backend.remove(0, 0)
    assert backend.restore(1, state, start, cut)
    assert_as_cold(backend, 1, long[:cut], tokens(5, 20))


@pytest.mark.parametrize("damage", ["cut", "empty", "length", "second", "header"])
def test_pieces_that_are_none_are_refused_and_leave_nothing(backend: LlamaBackend, damage: str) -> None:
    long = tokens(6, 300)
    compute(backend, 0, 0, long)
    state = backend.save(0)
    second = 4 + int.from_bytes(state[:4], "big")
    broken = {
        "cut": state[:-7],
        "empty": b"",
        "length": b"\xff" * 4 + state[4:],
        "second": state[:second] + bytes(4) + state[second + 4 :],
        "header": state[:4] + b"\xff" * 16 + state[20:],
    }[damage]
    assert not backend.restore(1, broken)
    assert backend.save(1) == b""
    assert backend.save(0) == state
    assert_as_cold(backend, 0, long[:100] if backend.remove(0, 100) else [], tokens(7, 20))


def test_a_guard_frees_its_cells_with_its_sequence(path: Path) -> None:
    backend = LlamaRuntime().load(Load(str(path), "windowed", "d", 512, 512, sequences=2))
    for n in range(6):
        compute(backend, n % 2, 0, tokens(n, 400))
        backend.remove(n % 2, 100)
        compute(backend, n % 2, 100, tokens(n, 300))
        backend.remove(n % 2, 0)
    backend.close()


def test_more_sequences_than_there_are_ids_for_are_refused_with_the_numbers(path: Path) -> None:
    with pytest.raises(CapacityError, match="127 sequences"):
        LlamaRuntime().load(Load(str(path), "windowed", "d", 512, 512, sequences=128))
