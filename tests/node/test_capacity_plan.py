"""The plan's arithmetic: never under-counted, refused with numbers, and alternatives that hold."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from modeld.errors import CapacityError, InvalidRequestError, NotSupportedError, error_from_code
from modeld.node.capacity import (
    free_memory,
    human_bytes,
    kv_bytes,
    make_plan,
    overhead_bytes,
    padded,
    require,
    reserve_bytes,
)
from modeld.node.gguf import GGUFHeader, read_header
from modeld.session.values import Plan

TINY = Path(__file__).parents[2] / "src/modeld/data/tiny-q8_0.gguf"
MIB, GIB = 1 << 20, 1 << 30


def model(size: int = 100 * MIB, *, arch: str = "llama", vocabulary: int = 32_000, **values: Any) -> GGUFHeader:
    """A header; in the names of ``values`` two underscores stand for a dot."""
    defaults = {
        "context_length": 32_768,
        "block_count": 28,
        "embedding_length": 1536,
        "attention__head_count": 12,
        "attention__head_count_kv": 2,
    }
    pairs = {f"{arch}.{k.replace('__', '.')}": v for k, v in {**defaults, **values}.items() if v is not None}
    return GGUFHeader(
        version=3,
        metadata={"general.architecture": arch, **pairs},
        array_lengths={"tokenizer.ggml.tokens": vocabulary},
        tensors=(),
        file_size=size,
        alignment=32,
        data_offset=0,
    )


def plan_of(header: GGUFHeader, request: int = 0, kv_type: str = "f16", free: int = 64 * GIB, **more: int) -> Plan:
    total = more.pop("total", 64 * GIB)
    return make_plan(header, request=request, kv_type=kv_type, free=free, total=total, **more)


@pytest.mark.parametrize(
    ("header", "kv_type", "per_token"),
    [
        (model(), "f16", 28_672),
        (model(), "q8_0", 15_232),  # 34 bytes for 32 values: 6 % more than one byte each.
        (model(), "q4_0", 8_064),
        (model(attention__key_length=192), "f16", 28 * 2 * (192 + 128) * 2),
        (model(attention__head_count_kv=None), "f16", 28 * 12 * 256 * 2),
        (model(block_count=3, attention__head_count_kv=(2, 0, 8)), "f16", 10 * 256 * 2),
        (model(attention__sliding_window=512), "f16", 28_672),
        (model(attention__shared_kv_layers=8), "f16", 20 * 1024),
        (
            model(
                block_count=3,
                attention__sliding_window_pattern=(True, True, False),
                attention__key_length=256,
                attention__value_length=256,
                attention__key_length_swa=128,
                attention__value_length_swa=128,
            ),
            "f16",
            2 * 2 * (256 + 256 + 512),
        ),
        (model(block_count=2, attention__key_length_swa=256), "f16", 2 * 2 * 2 * (256 + 128)),
        (model(block_count=9, full_attention_interval=4, nextn_predict_layers=1), "f16", 3 * 1024),
        (model(attention__kv_lora_rank=512, attention__head_count_kv=1), "f16", 28 * 512),
    ],
    ids=str,
)
def test_kv_bytes_of_known_shapes(header: GGUFHeader, kv_type: str, per_token: int) -> None:
    assert kv_bytes(header, 4096, kv_type) == 4096 * per_token
    assert kv_bytes(header, 4097, kv_type) == 4352 * per_token


@pytest.mark.parametrize(
    "key", ["wkv__head_size", "kda__head_dim", "attention__indexer__top_k", "attention__compress_ratios"]
)
def test_memory_it_does_not_know_is_not_guessed(key: str) -> None:
    header = model(**{key: 4})
    with pytest.raises(NotSupportedError, match="not known"):
        kv_bytes(header, 512, "f16")
    plan = plan_of(header)
    assert (plan.fits, plan.max_context, plan.alternatives) == (False, 0, ())
    assert key.replace("__", ".") in plan.reason


def test_recurrent_state_costs_each_sequence() -> None:
    hybrid = model(ssm__inner_size=4096, ssm__state_size=128, ssm__conv_kernel=4, ssm__group_count=16)
    one = 28 * 4 * (4096 * 128 + 3 * (4096 + 2 * 16 * 128))
    difference = overhead_bytes(hybrid, 512, 5) - overhead_bytes(model(), 512, 5)
    # One more, through which states are saved and restored.
    assert difference == 6 * one


@pytest.mark.parametrize("kv_type", ["q8_0", "q4_0"])
def test_heads_that_are_no_whole_blocks_refuse_quantized_kv(kv_type: str) -> None:
    header = model(attention__key_length=80, attention__value_length=80)
    with pytest.raises(NotSupportedError, match="multiple of 32") as caught:
        plan_of(header, kv_type=kv_type)
    assert caught.value.details["feature"] == f"kv_type_{kv_type}"
    refused = plan_of(header, free=15 * GIB // 10, total=8 * GIB, request=32_768)
    assert not refused.fits
    assert not any(kv_type in alternative for alternative in refused.alternatives)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="f16, q8_0, q4_0"):
        plan_of(model(), kv_type="q4_1")
    for wrong in ({"request": -1}, {"free": -1}, {"sequences": 0}, {"reclaimable": -1}):
        with pytest.raises(InvalidRequestError):
            plan_of(model(), **wrong)


def test_auto_takes_32768_cells_and_no_more() -> None:
    plan = plan_of(model(context_length=131_072))
    assert (plan.fits, plan.cells, plan.context, plan.max_context) == (True, 32_768, 32_768, 131_072)
    plan = plan_of(model(context_length=8192))
    assert (plan.cells, plan.context, plan.max_context) == (32_768, 8192, 8192)


def test_auto_takes_what_fits() -> None:
    plan = plan_of(model(), free=GIB + 800 * MIB, total=8 * GIB)
    assert plan.fits
    assert 512 < plan.context == plan.cells < 32_768
    assert plan.usable - plan.required < 28_672 * 256


def test_a_larger_request_raises_the_cells() -> None:
    plan = plan_of(model(context_length=131_072), request=100_000)
    assert (plan.fits, plan.context, plan.cells) == (True, 100_000, padded(100_000))


def test_a_small_request_is_kept_and_still_shares_the_cells() -> None:
    plan = plan_of(model(), request=100)
    assert (plan.fits, plan.context, plan.cells) == (True, 100, 32_768)


def test_below_512_tokens_nothing_fits() -> None:
    header = model(size=100 * MIB)
    least = plan_of(header, request=512, free=0).required + 2 * GIB
    assert plan_of(header, free=least, total=20 * GIB).cells == 512
    refused = plan_of(header, free=least - 1, total=20 * GIB)
    assert (refused.fits, refused.max_context, refused.cells) == (False, 0, 512)
    assert plan_of(model(context_length=200), free=64 * GIB).context == 200


def test_beyond_the_trained_window_is_refused_with_the_numbers() -> None:
    plan = plan_of(model(), request=40_000)
    with pytest.raises(CapacityError, match="40000 tokens is longer than the 32768") as caught:
        require(plan)
    assert caught.value.details["alternatives"] == ["context=32768 kv_type=f16", "context=32768 kv_type=q8_0"]
    assert caught.value.details["required"] == plan.required
    again = error_from_code(caught.value.code, caught.value.message, caught.value.details)
    assert again.details == caught.value.details


def test_reclaimable_memory_counts() -> None:
    header = model(size=4 * GIB)
    assert not plan_of(header, free=5 * GIB, total=16 * GIB).fits
    plan = plan_of(header, free=5 * GIB, total=16 * GIB, reclaimable=4 * GIB)
    assert (plan.fits, plan.free) == (True, 9 * GIB)


def test_the_reserve_is_not_stacked() -> None:
    assert reserve_bytes(6 * GIB) == GIB
    assert reserve_bytes(64 * GIB) == 64 * GIB // 10
    assert reserve_bytes(2 * GIB) == GIB // 2


def test_human_bytes() -> None:
    assert [human_bytes(n) for n in (0, 1023, 1024, 1_500_000, 5 * GIB)] == [
        "0 B", "1023 B", "1.0 KiB", "1.4 MiB", "5.0 GiB",
    ]  # fmt: skip


headers = st.builds(
    model,
    st.integers(MIB, 8 * GIB),
    vocabulary=st.integers(1, 300_000),
    context_length=st.integers(1, 300_000),
    block_count=st.integers(1, 100),
    embedding_length=st.integers(64, 16_384),
    attention__head_count=st.integers(1, 128),
    attention__head_count_kv=st.integers(1, 16),
    attention__key_length=st.sampled_from([64, 80, 128, 576]),
    attention__value_length=st.sampled_from([64, 128, 512]),
    attention__sliding_window=st.sampled_from([0, 4096]),
)
kv_types = st.sampled_from(["f16", "q8_0", "q4_0"])
memories = st.tuples(st.integers(0, 64 * GIB), st.integers(GIB, 256 * GIB))


def possible(header: GGUFHeader, kv_type: str) -> bool:
    return kv_type == "f16" or header.key_length % 32 == 0


@given(headers, kv_types, st.integers(0, 10**6), st.integers(0, 10**6))
def test_more_cells_never_need_less(header: GGUFHeader, kv_type: str, a: int, b: int) -> None:
    assume(possible(header, kv_type))
    low, high = sorted((a, b))
    assert kv_bytes(header, low, kv_type) <= kv_bytes(header, high, kv_type)
    assert overhead_bytes(header, low, 16) <= overhead_bytes(header, high, 16)
    assert kv_bytes(header, low, "f16") >= kv_bytes(header, low, kv_type)


@given(headers, kv_types, memories, st.one_of(st.just(0), st.integers(1, 400_000)), st.integers(1, 256))
def test_a_plan_is_consistent_and_its_promises_hold(
    header: GGUFHeader, kv_type: str, memory: tuple[int, int], request: int, sequences: int
) -> None:
    assume(possible(header, kv_type))
    free, total = memory
    trained = header.context_length

    def again(request: int, kv_type: str = kv_type) -> Plan:
        return make_plan(header, request=request, kv_type=kv_type, free=free, total=total, sequences=sequences)

    plan = again(request)
    assert plan.fits == (plan.required <= plan.usable and request <= trained)
    assert plan.required == plan.weights + plan.kv + plan.overhead
    assert plan.cells % 256 == 0
    assert plan.cells >= plan.context
    assert plan.kv == kv_bytes(header, plan.cells, kv_type) == plan.kv_bytes_per_token * plan.cells
    assert plan.max_context <= trained
    if plan.max_context:
        assert again(plan.max_context).fits
    if plan.max_context < trained:
        assert not again(min(trained, plan.max_context + 256)).fits
    if plan.fits:
        assert not plan.reason
        assert plan.context == (request or min(trained, plan.cells))
        require(plan)
        return
    assert plan.reason.endswith(".")
    assert len(plan.alternatives) <= 2
    for alternative in plan.alternatives:
        fields = dict(part.split("=") for part in alternative.split())
        assert again(int(fields["context"]), fields["kv_type"]).fits
    with pytest.raises(CapacityError):
        require(plan)


# Runs apart: llama.cpp writes to the process's log, and it holds native memory.
NATIVE = """
import re, sys
from llama_cpp import llama_cpp as L
lines = []
@L.llama_log_callback
def keep(level, text, data):
    lines.append(text.decode())
