"""LoRA adapters: small matrices that are added to a model's own while it computes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from msgspec import Struct, structs

from modeld.errors import InvalidRequestError
from modeld.session.names import check_name, check_path

MAX_ADAPTERS: Final = 16
"""In one set. Each costs two more products for every matrix it changes, in every step."""

MIN_SCALE: Final = 1e-6
MAX_SCALE: Final = 1e6


class Adapter(Struct, frozen=True, omit_defaults=True):
    """A LoRA adapter and how strong it is. Identity is digest and scale; ``path`` is a hint where its file lies.

    :param name: of a file in the models folder; empty with a ``path``: the name is the file's.
    :param scale: times what training made of it (its file says ``alpha``); 1 is as trained, less than 0 takes away.
    :param digest: hex SHA-256 of the file; where given, a file of another digest is refused.
    :raises InvalidRequestError: neither name nor path, or a scale that is 0 or out of bounds: it would do nothing.
    """

    name: str = ""
    scale: float = 1.0
    digest: str = ""
    path: str = ""

    def __post_init__(self) -> None:
        if not self.name and not self.path:
            raise InvalidRequestError("an adapter needs a name or a path", parameter="adapters")
        if self.name:
            check_name("adapter name", self.name)
        check_path("an adapter path", self.path)
        if not MIN_SCALE <= abs(self.scale) <= MAX_SCALE:
            raise InvalidRequestError(
                f"the scale of an adapter is between {MIN_SCALE:g} and {MAX_SCALE:g}, or minus that, not {self.scale}; "
                "leave out what is not to be active",
                parameter="adapters",
            )

    @classmethod
    def of(cls, adapter: Adapter | str) -> Adapter:
        """The adapter that a person means: ``PATH``, ``NAME``, or either with ``=SCALE`` behind it.

        Text with a ``/``, or that ends in ``.gguf``, is a path. Paths are made absolute, relative ones from the current
        folder. No file is looked at.

        :raises InvalidRequestError: neither a name nor a path.
        """
        if isinstance(adapter, str):
            text, scale = _scaled(adapter)
            is_path = "/" in text or text.endswith(".gguf")
            adapter = cls(path=text, scale=scale) if is_path else cls(text, scale)
        if not adapter.path:
            return adapter
        return structs.replace(adapter, path=str(Path(adapter.path).expanduser().absolute()))

    @property
    def identity(self) -> str:
        """What tells KV of one adapter from that of another. ``digest`` must be known."""
        return f"{self.digest}:{float(self.scale)!r}"


def identities(adapters: Iterable[Adapter]) -> tuple[str, ...]:
    """Identity of a set, in an order of its own: what the adapters add is a sum."""
    return tuple(sorted(adapter.identity for adapter in adapters))


def _scaled(text: str) -> tuple[str, float]:
    """``PATH=SCALE``; a ``=`` that no number follows is part of the path."""
    before, mark, after = text.rpartition("=")
    try:
        scale = float(after)
    except ValueError:
        return text, 1.0
    return (before, scale) if mark else (text, 1.0)
