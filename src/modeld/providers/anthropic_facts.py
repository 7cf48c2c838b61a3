"""What Claude models take, by the vendor's listing, else by a table; and the fields of a request that follow."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import msgspec
from msgspec import Struct, structs

from modeld.errors import NotSupportedError
from modeld.providers.facts import Facts, find_facts, observe
from modeld.repository.values import CapabilityConfig, Evidence, ObservedModel
from modeld.repository.wire import Call
from modeld.thinking import BUDGETS, parse_think

DEFAULT_MAX_TOKENS: Final = 4096
"""The vendor wants a number. This one is sent where neither the caller nor the listing has one."""

EFFORTS: Final = ("low", "medium", "high", "xhigh")
"""Levels of ours that the vendor has under the same name; it has ``max`` on top."""

_TROUBLE: Final = "https://platform.claude.com/docs/en/build-with-claude/thinking-troubleshooting"
_ALL: Final = ("low", "medium", "high", "xhigh", "max")


class ClaudeFacts(Facts, frozen=True, kw_only=True):
    """What one generation takes.

    :param thinking: values of ``thinking.type`` that turn it on. :param efforts: of ``output_config.effort``.
    :param off: the value that turns it off; ``""``: nothing does.
    :param sampling: takes temperature, top_p and top_k under API version 2023-06-01.
    :param forced_tools: takes a ``tool_choice`` that forces a call.
    """

    thinking: tuple[str, ...]
    off: str
    efforts: tuple[str, ...] = ()
    sampling: bool = False
    forced_tools: bool = True


def _row(
    match: str,
    *,
    window: int = 1_000_000,
    out: int = 128_000,
    thinking: tuple[str, ...] = ("adaptive",),
    off: str = "disabled",
    **more: Any,
) -> ClaudeFacts:
    return ClaudeFacts(
        match=match,
        source=_TROUBLE,
        checked="2026-11-22",
        context_length=window,
        max_output_tokens=out,
        can_think=bool(thinking),
        can_vision=True,
        thinking=thinking,
        off=off,
        **more,
    )


# Windows and ceilings: https://platform.claude.com/docs/en/about-claude/models/overview
# Efforts: https://platform.claude.com/docs/en/build-with-claude/effort
# Sampling: https://platform.claude.com/docs/en/api/migration-2026-10-21
FACTS: Final = (
    _row("claude-fable-5-1*", off="", efforts=_ALL, forced_tools=False),
    _row("claude-mythos-5-1*", off="", efforts=_ALL, forced_tools=False),
    _row("claude-opus-5-5*", off="", efforts=_ALL, forced_tools=False),
    _row("claude-sonnet-5-5*", off="between_tools", efforts=_ALL, forced_tools=False),
    _row("claude-haiku-5-5*", efforts=_ALL),
    _row("claude-fable-5", off="", efforts=_ALL),
    _row("claude-mythos-5", off="", efforts=_ALL),
    _row("claude-opus-5", efforts=_ALL),
    _row("claude-sonnet-5", efforts=_ALL),
    _row("claude-opus-4-8*", efforts=_ALL),
    _row("claude-opus-4-7*", efforts=_ALL),
    _row("claude-opus-4-6*", thinking=("adaptive", "enabled"), efforts=("low", "medium", "high", "max"), sampling=True),
    _row(
        "claude-sonnet-4-6*", thinking=("adaptive", "enabled"), efforts=("low", "medium", "high", "max"), sampling=True
    ),
    _row("claude-opus-4-5*", window=200_000, out=64_000, thinking=("enabled",), sampling=True),
    _row("claude-sonnet-4-5*", window=200_000, out=64_000, thinking=("enabled",), sampling=True),
    _row("claude-haiku-4-5*", window=200_000, out=64_000, thinking=("enabled",), sampling=True),
)


def facts_of(name: str) -> ClaudeFacts | None:
    """The row for ``name``; ``None``: nothing is known, and the vendor decides."""
    return find_facts(FACTS, name)


class ModelInfo(Struct, frozen=True):
    """A model in the listing. Source: https://platform.claude.com/docs/en/api/models/list"""

    id: str = ""
    created_at: str | None = None
    display_name: str | None = None
    lifecycle: str | None = None
    max_input_tokens: int | None = None
    max_tokens: int | None = None
    capabilities: dict[str, Any] | None = None


