"""Hazard: a benchmark model that is not the shape it says, or whose text does not tokenise back to its tokens."""

import ctypes
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from llama_cpp import llama_cpp as native

BENCH = Path(__file__).resolve().parent.parent / "bench"
QUIET = native.llama_log_callback(lambda *_: None)


@pytest.fixture
def make_shape(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_shape", BENCH / "make_shape.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # A dataclass looks its module up there.
    monkeypatch.setitem(sys.modules, "make_shape", module)
    spec.loader.exec_module(module)
    return module


@contextmanager
def loaded(path: Path) -> Iterator[tuple[Any, Any]]:
    """Model and context."""
    native.llama_log_set(QUIET, None)
    native.llama_backend_init()
    model = native.llama_model_load_from_file(os.fsencode(path), native.llama_model_default_params())
    assert model
    params = native.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch = 256, 2, 2
    context = native.llama_init_from_model(model, params)
    assert context
    try:
        yield model, context
    finally:
        native.llama_free(context)
        native.llama_model_free(model)


def decode(context: Any, tokens: list[int]) -> None:
    ids = (native.llama_token * len(tokens))(*tokens)
    assert native.llama_decode(context, native.llama_batch_get_one(ids, len(tokens))) == 0


def test_90m_has_the_memory_and_the_words_of_its_shape(make_shape: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "90m.gguf"
    shape = make_shape.SHAPES["90m"]
    make_shape.write_shape(path, shape, "q8_0", "shape-90m")
    assert shape.kv_bytes_per_token == 8192
    with loaded(path) as (model, context):
        assert native.llama_model_n_layer(model) == 16
        assert native.llama_model_n_ctx_train(model) == 32_768
        vocab = native.llama_model_get_vocab(model)
        assert native.llama_vocab_n_tokens(vocab) == 32_000
        assert native.llama_model_chat_template(model, None)

        decode(context, [300] * 10)
        ten = native.llama_state_seq_get_size(context, 0)
        decode(context, [301] * 10)
        # A saved cell also holds its position and sequences, some bytes.
        assert 8192 <= (native.llama_state_seq_get_size(context, 0) - ten) / 10 < 8192 + 32

        chain = native.llama_sampler_init_greedy()
        answer = []
        for step in range(32):
            # Left alone it repeats one word; a token now and then from outside makes it say others.
            decode(context, [310 + 17 * step] if step % 4 == 0 else answer[-1:])
            answer.append(native.llama_sampler_sample(chain, context, -1))
        native.llama_sampler_free(chain)
        text = ctypes.create_string_buffer(4096)
        ids = (native.llama_token * len(answer))(*answer)
        length = native.llama_detokenize(vocab, ids, len(answer), text, len(text), False, True)
        again = (native.llama_token * 256)()
        count = native.llama_tokenize(vocab, text.raw[:length], length, again, len(again), False, True)
        assert again[:count] == answer
        assert text.raw[:length].replace(b" ", b"").isalpha()
        assert len(set(answer)) > 3


@pytest.mark.parametrize("weights", ["q8_0", "q4_0", "f16"])
def test_every_type_loads_and_two_runs_write_the_same(make_shape: ModuleType, tmp_path: Path, weights: str) -> None:
    shape = make_shape.Shape(64, 2, 2, 1, 32, 128, 2_100, 512)
    first, second = tmp_path / "first.gguf", tmp_path / "second.gguf"
    for path in (first, second):
        make_shape.write_shape(path, shape, weights, "small")
    assert first.read_bytes() == second.read_bytes()
    assert list(tmp_path.glob("*.part")) == []
    with loaded(first) as (model, context):
        assert native.llama_model_n_head_kv(model) == 1
        decode(context, [300, 301])
