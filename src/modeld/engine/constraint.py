"""What the tokens of one answer may be: everything while the model thinks, then what its grammars allow.

Whether it thinks says the output parser. White space behind the thinking is no part of the answer.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal

from msgspec import Struct

from modeld.chat.output.formats import is_tag
from modeld.chat.parser import OutputParser
from modeld.engine.words import Words
from modeld.errors import EngineError

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from modeld.engine.backend import Vocabulary

_QUOTES: Final = b"`\"'"
_BETWEEN: Final = b" \t\r\n;"
"""May stand before a call that has no marker."""
_BLANK_TOKENS: Final = 2
"""Tokens of white space that may stand behind the thinking."""


class Plan(Struct, frozen=True):
    """What an answer is held to. Its matchers stay as they are: each use takes a copy.

    :param answer: of everything behind the thinking.
    :param call: of what follows ``trigger``, where there is no ``answer``.
    :param trigger: the marker that begins a call. :param formatted: the answer may be something else than calls.
    :param bare: an answer that ``call`` takes up to where this is found is a call without a marker.
    :param opening: tokens with which the model may begin to think by itself. :param closings: the tags that end it.
    :param parallel: more than one call may be made.
    :param header: ``answer`` or ``call`` is of everything, the thinking too, from the header that the prompt leaves
        open.
    """

    answer: LLMatcher | None = None
    call: LLMatcher | None = None
    trigger: str = ""
    bare: re.Pattern[bytes] | None = None
    formatted: bool = False
    opening: tuple[int, ...] = ()
    closings: tuple[bytes, ...] = ()
    parallel: bool = True
    header: bool = False


class Constraint:
    """The state of one answer. :meth:`allowed` before a token is chosen, :meth:`took` after it; never back.

    :param watch: a parser of the answer's own, that tells whether the model thinks. Another than the one that parses:
        that one hears late of what could become a stop string.
    :ivar plain: the answer is neither calls nor thinking from here on, whatever tags it spells.
    """

    def __init__(self, plan: Plan, words: Words, vocabulary: Vocabulary, watch: OutputParser) -> None:
        self._plan = plan
        self._words = words
        self._vocabulary = vocabulary
        matcher = plan.call if plan.header and plan.answer is None else plan.answer
        self._matcher = matcher.deep_copy() if matcher is not None else None
        # opening: the tag that begins thinking is being written. armed: a trigger was spelled in letters. likely: what
        # was written so far could be a call without a marker. lost: the answer does not begin where the grammar does.
        self._phase: Literal["think", "begin", "opening", "bound", "free", "armed", "likely", "over", "lost"]
        self._watch = watch
        self._phase = "think" if watch.in_thinking else self._open_phase
        if plan.header:
            self._phase = "bound" if watch.in_header else "free" if plan.answer is None else "lost"
        self._thought = watch.in_thinking
        self._opened = 0
        self._blanks = _BLANK_TOKENS
        self._tail = b""
        self._trigger = plan.trigger.encode()
        # The one token that the trigger is; its letters are no trigger then.
        self._token = words.special.get(self._trigger)
        # A call without a marker may begin here: only white space and such calls came since the answer or thinking.
        self._fresh = True
        self._marked = False
        self.plain = False

    @property
    def _may_open(self) -> bool:
        """Thinking may begin: once at most, or a model with nothing to say in this format would think for ever."""
        return bool(self._plan.opening) and not self._thought

    @property
    def _open_phase(self) -> Literal["begin", "free"]:
        return "free" if self._plan.answer is None else "begin"

    def allowed(self) -> bytes | None:
        """A mask of the tokens that may come next; ``None``: all.

        :raises EngineError: the matcher gave up.
        """
        match self._phase:
            case "think":
                # Who ends here has given no answer.
                return self._words.every if self._plan.answer is not None else None
            case "opening":
                return self._words.mask(self._plan.opening[self._opened : self._opened + 1])
            case "over":
                return self._words.end
            case "lost":
                raise EngineError(
                    "the answer cannot be held: in this model's format it begins with a header, and the prompt does "
                    "not end where one begins"
                )
            case "bound":
                return self._mask()
            case "begin":
                mask = self._mask()
                if self._may_open:
                    mask = self._words.either(mask, self._words.mask(self._plan.opening[:1]))
                return self._words.either(mask, self._words.blank) if self._blanks < _BLANK_TOKENS else mask
        return None

    def took(self, token: int, piece: bytes) -> None:
        """A token was chosen, which does not end the answer.

        :raises EngineError: the matcher gave up, or a token holds the end of the thinking and what cannot follow it.
        """
        if self._phase != "bound" or self._plan.answer is None:
            self._watch.feed(piece, self._vocabulary.is_special(token))
        match self._phase:
            case "think":
                self._tail = (self._tail + piece)[-64:]
                if not self._watch.in_thinking:
                    self._stopped_thinking(token, piece)
            case "opening":
                self._opened += 1
                if self._opened == len(self._plan.opening):
                    self._think()
            case "begin":
                self._begin(token, piece)
            case "bound":
                self._consume(token)
            case "armed" | "free" | "likely":
                self._scan(token, piece)

    def _mask(self) -> bytes:
        assert self._matcher is not None
        mask: bytes = self._matcher.compute_bitmask()
        if self._matcher.is_error() or not any(mask):
            raise self._gave_up()
        return mask

    def _consume(self, token: int) -> None:
        assert self._matcher is not None
        if not self._matcher.consume_token(token):
            raise self._gave_up()
        self._bind()

    def _bind(self) -> None:
        """The matcher decides what comes next, unless what it took is a whole call already."""
        assert self._matcher is not None
        self._phase = "bound"
        if self._plan.answer is None and not self._plan.header and self._matcher.is_accepting():
            self._phase = "free" if self._plan.parallel else "over"
            self._tail, self._fresh = b"", not self._marked

    def _begin(self, token: int, piece: bytes) -> None:
        assert self._matcher is not None
        if self._blanks < _BLANK_TOKENS and token in self._words.blanks:
            self._blanks += 1
            return
        fits = self._matcher.validate_tokens([token]) == 1
        if not fits and self._may_open and self._plan.opening[0] == token:
            self._opened = 1
            if len(self._plan.opening) == 1:
                self._think()
            else:
                self._phase = "opening"
            return
        calls = token == self._token if self._token is not None else self._trigger.startswith(piece[:1])
        self.plain = self._plan.formatted and not (self._trigger and calls)
        self._consume(token)

    def _think(self) -> None:
        self._phase, self._thought, self._tail = "think", True, b""

    def _stopped_thinking(self, token: int, piece: bytes) -> None:
        """What the last token holds behind the closing tag belongs to the answer; all of it, if it was no such tag."""
        ends = [self._tail.rfind(close) + len(close) for close in self._plan.closings if close in self._tail]
        tagged = max(ends, default=0) > len(self._tail) - len(piece)
        rest = self._tail[max(ends) :].strip() if tagged else b""
        self._phase, self._tail, self._blanks, self._fresh = self._open_phase, b"", 0, True
        if not tagged:
            self._begin(token, piece) if self._phase == "begin" else self._scan(token, piece)
        elif rest and self._phase == "free":
            self._look(rest, -1)
        elif rest:
            ids = self._vocabulary.tokenize(rest, add_special=False)
            assert self._matcher is not None
            if self._matcher.try_consume_tokens(ids) != len(ids):
                text = rest.decode("utf-8", "replace")
                raise EngineError(
                    f"the model ended its thinking with {text!r} in the same token, which the format forbids"
                )
            self._bind()

    def _scan(self, token: int, piece: bytes) -> None:
        """Look for what begins a call. In letters it may be prose: then what follows it decides."""
        if self._plan.call is None:
            return
        if self._watch.in_thinking:
            self._think()
            self._tail = piece[-64:]
            return
        if self._phase == "armed" and not piece.strip(b" \t"):
            return
        goes_on = self._phase in ("armed", "likely") and self._taken(token)
        if goes_on and self._phase == "armed":
            self._consume(token)
        elif goes_on:
            self._likely(piece, [token])
        else:
            self._phase = "free"
            self._look(piece, token)

    def _look(self, piece: bytes, token: int) -> None:
        """:param token: the piece; below 0: the piece is the end of a token's."""
        assert self._plan.call is not None
        before, self._tail = self._tail, (self._tail + piece)[-64:]
        if (rest := self._triggered(before, piece, token)) is not None:
            self._fresh, self._marked = False, True
            self._matcher = self._plan.call.deep_copy()
            ids = self._vocabulary.tokenize(rest, add_special=False) if rest else []
            if self._matcher.try_consume_tokens(ids) == len(ids):
                sure = rest or self._token is not None or not is_tag(self._plan.trigger)
                if sure:
                    self._bind()
                else:
                    self._phase = "armed"
        elif self._plan.bare is not None and self._fresh and (text := piece.lstrip(_BETWEEN)):
            self._fresh, self._marked = False, False
            self._matcher, self._tail = self._plan.call.deep_copy(), b""
            whole = token >= 0 and len(text) == len(piece)
            self._likely(text, [token] if whole else self._vocabulary.tokenize(text, add_special=False))

    def _triggered(self, before: bytes, piece: bytes, token: int) -> bytes | None:
        """What stands behind the trigger that this token completes; ``None``: it completes none."""
        trigger, tag = self._trigger, is_tag(self._plan.trigger)
        if self._token is not None:
            quoted = tag and before[-1:] and before[-1] in _QUOTES
            return b"" if token == self._token and not quoted else None
        text = before + piece
        at = text.rfind(trigger)
        if not trigger or at < 0 or at + len(trigger) <= len(before) or (at and text[at - 1] in _QUOTES):
            return None
        return text[at + len(trigger) :].strip(b" \t")

    def _taken(self, token: int) -> bool:
        return self._matcher is not None and self._matcher.validate_tokens([token]) == 1

    def _likely(self, text: bytes, ids: list[int]) -> None:
        """Text that could be of a call without a marker. It is one as soon as a tool is named in the right place."""
        assert self._matcher is not None
        assert self._plan.bare is not None
        self._tail += text
        if self._matcher.try_consume_tokens(ids) != len(ids):
            self._phase, self._tail = "free", self._tail[-64:]
        elif self._plan.bare.search(self._tail):
            self._tail = b""
            self._bind()
        else:
            self._phase = "likely"

    def _gave_up(self) -> EngineError:
        assert self._matcher is not None
        reason = self._matcher.get_error().partition("\n")[0][:200] or "no token is allowed"
        return EngineError(f"the answer cannot go on in its format: {reason}; make the format simpler")
