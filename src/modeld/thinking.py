"""How much a model may think: one scale for every backend.

``auto`` leaves the choice to the model's template or vendor; the other levels are ordered.
"""

from __future__ import annotations

import reprlib
from typing import Final, Literal, cast, get_args

from modeld.errors import InvalidRequestError

ThinkLevel = Literal["auto", "off", "minimal", "low", "medium", "high", "xhigh"]

LEVELS: tuple[str, ...] = get_args(ThinkLevel)

BUDGETS: Final[dict[ThinkLevel, int]] = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 16384, "xhigh": 24576}
"""Tokens of thinking, where Anthropic's wire wants a number for a level; 1024 is the vendor's least. It has no names
for them."""

_ALIASES: dict[str, ThinkLevel] = {
    "": "auto",
    "default": "auto",
    "false": "off",
    "none": "off",
    "no": "off",
    "0": "off",
    "disable": "off",
    "disabled": "off",
    "true": "high",
    "on": "high",
    "yes": "high",
    "1": "high",
}


def parse_think(value: str | bool | None) -> ThinkLevel:
    """The level that ``value`` names: a level, an alias such as ``on``, or a boolean.

    :raises InvalidRequestError: for anything else; nothing is guessed.
    """
    if value is None:
        return "auto"
    text = str(value).strip().lower()
    if text in LEVELS:
        return cast(ThinkLevel, text)
    if text in _ALIASES:
        return _ALIASES[text]
    told = reprlib.repr(value)
    raise InvalidRequestError(f"unknown thinking level {told}: use one of {', '.join(LEVELS)}", parameter="think")


def level_of_budget(tokens: int) -> ThinkLevel:
    """The highest level whose :data:`BUDGETS` is within ``tokens``, and the lowest of them where none is."""
    return next((level for level, budget in reversed(BUDGETS.items()) if budget <= tokens), "minimal")
