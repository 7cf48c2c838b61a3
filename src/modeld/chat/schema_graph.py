"""What can be said of schemas that refer to each other, in the plain forms of :mod:`modeld.chat.json_schema`.

A reference is ``{"$ref": "#/$defs/N"}``, the ``N``-th of ``defs``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

Schema = dict[str, Any]

_LOOKS_INSIDE: Final = 4
"""How deep in each other required properties are compared."""


def endless(defs: Sequence[Schema]) -> int | None:
    """One of ``defs`` that nothing finite fits, because it always needs another of itself."""
    fine = [False] * len(defs)
    changed = True
    while changed:
        changed = False
        for number, schema in enumerate(defs):
            if not fine[number] and _ends(schema, fine):
                fine[number] = changed = True
    return fine.index(False) if False in fine else None


def circular(defs: Sequence[Schema]) -> int | None:
    """One of ``defs`` that is defined by itself, with no property or item in between."""
    for start in range(len(defs)):
        seen: set[int] = set()
        waiting = list(_here(defs[start]))
        while waiting:
            number = waiting.pop()
            if number == start:
                return start
            if number not in seen:
                seen.add(number)
                waiting += _here(defs[number])
    return None


def distinct(one: Schema, other: Schema, defs: Sequence[Schema], depth: int = _LOOKS_INSIDE) -> bool:
    """Whether it is easy to see that nothing fits both. None of ``defs`` may be circular."""
    for a, b in ((one, other), (other, one)):
        if "$ref" in a:
            return distinct(defs[_number(a)], b, defs, depth)
        if "anyOf" in a:
            return all(distinct(branch, b, defs, depth) for branch in a["anyOf"])
    if not one or not other or depth == 0:
        return False
    if "enum" in one and "enum" in other:
        return not any(_equal(a, b) for a in one["enum"] for b in other["enum"])
    for a, b in ((one, other), (other, one)):
        if "enum" in a:
            return not any(is_a(value, b["type"]) for value in a["enum"])
    if {one["type"], other["type"]} == {"integer", "number"}:
        return False
    if one["type"] != other["type"]:
        return True
    both = set(one.get("required", ())) & set(other.get("required", ()))
    return any(distinct(one["properties"][name], other["properties"][name], defs, depth - 1) for name in both)


def is_a(value: object, kind: str) -> bool:
    """Whether a JSON value is of a schema's ``type``."""
    match value:
        case None:
            return kind == "null"
        case bool():
            return kind == "boolean"
        case int() | float():
            return kind == "number" or (kind == "integer" and value == int(value))
        case str():
            return kind == "string"
        case dict():
            return kind == "object"
    return kind == "array"


def _equal(one: object, other: object) -> bool:
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def _number(schema: Schema) -> int:
    return int(schema["$ref"].rpartition("/")[2])


def _ends(schema: Schema, fine: Sequence[bool]) -> bool:
    """Whether something finite fits, given which of the definitions are known to."""
    if "$ref" in schema:
        return fine[_number(schema)]
    if "anyOf" in schema:
        return any(_ends(branch, fine) for branch in schema["anyOf"])
    kind = schema.get("type")
    if kind == "object":
        return all(_ends(schema["properties"][name], fine) for name in schema["required"])
    if kind == "array":
        least = schema["minItems"]
        inside = schema["prefixItems"][:least]
        more = [schema["items"]] if least > len(inside) else []
        return all(_ends(item, fine) for item in (*inside, *more))
    return True


def _here(schema: Schema) -> Iterator[int]:
    """The definitions that stand in the very place of ``schema``."""
    if "$ref" in schema:
        yield _number(schema)
    for branch in schema.get("anyOf", ()):
        yield from _here(branch)
