"""Facts about models that a vendor's listing does not tell: data, with the page they are from."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from msgspec import Struct

from modeld.repository.values import CapabilityConfig, Evidence, ObservedModel


class Facts(Struct, frozen=True, kw_only=True):
    """What the vendor's page says of the models whose name matches. ``None`` is unknown.

    :param match: glob over the base name: lower case, what follows the last ``/``.
    :param source: the vendor's page. :param checked: when it said so, ISO date.
    """

    match: str
    source: str
    checked: str
    context_length: int | None = None
    max_output_tokens: int | None = None
    can_chat: bool | None = None
    can_embed: bool | None = None
    can_think: bool | None = None
    can_vision: bool | None = None


F = TypeVar("F", bound=Facts)


def find_facts(table: Sequence[F], name: str) -> F | None:
    """The first entry that matches ``name``."""
    base = name.strip().lower().rpartition("/")[2]
    return next((facts for facts in table if fnmatchcase(base, facts.match)), None)


def observe(
    name: str,
    facts: Facts | None,
    declared: CapabilityConfig | None = None,
    known: Sequence[str] = (),
    **listed: object,
) -> ObservedModel:
    """A model of ``name``: what the listing declared in the fields ``known``, then what ``facts`` say, then nothing.

    Nothing known of what a model is for: it chats and does not embed, as most do; no evidence says so.

    :param listed: fields of :class:`ObservedModel` from the listing.
    """
    values: dict[str, int | bool] = {}
    evidence: dict[str, Evidence] = {}
    for field in ("context_length", "max_output_tokens", "can_chat", "can_embed", "can_think", "can_vision"):
        said = getattr(facts, field, None)
        if declared is not None and field in known:
            values[field], evidence[field] = getattr(declared, field), "declared"
        elif said is not None:
            values[field], evidence[field] = said, "named"
        else:
            values[field] = 0 if field.endswith(("length", "tokens")) else field == "can_chat"
    capabilities = CapabilityConfig(
        context_length=int(values["context_length"]),
        max_output_tokens=int(values["max_output_tokens"]),
        can_chat=bool(values["can_chat"]),
        can_stream=bool(values["can_chat"]),
        can_prompt=bool(values["can_chat"]),
        can_embed=bool(values["can_embed"]),
        can_think=bool(values["can_think"]),
        can_vision=bool(values["can_vision"]),
    )
    return ObservedModel(name=name, capabilities=capabilities, evidence=evidence, **listed)  # type: ignore[arg-type]
