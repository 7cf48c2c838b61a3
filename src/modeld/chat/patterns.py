"""Regular expressions that mean the same to the engine's matcher, to ECMAScript and to Python.

The matcher reads Rust's syntax. What reads differently is rewritten, what has no counterpart is refused.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from modeld.errors import InvalidRequestError, NotSupportedError

MAX_PATTERN: Final = 2000
"""Characters of an expression at most."""
MAX_REPEAT: Final = 1000
"""Largest number in ``{n,m}``."""
MAX_GROUPS: Final = 32
"""How deep groups may lie in each other."""

_REPEAT: Final = re.compile(r"\{(\d{1,9})(,(\d{0,9}))?\}")
_HEX: Final = re.compile(r"x([0-9A-Fa-f]{2})|u([0-9A-Fa-f]{4})")
_META: Final = frozenset(r"\.+*?()|[]{}^$#&-~")
_CONTROLS: Final = frozenset("nrtfv")
# Narrow where a character is asked for and wide where it is excluded: what comes out fits ASCII and Unicode readings.
_NARROW: Final = {"d": "0-9", "w": "0-9A-Za-z_", "s": r" \t\n\r\f\v"}
_WIDE: Final = {"d": r"\p{Nd}", "w": r"\w", "s": r"\s\x{FEFF}"}
_ANY: Final = r"[^\n\r\x{2028}\x{2029}]"
_LOOKS: Final = ("(?=", "(?!", "(?<=", "(?<!")


class Pattern(NamedTuple):
    """An expression in the matcher's syntax, without its anchors."""

    body: str
    begins: bool
    ends: bool

    @property
    def search(self) -> str:
        """As JSON Schema means it: found anywhere, where no anchor says otherwise."""
        return f"{'^' * self.begins}{self.body}{'$' * self.ends}"


def read_pattern(pattern: str) -> Pattern:
    """``pattern``, rewritten.

    :raises NotSupportedError: it is outside of the subset. :raises InvalidRequestError: it is no expression.
    """
    if len(pattern) > MAX_PATTERN:
        raise InvalidRequestError(f"the expression has {len(pattern)} characters; {MAX_PATTERN} may be")
    return _Reader(pattern).read()


