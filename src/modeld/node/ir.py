"""Reads a folder with OpenVINO's IR that nobody trusts yet, so that the engine never sees one that this refuses.

The graph (``openvino_model.xml``) is walked once, without entities, within bounds of size, depth and count; each
constant must lie in ``openvino_model.bin`` and be as large as its shape, and nothing else may be in there. What the
graph computes is not checked: the engine reads it again, and a graph that is no language model is a typed error there.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, Final
from xml.parsers import expat

import msgspec
from msgspec import Struct

from modeld.errors import InvalidModelError, NotSupportedError

GRAPH: Final = "openvino_model.xml"
WEIGHTS: Final = "openvino_model.bin"
TOKENIZER: Final = (
    "openvino_tokenizer.xml",
    "openvino_tokenizer.bin",
    "openvino_detokenizer.xml",
    "openvino_detokenizer.bin",
)
CONFIG: Final = "config.json"
REQUIRED: Final = (GRAPH, WEIGHTS, *TOKENIZER, CONFIG)
OPTIONAL: Final = (
    "generation_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
    "additional_chat_templates/rag.jinja",
)
"""What changes the output where it is there. All others are no part of the model."""

MAX_GRAPH_BYTES: Final = 256 << 20
MAX_CONFIG_BYTES: Final = 1 << 20
MAX_SMALL_BYTES: Final = 256 << 20
"""Of each file beside graph and weights."""
MAX_TAG_BYTES: Final = 4 << 20
"""What has not come to its end is parsed anew with each piece that comes: a comment of 200 MB took 35 s."""
MAX_LAYERS: Final = 1 << 20
MAX_DEPTH: Final = 32
MAX_STATE: Final = 1 << 24
"""Elements of one token in one state."""

KV_TYPES: Final = {"f32": 4, "f16": 2}
"""KV type -> bytes of an element."""

_BITS: Final = {
    "boolean": 8, "u1": 1, "u2": 2, "u3": 3, "u4": 4, "u6": 6, "u8": 8, "u16": 16, "u32": 32, "u64": 64,
    "i4": 4, "i8": 8, "i16": 16, "i32": 32, "i64": 64, "nf4": 4, "f4e2m1": 4, "f8e4m3": 8, "f8e5m2": 8, "f8e8m0": 8,
    "f16": 16, "bf16": 16, "f32": 32, "f64": 64,
}  # fmt: skip
_HALF: Final = ("f16", "bf16")
_BATCH: Final = 512
_PROCESS_BYTES: Final = 384 << 20
"""The process with its libraries took 175 MB, and what a prompt is computed with 200 MB of the 90m shape."""
_CHUNK: Final = 1 << 20


class IRHeader(Struct, frozen=True, kw_only=True):
    """What an IR folder says about itself.

    :param states: elements of one token in each state. :param weights: bytes of the constants. :param half: of those,
        bytes in 16 bit, which the processor computes with in 32. :param file_size: bytes of all files that count.
    """

    architecture: str
    context_length: int
    block_count: int
    embedding_length: int
    feed_forward_length: int
    head_count: int
    sliding_window: int
    vocabulary: int
    states: tuple[int, ...]
    weights: int
    half: int
    parameters: int
    file_type: str
    chat_template: str
    file_size: int

    writes_text = True
    pooling = ""

    @property
    def resident_weights(self) -> int:
        """Bytes of the weights in memory: 16 bit become 32, measured on the 90m shape (182 MB of file, 364 MB)."""
        return self.weights + self.half

    def kv_bytes(self, cells: int, kv_type: str) -> int:
        """Bytes of KV of so many cells: twice their own, as OpenVINO doubles a sequence's buffer when it is full.

        :raises NotSupportedError: a quantised type: each copy would change it.
        """
        if kv_type not in KV_TYPES:
            raise NotSupportedError(
                f"The KV of an OpenVINO model is one of {', '.join(KV_TYPES)}, not {kv_type}: a quantised state "
                "changes when it is copied.",
                feature=f"kv_type_{kv_type}",
            )
        return 2 * cells * sum(self.states) * KV_TYPES[kv_type]

    def overhead_bytes(self, cells: int, sequences: int) -> int:
        """Upper estimate of what the engine process needs besides weights and KV.

        The parts: the process with its libraries; vocabulary and tokeniser; a row of logits for each sequence; the mask
        of a batch and the activations of a layer; and all cells in 32 bit, twice, while sequences are brought together.
        """
        rows = 4 * self.vocabulary * (sequences + 1)
        mask = 4 * 2 * cells * _BATCH
        row = self.embedding_length * 4 + self.feed_forward_length * 3 + sum(self.states[:2]) * 2
        copies = 2 * 4 * cells * sum(self.states)
        return _PROCESS_BYTES + 400 * self.vocabulary + rows + mask + 4 * row * _BATCH + copies


class _Bad(Exception):
    """Why the folder is refused."""


def folder_of(path: Path) -> Path:
    """The folder that a path to it, or to its graph, means."""
    return path.parent if path.name == GRAPH else path


def is_ir(path: Path) -> bool:
    """Whether it is a folder with a graph, or the graph of one."""
    return (folder_of(path) / GRAPH).is_file()


def ir_files(folder: Path) -> tuple[Path, ...]:
    """The files that make the model, those that decide its output and no other. Missing ones are left out."""
    return tuple(folder / name for name in (*REQUIRED, *OPTIONAL) if (folder / name).is_file())


def read_ir(folder: Path) -> IRHeader:
    """Check the folder and say what is in it. Reads the graph, ``config.json`` and the template; weights are not read.

    :raises InvalidModelError: it cannot be used; the message says why.
    """
    try:
        return _read(folder)
    except _Bad as error:
        reason = str(error)
    except (OSError, ValueError, RecursionError, msgspec.MsgspecError) as error:
        reason = f"{error.__class__.__name__}: {error}"
    raise InvalidModelError(f"{folder} cannot be used as a model: {reason}.", path=str(folder), reason=reason)


def _read(folder: Path) -> IRHeader:
    missing = [name for name in REQUIRED if not (folder / name).is_file()]
    if missing:
        raise _Bad(f"it has no {' and no '.join(missing)}; `modeld import` makes all of them from a model's folder")
    _check_files(folder)
    sizes = {file: file.stat().st_size for file in ir_files(folder)}
    for file, size in sizes.items():
        if file.name not in (GRAPH, WEIGHTS) and size > MAX_SMALL_BYTES:
            raise _Bad(f"{file.name} has {size} bytes, more than the bound of {MAX_SMALL_BYTES}")
    walk = _Walk(sizes[folder / WEIGHTS])
    with (folder / GRAPH).open("rb") as graph:
        walk.read(graph, sizes[folder / GRAPH])
    walk.check()
    config = _Config(folder / CONFIG)
    template = folder / "chat_template.jinja"
    return IRHeader(
        architecture=config.text("model_type"),
        context_length=config.number("max_position_embeddings", least=1),
        block_count=config.number("num_hidden_layers", least=1, most=4096),
        embedding_length=config.number("hidden_size", least=1, most=1 << 24),
        feed_forward_length=config.number("intermediate_size", most=1 << 24),
        head_count=config.number("num_attention_heads", least=1, most=1 << 16),
        sliding_window=config.number("sliding_window"),
        vocabulary=config.number("vocab_size", least=1, most=1 << 24),
        states=tuple(walk.states),
        weights=sum(size for size, _, _ in walk.constants.values()),
        half=sum(size for size, type_, _ in walk.constants.values() if type_ in _HALF),
        parameters=sum(elements for _, _, elements in walk.constants.values()),
        file_type=walk.main_type(),
        chat_template=template.read_text("utf-8", "replace") if template in sizes else "",
        file_size=sum(sizes.values()),
    )


def _check_files(folder: Path) -> None:
    """OpenVINO opens by itself what it knows by name, and would wait for a pipe or read a device for ever."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if Path(entry).exists() and not (entry.is_file() or entry.is_dir()):
                raise _Bad(f"{entry.name[:100]!r} is neither a file nor a folder")


