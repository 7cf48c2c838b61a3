"""The corpus of model outputs in ``tests/data/outputs``, and how to parse and join them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import msgspec
from msgspec import Struct

from modeld.chat.parser import OutputParser, Syntax
from modeld.types import (
    EndPart,
    ErrorPart,
    PartsJoiner,
    StreamPart,
    TextPart,
    ThinkingPart,
    Tool,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Usage,
)

FOLDER = Path(__file__).parents[1] / "data" / "outputs"
Piece = tuple[bytes, bool]
"""Bytes of the output, and whether they are a special token."""
Joined = list[list[str]]


class Case(Struct, frozen=True):
    """One output. As a string, each special token's text in it is that token; as a list, only whole items are.

    :param plain: it means the same where no token is special.
    """

    name: str
    output: str | list[str]
    expected: Joined
    tail: str | None = None
    plain: bool = True


class Corpus(Struct, frozen=True):
    """The outputs of one format. ``source`` is the title of its public description."""

    format: str
    source: str
    template: str
    special: list[str]
    tail: str
    tools: list[Tool]
    cases: list[Case]

    def syntax(self, *, plain: bool = False) -> Syntax:
        return _syntax(self.template, frozenset() if plain else frozenset(self.special))

    def parser(self, case: Case, *, plain: bool = False, spans: list[tuple[str, str]] | None = None) -> OutputParser:
        book = None if spans is None else lambda kind, raw: spans.append((kind, raw))
        tail = self.tail if case.tail is None else case.tail
        return OutputParser(self.syntax(plain=plain), tools=self.tools, prompt_tail=tail, spans=book)

    def pieces(self, case: Case, *, plain: bool = False) -> list[Piece]:
        """The output in as few pieces as there can be."""
        items = [case.output] if isinstance(case.output, str) else case.output
        if isinstance(case.output, str) and self.special:
            items = re.split("(" + "|".join(map(re.escape, self.special)) + ")", case.output)
        if plain:
            items = ["".join(items)]
        out: list[Piece] = []
        for item in filter(None, items):
            special = item in self.special and not plain
            if out and not special and not out[-1][1]:
                out[-1] = (out[-1][0] + item.encode(), False)
            else:
                out.append((item.encode(), special))
        return out


@cache
def _syntax(template: str, special: frozenset[str]) -> Syntax:
    return Syntax(template, special.__contains__)


@cache
def corpora() -> list[Corpus]:
    return [msgspec.json.decode(path.read_bytes(), type=Corpus) for path in sorted(FOLDER.glob("*.json"))]


def parse(parser: OutputParser, pieces: Iterable[Piece]) -> list[StreamPart]:
    parts = [part for data, special in pieces for part in parser.feed(data, special)]
    return parts + parser.finish()


def joined(parts: Sequence[StreamPart]) -> Joined:
    """Parts with neighbours of a kind joined, calls as one, and what an error takes back left out."""
    taken_back = {part.call for part in parts if isinstance(part, ErrorPart)} - {None}
    out: Joined = []
    open_call: int | None = None
    for part in parts:
        match part:
            case TextPart(text=text) | ThinkingPart(text=text):
                assert text
                kind = "text" if isinstance(part, TextPart) else "thinking"
                if out and out[-1][0] == kind:
                    out[-1][1] += text
                else:
                    out.append([kind, text])
            case ToolCallStart(index=index, id=id_, name=name):
                assert open_call is None
                open_call = index
                if index not in taken_back:
                    out.append(["call", id_, name, ""])
            case ToolCallDelta(index=index, arguments=arguments):
                assert open_call == index
                assert arguments
                if index not in taken_back:
                    out[-1][3] += arguments
            case ToolCallEnd(index=index):
                assert open_call == index
                assert index not in taken_back
                open_call = None
            case ErrorPart(code="malformed_tool_call", raw=raw, call=index):
                assert open_call == index
                open_call = None
                out.append(["error", raw])
            case _:
                raise AssertionError(part)
    assert open_call is None
    return out


def check_spans(pieces: Iterable[Piece], parts: Sequence[StreamPart], spans: list[tuple[str, str]]) -> None:
    """Nothing is lost: the spans are the output, text and thinking are those that say so, and what went was no text."""
    assert "".join(raw for _, raw in spans) == b"".join(data for data, _ in pieces).decode(errors="replace")
    for kind, type_ in (("text", TextPart), ("thinking", ThinkingPart)):
        said = "".join(part.text for part in parts if isinstance(part, type_))
        assert said == "".join(raw for what, raw in spans if what == kind)
    ends = sum(isinstance(part, ToolCallEnd) for part in parts)
    assert ends == sum(what == "call" for what, _ in spans)


def message_of(parts: Sequence[StreamPart]) -> tuple[str, str, list[list[str]], list[str]]:
    """Text, thinking, calls and raw errors as a client joins them."""
    joiner = PartsJoiner()
    for part in parts:
        joiner.add(part)
    joiner.add(EndPart(finish_reason="stop", usage=Usage()))
    result = joiner.result()
    calls = [["call", call.id, call.function.name, call.function.arguments] for call in result.tool_calls]
    return result.text, result.thinking, calls, [error.raw for error in result.errors]
