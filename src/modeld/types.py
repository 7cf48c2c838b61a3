"""The values every backend speaks: messages, tools, options, stream parts, usage.

All are frozen :class:`msgspec.Struct`: the same object is the Python API, the engine frame and the JSON.
"""

from __future__ import annotations

import math
import reprlib
from typing import Any, Literal, Self, get_args

from msgspec import Struct, field, structs

from modeld.errors import InvalidRequestError, NotSupportedError
from modeld.thinking import parse_think

Role = Literal["system", "user", "assistant", "tool"]
ResponseKind = Literal["json_schema", "json_object", "regex", "choice", "ebnf"]
FinishReason = Literal["stop", "length", "context_full", "tool_calls", "refused", "cancelled", "error"]
"""Why an answer ended.

``stop``: the model ended it, or a stop string did. ``length``: ``max_tokens``. ``context_full``: the window.
``tool_calls``: the model ended it, and calls tools. ``cancelled``: the caller.
``refused``: a vendor's model or filter declined; a model on a node declines in words, which is a ``stop``.
``error``: a vendor ended an answer that had broken off, and sent no error: what came is not the whole. Whatever else
fails, and all that fails on a node, is raised instead.
"""
TokenKind = Literal["text", "thinking", "call", "marker"]
CacheTime = Literal["5m", "1h", "in_memory", "24h"]
"""How long a vendor is asked to keep a prompt in its cache, in the vendors' own words."""


class FunctionCall(Struct, frozen=True, omit_defaults=True):
    """What a model calls. ``arguments`` is JSON text exactly as the model wrote it, valid or not."""

    name: str
    arguments: str = "{}"


class ToolCall(Struct, frozen=True, omit_defaults=True):
    """One call of a tool by the model. ``provider_meta`` is opaque and must be sent back unchanged."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"
    provider_meta: dict[str, Any] | None = None


class ImagePart(Struct, frozen=True):
    """A picture: its bytes (base64 in JSON) and their type, such as ``image/png``."""

    data: bytes
    mime_type: str

    def __repr__(self) -> str:
        return f"ImagePart({self.mime_type!r}, {len(self.data)} bytes)"


class Message(Struct, frozen=True, omit_defaults=True):
    """One message of a conversation.

    ``thinking`` is for reading: it is never sent to a vendor. On a node the model's own template is given it and
    decides; most leave it out. ``provider_meta`` is opaque and goes back unchanged: what a vendor wants to see again
    (signed thinking, reasoning items) travels there. So do marks of caches, by the vendor's name (``docs/http.md``).
    ``tool_call_id`` is of role ``tool``: the call whose result this is. ``name`` is then the tool's.
    """

    role: Role
    # A factory: what equals a plain default is left out of the JSON, and the key of the content is always there.
    content: str = field(default_factory=str)
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str = ""
    name: str = ""
    provider_meta: dict[str, Any] | None = None
    images: tuple[ImagePart, ...] = ()


class FunctionTool(Struct, frozen=True, omit_defaults=True):
    """A function a model may call; ``parameters`` is a JSON schema.

    :param strict: ``True``: the arguments fit ``parameters``, or the call is refused before anything is generated;
        ``False``: they are what the model writes. ``None`` leaves it to the backend; a node holds them to the schema
        where it can, and warns where it cannot.
    :param provider_meta: what only the vendor of that name is told, such as a mark of its cache. No model sees it.
    """

    name: str
    description: str = ""
    parameters: dict[str, Any] = field(default_factory=dict)
    strict: bool | None = None
    provider_meta: dict[str, Any] | None = None


class Tool(Struct, frozen=True):
    """A tool as OpenAI writes it: ``{"type": "function", "function": {...}}``."""

    function: FunctionTool
    type: Literal["function"] = "function"


class ResponseFormat(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What an answer must look like: a schema, an expression, some texts or a grammar; without any, a JSON object.

    :param schema: a JSON schema; ``None``: any JSON object.
    :param name: of the schema; some vendors show it to the model.
    :param strict: the vendor must hold the answer to the schema, not only be asked to. A node always does.
    :param regex: a regular expression that fits the whole answer. :param choice: texts, one of which is the answer.
    :param ebnf: a grammar in GBNF, llama.cpp's notation (``root ::= ...``).
    :raises InvalidRequestError: more than one of them.
    """

    schema: dict[str, Any] | None = None
    name: str = "answer"
    strict: bool = True
    regex: str = ""
    choice: tuple[str, ...] = ()
    ebnf: str = ""

    def __post_init__(self) -> None:
        given = [name for name in ("schema", "regex", "choice", "ebnf") if getattr(self, name) not in (None, "", ())]
        if len(given) > 1:
            text = f"a response format is one of schema, regex, choice and ebnf, not {' and '.join(given)}"
            raise InvalidRequestError(text, parameter="response_format")

    @property
    def kind(self) -> ResponseKind:
        """Which of them it is."""
        if self.schema is not None:
            return "json_schema"
        if self.regex:
            return "regex"
        if self.choice:
            return "choice"
        return "ebnf" if self.ebnf else "json_object"


