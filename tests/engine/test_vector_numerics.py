"""Hazard: vectors that are not the model's. Every pooling against formulas that share nothing with llama.cpp."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from modeld.engine.backend import Embedder
from modeld.engine.llama.runtime import LlamaRuntime
from modeld.engine.protocol import Load
from support.encoders import CLS, SEP, Reference, cosine, write_bert, write_last, write_ranking
from support.engines import TINY_F16

TEXTS = (
    "Hello!",
    "What is the weather in Oslo?",
    "x " * 100,
    "<|im_start|>user\nhi<|im_end|>\n",
    "Ünïcödé \N{SNOWMAN}",
)


@pytest.fixture(scope="module")
def runtime() -> LlamaRuntime:
    return LlamaRuntime()


@pytest.fixture
def opened(runtime: LlamaRuntime) -> Callable[[Path, int], Embedder]:
    def open_(path: Path, window: int) -> Embedder:
        return runtime.embedder(Load(str(path), path.stem, "", window, window, sequences=64, task="embed"))

    return open_


def test_tiny_is_the_mean_of_the_reference(opened: Callable[[Path, int], Embedder]) -> None:
    model, reference = opened(TINY_F16, 512), Reference(TINY_F16)
    inputs = [model.tokenize(text.encode(), add_special=True) for text in TEXTS]
    assert (model.pooling, model.pooling_source, model.dimensions) == ("mean", "default", 128)
    for tokens, vector in zip(inputs, model.compute(inputs), strict=True):
        # The bound that was asked for is 1e-3. Transformers is within 4e-5: it takes other sums.
        assert 1 - cosine(vector, reference.mean(tokens)) < 1e-5


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_an_encoder_reads_both_ways_and_pools_as_its_file_says(
    opened: Callable[[Path, int], Embedder], tmp_path: Path, pooling: str
) -> None:
    path = tmp_path / "bert.gguf"
    write_bert(path, pooling)  # type: ignore[arg-type]
    model, reference = opened(path, 256), Reference(path)
    assert (model.pooling, model.pooling_source, model.before, model.behind) == (pooling, "model", [CLS], [SEP])
    draw = random.Random(1)
    inputs = [[CLS, *draw.choices(range(5, 57), k=draw.randint(1, 60)), SEP] for _ in range(8)]
    for tokens, vector in zip(inputs[:4], model.compute(inputs[:4]), strict=True):
        rows = reference.rows(tokens)
        assert 1 - cosine(vector, rows.mean(0) if pooling == "mean" else rows[0]) < 1e-6
    # Nothing is left of the batch before.
    (alone,) = model.compute(inputs[4:5])
    rows = reference.rows(inputs[4])
    assert 1 - cosine(alone, rows.mean(0) if pooling == "mean" else rows[0]) < 1e-6


def test_a_reranker_scores_query_and_document_as_the_reference(
    opened: Callable[[Path, int], Embedder], tmp_path: Path
) -> None:
    path = tmp_path / "ranks.gguf"
    write_bert(path, "rank")
    model, reference = opened(path, 256), Reference(path)
    assert (model.pooling, model.dimensions) == ("rank", 1)
    letters = {c: model.tokenize(c.encode(), add_special=False) for c in "abcde"}
    pairs = [model.pair("a b", text) for text in ("c d", "e", "a b")]
    assert pairs[1] == [CLS, *letters["a"], *letters["b"], SEP, *letters["e"], SEP]
    scores = [vector[0] for vector in model.compute(pairs)]
    assert scores == pytest.approx([reference.score(pair) for pair in pairs], abs=1e-3)
    assert len({round(score, 2) for score in scores}) == 3


def test_tiny_with_a_head_ranks_as_the_reference(opened: Callable[[Path, int], Embedder], tmp_path: Path) -> None:
    path = tmp_path / "tiny-ranks.gguf"
    write_ranking(path)
    model, reference = opened(path, 512), Reference(path)
    assert (model.pooling, model.dimensions) == ("rank", 2)
    pairs = [model.pair("What is the weather?", text) for text in TEXTS]
    spelled = b"<|im_start|>user\nWhat is the weather?\nHello!<|im_end|>\n"
    assert pairs[0] == model.tokenize(spelled, add_special=False)
    scores = [vector[0] for vector in model.compute(pairs)]
    wanted = [reference.score(pair) for pair in pairs]
    assert scores == pytest.approx(wanted, abs=1e-3)
    assert [n for _, n in sorted(zip(scores, range(5), strict=True))] == [
        n for _, n in sorted(zip(wanted, range(5), strict=True))
    ]
    assert max(wanted) - min(wanted) > 0.05


def test_the_last_tokens_vector_where_the_file_says_so(opened: Callable[[Path, int], Embedder], tmp_path: Path) -> None:
    path = tmp_path / "last.gguf"
    write_last(path)
    model, reference = opened(path, 512), Reference(path)
    inputs = [model.tokenize(text.encode(), add_special=True) for text in TEXTS]
    assert (model.pooling, model.pooling_source) == ("last", "model")
    for tokens, vector in zip(inputs, model.compute(inputs), strict=True):
        assert 1 - cosine(vector, reference.rows(tokens)[-1]) < 1e-5
