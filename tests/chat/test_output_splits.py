"""However the bytes of an answer are cut, the parts are the same and nothing is lost."""

import re
import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.chat.parser import OutputParser, make_parser
from modeld.types import (
    EndPart,
    ErrorPart,
    PartsJoiner,
    Receipt,
    StreamPart,
    TextPart,
    ThinkingPart,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Usage,
)

TEMPLATE = "{{ '<think>\\n' }} ... {{ '<tool_call>\\n' }}"
OSLO = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
ROME = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
CALL_OSLO = ("call", 0, "call_1", "get_weather", '{"city": "Oslo"}')
CALL_ROME = ("call", 1, "call_2", "get_weather", '{"city": "Rome"}')


def text(value: str) -> tuple[str, str]:
    return ("text", value)


def thinking(value: str) -> tuple[str, str]:
    return ("thinking", value)


def bad(raw: str, before: str = "") -> list[tuple[str, ...]]:
    return [text(before + raw), ("error", "malformed_tool_call", raw)]


PLAIN = [
    "",
    "Hello!",
    " leading and trailing \n\n",
    "1 2 3\n4 5 6\r\n7\t8",
    "naïve café über Straße",
    "你好，世界。これはテスト。",
    "emoji 👩‍👩‍👧 🇳🇴 👍🏽 done",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 \u200b\ufeff\u2028 ends",
    "a < b and b > c, x<y",
    "<",
    "<t",
    "ends with <th",
    "ends with \n<tool_cal",
    "<tool_cal>not a tag</tool_cal>",
    "<thinking>not the tag</thinking>",
    "<<think",
    "</think> without an opening",
    "</tool_call>",
    "```python\nif a <b:\n    print('<div>')\n```",
    "the tag `<think>` opens it, `</think>` ends it",
    "write \"<tool_call>\" and '<think>'",
    "a `<tool_call>\n{` in code",
    "the <tool_call> tag begins a call",
    "<tool_call> <tool_calls>",
    "\n\n\n",
    "\r\n<\r\n",
    '{"name": "get_weather", "arguments": {}}',
    "<|im_start|>assistant",
]

# (answer, the prompt left thinking open, joined parts)
CASES: list[tuple[str, bool, list[tuple[object, ...]]]] = [
    *((answer, False, [text(answer)] if answer else []) for answer in PLAIN),
    ("Short.\n</think>\n\nThe answer.", True, [thinking("Short."), text("The answer.")]),
    ("\n</think>\n\nThe answer.\n", True, [text("The answer.\n")]),
    ("never closed \n", True, [thinking("never closed \n")]),
    ("unfinished </think", True, [thinking("unfinished </think")]),
    ("a </thin b < c\n\n d</think>e", True, [thinking("a </thin b < c\n\n d"), text("e")]),
    ("<think> again </think>", True, [thinking("<think> again")]),
    ("x</think>\n", True, [thinking("x")]),
    (f"let me\n{OSLO}\n</think>\n\nno", True, [thinking(f"let me\n{OSLO}"), text("no")]),
    (f"Look it up.\n</think>\n\n{OSLO}", True, [thinking("Look it up."), CALL_OSLO]),
    ("<think>\nhm\n</think>\n\nyes", False, [thinking("hm"), text("yes")]),
    ("<think>\r\nhm\r\n</think>\r\n\r\nyes\r\n", False, [thinking("hm"), text("yes\r\n")]),
    ("<think></think>yes", False, [text("yes")]),
    ("<think>", False, []),
    ("one<think>two</think>three<think>four", False, [text("one"), thinking("two"), text("three"), thinking("four")]),
    ("<think>a</think>\n<think>b</think>\n c", False, [thinking("ab"), text("c")]),
    ("<think>日本\n\n語</think>答え", False, [thinking("日本\n\n語"), text("答え")]),
    (OSLO, False, [CALL_OSLO]),
    (f"{OSLO}\n{ROME}", False, [CALL_OSLO, CALL_ROME]),
    (f"{OSLO}{ROME}\n", False, [CALL_OSLO, CALL_ROME, text("\n")]),
    (f"Sure.\n{OSLO}", False, [text("Sure."), CALL_OSLO]),
    (f"Sure.\n\n{OSLO}\nDone.", False, [text("Sure.\n"), CALL_OSLO, text("\nDone.")]),
    (f"Sure.\r\n{OSLO}", False, [text("Sure.\r"), CALL_OSLO]),
    (f"\n{OSLO}", False, [CALL_OSLO]),
    (f"`x`{OSLO}", False, [text(f"`x`{OSLO}")]),
    (f"<tool_call>{OSLO}", False, [text("<tool_call>"), CALL_OSLO]),
    (
        '<tool_call>{"arguments": { "a" : [1,\t2.50] ,"b":"\\u00e9é👍"},"name":"f"}</tool_call>',
        False,
        [("call", 0, "call_1", "f", '{ "a" : [1,\t2.50] ,"b":"\\u00e9é👍"}')],
    ),
    ('<tool_call>\r\n{"name": "now"}\r\n</tool_call>', False, [("call", 0, "call_1", "now", "{}")]),
    (
        '<tool_call>\n{"name": "say", "arguments": {"t": "a \\"</tool_call>\\" <think> \\\\"}}\n</tool_call>.',
        False,
        [("call", 0, "call_1", "say", '{"t": "a \\"</tool_call>\\" <think> \\\\"}'), text(".")],
    ),
    ("<tool_call>\nnot json\n</tool_call>", False, bad("<tool_call>\nnot json\n</tool_call>")),
    ('a\n<tool_call>\n{"name": 7}\n</tool_call>b', False, [text('a\n<tool_call>\n{"name": 7}\n</tool_call>'),
        ("error", "malformed_tool_call", '<tool_call>\n{"name": 7}\n</tool_call>'), text("b")]),
    ('<tool_call>{"name": ""}</tool_call>', False, bad('<tool_call>{"name": ""}</tool_call>')),
    ('<tool_call>{"arguments": {}}</tool_call>', False, bad('<tool_call>{"arguments": {}}</tool_call>')),
    ('<tool_call>{"name": "f",}</tool_call>', False, bad('<tool_call>{"name": "f",}</tool_call>')),
    ('<tool_call>{"name": "f", "arguments": {"a', False, bad('<tool_call>{"name": "f", "arguments": {"a')),
    ('<tool_call>{"a": "\\', False, bad('<tool_call>{"a": "\\')),
    ("<tool_call>", False, bad("<tool_call>")),
    ("x\n<tool_call>\n", False, bad("<tool_call>\n", before="x\n")),
    (
        f'<tool_call>\n{{"name": "f\n</tool_call>{OSLO}',
        False,
        [*bad('<tool_call>\n{"name": "f\n</tool_call>'), CALL_OSLO],
    ),
    (f'<tool_call>{{"name": {"[" * 5000}</tool_call>', False, bad(f'<tool_call>{{"name": {"[" * 5000}</tool_call>')),
    (f'<tool_call>{{"a": {"[" * 5000}</tool_call>', False, bad(f'<tool_call>{{"a": {"[" * 5000}</tool_call>')),
    ('<tool_call>{"a": "\\ud800"}</tool_call>', False, bad('<tool_call>{"a": "\\ud800"}</tool_call>')),
    ('<tool_call>{"name": "f", "arguments": [1, "x"]}</tool_call>', False, [("call", 0, "call_1", "f", '[1, "x"]')]),
]  # fmt: skip


