"""Hazard: an adapter that is loaded and does nothing, or something else. Against tiny with it merged, in numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import gguf
import numpy as np
import pytest

from modeld.engine.backend import Slice, StepResult
from modeld.engine.llama.backend import LlamaBackend
from modeld.engine.llama.runtime import LlamaRuntime
from modeld.engine.protocol import Load
from modeld.errors import ModelLoadError
from modeld.session.adapters import MAX_ADAPTERS, Adapter
from support.adapters import KINDS, Adapted, Lora, adapter_writer, finish, most, targets
from support.engines import TINY_F16, tiny_tokens
from support.shapes import write_windowed

BOUND = 0.05
"""As docs/engines.md says of tiny f16: the file's own numbers are rounded to 16 bits while they are multiplied."""

PROMPTS = [
    tiny_tokens(f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n")
    for text in ("Hello!", "Count to 12.", "Repeat: river stone 42 lotus")
]

Opened = Callable[..., LlamaBackend]


@pytest.fixture(scope="module")
def runtime() -> LlamaRuntime:
    return LlamaRuntime()


@pytest.fixture
def opened(runtime: LlamaRuntime) -> Iterator[Opened]:
    backends: list[LlamaBackend] = []

    def open_(adapters: Sequence[tuple[Lora, float]], path: Path = TINY_F16) -> LlamaBackend:
        named = tuple(Adapter(lora.path.stem, scale, lora.path.stem, str(lora.path)) for lora, scale in adapters)
        backends.append(runtime.load(Load(str(path), "tiny", "d", 2048, 2048, sequences=4, adapters=named)))
        return backends[-1]

    yield open_
    for backend in backends:
        backend.close()


def logits(backend: LlamaBackend, tokens: list[int]) -> list[float]:
    """After ``tokens``, computed as one batch in a sequence of their own."""
    assert backend.step([Slice(0, 0, tokens, True)]) is StepResult.OK
    found = backend.logits(0)
    backend.remove(0, 0)
    return found


def test_reference_is_the_model(opened: Opened) -> None:
    backend, reference = opened([]), Adapted([])
    for prompt in PROMPTS:
        assert most(logits(backend, prompt), reference.logits(prompt)) < BOUND


@pytest.mark.parametrize("scale", [1.0, 0.25, -1.5])
@pytest.mark.parametrize("alpha", [None, 8.0], ids=["no alpha", "alpha"])
def test_one_adapter_is_what_its_matrices_add(
    opened: Opened, tmp_path: Path, alpha: float | None, scale: float
) -> None:
    lora = Lora(tmp_path / "one.gguf", alpha=alpha, strength=0.2)
    backend, reference, bare = opened([(lora, scale)]), Adapted([(lora, scale)]), Adapted([])
    for prompt in PROMPTS:
        found = logits(backend, prompt)
        assert most(found, reference.logits(prompt)) < BOUND
        assert most(found, bare.logits(prompt)) > 10 * BOUND


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_matrix_is_active(opened: Opened, tmp_path: Path, kind: str) -> None:
    lora = Lora(tmp_path / "kind.gguf", targets(kind), strength=0.3)
    backend, reference, bare = opened([(lora, 1.0)]), Adapted([(lora, 1.0)]), Adapted([])
    for prompt in PROMPTS:
        found = logits(backend, prompt)
        assert most(found, reference.logits(prompt)) < BOUND
        assert most(found, bare.logits(prompt)) > 10 * BOUND


def test_two_at_once_are_both_active_each_with_its_scale(opened: Opened, tmp_path: Path) -> None:
    one = Lora(tmp_path / "one.gguf", targets("attn_q", "attn_v"), rank=2, alpha=4.0, strength=0.3)
    two = Lora(tmp_path / "two.gguf", rank=8, alpha=16.0, seed=1)
    both = [(one, 1.5), (two, 0.5)]
    backend = opened(both)
    others = [Adapted(some) for some in ([], both[:1], both[1:], [(one, 0.5), (two, 1.5)])]
    for prompt in PROMPTS:
        found = logits(backend, prompt)
        assert most(found, Adapted(both).logits(prompt)) < BOUND
        assert all(most(found, other.logits(prompt)) > 5 * BOUND for other in others)


def test_order_of_a_set_says_nothing(opened: Opened, tmp_path: Path) -> None:
    loras = [(Lora(tmp_path / f"{n}.gguf", seed=n), 0.5) for n in range(3)]
    for prompt in PROMPTS:
        assert most(logits(opened(loras), prompt), logits(opened(loras[::-1]), prompt)) < 0.01


def test_greedy_answer_is_that_of_the_reference(opened: Opened, tmp_path: Path) -> None:
    loras = [(Lora(tmp_path / "one.gguf", strength=0.1), 1.0), (Lora(tmp_path / "two.gguf", seed=1), 1.0)]
    backend, reference = opened(loras), Adapted(loras)
    for prompt in PROMPTS:
        wanted = reference.greedy(prompt, 12)
        assert len(wanted) > 3
        found: list[int] = []
        backend.remove(0, 0)
        tokens, start = prompt, 0
        for _ in wanted:
            assert backend.step([Slice(0, start, tokens, True)]) is StepResult.OK
            start += len(tokens)
            tokens = [int(np.argmax(backend.logits(0)))]
            found += tokens
        assert found == wanted


def test_most_that_may_be_active_fit_the_graph(opened: Opened, tmp_path: Path) -> None:
    loras = [(Lora(tmp_path / f"{n}.gguf", seed=n, strength=0.01), 0.5) for n in range(MAX_ADAPTERS)]
    found = logits(opened(loras), PROMPTS[0])
    assert most(found, Adapted(loras).logits(PROMPTS[0])) < BOUND


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_adapters_of_fewer_bits_are_near(opened: Opened, tmp_path: Path, kind: str) -> None:
    lora = Lora(tmp_path / "wide.gguf", rank=32, alpha=32.0, strength=0.02)
    writer = adapter_writer(tmp_path / "narrow.gguf")
    writer.add_float32("adapter.lora.alpha", 32.0)
    type_ = gguf.GGMLQuantizationType[kind]
    for name, pair in lora.pairs.items():
        for side, values in zip("ab", pair, strict=True):
            data = gguf.quants.quantize(values, type_)
            writer.add_tensor(f"{name}.lora_{side}", data, raw_dtype=type_)
    finish(writer, {})
    lora.path = tmp_path / "narrow.gguf"
    for prompt in PROMPTS:
        found = logits(opened([(lora, 1.0)]), prompt)
        assert most(found, Adapted([(lora, 1.0)]).logits(prompt)) < 5 * BOUND
        assert most(found, Adapted([]).logits(prompt)) > 10 * BOUND


def test_experts_and_output_have_adapters_too(opened: Opened, tmp_path: Path) -> None:
    base = tmp_path / "windowed.gguf"
    write_windowed(base)  # one expert, an output of its own, and a window that these prompts do not fill
    lora = Lora(tmp_path / "plain.gguf", [*targets("ffn_up", "ffn_down"), "output.weight"], strength=0.1)
    writer = adapter_writer(tmp_path / "experts.gguf", architecture="mellum")
    writer.add_float32("adapter.lora.alpha", 8.0)
    tensors = {}
    for name, pair in lora.pairs.items():
        expert = name.startswith("blk.")
        for side, values in zip("ab", pair, strict=True):
            target = name.replace(".weight", "_exps.weight") if expert else name
            tensors[f"{target}.lora_{side}"] = values[None] if expert else values
    finish(writer, tensors)
    lora.path = tmp_path / "experts.gguf"
    for prompt in PROMPTS:
        found = logits(opened([(lora, 1.0)], base), prompt)
        assert most(found, Adapted([(lora, 1.0)]).logits(prompt)) < 2 * BOUND
        assert most(found, Adapted([]).logits(prompt)) > 10 * BOUND


def test_file_that_the_library_refuses_is_a_typed_error(opened: Opened, tmp_path: Path) -> None:
    lora = Lora(tmp_path / "wrong.gguf")
    finish(adapter_writer(lora.path, architecture="llama"), {})
    with pytest.raises(ModelLoadError, match=r"adapter wrong .*arch"):
        opened([(lora, 1.0)])