L.llama_log_set(keep, None)
L.llama_backend_init()
params = L.llama_model_default_params()
params.n_gpu_layers = 0
model = L.llama_model_load_from_file(sys.argv[1].encode(), params)
params = L.llama_context_default_params()
params.n_ctx, params.n_batch, params.n_ubatch, params.n_seq_max = int(sys.argv[2]), 512, 512, 16
params.type_k = params.type_v = {"f16": 1, "q8_0": 8, "q4_0": 2}[sys.argv[3]]
params.kv_unified = params.swa_full = True
context = L.llama_init_from_model(model, params)
text = "".join(lines)
sizes = [float(re.search(what + r" buffer size = +([0-9.]+) MiB", text)[1]) for what in ("KV", "compute", "output")]
print(L.llama_n_ctx(context), *sizes)
"""


@pytest.mark.parametrize(("cells", "kv_type"), [(8192, "f16"), (5000, "q8_0"), (300, "q4_0"), (32_768, "f16")])
def test_llama_cpp_allocates_what_was_planned(cells: int, kv_type: str) -> None:
    command = [sys.executable, "-c", NATIVE, str(TINY), str(cells), kv_type]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    n_ctx, kv, compute, output = run.stdout.split()
    header = read_header(TINY)
    assert int(n_ctx) == padded(cells)
    assert kv_bytes(header, cells, kv_type) / MIB == pytest.approx(float(kv), abs=0.005)
    estimate = overhead_bytes(header, cells, 16) / MIB
    assert float(compute) + float(output) < estimate - 64 < 3 * (float(compute) + float(output)) + 8


def cgroup(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def test_free_memory_without_limits_is_the_machines(tmp_path: Path) -> None:
    state = free_memory(tmp_path, tmp_path / "missing")
    assert 0 < state.free <= state.total
    (tmp_path / "cgroup").write_text("0::/a\n1:name=systemd:/\n")
    cgroup(tmp_path, {"a/memory.max": "max\n", "a/memory.current": "5", "a/memory.stat": ""})
    assert free_memory(tmp_path, tmp_path / "cgroup").total == state.total


def test_free_memory_honours_the_tightest_cgroup_above(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("0::/a/b\n")
    outer = {"a/memory.max": f"{40 * MIB}", "a/memory.current": f"{30 * MIB}"}
    inner = {"a/b/memory.max": f"{50 * MIB}", "a/b/memory.current": f"{10 * MIB}"}
    stat = f"anon 1\ninactive_file {4 * MIB}\n"
    cgroup(tmp_path, {**outer, **inner, "a/memory.stat": stat, "a/b/memory.stat": stat})
    state = free_memory(tmp_path, tmp_path / "cgroup")
    assert (state.free, state.total) == (14 * MIB, 40 * MIB)


def test_free_memory_honours_version_1_in_a_container(tmp_path: Path) -> None:
    (tmp_path / "cgroup").write_text("4:cpu,memory:/docker/of-the-host\n3:cpuset:/\n")
    cgroup(
        tmp_path / "memory",
        {
            "memory.limit_in_bytes": f"{30 * MIB}\n",
            "memory.usage_in_bytes": f"{40 * MIB}\n",
            "memory.stat": f"total_inactive_file {MIB}\n",
        },
    )
    state = free_memory(tmp_path, tmp_path / "cgroup")
    assert (state.free, state.total) == (0, 30 * MIB)
