"""What Google's pages say of its models, where the listings do not: Vertex lists names only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from modeld.errors import NotSupportedError
from modeld.providers.facts import Facts, find_facts
from modeld.repository.values import ObservedModel

_THINKING: Final = "https://docs.cloud.google.com/gemini-enterprise-agent-platform/models/thinking"
_BUDGETS: Final = "https://ai.google.dev/gemini-api/docs/openai"
_MODELS: Final = "https://ai.google.dev/gemini-api/docs/models"
_SIGNATURES: Final = "https://ai.google.dev/gemini-api/docs/thought-signatures"
_EMBEDDINGS: Final = "https://cloud.google.com/vertex-ai/generative-ai/docs/embeddings/get-text-embeddings"
_CHECKED: Final = "2026-11-22"

ThinkConfigs = Mapping[str, Mapping[str, Any]]


class GoogleFacts(Facts, frozen=True, kw_only=True):
    """Facts of a Google model.

    :param levels: what ``thinkingConfig`` is for each thinking level the model has; ``None``: unknown.
    :param signed_calls: a function call in the history needs a thought signature, or the request is refused with 400.
    """

    levels: ThinkConfigs | None = None
    signed_calls: bool = True


def _levels(*names: str) -> ThinkConfigs:
    """Gemini 3 and later think by level."""
    return {name: {"thinkingLevel": name.upper(), "includeThoughts": True} for name in names}


def _budgets(off: bool, most: int | None) -> ThinkConfigs:
    """Gemini 2.5 thinks by tokens; the numbers are those of Google's own mapping of efforts."""
    numbers = {"minimal": 1024, "low": 1024, "medium": 8192, "high": 24576} | ({"xhigh": most} if most else {})
    given = {name: {"thinkingBudget": number, "includeThoughts": True} for name, number in numbers.items()}
    return {"off": {"thinkingBudget": 0}, **given} if off else given


def _chat(match: str, levels: ThinkConfigs | None, source: str = _THINKING, signed: bool = True) -> GoogleFacts:
    """A model of text and images, with the window that all since 2.5 have."""
    return GoogleFacts(
        match=match,
        source=source,
        checked=_CHECKED,
        context_length=1_048_576,
        max_output_tokens=65_536,
        can_chat=True,
        can_embed=False,
        can_think=True,
        can_vision=True,
        levels=levels,
        signed_calls=signed,
    )


def _other(match: str, *, embeds: bool = False, source: str = _MODELS, context: int | None = None) -> GoogleFacts:
    """A model that does not chat."""
    return GoogleFacts(
        match=match,
        source=source,
        checked=_CHECKED,
        context_length=context,
        can_chat=False,
        can_embed=embeds,
        can_think=False,
        can_vision=False,
        signed_calls=False,
    )


FACTS: Final = (
    _other("gemini-embedding-*", embeds=True, source=_EMBEDDINGS, context=2048),
    _other("text-embedding-*", embeds=True, source=_EMBEDDINGS, context=2048),
    _other("text-multilingual-embedding-*", embeds=True, source=_EMBEDDINGS, context=2048),
    # It embeds pictures and text together, by a request of its own that is not spoken here.
    _other("multimodalembedding*", source=_EMBEDDINGS),
    _other("*-tts*"),
    _other("*-live-*"),
    _other("*-native-audio*"),
    _other("imagen*"),
    _other("imagegeneration*"),
    _other("veo-*"),
    _other("lyria*"),
    _other("aqa"),
    # Image models think on their own and take no level.
    GoogleFacts(match="gemini-*-image*", source=_SIGNATURES, checked=_CHECKED, can_vision=True, signed_calls=False),
    GoogleFacts(match="gemini-1.*", source=_MODELS, checked=_CHECKED, can_vision=True, signed_calls=False),
    GoogleFacts(match="gemini-2.0-*", source=_MODELS, checked=_CHECKED, can_vision=True, signed_calls=False),
    _chat("gemini-2.5-pro*", _budgets(off=False, most=32_768), _BUDGETS, signed=False),
    _chat("gemini-2.5-flash*", _budgets(off=True, most=None), _BUDGETS, signed=False),
    _chat("gemini-3-pro*", _levels("low", "high")),
    _chat("gemini-3.1-pro*", _levels("low", "medium", "high")),
    _chat("gemini-3.7-flash*", _levels("low", "medium", "high")),
    _chat("gemini-3.8-flash*", _levels("low", "medium", "high")),
    _chat("gemini-3*-flash*", _levels("minimal", "low", "medium", "high")),
    _chat("gemini-4-argon*", _levels("low", "medium", "high")),
    # Whatever comes next: its listing says what it can, and the signature is never wrong.
    GoogleFacts(match="gemini-*", source=_SIGNATURES, checked=_CHECKED),
    GoogleFacts(match="*", source=_SIGNATURES, checked=_CHECKED, signed_calls=False),
)

LEVELS_OF_NEW_MODELS: Final = _levels("minimal", "low", "medium", "high", "xhigh")
"""All that ``thinkingLevel`` can be. What a model that no table knows takes of it, Google says with a 400."""


def google_facts(name: str) -> GoogleFacts:
    """What is known of ``name``; the last row knows nothing."""
    found = find_facts(FACTS, name)
    assert found is not None
    return found


def thinking_config(backend: str, model: ObservedModel, level: str) -> Mapping[str, Any] | None:
    """``thinkingConfig`` for ``level``; ``None`` sends nothing.

    :raises NotSupportedError: the model does not have that level; the message lists those it has.
    """
    unthinking = "can_think" in model.evidence and not model.capabilities.can_think
    if level == "auto" or (level == "off" and unthinking):
        return None
    levels = google_facts(model.name).levels
    if levels is None:
        levels = LEVELS_OF_NEW_MODELS
    if level in levels:
        return levels[level]
    raise NotSupportedError(
        f"{model.name} of {backend} cannot think at {level!r}; it has {', '.join(('auto', *levels))}",
        feature="think",
        backend=backend,
        model=model.name,
        levels=["auto", *levels],
    )
