"""Hostile adapters: whatever the file, it is active as a whole, or a typed error and no engine sees it."""

from __future__ import annotations

import asyncio
import os
import random
import struct
import time
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from msgspec import structs

from modeld.errors import InvalidModelError, ModeldError, NotSupportedError
from modeld.node.adapters import check_adapter, find_adapters
from modeld.node.config import NodeConfig
from modeld.node.gguf import GGUFHeader, Tensor, read_adapter_header
from modeld.node.node import Node
from modeld.node.store import ModelStore, ResolvedModel
from modeld.session import Adapter, ModelRef, SessionConfig
from modeld.types import DecodeOptions, Message
from support.adapters import Lora, adapter_writer, finish, targets
from support.engines import TINY_F16
from support.shapes import LAYERS, WIDTH, Matrix

Q = "blk.0.attn_q.weight"
A, B = f"{Q}.lora_a", f"{Q}.lora_b"
ROWS = 256


def matrices(rank: int = 4, columns: int = WIDTH, rows: int = ROWS) -> dict[str, Matrix]:
    return {A: np.ones((rank, columns), np.float32), B: np.ones((rows, rank), np.float32)}


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path)


@pytest.fixture
def tiny(store: ModelStore) -> ResolvedModel:
    return store.resolve(ModelRef(path=str(TINY_F16)))


Find = Callable[[Path], int]


@pytest.fixture
def find(store: ModelStore, tiny: ResolvedModel) -> Find:
    """Bytes of a file that is taken as an adapter for tiny."""
    return lambda path: find_adapters(store, tiny, [Adapter(path=str(path))]).size


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "odd.gguf"


def test_a_whole_adapter_is_taken(find: Find, path: Path) -> None:
    finish(adapter_writer(path), matrices())
    assert find(path) == path.stat().st_size
    assert find(Lora(path).path) == path.stat().st_size


KEYS: dict[str, Callable[[gguf.GGUFWriter], None]] = {
    "text": lambda w: w.add_string("adapter.lora.alpha", "8"),
    "64 bits": lambda w: w.add_float64("adapter.lora.alpha", 8.0),
    "an integer": lambda w: w.add_uint32("adapter.lora.alpha", 8),
    "an array": lambda w: w.add_array("adapter.lora.alpha", [8.0]),
    "no number": lambda w: w.add_float32("adapter.lora.alpha", float("nan")),
    "infinite": lambda w: w.add_float32("adapter.lora.alpha", float("inf")),
    "absurd": lambda w: w.add_float32("adapter.lora.alpha", 1e30),
    "alignment": lambda w: w.add_uint64("general.alignment", 32),
}


@pytest.mark.parametrize("key", KEYS)
def test_keys_that_would_end_the_engine_or_make_no_numbers(find: Find, path: Path, key: str) -> None:
    writer = adapter_writer(path)
    KEYS[key](writer)
    finish(writer, matrices())
    with pytest.raises(InvalidModelError, match=r"lora\.alpha|alignment") as caught:
        find(path)
    assert caught.value.details["path"] == str(path)


@pytest.mark.parametrize(
    "keys", [{"type": "model"}, {"adapter": "control_vector"}, {"architecture": "llama"}, {"type": ""}]
)
def test_files_of_another_kind_or_for_another_model(find: Find, path: Path, keys: dict[str, str]) -> None:
    finish(adapter_writer(path, **keys), matrices())
    with pytest.raises(InvalidModelError, match=r"no LoRA adapter|models of type 'llama'"):
        find(path)


def test_a_model_is_no_adapter_and_an_adapter_no_model(store: ModelStore, find: Find, path: Path) -> None:
    with pytest.raises(InvalidModelError, match="no LoRA adapter"):
        find(TINY_F16)
    finish(adapter_writer(path), matrices())
    with pytest.raises(InvalidModelError, match="it is an adapter"):
        store.resolve(ModelRef(path=str(path)))


SHAPES: dict[str, tuple[dict[str, Matrix], str]] = {
    "nothing": ({}, "no matrices"),
    "one of two": ({A: matrices()[A]}, "lora_a of blk.0.attn_q.weight without"),
    "the other": ({B: matrices()[B]}, "lora_b of blk.0.attn_q.weight without"),
    "columns": (matrices(columns=64), "do not make"),
    "rows": (matrices(rows=128), "do not make"),
    "ranks": ({**matrices(4), B: matrices(8)[B]}, "do not make"),
    "turned": ({A: matrices()[A].T.copy(), B: matrices()[B].T.copy()}, "do not make"),
    "experts": ({name: values[None].repeat(2, 0) for name, values in matrices().items()}, "do not make"),
    "a vector": ({A: np.ones(WIDTH * 4, np.float32), B: matrices()[B]}, "do not make"),
    "rank": (matrices(ROWS + 1), "more than the matrix's 256"),
    "64 bits": ({name: values.astype(np.float64) for name, values in matrices().items()}, "of type F64"),
    "integers": ({name: values.astype(np.int8) for name, values in matrices().items()}, "of type I8"),
    "a layer beyond": ({n.replace("blk.0", f"blk.{LAYERS}"): v for n, v in matrices().items()}, "does not have"),
    "another tensor": ({**matrices(), "x.weight": np.ones(4, np.float32)}, "neither a lora_a nor"),
    "twice a part": ({f"{Q}.lora_a.lora_a": matrices()[A], f"{Q}.lora_a.lora_b": matrices()[B]}, "does not have"),
}


