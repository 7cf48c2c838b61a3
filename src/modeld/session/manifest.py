"""The identity under which KV may be reused.

Two tapes share KV only when their manifests are equal *and* their tokens are: bytes alone never prove reuse.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from typing import Literal

import msgspec
from msgspec import Struct


class Segment(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A stretch of the context: one message, or the template's own text around it.

    :param stable: part of the prefix that the caller named as stable.
    """

    kind: Literal["system", "user", "assistant", "tool", "tools"]
    stable: bool = False
    message_index: int | None = None
    characters: int = 0


class Manifest(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Everything but the tokens that changes what KV holds.

    :param engine_build: build of the native library; KV of another build is not trusted.
    :param adapters: ``digest:scale`` of each adapter that is active, sorted: they are summed up, so order says nothing.
    :param kv_layout: what else decides the bytes of KV, in the engine's own words.
    """

    engine: str
    engine_build: str
    model_digest: str
    template_digest: str
    tokenizer_digest: str = ""
    add_bos: bool = False
    kv_type: str = "f16"
    adapters: tuple[str, ...] = ()
    kv_layout: str = ""

    @property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON of all fields."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()

    def difference(self, other: Manifest) -> str | None:
        """Name of the first field that differs, ``None`` when KV may be shared."""
        for name in self.__struct_fields__:
            if getattr(self, name) != getattr(other, name):
                return name
        return None


def pack_tokens(tokens: Iterable[int]) -> bytes:
    """The ids, each as a signed 64-bit little-endian integer."""
    ids = tokens if isinstance(tokens, list | tuple) else tuple(tokens)
    # For 256 ids this takes 3 us, where an array takes 25.
    return struct.pack(f"<{len(ids)}q", *ids)


def token_hash(tokens: Iterable[int]) -> str:
    """SHA-256 over the ids as :func:`pack_tokens` writes them."""
    return hashlib.sha256(pack_tokens(tokens)).hexdigest()