def parser(opened: bool = False) -> OutputParser:
    return make_parser(TEMPLATE, tools=True, prompt_tail="assistant\n<think>\n" if opened else "assistant\n")


def parse(pieces: list[bytes], opened: bool = False) -> list[StreamPart]:
    subject = parser(opened)
    return [part for piece in pieces for part in subject.feed(piece)] + subject.finish()


def joined(parts: list[StreamPart]) -> list[tuple[object, ...]]:
    """Parts with neighbours of a kind joined, and calls as one."""
    out: list[tuple[object, ...]] = []
    for part in parts:
        match part:
            case TextPart(text=value) | ThinkingPart(text=value):
                assert value
                kind = "text" if isinstance(part, TextPart) else "thinking"
                if out and out[-1][0] == kind:
                    out[-1] = (kind, f"{out[-1][1]}{value}")
                else:
                    out.append((kind, value))
            case ToolCallStart(index=index, id=id_, name=name):
                out.append(("call", index, id_, name, ""))
            case ToolCallDelta(index=index, arguments=value):
                assert out[-1][:2] == ("call", index)
                out[-1] = (*out[-1][:4], f"{out[-1][4]}{value}")
            case ToolCallEnd(index=index):
                assert out[-1][:2] == ("call", index)
            case ErrorPart(code=code, raw=raw, call=taken_back):
                out = [one for one in out if one[:2] != ("call", taken_back)]
                out.append(("error", code, raw))
            case _:
                raise AssertionError(part)
    return out


@pytest.mark.parametrize(("answer", "opened", "expected"), CASES, ids=[repr(c[0])[:40] for c in CASES])
def test_every_cut_in_two_and_every_byte_alone_give_the_expected_parts(
    answer: str, opened: bool, expected: list[tuple[object, ...]]
) -> None:
    data = answer.encode()
    assert joined(parse([data], opened)) == expected
    for at in range(1, min(len(data), 400)):
        assert joined(parse([data[:at], data[at:]], opened)) == expected
    assert joined(parse([data[i : i + 1] for i in range(len(data))], opened)) == expected


FRAGMENTS = [
    "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_cal", "</think", "<", "\n", "\r\n", " ", "`",
    '"', "\\", "{", "}", '{"name": "f", "arguments": ', '{"a": 1}', '"</tool_call>"', "é", "👍", "word", OSLO, ROME,
    "</", "_call>",
]  # fmt: skip


