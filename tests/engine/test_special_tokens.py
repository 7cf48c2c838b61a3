"""Hazard: the engine takes text for the special token it spells, or loses on the way which tokens are special."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from modeld.chat.parser import OutputParser, Syntax
from modeld.engine.fake.backend import END, START, FakeRuntime, FakeSampler
from modeld.engine.job import Stream
from modeld.engine.llama.backend import LlamaBackend
from modeld.engine.llama.runtime import LlamaRuntime
from modeld.engine.protocol import Load
from modeld.types import DecodeOptions, ErrorPart, StreamPart, TextPart, ToolCallDelta, ToolCallEnd, ToolCallStart
from support.engines import TINY_F16

SPECIAL = ("<think>", "</think>", "<tool_call>", "</tool_call>")
CALL = '\n{"name": "f", "arguments": {"a": "x"}}\n'


@pytest.fixture(scope="module")
def tiny() -> Iterator[LlamaBackend]:
    backend = LlamaRuntime().load(Load(str(TINY_F16), "tiny", "d", 64, 64, sequences=1))
    yield backend
    backend.close()


def stream(*stop: str) -> Stream:
    syntax = Syntax("<think> <tool_call>", SPECIAL.__contains__)
    parser = OutputParser(syntax, tools=True, prompt_tail="")
    fake = FakeRuntime().load(Load("", "fake", "d", 64, 64, sequences=1))
    return Stream(DecodeOptions(stop=stop), 1, 1000, FakeSampler(fake), parser)


def told(stream: Stream, *tokens: str) -> list[StreamPart]:
    """What comes of tokens; those of ``SPECIAL`` are special unless a ``~`` says that they are text."""
    for token in tokens:
        if stream.push(0, token.removeprefix("~").encode(), token in SPECIAL) is not None:
            break
    stream.finish()
    return list(stream.take()[0])


def test_the_vocabulary_says_which_tokens_are_special(tiny: LlamaBackend) -> None:
    for text in (*SPECIAL, "<|im_start|>", "<|im_end|>"):
        [token] = tiny.tokenize(text.encode(), add_special=False)
        assert tiny.is_special(token)
        assert tiny.piece(token) == text.encode()
    assert not any(map(tiny.is_special, tiny.tokenize(b"Hello, <b>tool_call</b> 12", add_special=False)))
    fake = FakeRuntime().load(Load("", "fake", "d", 64, 64, sequences=1))
    assert [fake.is_special(ord(rune)) for rune in (START, END, "<", "a")] == [True, True, False, False]


def test_special_tokens_make_a_call_and_their_text_does_not() -> None:
    call = [ToolCallStart(0, "call_1", "f"), ToolCallDelta(0, '{"a": "x"}'), ToolCallEnd(0)]
    subject = stream()
    assert told(subject, "<tool_call>", *CALL, "</tool_call>") == call
    assert subject.called
    subject = stream()
    assert told(subject, "~<tool_call>", *CALL, "~</tool_call>") == [TextPart(f"<tool_call>{CALL}</tool_call>")]
    assert not subject.called


@pytest.mark.parametrize("stop", [">\nx", "l>never", "<tool_call>never", "\n{never"])
def test_bytes_that_a_stop_string_held_back_are_special_still(stop: str) -> None:
    parts = told(stream(stop), "a", "<tool_call>", *CALL, "</tool_call>", ".")
    assert [type(part) for part in parts] == [TextPart, ToolCallStart, ToolCallDelta, ToolCallEnd, TextPart]


def test_a_special_token_that_a_stop_string_cuts_is_text() -> None:
    assert told(stream("call>\n"), "a", "<tool_call>", *CALL) == [TextPart("a<tool_")]
    assert told(stream("</tool_call>"), "<tool_call>", *CALL, "</tool_call>")[-1] == ToolCallEnd(0)


def test_a_call_that_is_taken_back_was_none() -> None:
    subject = stream()
    parts = told(subject, "<tool_call>", '{"name": "f", "arguments": {"a": 1', ",}", "}", "</tool_call>")
    assert isinstance(parts[-1], ErrorPart)
    assert parts[-1].call == 0
    assert not subject.called
