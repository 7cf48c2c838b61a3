"""Hazard: text that spells a special token, arguments that come late, a format that is slow or undocumented."""

import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.chat.call_grammar import is_held
from modeld.chat.output.formats import CALL_FORMATS, HARMONY, THINK_TAGS
from modeld.chat.output.reader import Finder
from modeld.chat.parser import OutputParser, Syntax, make_parser
from modeld.chat.stops import SpecialBytes, StopMatcher
from modeld.types import (
    ErrorPart,
    FunctionTool,
    StreamPart,
    TextPart,
    ThinkingPart,
    Tool,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
)

DOCS = Path(__file__).parents[2] / "docs" / "output-formats.md"
HERMES = "<think> <tool_call>"
CITY = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
TOOL = Tool(FunctionTool("f", "", CITY))


def fed(parser: OutputParser, *pieces: str) -> list[list[StreamPart]]:
    return [*(parser.feed(piece.encode()) for piece in pieces), parser.finish()]


def test_arguments_are_told_as_they_are_written() -> None:
    parser = make_parser(HERMES, tools=[TOOL], prompt_tail="")
    pieces = [
        '<tool_call>\n{"name": "f',
        '", "arguments": ',
        '{"ci',
        'ty": "Os',
        "lo\\",
        'n"',
        "}",
        "}\n",
        "</tool_call>",
    ]
    assert fed(parser, *pieces) == [
        [],
        [],
        [ToolCallStart(0, "call_1", "f"), ToolCallDelta(0, '{"ci')],
        [ToolCallDelta(0, 'ty": "Os')],
        [ToolCallDelta(0, "lo")],
        [ToolCallDelta(0, '\\n"')],
        [ToolCallDelta(0, "}")],
        [],
        [ToolCallEnd(0)],
        [],
    ]


def test_values_between_tags_are_told_as_json_while_they_are_written() -> None:
    parser = make_parser("<function=", tools=[TOOL], prompt_tail="")
    pieces = ["<tool_call>\n<function=f>\n", "<parameter=city>\n", 'O"s', "lo\n", "</para",
        "meter>\n<parameter=days>\n", "4", "2\n</parameter>", "\n</function>\n</tool_call>"]  # fmt: skip
    assert fed(parser, *pieces) == [
        [ToolCallStart(0, "call_1", "f"), ToolCallDelta(0, "{")],
        [ToolCallDelta(0, '"city": "')],
        [ToolCallDelta(0, 'O\\"s')],
        [ToolCallDelta(0, "lo")],
        [],
        [ToolCallDelta(0, '", "days": ')],
        [],
        [ToolCallDelta(0, "42")],
        [ToolCallDelta(0, "}"), ToolCallEnd(0)],
        [],
    ]


def test_what_was_told_of_a_malformed_call_is_taken_back_by_its_index() -> None:
    raw = '<tool_call>{"name": "f", "arguments": {"a": 1,}}</tool_call>'
    first, *_ = fed(make_parser(HERMES, tools=True, prompt_tail=""), raw)
    assert first[:2] == [ToolCallStart(0, "call_1", "f"), ToolCallDelta(0, '{"a": 1,')]
    assert first[2] == TextPart(raw)
    error = first[3]
    assert isinstance(error, ErrorPart)
    assert (error.code, error.raw, error.call) == ("malformed_tool_call", raw, 0)


def test_a_special_token_is_not_its_text() -> None:
    special = {"<think>", "</think>", "<tool_call>", "</tool_call>"}
    parser = OutputParser(Syntax(HERMES, special.__contains__), tools=True, prompt_tail="")
    assert parser.feed(b"<think>") == [TextPart("<think>")]
    assert parser.feed(b"<think>", special=True) == []
    assert parser.feed(b"</think>x") == [ThinkingPart("</think>x")]
    assert parser.feed(b"</think>", special=True) == []
    # Another special token, and half a character that it follows, are text.
    assert parser.feed(b"a\xf0\x9f") == [TextPart("a")]
    assert parser.feed(b"<|x|>", special=True) == [TextPart("\ufffd<|x|>")]
    body = b'{"name": "f", "arguments": {"a": "</tool_call>'
    assert parser.feed(b"<tool_call>", special=True) == []
    assert parser.feed(body)[1:] == [ToolCallDelta(0, '{"a": "</tool_call>')]
    # In a string it is what it looks like.
    assert parser.feed(b"</tool_call>", special=True) == [ToolCallDelta(0, "</tool_call>")]
    assert parser.feed(b'"}}') == [ToolCallDelta(0, '"}')]
    assert parser.feed(b"</tool_call>", special=True) == [ToolCallEnd(0)]


