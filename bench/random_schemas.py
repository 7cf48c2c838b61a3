"""Random JSON schemas of the subset that answers can be held to."""

from __future__ import annotations

import random
from typing import Any

Schema = dict[str, Any]

PATTERNS = (
    "^[a-z]{2,5}$",
    "^\\d{3}-\\d{2}$",
    "^(?:on|off)$",
    "^[A-F0-9]{4}$",
    "^\\w+@\\w+\\.(?:org|net)$",
    "b[aeiou]",
    "^.{0,6}$",
)
FORMATS = ("date", "ipv4", "ipv6", "uuid", "date-time")
WORDS = ("red", "green", 'a "quoted" word', "back\\slash", "\N{SNOWMAN}", "two\nlines", "", "slash/")
NAMES = ("name", "age", "size", "tags", 'odd "name"', "schön", "a/b~c")


class Maker:
    """Makes one schema from a seed; sizes are small, so that an answer is short."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._defs: dict[str, Schema] = {}

    def make(self) -> Schema:
        """A schema with its definitions."""
        top = self._object(0) if self._random.random() < 0.7 else self._any(0)
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", **top, "$defs": self._defs}

    def _any(self, depth: int) -> Schema:
        leaves = [self._string, self._number, self._constant, self._plain]
        inner = [self._object, self._array, self._either, self._ref] if depth < 3 else []
        made = self._random.choice([*leaves, *inner])(depth)
        return made | ({"description": "a note"} if self._random.random() < 0.2 else {})

    def _plain(self, _: int) -> Schema:
        return {"type": self._random.choice(["null", "boolean", ["boolean", "null"], ["integer", "null"]])}

    def _string(self, _: int) -> Schema:
        choice = self._random.random()
        if choice < 0.3:
            return {"type": "string", "pattern": self._random.choice(PATTERNS)}
        if choice < 0.5:
            return {"type": "string", "format": self._random.choice(FORMATS)}
        least = self._random.randint(0, 3)
        return {"type": "string", "minLength": least, "maxLength": least + self._random.randint(0, 9)}

    def _number(self, _: int) -> Schema:
        low = self._random.randint(-50, 50)
        limits: Schema = {"minimum": low, "maximum": low + self._random.randint(7, 900)}
        if self._random.random() < 0.3:
            limits = {"exclusiveMinimum": low, "exclusiveMaximum": low + 20}
        kind = self._random.choice(["integer", "integer", "number"])
        if kind == "integer" and self._random.random() < 0.3:
            limits["multipleOf"] = self._random.randint(1, 7)
        return {"type": kind, **limits}

    def _constant(self, _: int) -> Schema:
        values = [*WORDS, 7, -2.5, None, True, ["x", 1], {"k": "v"}]
        if self._random.random() < 0.3:
            return {"const": self._random.choice(values)}
        return {"enum": self._random.sample(values, self._random.randint(1, 4))}

    def _object(self, depth: int) -> Schema:
        names = self._random.sample(NAMES, self._random.randint(0, 4))
        properties = {name: self._any(depth + 1) for name in names}
        made: Schema = {"type": "object", "properties": properties}
        made["required"] = [name for name in names if self._random.random() < 0.6]
        if self._random.random() < 0.3:
            made["additionalProperties"] = False
        elif self._random.random() < 0.2:
            made["additionalProperties"] = self._any(3)
        return made

    def _array(self, depth: int) -> Schema:
        made: Schema = {"type": "array", "items": self._any(depth + 1), "maxItems": self._random.randint(1, 3)}
        if self._random.random() < 0.4:
            made["minItems"] = 1
        if self._random.random() < 0.2:
            made["prefixItems"] = [self._any(depth + 1)]
        return made

    def _either(self, depth: int) -> Schema:
        if self._random.random() < 0.3:
            tag = {"type": "object", "required": ["kind"]}
            return {"oneOf": [{**tag, "properties": {"kind": {"const": k}, "v": self._any(3)}} for k in ("a", "b")]}
        return {"anyOf": [self._any(depth + 1) for _ in range(self._random.randint(1, 3))]}

    def _ref(self, depth: int) -> Schema:
        name = f"part {len(self._defs)}/~"
        self._defs[name] = {}
        self._defs[name] = self._any(depth + 1)
        return {"$ref": f"#/$defs/{name.replace('~', '~0').replace('/', '~1')}"}
