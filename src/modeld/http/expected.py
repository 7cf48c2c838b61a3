"""What a field of a body may be, for whoever wrote something else there. Asked only when a request is refused."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec
from msgspec import inspect

MOST: Final = 12
"""Values that are named. A longer list explains nothing."""

_LONGEST: Final = 64
"""Characters of a name that is compared: the comparison is quadratic."""
_STEP: Final = re.compile(r"\.?([^.\[\]]+)|\[[^\]]*\]")


def values_at(body: Any, place: str) -> tuple[str, ...]:
    """What may stand at ``place`` of a ``body``, as JSON has it; empty where that is no short list."""
    found: dict[str, None] = {}
    for type in _types_at(body, place):
        if isinstance(type, inspect.StructType | inspect.ListType):
            continue  # An object or a list was not what stood there.
        if not isinstance(type, inspect.LiteralType):
            return ()
        found |= dict.fromkeys(msgspec.json.encode(value).decode().replace('"', "'") for value in type.values)
    return tuple(found) if len(found) <= MOST else ()


def field_like(body: Any, place: str, name: str) -> str:
    """The field of what stands at ``place`` whose name is most like ``name``; ``""`` for none that may be given."""
    if len(name) > _LONGEST:
        return ""
    known = (
        field.encode_name
        for type in _types_at(body, place)
        if isinstance(type, inspect.StructType)
        for field in type.fields
        if not isinstance(field.type, inspect.NoneType)
    )
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=0.7)), "")


def _types_at(body: Any, place: str) -> list[inspect.Type]:
    """The types of what msgspec calls ``place``; null, which stands for absent, is none of them."""
    found = list(_members([inspect.type_info(body)]))
    for step in _STEP.finditer(place):
        found = list(_members(_below(found, step[1])))
    return found


def _members(types: Iterable[inspect.Type]) -> Iterator[inspect.Type]:
    for type in types:
        if isinstance(type, inspect.Metadata):
            yield from _members([type.type])
        elif isinstance(type, inspect.UnionType):
            yield from _members(type.types)
        elif not isinstance(type, inspect.NoneType):
            yield type


def _below(types: Iterable[inspect.Type], name: str | None) -> Iterator[inspect.Type]:
    """Of the field of that name, or of the items of what is a list or a mapping."""
    for type in types:
        if name is None and isinstance(type, inspect.ListType | inspect.VarTupleType):
            yield type.item_type
        elif name is None and isinstance(type, inspect.DictType):
            yield type.value_type
        elif name is not None and isinstance(type, inspect.StructType):
            if type.tag_field == name and type.tag is not None:
                yield inspect.LiteralType((type.tag,))
            yield from (field.type for field in type.fields if field.encode_name == name)