@pytest.mark.parametrize("shape", SHAPES)
def test_matrices_that_do_not_fit_the_model(find: Find, path: Path, shape: str) -> None:
    tensors, reason = SHAPES[shape]
    finish(adapter_writer(path), tensors)
    with pytest.raises(InvalidModelError, match=reason):
        find(path)


@pytest.mark.parametrize("target", ["token_embd.weight", "blk.0.attn_norm.weight", "output_norm.weight", "norms"])
def test_what_would_not_be_active_is_refused(find: Find, path: Path, target: str) -> None:
    # llama.cpp leaves norms out without a word, and ends the process where the embedding is the output too.
    if target == "norms":
        tensors = {**matrices(), "blk.0.attn_norm.weight": np.ones(WIDTH, np.float32)}
    else:
        tensors = {f"{target}.lora_{side}": np.ones((4, 4), np.float32) for side in "ab"}
    finish(adapter_writer(path), tensors)
    with pytest.raises(NotSupportedError, match="would leave that out") as caught:
        find(path)
    assert caught.value.feature == "lora_target"


@pytest.mark.parametrize("extra", ["blk.0.attn_q.scale", "blk.3.attn_kv_a_mqa.weight"])
def test_models_whose_matrices_are_not_plainly_multiplied(tiny: ResolvedModel, path: Path, extra: str) -> None:
    finish(adapter_writer(path), matrices())
    header, base = read_adapter_header(path), tiny.header
    assert isinstance(base, GGUFHeader)
    check_adapter(path, header, "tiny", base)
    odd = structs.replace(base, tensors=(*base.tensors, Tensor(extra, (1,), "F32", 0, 4)))
    with pytest.raises(NotSupportedError, match="attn_q"):
        check_adapter(path, header, "odd", odd)


def test_an_activated_lora_is_not_there(find: Find, path: Path) -> None:
    writer = adapter_writer(path)
    writer.add_array("adapter.alora.invocation_tokens", [1, 2, 3])
    finish(writer, matrices())
    with pytest.raises(NotSupportedError, match="activated LoRA") as caught:
        find(path)
    assert caught.value.feature == "alora"


def test_cut_files_and_claims_beyond_the_file(find: Find, path: Path) -> None:
    finish(adapter_writer(path), matrices())
    whole = path.read_bytes()
    for size in [*range(0, 700, 7), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(InvalidModelError):
            find(path)
    for count in (2**32, 2**62):
        path.write_bytes(whole.replace(struct.pack("<QQ", WIDTH, 4), struct.pack("<QQ", WIDTH, count)))
        started = time.monotonic()
        with pytest.raises(InvalidModelError):
            find(path)
        assert time.monotonic() - started < 1.0


@pytest.mark.parametrize("what", ["fifo", "folder", "/dev/zero"])
def test_what_is_no_file(find: Find, path: Path, what: str) -> None:
    if what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    with pytest.raises(ModeldError) as caught:
        find(path if what != "/dev/zero" else Path(what))
    assert caught.value.code in ("model_not_found", "invalid_model")


def mutated(whole: bytes, seed: int) -> bytes:
    """A file with some bytes of its header changed."""
    draw, data = random.Random(seed), bytearray(whole)
    for _ in range(draw.randint(1, 4)):
        data[draw.randrange(900)] = draw.choice([0, 1, 255, draw.randrange(256)])
    return bytes(data)


def accepted(find: Find, path: Path, whole: bytes) -> list[bytes]:
    """Of 400 changed files those that are taken; the others are typed errors."""
    taken: list[bytes] = []
    for seed in range(400):
        path.write_bytes(mutated(whole, seed))
        try:
            find(path)
        except (InvalidModelError, NotSupportedError):
            continue
        taken.append(path.read_bytes())
    return taken


@pytest.mark.anyio
async def test_files_with_changed_bytes_never_end_an_engine(find: Find, tmp_path: Path, path: Path) -> None:
    """Those that the node takes, the engine loads and computes with; of the others nothing is changed."""
    whole = await asyncio.to_thread(Lora(path, targets("attn_q"), seed=3).path.read_bytes)
    taken = await asyncio.to_thread(accepted, find, path, whole)
    assert 3 < len(taken) < 200
    node, tiny = Node(NodeConfig(data_root=tmp_path)), ModelRef(path=str(TINY_F16))
    config = SessionConfig(name="one", adapters=(Adapter(path=str(path)),))
    try:
        for data in taken[:3]:
            await asyncio.to_thread(path.write_bytes, data)
            session = await node.open_session(tiny, config)
            await session.turn([Message("user", "Hello!")], options=DecodeOptions(max_tokens=2)).join()
        before = await node.status()
        await asyncio.to_thread(path.write_bytes, whole[:600])
        with pytest.raises(InvalidModelError):
            await node.load(tiny, config)
        after = await node.status()
        assert (after.generation, after.adapters, after.state) == (before.generation, before.adapters, "ready")
    finally:
        await node.aclose()
