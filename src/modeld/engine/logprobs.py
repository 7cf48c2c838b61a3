"""How probable an answer's tokens were, told once it is certain what each became."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections import deque
from typing import NamedTuple

from modeld.chat.output.parts import SpanKind
from modeld.engine.backend import Scored, Vocabulary
from modeld.types import TokenLogprob, TopLogprob


class _Told(NamedTuple):
    """A token that waits; its characters are those from ``start`` up to ``end`` of what the model wrote."""

    scored: Scored
    start: int
    end: int


class TokenScores:
    """Of one answer. The output parser says of the text, in order, what it became (:meth:`became`).

    It counts characters, so places of tokens are characters too. One that tokens share is of the first; one that is
    no UTF-8 is counted as the parser reads it.
    """

    def __init__(self, vocabulary: Vocabulary, top: int) -> None:
        self.top = top
        self._vocabulary = vocabulary
        self._decoder = getincrementaldecoder("utf-8")("replace")
        self._written = 0
        self._waiting: deque[_Told] = deque()
        # Ends of stretches of one kind that are certain, in characters.
        self._certain = 0
        self._kinds: deque[tuple[int, SpanKind]] = deque()

    def became(self, kind: SpanKind, text: str) -> None:
        """The next of the text is certain: see :data:`modeld.chat.output.parts.Spans`."""
        self._certain += len(text)
        self._kinds.append((self._certain, kind))

    def chose(self, scored: Scored, piece: bytes) -> None:
        """The next token, which does not end the answer, and its bytes."""
        start = self._written
        self._written += len(self._decoder.decode(piece))
        # Of a character that is not whole yet it is a part too, and one without bytes goes with what comes next.
        open_ = bool(self._decoder.getstate()[0])
        self._waiting.append(_Told(scored, start, max(self._written + open_, start + 1)))

    def cut_character(self) -> None:
        """What comes next is read anew: a character that is not whole will not be."""
        self._written += len(self._decoder.decode(b"", True))

    def take(self, *, over: bool = False, cut: bool = False) -> tuple[TokenLogprob, ...]:
        """The tokens of which all is certain since the last time.

        :param over: no more text comes: those that are left come too. :param cut: but none after what is certain.
        """
        ready = []
        while self._waiting:
            told = self._waiting[0]
            if told.end > self._certain and not (over and (not cut or told.start < self._certain)):
                break
            ready.append(self._made(self._waiting.popleft()))
        return tuple(ready)

    def _made(self, told: _Told) -> TokenLogprob:
        while len(self._kinds) > 1 and self._kinds[0][0] <= told.start:
            self._kinds.popleft()
        scored = told.scored
        return TokenLogprob(
            scored.logprob,
            self._vocabulary.piece(scored.token),
            scored.token,
            kind=self._kinds[0][1] if self._kinds else None,
            top=tuple(TopLogprob(logprob, self._vocabulary.piece(token), token) for token, logprob in scored.top),
        )