class ChatConfig(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How to answer. ``None``, and an empty tuple, leave the choice to the backend.

    A backend takes an option as it is, maps it to its own, or raises: none is dropped
    (:mod:`modeld.repository.options` has the table).

    :param max_tokens: tokens of the answer at most; a model's own ceiling lowers it, with a warning.
    :param temperature: 0 is greedy. :param top_k: 0 is off. :param stop: strings that end the answer.
    :param tool_choice: ``auto``, ``none``, ``required``, or the name of one of ``tools``.
    :param think: a level of :mod:`modeld.thinking`, or one of its aliases.
    :param shift: when the window is full, let the oldest turns leave. :param truncate: the same once, before the start.
        ``None`` is ``False`` on a node: what does not fit is an error.
    :param logprobs: say how probable each token was (:class:`LogprobsPart`).
    :param top_logprobs: and so many of the most probable ones in its place, 0 to 20; with ``logprobs`` only.
    :param prompt_cache: ask the vendor to keep the whole prompt in its cache, and for how long; each has its own words.
        ``None`` is what the vendor does unasked: Anthropic keeps nothing then, because writing costs more than reading
        saves where no second call follows. A node keeps every prompt, and is not told.
    :param prompt_cache_key: calls with the same one are likely to share a beginning.
    :param timeout: seconds for the whole call, retries included.
    :raises InvalidRequestError: a value outside its range, or ``shift`` and ``truncate`` both.
    """

    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repeat_penalty: float | None = None
    tools: tuple[Tool, ...] = ()
    tool_choice: str | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    think: str | None = None
    shift: bool | None = None
    truncate: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    prompt_cache: CacheTime | None = None
    prompt_cache_key: str | None = None
    timeout: float | None = None

    def __post_init__(self) -> None:
        names = [tool.function.name for tool in self.tools]
        checks = (
            ("temperature", _within(self.temperature, 0, 100), "between 0 and 100"),
            ("max_tokens", _counts(self.max_tokens), "at least 1, and below 2**63"),
            ("top_p", self.top_p is None or 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k is None or self.top_k >= 0, "0 or more"),
            ("min_p", _within(self.min_p, 0, 1), "between 0 and 1"),
            ("seed", self.seed is None or 0 <= self.seed < 2**63, "between 0 and 2**63 - 1"),
            ("stop", _are_stops(self.stop), "at most 64 strings of 1 to 1000 characters"),
            ("frequency_penalty", _within(self.frequency_penalty, -100, 100), "between -100 and 100"),
            ("presence_penalty", _within(self.presence_penalty, -100, 100), "between -100 and 100"),
            ("repeat_penalty", self.repeat_penalty is None or 0 < self.repeat_penalty <= 100, "between 0 and 100"),
            ("tools", len(set(names)) == len(names), "tools with a name each of its own"),
            ("tool_choice", self.tool_choice in (None, *TOOL_CHOICES, *names), "auto, none, required or a tool's name"),
            ("truncate", not (self.shift and self.truncate), "without shift: one of them at most"),
            ("top_logprobs", _are_tops(self.logprobs, self.top_logprobs), _TOPS),
            (
                "prompt_cache",
                self.prompt_cache in (None, *get_args(CacheTime)),
                f"one of {', '.join(get_args(CacheTime))}",
            ),
            ("timeout", self.timeout is None or 0 < self.timeout <= 10**6, "above 0 seconds"),
        )
        _check_all(self, checks)
        if any(name in TOOL_CHOICES for name in names):
            raise InvalidRequestError("a tool is not named auto, none or required: tool_choice says those")
        if self.tool_choice not in (None, "auto", "none") and not names:
            raise InvalidRequestError(
                f"tool_choice {reprlib.repr(self.tool_choice)} needs tools", parameter="tool_choice"
            )
        parse_think(self.think)

    def replace(self, **changes: Any) -> Self:
        """The same with other values, checked again."""
        return structs.replace(self, **changes)


TOOL_CHOICES = ("auto", "none", "required")


def _within(value: float | None, low: float, high: float) -> bool:
    return value is None or low <= value <= high


def _counts(tokens: int | None) -> bool:
    return tokens is None or 1 <= tokens < 2**63


_TOPS = "between 0 and 20, and with logprobs=True only"


def _are_tops(logprobs: bool | None, top: int | None) -> bool:
    return top is None or (0 <= top <= 20 and (bool(logprobs) or top == 0))


def _check_all(value: Struct, checks: tuple[tuple[str, bool, str], ...]) -> None:
    for name, fine, rule in checks:
        if not fine:
            raise InvalidRequestError(
                f"{name} must be {rule}, not {reprlib.repr(getattr(value, name))}", parameter=name
            )


class DecodeOptions(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """How to sample.

    :param max_tokens: tokens to generate at most; ``None`` goes on to the end of the window.
    :param temperature: 0 is greedy.
    :param top_k: 0 is off. :param top_p: 1 is off. :param min_p: 0 is off.
    :param repeat_penalty: 1 is off; looks back ``penalty_last_n`` tokens, prompt included.
    :param seed: 0 to 2**32 - 2; ``None`` is random, and the end part reports the seed that was drawn.
    :param stop: a tuple of strings that end the answer; they are not part of it.
    :param ignore_eos: go on after the model's own end; for benchmarks.
    :param response_format: what the answer must look like, once thinking has ended.
    :param tool_choice: ``auto``; ``required``: call one of the tools; or the name of the one to call.
    :param parallel_tool_calls: ``False``: one call at most.
    :param logprobs: say how probable each token was (:class:`LogprobsPart`).
    :param top_logprobs: and so many of the most probable ones in its place, 0 to 20; with ``logprobs`` only.
    :raises InvalidRequestError: a value outside its range.
    """

    max_tokens: int | None = None
    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    penalty_last_n: int = 64
    seed: int | None = None
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    response_format: ResponseFormat | None = None
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    logprobs: bool = False
    top_logprobs: int = 0

    def __post_init__(self) -> None:
        checks = (
            ("max_tokens", _counts(self.max_tokens), "at least 1, and below 2**63, or None"),
            ("temperature", 0 <= self.temperature <= 100, "between 0 and 100"),
            ("top_k", 0 <= self.top_k <= 2**31 - 1, "0 or more"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "between 0 and 1"),
            ("repeat_penalty", 0 < self.repeat_penalty <= 100, "above 0 and at most 100"),
            ("frequency_penalty", math.isfinite(self.frequency_penalty), "a finite number"),
            ("presence_penalty", math.isfinite(self.presence_penalty), "a finite number"),
            ("penalty_last_n", 0 <= self.penalty_last_n <= 2**20, "between 0 and 1048576"),
            ("seed", self.seed is None or 0 <= self.seed <= 2**32 - 2, "between 0 and 4294967294, or None"),
            ("stop", _are_stops(self.stop), "at most 64 strings of 1 to 1000 characters"),
            ("tool_choice", self.tool_choice not in ("", "none"), "auto, required or a tool's name"),
            (
                "ignore_eos",
                not (self.ignore_eos and self.response_format),
                "False where a response_format says the end",
            ),
            ("top_logprobs", _are_tops(self.logprobs, self.top_logprobs), _TOPS),
        )
        _check_all(self, checks)


def _are_stops(stop: object) -> bool:
    return isinstance(stop, tuple) and len(stop) <= 64 and all(isinstance(s, str) and 0 < len(s) <= 1000 for s in stop)


class Usage(Struct, frozen=True, kw_only=True):
    """Tokens and seconds of one call. ``None`` means unknown, which is not 0.

    On a node ``input`` is ``reused + restored + prefilled``, also of a call that was cancelled, and ``cache_read`` is
    ``reused + restored``. Each token of the input counts once here, however often it was computed: what a call computed
    again because others had taken its KV is :attr:`Receipt.recomputed`, which :attr:`Receipt.prefilled` has in it.
    Vendors do not tell the parts, and few of them the seconds.

    :param input: tokens the model saw, cached ones included. Of a call that was cancelled: those that it came to.
    :param cache_read: the part of ``input`` that was not computed again.
    :param cache_write: the part of ``input`` that a vendor bills as written to its cache.
    :param output: tokens generated, thinking included, the end token not.
    :param reasoning: the part of ``output`` that was thinking, its closing tag not. Where stop strings were asked for,
        give or take the tokens that were held back because they could have begun one.
    :param source: ``reported`` by a vendor, ``counted`` by an engine of ours, ``estimated``.
    :param reused: the part of ``input`` that the engine held. :param restored: that came back from RAM or files.
    :param prefilled: that was computed.
    :param drafted: tokens that a draft model proposed. :param accepted: those of them that were right. No engine has
        a draft model yet.
    :param prefill_seconds: from the start of the work on the input to the first token; the wait before it is
        :attr:`Receipt.queue_seconds`. :param decode_seconds: from there to the end.
    """

    input: int | None = None
    cache_read: int | None = None
    cache_write: int | None = None
    output: int | None = None
    reasoning: int | None = None
    source: Literal["reported", "counted", "estimated"] = "counted"
    reused: int | None = None
    restored: int | None = None
    prefilled: int | None = None
    drafted: int | None = None
    accepted: int | None = None
    prefill_seconds: float | None = None
    decode_seconds: float | None = None


ReuseReason = Literal[
    "message_changed",
    "volatile_header",
    "history_shortened",
    "answer_changed",
    "thinking_dropped",
    "tools_changed",
    "tool_order",
    "think_changed",
    "template_changed",
    "retokenized",
    "evicted",
    "unloaded",
    "engine_lost",
    "model_changed",
    "turns_left",
    "cannot_rewind",
]
"""Why reuse stopped where it did; ``docs/receipts.md`` says what to do about each.

``evicted``, ``unloaded`` and ``engine_lost``: the KV was gone, not different.
``turns_left``: the conversation did not fit, and its oldest turns left it.
``cannot_rewind``: the model has one state for all it has read, and none was kept from there.
"""


class ReuseStop(Struct, frozen=True, kw_only=True):
    """Where and why reuse of a session's tape stopped.

    :param token: index of the first token that could not be reused.
    :param message_index: message (of the call) in which old and new part; ``None`` where no message is to blame.
    :param character: offset of the first differing character in that message's content.
    :param old: up to 40 characters around the place as the tape has it. :param new: as the call has it.
    :param detail: the cause in words. :param advice: what to do about it, in one sentence.
    :param tokens: that the session had held, and that this call computed again.
    :param seconds: what those cost: their part of the receipt's ``prefilled``, of its ``prefill_seconds``.
    """

    reason: ReuseReason
    token: int = 0
    message_index: int | None = None
    character: int | None = None
    old: str = ""
    new: str = ""
    detail: str = ""
    tokens: int = 0
    seconds: float = 0.0
    advice: str = ""

    @property
    def place(self) -> str:
        """Where, in words."""
        if self.message_index is None:
            return f"at token {self.token}"
        if self.character is None:
            return f"in message {self.message_index}"
        return f"in message {self.message_index} at character {self.character}"


class Receipt(Struct, frozen=True, kw_only=True):
    """What a call cost, in tokens. ``reused + restored + prefilled - recomputed`` is the whole input.

    :param prefilled: computed by this call (at least 1 where logits were needed), each time it was.
    :param recomputed: the part of ``prefilled`` that the call had once already: others needed the room, and its KV was
        taken while it ran. With tokens of the answer among them. In :attr:`Usage.input` they count once, or not at all.
    :param dropped: left the session's tape because they differ from the input (or because the KV was lost).
    :param resident: on the tape after the call. :param window: tokens the session can hold.
    :param rebound: the handle was of an older generation and was bound to this one.
    :param stop: ``None`` when the whole tape was reused.
    :param left: messages of the call's conversation that the model was not shown, because the caller let them leave.
    :param left_tokens: so much longer the input would have been with them. When turns left in the middle of an answer,
        what was computed again counts in ``reused``, ``restored`` and ``prefilled`` once more.
    """

    reused: int = 0
    restored: int = 0
    prefilled: int = 0
    dropped: int = 0
    resident: int = 0
    window: int = 0
    generation: int = 0
    rebound: bool = False
    stop: ReuseStop | None = None
    queue_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    left: int = 0
    left_tokens: int = 0
    recomputed: int = 0

    @property
    def input(self) -> int:
        """Tokens of the rendered input, each counted once."""
        return self.reused + self.restored + self.prefilled - self.recomputed

    def usage(self, output: int = 0, reasoning: int = 0) -> Usage:
        """The same as usage, of an answer with so many tokens, and so many of them thinking."""
        return Usage(
            input=self.input,
            cache_read=self.reused + self.restored,
            output=output,
            reasoning=reasoning,
            reused=self.reused,
            restored=self.restored,
            prefilled=self.prefilled - self.recomputed,
            prefill_seconds=self.prefill_seconds,
            decode_seconds=self.decode_seconds,
        )

    def charged(self, stop: ReuseStop, tokens: int) -> Receipt:
        """The same with ``stop``, and what that cost: ``tokens`` of the prefilled ones had been there before.

        Seconds are ``prefill_seconds * tokens / prefilled``. Where the call waited in its prefill for others, that
        counts too.
        """
        tokens = min(tokens, self.prefilled)
        seconds = self.prefill_seconds * tokens / self.prefilled if tokens > 0 else 0.0
        return structs.replace(self, stop=structs.replace(stop, tokens=max(tokens, 0), seconds=seconds))


class TextPart(Struct, frozen=True, tag="text"):
    """A piece of the answer."""

    text: str


class ThinkingPart(Struct, frozen=True, tag="thinking"):
    """A piece of the model's thinking."""

    text: str


class ToolCallStart(Struct, frozen=True, tag="tool_call_start"):
    """A tool call begins; its arguments follow as deltas with the same index."""

    index: int
    id: str
    name: str


class ToolCallDelta(Struct, frozen=True, tag="tool_call_delta"):
    """A piece of the JSON text of a call's arguments."""

    index: int
    arguments: str


class ToolCallEnd(Struct, frozen=True, tag="tool_call_end"):
    """A tool call is complete. ``provider_meta`` belongs to the call."""

    index: int
    provider_meta: dict[str, Any] | None = None


class TopLogprob(Struct, frozen=True):
    """A token that could have come, and the natural logarithm of its probability; see :class:`LogprobsPart`.

    :param data: the bytes it stands for, which may be part of a character; of a control token its name.
    :param token: its id in the model's vocabulary; ``None``: the vendor does not tell.
    """

    logprob: float
    data: bytes
    token: int | None = None


class TokenLogprob(Struct, frozen=True):
    """A token that came. The fields of :class:`TopLogprob`, and:

    :param kind: what the first character it is part of became: ``marker`` is what no part shows, tags for example;
        ``call`` lies in a tool call, its tags included. ``None``: the vendor does not tell.
    :param top: the most probable tokens in its place, the first most of all. The token itself need not be among them.
    """

    logprob: float
    data: bytes
    token: int | None = None
    kind: TokenKind | None = None
    top: tuple[TopLogprob, ...] = ()


class LogprobsPart(Struct, frozen=True, tag="logprobs"):
    """How probable the next tokens of the answer were, in their order; only where ``logprobs`` asked for it.

    A node says it of every token it generated that is part of the answer: text, thinking, calls and the markers between
    them. A token comes once it is certain what it became, after the part that holds it: those of a call when that is
    complete. Not told are the token that ended the answer, and tokens of which a stop string left nothing; of one that
    a stop string cut, ``data`` is the whole token. Frames cut the sequence anywhere.

    The numbers are of the model's own distribution, the log-softmax of its logits: before temperature, penalties,
    truncation (top-k, top-p, min-p), and before a format or a tool's schema forbade anything. So a token that was
    forced may have a low one. Those of a vendor are what the vendor says, mostly of the answer's text alone; some write
    -9999 for what is beyond the alternatives they look at.
    """

    tokens: tuple[TokenLogprob, ...]


class ProgressPart(Struct, frozen=True, tag="progress"):
    """Prefill goes on: ``done`` of ``total`` input tokens, of which ``cached`` were reused or restored.

    A node sends one at least every second until there is text, also while the call waits, and one right before the
    first token. ``total`` is 0 until the prompt was looked at. A vendor that tells its counts at the start of an answer
    gets one, with all of it done. A call whose KV was taken while it ran is computed again, its answer so far included.

    :param cache_write: of ``total``, what a vendor bills as written to its cache.
    :param position: place in the queue of those that wait for room, the first is 1; 0: it is being computed.
    :param rate: tokens a second lately, 0 where nobody knows yet. :param seconds_left: an estimate, likewise.
    """

    cached: int
    done: int
    total: int
    position: int = 0
    rate: float = 0.0
    seconds_left: float = 0.0
    cache_write: int = 0


class WarningPart(Struct, frozen=True, tag="warning"):
    """Something the caller should know; the call goes on."""

    code: str
    message: str


class ErrorPart(Struct, frozen=True, tag="error"):
    """Malformed model output: ``raw`` was also sent as text. The stream goes on.

    :param call: index of a tool call of which something was sent before it turned out to be malformed. It is none:
        no end of it follows, and who joins parts forgets it.
    """

    code: str
    message: str
    raw: str = ""
    call: int | None = None


class EndPart(Struct, frozen=True, tag="end", kw_only=True):
    """The last part of every stream, also of a cancelled one.

    :param receipt: what the turn cost on a node; ``None`` from a vendor.
    :param model: the model that answered. :param id: the vendor's id of the answer.
    :param seed: the one that was used, drawn at random where none was given.
    :param stop: the stop string that ended it.
    :param provider_meta: belongs to the message.
    """

    finish_reason: FinishReason
    usage: Usage
    receipt: Receipt | None = None
    model: str = ""
    seed: int | None = None
    stop: str = ""
    id: str = ""
    provider_meta: dict[str, Any] | None = None

    def cost(self) -> Receipt:
        """The receipt.

        :raises NotSupportedError: there is none: a vendor gave the answer.
        """
        if self.receipt is None:
            raise NotSupportedError("only a node gives a receipt; this answer is a vendor's", feature="receipt")
        return self.receipt


StreamPart = (
    TextPart
    | ThinkingPart
    | ToolCallStart
    | ToolCallDelta
    | ToolCallEnd
    | ProgressPart
    | WarningPart
    | ErrorPart
    | LogprobsPart
    | EndPart
)


class ChatResult(Struct, frozen=True, kw_only=True):
    """A stream, joined. ``message`` is ready to be appended to the conversation.

    :param logprobs: of the tokens of the answer, where they were asked for; see :class:`LogprobsPart`.
    """

    message: Message
    end: EndPart
    warnings: tuple[WarningPart, ...] = ()
    errors: tuple[ErrorPart, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()

    @property
    def text(self) -> str:
        """The answer's text."""
        return self.message.content

    @property
    def thinking(self) -> str:
        """The model's thinking, where it shows it."""
        return self.message.thinking

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """What the model calls."""
        return self.message.tool_calls

    @property
    def finish_reason(self) -> FinishReason:
        """Why the answer ended."""
        return self.end.finish_reason

    @property
    def usage(self) -> Usage:
        """Tokens, and who counted them."""
        return self.end.usage

    @property
    def model(self) -> str:
        """The model that answered."""
        return self.end.model

    @property
    def id(self) -> str:
        """The vendor's id of the answer."""
        return self.end.id

    @property
    def receipt(self) -> Receipt:
        """As :meth:`EndPart.cost`."""
        return self.end.cost()


class PartsJoiner:
    """Joins stream parts into a :class:`ChatResult`; the joined stream equals the whole result."""

    def __init__(self) -> None:
        self._text: list[str] = []
        self._thinking: list[str] = []
        self._calls: dict[int, ToolCallStart] = {}
        self._arguments: dict[int, list[str]] = {}
        self._meta: dict[int, dict[str, Any] | None] = {}
        self._warnings: list[WarningPart] = []
        self._errors: list[ErrorPart] = []
        self._logprobs: list[TokenLogprob] = []
        self._end: EndPart | None = None

    def add(self, part: StreamPart) -> None:
        """Take the next part, in order."""
        match part:
            case TextPart(text=text):
                self._text.append(text)
            case ThinkingPart(text=text):
                self._thinking.append(text)
            case ToolCallStart(index=index):
                self._calls[index] = part
                self._arguments[index] = []
            case ToolCallDelta(index=index, arguments=arguments):
                self._arguments[index].append(arguments)
            case ToolCallEnd(index=index, provider_meta=meta):
                self._meta[index] = meta
            case WarningPart():
                self._warnings.append(part)
            case ErrorPart(call=index):
                self._errors.append(part)
                if index is not None:
                    self._calls.pop(index, None)
            case LogprobsPart(tokens=tokens):
                self._logprobs += tokens
            case EndPart():
                self._end = part
            case ProgressPart():
                pass

    def result(self) -> ChatResult:
        """The whole.

        :raises InvalidRequestError: no end part was added.
        """
        end = self._end
        if end is None:
            raise InvalidRequestError("the stream has no end part yet")
        calls = tuple(
            ToolCall(
                id=start.id,
                function=FunctionCall(start.name, "".join(self._arguments[index])),
                provider_meta=self._meta.get(index),
            )
            for index, start in sorted(self._calls.items())
        )
        message = Message(
            "assistant",
            "".join(self._text),
            thinking="".join(self._thinking),
            tool_calls=calls,
            provider_meta=end.provider_meta,
        )
        return ChatResult(
            message=message,
            end=end,
            warnings=tuple(self._warnings),
            errors=tuple(self._errors),
            logprobs=tuple(self._logprobs),
        )
