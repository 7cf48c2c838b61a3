"""Formats made to hurt, and a process of bounded memory that makes grammars of them: ``python hostile_formats.py``."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any

from modeld.chat.call_grammar import whole_answer
from modeld.chat.grammar import check_format, from_gbnf
from modeld.engine.fake.lexicon import END, FakeLexicon
from modeld.engine.words import Words, lark_from_gbnf
from modeld.errors import ModeldError
from modeld.types import ResponseFormat

ROOM = 512 << 20
"""Bytes of address space that it may take beyond what it has when it begins."""
TOKENS = 60


def chain(count: int, body: str) -> str:
    """GBNF rules that each name the next one."""
    rules = "\n".join(f"r{n} ::= {body.format(n + 1)}" for n in range(count))
    return f'root ::= r0\n{rules}\nr{count} ::= "a"'


def either(depth: int) -> dict[str, Any]:
    """Branches in branches, all alike."""
    return {"anyOf": [either(depth - 1)] * 9} if depth else {"type": "string", "pattern": "^.*a.{0,9}$"}


def nested(count: int, inner: dict[str, Any]) -> dict[str, Any]:
    """Long lists of long lists."""
    return nested(count - 1, {"type": "array", "items": inner, "minItems": 10_000}) if count else inner


REPEATS = "((((a{1,1000}){1,1000}){1,1000}b){1,1000})"
RANGES = [{"type": "number", "minimum": n - 2**53, "maximum": 2**53 - 7 * n, "multipleOf": 1000 - n} for n in range(99)]
HOSTILE: dict[str, ResponseFormat] = {
    "repeats of repeats": ResponseFormat(regex=REPEATS),
    "repeats in a schema": ResponseFormat(schema={"type": "string", "pattern": f"^{REPEATS}$"}),
    "many ways": ResponseFormat(regex="(a|aa|aaa|aaaa|aaaaa|b){1,1000}c"),
    "exponential when read": ResponseFormat(regex="(a|b)*a(a|b){900}"),
    "optional, then not": ResponseFormat(regex="(a?){1000}a{1000}"),
    "far back": ResponseFormat(regex="(.*a.{30}){5}"),
    "many choices": ResponseFormat(choice=tuple(f"{n:03d}{'x' * 60}" for n in range(1000))),
    "doubled": ResponseFormat(ebnf=chain(28, "r{0} r{0}")),
    "doubled often": ResponseFormat(ebnf=chain(190, "r{0} r{0}")),
    "doubled too often": ResponseFormat(ebnf=chain(600, "r{0} r{0}")),
    "doubled in branches": ResponseFormat(ebnf=chain(190, 'r{0} "b" r{0} | r{0} "c"')),
    "ambiguous": ResponseFormat(ebnf='root ::= s\ns ::= s s | "a" | ""'),
    "begins with itself": ResponseFormat(ebnf='root ::= root "a" | "a"'),
    "never ends": ResponseFormat(ebnf='root ::= "a" root'),
    "repeats in GBNF": ResponseFormat(ebnf='root ::= ("a" ("b" | "c" ("d"){0,1000}){0,1000}){0,1000}'),
    "length against pattern": ResponseFormat(
        schema={"type": "string", "pattern": "^(ab)*$", "minLength": 9999, "maxLength": 9999}
    ),
    "long lists": ResponseFormat(schema=nested(9, {"type": "integer"})),
    "branches of branches": ResponseFormat(schema=either(3)),
    "ranges": ResponseFormat(schema={"anyOf": RANGES}),
    "endless in itself": ResponseFormat(
        schema={
            "$ref": "#/$defs/a",
            "$defs": {
                "a": {
                    "anyOf": [
                        {"type": "array", "items": {"$ref": "#/$defs/a"}},
                        {"type": "object", "additionalProperties": {"$ref": "#/$defs/a"}},
                    ]
                }
            },
        }
    ),
}


def attempt(words: Words, wanted: ResponseFormat) -> dict[str, Any]:
    """What became of it: the error, and the seconds until there was a matcher and for the longest of its tokens."""
    began, longest = time.process_time(), 0.0
    try:
        checked = check_format(wanted)
        rules = from_gbnf(lark_from_gbnf(checked.rules)) if checked.gbnf else checked.rules
        matcher = words.matcher(whole_answer(rules))
    except ModeldError as error:
        return {"error": error.code, "text": error.message, "seconds": time.process_time() - began, "token": 0}
    made = time.process_time() - began
    for _ in range(TOKENS):
        began = time.process_time()
        mask = int.from_bytes(matcher.compute_bitmask(), "little")
        longest = max(longest, time.process_time() - began)
        token = (mask & -mask).bit_length() - 1
        if matcher.is_error() or token in (-1, ord(END)) or not matcher.consume_token(token):
            break
    return {"error": "", "text": matcher.get_error()[:200], "seconds": made, "token": longest}


def main() -> None:
    """Try all."""
    words = Words(FakeLexicon())
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + ROOM
    resource.setrlimit(resource.RLIMIT_AS, (size, size))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, wanted in HOSTILE.items():
        row = attempt(words, wanted)
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        print(json.dumps({"name": name, **row, "grown": grown}), flush=True)


if __name__ == "__main__":
    main()
