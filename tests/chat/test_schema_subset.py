"""Hazards of a schema: a keyword that is dropped, a pointer that leads nowhere, and schemas made to hurt."""

from __future__ import annotations

import json
import re
import time
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.chat.grammar import check_format, check_tool
from modeld.chat.json_schema import check_schema
from modeld.chat.patterns import read_pattern
from modeld.errors import InvalidRequestError, NotSupportedError
from modeld.types import FunctionTool, ResponseFormat, Tool

STRING: dict[str, Any] = {"type": "string"}


def nested(depth: int) -> dict[str, Any]:
    schema = STRING
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}, "required": ["a"]}
    return schema


def wide(depth: int) -> dict[str, Any]:
    return {"anyOf": [wide(depth - 1)] * 9} if depth else STRING


def looped() -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "array"}
    schema["items"] = schema
    return schema


OUTSIDE: dict[str, tuple[object, str]] = {
    "not": ({"properties": {"a": {"not": {}}}}, "/properties/a/not"),
    "if": ({"if": {}}, "/if"),
    "patternProperties": ({"patternProperties": {"^a": {}}}, "/patternProperties"),
    "uniqueItems": ({"type": "array", "uniqueItems": True}, "/uniqueItems"),
    "minProperties": ({"type": "object", "minProperties": 1}, "/minProperties"),
    "format": ({"anyOf": [STRING, {"type": "string", "format": "regex"}]}, "/anyOf/1/format"),
    "escaped": ({"properties": {"a/b~": {"x-guidance": {}}}}, "/properties/a~1b~0/x-guidance"),
    "remote": ({"items": {"$ref": "https://example.com/s.json"}}, "/items/$ref"),
    "anchor": ({"$ref": "#name"}, "/$ref"),
    "beside": ({"$ref": "#", "minLength": 3}, "/minLength"),
    "allOf": ({"allOf": [{}, {}]}, "/allOf"),
    "oneOf": ({"oneOf": [STRING, {"type": "string", "maxLength": 3}]}, "/oneOf/1"),
    "lookahead": ({"type": "string", "pattern": "^(?=a)"}, "/pattern"),
    "backreference": ({"type": "string", "pattern": r"(a)\1"}, "/pattern"),
    "anchor inside": ({"type": "string", "pattern": "a^b"}, "/pattern"),
    "fraction": ({"type": "number", "multipleOf": 0.1}, "/multipleOf"),
    "items list": ({"type": "array", "items": [{}]}, "/items"),
    "control": ({"const": "a\x00b"}, "/const/0"),
    "nested $defs": ({"items": {"$defs": {}}}, "/items/$defs"),
    "in a definition": ({"$ref": "#/$defs/a", "$defs": {"a": {"contains": {}}}}, "/$defs/a/contains"),
}
SENSELESS: dict[str, tuple[object, str]] = {
    "no schema": ([], ""),
    "no name": ({1: 2}, ""),
    "NaN": ({"type": "number", "minimum": float("nan")}, "/minimum"),
    "infinite": ({"enum": [1, float("inf")]}, "/enum/1"),
    "set": ({"const": {1, 2}}, "/const/0"),
    "huge number": ({"type": "integer", "maximum": 10**9000}, "/maximum"),
    "type": ({"type": "text"}, "/type"),
    "types": ({"type": []}, "/type"),
    "empty enum": ({"enum": []}, "/enum"),
    "enum of another type": ({"type": "string", "enum": [1, 2]}, "/enum"),
    "minimum above maximum": ({"type": "integer", "minimum": 5, "maximum": 3}, "/minimum"),
    "no whole number": ({"type": "integer", "minimum": 1.2, "maximum": 1.8}, "/minimum"),
    "no multiple": ({"type": "integer", "minimum": 5, "maximum": 6, "multipleOf": 7}, "/multipleOf"),
    "minItems above maxItems": ({"type": "array", "minItems": 3, "maxItems": 2}, "/minItems"),
    "minLength above maxLength": ({"type": "string", "minLength": 3, "maxLength": 2}, "/minLength"),
    "no items left": ({"type": "array", "items": False, "minItems": 1}, "/minItems"),
    "required and closed": ({"type": "object", "required": ["a"], "additionalProperties": False}, "/required"),
    "huge maxLength": ({"type": "string", "maxLength": 10**9}, "/maxLength"),
    "huge minItems": ({"type": "array", "minItems": 10**9}, "/minItems"),
    "refers to itself": ({"$ref": "#"}, ""),
    "a cycle": ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "/$defs/a"),
    "a cycle with a way out": ({"anyOf": [{"$ref": "#"}, STRING]}, ""),
    "needs itself": ({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}, ""),
    "refers to nothing": ({"$ref": "#/$defs/a"}, "/$ref"),
    "deep": (nested(200), "/properties/a" * 33),
    "deeper than Python": (nested(5000), "/properties/a" * 33),
    "holds itself": (looped(), "/items" * 33),
    "wide": (wide(6), None),
    "huge enum": ({"enum": [f"value {n}" for n in range(100_000)]}, None),
    "huge text": ({"const": "x" * 10**7}, "/const/0"),
    "many properties": ({"type": "object", "properties": {str(n): {} for n in range(10**5)}}, "/properties"),
    "long expression": ({"type": "string", "pattern": "a" * 10**6}, "/pattern"),
    "deep groups": ({"type": "string", "pattern": "(" * 900 + ")" * 900}, "/pattern"),
    "huge repeat": ({"type": "string", "pattern": "a{1,100000}"}, "/pattern"),
    "a bad range": ({"type": "string", "pattern": "[z-a]"}, "/pattern"),
    "half a character": ({"type": "string", "pattern": "\ud800"}, "/pattern"),
}


