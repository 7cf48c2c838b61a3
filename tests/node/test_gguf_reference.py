"""The reader agrees with the reference implementations: the ``gguf`` package and llama.cpp's own tables."""

import ctypes
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf.constants import GGML_QUANT_SIZES

from modeld.node.gguf import GGML_TYPES, GGUFHeader, read_header

REPOSITORY = Path(__file__).parents[2]
FILES = [REPOSITORY / "src/modeld/data/tiny-q8_0.gguf", REPOSITORY / "tests/data/tiny-f16.gguf"]


def reference_value(field: Any) -> Any:
    value = field.contents()
    return tuple(value) if isinstance(value, list) else value


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_same_metadata_and_tensors_as_the_reference_reader(path: Path) -> None:
    header = read_header(path)
    reference = gguf.GGUFReader(path)
    fields = {k: f for k, f in reference.fields.items() if not k.startswith("GGUF.")}
    assert {**header.metadata, **header.array_lengths}.keys() == fields.keys()
    for key, kept in header.metadata.items():
        assert kept == reference_value(fields[key]), key
    for key, length in header.array_lengths.items():
        assert length == len(fields[key].data), key
    assert header.data_offset == reference.data_offset
    assert [(t.name, t.shape, t.type, t.size, header.data_offset + t.offset) for t in header.tensors] == [
        (t.name, tuple(t.shape.tolist()), t.tensor_type.name, t.n_bytes, t.data_offset) for t in reference.tensors
    ]


@pytest.mark.parametrize(("path", "file_type"), [(FILES[0], "Q8_0"), (FILES[1], "F16")], ids=["q8_0", "f16"])
def test_properties_of_tiny(path: Path, file_type: str) -> None:
    header = read_header(path)
    assert (header.architecture, header.name, header.file_type) == ("qwen3", "tiny", file_type)
    assert (header.context_length, header.block_count, header.embedding_length) == (8192, 4, 128)
    assert (header.head_count, header.head_count_kv) == ((4,) * 4, (2,) * 4)
    assert (header.key_length, header.value_length, header.vocabulary) == (64, 64, 2048)
    assert (header.sliding_window, header.sliding_window_pattern, header.is_split) == (0, (), False)
    assert "<|im_start|>" in header.chat_template
    assert header.parameters == 1_246_848
    assert header.file_size == path.stat().st_size


def test_defaults_follow_llama_cpp() -> None:
    metadata = {
        "general.architecture": "llama",
        "llama.block_count": 3,
        "llama.embedding_length": 4096,
        "llama.attention.head_count": (0, 32, 16),
        "llama.vocab_size": 7,
    }
    header = GGUFHeader(
        version=3, metadata=metadata, array_lengths={}, tensors=(), file_size=0, alignment=32, data_offset=0
    )
    assert header.head_count_kv == (0, 32, 16)
    assert (header.key_length, header.value_length) == (128, 128)
    assert (header.vocabulary, header.name, header.chat_template, header.file_type) == (7, "", "", "")


def test_type_table_agrees_with_the_gguf_package() -> None:
    reference = {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
    # The package still has the old layout of Q8_1 with two 32-bit floats; ggml's has 16-bit ones.
    assert reference.pop(9) == ("Q8_1", 32, 40)
    assert {kind: GGML_TYPES.get(kind) for kind in reference} == reference


def test_type_table_covers_every_type_of_ggml() -> None:
    binding = find_spec("llama_cpp")  # Importing it leaves files open, which is a warning here.
    assert binding is not None
    assert binding.origin is not None
    ggml = ctypes.CDLL(str(Path(binding.origin).parent / "lib" / "libggml-base.so"))
    ggml.ggml_type_name.restype = ctypes.c_char_p
    ggml.ggml_blck_size.restype = ctypes.c_int64
    ggml.ggml_type_size.restype = ctypes.c_size_t
    count = max(GGML_TYPES) + 1
    native = {
        kind: (ggml.ggml_type_name(kind).decode().upper(), ggml.ggml_blck_size(kind), ggml.ggml_type_size(kind))
        for kind in range(count)
        if ggml.ggml_blck_size(kind)
    }
    assert native == GGML_TYPES
