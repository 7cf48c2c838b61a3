"""Reads the header of a GGUF file that nobody trusts yet, so that the engine never sees a file this refuses.

Every count, length, type and offset is checked against the file's size and a fixed bound before memory is used for it.
The format is https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; what it leaves open follows ``gguf.cpp``: no
nested arrays, names of tensors below 64 bytes, tensor data in the order of the table without gaps but padding.
"""

from __future__ import annotations

import math
import os
import re
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

from msgspec import Struct

from modeld.errors import InvalidModelError

Number = int | float | bool
MetadataValue = str | Number | tuple[Number, ...]

MAX_HEADER_BYTES: Final = 512 << 20
MAX_KEYS: Final = 65_536
MAX_TENSORS: Final = 65_536
MAX_KEPT_STRING: Final = 1 << 20
MAX_KEPT_TEXT: Final = 16 << 20
MAX_KEPT_ARRAY: Final = 1024
MAX_KEPT_NUMBERS: Final = 1 << 20
MAX_STRINGS_IN_ARRAYS: Final = 1 << 22
"""Strings of all arrays together: walking them costs about 0.1 s a million. The largest vocabulary known, with its
merges, has 0.8 million."""

_MAX_LAYERS: Final = 512  # LLAMA_MAX_LAYERS: llama.cpp aborts the process above it.
_CHUNK: Final = 256 << 10

# Value types of GGUF: id -> struct code. 8 is a string, 9 an array.
U32: Final = 4
F32: Final = 6
_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING: Final = 8
_ARRAY: Final = 9

GGML_TYPES: Final[dict[int, tuple[str, int, int]]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18), 42: ("Q2_0", 64, 18),
}  # fmt: skip
"""ggml type id -> (name, elements of a block, bytes of a block), as ``ggml_blck_size`` and ``ggml_type_size`` tell."""

_FILE_TYPES: Final = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4",
    40: "Q1_0",
}  # fmt: skip


_POOLINGS: Final = ("", "mean", "cls", "last", "rank")


