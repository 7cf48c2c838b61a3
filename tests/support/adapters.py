"""LoRA adapters for tiny, written when a test asks for them, and what tiny computes with them, in numpy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import gguf
import numpy as np

from support.encoders import Reference
from support.engines import TINY_F16
from support.shapes import Matrix, tiny_parts

KINDS = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def targets(*kinds: str) -> list[str]:
    """The matrices of these kinds in all layers."""
    return [name for name in tiny_parts().tensors if name.startswith("blk.") and name.split(".")[2] in kinds]


class Lora:
    """A random adapter: for each target ``a`` takes its columns to ``rank`` numbers, and ``b`` these to its rows.

    :param alpha: ``None``: its file says none. :param strength: of ``b``.
    """

    def __init__(
        self,
        path: Path,
        names: Iterable[str] = (),
        *,
        rank: int = 4,
        alpha: float | None = 8.0,
        seed: int = 0,
        strength: float = 0.05,
    ) -> None:
        self.path = path
        self.scale = 1.0 if alpha is None else alpha / rank
        random = np.random.default_rng(seed)
        self.pairs: dict[str, tuple[Matrix, Matrix]] = {}
        for name in names or targets(*KINDS):
            rows, columns = tiny_parts().tensors["token_embd.weight" if name == "output.weight" else name].shape
            a = random.standard_normal((rank, columns)) / np.sqrt(columns)
            b = random.standard_normal((rows, rank)) * strength
            self.pairs[name] = a.astype(np.float32), b.astype(np.float32)
        self.write(alpha)

    def write(self, alpha: float | None) -> None:
        """Write the file."""
        writer = adapter_writer(self.path)
        if alpha is not None:
            writer.add_float32("adapter.lora.alpha", alpha)
        tensors = {}
        for name, (a, b) in self.pairs.items():
            tensors |= {f"{name}.lora_a": a, f"{name}.lora_b": b}
        finish(writer, tensors)

    def delta(self, name: str, scale: float) -> Matrix | float:
        """What it adds to a matrix."""
        if name not in self.pairs:
            return 0.0
        a, b = self.pairs[name]
        return np.asarray(scale * self.scale * (b.astype(np.float64) @ a))


def adapter_writer(path: Path, **keys: str) -> gguf.GGUFWriter:
    """A writer that has said that the file is a LoRA adapter for tiny, but for ``keys``."""
    writer = gguf.GGUFWriter(path, keys.pop("architecture", "qwen3"))
    writer.add_type(keys.pop("type", "adapter"))
    writer.add_string("adapter.type", keys.pop("adapter", "lora"))
    assert not keys
    return writer


def finish(writer: gguf.GGUFWriter, tensors: dict[str, Matrix]) -> None:
    """Write the file that ``writer`` has begun."""
    for name, values in tensors.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Adapted(Reference):
    """Tiny with adapters merged into its matrices."""

    def __init__(self, adapters: Sequence[tuple[Lora, float]]) -> None:
        super().__init__(TINY_F16)
        self._head = self.tensors["token_embd.weight"] + sum(lora.delta("output.weight", s) for lora, s in adapters)
        for name in self.tensors:
            self.tensors[name] = self.tensors[name] + sum(lora.delta(name, scale) for lora, scale in adapters)

    def logits(self, tokens: Sequence[int]) -> Matrix:
        """After the last token."""
        return np.asarray(self.rows(tokens)[-1] @ self._head.T)

    def greedy(self, tokens: Sequence[int], count: int) -> list[int]:
        """The most likely tokens that follow, as far as the first leads the second by more than rounding."""
        ids: list[int] = list(tokens)
        for _ in range(count):
            logits = self.logits(ids)
            second, first = np.sort(logits)[-2:]
            if first - second < 0.1:
                break
            ids.append(int(logits.argmax()))
        return ids[len(tokens) :]


def most(one: Sequence[float] | Matrix, two: Sequence[float] | Matrix) -> float:
    """The largest difference."""
    return float(np.abs(np.asarray(one, np.float64) - np.asarray(two, np.float64)).max())