@st.composite
def cut_answers(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    data = "".join(draw(st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=3), max_size=14))).encode()
    if draw(st.booleans()):
        data += draw(st.binary(max_size=6))
    cuts = sorted(draw(st.lists(st.integers(0, len(data)), max_size=12)))
    return data, [data[a:b] for a, b in pairwise([0, *cuts, len(data)])]


def content(value: str) -> str:
    """The characters that no rule drops: neither white space nor any that a tag is made of."""
    return re.sub(r"[ \t\r\n<>/_thinkocal]", "", value)


@given(cut_answers(), st.booleans())
def test_random_cuts_change_nothing_and_nothing_is_lost(case: tuple[bytes, list[bytes]], opened: bool) -> None:
    data, pieces = case
    whole = joined(parse([data], opened))
    assert joined(parse(pieces, opened)) == whole
    rebuilt = "".join(
        f'{{"name": "{part[3]}", "arguments": {part[4]}}}' if part[0] == "call" else str(part[1])
        for part in whole
        if part[0] != "error"
    )
    assert content(rebuilt) == content(data.decode(errors="replace"))


@given(st.lists(st.binary(max_size=8), max_size=30), st.booleans())
def test_bytes_that_are_no_utf8_become_what_decoding_the_whole_gives(pieces: list[bytes], opened: bool) -> None:
    whole = b"".join(pieces).decode(errors="replace")
    if "<" not in whole and not opened:
        assert joined(parse(pieces)) == ([("text", whole)] if whole else [])
    parse(pieces, opened)


@given(st.lists(st.sampled_from([t.encode() for t in PLAIN]), max_size=4), st.lists(st.integers(0, 200), max_size=6))
def test_an_answer_without_tags_keeps_every_byte(answers: list[bytes], cuts: list[int]) -> None:
    data = b" ".join(answers)
    marks = [0, *sorted(c for c in cuts if c < len(data)), len(data)]
    parts = parse([data[a:b] for a, b in pairwise(marks)])
    if not any(isinstance(p, ErrorPart | ThinkingPart | ToolCallStart) for p in parts):
        assert "".join(p.text for p in parts if isinstance(p, TextPart)).encode() == data


def test_text_is_told_as_soon_as_it_is_certain() -> None:
    subject = parser()
    assert subject.feed(b"Hello") == [TextPart("Hello")]
    assert subject.feed(" é".encode()[:2]) == [TextPart(" ")]
    assert subject.feed(" é".encode()[2:]) == [TextPart("é")]
    assert subject.feed(b"\n") == []
    assert subject.feed(b"<b>") == [TextPart("\n<b>")]
    assert subject.feed(b" <tool") == [TextPart(" ")]
    assert subject.feed(b"box>") == [TextPart("<toolbox>")]
    assert subject.finish() == []


def test_a_template_that_names_no_tags_makes_them_text() -> None:
    answer = f"<think>a</think>\n{OSLO}"
    for source, tools in (("{{ messages }}", True), ("", True), ("", False)):
        subject = make_parser(source, tools=tools, prompt_tail="<think>\n")
        assert joined(subject.feed(answer.encode()) + subject.finish()) == [text(answer)]


def test_calls_are_text_when_no_tools_were_offered() -> None:
    subject = make_parser(TEMPLATE, tools=False, prompt_tail="")
    assert joined(subject.feed(OSLO.encode()) + subject.finish()) == [text(OSLO)]


def test_a_template_that_only_strips_old_thinking_still_names_the_tags() -> None:
    subject = make_parser("{{ content.split('</think>')[-1] }}", tools=False, prompt_tail="<think>")
    assert joined(subject.feed(b"a</think>b") + subject.finish()) == [thinking("a"), text("b")]


def test_the_joined_turn_has_calls_and_text_apart() -> None:
    joiner = PartsJoiner()
    for part in parse([f"Both.\n{OSLO}\n{ROME}".encode()]):
        joiner.add(part)
    joiner.add(EndPart(finish_reason="tool_calls", usage=Usage(), receipt=Receipt()))
    message = joiner.result().message
    assert message.content == "Both."
    assert [(c.id, c.function.arguments) for c in message.tool_calls] == [
        ("call_1", '{"city": "Oslo"}'),
        ("call_2", '{"city": "Rome"}'),
    ]


@pytest.mark.parametrize(
    ("start", "token"),
    [("", b" word"), ("<think>", b"\n"), ("<tool_call>\n", b"\n"), ('<tool_call>{"', b"\\n"), ("", b"`<think>")],
)
def test_time_grows_with_the_output_not_with_its_square(start: str, token: bytes) -> None:
    def seconds(count: int) -> float:
        subject = parser()
        subject.feed(start.encode())
        begin = time.thread_time()
        for _ in range(count):
            subject.feed(token)
        subject.finish()
        return time.thread_time() - begin

    assert min(seconds(20_000) for _ in range(3)) < 25 * min(seconds(2_000) for _ in range(3))