class ModelPage(Struct, frozen=True):
    """A page of the listing."""

    data: list[ModelInfo]
    has_more: bool | None = None
    last_id: str | None = None


def observed(info: ModelInfo) -> ObservedModel:
    """A model as the listing tells it; what it leaves out comes from the table."""
    tree = info.capabilities or {}
    modes = _supported(tree, "thinking", "types")
    listed = CapabilityConfig(
        context_length=info.max_input_tokens or 0,
        max_output_tokens=info.max_tokens or 0,
        can_chat=True,
        can_embed=False,
        can_stream=True,
        can_prompt=True,
        can_think=bool(modes & {"adaptive", "enabled"}),
        can_vision="image_input" in _supported(tree),
    )
    sources = {
        "context_length": info.max_input_tokens,
        "max_output_tokens": info.max_tokens,
        "can_think": "thinking" in tree,
        "can_vision": "image_input" in tree,
    }
    meta = _meta(info, tree, modes)
    known = [name for name, said in sources.items() if said]
    model = observe(info.id, facts_of(info.id), listed, known, modified_at=_date(info.created_at), meta=meta)
    evidence: dict[str, Evidence] = dict.fromkeys(meta, "declared")
    return structs.replace(model, evidence={**model.evidence, **evidence})


def _meta(info: ModelInfo, tree: Mapping[str, Any], modes: set[str]) -> dict[str, str]:
    """What of a listing decides how a request is written, and what people want to see."""
    meta = {"display_name": info.display_name or "", "lifecycle": info.lifecycle or ""}
    meta = {name: value for name, value in meta.items() if value}
    if "thinking" in tree:
        meta["thinking"] = " ".join(sorted(modes & {"adaptive", "enabled"}))
        meta["effort"] = " ".join(sorted(_supported(tree, "effort")))
    if _entries(tree, "thinking", "types").keys() & {"disabled", "between_tools"}:
        meta["thinking_off"] = next((mode for mode in ("disabled", "between_tools") if mode in modes), "never")
    if "structured_outputs" in tree:
        meta["structured_outputs"] = "yes" if "structured_outputs" in _supported(tree) else "no"
    return meta


def _entries(tree: Mapping[str, Any], *path: str) -> Mapping[str, Any]:
    """What is below ``path``; nothing in a tree of another shape."""
    for name in path:
        inner = tree.get(name)
        tree = inner if isinstance(inner, dict) else {}
    return tree


def _supported(tree: Mapping[str, Any], *path: str) -> set[str]:
    """Names below ``path`` whose ``supported`` is true."""
    entries = _entries(tree, *path).items()
    return {name for name, entry in entries if isinstance(entry, dict) and entry.get("supported") is True}


def _date(text: str | None) -> datetime | None:
    """When a model came out; the vendor writes the epoch where it does not know."""
    try:
        date = msgspec.convert(text, datetime)
    except msgspec.ValidationError:
        return None
    return date if date.year > 1970 else None


class Modes(Struct, frozen=True, kw_only=True):
    """How a model thinks: by the listing, else by the table.

    What nobody knows is asked for as the newest models want it, and the vendor says so if it does not fit.
    """

    thinking: tuple[str, ...]
    off: str
    efforts: tuple[str, ...]

    @classmethod
    def of(cls, model: ObservedModel) -> Modes:
        """From ``meta`` as :func:`observed` fills it."""
        facts = facts_of(model.name)
        meta = model.meta
        off = facts.off if facts is not None else "disabled"
        if "thinking_off" in meta:
            off = "" if meta["thinking_off"] == "never" else meta["thinking_off"]
        if "thinking" in meta:
            return cls(thinking=tuple(meta["thinking"].split()), off=off, efforts=tuple(meta.get("effort", "").split()))
        if facts is not None:
            return cls(thinking=facts.thinking, off=off, efforts=facts.efforts)
        return cls(thinking=("adaptive",), off=off, efforts=_ALL)

    @property
    def levels(self) -> tuple[str, ...]:
        """Levels of ours it has."""
        on: tuple[str, ...] = ()
        if "adaptive" in self.thinking:
            on = tuple(level for level in EFFORTS if level in self.efforts)
        elif "enabled" in self.thinking:
            on = tuple(BUDGETS)
        return ("auto", "off", *on) if self.off else ("auto", *on)


