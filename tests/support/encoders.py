"""Models that make vectors, written when a test asks for them, and what they compute, in numpy.

The references share nothing with llama.cpp but the file: they are the formulas of the architectures.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np

from support.shapes import HEAD, HEADS, KV_HEADS, LAYERS, WIDTH, tiny_parts, write_tensors

Matrix = np.ndarray[Any, Any]

BERT_WIDTH, BERT_HEADS, BERT_LAYERS, BERT_INNER, BERT_WINDOW = 64, 4, 2, 128, 128
CLS, SEP = 2, 3
_WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LETTERS = [f"\u2581{c}" for c in string.ascii_lowercase] + list(string.ascii_lowercase)


def write_bert(path: Path, pooling: Literal["mean", "cls", "rank"]) -> None:
    """A BERT of random weights whose words are letters; with ``rank`` it has a head that scores."""
    writer = gguf.GGUFWriter(path, "bert")
    writer.add_name(path.stem)
    writer.add_context_length(BERT_WINDOW)
    writer.add_embedding_length(BERT_WIDTH)
    writer.add_block_count(BERT_LAYERS)
    writer.add_feed_forward_length(BERT_INNER)
    writer.add_head_count(BERT_HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType[pooling.upper()])
    writer.add_token_type_count(2)
    writer.add_tokenizer_model("bert")
    tokens = [*_WORDS, *(letter.replace("\u2581", "\u2581") for letter in _LETTERS)]
    writer.add_token_list(tokens)
    writer.add_token_types([3] * len(_WORDS) + [1] * len(_LETTERS))
    writer.add_bos_token_id(CLS)
    writer.add_sep_token_id(SEP)
    writer.add_eos_token_id(SEP)
    writer.add_unk_token_id(1)
    writer.add_pad_token_id(0)
    writer.add_mask_token_id(4)
    write_tensors(writer, _bert_tensors(len(tokens), rank=pooling == "rank"), np.float32)


def _bert_tensors(vocabulary: int, *, rank: bool) -> dict[str, Matrix]:
    random = np.random.default_rng(7)
    width = BERT_WIDTH
    made: dict[str, Matrix] = {}

    def linear(name: str, outputs: int, inputs: int) -> None:
        made[f"{name}.weight"] = random.standard_normal((outputs, inputs)) / np.sqrt(inputs)
        made[f"{name}.bias"] = random.standard_normal(outputs) * 0.1

    def norm(name: str) -> None:
        made[f"{name}.weight"] = 1 + random.standard_normal(width) * 0.1
        made[f"{name}.bias"] = random.standard_normal(width) * 0.1

    made["token_embd.weight"] = random.standard_normal((vocabulary, width))
    made["token_types.weight"] = random.standard_normal((2, width)) * 0.1
    made["position_embd.weight"] = random.standard_normal((BERT_WINDOW, width)) * 0.3
    norm("token_embd_norm")
    for layer in range(BERT_LAYERS):
        block = f"blk.{layer}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            linear(f"{block}.{name}", width, width)
        norm(f"{block}.attn_output_norm")
        linear(f"{block}.ffn_up", BERT_INNER, width)
        linear(f"{block}.ffn_down", width, BERT_INNER)
        norm(f"{block}.layer_output_norm")
    if rank:
        linear("cls", width, width)
        linear("cls.output", 1, width)
    return made


def write_last(path: Path) -> None:
    """Tiny, with a file that says that the vector of a text is that of its last token."""
    writer = _tiny(path)
    writer.add_pooling_type(gguf.PoolingType.LAST)
    write_tensors(writer, tiny_parts().tensors)


def write_ranking(path: Path) -> None:
    """Tiny with a head of two labels over its last token, as the rerankers made of Qwen3 have it."""
    writer = _tiny(path)
    writer.add_pooling_type(gguf.PoolingType.RANK)
    writer.add_array("qwen3.classifier.output_labels", ["yes", "no"])
    writer.add_string("tokenizer.chat_template.rerank", "<|im_start|>user\n{query}\n{document}<|im_end|>\n")
    head = np.random.default_rng(11).standard_normal((2, WIDTH)) * 0.2
    write_tensors(writer, {**tiny_parts().tensors, "cls.output.weight": head.astype(np.float32)})


def _tiny(path: Path) -> gguf.GGUFWriter:
    writer = tiny_parts().begin(
        path,
        "qwen3",
        embedding_length=WIDTH,
        block_count=LAYERS,
        feed_forward_length=384,
        attention__head_count=HEADS,
        attention__head_count_kv=KV_HEADS,
        attention__key_length=HEAD,
        attention__value_length=HEAD,
    )
    writer.add_rope_freq_base(10000.0)
    return writer


class Reference:
    """What the model of a file computes for tokens: a row for each."""

    def __init__(self, path: Path) -> None:
        reader = gguf.GGUFReader(path)
        self.tensors = {t.name: np.asarray(t.data).astype(np.float64) for t in reader.tensors}
        self.architecture = reader.fields["general.architecture"].contents()

    def rows(self, tokens: Sequence[int]) -> Matrix:
        """Before pooling."""
        return self._bert(tokens) if self.architecture == "bert" else self._qwen(tokens)

    def logits(self, tokens: Sequence[int]) -> Matrix:
        """Of what may follow each of the tokens."""
        words = self.tensors.get("output.weight", self.tensors["token_embd.weight"])
        return np.asarray(self.rows(tokens) @ words.T)

    def mean(self, tokens: Sequence[int]) -> Matrix:
        """Mean pooling."""
        return np.asarray(self.rows(tokens).mean(0))

    def score(self, tokens: Sequence[int]) -> float:
        """The head of a model that ranks, over its first token; of tiny how sure the last one is of the first label."""
        if self.architecture != "bert":
            return float(_softmax(self._linear("cls.output", self.rows(tokens)[-1:]))[0, 0])
        hidden = np.tanh(self._linear("cls", self.rows(tokens)[:1]))
        return float(self._linear("cls.output", hidden)[0, 0])

    def _linear(self, name: str, x: Matrix) -> Matrix:
        bias = self.tensors.get(f"{name}.bias", np.zeros(1))
        return np.asarray(x @ self.tensors[f"{name}.weight"].T + bias)

    def _layer_norm(self, name: str, x: Matrix) -> Matrix:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return np.asarray(scaled * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"])

    def _rms_norm(self, name: str, x: Matrix) -> Matrix:
        return np.asarray(x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * self.tensors[f"{name}.weight"])

    def _bert(self, tokens: Sequence[int]) -> Matrix:
        t, count = self.tensors, len(tokens)
        x = t["token_embd.weight"][list(tokens)] + t["token_types.weight"][0] + t["position_embd.weight"][:count]
        x = self._layer_norm("token_embd_norm", x)
        for layer in range(BERT_LAYERS):
            block = f"blk.{layer}"
            q, k, v = (
                self._linear(f"{block}.attn_{n}", x).reshape(count, BERT_HEADS, -1).swapaxes(0, 1) for n in "qkv"
            )
            mixed = _softmax(q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1])) @ v
            x = x + self._linear(f"{block}.attn_output", mixed.swapaxes(0, 1).reshape(count, -1))
            x = self._layer_norm(f"{block}.attn_output_norm", x)
            up = self._linear(f"{block}.ffn_up", x)
            x = x + self._linear(f"{block}.ffn_down", _gelu(up))
            x = self._layer_norm(f"{block}.layer_output_norm", x)
        return x

    def _qwen(self, tokens: Sequence[int]) -> Matrix:
        t, count = self.tensors, len(tokens)
        x = t["token_embd.weight"][list(tokens)]
        later = np.triu(np.full((count, count), -np.inf), 1)
        for layer in range(LAYERS):
            block = f"blk.{layer}"
            h = self._rms_norm(f"{block}.attn_norm", x)
            q, k, v = (self._linear(f"{block}.attn_{n}", h).reshape(count, -1, HEAD).swapaxes(0, 1) for n in "qkv")
            q, k = (_rotated(self._rms_norm(f"{block}.attn_{n}_norm", z)) for n, z in (("q", q), ("k", k)))
            k, v = (np.repeat(z, HEADS // KV_HEADS, 0) for z in (k, v))
            mixed = _softmax(q @ k.swapaxes(1, 2) / np.sqrt(HEAD) + later) @ v
            x = x + self._linear(f"{block}.attn_output", mixed.swapaxes(0, 1).reshape(count, -1))
            h = self._rms_norm(f"{block}.ffn_norm", x)
            gate = self._linear(f"{block}.ffn_gate", h)
            x = x + self._linear(f"{block}.ffn_down", gate / (1 + np.exp(-gate)) * self._linear(f"{block}.ffn_up", h))
        return self._rms_norm("output_norm", x)


def _softmax(x: Matrix) -> Matrix:
    e = np.exp(x - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def _gelu(x: Matrix) -> Matrix:
    return np.asarray(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))


def _rotated(x: Matrix) -> Matrix:
    """Rotary positions: element i of a head is turned with element i + half of it (NeoX order)."""
    half = HEAD // 2
    angles = np.arange(x.shape[1])[:, None] * 10000.0 ** (-np.arange(half) / half)
    cos, sin = np.cos(angles), np.sin(angles)
    first, second = x[..., :half], x[..., half:]
    return np.concatenate([first * cos - second * sin, first * sin + second * cos], -1)


def cosine(one: Sequence[float] | Matrix, two: Sequence[float] | Matrix) -> float:
    """1 for the same direction."""
    a, b = np.asarray(one, np.float64), np.asarray(two, np.float64)
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
