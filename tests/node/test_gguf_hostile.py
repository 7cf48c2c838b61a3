"""Hostile files: whatever the bytes, a header or InvalidModelError, in little memory and time."""

import os
import random
import resource
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from modeld.errors import InvalidModelError, NotSupportedError
from modeld.node.capacity import make_plan
from modeld.node.gguf import GGUFHeader, read_header
from support.examples import examples

TINY = Path(__file__).parents[2] / "src/modeld/data/tiny-q8_0.gguf"
U8, U32, I32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 5, 6, 7, 8, 9, 10
CODES = {U8: "<B", U32: "<I", I32: "<i", F32: "<f", BOOL: "<?", U64: "<Q"}
MEMORY_BOUND = 150 << 20
SECONDS = 2.0


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(data)) + data


def pair(key: str | bytes, kind: int, value: Any) -> bytes:
    if kind == STRING:
        body = string(value)
    elif kind == ARRAY:
        element, items = value
        body = struct.pack("<IQ", element, len(items))
        body += b"".join(string(i) if element == STRING else struct.pack(CODES[element], i) for i in items)
    else:
        body = struct.pack(CODES[kind], value)
    return string(key) + struct.pack("<I", kind) + body


def tensor(name: str | bytes, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


PAIRS: dict[str, tuple[int, Any]] = {
    "general.architecture": (STRING, "llama"),
    "general.name": (STRING, "small"),
    "general.alignment": (U32, 32),
    "general.file_type": (U32, 7),
    "llama.context_length": (U32, 4096),
    "llama.block_count": (U32, 2),
    "llama.embedding_length": (U32, 64),
    "llama.attention.head_count": (U32, 4),
    "llama.attention.head_count_kv": (ARRAY, (I32, [2, 1])),
    "llama.attention.sliding_window_pattern": (ARRAY, (BOOL, [True, False])),
    "llama.rope.freq_base": (F32, 10000.0),
    "tokenizer.ggml.tokens": (ARRAY, (STRING, [f"t{i}" for i in range(64)])),
    "tokenizer.chat_template": (STRING, "{{ messages }}"),
}
TENSORS = [tensor("token_embd.weight", (64, 64), 8), tensor("output_norm.weight", (64,), 0, 4352)]
DATA = 4352 + 256


def build(
    changes: dict[str, tuple[int, Any] | None] | None = None,
    *,
    extra: bytes = b"",
    extra_keys: int = 0,
    tensors: list[bytes] | None = None,
    start: bytes = b"GGUF\x03\0\0\0",
    counts: tuple[int, int] | None = None,
    data: int = DATA,
) -> bytes:
    pairs = {**PAIRS, **(changes or {})}
    body = b"".join(pair(k, *v) for k, v in pairs.items() if v is not None) + extra
    keys = sum(v is not None for v in pairs.values()) + extra_keys
    table = TENSORS if tensors is None else tensors
    header = start + struct.pack("<QQ", *(counts or (len(table), keys))) + body + b"".join(table)
    return header + bytes(-len(header) % 32 + data)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    path = tmp_path / "model.gguf"

    def save(data: bytes, size: int = 0) -> Path:
        path.write_bytes(data)
        if size:
            os.truncate(path, size)
        return path

    return save


@contextmanager
def little_memory() -> Iterator[None]:
    """Within, allocations beyond ``MEMORY_BOUND`` more than now fail with ``MemoryError``."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY_BOUND, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)


def examine(path: Path) -> GGUFHeader | InvalidModelError:
    """Read; where it succeeds, use every property and plan with it."""
    try:
        header = read_header(path)
    except InvalidModelError as error:
        fault = error
    else:
        fault = None
    if fault is not None:
        assert fault.details["path"] == str(path)
        assert fault.details["reason"] in fault.message
        return fault
    for name in vars(GGUFHeader):
        getattr(header, name)
    if header.split_no == 0:
        try:
            msgspec.msgpack.encode(make_plan(header, request=2**31 - 1, kv_type="f16", free=2**35, total=2**36))
        except NotSupportedError:
            pass
    return header


def refusal(path: Path) -> str:
    with pytest.raises(InvalidModelError) as caught:
        read_header(path)
    return str(caught.value.details["reason"])


@pytest.mark.parametrize("version", [2, 3])
def test_the_seed_is_a_good_file(write: Callable[..., Path], version: int) -> None:
    header = read_header(write(build(start=b"GGUF" + struct.pack("<I", version))))
    assert (header.version, header.head_count_kv, header.vocabulary) == (version, (2, 1), 64)
    assert header.sliding_window_pattern == (1, 0)
    assert [t.size for t in header.tensors] == [4352, 256]


K = "llama."
REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "the magic"),
    "no magic": (build(start=b"GGML\x03\0\0\0"), "magic"),
    "version 1": (build(start=b"GGUF\x01\0\0\0"), "version 1"),
    "version 4": (build(start=b"GGUF\x04\0\0\0"), "version 4"),
    "big endian": (build(start=b"GGUF\0\0\0\x03"), "big-endian"),
    "many keys": (build(counts=(2, 2**63)), "keys"),
    "keys beyond the file": (build(counts=(2, 60_000)), "passes the end"),
    "many tensors": (build(counts=(2**40, 13)), "tensors"),
    "tensors beyond the file": (build(counts=(60_000, 13)), "passes the end"),
    "long key": (build(extra=struct.pack("<Q", 2**63) + b"x", extra_keys=1), "bytes long"),
    "long string": (build(extra=string("a") + struct.pack("<IQ", STRING, 2**63), extra_keys=1), "passes the end"),
    "long array": (build(extra=string("a") + struct.pack("<IIQ", ARRAY, U64, 2**61), extra_keys=1), "passes the end"),
    "long strings": (
        build(extra=string("a") + struct.pack("<IIQQ", ARRAY, STRING, 1, 2**64 - 1), extra_keys=1),
        "passes the end",
    ),
    "nested array": (build(extra=string("a") + struct.pack("<IIQ", ARRAY, ARRAY, 1), extra_keys=1), "array of arrays"),
    "unknown value type": (build(extra=string("a") + struct.pack("<I", 13), extra_keys=1), "unknown type 13"),
    "unknown array type": (build(extra=string("a") + struct.pack("<IIQ", ARRAY, 99, 1), extra_keys=1), "type 99"),
    "key twice": (build(extra=pair("general.name", STRING, "b"), extra_keys=1), "twice"),
    "key not UTF-8": (build(extra=pair(b"\xff", U8, 1), extra_keys=1), "not UTF-8"),
    "key with null": (build(extra=pair("a\0b", U8, 1), extra_keys=1), "null"),
    "value not UTF-8": (build({"general.name": (STRING, b"\xc3\x28")}), "not UTF-8"),
    "alignment 0": (build({"general.alignment": (U32, 0)}), "alignment"),
    "alignment 24": (build({"general.alignment": (U32, 24)}), "alignment"),
    "alignment 2**31": (build({"general.alignment": (U32, 2**31)}), "alignment"),
    "alignment text": (build({"general.alignment": (STRING, "32")}), "alignment"),
    "alignment true": (build({"general.alignment": (BOOL, True)}), "alignment"),
    "tensor twice": (build(tensors=[TENSORS[0], tensor("token_embd.weight", (1,), 0, 4352)]), "twice"),
    "tensor name of 64 bytes": (build(tensors=[tensor("x" * 64, (1,))]), "at most 63"),
    "tensor name with null": (build(tensors=[tensor("x\0y", (1,))]), "null"),
    "five axes": (build(tensors=[tensor("x", (1, 1, 1, 1, 1))]), "5 axes"),
    "axis of 0": (build(tensors=[tensor("x", (4, 0))]), "0 elements"),
    "axes overflow": (build(tensors=[tensor("x", (2**63, 2**63, 4))]), "elements"),
    "axis negative": (build(tensors=[tensor("x", (2**64 - 1,))]), "elements"),
    "unknown tensor type": (build(tensors=[tensor("x", (32,), 4)]), "unknown type 4"),
    "half a block": (build(tensors=[tensor("x", (48,), 8)]), "blocks of 32"),
    "offset beyond": (build(tensors=[tensor("x", (4,), 0, 2**63)]), "offset"),
    "offset overlaps": (build(tensors=[TENSORS[0], tensor("y", (64,), 0, 0)]), "offset"),
    "data cut": (build(data=DATA - 1), "cut short"),
    "no tensors": (build(tensors=[]), "no tensors"),
    "no architecture": (build({"general.architecture": None}), "general.architecture"),
    "architecture number": (build({"general.architecture": (U32, 3)}), "not a string"),
    "architecture odd": (build({"general.architecture": (STRING, "a\x1b[2J")}), "general.architecture"),
    "template number": (build({"tokenizer.chat_template": (U32, 3)}), "not a string"),
    "no context": (build({K + "context_length": None}), "context_length"),
    "context 0": (build({K + "context_length": (U32, 0)}), "context_length"),
    "context 2**40": (build({K + "context_length": (U64, 2**40)}), "context_length"),
    "context text": (build({K + "context_length": (STRING, "9")}), "context_length"),
    "context float": (build({K + "context_length": (F32, 9.0)}), "context_length"),
    "context none": (build({K + "context_length": (ARRAY, (U32, []))}), "context_length"),
    "layers 10**6": (build({K + "block_count": (U32, 10**6)}), "block_count"),
    "layers negative": (build({K + "block_count": (I32, -1)}), "block_count"),
    "no heads": (build({K + "attention.head_count": (U32, 0)}), "heads"),
    "heads missing": (build({K + "attention.head_count": None}), "heads"),
    "heads negative": (build({K + "attention.head_count": (I32, -4)}), "head_count"),
    "heads for other layers": (build({K + "attention.head_count_kv": (ARRAY, (U32, [1, 2, 3]))}), "2 layers"),
    "heads as text": (build({K + "attention.head_count_kv": (ARRAY, (STRING, ["1"]))}), "head_count_kv"),
    "heads not kept": (build({K + "attention.head_count_kv": (ARRAY, (U32, [1] * 2000))}), "too long"),
    "heads of 0": (build({K + "attention.key_length": (U32, 0)}), "length"),
    "heads too wide": (
        build({K + "embedding_length": (U32, 4096), K + "attention.head_count_kv": (U32, 60_000)}),
        "heads of",
    ),
    "windowed heads too wide": (
        build({K + "attention.head_count_kv": (U32, 60_000), K + "attention.value_length_swa": (U32, 60_000)}),
        "heads of 60000",
    ),
    "shard beyond": (build({"split.count": (U32, 2), "split.no": (U32, 2)}), "split"),
    "shards negative": (build({"split.no": (I32, -1)}), "split"),
    "shards as list": (build({"split.count": (ARRAY, (U32, [1]))}), "split"),
}


@pytest.mark.parametrize(("data", "reason"), REFUSED.values(), ids=REFUSED)
def test_refused_by_name(write: Callable[..., Path], data: bytes, reason: str) -> None:
    assert reason in refusal(write(data))


def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "regular" in refusal(tmp_path / "pipe")
    assert refusal(tmp_path / "missing.gguf") == "No such file or directory"
    assert refusal(tmp_path) in ("Is a directory", "it is not a regular file")
    assert "null" in refusal(Path("a\0b"))


def test_large_values_are_left_out_but_counted(write: Callable[..., Path]) -> None:
    changes = {
        "tokenizer.ggml.scores": (ARRAY, (F32, [0.0] * 5000)),
        "a.few": (ARRAY, (U32, [1, 2, 3])),
        "a.text": (STRING, "x" * (2 << 20)),
        "after": (U32, 5),
    }
    header = read_header(write(build(changes)))
    assert header.array_lengths["tokenizer.ggml.scores"] == 5000
    assert header.metadata["a.few"] == (1, 2, 3)
    assert header.metadata["after"] == 5
    assert not {"tokenizer.ggml.scores", "tokenizer.ggml.tokens", "a.text"} & header.metadata.keys()


def strings_bomb(count: int) -> tuple[bytes, int]:
    """An array of empty strings: in a sparse file it costs nothing to send."""
    data = b"GGUF\x03\0\0\0" + struct.pack("<QQ", 0, 1) + string("a") + struct.pack("<IIQ", ARRAY, STRING, count)
    return data, len(data) + 8 * count


def many(count: int, one: Callable[[int], bytes], tensors: bool = False) -> tuple[bytes, int]:
    data = b"GGUF\x03\0\0\0" + struct.pack("<QQ", *((count, 0) if tensors else (0, count)))
    data += b"".join(map(one, range(count)))
    return data, len(data) + (64 << 20)


ARRAY_OF_1024 = struct.pack("<Q", 1024) + b"\xc8" * 1024
BOMBS: dict[str, Callable[[], tuple[bytes, int]]] = {
    "as many strings as are walked": lambda: strings_bomb(1 << 22),
    "more strings": lambda: strings_bomb((1 << 29) // 8 - 100),
    "all keys with an array": lambda: many(65_536, lambda i: pair(f"{i}", ARRAY, (U8, [200] * 16))),
    "arrays that are kept": lambda: many(24_000, lambda i: pair(f"{i}", ARRAY, (U8, []))[:-8] + ARRAY_OF_1024),
    "text of wide characters": lambda: many(64, lambda i: pair(f"{i}", STRING, "\U0001f600" + "a" * 1_048_000)),
    "all tensors": lambda: many(65_536, lambda i: tensor(f"{i:060d}", (1, 1, 1, 1), 24, 32 * i), tensors=True),
    "a header beyond the bound": lambda: (strings_bomb(0)[0][:-8] + struct.pack("<Q", 1 << 40), 1 << 43),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_bombs_cost_little(write: Callable[..., Path], bomb: Callable[[], tuple[bytes, int]]) -> None:
    path = write(*bomb())
    with little_memory():
        started = time.thread_time()
        assert isinstance(examine(path), InvalidModelError)  # None of them is a model, in the end.
        assert time.thread_time() - started < SECONDS


HUGE = [0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1]


def mutate(rng: random.Random, data: bytes, reach: int) -> bytes:
    """One to four changes in the first ``reach`` bytes."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(min(reach, len(changed)) or 1)
        kind = rng.randrange(5)
        if kind == 0 and changed:
            changed[at % len(changed)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del changed[at:]
        elif kind == 2:
            other = rng.randrange(reach)
            changed[at:at] = data[other : other + rng.randint(1, 200)]
        elif kind == 3:
            del changed[at : at + rng.randint(1, 40)]
        else:
            width = rng.choice([4, 8])
            changed[at : at + width] = (rng.choice(HUGE) & (2 ** (8 * width) - 1)).to_bytes(width, "little")
    return bytes(changed)


@pytest.mark.parametrize(("seed", "rounds"), [(1, 9000), (2, 1500)], ids=["small", "tiny"])
def test_mutated_files_give_a_header_or_the_error(write: Callable[..., Path], seed: int, rounds: int) -> None:
    rng = random.Random(seed)
    small = build()
    data, reach = (small, len(small) - DATA) if seed == 1 else (TINY.read_bytes()[:64_000], 62_720)
    outcomes = {GGUFHeader: 0, InvalidModelError: 0}
    slowest = 0.0
    with little_memory():
        for _ in range(rounds):
            mutated = mutate(rng, data, reach)
            size = len(mutated) + (2 << 20) if rng.random() < 0.5 else 0  # Sparse: room for the tensors' data.
            path = write(mutated, size)
            started = time.thread_time()
            outcomes[type(examine(path))] += 1
            slowest = max(slowest, time.thread_time() - started)
    assert sum(outcomes.values()) == rounds
    assert min(outcomes.values()) > rounds // 50, outcomes  # The mutations reach both ends.
    assert slowest < SECONDS


@settings(max_examples=examples(400), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=400), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
@example(b"", 0, 0)
def test_any_bytes_after_the_magic(write: Callable[..., Path], data: bytes, tensors: int, keys: int) -> None:
    counts = struct.pack("<QQ", tensors % 70_000, keys % 70_000)
    assert isinstance(examine(write(b"GGUF\x03\0\0\0" + counts + data)), InvalidModelError)


values = st.one_of(
    st.tuples(st.just(U32), st.integers(0, 2**32 - 1)),
    st.tuples(st.just(I32), st.integers(-(2**31), 2**31 - 1)),
    st.tuples(st.just(U64), st.sampled_from(HUGE)),
    st.tuples(st.just(F32), st.floats(width=32)),
    st.tuples(st.just(BOOL), st.booleans()),
    st.tuples(st.just(STRING), st.text(max_size=20)),
    st.tuples(st.just(ARRAY), st.tuples(st.just(I32), st.lists(st.integers(-2, 2**20), max_size=5))),
    st.none(),
)
optional = [
    "split.count", "split.no", K + "attention.key_length", K + "attention.value_length", K + "attention.sliding_window",
    K + "attention.shared_kv_layers", K + "full_attention_interval", K + "ssm.conv_kernel", K + "ssm.inner_size",
    K + "ssm.state_size", K + "expert_used_count", K + "feed_forward_length", K + "attention.key_length_swa",
]  # fmt: skip


@settings(max_examples=examples(600), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from([*PAIRS, *optional]), values, max_size=4))
def test_any_metadata_values(write: Callable[..., Path], changes: dict[str, tuple[int, Any] | None]) -> None:
    with little_memory():
        examine(write(build(changes)))
