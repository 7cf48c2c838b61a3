"""LoRA adapters, checked before an engine sees their files.

What llama.cpp would pass over or end the process for is refused here: vectors of norms, matrices that its graph does
not multiply, types it does not expect. So an adapter that is taken is active with all of its matrices.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final

from msgspec import Struct, structs

from modeld.errors import InvalidModelError, InvalidRequestError, NotSupportedError
from modeld.node.gguf import F32, U32, GGUFHeader, Tensor
from modeld.node.ir import IRHeader
from modeld.node.store import ModelStore, ResolvedModel
from modeld.session.adapters import Adapter, identities

_ACTIVE: Final = re.compile(
    r"output\.weight|blk\.\d+\.(attn_(q|k|v|qkv|output)|ffn_(gate|up|down)(_exps|_shexp)?)\.weight"
)
"""Matrices that llama.cpp multiplies by its ``build_lora_mm``, whatever the architecture."""

_LATENT: Final = re.compile(r"blk\.\d+\.attn_(kv_a_mqa|q_a|kv_b|k_b)\.weight")
"""A model that has these (MLA) multiplies its attention's matrices without adapters."""

_TYPES: Final = ("F32", "F16", "BF16", "Q8_0")
_PART: Final = re.compile(r"(?P<base>.+)\.lora_(?P<side>[ab])")
_AXES: Final = 4
_MOST_ALPHA: Final = 1e6


class AdapterSet(Struct, frozen=True):
    """Adapters found and checked. Each has name, digest and absolute path.

    :param size: bytes of their files.
    """

    adapters: tuple[Adapter, ...] = ()
    size: int = 0

    @property
    def identity(self) -> tuple[str, ...]:
        """Two sets of the same are one, whatever their files are called."""
        return identities(self.adapters)

    def holds(self, adapters: Iterable[Adapter]) -> bool:
        """It is of just these, by their digests."""
        return self.identity == identities(adapters)


def find_adapters(store: ModelStore, model: ResolvedModel, wanted: Sequence[Adapter]) -> AdapterSet:
    """Find adapters, check that they go on ``model``, and compute their digests. Blocks on the disk.

    :raises ModelNotFoundError: no such file. :raises DigestMismatchError: it is not the one that is named.
    :raises InvalidModelError: it is no LoRA adapter of this model, or it is damaged.
    :raises NotSupportedError: a part of it could not be active.
    :raises InvalidRequestError: one file twice.
    """
    found: list[Adapter] = []
    size = 0
    for adapter in wanted:
        name, path, digest, header = store.adapter(Adapter.of(adapter), model.type)
        if isinstance(model.header, IRHeader):
            raise NotSupportedError(
                f"{model.name} is an OpenVINO model, and adapters go on GGUF models only", feature="lora"
            )
        if header is not None and model.header is not None:
            check_adapter(Path(path), header, model.name, model.header)
            size += header.file_size
        found.append(structs.replace(adapter, name=name, path=path, digest=digest))
    # The engine gets them in one order, so that the same set gives the same sums.
    found.sort(key=lambda adapter: adapter.identity)
    for one, two in pairwise(found):
        if one.digest == two.digest:
            raise InvalidRequestError(
                f"the adapters {one.name} and {two.name} are one file: give it once, with a scale of "
                f"{one.scale + two.scale:g} for both",
                parameter="adapters",
            )
    return AdapterSet(tuple(found), size)


def check_adapter(path: Path, header: GGUFHeader, name: str, base: GGUFHeader) -> None:
    """Do nothing where every matrix of the adapter can be active on the model ``name``, whose header is ``base``.

    :raises InvalidModelError: it is no LoRA adapter, or one of another model. :raises NotSupportedError: it cannot.
    """
    _check_kind(path, header, base)
    tensors = {tensor.name: tensor for tensor in base.tensors}
    latent = any(map(_LATENT.fullmatch, tensors))
    for target, (a, b) in _pairs(path, header).items():
        if target not in tensors:
            raise _invalid(path, f"it changes {target}, which {name} does not have: it is of another model")
        attends = latent and target.partition(".attn_")[1]
        # A matrix with a scale of its own is multiplied by it after the adapter's part was added.
        scaled = f"{target.removesuffix('.weight')}.scale" in tensors
        if attends or scaled or not _ACTIVE.fullmatch(target):
            raise _inactive(path, target)
        _check_shapes(path, tensors[target], a, b)


