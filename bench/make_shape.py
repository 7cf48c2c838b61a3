"""Write a GGUF that computes like a real model and knows nothing: its shape is real, its weights are random.

    .venv/bin/python bench/make_shape.py [OUT.gguf] [--shape 90m|0.6b] [--type q8_0|q4_0|f16]

Speed, memory and KV size are those of a model of that shape; the text is meaningless. Tokenizer and chat template are
the bundled tiny model's, padded with unused tokens up to the shape's vocabulary. Two runs write the same file.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

BENCH = Path(__file__).resolve().parent
MODELS = BENCH / "models"
TINY = BENCH.parent / "src" / "modeld" / "data" / "tiny-q8_0.gguf"
SCALE = 0.02
WORD_START = "\u0120"
"""Byte-level BPE writes a leading space as this letter."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen3 model with tied embeddings."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    head: int
    feed_forward: int
    vocabulary: int
    context: int

    @property
    def kv_bytes_per_token(self) -> int:
        """Of f16 keys and values."""
        return 2 * 2 * self.layers * self.kv_heads * self.head


SHAPES = {
    "90m": Shape(640, 16, 10, 2, 64, 1792, 32_000, 32_768),
    "0.6b": Shape(1024, 28, 16, 8, 128, 3072, 151_936, 40_960),
}
TYPES = {
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
}


def write_shape(out: Path, shape: Shape, weights: str, name: str, tiny: Path = TINY) -> None:
    """Write the file, or nothing: a file that is cut off never has the final name."""
    part = out.with_suffix(".part")
    writer = gguf.GGUFWriter(part, "qwen3")
    quantization, file_type = TYPES[weights]
    writer.add_name(name)
    writer.add_file_type(file_type)
    add_hyperparameters(writer, shape)
    words = add_tokenizer(writer, gguf.GGUFReader(tiny), shape.vocabulary)
    add_weights(writer, shape, quantization, words)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(part, out)


def add_hyperparameters(writer: gguf.GGUFWriter, shape: Shape) -> None:
    """The architecture's numbers; base and epsilon are Qwen3's own."""
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head)
    writer.add_value_length(shape.head)
    writer.add_rope_freq_base(1_000_000.0)
    writer.add_layer_norm_rms_eps(1e-6)


def add_tokenizer(writer: gguf.GGUFWriter, tiny: gguf.GGUFReader, vocabulary: int) -> np.ndarray[Any, Any]:
    """Copy tokenizer and template, pad the vocabulary, and return which tokens are whole words."""

    def field(name: str) -> Any:
        return tiny.fields[name].contents()

    tokens: list[str] = field("tokenizer.ggml.tokens")
    types: list[int] = field("tokenizer.ggml.token_type")
    padding = vocabulary - len(tokens)
    writer.add_tokenizer_model(field("tokenizer.ggml.model"))
    writer.add_tokenizer_pre(field("tokenizer.ggml.pre"))
    writer.add_token_list(tokens + [f"[unused{n}]" for n in range(padding)])
    writer.add_token_types(types + [int(gguf.TokenType.UNUSED)] * padding)
    writer.add_token_merges(field("tokenizer.ggml.merges"))
    writer.add_bos_token_id(field("tokenizer.ggml.bos_token_id"))
    writer.add_eos_token_id(field("tokenizer.ggml.eos_token_id"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(field("tokenizer.chat_template"))
    normal = int(gguf.TokenType.NORMAL)
    is_word = [
        kind == normal and len(token) > 2 and token[0] == WORD_START and token[1:].isalpha()
        for token, kind in zip(tokens, types, strict=True)
    ]
    return np.array(is_word + [False] * padding)


def add_weights(writer: gguf.GGUFWriter, shape: Shape, quantization: Any, words: np.ndarray[Any, Any]) -> None:
    """Random matrices, norms of 1."""
    rng = np.random.default_rng(0)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = rng.standard_normal((rows, columns), dtype=np.float32) * SCALE
        if name == "token_embd.weight":
            # These rows are the output layer too. Tiny rows give tiny logits, so greedy decoding stays within whole
            # words, and text made of whole words tokenises back to the very tokens it came from.
            values[~words] *= 0.01
        if quantization == gguf.GGMLQuantizationType.F16:
            writer.add_tensor(name, values.astype(np.float16))
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, quantization), raw_dtype=quantization)

    def norm(name: str, size: int) -> None:
        writer.add_tensor(name, np.ones(size, dtype=np.float32))

    queries, keys = shape.heads * shape.head, shape.kv_heads * shape.head
    matrix("token_embd.weight", shape.vocabulary, shape.width)
    norm("output_norm.weight", shape.width)
    for block in (f"blk.{n}" for n in range(shape.layers)):
        norm(f"{block}.attn_norm.weight", shape.width)
        norm(f"{block}.attn_q_norm.weight", shape.head)
        norm(f"{block}.attn_k_norm.weight", shape.head)
        matrix(f"{block}.attn_q.weight", queries, shape.width)
        matrix(f"{block}.attn_k.weight", keys, shape.width)
        matrix(f"{block}.attn_v.weight", keys, shape.width)
        matrix(f"{block}.attn_output.weight", shape.width, queries)
        norm(f"{block}.ffn_norm.weight", shape.width)
        matrix(f"{block}.ffn_gate.weight", shape.feed_forward, shape.width)
        matrix(f"{block}.ffn_up.weight", shape.feed_forward, shape.width)
        matrix(f"{block}.ffn_down.weight", shape.width, shape.feed_forward)


def ensure(shape: str, weights: str) -> Path:
    """The file of this shape in ``bench/models``, written if it is not there."""
    out = MODELS / f"shape-{shape}-{weights}.gguf"
    if not out.exists():
        MODELS.mkdir(exist_ok=True)
        write_shape(out, SHAPES[shape], weights, f"shape-{shape}")
    return out


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", nargs="?", type=Path, help="default: bench/models/shape-SHAPE-TYPE.gguf")
    parser.add_argument("--shape", choices=SHAPES, default="90m")
    parser.add_argument("--type", choices=TYPES, default="q8_0")
    args = parser.parse_args()
    shape = SHAPES[args.shape]
    out = args.out or MODELS / f"shape-{args.shape}-{args.type}.gguf"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_shape(out, shape, args.type, f"shape-{args.shape}")
    print(f"{out}: {out.stat().st_size:,} B, f16 KV {shape.kv_bytes_per_token:,} B per token")


if __name__ == "__main__":
    main()
