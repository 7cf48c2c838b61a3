"""A model's vocabulary as the matcher knows it. Its package is imported here, when a grammar is first used."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final

from modeld.engine.backend import Vocabulary
from modeld.errors import InvalidRequestError, MissingDependencyError, NotSupportedError

if TYPE_CHECKING:
    from llguidance import LLMatcher

SPECIAL: Final = b"\xff"
"""Begins the piece of a token that no text is made of; the matcher's own convention."""

_BLANKS: Final = frozenset(b" \t\r\n")
_PLACE: Final = re.compile(r"^at \d+\(\d+\): (failed to compile JSON schema: )?")
_LINES: Final = re.compile(r"\n\s*\d+ \|")
_STATES: Final = 20_000
"""Of one answer's matcher, 1 to 2 KiB each."""
_GRAMMAR: Final = 200_000
"""Symbols of one grammar."""
_ROW: Final = 10_000
"""What may come next in it: four for each optional property at that place, of which a schema has 1,000.

The other limits are the package's own: 15 ms of work for a token.
"""
_BEGIN: Final = 300_000
"""Work to begin with, in the package's measure. With its own, 1,000,000, it took half a second to give up."""


class _Tokens:
    """What the matcher's tokenizer is made from."""

    def __init__(self, tokens: list[bytes], end: int) -> None:
        self.tokens = tokens
        self.eos_token_id = end
        self.bos_token_id = None
        self.special_token_ids: list[int] = []

    def __call__(self, text: bytes) -> list[int]:
        """Never needed: no token is forced."""
        return []


class Words:
    """The matcher's tokenizer, and the masks that no grammar has. Made once for each load.

    A mask has a bit for each token that is allowed, the lowest of a byte first.

    :ivar every: allows all tokens that do not end the answer. :ivar blank: those of white space alone.
    :ivar end: those that end it.
    :raises MissingDependencyError: the matcher's package is not installed.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        try:
            from llguidance import LLParserLimits, LLTokenizer, TokenizerWrapper
        except ImportError as error:
            raise MissingDependencyError(
                f"grammars need llguidance, which is not installed ({error}): pip install llguidance, or install "
                "modeld with its extra llama",
                extra="llama",
            ) from error
        words = vocabulary.words()
        ends = [token for token, piece in enumerate(words) if piece[:1] == SPECIAL and vocabulary.is_end(token)]
        if not ends:
            raise NotSupportedError("the model has no token that ends an answer", feature="response_format")
        self.size = len(words)
        self.special = {piece[1:]: token for token, piece in enumerate(words) if piece[:1] == SPECIAL}
        self.blanks = frozenset(token for token, piece in enumerate(words) if piece and _BLANKS.issuperset(piece))
        self.end = self.mask(ends)
        self._ends = frozenset(words[token][1:] for token in ends)
        self.blank = self.mask(self.blanks)
        everything = (1 << self.size) - 1
        self.every = self._bytes(everything & ~int.from_bytes(self.end, "little"))
        self._tokenizer = LLTokenizer(TokenizerWrapper(_Tokens(words, ends[0])), eos_token=ends)
        self._limits = LLParserLimits(
            max_lexer_states=_STATES,
            max_grammar_size=_GRAMMAR,
            max_items_in_row=_ROW,
            initial_lexer_fuel=_BEGIN,
            verbose_errors=False,
        )

    def mask(self, tokens: Any) -> bytes:
        """Allows these tokens."""
        bits = bytearray(self._width)
        for token in tokens:
            bits[token >> 3] |= 1 << (token & 7)
        return bytes(bits)

    def either(self, one: bytes, other: bytes) -> bytes:
        """Allows what one of two masks allows."""
        return self._bytes(int.from_bytes(one, "little") | int.from_bytes(other, "little"))

    def spell(self, tag: str) -> str:
        """See :data:`modeld.chat.call_grammar.Spell`."""
        if tag.encode() in self._ends:
            return ""
        token = self.special.get(tag.encode())
        return json.dumps(tag) if token is None else f"<[{token}]>"

    def matcher(self, grammar: str) -> LLMatcher:
        """One that has matched nothing yet. Does not hold up other threads.

        :raises InvalidRequestError: the grammar makes no sense, is too complex, or nothing fits it.
        """
        from llguidance import LLMatcher

        matcher = LLMatcher(self._tokenizer, grammar, limits=self._limits, log_level=0)
        if not matcher.is_error():
            matcher.deep_copy().compute_bitmask()
        if matcher.is_error():
            raise InvalidRequestError(
                f"no grammar can be made of it: {_first_words(matcher.get_error())}", parameter="response_format"
            )
        return matcher

    @property
    def _width(self) -> int:
        return (self.size + 31) // 32 * 4

    def _bytes(self, bits: int) -> bytes:
        return bits.to_bytes(self._width, "little")


def read_words(vocabulary: Vocabulary) -> Callable[[], Words]:
    """The words, read now: where they cannot be had, whoever calls for them gets the error.

    To be called before there are streams. No other thread runs Python while the matcher's package reads a vocabulary,
    which takes a third of a second with 152,000 tokens.
    """
    read: Future[Words] = Future()
    try:
        read.set_result(Words(vocabulary))
    except BaseException as error:  # a panic of the package is no Exception, and must not end the engine
        read.set_exception(error)
    return read.result


def lark_from_gbnf(text: str) -> str:
    """GBNF in the matcher's notation.

    :raises InvalidRequestError: it is no GBNF.
    """
    from llguidance.gbnf_to_lark import gbnf_to_lark

    try:
        return str(gbnf_to_lark(text))
    except Exception as error:  # of another package, about a text of somebody else's
        reason = str(error)[:200] or type(error).__name__
        raise InvalidRequestError(f"the grammar is no GBNF: {reason}", parameter="response_format") from error


def _first_words(error: str) -> str:
    # Where it was, in a grammar that nobody but us has seen, and behind the first lines that grammar.
    said = _LINES.split(_PLACE.sub("", error))[0]
    return " ".join(said.split())[:300]
