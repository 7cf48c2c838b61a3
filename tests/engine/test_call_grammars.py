"""Hazard: a call that the grammar allows and the format's own parser does not read, or whose arguments do not fit."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable
from functools import cache
from typing import Any

import jsonschema
import pytest

from modeld.chat.call_grammar import is_held, written_format
from modeld.chat.output.formats import CallFormat, ChannelFormat, find_dialect
from modeld.chat.parser import OutputParser, Syntax
from modeld.chat.template import ChatTemplate
from modeld.engine.constraint import Constraint
from modeld.engine.grammars import Grammars
from modeld.engine.job import Job
from modeld.engine.protocol import Turn
from modeld.engine.session import EngineSession
from modeld.engine.words import Words
from modeld.errors import EngineError, NotSupportedError
from modeld.types import (
    ChatResult,
    DecodeOptions,
    EndPart,
    FunctionTool,
    Message,
    PartsJoiner,
    ResponseFormat,
    Tool,
    Usage,
    WarningPart,
)
from support.outputs import Corpus, corpora

PLACE = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 9}, "days": {"type": "integer", "maximum": 99}},
    "required": ["city"],
}
SORT = {
    "type": "object",
    "properties": {"by": {"enum": ["a", 'b"', "<x>"]}, "of": {"type": "array", "items": {"type": "null"}}},
    "required": ["by", "of"],
}
SCHEMAS = {"get_weather": PLACE, "sort": SORT, "now": {"type": "object", "properties": {}}}
TOOLS = tuple(Tool(FunctionTool(name, "", schema)) for name, schema in SCHEMAS.items())
CLOSERS = frozenset(map(ord, '"}]'))
EVERY = {corpus.format: corpus for corpus in corpora()}


def held(corpus: Corpus) -> bool:
    written = written_format(find_dialect(corpus.template))
    return written is not None and is_held(written)


HELD = [name for name, corpus in EVERY.items() if held(corpus)]
FREE = [name for name in EVERY if name not in HELD]
IN_LETTERS = [name for name in HELD if name != "harmony"]


class Characters:
    """A vocabulary of characters and a few longer words; the markers in it are tokens of their own."""

    longest = 0

    def __init__(self, special: Iterable[str], ends: Iterable[str] = ()) -> None:
        words = ['{"', '"}', '": ', '", "', "}}", "]<", "\n\n", "assistant"]
        self.plain = [*map(chr, range(0x100)), *"▁｜", *words]
        self.special = [*special, "<|eos|>"]
        self.ends = {"<|eos|>", *ends}
        self.texts = self.plain + self.special
        self.ids = {text: token for token, text in enumerate(self.texts)}

    def tokenize(self, text: bytes, *, add_special: bool) -> list[int]:
        ids, left = [], text.decode()
        while left:
            known = [word for word in [*self.special, left[0]] if left.startswith(word)]
            ids.append(self.ids[known[0]])
            left = left.removeprefix(known[0])
        return ids

    def piece(self, token: int) -> bytes:
        return self.texts[token].encode()

    def is_end(self, token: int) -> bool:
        return self.texts[token] in self.ends

    def is_special(self, token: int) -> bool:
        return token >= len(self.plain)

    def words(self) -> list[bytes]:
        return [b"\xff" * (token >= len(self.plain)) + text.encode() for token, text in enumerate(self.texts)]


class Model:
    """A vocabulary and a template in one of the formats, and a random walk through what may come."""

    def __init__(self, corpus: Corpus, special: Iterable[str], ends: Iterable[str] = ()) -> None:
        self.corpus = corpus
        self.vocabulary = Characters(special, ends)
        self.words = Words(self.vocabulary)
        self.syntax = Syntax(corpus.template, self.vocabulary.special.__contains__)
        template = ChatTemplate(corpus.template)
        self._grammars = Grammars(self.vocabulary, lambda: self.words, template, lambda: None)  # type: ignore[arg-type]

    def parser(self) -> OutputParser:
        return OutputParser(self.syntax, tools=TOOLS, prompt_tail=self.corpus.tail)

    def constraint(
        self, tools: tuple[Tool, ...] = TOOLS, watch: OutputParser | None = None, **options: Any
    ) -> tuple[Any, tuple[WarningPart, ...]]:
        turn = Turn(1, 1, (Message("user", "x"),), DecodeOptions(**options), tools=tools)
        job = Job(turn, EngineSession(1))
        while not self._grammars.ready(job):
            time.sleep(0.0005)
        try:
            self._grammars.check(job)
            return self._grammars.constraint(job, watch or self.parser())
        finally:
            self._grammars.forget(job)

    def answer(self, source: random.Random, script: str = "", **options: Any) -> tuple[str, ChatResult]:
        """An answer: as the script says while all tokens may come, and whatever the constraint then allows."""
        constraint, warnings = self.constraint(**options)
        assert not warnings
        tokens = self.vocabulary.tokenize(script.encode(), add_special=False)
        parser, joiner, text = self.parser(), PartsJoiner(), ""
        for count in range(4000):
            token = self._choose(constraint, tokens, source, hurry=count > 150)
            if self.vocabulary.is_end(token):
                break
            piece = self.vocabulary.piece(token)
            constraint.took(token, piece)
            text += piece.decode()
            for part in parser.feed(piece, self.vocabulary.is_special(token)):
                joiner.add(part)
        else:
            raise AssertionError(f"no end: {text[:2000]}")
        for part in [*parser.finish(), EndPart(finish_reason="stop", usage=Usage())]:
            joiner.add(part)
        return text, joiner.result()

    def _choose(self, constraint: Constraint, script: list[int], source: random.Random, *, hurry: bool) -> int:
        mask = constraint.allowed()
        if mask is None:
            return script.pop(0) if script else self.vocabulary.ids["<|eos|>"]
        allowed = [token for token in range(len(self.vocabulary.texts)) if mask[token >> 3] >> (token & 7) & 1]
        assert allowed
        if script and script[0] in allowed and not hurry:
            return script.pop(0)
        closers = [token for token in allowed if token in CLOSERS or token >= len(self.vocabulary.plain)]
        if not hurry and ord(",") in allowed and source.random() < 0.3:
            return ord(",")
        if closers and (hurry or source.random() < 0.6):
            ends = [token for token in closers if self.vocabulary.is_end(token)]
            return source.choice(ends if ends and hurry else closers)
        return source.choice(allowed)


@cache
def model(name: str, *, plain: bool = False, ends: tuple[str, ...] = ()) -> Model:
    corpus = EVERY[name]
    return Model(corpus, () if plain else corpus.special, ends)


def written(name: str) -> CallFormat | ChannelFormat:
    found = written_format(find_dialect(EVERY[name].template))
    assert found is not None
    return found


def check_calls(text: str, result: ChatResult) -> None:
    assert not result.errors, text
    for call in result.tool_calls:
        jsonschema.validate(json.loads(call.function.arguments), SCHEMAS[call.function.name])


def test_which_formats_are_held() -> None:
    assert set(HELD) == {
        "command-r", "deepseek-r1", "deepseek-v3.1", "granite", "harmony", "hermes", "kimi", "llama-json",
        "mistral-args", "mistral-list", "phi",
    }  # fmt: skip


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize(("name", "plain"), [*((n, False) for n in HELD), *((n, True) for n in IN_LETTERS)])
def test_what_a_forced_call_may_be_is_one_for_the_parser(name: str, plain: bool, parallel: bool) -> None:
    subject, several = model(name, plain=plain), 0
    for seed in range(25):
        text, result = subject.answer(
            random.Random(seed), tool_choice="required", parallel_tool_calls=parallel, max_tokens=9
        )
        check_calls(text, result)
        assert len(result.tool_calls) >= 1 if parallel else len(result.tool_calls) == 1, text
        assert not result.text.strip(), text
        several += len(result.tool_calls) > 1
    assert bool(several) == parallel


@pytest.mark.parametrize("name", HELD)
def test_a_call_that_is_forced_by_name_is_of_that_tool(name: str) -> None:
    for seed in range(8):
        text, result = model(name).answer(random.Random(seed), tool_choice="sort")
        check_calls(text, result)
        assert {call.function.name for call in result.tool_calls} == {"sort"}


def beginning(name: str) -> str:
    call_format = written(name)
    if isinstance(call_format, ChannelFormat):
        return f"{call_format.channel}commentary to="
    return '{"name": "sort"' if call_format.bare else call_format.open + ("\n" if call_format.line else "")


def said(name: str) -> str:
    """Free text, as the format writes it."""
    if name == "harmony":
        return '<|channel|>analysis<|message|>Ab {"c": <|end|><|start|>assistant'
    return "" if name == "llama-json" else "Ab {c} [TOOL] <a> \n"


@pytest.mark.parametrize(("name", "plain"), [*((n, False) for n in HELD), *((n, True) for n in IN_LETTERS)])
def test_arguments_fit_from_the_trigger_on(name: str, plain: bool) -> None:
    subject = model(name, plain=plain)
    for seed in range(25):
        script = said(name) + beginning(name)
        text, result = subject.answer(random.Random(seed), script, parallel_tool_calls=False)
        assert text.startswith(script)
        check_calls(text, result)
        assert len(result.tool_calls) == 1, text
        free, of = ('Ab {"c":', result.thinking) if name == "harmony" else (said(name).strip(), result.text)
        assert of.strip() == free


@pytest.mark.parametrize("name", HELD)
def test_what_begins_no_call_stays_free(name: str) -> None:
    for text in ('{"name": "Oslo", "x": [1, 2}', "[1] a", "so: {", 'a "b'):
        script = f"<|channel|>final<|message|>{text}" if name == "harmony" else text
        whole, result = model(name).answer(random.Random(0), script)
        assert (whole.startswith(script), result.tool_calls, result.errors) == (True, (), ())
        assert result.text.startswith(text)


@pytest.mark.parametrize("name", [n for n in HELD if n != "llama-json"])
def test_the_letters_of_a_trigger_that_is_a_token_are_text(name: str) -> None:
    opening = beginning(name).strip("\n")
    subject = model(name)
    constraint, _ = subject.constraint()
    if name == "harmony":
        for piece in ("<|channel|>", "f", "inal", "<|message|>"):
            token = subject.vocabulary.ids.get(piece)
            for each in [token] if token is not None else [ord(c) for c in piece]:
                constraint.took(each, subject.vocabulary.piece(each))
    for character in opening + "{":
        constraint.took(subject.vocabulary.ids[character], character.encode())
    mask = constraint.allowed()
    assert mask is None or mask[ord("z") >> 3] >> (ord("z") & 7) & 1


@pytest.mark.parametrize("name", HELD)
def test_a_format_and_calls_are_told_apart(name: str) -> None:
    subject, wanted = model(name), ResponseFormat(schema=PLACE)
    seen = set()
    for seed in range(40):
        text, result = subject.answer(random.Random(seed), response_format=wanted)
        check_calls(text, result)
        seen.add(bool(result.tool_calls))
        if not result.tool_calls:
            jsonschema.validate(json.loads(result.text), PLACE)
    assert seen == {True, False}


def test_the_end_of_a_call_may_end_the_answer() -> None:
    for seed in range(10):
        text, result = model("harmony", ends=("<|call|>", "<|return|>")).answer(
            random.Random(seed), tool_choice="required"
        )
        check_calls(text, result)
        assert len(result.tool_calls) == 1
    subject = model("phi", ends=("<|/tool_call|>",))
    for script in ("<|tool_call|>", ""):
        choice = "auto" if script else "required"
        text, result = subject.answer(random.Random(0), script, tool_choice=choice)
        check_calls(text, result)
        assert result.tool_calls
        assert text.strip().endswith("]")


def test_a_call_may_end_thinking_that_was_not_closed() -> None:
    for name in ("mistral-args", "kimi", "command-r"):
        opening = {"mistral-args": "[THINK]", "kimi": "<think>", "command-r": "<|START_THINKING|>"}[name]
        text, result = model(name).answer(random.Random(1), f"{opening}hm{beginning(name)}", parallel_tool_calls=False)
        check_calls(text, result)
        assert (result.thinking, len(result.tool_calls)) == ("hm", 1)


@pytest.mark.parametrize("name", [n for n in HELD if n not in ("harmony", "llama-json")])
def test_a_second_call_of_the_same_answer_is_held_too(name: str) -> None:
    for seed in range(8):
        text, result = model(name).answer(random.Random(seed), beginning(name).strip() * 2)
        check_calls(text, result)
        assert len(result.tool_calls) >= 2, text


def test_a_second_call_without_a_marker_is_held_too() -> None:
    subject = model("llama-json")
    constraint, _ = subject.constraint()
    for character in '{"name": "now", "parameters": {}}; {"name": "sort"':
        constraint.took(ord(character), character.encode())
    mask = constraint.allowed()
    assert mask is not None
    assert not mask[ord("z") >> 3] >> (ord("z") & 7) & 1


def test_behind_a_call_with_a_marker_one_without_is_text() -> None:
    subject = model("llama-json")
    script = '<|python_tag|>{"name": "now", "parameters": {}} {"name": "sort", "x'
    text, result = subject.answer(random.Random(0), script)
    assert (text, [call.function.name for call in result.tool_calls]) == (script, ["now"])


def test_what_does_not_begin_with_a_header_is_free_or_an_error() -> None:
    subject = model("harmony")
    elsewhere = OutputParser(subject.syntax, tools=TOOLS, prompt_tail="<|start|>assistant<|channel|>final<|message|>")
    assert subject.constraint(watch=elsewhere)[0].allowed() is None
    forced, _ = subject.constraint(watch=elsewhere, tool_choice="required")
    with pytest.raises(EngineError, match="header"):
        forced.allowed()


def test_a_name_that_the_format_cannot_write_is_told_or_refused() -> None:
    spaced = FunctionTool("a b", "", SCHEMAS["now"])
    for name in ("kimi", "mistral-args", "harmony"):
        constraint, (warning,) = model(name).constraint((Tool(spaced),))
        assert (constraint, warning.code) == (None, "tools_not_held")
        with pytest.raises(NotSupportedError, match="'a b'"):
            model(name).constraint((Tool(spaced),), tool_choice="a b")
    assert model("hermes").constraint((Tool(spaced),))[1] == ()


@pytest.mark.parametrize("name", FREE)
def test_what_is_not_json_is_told_or_refused(name: str) -> None:
    constraint, warnings = model(name).constraint()
    assert constraint is None
    assert [warning.code for warning in warnings] == ["tools_not_held"]
    assert written(name).name in warnings[0].message
    strict = (Tool(FunctionTool("now", "", SCHEMAS["now"], strict=True)),)
    for tools, options in ((strict, {}), (TOOLS, {"tool_choice": "required"}), (TOOLS, {"tool_choice": "now"})):
        with pytest.raises(NotSupportedError, match=written(name).name):
            model(name).constraint(tools, **options)
    loose = (Tool(FunctionTool("now", "", SCHEMAS["now"], strict=False)),)
    assert model(name).constraint(loose) == (None, ())


def test_channels_that_are_no_tokens_are_not_held() -> None:
    subject = model("harmony", plain=True)
    constraint, (warning,) = subject.constraint()
    assert (constraint, warning.code) == (None, "tools_not_held")
    with pytest.raises(NotSupportedError, match="no tokens"):
        subject.constraint(tool_choice="required")
