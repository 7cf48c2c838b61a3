"""Write a Hugging Face folder that computes like a real model and knows nothing: :mod:`make_shape` for other engines.

    .venv/bin/python bench/make_hf.py [OUT] [--shape 90m|0.6b]

The weights are random f16, tokenizer and chat template the tiny model's. Two runs write the same bytes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from make_shape import MODELS, SCALE, SHAPES, WORD_START, Shape

TINY_HF = Path(__file__).resolve().parent.parent / "tests" / "data" / "tiny-hf"
COPIED = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")

Tensor = tuple[str, np.ndarray[Any, Any]]


def write_hf(out: Path, shape: Shape) -> None:
    """Write ``config.json``, ``model.safetensors`` and the tokenizer's files."""
    out.mkdir(parents=True, exist_ok=True)
    for name in COPIED:
        shutil.copy(TINY_HF / name, out)
    config = json.loads((TINY_HF / "config.json").read_text())
    config |= {
        "hidden_size": shape.width,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head,
        "intermediate_size": shape.feed_forward,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.context,
        "layer_types": ["full_attention"] * shape.layers,
        "rope_parameters": {"rope_theta": 1_000_000.0, "rope_type": "default"},
        "dtype": "float16",
    }
    (out / "config.json").write_text(json.dumps(config, indent=2))
    _write_safetensors(out / "model.safetensors", list(_weights(shape)))


def _weights(shape: Shape) -> Iterator[Tensor]:
    """Random matrices, norms of 1."""
    rng = np.random.default_rng(0)

    def matrix(name: str, rows: int, columns: int) -> Tensor:
        return name, (rng.standard_normal((rows, columns), dtype=np.float32) * SCALE).astype(np.float16)

    def norm(name: str, size: int) -> Tensor:
        return name, np.ones(size, np.float16)

    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    name, embedding = matrix("model.embed_tokens.weight", shape.vocabulary, shape.width)
    # As in make_shape: greedy decoding stays within whole words.
    embedding[~_words(shape.vocabulary)] *= np.float16(0.01)
    yield name, embedding
    yield norm("model.norm.weight", shape.width)
    for block in (f"model.layers.{n}" for n in range(shape.layers)):
        yield norm(f"{block}.input_layernorm.weight", shape.width)
        yield norm(f"{block}.post_attention_layernorm.weight", shape.width)
        yield norm(f"{block}.self_attn.q_norm.weight", shape.head)
        yield norm(f"{block}.self_attn.k_norm.weight", shape.head)
        yield matrix(f"{block}.self_attn.q_proj.weight", queries, shape.width)
        yield matrix(f"{block}.self_attn.k_proj.weight", keys, shape.width)
        yield matrix(f"{block}.self_attn.v_proj.weight", keys, shape.width)
        yield matrix(f"{block}.self_attn.o_proj.weight", shape.width, queries)
        yield matrix(f"{block}.mlp.gate_proj.weight", shape.feed_forward, shape.width)
        yield matrix(f"{block}.mlp.up_proj.weight", shape.feed_forward, shape.width)
        yield matrix(f"{block}.mlp.down_proj.weight", shape.width, shape.feed_forward)


def _words(vocabulary: int) -> np.ndarray[Any, Any]:
    known = json.loads((TINY_HF / "tokenizer.json").read_text())["model"]["vocab"]
    words = np.zeros(vocabulary, bool)
    for token, id_ in known.items():
        words[id_] = len(token) > 2 and token[0] == WORD_START and token[1:].isalpha()
    return words


def _write_safetensors(path: Path, tensors: list[Tensor]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, values in tensors:
        header[name] = {"dtype": "F16", "shape": values.shape, "data_offsets": [at, at + values.nbytes]}
        at += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, values in tensors:
            file.write(values.tobytes())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, help="default: bench/models/shape-SHAPE-hf")
    parser.add_argument("--shape", choices=SHAPES, default="90m")
    args = parser.parse_args()
    out = args.out or MODELS / f"shape-{args.shape}-hf"
    write_hf(out, SHAPES[args.shape])
    print(f"{out}: {(out / 'model.safetensors').stat().st_size:,} B of weights")


if __name__ == "__main__":
    main()
