"""Why a call could not reuse all that its session held: the cause, the place, what to do, and what it cost.

The causes are looked for in this order: something in the messages or tools that both have, an end of the conversation
that is shorter or other, another level of thinking, the answer that the model gave, the template. The first that shows
in the rendered text where old and new part is named; there may be more behind it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, Final

from msgspec import structs

from modeld.engine.differences import Difference, find_difference
from modeld.engine.session import EngineSession, Prompt, Span, shared_length
from modeld.engine.volatile import volatile_shape
from modeld.types import Message, ReuseReason, ReuseStop, ToolCall

CONTEXT_CHARACTERS = 20
"""Shown on each side of the place where reuse stopped."""

RUN: Final = 8
"""Tokens in a row that must be the same for them to count as computed again behind a difference."""

_OPENING = 64
"""Bytes that a template writes at most before an answer: its role, and the tags around empty thinking."""

_THINKING: Final = re.compile(rb"</?(?:\w+:)?(?:think|thinking|thought|reasoning)\b|\[/?THINK\]|<\|channel\|?>")
_THINKING_TAG = 16
_MOST_OBJECTS = 100

ADVICE: Final[dict[ReuseReason, str]] = {
    "message_changed": "send earlier messages again as they were; put what changes into the last message",
    "volatile_header": "move it to the end of the conversation, or leave it out of the prompt",
    "history_shortened": "nothing to do where an answer was asked for again; else shorten seldom, and much at a time",
    "answer_changed": "send the message back as it was received: text, white space and the arguments of calls",
    "thinking_dropped": "the template shows no earlier thinking; turn thinking off, or each answer is paid twice",
    "tools_changed": "send the same tools in each call, built once; leave it to tool_choice which may be called",
    "tool_order": "send the tools in one order, such as sorted by name",
    "think_changed": "keep one level of thinking in a session, or use a session for each",
    "template_changed": "the model's template writes this; a session of its own for each kind of call keeps both warm",
    "retokenized": "nothing to do: the text is the same and was split into other tokens",
    "evicted": "give the engine more cells or RAM, pin the session, or run fewer sessions side by side",
    "unloaded": "raise --idle-ttl, or keep to one model",
    "engine_lost": "what was not in files by then is lost; the node's log says what crashed or was damaged",
    "turns_left": "open the session with a larger context, or let the client shorten its conversation itself",
    "cannot_rewind": "nothing to do: this model has one state for all that it has read; more RAM keeps more of them",
    "model_changed": "open the session with the same model and KV type each time",
}
"""What to do about each cause, in one sentence."""


def why_stopped(session: EngineSession, prompt: Prompt | None, shared: int) -> ReuseStop | None:
    """Why ``prompt`` leaves the conversation that the tape holds, of which it has ``shared`` tokens in common."""
    if prompt is None or shared >= len(session.remembered):
        return None
    if session.gone is not None and not session.text:
        return kv_gone(session, session.gone, shared, len(session.remembered) - shared)
    place = shared_length(session.text, prompt.text)
    found = _difference(session, prompt, place)
    index = found.message_index
    if index is not None and prompt.left is not None and index >= prompt.left.stays:
        # Counted in the conversation as the call has it.
        index += prompt.left.messages
    return ReuseStop(
        reason=found.reason,
        token=shared,
        message_index=index,
        character=found.character,
        old=_around(session.text, place),
        new=_around(prompt.text, place),
        detail=found.detail,
        advice=ADVICE[found.reason],
    )


def kv_gone(session: EngineSession, reason: ReuseReason, token: int, lost: int) -> ReuseStop:
    """The KV of ``lost`` tokens from ``token`` on is nowhere any more."""
    why = f": {session.lost_detail}" if session.lost_detail else ""
    return stopped(reason, token, f"the KV of {lost} tokens was gone{why}")


def cannot_rewind(stop: ReuseStop | None, token: int) -> ReuseStop:
    """The model cannot go back to where old and new part, only to ``token``."""
    detail = f"this model cannot go back within what it has read: it goes on from token {token}"
    if stop is None:
        return stopped("cannot_rewind", token, detail)
    return structs.replace(stop, token=token, detail="; ".join(filter(None, (stop.detail, detail))))


def stopped(reason: ReuseReason, token: int, detail: str) -> ReuseStop:
    """A stop that lies in no message."""
    return ReuseStop(reason=reason, token=token, detail=detail, advice=ADVICE[reason])


def computed_again(tape: Sequence[int], target: Sequence[int], start: int, end: int) -> int:
    """How many of the tokens ``target[start:end]``, which a call computed, the session's tape had held.

    Counted are the common beginning, and behind it runs of :data:`RUN` tokens or more that the tape had there too: they
    would have been reused, had what differs stood behind them.
    """
    common = shared_length(list(tape), list(target))
    again = max(0, min(common, end) - start)
    known = {tuple(tape[at : at + RUN]) for at in range(common, len(tape) - RUN + 1)}
    counted = max(start, common)
    for at in range(counted, end - RUN + 1):
        if tuple(target[at : at + RUN]) in known:
            again += at + RUN - max(at, counted)
            counted = at + RUN
    return again


def _difference(session: EngineSession, prompt: Prompt, place: int) -> Difference:
    if prompt.left is not None and prompt.left != session.left:
        detail = f"{prompt.left.messages} messages do not fit the window and are not shown to the model"
        return Difference("turns_left", detail=detail)
    if (found := find_difference(session, prompt, place)) is not None:
        return found
    answered = len(session.messages)
    answer = session.spans[-1] if session.spans and session.spans[-1].byte_end == len(session.text) else None
    end = answer.byte_start if answer else len(session.text)
    before = _in_messages(session, prompt, place, end)
    asked_again = len(prompt.messages) == answered and place < max(end, len(prompt.text))
    if session.think != prompt.think and (before or asked_again):
        return Difference("think_changed", detail=f"the level of thinking was {session.think} and is {prompt.think}")
    if before:
        return _template(session.text, prompt.text, place)
    if len(prompt.messages) <= answered:
        return _shortened(len(prompt.messages), answered, answer)
    if place >= len(session.text):
        return Difference("retokenized", None, None, "the same text was split into other tokens")
    if _drops_thinking(session.text, answer, place):
        return Difference("thinking_dropped", answered, 0, "the template leaves earlier thinking out of the prompt")
    if answer is None:
        detail = f"no answer had begun, and what the template writes before one gave way to message {answered}"
        return Difference("answer_changed", answered, None, detail)
    return _answer(bytes(session.text[answer.byte_start : answer.byte_end]), prompt.messages[answered], answered)


def _in_messages(session: EngineSession, prompt: Prompt, place: int, end: int) -> bool:
    """Whether ``place`` lies in what the messages of both became, and not in what the template writes behind them.

    :param end: of the prompt in the session's text.
    """
    text, messages = session.text, session.messages
    if len(prompt.messages) < len(messages):
        text, messages, end = bytearray(prompt.text), prompt.messages, len(prompt.text)
    longest = max((message.content.strip() for message in messages), key=len, default="").encode()
    return place < end - _OPENING or (len(longest) > _OPENING // 4 and text.find(longest, place, end) >= 0)


def _template(old: bytearray, new: bytes, place: int) -> Difference:
    """The messages are the same, and yet the text is not."""
    first = max(0, place - 1000)
    before = bytes(old[first:place]).decode("utf-8", "ignore")
    was, now = (before + bytes(text[place : place + 1000]).decode("utf-8", "replace") for text in (old, new))
    if shape := volatile_shape(was, now, len(before)):
        return Difference("volatile_header", detail=f"the template itself writes what looks like {shape}")
    return Difference("template_changed", detail="the template writes the same messages unlike before")


def _shortened(now: int, before: int, answer: Span | None) -> Difference:
    said = "the answer" if answer is not None else "what follows"
    detail = f"{said} is not in the conversation any more"
    if now < before:
        detail = f"the conversation had {before} messages and has {now}: the rest is not in it any more"
    return Difference("history_shortened", now, None, detail)


def _drops_thinking(text: bytearray, answer: Span | None, place: int) -> bool:
    if answer is not None and answer.thinking:
        return True
    start = max(0, place - _THINKING_TAG)
    found = _THINKING.search(text, start, (answer.byte_start if answer else len(text)) + _THINKING_TAG)
    return found is not None and found.end() > place


def _answer(generated: bytes, sent: Message, index: int) -> Difference:
    """How the answer that was sent differs from the one that the model gave."""
    said = generated.decode("utf-8", "replace")
    if sent.role != "assistant":
        return Difference(
            "answer_changed", index, None, f"message {index} is of the {sent.role}: the answer was left out"
        )
    if sent.tool_calls:
        return _calls(said, sent.tool_calls, index)
    character = shared_length(said, sent.content)
    if said == sent.content:
        return Difference("template_changed", index, None, "the template writes the answer unlike the model did")
    if said.split() == sent.content.split():
        return Difference("answer_changed", index, character, "the answer came back with other white space")
    return Difference("answer_changed", index, character, "the answer came back with another text")


def _calls(said: str, calls: Sequence[ToolCall], index: int) -> Difference:
    objects = _objects(said)
    for call in calls:
        name, arguments = call.function.name, call.function.arguments
        if arguments in said:
            continue
        try:
            known = json.loads(arguments) in objects
        except (ValueError, RecursionError):
            known = False
        how = "in another form: spaces, escapes or the order of keys" if known else "with other values"
        return Difference("answer_changed", index, None, f"the arguments of the call of {name} came back {how}")
    return Difference("template_changed", index, None, "the template writes the tool calls unlike the model did")


def _objects(text: str) -> list[Any]:
    """The first JSON objects in a text, and what they hold."""
    decoder, found, at = json.JSONDecoder(), [], text.find("{")
    for _ in range(_MOST_OBJECTS):
        if at < 0:
            break
        try:
            value, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError):
            end = at + 1
        else:
            found += [value, *value.values()]
        at = text.find("{", end)
    return found


def _around(text: bytearray | bytes, place: int) -> str:
    cut = bytes(text[max(0, place - 4 * CONTEXT_CHARACTERS) : place]).decode("utf-8", "ignore")[-CONTEXT_CHARACTERS:]
    return cut + bytes(text[place : place + 4 * CONTEXT_CHARACTERS]).decode("utf-8", "ignore")[:CONTEXT_CHARACTERS]
