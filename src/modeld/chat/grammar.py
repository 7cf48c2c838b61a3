"""What an answer is held to, as a grammar for the engine's matcher: its variant of Lark's notation.

Nothing here needs the matcher: a client can check a format before it sends it.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

from msgspec import Struct

from modeld.chat.json_schema import Schema, check_schema
from modeld.chat.patterns import MAX_PATTERN, read_pattern
from modeld.errors import InvalidRequestError, ModeldError, NotSupportedError
from modeld.types import ResponseFormat, Tool

MAX_CHOICES: Final = 1000
MAX_CHOICE_CHARACTERS: Final = 64 << 10
"""Of all choices together."""
MAX_EBNF: Final = 16 << 10
MAX_RULES: Final = 200
"""Of GBNF: 400 that each name the next one twice took the matcher more than a second before it gave up."""
"""Characters of a grammar at most."""

# Forcing would have the matcher choose the tokens of a text that is certain; here the model does.
HEAD: Final = '%llguidance {"no_forcing": true}\n'
"""Begins each grammar."""
# A model that may write any white space can write it for ever.
_WHITE: Final = {"whitespace_pattern": r"\n[ \t]{0,64}| ", "json_allowed_escapes": 'nrbtf\\"'}
_ROOT: Final = re.compile(r"^\s*root\s*::=", re.MULTILINE)
_START: Final = re.compile(r"^start\s*:", re.MULTILINE)


class Grammar(Struct, frozen=True):
    """Rules of the answer, of which ``answer`` is the first.

    :param gbnf: the rules are GBNF, with ``root``; the matcher's package rewrites them.
    """

    rules: str
    gbnf: bool = False


def check_format(wanted: ResponseFormat) -> Grammar:
    """The rules for ``wanted``.

    :raises NotSupportedError: something in it is outside of what is supported; ``pointer`` says what, in a schema.
    :raises InvalidRequestError: it makes no sense, is too large, or nothing fits it.
    """
    match wanted.kind:
        case "json_schema":
            return Grammar(f"answer: {json_rule(check_schema(wanted.schema))}\n")
        case "json_object":
            return Grammar(f"answer: {json_rule({'type': 'object'})}\n")
        case "regex":
            return Grammar(f"answer: /{_regex(wanted.regex)}/\n")
        case "choice":
            return Grammar(f"answer: {' | '.join(map(text_atom, _choices(wanted.choice)))}\n")
    return Grammar(_ebnf(wanted.ebnf), gbnf=True)


def check_tool(tool: Tool) -> Schema:
    """The schema of a tool's arguments: an object always.

    :raises NotSupportedError: as :func:`check_format`; ``pointer`` leads into the tool's ``parameters``.
    """
    parameters = tool.function.parameters
    if parameters.get("type", "object") != "object":
        text = f"the arguments of {tool.function.name} are an object, not {parameters['type']!r:.60}"
        raise InvalidRequestError(text, parameter="tools", pointer="/type")
    alone = {"$ref", "anyOf", "oneOf", "allOf"} & parameters.keys()
    whole = parameters if alone else {**parameters, "type": "object"}
    return check_schema(whole, f"tool {tool.function.name}")


def from_gbnf(converted: str) -> str:
    """Rules of :class:`Grammar` from what the matcher's package made of GBNF."""
    body = converted.replace("%llguidance {}", "", 1)
    return _START.sub("answer:", body, count=1) + "\n"


def text_atom(text: str) -> str:
    """A literal of the grammar.

    :raises NotSupportedError: a control character, which the matcher would leave out.
    """
    if any((c < " " and c not in "\t\n\r") or c == "\x7f" or 0xD800 <= ord(c) < 0xE000 for c in text):
        raise NotSupportedError(f"{text[:40]!r} holds a control character or half of one", feature="response_format")
    return json.dumps(text, ensure_ascii=False)


def json_rule(schema: Schema) -> str:
    """JSON that fits a schema, as the body of a rule."""
    options: dict[str, Any] = {"x-guidance": _WHITE}
    return f"%json {json.dumps(schema | options, ensure_ascii=False)}"


def _regex(pattern: str) -> str:
    try:
        return read_pattern(pattern).body
    except ModeldError as error:
        raise type(error)(
            f"response_format.regex: {error.message}", feature="regex", parameter="response_format", limit=MAX_PATTERN
        ) from None


def _choices(choices: tuple[str, ...]) -> tuple[str, ...]:
    size = sum(map(len, choices))
    if not all(choices) or len(choices) > MAX_CHOICES or size > MAX_CHOICE_CHARACTERS:
        text = (
            f"a choice is 1 to {MAX_CHOICES} texts of {MAX_CHOICE_CHARACTERS} characters together, none of them empty, "
            f"not {len(choices)} of {size}"
        )
        raise InvalidRequestError(text, parameter="response_format")
    return choices


def _ebnf(text: str) -> str:
    rules = text.count("::=")
    if len(text) > MAX_EBNF or rules > MAX_RULES or not _ROOT.search(text):
        text = (
            f"a grammar is up to {MAX_EBNF} characters and {MAX_RULES} rules of GBNF with one root ::= ..., not "
            f"{len(text)} and {rules} that begin {text[:40]!r}"
        )
        raise InvalidRequestError(text, parameter="response_format")
    return text
