"""The grammars of what stands between the markers of a call."""

from __future__ import annotations

import re
from typing import Final

from modeld.chat.output.calls import CallWriter, as_json
from modeld.chat.output.formats import Body, JsonBody, NamedBody, PythonBody, SectionBody, TaggedBody
from modeld.chat.output.reader import (
    MARK,
    SPACE,
    MalformedError,
    ProseError,
    Reader,
    Reading,
    finder,
    unmarked,
)
from modeld.chat.output.values import PYTHON, quoted, string, value

_NAME: Final = re.compile(rf"[^\s<>{{}}\[\](),='\"`{MARK}]*")
_PYTHON_NAME: Final = re.compile(r"[A-Za-z0-9_.]*")
_SEPARATORS: Final = re.compile(r"[ \t\r\n,;]*")
# What an object may hold before its name, where no marker says that it is a call.
_HEAD: Final = frozenset({"type", "id"})


def may_begin(body: Body, character: str) -> bool:
    """Whether a body may begin with this character."""
    match body:
        case JsonBody():
            return character in "{["
        case TaggedBody(before_name=before):
            return character == before[0] if before else _NAME.fullmatch(character) is not None
        case PythonBody():
            return character == "[" or _PYTHON_NAME.fullmatch(character) is not None
        case SectionBody() | NamedBody():
            return True


def read(body: Body, reader: Reader, calls: CallWriter) -> Reading[None]:
    """Read a body up to its end; no white space after it.

    :raises MalformedError: it is none. :raises ProseError: it is text, and none of it was told as a call.
    """
    match body:
        case JsonBody():
            yield from _json(body, reader, calls)
        case PythonBody():
            yield from _python(reader, calls)
        case TaggedBody():
            yield from _tagged(body, reader, calls)
        case SectionBody():
            yield from _sections(body, reader, calls)
        case NamedBody():
            yield from _named(body, reader, calls)


def _json(body: JsonBody, reader: Reader, calls: CallWriter) -> Reading[None]:
    if (yield from reader.peek()) != "[":
        yield from _object(body, reader, calls)
        return
    reader.at += 1
    while True:
        yield from reader.run(SPACE)
        yield from _object(body, reader, calls)
        yield from reader.run(SPACE)
        if (yield from reader.peek()) == "]":
            reader.at += 1
            return
        yield from reader.expect(",")


def _object(body: JsonBody, reader: Reader, calls: CallWriter) -> Reading[None]:
    calls.begin()
    yield from reader.expect("{")
    yield from reader.run(SPACE)
    more = (yield from reader.peek()) != "}"
    while more:
        key = yield from string(reader, "a key")
        yield from reader.run(SPACE)
        yield from reader.expect(":")
        yield from reader.run(SPACE)
        yield from _member(body, reader, calls, key)
        yield from reader.run(SPACE)
        more = yield from reader.literal(",")
        if more:
            yield from reader.run(SPACE)
    yield from reader.expect("}")
    calls.end()


def _member(body: JsonBody, reader: Reader, calls: CallWriter, key: str) -> Reading[None]:
    if key in body.names:
        calls.name((yield from string(reader, "the name")))
    elif key in body.arguments:
        if calls.bare and not calls.named:
            raise ProseError
        calls.arguments_begin()
        yield from value(reader, calls.put)
    elif key in body.ids and (yield from reader.peek()) == '"':
        calls.id((yield from string(reader, "the id")))
    elif calls.bare and not calls.named and key not in _HEAD:
        raise ProseError
    else:
        yield from value(reader, _nowhere)


def _nowhere(piece: str) -> None:
    """Other members of a call are not kept."""


def _python(reader: Reader, calls: CallWriter) -> Reading[None]:
    listed = yield from reader.literal("[")
    while True:
        yield from reader.run(SPACE)
        yield from _python_call(reader, calls)
        if listed:
            yield from reader.run(SPACE)
            comma = yield from reader.literal(",")
            yield from reader.run(SPACE)
            if (yield from reader.literal("]")):
                return
            if not comma:
                raise MalformedError("a comma or ']' is missing")
        else:
            yield from reader.run(_SEPARATORS)
            if reader.done or _PYTHON_NAME.fullmatch((yield from reader.peek())) is None:
                return


def _python_call(reader: Reader, calls: CallWriter) -> Reading[None]:
    calls.begin()
    calls.name((yield from _word(reader, _PYTHON_NAME)))
    yield from reader.expect("(")
    calls.arguments_begin()
    calls.put("{")
    yield from reader.run(SPACE)
    first = True
    while not (yield from reader.literal(")")):
        key = yield from _word(reader, _PYTHON_NAME)
        if not key:
            raise MalformedError("an argument has no name")
        yield from reader.run(SPACE)
        yield from reader.expect("=")
        yield from reader.run(SPACE)
        calls.put(f'{"" if first else ", "}"{key}": ')
        first = False
        yield from value(reader, calls.put, PYTHON)
        yield from reader.run(SPACE)
        if (yield from reader.literal(",")):
            yield from reader.run(SPACE)
        elif (yield from reader.peek()) != ")":
            raise MalformedError("a comma or ')' is missing")
    calls.put("}")
    calls.end()


