"""Small models whose memory is not that of plain attention, written when a test asks for them.

Two of them are tiny with layers added or narrowed, so they still answer as tiny does, tool calls and thinking included:
*windowed* lets two of its layers see the last 64 tokens only, *hybrid* has two random layers between its own that carry
a state from token to token. *recurrent* has nothing but states, its weights are random and its text means nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from modeld.session import ModelRef
from support.engines import ENGINES, TINY_F16, EngineCase

WINDOW = 64
LAYERS = 4
WIDTH = 128
HEADS, KV_HEADS, HEAD = 4, 2, 64
STATE, INNER, CONV, RANK = 16, 256, 4, 8
"""Of a recurrent layer: Mamba's state size, inner size, kernel, and rank of the time step."""
PAD = HEADS * HEAD
"""The hybrid architecture wants heads that make up its width: its stream is twice tiny's, and half of it unused."""

Matrix = np.ndarray[Any, Any]


class _Tiny:
    """The tensors and the tokenizer of tiny."""

    def __init__(self) -> None:
        reader = gguf.GGUFReader(TINY_F16)
        self._fields = reader.fields
        self.tensors = {t.name: np.asarray(t.data).astype(np.float32) for t in reader.tensors}

    def begin(self, path: Path, architecture: str, **numbers: int) -> gguf.GGUFWriter:
        """A writer that has tiny's tokenizer and template, and its sizes but for ``numbers``."""
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_name(path.stem)
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
        writer.add_context_length(8192)
        writer.add_layer_norm_rms_eps(1e-6)
        for name in ("token_type", "merges", "bos_token_id", "eos_token_id", "padding_token_id", "add_bos_token"):
            self._copy(writer, f"tokenizer.ggml.{name}")
        for name in ("tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens", "tokenizer.chat_template"):
            self._copy(writer, name)
        for name, number in numbers.items():
            writer.add_uint32(f"{architecture}.{name.replace('__', '.')}", number)
        return writer

    def _copy(self, writer: gguf.GGUFWriter, name: str) -> None:
        field = self._fields[name]
        item = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(name, field.contents(), field.types[0], sub_type=item)


@cache
def tiny_parts() -> _Tiny:
    """Read once."""
    return _Tiny()


