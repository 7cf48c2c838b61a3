"""A request that the scheduler works on, and the stream of parts that a generating one makes."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Callable
from time import monotonic
from typing import NamedTuple

from modeld.chat.parser import OutputParser
from modeld.chat.stops import SpecialBytes, StopMatcher
from modeld.engine.backend import Sampler, Scored
from modeld.engine.constraint import Constraint
from modeld.engine.explain import computed_again, stopped
from modeld.engine.logprobs import TokenScores
from modeld.engine.pace import Pace
from modeld.engine.protocol import Decode, Prefix, SessionRequest, Suffix, Turn
from modeld.engine.session import EngineSession, Prompt
from modeld.engine.spans import Positions
from modeld.types import (
    DecodeOptions,
    LogprobsPart,
    Receipt,
    ReuseReason,
    ReuseStop,
    StreamPart,
    TextPart,
    ThinkingPart,
    TokenLogprob,
    ToolCallDelta,
    ToolCallEnd,
)


class Stream:
    """Turns sampled tokens into parts, and holds them until the reader may have them."""

    def __init__(
        self,
        options: DecodeOptions,
        seed: int,
        credit: int,
        sampler: Sampler,
        parser: OutputParser,
        constraint: Constraint | None = None,
        scores: TokenScores | None = None,
        *,
        plain: bool = False,
    ) -> None:
        self.options = options
        self.seed = seed
        self.credit = credit
        self.sampler = sampler
        self.parser = parser
        self.matcher = StopMatcher(options.stop)
        self._special = SpecialBytes()
        self.parts: list[StreamPart] = []
        self.tokens_ready = 0
        self.flushed = 0.0
        self.count = 0
        self.thinking_tokens = 0
        self.thought = False
        self.called = False
        # The answer's text, without thinking.
        self.said: list[str] = []
        # End of each token in the bytes generated, so that a stop string can be cut off the tape.
        self.token_ends: list[int] = []
        self._constraint = constraint
        self._scores = scores
        self._scored: Scored | None = None
        # Where in the bytes generated text begins that is not parsed, and what reads it once some of it has come.
        self._plain_from: int | None = 0 if plain else None
        self._plain = getincrementaldecoder("utf-8")("replace")
        self._parsed = False

    def choose(self, row: int) -> int:
        """The next token. :raises EngineError: the answer's format cannot go on, or no token has a probability."""
        allowed = self._constraint.allowed() if self._constraint is not None else None
        if self._scores is None:
            return self.sampler.sample(row, allowed)
        self._scored = self.sampler.scored(row, self._scores.top, allowed)
        return self._scored.token

    def push(self, token: int, piece: bytes, special: bool) -> str | None:
        """Take a token, and whether it is a special one; the stop string that its bytes completed, if any.

        :raises EngineError: as :meth:`choose`.
        """
        if self._constraint is not None:
            self._constraint.took(token, piece)
            if self._constraint.plain and self._plain_from is None:
                self._plain_from = self.token_ends[-1] if self.token_ends else 0
                if self._scores is not None:
                    self._scores.cut_character()
        if self._scores is not None and self._scored is not None:
            self._scores.chose(self._scored, piece)
        self.count += 1
        self.credit -= 1
        self.tokens_ready += 1
        start = self.token_ends[-1] if self.token_ends else 0
        self.token_ends.append(start + len(piece))
        if special and piece:
            self._special.add(start, start + len(piece))
        passed, matched = self.matcher.feed(piece)
        self._read(passed)
        if self.parser.in_thinking:
            self.thinking_tokens += 1
        return matched

    def finish(self) -> None:
        """No more tokens come: give out what was held back."""
        self._read(self.matcher.finish(), last=True)
        if self._parsed:
            self._say(self._plain.decode(b"", True))
        else:
            self._emit(self.parser.finish())
        if self._scores is not None:
            self._tell(self._scores.take(over=True, cut=self.matcher.matched is not None))

    def _read(self, passed: bytes, *, last: bool = False) -> None:
        """Parse what no stop string is part of, up to where the answer is plain."""
        plain = len(passed)
        if self._plain_from is not None:
            plain = max(0, self._plain_from - (self.matcher.passed - len(passed)))
        if not self._parsed:
            for data, special in self._special.pieces(passed[:plain], last=last or plain < len(passed)):
                self._emit(self.parser.feed(data, special))
        if passed[plain:]:
            if not self._parsed:
                self._emit(self.parser.finish())
                self._parsed = True
            self._say(self._plain.decode(passed[plain:]))

    def _say(self, text: str) -> None:
        if text:
            self._emit([TextPart(text)])
            if self._scores is not None:
                self._scores.became("text", text)

    def _tell(self, tokens: tuple[TokenLogprob, ...]) -> None:
        if tokens:
            self.parts.append(LogprobsPart(tokens))

    def take(self) -> tuple[tuple[StreamPart, ...], int]:
        """The parts that are ready, and the tokens they stand for."""
        if self._scores is not None:
            self._tell(self._scores.take())
        parts, tokens = tuple(self.parts), self.tokens_ready
        self.parts, self.tokens_ready, self.flushed = [], 0, monotonic()
        return parts, tokens

    def _emit(self, parts: list[StreamPart]) -> None:
        for part in parts:
            last = self.parts[-1] if self.parts else None
            if isinstance(part, TextPart):
                self.said.append(part.text)
                if isinstance(last, TextPart):
                    self.parts[-1] = TextPart(last.text + part.text)
                    continue
            if isinstance(part, ThinkingPart):
                self.thought = True
                if isinstance(last, ThinkingPart):
                    self.parts[-1] = ThinkingPart(last.text + part.text)
                    continue
            elif isinstance(part, ToolCallDelta) and isinstance(last, ToolCallDelta) and last.index == part.index:
                self.parts[-1] = ToolCallDelta(part.index, last.arguments + part.arguments)
                continue
            elif isinstance(part, ToolCallEnd):
                self.called = True
            self.parts.append(part)