def _word(reader: Reader, pattern: re.Pattern[str]) -> Reading[str]:
    held: list[str] = []
    yield from reader.run(pattern, held.append)
    return "".join(held)


def _tagged(body: TaggedBody, reader: Reader, calls: CallWriter) -> Reading[None]:
    while True:
        calls.begin()
        if not (yield from reader.literal(body.before_name)):
            raise ProseError
        name = yield from _word(reader, _NAME)
        if not body.before_name and not body.after_name:
            # A word right after the tag: only what follows makes it a name.
            head: list[str] = []
            yield from reader.run(SPACE, head.append)
            if not reader.done and "\n" not in "".join(head) and (yield from reader.peek()) not in ("<", MARK):
                raise ProseError
        calls.name(name)
        yield from reader.expect(body.after_name)
        yield from _pairs(body, reader, calls)
        calls.end()
        if not body.before_name:
            return
        yield from reader.run(SPACE)
        if not (yield from reader.comes(body.before_name)):
            return


def _pairs(body: TaggedBody, reader: Reader, calls: CallWriter) -> Reading[None]:
    calls.arguments_begin()
    calls.put("{")
    first = True
    yield from reader.run(SPACE)
    while (yield from reader.literal(body.before_key)):
        key: list[str] = []
        if not (yield from reader.until(finder(body.after_key), key.append)):
            raise MalformedError("a key does not end")
        if body.before_value:
            yield from reader.run(SPACE)
            yield from reader.expect(body.before_value)
        name = unmarked("".join(key)).strip()
        calls.put(f'{"" if first else ", "}"{quoted(name)}": ')
        first = False
        yield from _written(body, reader, calls, calls.is_text(name))
        yield from reader.run(SPACE)
    if body.end:
        yield from reader.expect(body.end)
    else:
        yield from reader.peek()  # at the end of the answer more pairs could have come
    calls.put("}")


def _written(body: TaggedBody, reader: Reader, calls: CallWriter, is_text: bool | None) -> Reading[None]:
    """A value that stands as it is between two tags."""
    if body.trims:
        yield from reader.literal("\n")
    ends = finder("\n" + body.after_value, body.after_value) if body.trims else finder(body.after_value)
    held: list[str] = []
    if is_text:
        calls.put('"')
    put = (lambda text: calls.put(quoted(unmarked(text)))) if is_text else held.append
    if not (yield from reader.until(ends, put)):
        raise MalformedError("a value does not end")
    calls.put('"' if is_text else as_json(unmarked("".join(held)), text_allowed=is_text is None))


def _sections(body: SectionBody, reader: Reader, calls: CallWriter) -> Reading[None]:
    yield from reader.run(SPACE)
    yield from reader.expect(body.begin)
    while True:
        calls.begin()
        head: list[str] = []
        if (yield from reader.until(finder(body.separator, body.end), head.append)) != body.separator:
            raise MalformedError("it has no arguments")
        yield from reader.run(SPACE)
        name, fenced = "".join(head).strip(), (yield from reader.peek()) != "{"
        if fenced:
            name = yield from _word(reader, _NAME)
            yield from reader.run(SPACE)
            yield from reader.expect("```json")
        if body.numbered:
            calls.id(name)
            name = name.rpartition(":")[0].removeprefix("functions.")
        calls.name(name)
        calls.arguments_begin()
        yield from reader.run(SPACE)
        yield from value(reader, calls.put)
        yield from reader.run(SPACE)
        if fenced:
            yield from reader.expect("```")
            yield from reader.run(SPACE)
        yield from reader.expect(body.end)
        calls.end()
        yield from reader.run(SPACE)
        if not (yield from reader.literal(body.begin)):
            return


def _named(body: NamedBody, reader: Reader, calls: CallWriter) -> Reading[None]:
    yield from reader.run(SPACE)
    if (yield from reader.peek()) == "[":
        yield from _json(body.listed, reader, calls)
        return
    calls.begin()
    name = yield from _word(reader, _NAME)
    if (yield from reader.literal(body.before_id)):
        calls.id((yield from _word(reader, _NAME)))
    calls.name(name)
    yield from reader.literal(body.before_arguments)
    calls.arguments_begin()
    yield from reader.run(SPACE)
    yield from value(reader, calls.put)
    calls.end()