@pytest.mark.parametrize(("schema", "pointer"), OUTSIDE.values(), ids=OUTSIDE)
def test_what_is_outside_is_refused_with_the_place(schema: object, pointer: str) -> None:
    with pytest.raises(NotSupportedError) as caught:
        check_schema(schema)
    assert caught.value.details["pointer"] == pointer
    assert (pointer or "root") in caught.value.message


@pytest.mark.parametrize(("schema", "pointer"), SENSELESS.values(), ids=SENSELESS)
def test_what_makes_no_sense_is_refused_in_no_time(schema: object, pointer: str | None) -> None:
    tracemalloc.start()
    began = time.perf_counter()
    with pytest.raises(InvalidRequestError) as caught:
        check_schema(schema)
    took, (_, peak) = time.perf_counter() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert took < 1
    assert peak < 8 << 20
    assert pointer in (None, caught.value.details["pointer"])
    assert len(caught.value.message) < 1000


def test_notes_are_left_out_and_all_else_is_kept() -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "a",
        "type": ["object", "null"],
        "properties": {"n": {"type": "integer", "minimum": 1.5, "exclusiveMinimum": 1, "default": 3}},
        "required": ["n", "other"],
    }
    assert check_schema(schema) == {
        "anyOf": [
            {
                "type": "object",
                "properties": {"n": {"type": "integer", "minimum": 2}, "other": {}},
                "required": ["n", "other"],
                "additionalProperties": False,
            },
            {"type": "null"},
        ]
    }


def test_a_long_chain_of_references_is_read() -> None:
    defs: dict[str, Any] = {str(n): {"type": "array", "items": {"$ref": f"#/$defs/{n + 1}"}} for n in range(300)}
    written = check_schema({"$ref": "#/$defs/0", "$defs": {**defs, "300": STRING}})
    assert len(written["$defs"]) == 301


def test_tools_take_objects_and_the_schema_of_their_arguments_is_read() -> None:
    def tool(**parameters: Any) -> Tool:
        return Tool(FunctionTool("f", "", parameters))

    assert check_tool(tool())["additionalProperties"] == {}
    assert check_tool(tool(properties={}))["additionalProperties"] is False
    with pytest.raises(InvalidRequestError, match="object"):
        check_tool(tool(type="string"))
    with pytest.raises(NotSupportedError, match="tool f") as caught:
        check_tool(tool(properties={"a": {"not": {}}}))
    assert caught.value.details["pointer"] == "/properties/a/not"


@pytest.mark.parametrize(
    "wanted",
    [
        ResponseFormat(regex="(?=a)"),
        ResponseFormat(regex="(" * 50),
        ResponseFormat(choice=("a", "")),
        ResponseFormat(choice=tuple(map(str, range(10**5)))),
        ResponseFormat(choice=("a\x00",)),
        ResponseFormat(ebnf="start: 'a'"),
        ResponseFormat(ebnf='root ::= "a"' + " " * 10**6),
    ],
)
def test_formats_of_text_are_bounded_too(wanted: ResponseFormat) -> None:
    with pytest.raises((InvalidRequestError, NotSupportedError)):
        check_format(wanted)


def test_a_format_is_one_thing() -> None:
    with pytest.raises(InvalidRequestError, match="regex and choice"):
        ResponseFormat(regex="a", choice=("a",))


@given(st.text(st.sampled_from("ab01(|)[]^$*+?.{},-\\dwsDWSnxu/&~ é"), max_size=12))
def test_expressions_are_read_or_refused_and_never_crash(pattern: str) -> None:
    try:
        read = read_pattern(pattern)
    except (InvalidRequestError, NotSupportedError):
        return
    # Nothing that Rust reads otherwise is left bare.
    assert not re.search(r"(?<!\\)(&&|~~|\(\?[^:])", read.body)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5), lambda inner: st.lists(inner)
    )
)
def test_any_value_is_a_constant_or_refused(value: object) -> None:
    try:
        written = check_schema({"const": value})
    except (InvalidRequestError, NotSupportedError):
        return
    assert json.loads(json.dumps(written)) == {"enum": [value]}
