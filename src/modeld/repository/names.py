"""Names of tools that a vendor accepts, and back."""

from __future__ import annotations

import re
from collections.abc import Sequence

from modeld.types import Tool


class ToolNames:
    """The tools of one request under names a vendor takes: letters, digits, ``_`` and ``-``, up to ``limit`` of them.

    Every other character becomes ``_``; leading and trailing ``_`` and ``-`` go; nothing left is ``tool_INDEX``. Of
    names that become the same the later ones get ``_1``, ``_2``, ... within the limit.

    :param limit: characters; 0: the vendor takes any name, and none is changed.
    """

    def __init__(self, tools: Sequence[Tool], limit: int) -> None:
        self._limit = limit
        self._sent: dict[str, str] = {}
        self._original: dict[str, str] = {}
        for index, tool in enumerate(tools):
            name = tool.function.name
            sent = self._unique(self._clean(name) or f"tool_{index}") if limit else name
            self._sent[name] = sent
            self._original[sent] = name

    def sent(self, name: str) -> str:
        """The name to send for ``name``, which may be of a call in the history whose tool is not offered any more."""
        return self._sent.get(name) or (self._clean(name) if self._limit else name) or "tool"

    def original(self, name: str) -> str:
        """The tool a vendor means; a name it made up stays."""
        return self._original.get(name, name)

    def _clean(self, name: str) -> str:
        return re.sub(r"[^A-Za-z0-9_-]", "_", name).strip("_-")[: self._limit]

    def _unique(self, base: str) -> str:
        name, number = base, 0
        while name in self._original:
            number += 1
            suffix = f"_{number}"
            name = base[: self._limit - len(suffix)] + suffix
        return name
