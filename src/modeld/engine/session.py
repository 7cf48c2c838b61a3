"""What the engine knows of a session: its tape, where the text on it came from, and what the next call can keep."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from msgspec import Struct

from modeld.engine.backend import Vocabulary
from modeld.engine.overflow import Left
from modeld.session.values import SessionClass
from modeld.thinking import ThinkLevel
from modeld.types import Message, Receipt, ReuseReason, Tool

if TYPE_CHECKING:
    from modeld.engine.job import Job


class Span(Struct, frozen=True):
    """An answer on the tape: tokens and bytes ``[start, end)`` that the model itself wrote."""

    token_start: int
    token_end: int
    byte_start: int
    byte_end: int
    thinking: bool

    def moved(self, tokens: int, size: int) -> Span:
        """The same answer so many tokens and bytes further on."""
        token_start, token_end = self.token_start + tokens, self.token_end + tokens
        return Span(token_start, token_end, self.byte_start + size, self.byte_end + size, self.thinking)


class Prompt(Struct, frozen=True):
    """A conversation as the model shall see it.

    :param left: messages of it that are not among ``messages``. :param shifts: more may leave when the window is full.
    :param answer: what ``ids`` and ``text`` end in where the answer to it has begun already.
    :param replaces: the tape is of this conversation before turns left it: no call will need its end again.
    :param raw: no template made it: its only message is the text itself, and what follows is text.
    """

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...]
    think: ThinkLevel
    text: bytes
    ids: list[int]
    left: Left | None = None
    shifts: bool = False
    answer: Span | None = None
    replaces: bool = False
    raw: bool = False


class EngineSession:
    """State of one session. Owned by the scheduler's thread.

    ``ids`` are the tokens of ``text``, the rendered conversation and what was generated after it; the KV holds the
    first ``hot`` of them. ``ids[:hot]`` is the tape; the last sampled token of an answer is in ``ids`` and not on it.
    """

    def __init__(self, key: int, *, session_class: SessionClass = "main", pin: bool = False) -> None:
        self.key = key
        self.session_class = session_class
        self.pin = pin
        self.sequence: int | None = None
        self.ids: list[int] = []
        self.hot = 0
        self.text = bytearray()
        self.spans: list[Span] = []
        self.messages: tuple[Message, ...] = ()
        self.tools: tuple[Tool, ...] = ()
        self.think: ThinkLevel = "auto"
        self.stable: tuple[Message, ...] = ()
        self.stable_tools: tuple[Tool, ...] = ()
        self.volatile: tuple[Message, ...] = ()
        # What is not among the messages though the conversation has it, and whether more may leave.
        self.left: Left | None = None
        self.shifts = False
        # No template made the text, and what the model writes is not parsed.
        self.raw = False
        self.prefix_tokens = 0
        # Tokens that a decode continues from; None while a prefill was cut short.
        self.logical: int | None = None
        # An engine ended before it told of the last call: what was said is not known, only some of the tape.
        self.unsure = False
        # Why KV that was there is not, and how much of it.
        self.lost: ReuseReason | None = None
        self.lost_tokens = 0
        self.lost_detail = ""
        # Leading tokens of the tape that the node knows of.
        self.synced = 0
        self.jobs: deque[Job] = deque()
        self.last_used = 0.0
        self.last_receipt: Receipt | None = None
        self.prefill_calls = self.prefill_tokens = self.decode_calls = self.decode_tokens = 0
        # Computed before it was asked for.
        self.ahead_tokens = 0
        self.fatal = ""

    @property
    def busy(self) -> bool:
        """Its first request has begun."""
        return bool(self.jobs) and self.jobs[0].begun

    @property
    def gone(self) -> ReuseReason | None:
        """Why the session holds no KV though it did."""
        return self.lost if self.hot == 0 else None

    @property
    def tape(self) -> list[int]:
        """Tokens whose KV the engine holds."""
        return self.ids[: self.hot]

    def tokens_of(self, text: bytes, vocabulary: Vocabulary, bos: str, add_bos: bool) -> list[int]:
        """The ids of a rendered conversation.

        Where it begins with the very bytes of an answer on the tape, the ids that the model generated are kept: a model
        may spell a text in other tokens than the tokeniser does, and then its own KV is the one to reuse.
        """
        shared = shared_length(self.text, text)
        for span in reversed(self.spans):
            if span.byte_end <= shared:
                tail = text[span.byte_end :]
                ids = vocabulary.tokenize(tail, add_special=False) if tail else []
                # Some tokenisers put a space before any text they are given: then the pieces tell, and nothing is kept.
                if b"".join(map(vocabulary.piece, ids)) == tail:
                    return self.ids[: span.token_end] + ids
                break
        doubled = add_bos and bos and text.startswith(bos.encode())
        return vocabulary.tokenize(text, add_special=not doubled)

    def adopt(self, prompt: Prompt, reused: int) -> None:
        """Make ``prompt`` the session's text; the KV of its first ``reused`` tokens is there."""
        shared = shared_length(self.ids, prompt.ids)
        self.synced = min(self.synced, shared)
        same_bytes = shared_length(self.text, prompt.text)
        self.spans = [span for span in self.spans if span.token_end <= shared and span.byte_end <= same_bytes]
        self.ids = list(prompt.ids)
        self.text = bytearray(prompt.text)
        self.hot = reused
        self.messages, self.tools, self.think = prompt.messages, prompt.tools, prompt.think
        self.left, self.shifts, self.raw = prompt.left, prompt.shifts, prompt.raw
        if prompt.answer is not None:
            self.spans.append(prompt.answer)
        self.lost, self.lost_tokens, self.lost_detail, self.unsure = None, 0, "", False

    def answer_before(self, token: int, byte: int) -> Span | None:
        """The answer that ends there: what follows goes on with it."""
        last = self.spans[-1] if self.spans else None
        return last if last is not None and (last.token_end, last.byte_end) == (token, byte) else None

    def lose(self, reason: ReuseReason) -> None:
        """The KV is gone. What it held is remembered for the next receipt."""
        if self.hot:
            self.lost, self.lost_tokens, self.lost_detail = reason, self.hot, ""
        self.sequence = None
        self.hot = 0

    def take_from(self, other: EngineSession) -> None:
        """Copy another session's conversation, but not its KV."""
        self.ids, self.text, self.spans = list(other.ids), bytearray(other.text), list(other.spans)
        self.messages, self.tools, self.think = other.messages, other.tools, other.think
        self.stable, self.stable_tools, self.volatile = other.stable, other.stable_tools, other.volatile
        self.prefix_tokens, self.logical, self.unsure = other.prefix_tokens, other.logical, other.unsure
        self.left, self.shifts, self.raw = other.left, other.shifts, other.raw
        self.lost, self.lost_tokens, self.hot, self.synced, self.fatal = None, 0, 0, 0, ""

    @property
    def remembered(self) -> list[int]:
        """The tape, or what it was before its KV went."""
        return self.ids[: self.lost_tokens if self.gone else self.hot]


def shared_length(
    old: list[int] | bytes | bytearray | str,
    new: list[int] | bytes | bytearray | str,
) -> int:
    """Length of the longest common prefix."""
    low, high = 0, min(len(old), len(new))
    # Slices compare at memory speed, so halving beats a loop over items from a few dozen on.
    while low < high:
        middle = (low + high + 1) // 2
        if old[low:middle] == new[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
