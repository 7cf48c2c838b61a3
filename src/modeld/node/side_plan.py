"""What an engine beside the resident one needs: arithmetic over a header, like :mod:`modeld.node.capacity`."""

from __future__ import annotations

from typing import Final

from msgspec import structs

from modeld.errors import InvalidRequestError
from modeld.node.capacity import MemoryState, human_bytes, kv_bytes, padded, reserve_bytes
from modeld.node.gguf import GGUFHeader
from modeld.node.ir import IRHeader
from modeld.session.values import Plan

SIDE_CONTEXT: Final = 2048
"""Tokens of one input where nobody asks for more."""

SIDE_SEQUENCES: Final = 64

_PROCESS_BYTES: Final = 64 << 20
_VOCABULARY_BYTES: Final = 192
EXACT_TOKENS: Final = 2048
"""As in ``engine/llama/embedder.py``: up to here all scores of an attention are in memory at once."""


def embed_plan(header: GGUFHeader, context: int, memory: MemoryState, taken: int) -> Plan:
    """Whether a model fits for vectors of inputs up to ``context`` tokens; 0 is :data:`SIDE_CONTEXT`, or what the model
    was trained for.

    :param taken: bytes of ``memory.free`` that others were promised and do not use yet.
    :raises InvalidRequestError: more than the model was trained for.
    """
    trained = header.context_length
    if context > trained:
        raise InvalidRequestError(
            f"the model was trained for inputs of {trained} tokens, not {context}", parameter="context", limit=trained
        )
    window = context or min(trained, SIDE_CONTEXT)
    plan = _plan(header, window, memory, taken)
    if plan.fits:
        return plan
    smaller = [size for size in (2048, 1024, 512, 256) if size < window]
    fitting = next((size for size in smaller if _plan(header, size, memory, taken).fits), 0)
    reason = (
        f"Vectors of inputs of {window} tokens need {human_bytes(plan.required)} (weights {human_bytes(plan.weights)}, "
        f"KV {human_bytes(plan.kv)}, overhead {human_bytes(plan.overhead)}), but {human_bytes(plan.usable)} are usable "
        f"beside the resident model ({human_bytes(plan.free)} free less {human_bytes(plan.reserve)} reserve)."
    )
    return structs.replace(
        plan, max_context=fitting, reason=reason, alternatives=(f"context={fitting}",) if fitting else ()
    )


def vocabulary_plan(header: GGUFHeader | IRHeader, memory: MemoryState, taken: int) -> Plan:
    """Whether a model's vocabulary fits, without its weights."""
    plan = _made(0, 0, 0, _PROCESS_BYTES + 2 * _VOCABULARY_BYTES * header.vocabulary, memory, taken)
    if plan.fits:
        return plan
    reason = (
        f"Counting tokens needs {human_bytes(plan.required)}, but {human_bytes(plan.usable)} are usable beside the "
        f"resident model ({human_bytes(plan.free)} free less {human_bytes(plan.reserve)} reserve)."
    )
    return structs.replace(plan, reason=reason)


def _plan(header: GGUFHeader, window: int, memory: MemoryState, taken: int) -> Plan:
    kv = kv_bytes(header, window, "f16") if header.writes_text else 0
    return _made(window, header.file_size, kv, _overhead(header, window), memory, taken)


def _made(window: int, weights: int, kv: int, overhead: int, memory: MemoryState, taken: int) -> Plan:
    reserve = reserve_bytes(memory.total)
    free = max(memory.free - taken, 0)
    usable = max(free - reserve, 0)
    required = weights + kv + overhead
    return Plan(
        fits=required <= usable,
        context=window,
        cells=padded(window),
        max_context=window,
        kv_bytes_per_token=kv // window if window else 0,
        kv_type="f16",
        weights=weights,
        kv=kv,
        overhead=overhead,
        required=required,
        free=free,
        reserve=reserve,
        usable=usable,
    )


def _overhead(header: GGUFHeader, window: int) -> int:
    """Process, vocabulary, and the compute buffer: llama.cpp makes logits of all tokens where a model has them.

    Scores are counted twice, as they are and as they become.
    """
    heads = max(header.head_count, default=0)
    window = padded(window)
    logits = 4 * header.vocabulary * window if header.writes_text else 0
    scores = 2 * 4 * heads * window * window if window <= EXACT_TOKENS else 0
    row = 3 * header.embedding_length + heads * header.key_length + 2 * header.number("feed_forward_length")
    row += header.number("expert_used_count") * 2 * header.number("expert_feed_forward_length")
    return _PROCESS_BYTES + 2 * _VOCABULARY_BYTES * header.vocabulary + logits + scores + 4 * 4 * row * window
