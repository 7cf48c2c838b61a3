"""The limits of a number in a JSON schema: the fewest that say the same."""

from __future__ import annotations

import math
from collections.abc import Callable

Limits = dict[str, float]
"""Of ``minimum``, ``maximum``, ``exclusiveMinimum`` and ``exclusiveMaximum``."""


def narrowest(numbers: Limits, *, whole: bool) -> tuple[Limits, Limits]:
    """The one limit that counts below, and the one above; empty where there is none.

    :param whole: of whole numbers: the limits are whole and inclusive.
    """
    if whole:
        numbers = _whole(numbers)
    return _tighter(numbers, "inimum", max), _tighter(numbers, "aximum", min)


def _whole(numbers: Limits) -> Limits:
    """The limits of a number as those of a whole one."""
    rules: dict[str, tuple[str, Callable[[float], int]]] = {
        "minimum": ("minimum", math.ceil),
        "exclusiveMinimum": ("minimum", lambda value: math.floor(value) + 1),
        "maximum": ("maximum", math.floor),
        "exclusiveMaximum": ("maximum", lambda value: math.ceil(value) - 1),
    }
    made: Limits = {}
    for key, value in numbers.items():
        name, rounded = rules[key]
        choose = max if name == "minimum" else min
        made[name] = choose(rounded(value), made.get(name, rounded(value)))
    return made


def _tighter(numbers: Limits, end: str, choose: Callable[[float, float], float]) -> Limits:
    """Of two limits on one side the one that counts."""
    inclusive, exclusive = numbers.get(f"m{end}"), numbers.get(f"exclusiveM{end}")
    if inclusive is None or exclusive is None:
        return {key: value for key, value in numbers.items() if key.endswith(end)}
    return {f"exclusiveM{end}": exclusive} if choose(inclusive, exclusive) == exclusive else {f"m{end}": inclusive}
