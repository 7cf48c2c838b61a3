"""The part of JSON Schema that an answer can be held to; ``docs/structured-output.md`` lists it.

A schema is read before anything is generated, and written anew in a few plain forms: what the matcher gets holds no
keyword that was not looked at. Whatever fits the written form fits the schema; not the other way round, see
:func:`check_schema`.
"""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn
from urllib.parse import unquote

from modeld.chat.number_limits import narrowest
from modeld.chat.patterns import read_pattern
from modeld.chat.schema_graph import circular, distinct, endless, is_a
from modeld.errors import InvalidRequestError, NotSupportedError

MAX_BYTES: Final = 64 << 10
"""Characters of all names and texts in a schema at most."""
MAX_PARTS: Final = 2000
"""Schemas in a schema, and values beside them, at most: 4,000 took the matcher half a second."""
MAX_DEPTH: Final = 32
MAX_PROPERTIES: Final = 256
"""Of one object: at 2,000 optional ones the matcher gave up."""
MAX_BRANCHES: Final = 100
MAX_COUNT: Final = 10_000
"""Largest length or number of items that can be asked for."""
MAX_NUMBER: Final = 2**53
MAX_MULTIPLE: Final = 1000

KINDS: Final = ("null", "boolean", "object", "array", "number", "string")
FORMATS: Final = ("date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uri", "uuid")
NOTES: Final = (
    "title",
    "description",
    "default",
    "examples",
    "$comment",
    "deprecated",
    "readOnly",
    "writeOnly",
)
"""Keywords that say nothing of what fits."""
ALONE: Final = ("$ref", "anyOf", "oneOf", "allOf", "const", "enum")
"""Keywords beside which only notes may stand, and ``type`` beside the last two."""
LIMITS: Final = {
    "object": ("properties", "required", "additionalProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}
_ROOT: Final = ("$schema", "$id", "$defs", "definitions")
_KNOWN: Final = frozenset((*NOTES, *ALONE, "type", *(key for keys in LIMITS.values() for key in keys)))

Schema = dict[str, Any]


def check_schema(schema: object, parameter: str = "response_format") -> Schema:
    """``schema`` as the matcher gets it.

    An object that names ``properties`` and says nothing of others is written as if it said
    ``additionalProperties: false``: no others are made up.

    :param parameter: what to call it in errors. Each error has the JSON pointer to the keyword: ``pointer``.
    :raises NotSupportedError: a keyword is outside of the subset.
    :raises InvalidRequestError: it is no schema, too large, or nothing can fit it.
    """
    return _Reader(schema, parameter).read()


class _Reader:
    def __init__(self, root: object, parameter: str) -> None:
        self._root = root
        self._parameter = parameter
        self._bytes = self._parts = 0
        # Of each place that a $ref names: its number, and the schema there once it was read.
        self._numbers: dict[str, int] = {}
        self._waiting: list[str] = []
        self._defs: list[Schema] = []
        self._one_of: list[tuple[list[Schema], str]] = []

    def read(self) -> Schema:
        top = self._schema(self._root, "", 0)
        # Not by recursion: a chain of references may be long.
        while self._waiting:
            place = self._waiting.pop(0)
            self._defs.append(self._schema(self._find(place), place.removeprefix("#"), 0))
        self._check_graph()
        defs = {str(number): schema for number, schema in enumerate(self._defs)}
        return {**top, "$defs": defs} if defs else top

    # Errors

    def _where(self, at: str, why: str) -> str:
        return f"{self._parameter}: at {at or 'the root'} of the schema: {why}"

    def _unsupported(self, at: str, why: str) -> NoReturn:
        raise NotSupportedError(self._where(at, why), feature="json_schema", parameter=self._parameter, pointer=at)

    def _invalid(self, at: str, why: str) -> NoReturn:
        raise InvalidRequestError(self._where(at, why), parameter=self._parameter, pointer=at)

    def _check_graph(self) -> None:
        places = [place.removeprefix("#") for place in self._numbers]
        if (number := endless(self._defs)) is not None:
            self._invalid(places[number], "nothing fits: it needs itself inside of itself")
        if (number := circular(self._defs)) is not None:
            self._invalid(places[number], "it refers to itself with nothing in between")
        for branches, at in self._one_of:
            for index, one in enumerate(branches):
                if not all(distinct(one, other, self._defs) for other in branches[:index]):
                    self._unsupported(
                        _into(at, index),
                        "oneOf is taken where type, const or a required property of theirs tells its schemas apart; "
                        "write anyOf",
                    )

    # Bounds

    def _spend(self, at: str, text: object = "") -> None:
        if not isinstance(text, str):
            self._invalid(at, f"a name is text, not {type(text).__name__}")
        self._parts += 1
        self._bytes += len(text)
        if self._parts > MAX_PARTS or self._bytes > MAX_BYTES:
            self._invalid(at, f"it is too large: {MAX_PARTS} parts and {MAX_BYTES} characters may be")

    def _json(self, value: object, at: str, depth: int = 0) -> object:
        """A plain value, for ``const`` and ``enum``."""
        if depth > MAX_DEPTH:
            self._invalid(at, f"values lie deeper in each other than {MAX_DEPTH}")
        self._spend(at, value if isinstance(value, str) else "")
        match value:
            case str():
                self._text(value, at)
            case dict():
                for key, item in value.items():
                    self._json(key, at, depth + 1)
                    self._json(item, _into(at, key), depth + 1)
            case list() | tuple():
                for index, item in enumerate(value):
                    self._json(item, _into(at, index), depth + 1)
            case None | bool():
                pass
            case int() | float():
                self._number(value, at)
            case _:
                self._invalid(at, f"{type(value).__name__} is no JSON")
        return value

    def _text(self, text: str, at: str) -> None:
        # The matcher leaves such characters out without a word.
        if any((c < " " and c not in "\b\t\n\f\r") or c == "\x7f" or 0xD800 <= ord(c) < 0xE000 for c in text):
            self._unsupported(at, f"{text[:40]!r} holds a control character or half of one")

    def _number(self, value: object, at: str) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            self._invalid(at, f"a number is wanted, not {type(value).__name__}")
        # So written, it is true of NaN as well; and a whole number may be too long to be written at all.
        if not abs(value) <= MAX_NUMBER:
            self._invalid(at, "a number is between -2**53 and 2**53")
        return value

    def _count(self, schema: Schema, key: str, at: str, default: int | None) -> int | None:
        value = schema.get(key, default)
        if value is not None and (type(value) is not int or not 0 <= value <= MAX_COUNT):
            self._invalid(_into(at, key), f"{key} is a whole number from 0 to {MAX_COUNT}, not {_short(value)}")
        return value

    def _counts(self, schema: Schema, low: str, high: str, at: str) -> Schema:
        least, most = self._count(schema, low, at, 0), self._count(schema, high, at, None)
        assert least is not None
        if most is not None and least > most:
            self._invalid(_into(at, low), f"nothing fits: {low} {least} is more than {high} {most}")
        return {low: least} | ({} if most is None else {high: most})

    # Schemas

    def _schema(self, schema: object, at: str, depth: int) -> Schema:
        self._spend(at)
        if depth > MAX_DEPTH:
            self._invalid(at, f"schemas lie deeper in each other than {MAX_DEPTH}")
        if schema is True:
            return {}
        if schema is False:
            self._unsupported(at, "nothing fits false; leave the property out")
        if not isinstance(schema, dict):
            self._invalid(at, f"a schema is an object, not {type(schema).__name__}")
        rest = self._keywords(schema, at)
        if alone := next((key for key in ALONE if key in rest), None):
            rest -= {alone} | ({"type"} if alone in ("const", "enum") else set())
            for key in schema:
                if key in rest:
                    self._unsupported(_into(at, key), f"{key} cannot stand beside {alone}")
            return self._alone(schema, alone, at, depth)
        if not rest:
            return {}
        kinds = self._types(schema, at)
        written = [self._of_kind(schema, kind, at, depth) for kind in kinds]
        return written[0] if len(written) == 1 else {"anyOf": written}

    def _keywords(self, schema: Schema, at: str) -> set[str]:
        """Those that say something."""
        ignored = (*NOTES, *_ROOT) if at == "" else NOTES
        found = set()
        for key in schema:
            self._spend(at, key)
            if key in ignored:
                continue
            if key not in _KNOWN:
                self._unsupported(_into(at, key), f"the keyword {key} is not supported")
            found.add(key)
        return found

    def _types(self, schema: Schema, at: str) -> list[str]:
        said = schema.get("type", KINDS)
        kinds = (said,) if isinstance(said, str) else said
        known = (*KINDS, "integer")
        if not isinstance(kinds, list | tuple) or not kinds or any(kind not in known for kind in kinds):
            self._invalid(_into(at, "type"), f"type is one or several of {', '.join(known)}, not {_short(said)}")
        return [kind for kind in dict.fromkeys(kinds) if kind != "integer" or "number" not in kinds]

    def _of_kind(self, schema: Schema, kind: str, at: str, depth: int) -> Schema:
        match kind:
            case "object":
                return self._object(schema, at, depth)
            case "array":
                return self._array(schema, at, depth)
            case "string":
                return self._string(schema, at)
            case "number" | "integer":
                return self._numeric(schema, kind, at)
        return {"type": kind}

    def _alone(self, schema: Schema, key: str, at: str, depth: int) -> Schema:
        value, at_key = schema[key], _into(at, key)
        if key == "$ref":
            return {"$ref": f"#/$defs/{self._number_of(value, at_key)}"}
        if key in ("const", "enum"):
            return self._enum([value] if key == "const" else value, schema, at_key, at)
        if not isinstance(value, list | tuple) or not value:
            self._invalid(at_key, f"{key} is a list of schemas, with one at least")
        if len(value) > MAX_BRANCHES:
            self._invalid(at_key, f"{len(value)} schemas; {MAX_BRANCHES} may be")
        if key == "allOf" and len(value) > 1:
            self._unsupported(at_key, "allOf is taken with one schema only")
        branches = [self._schema(item, _into(at_key, index), depth + 1) for index, item in enumerate(value)]
        if key == "oneOf":
            self._one_of.append((branches, at_key))
        return branches[0] if len(branches) == 1 else {"anyOf": branches}

    def _enum(self, values: object, schema: Schema, at: str, above: str) -> Schema:
        if not isinstance(values, list | tuple) or not values:
            self._invalid(at, "enum is a list of values, with one at least")
        kinds = self._types(schema, above) if "type" in schema else None
        taken: dict[str, object] = {}
        for index, value in enumerate(values):
            self._json(value, _into(at, index))
            if kinds is None or any(is_a(value, kind) for kind in kinds):
                taken.setdefault(json.dumps(value, sort_keys=True), value)
        if not taken:
            self._invalid(at, f"nothing fits: none of the values is of type {_short(schema['type'])}")
        return {"enum": list(taken.values())}

    # Kinds

    def _object(self, schema: Schema, at: str, depth: int) -> Schema:
        declared, required = schema.get("properties", {}), schema.get("required", [])
        if not isinstance(declared, dict):
            self._invalid(_into(at, "properties"), "properties is an object of schemas")
        at_required = _into(at, "required")
        if not isinstance(required, list | tuple) or not all(isinstance(name, str) for name in required):
            self._invalid(at_required, "required is a list of names")
        if len({*declared, *required}) > MAX_PROPERTIES:
            self._invalid(_into(at, "properties"), f"{len(declared)} properties; {MAX_PROPERTIES} may be")
        others = schema.get("additionalProperties", "properties" not in schema)
        inside = _into(at, "properties")
        made = {name: self._schema(item, _into(inside, name), depth + 1) for name, item in declared.items()}
        rest = others if others is False else self._schema(others, _into(at, "additionalProperties"), depth + 1)
        for name in required:
            if name not in made:
                if schema.get("additionalProperties") is False:
                    self._invalid(at_required, f"nothing fits: {name} is required and not among the properties")
                made[name] = {} if rest is False else rest
        for name in made:
            self._spend(inside, name)
            self._text(name, inside)
        needed = list(dict.fromkeys(required))
        return {"type": "object", "properties": made, "required": needed, "additionalProperties": rest}

    def _array(self, schema: Schema, at: str, depth: int) -> Schema:
        prefix, items = schema.get("prefixItems", []), schema.get("items", True)
        at_prefix = _into(at, "prefixItems")
        if not isinstance(prefix, list | tuple):
            self._invalid(at_prefix, "prefixItems is a list of schemas")
        if isinstance(items, list | tuple):
            self._unsupported(_into(at, "items"), "items is one schema; a list of them is prefixItems")
        first = [self._schema(item, _into(at_prefix, index), depth + 1) for index, item in enumerate(prefix)]
        counts = self._counts(schema, "minItems", "maxItems", at)
        rest = items if items is False else self._schema(items, _into(at, "items"), depth + 1)
        if rest is False and counts["minItems"] > len(first):
            self._invalid(_into(at, "minItems"), f"nothing fits: there are {len(first)} items at most")
        return {"type": "array", "prefixItems": first, "items": rest, **counts}

    def _string(self, schema: Schema, at: str) -> Schema:
        made: Schema = {"type": "string", **self._counts(schema, "minLength", "maxLength", at)}
        if "format" in schema:
            wanted, at_format = schema["format"], _into(at, "format")
            if wanted not in FORMATS:
                self._unsupported(at_format, f"format is one of {', '.join(FORMATS)}, not {_short(wanted)}")
            if beside := [key for key in ("pattern", "minLength", "maxLength") if key in schema]:
                self._unsupported(at_format, f"format cannot stand beside {beside[0]}")
            return {"type": "string", "format": wanted}
        if "pattern" in schema:
            made["pattern"] = self._pattern(schema["pattern"], _into(at, "pattern"))
        return made

    def _pattern(self, pattern: object, at: str) -> str:
        if not isinstance(pattern, str):
            self._invalid(at, "pattern is a regular expression")
        self._spend(at, pattern)
        try:
            return read_pattern(pattern).search
        except NotSupportedError as error:
            self._unsupported(at, error.message)
        except InvalidRequestError as error:
            self._invalid(at, error.message)

    def _numeric(self, schema: Schema, kind: str, at: str) -> Schema:
        numbers = {key: self._number(schema[key], _into(at, key)) for key in LIMITS["number"] if key in schema}
        step = numbers.pop("multipleOf", None)
        if step is not None and (step != int(step) or not 1 <= step <= MAX_MULTIPLE):
            text = f"multipleOf is a whole number from 1 to {MAX_MULTIPLE}, not {step!r}"
            self._unsupported(_into(at, "multipleOf"), text)
        low, high = narrowest(numbers, whole=kind == "integer")
        limits = low | high
        if low and high:
            (low_key, least), (high_key, most) = *low.items(), *high.items()
            if least > most or (least == most and (low_key, high_key) != ("minimum", "maximum")):
                key = next(key for key in LIMITS["number"] if key in schema)
                self._invalid(_into(at, key), f"nothing fits: from {least!r} to {most!r} there is no number")
            if step and kind == "integer" and -(-least // step) * step > most:
                self._invalid(_into(at, "multipleOf"), f"nothing fits: no multiple of {step!r} is in between")
        return {"type": kind, **limits} | ({} if step is None else {"multipleOf": int(step)})

    # References

    def _number_of(self, ref: object, at: str) -> int:
        if not isinstance(ref, str):
            self._invalid(at, "$ref is text")
        self._spend(at, ref)
        if not ref.startswith("#"):
            self._unsupported(at, f"{ref[:80]!r} is elsewhere: only references inside the schema are followed")
        if ref not in self._numbers:
            if ref != "#" and not ref.startswith(("#/$defs/", "#/definitions/")):
                self._unsupported(at, f"{ref[:80]!r} is not #, #/$defs/NAME or #/definitions/NAME")
            if self._find(ref) is None:
                self._invalid(at, f"{ref[:80]!r} is not in the schema")
            self._numbers[ref] = len(self._numbers)
            self._waiting.append(ref)
        return self._numbers[ref]

    def _find(self, ref: str) -> object:
        """What lies there; ``None``: nothing."""
        found: Any = self._root
        for step in unquote(ref).split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            found = found.get(name) if isinstance(found, dict) else None
        return found


def _into(at: str, step: object) -> str:
    return f"{at}/{str(step).replace('~', '~0').replace('/', '~1')}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