def write_tensors(writer: gguf.GGUFWriter, tensors: dict[str, Matrix], kind: type[Any] = np.float16) -> None:
    """Write the file that ``writer`` has begun; matrices are of ``kind``."""
    for name, values in tensors.items():
        # Kernels and everything with one axis are used in 32 bits.
        wide = values.ndim == 1 or "conv" in name.split(".")[-2] or name.endswith("ssm_a")
        writer.add_tensor(name, values.astype(np.float32 if wide else kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_windowed(path: Path) -> None:
    """Tiny as a Mellum: mixtures of one expert each are plain, and two of the layers have a window."""
    writer = tiny_parts().begin(
        path,
        "mellum",
        embedding_length=WIDTH,
        block_count=LAYERS,
        feed_forward_length=384,
        expert_feed_forward_length=384,
        expert_count=1,
        expert_used_count=1,
        attention__head_count=HEADS,
        attention__head_count_kv=KV_HEADS,
        attention__key_length=HEAD,
        attention__value_length=HEAD,
        attention__sliding_window=WINDOW,
    )
    writer.add_array("mellum.attention.sliding_window_pattern", [True, False, True, False])
    writer.add_rope_freq_base(10000.0)
    tensors = {}
    for name, values in tiny_parts().tensors.items():
        if ".ffn_" in name and "norm" not in name:
            tensors[name.replace(".weight", "_exps.weight")] = values[None]
        else:
            tensors[name] = values
    tensors["output.weight"] = tensors["token_embd.weight"]
    for layer in range(LAYERS):
        tensors[f"blk.{layer}.ffn_gate_inp.weight"] = np.ones((1, WIDTH), np.float32)
    write_tensors(writer, tensors)


def write_hybrid(path: Path) -> None:
    """Tiny as an LFM2: a convolution with a state before its first layer, and one in the middle."""
    order = ["conv", 0, 1, "conv", 2, 3]
    writer = tiny_parts().begin(
        path,
        "lfm2",
        embedding_length=PAD,
        block_count=len(order),
        feed_forward_length=384,
        attention__head_count=HEADS,
        attention__key_length=HEAD,
        attention__value_length=HEAD,
        shortconv__l_cache=CONV,
    )
    writer.add_array("lfm2.attention.head_count_kv", [0 if kind == "conv" else KV_HEADS for kind in order])
    writer.add_rope_freq_base(10000.0)
    random = np.random.default_rng(0)
    tiny = tiny_parts().tensors
    tensors = {
        "token_embd.weight": _padded(tiny["token_embd.weight"], columns=True),
        "token_embd_norm.weight": _norm(tiny["output_norm.weight"]),
    }
    for layer, kind in enumerate(order):
        block = f"blk.{layer}"
        if kind == "conv":
            tensors |= _convolution(block, random)
            continue
        own = {n.split(".")[2]: v for n, v in tiny.items() if n.startswith(f"blk.{kind}.")}
        for name, values in own.items():
            if name in ("attn_norm", "ffn_norm"):
                values = _norm(values)
            elif name in ("attn_output", "ffn_down"):
                values = _padded(values, columns=False)
            elif values.ndim == 2:
                values = _padded(values, columns=True)
            tensors[f"{block}.{name}.weight"] = values
    write_tensors(writer, tensors)


def _padded(values: Matrix, *, columns: bool) -> Matrix:
    return np.pad(values, ((0, 0), (0, PAD - WIDTH)) if columns else ((0, PAD - WIDTH), (0, 0)))


def _norm(values: Matrix) -> Matrix:
    """The mean of squares is over twice the width, half of it zeros: what it divides by is smaller by this much."""
    return np.pad(values * np.sqrt(WIDTH / PAD), (0, PAD - WIDTH)).astype(np.float32)


def _convolution(block: str, random: np.random.Generator) -> dict[str, Matrix]:
    """A layer that mixes a little of the tokens before into the stream, and a feed-forward that adds nothing."""
    mixed = _padded(random.standard_normal((WIDTH, PAD)), columns=False)
    return {
        f"{block}.attn_norm.weight": np.ones(PAD),
        f"{block}.ffn_norm.weight": np.ones(PAD),
        f"{block}.shortconv.conv.weight": random.standard_normal((PAD, CONV)),
        f"{block}.shortconv.in_proj.weight": random.standard_normal((3 * PAD, PAD)) * 0.05,
        f"{block}.shortconv.out_proj.weight": mixed * 0.001,
        f"{block}.ffn_gate.weight": np.zeros((384, PAD)),
        f"{block}.ffn_up.weight": np.zeros((384, PAD)),
        f"{block}.ffn_down.weight": np.zeros((PAD, 384)),
    }


def write_recurrent(path: Path) -> None:
    """A Mamba of two random layers with tiny's tokenizer and embedding."""
    writer = tiny_parts().begin(
        path,
        "mamba",
        embedding_length=WIDTH,
        block_count=2,
        feed_forward_length=0,
        attention__head_count=0,
        ssm__conv_kernel=CONV,
        ssm__inner_size=INNER,
        ssm__state_size=STATE,
        ssm__time_step_rank=RANK,
    )
    random = np.random.default_rng(0)
    tensors = {name: tiny_parts().tensors[name] for name in ("token_embd.weight", "output_norm.weight")}
    # With rows of its own for the output; those of the input would say the same token again.
    tensors["output.weight"] = random.permutation(tensors["token_embd.weight"])
    for layer in range(2):
        block = f"blk.{layer}"
        tensors |= {
            f"{block}.attn_norm.weight": np.ones(WIDTH),
            f"{block}.ssm_in.weight": random.standard_normal((2 * INNER, WIDTH)) * 0.1,
            f"{block}.ssm_conv1d.weight": random.standard_normal((INNER, CONV)) * 0.3,
            f"{block}.ssm_conv1d.bias": np.zeros(INNER),
            f"{block}.ssm_x.weight": random.standard_normal((RANK + 2 * STATE, INNER)) * 0.1,
            f"{block}.ssm_dt.weight": random.standard_normal((INNER, RANK)) * 0.1,
            f"{block}.ssm_dt.bias": np.full(INNER, -3.0),
            f"{block}.ssm_a": -np.tile(np.arange(1.0, STATE + 1), (INNER, 1)) / 8,
            f"{block}.ssm_d": np.ones(INNER),
            f"{block}.ssm_out.weight": random.standard_normal((WIDTH, INNER)) * 0.1,
        }
    write_tensors(writer, tensors)


SHAPES: dict[str, Callable[[Path], None]] = {"windowed": write_windowed, "hybrid": write_hybrid}
"""Those that answer as tiny does."""


def shaped(name: str, folder: Path) -> EngineCase:
    """One of :data:`SHAPES`, written into ``folder``, for the contract suite."""
    path = folder / f"{name}.gguf"
    SHAPES[name](path)
    return replace(ENGINES["llama"], ref=ModelRef(path=str(path)), shares=name != "hybrid")
