"""Values of JSON and of Python's literals, read as they come and passed on as JSON text."""

from __future__ import annotations

import json
import re
from typing import Final, NamedTuple

from modeld.chat.output.reader import SPACE, MalformedError, Put, Reader, Reading

MAX_DEPTH: Final = 200
"""Lists and objects inside one another, at most."""


class Notation(NamedTuple):
    """What differs. JSON is passed on to the byte; of Python only literals that JSON has too are taken."""

    quotes: str
    words: dict[str, str]
    trailing_comma: bool


_JSON_WORDS: Final = {"true": "true", "false": "false", "null": "null"}
JSON: Final = Notation('"', _JSON_WORDS, trailing_comma=False)
PYTHON: Final = Notation("\"'", {"True": "true", "False": "false", "None": "null", **_JSON_WORDS}, trailing_comma=True)

_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_NUMBER_RUN: Final = re.compile(r"[-+.0-9eE]*")
_WORD_RUN: Final = re.compile(r"[A-Za-z]*")
_STRING_RUN: Final = re.compile(r'[^"\\\x00-\x1f]*')
# Half of a surrogate pair is no character: JSON's readers do not agree on it.
_ESCAPE: Final = re.compile(
    r'\\(?:["\\/bfnrt]|u(?![dD][89a-fA-F])[0-9a-fA-F]{4}|u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})'
)
_ESCAPE_OPEN: Final = re.compile(
    r"\\(?:u(?:[0-9a-fA-F]{0,3}|[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u(?:[dD](?:[c-fC-F][0-9a-fA-F]?)?)?)?)?)?)?"
)
_PYTHON_RUN: Final = {quote: re.compile(rf"[^{quote}\\\n]*") for quote in "\"'"}
_PYTHON_ESCAPE: Final = re.compile(
    r"\\(?:[\n\\'\"abfnrtv]|x[0-9a-fA-F]{2}|u(?![dD][89a-fA-F])[0-9a-fA-F]{4}|U(?!0000[dD][89a-fA-F])00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{4})"
)
_PYTHON_OPEN: Final = re.compile(r"\\(?:x[0-9a-fA-F]?|u[0-9a-fA-F]{0,3}|U[0-9a-fA-F]{0,7})?")
_PYTHON_LETTERS: Final = {"\n": "", "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def quoted(text: str) -> str:
    """Text as it stands inside a JSON string, without the quotes."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def value(reader: Reader, put: Put, notation: Notation = JSON) -> Reading[None]:
    """Read one value; white space before it counts as its own.

    :raises MalformedError: it is none.
    """
    open_: list[str] = []
    while True:
        yield from reader.run(SPACE, put)
        character = yield from reader.peek()
        if character in "{[":
            if len(open_) == MAX_DEPTH:
                raise MalformedError(f"it is nested more than {MAX_DEPTH} deep")
            reader.take(put)
            open_.append("}" if character == "{" else "]")
            yield from reader.run(SPACE, put)
            if (yield from reader.peek()) != open_[-1]:
                if character == "{":
                    yield from _key(reader, put, notation)
                continue
        else:
            yield from _simple(reader, put, notation, character)
        yield from _ends(reader, put, notation, open_)
        if not open_:
            return


def _ends(reader: Reader, put: Put, notation: Notation, open_: list[str]) -> Reading[None]:
    """What follows a value: ends of what it is in, then a comma."""
    while open_:
        yield from reader.run(SPACE, put)
        character = yield from reader.peek()
        if character == open_[-1]:
            reader.take(put)
            open_.pop()
            continue
        if character != ",":
            raise MalformedError(f"a comma or {open_[-1]!r} should stand where {character!r} does")
        held: list[str] = []
        reader.take(held.append)
        yield from reader.run(SPACE, held.append)
        if notation.trailing_comma and (yield from reader.peek()) == open_[-1]:
            continue
        put("".join(held))
        if open_[-1] == "}":
            yield from _key(reader, put, notation)
        return


def _key(reader: Reader, put: Put, notation: Notation) -> Reading[None]:
    if (yield from reader.peek()) not in notation.quotes:
        raise MalformedError("a key is no string")
    yield from _string(reader, put, notation)
    yield from reader.run(SPACE, put)
    yield from reader.expect(":")
    put(":")


def _simple(reader: Reader, put: Put, notation: Notation, character: str) -> Reading[None]:
    held: list[str] = []
    if character in notation.quotes:
        yield from _string(reader, put, notation)
    elif character in "-0123456789":
        yield from reader.run(_NUMBER_RUN, held.append)
        number = "".join(held)
        if _NUMBER.fullmatch(number) is None:
            raise MalformedError(f"{number[:40]!r} is no number")
        put(number)
    else:
        yield from reader.run(_WORD_RUN, held.append)
        word = "".join(held)
        if word not in notation.words:
            raise MalformedError(f"{word[:40] or character!r} is no value")
        put(notation.words[word])


def _string(reader: Reader, put: Put, notation: Notation) -> Reading[None]:
    quote = reader.text[reader.at]
    reader.at += 1
    put('"')
    if notation is JSON:
        yield from _json_string(reader, put)
    else:
        yield from _python_string(reader, put, quote)
    put('"')


def _json_string(reader: Reader, put: Put) -> Reading[None]:
    while True:
        yield from reader.run(_STRING_RUN, put)
        character = yield from reader.peek()
        if character == '"':
            reader.at += 1
            return
        if character != "\\":
            raise MalformedError(f"a string holds the control character {character!r}")
        put((yield from _escape(reader, _ESCAPE, _ESCAPE_OPEN)))


def _python_string(reader: Reader, put: Put, quote: str) -> Reading[None]:
    while True:
        yield from reader.run(_PYTHON_RUN[quote], lambda text: put(quoted(text)))
        character = yield from reader.peek()
        if character == quote:
            reader.at += 1
            return
        if character != "\\":
            raise MalformedError("a string holds a line break")
        escape = yield from _escape(reader, _PYTHON_ESCAPE, _PYTHON_OPEN)
        code = escape[1:]
        put(quoted(chr(int(code[1:], 16)) if len(code) > 1 else _PYTHON_LETTERS.get(code, code)))


def _escape(reader: Reader, whole: re.Pattern[str], begun: re.Pattern[str]) -> Reading[str]:
    while (found := whole.match(reader.text, reader.at)) is None:
        if reader.ended or begun.fullmatch(reader.text, reader.at) is None:
            raise MalformedError(f"a string holds the escape {reader.text[reader.at : reader.at + 6]!r}", quoted=True)
        yield
    reader.at = found.end()
    return found[0]


def string(reader: Reader, what: str) -> Reading[str]:
    """Read a JSON string, whole.

    :raises MalformedError: it is none.
    """
    if (yield from reader.peek()) != '"':
        raise MalformedError(f"{what} is no string")
    held: list[str] = []
    yield from _string(reader, held.append, JSON)
    return str(json.loads("".join(held)))


def is_value(text: str) -> bool:
    """Whether a text is one value of JSON."""
    reader = Reader()
    reader.push(text)
    reader.ended = True
    try:
        for _ in value(reader, len):
            raise AssertionError("it waits for text that cannot come")
    except MalformedError:
        return False
    return reader.done