class _Reader:
    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0
        self._out: list[str] = []
        self._depth = 0
        # Nothing that could be repeated came before.
        self._fresh = True
        self._choice = False

    def read(self) -> Pattern:
        text = self._text
        begins = text.startswith("^")
        self._at = int(begins)
        ends = False
        while self._at < len(text):
            if text[self._at] == "$" and self._at == len(text) - 1:
                ends = True
                break
            self._step(text[self._at])
        if self._depth:
            raise InvalidRequestError(f"the expression leaves {self._depth} groups open")
        if self._choice and (begins or ends):
            raise NotSupportedError("an anchor beside | belongs to one side only: write ^(?:a|b)$", feature="regex")
        return Pattern("".join(self._out), begins, ends)

    def _step(self, char: str) -> None:
        if char == "(":
            self._open()
        elif char in ")|":
            self._close_or_choose(char)
        elif char in "*+?":
            self._repeat(char)
        elif char == "{" and (found := _REPEAT.match(self._text, self._at)):
            self._repeat(self._count(found))
        elif char in "^$":
            raise NotSupportedError(f"{char} is taken at the {'begin' if char == '^' else 'end'} only", feature="regex")
        elif char == "[":
            self._put(self._brackets(), 0)
        elif char == "\\":
            self._put(self._escape(_NARROW, bracketed=False), 0)
        elif char == ".":
            self._put(_ANY, 1)
        else:
            self._put(_literal(char), 1)

    def _put(self, text: str, taken: int) -> None:
        self._out.append(text)
        self._at += taken
        self._fresh = False

    def _open(self) -> None:
        rest = self._text[self._at : self._at + 4]
        if rest.startswith("(?") and not rest.startswith("(?:"):
            what = "look-around" if rest.startswith(_LOOKS) else "named groups and flags"
            raise NotSupportedError(f"{what} cannot be held while text is made: {rest}", feature="regex")
        self._depth += 1
        if self._depth > MAX_GROUPS:
            raise InvalidRequestError(f"groups lie deeper in each other than {MAX_GROUPS}")
        self._put("(?:", 3 if rest.startswith("(?:") else 1)
        self._fresh = True

    def _close_or_choose(self, char: str) -> None:
        if char == ")":
            self._depth -= 1
            if self._depth < 0:
                raise InvalidRequestError("the expression closes a group that is not open")
        elif self._depth == 0:
            self._choice = True
        self._put(char, 1)
        self._fresh = char == "|"

    def _repeat(self, text: str) -> None:
        if self._fresh:
            raise InvalidRequestError(f"{text} has nothing before it to repeat")
        self._put(text, len(text))
        # Lazy or not decides which text is found, not which text fits.
        self._at += self._text.startswith("?", self._at)
        self._fresh = True

    def _count(self, found: re.Match[str]) -> str:
        low, high = int(found[1]), int(found[3] or found[1])
        if high < low or high > MAX_REPEAT:
            raise InvalidRequestError(f"{found[0]} must count up, to {MAX_REPEAT} at most")
        return found[0]

    def _escape(self, classes: dict[str, str], *, bracketed: bool) -> str:
        char = self._text[self._at + 1 : self._at + 2]
        self._at += 2
        if char in classes:
            return classes[char] if bracketed else f"[{classes[char]}]"
        if char.lower() in classes and classes is _NARROW:
            return f"[^{_WIDE[char.lower()]}]"
        if char in _CONTROLS:
            return "\\" + char
        if found := _HEX.match(self._text, self._at - 1):
            self._at = found.end()
            return _literal(chr(int(found[1] or found[2], 16)))
        if not char or char.isalnum():
            raise NotSupportedError(f"\\{char} cannot be held while text is made", feature="regex")
        return _literal(char)

    def _brackets(self) -> str:
        begin = self._at
        self._at += 1
        negated = self._text.startswith("^", self._at)
        self._at += negated
        out: list[str] = []
        while not self._text.startswith("]", self._at):
            out.append(self._bracketed(negated=negated))
        if not out:
            raise NotSupportedError(f"empty brackets at character {begin}", feature="regex")
        self._at += 1
        return f"[{'^' * negated}{''.join(out)}]"

    def _bracketed(self, *, negated: bool) -> str:
        """A character, a class or a range."""
        first = self._member(negated=negated)
        text = self._text
        if not text.startswith("-", self._at) or text.startswith("-]", self._at):
            return first
        self._at += 1
        last = self._member(negated=negated)
        low, high = _codepoint(first), _codepoint(last)
        if low is None or high is None or low > high:
            raise InvalidRequestError(f"the range {first}-{last} is none")
        return f"{first}-{last}"

    def _member(self, *, negated: bool) -> str:
        if self._at >= len(self._text):
            raise InvalidRequestError("the expression leaves brackets open")
        if self._text[self._at] == "\\":
            return self._escape(_WIDE if negated else _NARROW, bracketed=True)
        self._at += 1
        return _literal(self._text[self._at - 1])


def _literal(char: str) -> str:
    code = ord(char)
    if 0xD800 <= code < 0xE000:
        raise InvalidRequestError(f"U+{code:04X} is half of a character")
    if char in _META:
        return "\\" + char
    return char if char.isprintable() and char != "/" else f"\\x{{{code:X}}}"


def _codepoint(member: str) -> int | None:
    """Of one character as :func:`_literal` writes it; ``None``: it is a class."""
    if member.startswith("\\x{"):
        return int(member[3:-1], 16)
    plain = member.removeprefix("\\")
    if member in ("\\n", "\\r", "\\t", "\\f", "\\v"):
        return "\t\n\v\f\r".index({"t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r"}[plain]) + 9
    return ord(plain) if len(plain) == 1 else None
