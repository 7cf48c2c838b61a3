"""Packages whose public names are imported when they are first used (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

Place = tuple[str, str]
"""Module, and the name in it; ``""`` is the module itself."""


def lazy_names(package: str, places: Mapping[str, Place]) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of ``package``. A name that was used once is found without them."""
    namespace = vars(sys.modules[package])

    def __getattr__(name: str) -> Any:
        place = places.get(name)
        if place is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(place[0])
        value = namespace[name] = getattr(module, place[1]) if place[1] else module
        return value

    def __dir__() -> list[str]:
        return sorted({*namespace, *places})

    return __getattr__, __dir__