class _Walk:
    """One pass over the graph."""

    def __init__(self, weights: int) -> None:
        self._weights = weights
        self._depth = self._layers = 0
        self._type = ""
        self.constants: dict[int, tuple[int, str, int]] = {}
        """Offset -> bytes, type and elements. Several constants may be the same bytes."""
        self.states: list[int] = []

    def read(self, file: BinaryIO, size: int) -> None:
        if size > MAX_GRAPH_BYTES:
            raise _Bad(f"{GRAPH} has {size} bytes, more than the bound of {MAX_GRAPH_BYTES}")
        parser = expat.ParserCreate()
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.StartDoctypeDeclHandler = parser.EntityDeclHandler = self._refuse
        try:
            while chunk := file.read(_CHUNK):
                parser.Parse(chunk, False)
                if file.tell() - parser.CurrentByteIndex > MAX_TAG_BYTES:
                    raise _Bad(f"{GRAPH} has a tag or a comment of more than {MAX_TAG_BYTES} bytes")
            parser.Parse(b"", True)
        except expat.ExpatError as error:
            raise _Bad(f"{GRAPH} is no XML: {error}") from error

    def check(self) -> None:
        """What can only be said at the end."""
        end = max((offset + size for offset, (size, _, _) in self.constants.items()), default=0)
        if not self.constants:
            raise _Bad(f"{GRAPH} names no constant: it has no weights")
        if end != self._weights:
            raise _Bad(f"{WEIGHTS} has {self._weights} bytes, and the graph names {end}: it is cut off or another's")

    def main_type(self) -> str:
        """Type of most of the weights."""
        bytes_of: dict[str, int] = {}
        for size, type_, _ in self.constants.values():
            bytes_of[type_] = bytes_of.get(type_, 0) + size
        return max(bytes_of, key=bytes_of.__getitem__, default="")

    def _refuse(self, *_: Any) -> None:
        raise _Bad(f"{GRAPH} declares a document type or an entity")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _Bad(f"{GRAPH} is nested deeper than {MAX_DEPTH}")
        if self._depth == 1 and name != "net":
            raise _Bad(f"{GRAPH} is no graph of OpenVINO: it begins with {name[:40]!r}")
        if name == "layer":
            self._layers += 1
            if self._layers > MAX_LAYERS:
                raise _Bad(f"{GRAPH} has more than {MAX_LAYERS} layers")
            self._type = attributes.get("type", "")
        elif name == "data" and self._type == "Const":
            self._constant(attributes)
        elif name == "data" and self._type == "ReadValue":
            self._state(attributes)

    def _end(self, name: str) -> None:
        self._depth -= 1
        if name == "layer":
            self._type = ""

    def _constant(self, attributes: dict[str, str]) -> None:
        type_ = attributes.get("element_type", "")
        offset, size = (_whole(attributes.get(key, "")) for key in ("offset", "size"))
        if offset + size > self._weights:
            raise _Bad(
                f"{WEIGHTS} has {self._weights} bytes, and a constant ends at byte {offset + size}: it is cut off or "
                "another's"
            )
        elements = math.prod(_shape(attributes.get("shape", "")))
        if type_ != "string":
            if type_ not in _BITS:
                raise _Bad(f"a constant is of the unknown type {type_[:40]!r}")
            if size != -(-elements * _BITS[type_] // 8):
                raise _Bad(f"a constant of {elements} {type_} has {size} bytes")
        known = self.constants.get(offset)
        if known is None or known[0] < size:
            self.constants[offset] = (size, type_, elements)

    def _state(self, attributes: dict[str, str]) -> None:
        shape = attributes.get("variable_shape", "").split(",")
        fixed = [_whole(size) for size in shape if size.strip().isdigit()]
        elements = math.prod(fixed)
        if not 0 < elements <= MAX_STATE or len(shape) > 8:
            raise _Bad(f"a state has {elements} elements for a token, of which there may be {MAX_STATE}")
        self.states.append(elements)


def _whole(text: str) -> int:
    if not (text.isascii() and text.strip().isdigit() and len(text) < 20):
        raise _Bad(f"{GRAPH} has {text[:40]!r} where a number must be")
    return int(text)


def _shape(text: str) -> Iterable[int]:
    sizes = text.split(",") if text.strip() else []
    if len(sizes) > 16:
        raise _Bad(f"a constant has {len(sizes)} dimensions")
    return [_whole(size.strip()) for size in sizes]


class _Config:
    """``config.json``; a model of several parts has its own values under ``text_config`` or ``llm_config``."""

    def __init__(self, path: Path) -> None:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise _Bad(f"{CONFIG} has more than {MAX_CONFIG_BYTES} bytes")
        value = msgspec.json.decode(path.read_bytes())
        if not isinstance(value, dict):
            raise _Bad(f"{CONFIG} is no object")
        inner = next((value[key] for key in ("text_config", "llm_config") if isinstance(value.get(key), dict)), value)
        self._values: dict[str, Any] = {**value, **inner}

    def text(self, key: str) -> str:
        """A short string; empty where it is not there."""
        value = self._values.get(key, "")
        if not isinstance(value, str) or len(value) > 100:
            raise _Bad(f"{key} in {CONFIG} is no name")
        return value

    def number(self, key: str, *, least: int = 0, most: int = 1 << 31) -> int:
        """An integer in its bounds; 0 where it is not there and may be."""
        value = self._values.get(key) or 0
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise _Bad(f"{key} in {CONFIG} must be {least} to {most}, not {str(value)[:40]}")
        return value
