"""What is known of Ollama's models: from ``/api/show`` and the vendor's pages; and what follows from it."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from msgspec import Struct, structs

from modeld.errors import NotSupportedError
from modeld.providers.facts import Facts, find_facts, observe
from modeld.repository.values import CapabilityConfig, Evidence, ObservedModel
from modeld.repository.wire import Call
from modeld.thinking import LEVELS, parse_think

THINKING: Final = "https://docs.ollama.com/capabilities/thinking"
EMBEDDINGS: Final = "https://docs.ollama.com/capabilities/embeddings"
EMBEDDING_BLOG: Final = "https://ollama.com/blog/embedding-models"
CHECKED: Final = "2026-11-22"


class OllamaFacts(Facts, frozen=True, kw_only=True):
    """:param levels: words that ``think`` takes where it is not on or off. Servers since 0.34.3 say so themselves."""

    levels: tuple[str, ...] = ()


def _embedder(match: str, source: str) -> OllamaFacts:
    return OllamaFacts(match=match, source=source, checked=CHECKED, can_chat=False, can_embed=True)


FACTS: Final = (
    OllamaFacts(match="gpt-oss*", source=THINKING, checked=CHECKED, can_think=True, levels=("low", "medium", "high")),
    _embedder("embeddinggemma*", EMBEDDINGS),
    _embedder("qwen3-embedding*", EMBEDDINGS),
    _embedder("all-minilm*", EMBEDDINGS),
    _embedder("nomic-embed-text*", EMBEDDING_BLOG),
    _embedder("mxbai-embed-large*", EMBEDDING_BLOG),
)


class Tag(Struct, frozen=True):
    """An entry of ``/api/tags``."""

    name: str = ""
    model: str = ""
    modified_at: datetime | None = None
    size: int | None = None
    digest: str | None = None


class Tags(Struct, frozen=True):
    """The answer of ``/api/tags``: all models; there are no pages."""

    models: tuple[Tag, ...] | None = None


class Thinking(Struct, frozen=True):
    """What ``think`` takes: booleans, words, or both."""

    values: list[Any] | None = None


class Shown(Struct, frozen=True):
    """The answer of ``/api/show``. ``capabilities`` came with server 0.6.4, ``thinking`` with 0.34.3."""

    capabilities: list[str] | None = None
    model_info: dict[str, Any] | None = None
    parameters: str | None = None
    thinking: Thinking | None = None

    @property
    def context_length(self) -> int:
        """What the model was trained for, 0 unknown. A picture encoder has a context of its own, under another name."""
        info = self.model_info or {}
        length = info.get(f"{info.get('general.architecture')}.context_length")
        return length if isinstance(length, int) and length > 0 else 0

    @property
    def num_ctx(self) -> int:
        """The window that the model's own Modelfile asks for, 0 none."""
        found = re.search(r"^num_ctx\s+(\d+)\s*$", self.parameters or "", re.MULTILINE)
        return int(found[1]) if found else 0


class Card(Struct, frozen=True):
    """What a call needs to know of its model.

    :param context_length: tokens of its largest window, 0 unknown. :param least: its Modelfile's window, 0 none.
    :param capabilities: as the server names them; ``None``: it does not say.
    :param levels: our levels of thinking and the value of ``think`` for each.
    """

    context_length: int
    least: int
    capabilities: frozenset[str] | None
    levels: Mapping[str, bool | str]

    def has(self, capability: str) -> bool:
        """False where the server says no; where it does not say, it will refuse the call itself."""
        return self.capabilities is None or capability in self.capabilities


def make_card(name: str, shown: Shown) -> Card:
    """What ``shown`` says, then what our table says."""
    capabilities = frozenset(shown.capabilities) if shown.capabilities else None
    facts = find_facts(FACTS, name)
    levels: dict[str, bool | str] = {}
    if capabilities is None or "thinking" in capabilities:
        if shown.thinking is not None and shown.thinking.values:
            levels = _levels(shown.thinking.values)
        elif facts is not None and facts.levels:
            levels = {level: level for level in facts.levels}
        else:
            levels = {"off": False, "high": True}
    return Card(shown.context_length, shown.num_ctx, capabilities, levels)


def _levels(values: list[Any]) -> dict[str, bool | str]:
    """The server takes a word it does not know for the model's default, in silence: only listed ones are sent."""
    levels: dict[str, bool | str] = {"off": False} if any(value is False for value in values) else {}
    levels |= {level: level for level in LEVELS if level not in ("auto", "off") and level in values}
    if "max" in values:
        levels.setdefault("xhigh", "max")
    if any(value is True for value in values) and levels.keys() <= {"off"}:
        levels["high"] = True
    return levels


def think_value(call: Call, card: Card) -> bool | str | None:
    """What to send as ``think``; ``None``: nothing.

    :raises NotSupportedError: the model does not have the level; the error lists those it has.
    """
    level = parse_think(call.config.think)
    if level == "auto" or (level == "off" and not card.levels):
        return None
    if level in card.levels:
        return card.levels[level]
    has = f"it has {', '.join(card.levels)}" if card.levels else "it does not think"
    raise unsupported("think", call.model.name, f"no thinking level {level!r}; {has} ({THINKING})")


def unsupported(feature: str, model: str, why: str) -> NotSupportedError:
    """A value that the vendor or this model cannot take."""
    return NotSupportedError(f"{model} of ollama has {why}", feature=feature, backend="ollama", model=model)


def observed(tag: Tag, shown: Shown | None) -> ObservedModel:
    """A model of the listing; ``shown`` is ``None`` where the server could not tell more of it."""
    name = tag.model or tag.name
    shown = shown or Shown()
    has = frozenset(shown.capabilities or ())
    declared = CapabilityConfig(
        context_length=shown.context_length,
        max_output_tokens=0,
        can_chat="completion" in has,
        can_stream="completion" in has,
        can_prompt="completion" in has,
        can_embed="embedding" in has,
        can_think="thinking" in has,
        can_vision="vision" in has,
    )
    known = ["can_chat", "can_embed", "can_think", "can_vision"] if has else []
    if declared.context_length:
        known.append("context_length")
    meta = {"display_name": tag.name or name}
    if has:
        meta["capabilities"] = " ".join(sorted(has))
    model = observe(
        name,
        find_facts(FACTS, name),
        declared,
        known,
        modified_at=tag.modified_at,
        size=tag.size or 0,
        digest=tag.digest or "",
        meta=meta,
    )
    evidence: dict[str, Evidence] = {**model.evidence, **dict.fromkeys(meta, "declared")}
    return structs.replace(model, evidence=evidence)


LEAST: Final = 4096
ROOM: Final = 4096
"""Tokens kept free for an answer that has no ``max_tokens``."""


class Windows:
    """The window (``num_ctx``) to ask for, of each model of one server.

    The server's own choice depends on its memory, 4096 tokens on most machines, whatever the model can. A change of
    ``num_ctx`` loads the model anew, which takes seconds: so a window is a power of two and only grows. Threads may
    share it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sizes: dict[str, int] = {}

    def fit(self, name: str, needed: int, card: Card) -> int:
        """Tokens to ask for so that ``needed`` fit, as far as the model goes."""
        with self._lock:
            size = max(LEAST, card.least, self._sizes.get(name, 0), 1 << max(0, needed - 1).bit_length())
            if card.context_length:
                size = min(size, card.context_length)
            self._sizes[name] = size
            return size