class Tensor(Struct, frozen=True, gc=False):
    """One row of the tensor table.

    :param shape: elements along each axis, the contiguous one first. :param offset: bytes from the file's data offset.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    size: int


class GGUFHeader(Struct, frozen=True, kw_only=True):
    """What a GGUF file says about itself. :func:`read_header` has checked every value that a property gives.

    :param metadata: scalars, strings up to 1 MiB and numeric arrays up to 1024 elements; larger values are left out.
    :param kinds: GGUF's number for the type of every key's value. :param array_lengths: elements of every array, kept
        or not.
    :param file_size: bytes on disk; of all shards for a model that is split.
    """

    version: int
    metadata: dict[str, MetadataValue]
    array_lengths: dict[str, int]
    tensors: tuple[Tensor, ...]
    file_size: int
    alignment: int
    data_offset: int
    kinds: dict[str, int] = {}

    def numbers(self, suffix: str) -> tuple[int, ...]:
        """The integers of the architecture's own key ``suffix``; empty when it is missing."""
        value = self.metadata.get(f"{self.architecture}.{suffix}", ())
        return tuple(int(v) for v in (value if isinstance(value, tuple) else (value,)))

    def number(self, suffix: str, default: int = 0) -> int:
        """The largest of :meth:`numbers`, or ``default``."""
        return max(self.numbers(suffix), default=default)

    def per_layer(self, suffix: str) -> tuple[int, ...]:
        """:meth:`numbers` with one value for each layer; empty when the key is missing."""
        values = self.numbers(suffix)
        return values * self.block_count if len(values) == 1 else values

    @property
    def architecture(self) -> str:
        return str(self.metadata.get("general.architecture", ""))

    @property
    def name(self) -> str:
        return str(self.metadata.get("general.name", ""))

    @property
    def writes_text(self) -> bool:
        """False for encoders (their attention is not causal) and for the projectors of vision models."""
        return self.architecture != "clip" and self.metadata.get(f"{self.architecture}.attention.causal", True) is True

    @property
    def pooling(self) -> str:
        """How its vectors become one: ``mean``, ``cls``, ``last``, ``rank``; empty where the file does not say."""
        return _POOLINGS[self.number("pooling_type")]

    @property
    def context_length(self) -> int:
        """Tokens it was trained for."""
        return self.number("context_length")

    @property
    def block_count(self) -> int:
        return self.number("block_count")

    @property
    def embedding_length(self) -> int:
        return self.number("embedding_length")

    @property
    def head_count(self) -> tuple[int, ...]:
        """Query heads of each layer; all 0 where the file names none."""
        return self.per_layer("attention.head_count") or (0,) * self.block_count

    @property
    def head_count_kv(self) -> tuple[int, ...]:
        """Key and value heads of each layer."""
        return self.per_layer("attention.head_count_kv") or self.head_count

    @property
    def key_length(self) -> int:
        """Elements of one key head; ``embedding_length // head_count`` where the file does not say."""
        return self.number("attention.key_length", self._head_length)

    @property
    def value_length(self) -> int:
        """Elements of one value head; ``embedding_length // head_count`` where the file does not say."""
        return self.number("attention.value_length", self._head_length)

    @property
    def _head_length(self) -> int:
        heads = next((h for h in self.head_count if h), 0)
        return self.embedding_length // heads if heads else 0

    @property
    def sliding_window(self) -> int:
        """Tokens that windowed layers see; 0: no window."""
        return self.number("attention.sliding_window")

    @property
    def sliding_window_pattern(self) -> tuple[int, ...]:
        """One number, the stride of full layers, or for each layer 1 where it is windowed; empty when not said."""
        return self.numbers("attention.sliding_window_pattern")

    @property
    def vocabulary(self) -> int:
        return self.array_lengths.get("tokenizer.ggml.tokens", 0) or self.number("vocab_size")

    @property
    def chat_template(self) -> str:
        return str(self.metadata.get("tokenizer.chat_template", ""))

    @property
    def file_type(self) -> str:
        """Name of the quantization, such as ``Q4_K_M``; empty when the file does not say or it is a new one."""
        value = self.metadata.get("general.file_type", -1)
        return _FILE_TYPES.get(value, "") if isinstance(value, int) else ""

    @property
    def parameters(self) -> int:
        """Elements of all tensors."""
        return sum(math.prod(t.shape) for t in self.tensors)

    @property
    def split_count(self) -> int:
        return int(self.metadata.get("split.count", 0))  # type: ignore[arg-type]

    @property
    def split_no(self) -> int:
        """0 for the first shard, which alone holds the model's metadata."""
        return int(self.metadata.get("split.no", 0))  # type: ignore[arg-type]

    @property
    def is_split(self) -> bool:
        return self.split_count > 1


class _Bad(Exception):
    """Why the file is refused."""


