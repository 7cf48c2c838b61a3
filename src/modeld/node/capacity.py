"""What fits: plain arithmetic over a model's header and the free memory. Nothing here loads or allocates anything.

KV is counted for the context that llama.cpp really creates: one unified cache, every layer with all cells
(``swa_full``: a sliding window saves nothing yet), cells padded to 256, keys and values of the type asked for.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from msgspec import Struct, structs

from modeld.errors import CapacityError, InvalidRequestError, NotSupportedError
from modeld.node.gguf import GGUFHeader
from modeld.node.ir import KV_TYPES as IR_KV_TYPES
from modeld.node.ir import IRHeader
from modeld.session.values import Plan

KV_TYPES: Final = {"f16": (1, 2), "q8_0": (32, 34), "q4_0": (32, 18)}
"""KV type -> (elements, bytes) of a block."""

CELL_PADDING: Final = 256  # GGML_PAD(n_ctx, 256) in llama_context.
AUTO_CELLS: Final = 32_768
MIN_CELLS: Final = 512
UBATCH: Final = 512

_PROCESS_BYTES: Final = 64 << 20
_VOCABULARY_BYTES: Final = 192  # A token: 25 MiB were measured for 151,936.
_UNKNOWN_MEMORY: Final = (
    ".wkv.",
    ".kda.",
    ".attention.indexer.",
    ".attention.compress_ratios",
    ".attention.recurrent_layers",
)


class MemoryState(Struct, frozen=True):
    """Bytes that a new process can get without swapping, and bytes in all."""

    free: int
    total: int


def padded(cells: int) -> int:
    """The cells that a context of ``cells`` really has."""
    return -(-cells // CELL_PADDING) * CELL_PADDING


def kv_bytes(header: GGUFHeader, cells: int, kv_type: str) -> int:
    """Bytes of the KV cache for ``cells`` cells. Exact for plain attention; an upper bound for MLA, whose value cache
    llama.cpp leaves out, and for hybrid models that do not say which layers attend.

    A layer has ``cells * (heads * key_length + heads * value_length)`` elements (``llama_kv_cache``). A recurrent state
    is not KV: it does not grow with the cells and is part of :func:`overhead_bytes`.

    :raises NotSupportedError: ``kv_type`` cannot hold this model's heads, or this arithmetic does not know the memory
        of the architecture.
    :raises InvalidRequestError: an unknown ``kv_type``.
    """
    unknown = _unknown_memory(header)
    if unknown:
        raise NotSupportedError(unknown, feature="kv_arithmetic")
    if kv_type not in KV_TYPES:
        raise InvalidRequestError(f"kv_type must be one of {', '.join(KV_TYPES)}, not {kv_type!r}", parameter="kv_type")
    block, block_bytes = KV_TYPES[kv_type]
    elements = 0
    for heads, key, value in _attention_layers(header):
        if heads and (key % block or value % block):
            raise NotSupportedError(
                f"A {kv_type} KV cache needs heads of a multiple of {block} elements; this model's have {key} and "
                f"{value}. Use f16.",
                feature=f"kv_type_{kv_type}",
            )
        elements += heads * (key + value)
    if block > 1 and header.architecture == "grok":
        raise NotSupportedError(
            "A quantized KV cache needs flash attention, which grok has not. Use f16.", feature=kv_type
        )
    return padded(cells) * (elements // block) * block_bytes


def _unknown_memory(header: GGUFHeader) -> str:
    for key in (*header.metadata, *header.array_lengths):
        if any(mark in key for mark in _UNKNOWN_MEMORY):
            return f"The memory of {header.architecture} models is not known to this planner (it has {key})."
    return ""


def _attention_layers(header: GGUFHeader) -> Iterator[tuple[int, int, int]]:
    """KV heads, key length and value length of each layer that has cells of its own."""
    keys, values = header.key_length, header.value_length
    windowed_keys = header.number("attention.key_length_swa", keys)
    windowed_values = header.number("attention.value_length_swa", values)
    pattern = header.sliding_window_pattern
    interval = header.number("full_attention_interval")
    predicting = header.block_count - header.number("nextn_predict_layers")
    last = header.block_count - header.number("attention.shared_kv_layers")
    for layer, heads in enumerate(header.head_count_kv[: max(last, 0)]):
        if interval and (layer + 1) % interval and layer < predicting:
            continue  # Recurrent: qwen3next and its successors attend in every interval-th layer.
        if len(pattern) != header.block_count:
            yield heads, max(keys, windowed_keys), max(values, windowed_values)
        elif pattern[layer]:
            yield heads, windowed_keys, windowed_values
        else:
            yield heads, keys, values


def overhead_bytes(header: GGUFHeader, cells: int, sequences: int) -> int:
    """Upper estimate of what the engine process needs besides weights and KV.

    The parts: the process itself (Python and the libraries: 21 MiB measured); llama.cpp's vocabulary; an output row of
    logits for each sequence and one more, twice as many where layers have a window (see ``engine/llama/cells.py``); the
    state of recurrent layers for each sequence and one more (``n_embd_r`` and ``n_embd_s`` of llama.cpp, 32 bit, as if
    every layer were recurrent); and the compute buffer for a batch of 512.
    That is the larger of the logits and the attention masks, which are not alive together, plus the activations of one
    layer; the engine asks for no more rows of logits than there are sequences (``n_outputs_max``). Against the sizes
    that llama.cpp prints (binding 0.3.36, processor, 32,768 cells) it is estimated at 38 MiB for tiny (36 printed), 56
    for the 90m shape (49) and 80 for the 0.6b shape (60). Where flash attention is impossible
    (grok), the attention scores are counted in full.
    """
    cells = padded(cells)
    heads = max(header.head_count, default=0)
    logits = 4 * header.vocabulary * (sequences * (2 if header.sliding_window else 1) + 1)
    masks = 2 * cells * UBATCH * (2 if header.sliding_window else 1)
    if header.architecture == "grok":
        masks = 4 * cells * UBATCH * (heads + 1)
    experts = header.number("expert_used_count")
    row = header.embedding_length + heads * header.key_length + header.number("feed_forward_length")
    row += experts * (header.number("expert_feed_forward_length") + header.embedding_length)
    activations = 4 * 4 * row * UBATCH
    outputs = logits
    states = 4 * (sequences + 1) * header.block_count * _state_elements(header)
    vocabulary = _VOCABULARY_BYTES * header.vocabulary
    return _PROCESS_BYTES + vocabulary + outputs + states + max(logits, masks) + activations


def _state_elements(header: GGUFHeader) -> int:
    inner, state = header.number("ssm.inner_size"), header.number("ssm.state_size")
    convolved = inner + 2 * header.number("ssm.group_count") * state
    mamba = max(header.number("ssm.conv_kernel") - 1, 0) * convolved + inner * state
    return mamba + header.embedding_length * max(header.number("shortconv.l_cache") - 1, 0)


def reserve_bytes(total: int) -> int:
    """Memory left to everything else: 1 GiB or a tenth, whichever is more, but at most a quarter of all."""
    return min(max(1 << 30, total // 10), total // 4)


class _Memory(Struct, frozen=True):
    """A model, and what it may use."""

    header: GGUFHeader | IRHeader
    usable: int
    sequences: int

    def kv(self, cells: int, kv_type: str) -> int:
        if isinstance(self.header, IRHeader):
            return self.header.kv_bytes(padded(cells), kv_type)
        return kv_bytes(self.header, cells, kv_type)

    def overhead(self, cells: int) -> int:
        if isinstance(self.header, IRHeader):
            return self.header.overhead_bytes(padded(cells), self.sequences)
        return overhead_bytes(self.header, cells, self.sequences)

    @property
    def weights(self) -> int:
        return self.header.resident_weights if isinstance(self.header, IRHeader) else self.header.file_size

    @property
    def unknown(self) -> str:
        return "" if isinstance(self.header, IRHeader) else _unknown_memory(self.header)

    @property
    def kv_types(self) -> list[str]:
        """From the largest to the smallest."""
        return list(IR_KV_TYPES if isinstance(self.header, IRHeader) else KV_TYPES)

    def required(self, cells: int, kv_type: str) -> int:
        return self.weights + self.kv(cells, kv_type) + self.overhead(cells)

    def most_cells(self, kv_type: str, limit: int) -> int:
        """The most cells up to ``limit`` that fit, 0 when not even the least do."""
        low, high = 0, padded(limit) // CELL_PADDING
        while low < high:
            middle = (low + high + 1) // 2
            if self.required(middle * CELL_PADDING, kv_type) <= self.usable:
                low = middle
            else:
                high = middle - 1
        cells = low * CELL_PADDING
        return cells if cells >= self.least_cells else 0

    @property
    def least_cells(self) -> int:
        return padded(min(MIN_CELLS, self.header.context_length))

    def max_context(self, kv_type: str) -> int:
        trained = self.header.context_length
        return min(trained, self.most_cells(kv_type, max(trained, MIN_CELLS)))


def make_plan(
    header: GGUFHeader | IRHeader,
    *,
    request: int,
    kv_type: str,
    free: int,
    total: int,
    sequences: int = 16,
    reclaimable: int = 0,
    device: str = "cpu",
    gpu_layers: int = 0,
    most: int = AUTO_CELLS,
) -> Plan:
    """Say whether a model fits, and with how many cells.

    An estimate, not a reservation: other programs may take the memory meanwhile. A GGUF counts as weights in full. The
    plan's ``free`` includes ``reclaimable``. Where it does not fit, the plan holds the numbers of the least that would
    satisfy the request, one sentence why, and up to two alternatives that do fit now.

    :param request: tokens that a session must hold; 0 takes up to ``most`` cells, as many as fit.
    :param free: bytes free now on ``device``. :param reclaimable: bytes that unloading the resident model would add.
    :param sequences: sessions that compute at the same time; each costs a row of logits.
    :raises NotSupportedError: this model cannot have a KV cache of ``kv_type``.
    :raises InvalidRequestError: an unknown ``kv_type``, or a negative number.
    """
    if min(request, free, total, reclaimable) < 0 or sequences < 1:
        raise InvalidRequestError(f"request, memory and sequences must not be negative: {request}, {free}, {total}.")
    reserve = reserve_bytes(total)
    memory = _Memory(header, max(free + reclaimable - reserve, 0), sequences)
    unknown, weights = memory.unknown, memory.weights
    trained = header.context_length
    fitting = 0 if unknown else memory.most_cells(kv_type, most)
    cells = max(padded(request), fitting, memory.least_cells)
    kv = 0 if unknown else memory.kv(cells, kv_type)
    overhead = memory.overhead(cells)
    plan = Plan(
        fits=not unknown and weights + kv + overhead <= memory.usable and request <= trained,
        context=request or min(trained, cells),
        cells=cells,
        max_context=0 if unknown else memory.max_context(kv_type),
        kv_bytes_per_token=kv // cells,
        kv_type=kv_type,
        weights=weights,
        kv=kv,
        overhead=overhead,
        required=weights + kv + overhead,
        free=free + reclaimable,
        reserve=reserve,
        usable=memory.usable,
        device=device,
        gpu_layers=gpu_layers,
    )
    if plan.fits:
        return plan
    reason = unknown or _reason(plan, trained)
    return structs.replace(plan, reason=reason, alternatives=() if unknown else _alternatives(memory, plan, request))


def require(plan: Plan) -> None:
    """Do nothing when the plan fits.

    :raises CapacityError: it does not; the details are the plan's fields.
    """
    if not plan.fits:
        would = f" These would fit: {'; '.join(plan.alternatives)}." if plan.alternatives else ""
        raise CapacityError(plan.reason + would, **{**structs.asdict(plan), "alternatives": list(plan.alternatives)})


def _reason(plan: Plan, trained: int) -> str:
    if plan.context > trained:
        return f"A session of {plan.context} tokens is longer than the {trained} tokens the model was trained for."
    return (
        f"A session of {plan.context} tokens needs {human_bytes(plan.required)} (weights {human_bytes(plan.weights)}, "
        f"{plan.cells} {plan.kv_type} KV cells {human_bytes(plan.kv)}, overhead {human_bytes(plan.overhead)}), but "
        f"{human_bytes(plan.usable)} are usable ({human_bytes(plan.free)} free less {human_bytes(plan.reserve)} "
        f"reserve)."
    )


def _alternatives(memory: _Memory, plan: Plan, request: int) -> tuple[str, ...]:
    """Up to two that fit: less context, then the smaller KV types with the context asked for or what they allow."""
    trained = memory.header.context_length
    wanted = min(request or trained, trained)
    found = [f"context={plan.max_context} kv_type={plan.kv_type}"] if plan.max_context else []
    types = memory.kv_types
    for kv_type in types[types.index(plan.kv_type) + 1 :]:
        try:
            most = memory.max_context(kv_type)
        except NotSupportedError:
            continue
        if most:
            found.append(f"context={min(wanted, most)} kv_type={kv_type}")
    return tuple(found[:2])


def human_bytes(size: int) -> str:
    """``1.4 MiB``: binary units with one decimal."""
    if size < 1024:
        return f"{size} B"
    power = min((size.bit_length() - 1) // 10, 6)
    return f"{size / 1024**power:.1f} {' KMGTPE'[power]}iB"


def ram_budget(free: int, plan: Plan) -> int:
    """Bytes of main memory for KV that leaves the engine: a quarter of what the model leaves free, at most 2 GiB.

    :param free: bytes of main memory before the model is loaded.
    """
    left = free - (plan.required if plan.device == "cpu" else 0)
    return max(0, min(2 * 2**30, left // 4))


def disk_budget(root: Path, kv_folder: Path) -> int:
    """Bytes of files for KV: a quarter of what is free on the data root's file system, at most 8 GiB.

    What such files take already counts as free: else the budget would shrink as it fills.
    """
    held = 0
    for path in kv_folder.glob("*/*.kv"):
        with suppress(OSError):  # It has gone meanwhile.
            held += path.lstat().st_size
    return min(8 * 2**30, (shutil.disk_usage(root).free + held) // 4)


def free_memory(cgroups: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> MemoryState:
    """Main memory now: the machine's, or that of the tightest cgroup (version 2 or 1) that this process is in.

    Page cache that the kernel gives back under pressure counts as free, on the machine and in a cgroup.
    """
    import psutil

    machine = psutil.virtual_memory()
    free, total = machine.available, machine.total
    for limit, left in _cgroup_limits(cgroups, membership):
        free, total = min(free, left), min(total, limit)
    return MemoryState(free=free, total=total)


def _cgroup_limits(cgroups: Path, membership: Path) -> Iterator[tuple[int, int]]:
    """Limit and what is left of it, for each cgroup above this process that has a limit."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return  # Not Linux.
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = cgroups, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root, names = cgroups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # In a container the path may be the host's: then only the root of the mount is there, and it is ours.
        folder = root / path.lstrip("/")
        for place in (folder, *(p for p in folder.parents if p.is_relative_to(root))):
            found = _limit(place, *names)
            if found:
                yield found


def _limit(folder: Path, limit_name: str, usage_name: str, cache_name: str) -> tuple[int, int] | None:
    try:
        limit = int((folder / limit_name).read_text())  # "max" where there is none.
        usage = int((folder / usage_name).read_text())
        rows = dict(row.split() for row in (folder / "memory.stat").read_text().splitlines())
        return limit, max(limit - usage + int(rows.get(cache_name, 0)), 0)
    except (OSError, ValueError):
        return None