class Thinking(Struct, frozen=True, kw_only=True):
    """The fields of a request that thinking decides. ``on``: the request itself turns it on."""

    max_tokens: int
    field: dict[str, Any] | None = None
    effort: str = ""
    on: bool = False


def thinking_of(call: Call) -> Thinking:
    """What ``think`` and ``max_tokens`` become.

    A budget comes out of ``max_tokens``: it is added, up to the model's ceiling, so that the answer keeps its room.

    :raises NotSupportedError: the model has no such level, or no room for its budget.
    """
    level = parse_think(call.config.think)
    ceiling = call.model.capabilities.max_output_tokens
    asked = call.config.max_tokens or ceiling or DEFAULT_MAX_TOKENS
    modes = Modes.of(call.model)
    if level == "auto" or (level == "off" and _never_thinks(call.model)):
        return Thinking(max_tokens=asked)
    if level not in modes.levels:
        raise cannot("think", call, f"has no thinking level {level!r}; it has {', '.join(modes.levels)}")
    if level == "off":
        return Thinking(max_tokens=asked, field={"type": modes.off})
    if "adaptive" in modes.thinking:
        # Without "display" the newest models leave the text of their thinking out.
        field = {"type": "adaptive", "display": "summarized"}
        return Thinking(max_tokens=asked, field=field, effort=level, on=True)
    budget = BUDGETS[level]
    most = min(asked + budget, ceiling or asked + budget)
    if most <= budget:
        raise cannot("think", call, f"thinks with {budget} tokens at {level!r}; its ceiling of {most} has no room left")
    return Thinking(max_tokens=most, field={"type": "enabled", "budget_tokens": budget}, on=True)


def _never_thinks(model: ObservedModel) -> bool:
    return "can_think" in model.evidence and not model.capabilities.can_think


def sampling_of(call: Call, thinking: bool) -> dict[str, float | int]:
    """``temperature``, ``top_p`` and ``top_k`` as the vendor writes them. A ``top_k`` of 0 is off, as it always is.

    :raises NotSupportedError: the model takes none, not both of temperature and top_p, or not this value.
    """
    config = call.config
    given: dict[str, float | int | None] = {
        "temperature": config.temperature,
        "top_p": config.top_p,
        "top_k": config.top_k or None,
    }
    fields = {name: value for name, value in given.items() if value is not None}
    facts = facts_of(call.model.name)
    if fields and facts is not None:
        name = next(iter(fields))
        if not facts.sampling:
            raise cannot(name, call, f"takes no {name}: no Claude model since 4.7 does")
        if len(fields.keys() & {"temperature", "top_p"}) == 2:
            raise cannot("top_p", call, "takes temperature or top_p, not both")
    if fields.get("temperature", 0) > 1:
        raise cannot("temperature", call, f"takes a temperature of at most 1, not {config.temperature}")
    if thinking:
        for name, fine in (("temperature", (1,)), ("top_k", ())):
            if name in fields and fields[name] not in fine:
                raise cannot(name, call, f"takes no {name} while it thinks")
        if fields.get("top_p", 1) < 0.95:
            raise cannot("top_p", call, f"takes a top_p of 0.95 to 1 while it thinks, not {config.top_p}")
    return fields


def cannot(feature: str, call: Call, text: str) -> NotSupportedError:
    """``feature`` is not there for this model."""
    return NotSupportedError(
        f"{call.model.name} of anthropic {text}", feature=feature, backend="anthropic", model=call.model.name
    )