def _check_kind(path: Path, header: GGUFHeader, base: GGUFHeader) -> None:
    """The keys. llama.cpp ends the process where one is of another type than it expects."""
    facts = header.metadata
    if facts.get("general.type") != "adapter" or facts.get("adapter.type") != "lora":
        said = [facts.get(key, "nothing") for key in ("general.type", "adapter.type")]
        raise _invalid(path, f"it is no LoRA adapter: of its type it says {said[0]!r:.40}, then {said[1]!r:.40}")
    if (architecture := facts.get("general.architecture", "")) != base.architecture:
        raise _invalid(path, f"it is for models of type {architecture!r:.40}, and this one is {base.architecture}")
    if "adapter.alora.invocation_tokens" in header.kinds:
        raise NotSupportedError(
            f"{path} is an activated LoRA: it works from certain tokens on, which modeld cannot do; use a plain one",
            feature="alora",
        )
    alpha, kind = facts.get("adapter.lora.alpha", 0.0), header.kinds.get("adapter.lora.alpha", F32)
    if kind != F32 or not isinstance(alpha, float) or not abs(alpha) <= _MOST_ALPHA:
        raise _invalid(path, f"its adapter.lora.alpha is {alpha!r:.40} (type {kind}), not 32 bits up to 1e6")
    if header.kinds.get("general.alignment", U32) != U32:
        raise _invalid(path, "its general.alignment is not a number of 32 bits")


def _pairs(path: Path, header: GGUFHeader) -> dict[str, tuple[Tensor, Tensor]]:
    """The two matrices for each tensor of the model that the adapter changes."""
    halves: dict[str, dict[str, Tensor]] = {}
    for tensor in header.tensors:
        match = _PART.fullmatch(tensor.name)
        if match is None:
            if "norm" in tensor.name:
                raise _inactive(path, tensor.name)
            raise _invalid(path, f"its tensor {tensor.name!r} is neither a lora_a nor a lora_b")
        halves.setdefault(match["base"], {})[match["side"]] = tensor
    if not halves:
        raise _invalid(path, "it holds no matrices")
    for target, sides in halves.items():
        if len(sides) < 2:
            raise _invalid(path, f"it has lora_{next(iter(sides))} of {target} without the other of the two")
    return {target: (sides["a"], sides["b"]) for target, sides in halves.items()}


def _check_shapes(path: Path, target: Tensor, a: Tensor, b: Tensor) -> None:
    """``a`` takes the columns of the model's matrix to a few, ``b`` takes these to its rows; experts have one each."""
    for tensor in (a, b):
        if tensor.type not in _TYPES:
            raise _invalid(path, f"its {tensor.name} is of type {tensor.type}; {', '.join(_TYPES)} are taken")
    (columns, rows, *experts), first, second = map(_shape, (target, a, b))
    rank = first[1]
    if first != [columns, rank, *experts] or second != [rank, rows, *experts]:
        raise _invalid(
            path,
            f"its matrices for {target.name} are {a.shape} and {b.shape}, which do not make {target.shape}: it is of "
            "another model",
        )
    if rank > max(columns, rows):
        raise _invalid(path, f"its rank for {target.name} is {rank}, more than the matrix's {max(columns, rows)}")


def _shape(tensor: Tensor) -> list[int]:
    return [*tensor.shape, *[1] * (_AXES - len(tensor.shape))]


def _invalid(path: Path, reason: str) -> InvalidModelError:
    return InvalidModelError(f"{path} cannot be used as an adapter: {reason}.", path=str(path), reason=reason)


def _inactive(path: Path, tensor: str) -> NotSupportedError:
    return NotSupportedError(
        f"{path} changes {tensor}, and llama.cpp would leave that out; train one for attention and feed-forward only, "
        "or merge it into the model",
        feature="lora_target",
        tensor=tensor,
    )