class Counted(NamedTuple):
    """Tokens of a job's input, those of them that were computed and that RAM gave back, and all that was computed."""

    seen: int = 0
    fresh: int = 0
    restored: int = 0
    prefilled: int = 0


class Job:
    """One request on one session, from its arrival to its last frame."""

    def __init__(self, request: SessionRequest, session: EngineSession) -> None:
        self.request = request
        self.session = session
        self.id = request.id
        # Who asks: those take turns.
        self.client = request.client if isinstance(request, Prefix | Suffix | Turn | Decode) else ""
        self.arrived = monotonic()
        self.started = 0.0
        self.prefilled_at = 0.0
        self.prompt: Prompt | None = None
        self.target: list[int] = []
        # Leading tokens of the target whose KV may be used as it is.
        self.reusable = 0
        self.keeps_tail = False
        # Where the state is kept on the way, for a model that cannot come back there. A step ends at each.
        self.places: list[int] = []
        # A job that computes the same beginning, and how long that is: it is computed once.
        self.leader: Job | None = None
        self.common = 0
        # RAM may still have some of what it needs; how many leading tokens it seemed to have.
        self.warm = True
        self.promised = 0
        # Says whether a file that holds what it needs next is still being read.
        self.awaits: Callable[[], bool] | None = None
        self.reused = self.restored = self.dropped = 0
        # What it cost before turns left in the middle of the answer; what is left is being computed again.
        self.earlier = Counted()
        self.again = False
        # Positions that were computed for it as a prompt is, some of them again, and those that RAM gave back.
        self.computed = Positions()
        self.brought = Positions()
        # The most of its target that the KV held.
        self.reached = 0
        self.stop: ReuseStop | None = None
        # Why what its session held is not in the engine, where it is not.
        self.gone: ReuseReason = "evicted"
        # What it could have reused, had reuse not stopped.
        self.had: list[int] = []
        self.stream: Stream | None = None
        # It waits for cells or a sequence id that others hold; meanwhile they may compute what it needs.
        self.parked = self.looks_again = False
        # Others that came later and started before it.
        self.passed = 0
        # What it has had of its turn to compute its prompt.
        self.turn_tokens = self.turn_steps = 0
        # When its stream last heard something, and how fast its prompt came along.
        self.told = self.arrived
        self.pace: Pace | None = None
        # A step that held it and others failed: up to so many tokens it is computed alone.
        self.suspect = 0
        # It has begun, and it has ended, one way or another.
        self.begun = self.over = False
        # Where the answer begins, in tokens and in bytes.
        self.generated_from = self.text_from = 0
        self._frames = 0

    @property
    def computes(self) -> bool:
        """The request needs steps."""
        return isinstance(self.request, Prefix | Suffix | Turn | Decode)

    def park(self) -> None:
        """Let others go first, until something changed for those that wait."""
        self.parked = self.looks_again = True

    @property
    def decoding(self) -> bool:
        """Its prompt is computed and tokens are being sampled."""
        return self.prefilled_at > 0

    @property
    def stalled(self) -> bool:
        """Its reader has not taken what it was given."""
        return self.stream is not None and self.stream.credit <= 0

    @property
    def waits(self) -> bool:
        """Another job computes what this one needs next."""
        leader = self.leader
        return leader is not None and leader.computing and leader.session.hot < self.common

    @property
    def computing(self) -> bool:
        """Its prompt makes progress: neither done, nor given up, nor held up."""
        return self.runnable and not self.decoding and not self.over

    @property
    def complete(self) -> bool:
        """It only computes, and all it wanted is in the KV. A step without a token would fail."""
        return self.stream is None and not self.decoding and not self.remaining

    def to_next_place(self, tokens: int) -> int:
        """How many of the next ``tokens`` come before the next of :attr:`places`."""
        at = self.session.hot
        return min(tokens, min((place - at for place in self.places if place > at), default=tokens))

    def lost_kv(self, why: ReuseReason) -> None:
        """What it reused was taken from it and is computed again: its receipt must not say otherwise."""
        self.warm = True
        lost = self.reused + self.restored
        if lost:
            self.dropped += lost
            self.reused = self.restored = 0
            self.blame(stopped(why, 0, f"the KV of {lost} tokens was taken while the call ran"), self.target[:lost])

    def blame(self, stop: ReuseStop | None, had: list[int]) -> None:
        """Say in the receipt why not all of ``had``, which was there, could be reused."""
        self.stop, self.had = stop, had

    def begin_again(self, target: list[int], dropped: int) -> None:
        """The conversation under the answer is another one now, and is computed once more."""
        self.earlier = self._counted()
        self.computed, self.brought = Positions(), Positions()
        self.reached = self.reused = self.restored = 0
        self.target, self.reusable = target, len(target)
        self.dropped += dropped
        self.warm = self.again = True

    @property
    def runnable(self) -> bool:
        """It can use the next step."""
        return not self.parked and not self.stalled and not (self.awaits is not None and self.awaits())

    @property
    def remaining(self) -> list[int]:
        """Tokens still to be put into the KV."""
        return self.session.ids[self.session.hot :] if self.decoding else self.target[self.session.hot :]

    @property
    def wanted(self) -> list[int]:
        """Tokens whose KV the job would take as it is, wherever it came from."""
        return self.session.ids[:-1] if self.decoding else self.target[: self.reusable]

    @property
    def next_token(self) -> int | None:
        """The token that a stream goes on with; ``None`` while (or again when) there are more to compute."""
        session = self.session
        return session.ids[-1] if self.decoding and len(session.ids) - session.hot == 1 else None

    @property
    def done(self) -> tuple[int, int]:
        """How many tokens are in the KV, and how many there must be before the next token of its stream."""
        return self.session.hot if self.started else 0, len(self.session.ids if self.decoding else self.target)

    @property
    def silent(self) -> bool:
        """It has a stream, and no text of it can come soon: it waits, or its prompt is being computed."""
        return isinstance(self.request, Turn | Decode) and not self.stalled and (self.parked or self.next_token is None)

    def took(self, tokens: int) -> None:
        """A step has put so many tokens of it into the KV: its prompt's, or such as were taken from it."""
        hot = self.session.hot
        # The token sampled last is a step of the answer, wherever it is computed.
        self.computed.add(hot - tokens, min(hot, len(self.session.ids) - 1) if self.decoding else hot)
        self.reached = max(self.reached, min(len(self.target), hot))

    def frame(self) -> int:
        """Number of the next frame."""
        self._frames += 1
        return self._frames - 1

    def receipt(self, window: int) -> Receipt:
        """What the job cost, added to the session's counters."""
        now = monotonic()
        session = self.session
        cost = self._counted()
        fresh, prefilled = cost.fresh, cost.prefilled
        shows = self.started and not isinstance(self.request, Prefix)
        left = session.left if shows else None
        session.prefill_calls += prefilled > 0
        session.prefill_tokens += prefilled
        if self.stream is not None:
            session.decode_calls += 1
            session.decode_tokens += self.stream.count
        session.last_receipt = Receipt(
            reused=cost.seen - fresh - cost.restored,
            restored=cost.restored,
            prefilled=prefilled,
            recomputed=prefilled - fresh,
            dropped=self.dropped,
            resident=session.hot,
            window=window,
            queue_seconds=(self.started or now) - self.arrived,
            prefill_seconds=(self.prefilled_at or now) - (self.started or now),
            decode_seconds=now - self.prefilled_at if self.decoding else 0.0,
            left=left.messages if left is not None else 0,
            left_tokens=left.tokens if left is not None else 0,
        )
        if self.stop is not None:
            # The last token of a prompt is computed in any case: its logits are not kept.
            end = min(self._computed(), self.reusable)
            again = computed_again(self.had, self.target, self.reused + self.restored, end)
            session.last_receipt = session.last_receipt.charged(self.stop, again)
        return session.last_receipt

    def _computed(self) -> int:
        """Tokens of the target that are, or were, in the KV for this job."""
        if not self.started:
            return 0
        whole = self.decoding and not self.again
        return len(self.target) if whole else max(self.reached, min(len(self.target), self.session.hot))

    def _counted(self) -> Counted:
        """What the job cost so far, its earlier conversations included."""
        earlier, seen = self.earlier, self._computed()
        return Counted(
            earlier.seen + seen,
            earlier.fresh + self.computed.below(seen),
            earlier.restored + self.brought.below(seen, without=self.computed),
            earlier.prefilled + self.computed.added,
        )