class _Reader:
    """Sequential reads that never pass the end of the file or the bound for headers."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self._limit = min(size, MAX_HEADER_BYTES)
        self._capped = size > MAX_HEADER_BYTES
        self._buffer = b""
        self._at = 0  # in the buffer
        self._base = 0  # of the buffer, in the file
        self._text = 0
        self._numbers = 0
        self._strings = 0

    @property
    def offset(self) -> int:
        return self._base + self._at

    def need(self, size: int, what: str) -> None:
        if size > self._limit - self.offset:
            end = f"the bound of {self._limit} bytes for headers" if self._capped else "the end of the file"
            raise _Bad(f"{what} at byte {self.offset} claims {size} bytes, which passes {end}")

    def take(self, size: int, what: str) -> bytes:
        self.need(size, what)
        if len(self._buffer) - self._at < size:
            self._base, self._at = self.offset, 0
            self._file.seek(self._base)
            self._buffer = self._file.read(max(size, _CHUNK))
            if len(self._buffer) < size:
                raise _Bad(f"{what} at byte {self._base} could not be read: the file became shorter")
        data = self._buffer[self._at : self._at + size]
        self._at += size
        return data

    def skip(self, size: int, what: str) -> None:
        self.need(size, what)
        self._at += size
        if self._at > len(self._buffer):
            self._base, self._at, self._buffer = self.offset, 0, b""

    def u32(self, what: str) -> int:
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        return int.from_bytes(self.take(8, what), "little")

    def text(self, bound: int, what: str) -> str:
        length = self.u64(what)
        if length > bound:
            raise _Bad(f"{what} at byte {self.offset} is {length} bytes long; at most {bound} are read")
        return self._decode(length, what)

    def _decode(self, length: int, what: str) -> str:
        self._text += length
        if self._text > MAX_KEPT_TEXT:
            raise _Bad(f"its names and strings are more than {MAX_KEPT_TEXT} bytes")
        try:
            return self.take(length, what).decode()
        except UnicodeDecodeError as error:
            raise _Bad(f"{what} before byte {self.offset} is not UTF-8") from error

    def name(self, bound: int, what: str) -> str:
        name = self.text(bound, what)
        if not name or "\0" in name:
            raise _Bad(f"{what} before byte {self.offset} is empty or holds a null character")
        return name

    def string(self, what: str) -> str | None:
        """``None`` for a string too long to keep."""
        length = self.u64(what)
        if length <= MAX_KEPT_STRING:
            return self._decode(length, what)
        self.skip(length, what)
        return None

    def skip_strings(self, count: int, what: str) -> None:
        self.need(8 * count, what)
        self._strings += count
        if self._strings > MAX_STRINGS_IN_ARRAYS:
            raise _Bad(f"its arrays hold more than {MAX_STRINGS_IN_ARRAYS} strings")
        unpack = struct.Struct("<Q").unpack_from
        for _ in range(count):
            if len(self._buffer) - self._at >= 8:
                (length,) = unpack(self._buffer, self._at)
                self._at += 8
            else:
                length = self.u64(what)
            if length > len(self._buffer) - self._at:
                self.skip(length, what)
            else:
                self._at += length

    def scalar(self, kind: int, what: str) -> Number:
        code = "<" + _SCALARS[kind]
        value: Number = struct.unpack(code, self.take(struct.calcsize(code), what))[0]
        return value

    def array(self, what: str, most: int) -> tuple[int, tuple[Number, ...] | None]:
        """Its length, and its elements where they are numbers and at most so many."""
        kind, count = self.u32(what), self.u64(what)
        if kind == _STRING:
            self.skip_strings(count, what)
            return count, None
        if kind not in _SCALARS:
            raise _Bad(f"{what} is an array of {'arrays' if kind == _ARRAY else f'unknown type {kind}'}")
        size = count * struct.calcsize("<" + _SCALARS[kind])
        if count > most:
            self.skip(size, what)
            return count, None
        self._numbers += count
        if self._numbers > MAX_KEPT_NUMBERS:
            raise _Bad(f"the arrays that are kept hold more than {MAX_KEPT_NUMBERS} numbers")
        return count, struct.unpack(f"<{count}{_SCALARS[kind]}", self.take(size, what))


def read_header(path: Path, *, keep: frozenset[str] = frozenset()) -> GGUFHeader:
    """Read and check the header of a GGUF file, version 2 or 3, little-endian.

    Reads the header alone, in bounded memory (below 150 MB) and time (about a second for the worst file). Guarantees
    that the tensors' data lies inside the file; says nothing about what the data is. Blocks on the disk.

    :param keep: keys whose arrays of numbers are kept whatever their length, up to 1,048,576.
    :raises InvalidModelError: anything is wrong with the file; ``path`` and ``reason`` tell what.
    """
    return _checked(path, "a model", _check_header, keep)


def read_adapter_header(path: Path) -> GGUFHeader:
    """The same of a file that need not be a model: only the format is checked, none of the properties can be relied on.

    :raises InvalidModelError: as :func:`read_header`.
    """
    return _checked(path, "an adapter", lambda header: None)


def _checked(
    path: Path, use: str, check: Callable[[GGUFHeader], None], keep: frozenset[str] = frozenset()
) -> GGUFHeader:
    try:
        # Without O_NONBLOCK, opening a named pipe would wait for its writer.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise _Bad("it is not a regular file")
            header = _read(_Reader(file, info.st_size), info.st_size, keep)
            check(header)
            return header
    except _Bad as error:
        reason = str(error)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
    raise InvalidModelError(f"{path} cannot be used as {use}: {reason}.", path=str(path), reason=reason)


def _read(reader: _Reader, size: int, keep: frozenset[str]) -> GGUFHeader:
    if reader.take(4, "the magic") != b"GGUF":
        raise _Bad("it does not begin with the magic bytes GGUF")
    version = reader.u32("the version")
    if version and not version & 0xFFFF:
        raise _Bad("it is a big-endian GGUF file; only little-endian ones are read")
    if version not in (2, 3):
        raise _Bad(f"it is GGUF version {version}; versions 2 and 3 are read")
    tensor_count, key_count = reader.u64("the tensor count"), reader.u64("the key count")
    if tensor_count > MAX_TENSORS or key_count > MAX_KEYS:
        raise _Bad(f"it claims {tensor_count} tensors and {key_count} keys; at most {MAX_TENSORS} of each are read")
    metadata, lengths, kinds = _metadata(reader, key_count, keep)
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise _Bad(f"its alignment is {alignment!r:.40}, not a power of two up to {1 << 20}")
    tensors = _tensors(reader, tensor_count, alignment)
    data_offset = -(-reader.offset // alignment) * alignment
    end = data_offset + tensors[-1].offset + tensors[-1].size if tensors else 0
    if end > size:
        raise _Bad(
            f"its tensors end at byte {end}, but the file has {size} bytes: it is cut short; copy or download it again"
        )
    return GGUFHeader(
        version=version,
        metadata=metadata,
        array_lengths=lengths,
        tensors=tuple(tensors),
        file_size=size,
        alignment=alignment,
        data_offset=data_offset,
        kinds=kinds,
    )


def _metadata(
    reader: _Reader, count: int, keep: frozenset[str]
) -> tuple[dict[str, MetadataValue], dict[str, int], dict[str, int]]:
    """Values, lengths of arrays, and types."""
    metadata: dict[str, MetadataValue] = {}
    lengths: dict[str, int] = {}
    kinds: dict[str, int] = {}
    reader.need(13 * count, "the table of keys")
    for _ in range(count):
        key = reader.name(65_535, "a key")
        if key in kinds:
            raise _Bad(f"its key {key!r:.80} is there twice")
        kinds[key] = kind = reader.u32(key)
        value: MetadataValue | None
        if kind == _STRING:
            value = reader.string(key)
        elif kind == _ARRAY:
            lengths[key], value = reader.array(key, MAX_KEPT_NUMBERS if key in keep else MAX_KEPT_ARRAY)
        elif kind in _SCALARS:
            value = reader.scalar(kind, key)
        else:
            raise _Bad(f"its key {key!r:.80} has the unknown type {kind}")
        if value is not None:
            metadata[key] = value
    return metadata, lengths, kinds


def _tensors(reader: _Reader, count: int, alignment: int) -> list[Tensor]:
    tensors: list[Tensor] = []
    names = set()
    expected = 0
    reader.need(24 * count, "the table of tensors")
    for _ in range(count):
        name = reader.name(63, "the name of a tensor")
        if name in names:
            raise _Bad(f"its tensor {name!r} is there twice")
        names.add(name)
        axes = reader.u32(name)
        if axes > 4:
            raise _Bad(f"its tensor {name!r} has {axes} axes; at most 4 are possible")
        shape = tuple(reader.u64(name) for _ in range(axes))
        kind, offset = reader.u32(name), reader.u64(name)
        if kind not in GGML_TYPES:
            raise _Bad(f"its tensor {name!r} has the unknown type {kind}")
        type_name, block, block_bytes = GGML_TYPES[kind]
        elements = math.prod(shape)
        if not 1 <= elements < 1 << 62:
            raise _Bad(f"its tensor {name!r} has {elements} elements")
        if (shape[0] if shape else 1) % block:
            raise _Bad(f"the rows of its tensor {name!r} are no whole blocks of {block} elements ({type_name})")
        if offset != expected:
            raise _Bad(f"the data of its tensor {name!r} is at offset {offset}, not at {expected}")
        size = elements // block * block_bytes
        tensors.append(Tensor(name, shape, type_name, offset, size))
        expected = -(-(offset + size) // alignment) * alignment
    return tensors


# Keys of the architecture: bounds of each number.
_BOUNDS: Final = {
    "context_length": (1, 1 << 30),
    "block_count": (1, _MAX_LAYERS),
    "embedding_length": (1, 1 << 20),
    "feed_forward_length": (0, 1 << 24),
    "expert_feed_forward_length": (0, 1 << 24),
    "expert_used_count": (0, 1 << 16),
    "vocab_size": (0, 1 << 24),
    "pooling_type": (0, 4),
    "full_attention_interval": (0, _MAX_LAYERS),
    "nextn_predict_layers": (0, _MAX_LAYERS),
    "attention.head_count": (0, 1 << 16),
    "attention.head_count_kv": (0, 1 << 16),
    "attention.key_length": (0, 1 << 16),
    "attention.value_length": (0, 1 << 16),
    "attention.key_length_swa": (0, 1 << 16),
    "attention.value_length_swa": (0, 1 << 16),
    "attention.shared_kv_layers": (0, _MAX_LAYERS),
    "attention.sliding_window": (0, 1 << 30),
    "attention.sliding_window_pattern": (0, _MAX_LAYERS),
    "ssm.conv_kernel": (0, 1 << 10),
    "ssm.inner_size": (0, 1 << 20),
    "ssm.state_size": (0, 1 << 16),
    "ssm.group_count": (0, 1 << 10),
    "shortconv.l_cache": (0, 1 << 10),
}


def _check_header(header: GGUFHeader) -> None:
    if header.metadata.get("general.type") == "adapter":
        raise _Bad("it is an adapter, which goes on top of a model (--lora)")
    _check_values(header)
    if header.split_no == 0:  # The other shards hold tensors only.
        _check_model(header)


def _check_values(header: GGUFHeader) -> None:
    """Refuse absurd values, so that the properties and the planner may rely on what is there."""
    for key in ("general.architecture", "general.name", "tokenizer.chat_template"):
        if not isinstance(header.metadata.get(key, ""), str):
            raise _Bad(f"its {key} is not a string")
    split = header.metadata.get("split.count", 0), header.metadata.get("split.no", 0)
    if not all(isinstance(v, int) for v in split) or not 0 <= header.split_no < max(header.split_count, 1) <= 999:
        raise _Bad(f"its split.count and split.no are {split!r:.60}, which is no shard of up to 999")
    for suffix, (low, high) in _BOUNDS.items():
        key = f"{header.architecture}.{suffix}"
        value = header.metadata.get(key)
        if value is not None:
            _check_numbers(key, value, low, high)
        elif key in header.array_lengths:
            raise _Bad(f"its {key} is too long or holds strings")


def _check_numbers(key: str, value: MetadataValue, low: int, high: int) -> None:
    kinds = (int, bool) if key.endswith("pattern") else (int,)
    values = value if isinstance(value, tuple) else (value,)
    for number in values or ("",):
        if isinstance(number, str) or type(number) not in kinds or not low <= number <= high:
            raise _Bad(f"its {key} is {value!r:.60}, not between {low} and {high}")


def _check_model(header: GGUFHeader) -> None:
    """Refuse a file that lacks what every model has."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", header.architecture):
        raise _Bad(f"its general.architecture is {header.architecture!r:.80}")
    for suffix in ("context_length", "block_count", "embedding_length"):
        if not header.numbers(suffix):
            raise _Bad(f"it has no {header.architecture}.{suffix}")
    if not header.tensors and not header.is_split:
        raise _Bad("it holds no tensors")
    for suffix in ("attention.head_count", "attention.head_count_kv"):
        if len(header.numbers(suffix)) not in (0, 1, header.block_count):
            raise _Bad(f"its {suffix} has {len(header.numbers(suffix))} values for {header.block_count} layers")
    recurrent = tuple(f"{header.architecture}.{room}." for room in ("ssm", "wkv"))
    if not any(header.head_count) and not any(key.startswith(recurrent) for key in header.metadata):
        raise _Bad("none of its layers has attention heads")
    if any(header.head_count_kv) and not (header.key_length and header.value_length):
        raise _Bad("the length of its attention heads is 0")
    windowed = (*header.numbers("attention.key_length_swa"), *header.numbers("attention.value_length_swa"))
    longest = max(header.key_length, header.value_length, *windowed)
    if max(header.head_count_kv) * longest > 1 << 20:
        raise _Bad(f"its layers have up to {max(header.head_count_kv)} heads of {longest} elements")
