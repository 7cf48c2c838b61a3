"""Hazards of holding an answer: a constraint that begins too late or too early, and a grammar that stalls a stream."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from modeld.chat.call_grammar import Calls, rest_of_call, whole_answer
from modeld.chat.grammar import check_format, check_tool
from modeld.chat.output.formats import find_dialect
from modeld.chat.parser import OutputParser, make_parser
from modeld.chat.template import ChatTemplate
from modeld.engine.constraint import Constraint, Plan
from modeld.engine.fake.backend import FakeBackend
from modeld.engine.fake.lexicon import END, TEMPLATE
from modeld.engine.grammars import Grammars
from modeld.engine.job import Job
from modeld.engine.protocol import Load, Turn
from modeld.engine.session import EngineSession
from modeld.engine.words import Words
from modeld.errors import EngineError, InvalidRequestError
from modeld.types import DecodeOptions, FunctionTool, Message, ResponseFormat, Tool

HERMES = find_dialect(TEMPLATE).calls[0]
CITY = Tool(FunctionTool("f", "", {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}))
LOAD = Load("", "fake", "", cells=100, window=100)


@pytest.fixture(scope="module")
def backend() -> FakeBackend:
    return FakeBackend(LOAD)


@pytest.fixture(scope="module")
def words(backend: FakeBackend) -> Words:
    return Words(backend)


def parser(tail: str = "") -> OutputParser:
    return make_parser(TEMPLATE + "</think>", tools=True, prompt_tail=tail)


@pytest.fixture
def answering(backend: FakeBackend, words: Words) -> Callable[..., Constraint]:
    def make(regex: str, *, tail: str = "", opening: tuple[int, ...] = ()) -> Constraint:
        rules = check_format(ResponseFormat(regex=regex)).rules
        matcher = words.matcher(whole_answer(rules))
        plan = Plan(answer=matcher, formatted=True, opening=opening, closings=(b"</think>",))
        return Constraint(plan, words, backend, parser(tail))

    return make


@pytest.fixture
def calling(backend: FakeBackend, words: Words) -> Callable[..., Constraint]:
    def make(**settings: Any) -> Constraint:
        rules = rest_of_call(Calls(HERMES, [("f", check_tool(CITY))], words.spell, parallel=True))
        plan = Plan(call=words.matcher(rules), trigger="<tool_call>", closings=(b"</think>",), **settings)
        return Constraint(plan, words, backend, parser())

    return make


def allowed(constraint: Constraint) -> str:
    """The runes below the private ones that may come, END as a dot; all: ``*``."""
    mask = constraint.allowed()
    if mask is None:
        return "*"
    runes = [rune for rune in range(len(mask) * 8) if mask[rune >> 3] >> (rune & 7) & 1]
    return "".join("." if rune == ord(END) else chr(rune) for rune in runes)


def say(constraint: Constraint, *pieces: str) -> None:
    for piece in pieces:
        constraint.took(ord(piece) if len(piece) == 1 else 0, piece.encode())


def test_the_end_is_allowed_where_the_answer_may_end_and_nowhere_else(answering: Callable[..., Constraint]) -> None:
    constraint = answering("ab?")
    assert allowed(constraint) == "a"
    say(constraint, "a")
    assert allowed(constraint) == "b."
    say(constraint, "b")
    assert allowed(constraint) == "."
    assert constraint.plain


def test_who_thinks_is_free_but_cannot_end(answering: Callable[..., Constraint]) -> None:
    constraint = answering("ab", tail="<think>\n")
    mask = constraint.allowed()
    assert mask is not None
    assert [rune for rune in (ord("z"), ord("{"), ord(END)) if mask[rune >> 3] >> (rune & 7) & 1] == [
        ord("z"),
        ord("{"),
    ]
    say(constraint, *"so it is</think>")
    # White space behind it is no part of the answer, two tokens of it at most.
    assert allowed(constraint) == "\t\n\r a"
    say(constraint, "\n", "\n")
    assert allowed(constraint) == "a"
    say(constraint, "a")
    assert allowed(constraint) == "b"


def test_a_model_may_begin_to_think_by_itself_once(answering: Callable[..., Constraint]) -> None:
    constraint = answering("a", opening=tuple(map(ord, "<think>")))
    assert allowed(constraint) == "<a"
    for rune in "<think":
        say(constraint, rune)
    assert allowed(constraint) == ">"
    say(constraint, ">", *"hm</think>")
    assert allowed(constraint) == "\t\n\r a"


def test_what_follows_the_thinking_in_the_same_token_counts(answering: Callable[..., Constraint]) -> None:
    constraint = answering("ab", tail="<think>")
    say(constraint, *"hm</think", ">\na")
    assert allowed(constraint) == "b"
    broken = answering("ab", tail="<think>")
    with pytest.raises(EngineError, match="thinking"):
        say(broken, *"hm</think", ">x")


def test_a_trigger_in_letters_is_a_call_only_if_a_call_follows(calling: Callable[..., Constraint]) -> None:
    constraint = calling()
    say(constraint, *"say <tool_call>")
    assert allowed(constraint) == "*"
    say(constraint, *" x and <tool_call>", "\n")
    assert allowed(constraint) == "\n {"
    say(constraint, *'{"name": "f", "arguments": {"n":4')
    assert set(allowed(constraint)) >= set("0}")
    assert "." not in allowed(constraint)
    say(constraint, *"}}\n</tool_call>")
    assert allowed(constraint) == "*"
    say(constraint, *"\n<tool_call>", "{")
    assert allowed(constraint) == '"'


def test_a_trigger_in_quotes_or_in_thinking_is_none(calling: Callable[..., Constraint]) -> None:
    constraint = calling()
    say(constraint, *"the tag `<tool_call>", "\n")
    assert allowed(constraint) == "*"
    say(constraint, *"<think><tool_call>", "\n")
    assert allowed(constraint) == "*"


def test_after_the_only_call_comes_the_end(calling: Callable[..., Constraint]) -> None:
    constraint = calling(parallel=False)
    say(constraint, *'<tool_call>\n{"name": "f", "arguments": {"n":4}}\n</tool_call>')
    assert allowed(constraint) == "."


def test_a_token_that_was_not_allowed_is_an_error_and_no_crash(answering: Callable[..., Constraint]) -> None:
    constraint = answering("a")
    with pytest.raises(EngineError, match="format"):
        say(constraint, "x")
    with pytest.raises(EngineError, match="format"):
        constraint.allowed()


def asked(**options: Any) -> Job:
    return Job(Turn(1, 1, (Message("user", "x"),), DecodeOptions(**options)), EngineSession(1))


def test_a_grammar_is_made_beside_the_scheduler_and_told_once(backend: FakeBackend) -> None:
    woken: list[int] = []
    held = threading.Event()

    def words() -> Words:
        assert held.wait(10)
        return Words(backend)

    grammars = Grammars(backend, words, ChatTemplate(TEMPLATE), lambda: woken.append(1))
    first, second = (asked(response_format=ResponseFormat(regex="a+")) for _ in range(2))
    assert not grammars.ready(first)
    assert grammars.done() == []
    held.set()
    while not grammars.ready(first):
        time.sleep(0.001)
    # It was found ready before it was told.
    assert grammars.constraint(first, parser())[0] is not None
    assert grammars.done() == []
    grammars.ready(second)
    while not grammars.ready(second):
        time.sleep(0.001)
    assert grammars.done() == [second.session]
    assert grammars.done() == []
    grammars.forget(second)
    assert woken
    assert grammars.ready(asked())


def test_a_panic_of_the_matcher_is_an_error_of_the_call(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicError(BaseException):
        pass

    def panic(*_: object) -> None:
        raise PanicError("the matcher broke")

    monkeypatch.setattr(Words, "matcher", panic)
    grammars = Grammars(backend, lambda: Words(backend), ChatTemplate(TEMPLATE), lambda: None)
    job = asked(response_format=ResponseFormat(regex="a+"))
    while not grammars.ready(job):
        time.sleep(0.001)
    with pytest.raises(EngineError, match="the matcher broke"):
        grammars.check(job)


def test_what_is_wrong_in_itself_needs_no_vocabulary(backend: FakeBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeBackend, "words", lambda _: pytest.fail("the vocabulary was read"))
    grammars = Grammars(backend, lambda: Words(backend), ChatTemplate(TEMPLATE), lambda: None)
    job = asked(response_format=ResponseFormat(schema={"type": "nothing"}))
    while not grammars.ready(job):
        time.sleep(0.001)
    with pytest.raises(InvalidRequestError, match="/type"):
        grammars.check(job)


def test_the_largest_schemas_that_are_taken_can_be_held(words: Words) -> None:
    optional = [{"type": "object", "properties": {f"p{i}_{j}": {"type": "null"} for i in range(120)}} for j in range(5)]
    schema = {"type": "array", "items": {"anyOf": optional}}
    repeats = {"type": "string", "pattern": "^((((a{1,1000}){1,1000}){1,1000}b){1,1000})$"}
    for wanted in (schema, repeats, {"enum": [f"{n} value" for n in range(1900)]}):
        began = time.perf_counter()
        rules = check_format(ResponseFormat(schema=wanted)).rules
        matcher = words.matcher(whole_answer(rules))
        assert time.perf_counter() - began < 1
        for _ in range(20):
            mask = int.from_bytes(matcher.compute_bitmask(), "little")
            assert mask
            token = (mask & -mask).bit_length() - 1
            if token == ord(END):
                break
            assert matcher.consume_token(token)