def test_a_prompt_may_leave_any_thinking_open() -> None:
    for opening, closing in THINK_TAGS:
        for special in (None, {opening, closing}.__contains__):
            parser = make_parser(closing, tools=False, prompt_tail=f"assistant{opening}\n\n", special=special)
            assert parser.in_thinking
            assert parser.feed(b"a ") == [ThinkingPart("a")]
            assert parser.feed(closing.encode(), special is not None) == []
            assert not parser.in_thinking
            assert parser.feed(b"\nb") == [TextPart("b")]


def test_calls_of_channels_are_text_when_no_tools_were_offered() -> None:
    answer = "<|channel|>commentary to=functions.f<|message|>{}<|call|>"
    [parts, rest] = fed(make_parser("<|channel|>", tools=[], prompt_tail="<|start|>assistant"), answer)
    assert "".join(part.text for part in parts + rest if isinstance(part, TextPart)) == answer
    assert all(isinstance(part, TextPart) for part in parts + rest)


MIXED = st.lists(st.tuples(st.text("ab<>", max_size=4), st.booleans()), max_size=12)


@given(MIXED, st.lists(st.text("ab<>", min_size=1, max_size=3), max_size=3))
def test_stop_strings_cut_no_special_token_in_two(tokens: list[tuple[str, bool]], stops: list[str]) -> None:
    matcher, special = StopMatcher(stops), SpecialBytes()
    out: list[tuple[bytes, bool]] = []
    at = 0
    for text, is_special in tokens:
        data = text.encode()
        if is_special and data:
            special.add(at, at + len(data))
        at += len(data)
        out += special.pieces(matcher.feed(data)[0])
    out += special.pieces(matcher.finish(), last=True)
    assert len(b"".join(data for data, _ in out)) == matcher.passed
    whole = "".join(text for text, _ in tokens).encode()[: matcher.passed]
    assert b"".join(data for data, _ in out) == whole
    expected = [text.encode() for text, is_special in tokens if is_special and text]
    told = [data for data, is_special in out if is_special]
    assert told == expected[: len(told)]
    ends = [sum(len(text) for text, _ in tokens[: n + 1]) for n, (text, s) in enumerate(tokens) if s and text]
    assert len(told) == sum(end <= matcher.passed for end in ends)


SLOW = [
    ("<tool_call>", '<tool_call>{"name": "f", "arguments": [', "1"),
    ("<tool_call>", '<tool_call>{"name": "f", "arguments": [', '"a", '),
    ("<tool_call>", '<tool_call>{"arguments": "', "a"),
    ("<tool_call>", "<tool_call>\n", " "),
    ("<tool_call>", '<tool_call>\n{"name": 7 "', "\\n"),
    ("<function=", "<tool_call><function=f><parameter=days>", "12"),
    ("<function=", "<tool_call><function=f><parameter=city>", "\n<"),
    ("<function=", "<function=", "f"),
    ("<arg_key>", "<tool_call>f<arg_key>", "<"),
    ("[TOOL_CALLS]", '[TOOL_CALLS][{"name": "f", "arguments": "', "x"),
    ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>", "f"),
    ("func_name1(params_name1=", "[f(city='", "a"),
    ("func_name1(params_name1=", "", "\n"),
    ("<|python_tag|>", '{"name": "', "f"),
    ("<|channel|>", "<|channel|>analysis<|message|>", "a <"),
    ("<|channel|>", "<|channel|>", "a"),
    ("<|channel|>", "", "<|channel|>"),
    ("<think>", "<think>a", " \n"),
    ("```tool_code", "```tool_code\nf(", "``"),
]


@pytest.mark.parametrize(("template", "start", "token"), SLOW)
def test_no_format_takes_longer_for_each_token_that_came(template: str, start: str, token: str) -> None:
    syntax = Syntax(template)

    def seconds(count: int) -> float:
        subject = OutputParser(syntax, tools=[TOOL], prompt_tail="")
        subject.feed(start.encode())
        begin = time.thread_time()
        for _ in range(count):
            subject.feed(token.encode())
        subject.finish()
        return time.thread_time() - begin

    assert min(seconds(10_000) for _ in range(3)) < 25 * min(seconds(1_000) for _ in range(3))


def test_every_format_is_documented_and_no_marker_hides_another() -> None:
    text = DOCS.read_text().replace("\\|", "|")
    for call_format in (*CALL_FORMATS, HARMONY):
        (row,) = (line for line in text.splitlines() if line.startswith(f"| `{call_format.name}` |"))
        assert row.endswith("| yes |" if is_held(call_format) else "| no |"), row
        assert all(sign in text for sign in call_format.signs), call_format.name
    assert all(start in text for start, _ in THINK_TAGS)
    everything = Syntax(" ".join([*(s for c in CALL_FORMATS for s in c.signs), *HARMONY.signs, *sum(THINK_TAGS, ())]))
    words = everything.with_calls.finder.words
    assert Finder(words).words == words
    for word in words:
        inside = [other for other in words if other != word and other in word and not word.endswith(other)]
        assert not inside, (word, inside)
