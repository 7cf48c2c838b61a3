"""What the tokens of one answer may be: everything while the model thinks, then what its grammars allow.

Whether it thinks says the output parser. White space behind the thinking is no part of the answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal

from msgspec import Struct

from modeld.chat.parser import OutputParser
from modeld.engine.words import Words
from modeld.errors import EngineError

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from modeld.engine.backend import Vocabulary

_QUOTES: Final = b"`\"'"
_BLANK_TOKENS: Final = 2
"""Tokens of white space that may stand behind the thinking."""


class Plan(Struct, frozen=True):
    """What an answer is held to. Its matchers stay as they are: each use takes a copy.

    :param answer: of everything behind the thinking.
    :param call: of what follows ``trigger``, where there is no ``answer``.
    :param trigger: the tag that begins a call. :param formatted: the answer may be something else than calls.
    :param opening: tokens with which the model may begin to think by itself. :param closing: the tag that ends it.
    :param parallel: more than one call may be made.
    """

    answer: LLMatcher | None = None
    call: LLMatcher | None = None
    trigger: bytes = b""
    formatted: bool = False
    opening: tuple[int, ...] = ()
    closing: bytes = b""
    parallel: bool = True


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
        self._matcher = plan.answer.deep_copy() if plan.answer is not None else None
        # opening: the tag that begins thinking is being written. armed: a trigger was spelled in letters.
        self._phase: Literal["think", "begin", "opening", "bound", "free", "armed", "over"]
        self._watch = watch
        self._phase = "think" if watch.in_thinking else self._open_phase
        self._thought = watch.in_thinking
        self._opened = 0
        self._blanks = _BLANK_TOKENS
        self._tail = b""
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
        if self._phase != "bound":
            self._watch.feed(piece, self._vocabulary.is_special(token))
        match self._phase:
            case "think":
                self._tail = (self._tail + piece)[-64:]
                if not self._watch.in_thinking:
                    self._stopped_thinking()
            case "opening":
                self._opened += 1
                if self._opened == len(self._plan.opening):
                    self._think()
            case "begin":
                self._begin(token, piece)
            case "bound":
                self._consume(token)
            case "armed" | "free":
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
        if self._plan.answer is None and self._matcher.is_accepting():
            # A call is complete.
            self._phase = "free" if self._plan.parallel else "over"
            self._tail = b""

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
        self._phase = "bound"
        self.plain = self._plan.formatted and not (self._plan.trigger and self._plan.trigger.startswith(piece[:1]))
        self._consume(token)

    def _think(self) -> None:
        self._phase, self._thought, self._tail = "think", True, b""

    def _stopped_thinking(self) -> None:
        """What the last token holds behind the closing tag belongs to the answer."""
        rest = self._tail.rpartition(self._plan.closing)[2].strip() if self._plan.closing in self._tail else b""
        self._phase, self._tail, self._blanks = self._open_phase, rest, 0
        if rest and self._phase == "begin":
            ids = self._vocabulary.tokenize(rest, add_special=False)
            assert self._matcher is not None
            if self._matcher.try_consume_tokens(ids) != len(ids):
                text = rest.decode("utf-8", "replace")
                raise EngineError(
                    f"the model ended its thinking with {text!r} in the same token, which the format forbids"
                )
            self._phase = "bound"

    def _scan(self, token: int, piece: bytes) -> None:
        """Look for a trigger. In letters it may be prose: then what follows it decides."""
        plan = self._plan
        if self._watch.in_thinking or plan.call is None:
            self._tail = b""
            return
        if self._phase == "armed":
            if not piece.strip(b" \t"):
                return
            self._phase = "free"
            if self._matcher is not None and self._matcher.validate_tokens([token]) == 1:
                self._phase = "bound"
                self._consume(token)
                return
        text, before = self._tail + piece, len(self._tail)
        at = text.rfind(plan.trigger)
        if at + len(plan.trigger) > before and at >= 0 and not (at and text[at - 1] in _QUOTES):
            rest = text[at + len(plan.trigger) :].strip(b" \t")
            self._matcher = plan.call.deep_copy()
            ids = self._vocabulary.tokenize(rest, add_special=False) if rest else []
            if self._matcher.try_consume_tokens(ids) == len(ids):
                sure = rest or self._words.special.get(plan.trigger) == token
                self._phase = "bound" if sure else "armed"
        self._tail = text[-64:]

    def _gave_up(self) -> EngineError:
        assert self._matcher is not None
        reason = self._matcher.get_error().partition("\n")[0][:200] or "no token is allowed"
        return EngineError(f"the answer cannot go on in its format: {reason}; make the format simpler")
