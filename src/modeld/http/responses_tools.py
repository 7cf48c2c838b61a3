"""The tools of ``POST /v1/responses``: functions, and functions in namespaces.

Models and other vendors know no namespaces. Each function of one is offered under a flat name, and a call of it is told
by its own name and its namespace again.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterator, Sequence, Set
from typing import Any, Final, Literal

from msgspec import Struct

from modeld.errors import InvalidRequestError
from modeld.http.bodies import check_depth
from modeld.http.openai_sampling import Strict
from modeld.types import FunctionTool, Tool

MAX_NAME: Final = 64
"""Characters of a flat name: what OpenAI and others take."""

_FOREIGN: Final = re.compile(r"[^A-Za-z0-9_-]")
_DIGEST: Final = 8


class _FunctionFields(Strict, frozen=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    allowed_callers: None = None
    defer_loading: Literal[False] | None = None
    output_schema: None = None


class Function(_FunctionFields, frozen=True, tag="function"):
    """A function of its own."""


class Member(_FunctionFields, frozen=True, kw_only=True):
    """A function in a namespace."""

    # Not as the tag: outside of a union msgspec takes an object without one.
    type: Literal["function"]


class Namespace(Strict, frozen=True, tag="namespace"):
    """Functions under one name, such as those of an MCP server."""

    name: str
    description: str
    tools: list[Member]


class _Entry(Struct, frozen=True):
    """A function and what it is offered as. :param place: in the body."""

    flat: str
    function: Function | Member
    place: str
    namespace: Namespace | None = None


class OfferedTools:
    """The functions of one request, under names that are unique.

    A flat name is the namespace's, ``__`` and the function's own. Where that is longer than :data:`MAX_NAME`, has
    characters that no name may have, or is another function's, it ends with a digest of both.

    :raises InvalidRequestError: a namespace has two functions of one name.
    """

    def __init__(self, tools: Sequence[Function | Namespace]) -> None:
        plain = {tool.name for tool in tools if isinstance(tool, Function)}
        self._entries: list[_Entry] = []
        self._members: dict[str, _Entry] = {}
        self._flat: dict[tuple[str, str], str] = {}
        for index, tool in enumerate(tools):
            place = f"tools[{index}]"
            if isinstance(tool, Function):
                self._entries.append(_Entry(tool.name, tool, place))
                continue
            for at, member in enumerate(tool.tools):
                self._add(tool, member, f"{place}.tools[{at}]", plain)

    @property
    def names(self) -> set[str]:
        """All flat names."""
        return {entry.flat for entry in self._entries}

    def flat(self, name: str, namespace: str | None) -> str:
        """What a function is offered as; also of one that is not offered any more."""
        if namespace is None:
            return name
        return self._flat.get((namespace, name)) or _flattened(namespace, name)

    def own(self, flat: str) -> dict[str, str]:
        """``name`` and, where it is in one, ``namespace`` of the function that was offered as ``flat``."""
        entry = self._members.get(flat)
        if entry is None or entry.namespace is None:
            return {"name": flat}
        return {"name": entry.function.name, "namespace": entry.namespace.name}

    def chosen(self, name: str) -> str:
        """The flat name of the function that ``tool_choice`` calls ``name``: it has no place for a namespace.

        :raises InvalidRequestError: several namespaces have one of that name.
        """
        known = [flat for (_, own), flat in self._flat.items() if own == name]
        if name in self.names or not known:
            return name
        if len(known) > 1:
            text = f"tool_choice: {name!r} is in several namespaces: name one of {', '.join(known)}"
            raise InvalidRequestError(text, parameter="tool_choice")
        return known[0]

    def _add(self, namespace: Namespace, member: Member, place: str, plain: Set[str]) -> None:
        key, taken = (namespace.name, member.name), plain | self._members.keys()
        flat = _flattened(*key)
        if flat in taken:
            flat = _flattened(*key, always=True)
        if key in self._flat or flat in taken:
            text = f"{place}.name: {member.name[:60]!r} stands twice in the namespace {namespace.name[:60]!r}"
            raise InvalidRequestError(text, parameter=f"{place}.name")
        entry = _Entry(flat, member, place, namespace)
        self._entries.append(entry)
        self._members[flat], self._flat[key] = entry, flat

    def tools(self, only: Collection[str] | None = None) -> Iterator[Tool]:
        """What the model is shown. The first function of each namespace tells what that says of itself.

        :param only: flat names; ``None``: all. :raises Refusal: parameters are nested too deeply.
        """
        told: set[str] = set()
        for entry in self._entries:
            function, namespace = entry.function, entry.namespace
            check_depth(function.parameters, f"{entry.place}.parameters")
            if only is not None and entry.flat not in only:
                continue
            about = function.description or ""
            if namespace is not None and namespace.description and namespace.name not in told:
                told.add(namespace.name)
                about = f"{about}\n\nAbout all tools of {namespace.name}: {namespace.description}".lstrip()
            yield Tool(FunctionTool(entry.flat, about, function.parameters or {}, function.strict))


def echoed(tool: Function | Namespace) -> dict[str, Any]:
    """What the answer repeats of ``tool``."""
    if isinstance(tool, Namespace):
        told = {"type": "namespace", "name": tool.name, "description": tool.description}
        return told | {"tools": [_function_echoed(member) for member in tool.tools]}
    return _function_echoed(tool)


def _function_echoed(tool: Function | Member) -> dict[str, Any]:
    told = {"type": "function", "name": tool.name, "description": tool.description}
    return told | {"parameters": tool.parameters, "strict": tool.strict}


def _flattened(namespace: str, name: str, *, always: bool = False) -> str:
    """:param always: with a digest."""
    joined = f"{namespace}{'' if namespace.endswith('__') else '__'}{name}"
    clean = _FOREIGN.sub("_", joined)
    if clean == joined and len(clean) <= MAX_NAME and not always:
        return clean
    digest = hashlib.sha256(f"{namespace}\0{name}".encode("utf-8", "surrogatepass")).hexdigest()[:_DIGEST]
    return f"{clean[: MAX_NAME - _DIGEST - 1]}_{digest}"
