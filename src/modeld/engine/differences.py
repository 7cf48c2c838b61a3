"""Where two conversations part, by their values: which message or tool, which part of it, and how it changed."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from msgspec import Struct, structs

from modeld.chat.dialect import tool_of
from modeld.engine.session import EngineSession, Prompt, shared_length
from modeld.engine.volatile import in_header, volatile_shape
from modeld.types import Message, ReuseReason, Tool

_EVIDENCE = 16
"""Characters on each side of a difference by which it is found again in the rendered text."""


_MOST_PLACES = 32
"""Where messages that moved are looked for."""


class Difference(Struct, frozen=True):
    """A cause, where in the new conversation it lies, and the cause in words."""

    reason: ReuseReason
    message_index: int | None = None
    character: int | None = None
    detail: str = ""


def find_difference(session: EngineSession, prompt: Prompt, place: int) -> Difference | None:
    """What differs in messages or tools, as far as both have them, and shows in the text at byte ``place``.

    :returns: ``None``: what both have is equal.
    """
    differing = _differing(session, prompt)
    first = next(differing, None)
    if first is None:
        return tools_difference(session.tools, prompt.tools)
    old, new = session.messages, prompt.messages
    difference = _moved(old, new, first) or _message(old[first], new[first], first)
    if _shows(session, prompt, place, difference):
        return difference
    if (tools := tools_difference(session.tools, prompt.tools)) is not None:
        return tools
    if difference.character is not None:
        # A template may leave out how this one differs, such as white space at its end.
        for index in differing:
            later = _message(old[index], new[index], index)
            if _shows(session, prompt, place, later):
                return later
    return difference


def _differing(session: EngineSession, prompt: Prompt) -> Iterator[int]:
    for index, (old, new) in enumerate(zip(session.messages, prompt.messages, strict=False)):
        if old != new and _seen(old, session.text) != _seen(new, prompt.text):
            yield index


def _seen(message: Message, text: bytes | bytearray) -> Message:
    """The message without what a template does not show: thinking, what is a vendor's own, and ids that are nowhere."""
    calls = tuple(
        structs.replace(call, id=call.id if call.id.encode() in text else "", provider_meta=None)
        for call in message.tool_calls
    )
    call_id = message.tool_call_id if message.tool_call_id.encode() in text else ""
    return structs.replace(message, thinking="", provider_meta=None, tool_calls=calls, tool_call_id=call_id)


def _moved(old: Sequence[Message], new: Sequence[Message], index: int) -> Difference | None:
    """Messages that left, or were put in, where that explains more than that this one was edited."""
    edited = _agree(old[index + 1 :], new[index + 1 :])
    # A few places: in a conversation of thousands of equal messages all streams would wait for all of them.
    left_at = islice((at for at in range(index + 1, len(old)) if old[at] == new[index]), _MOST_PLACES)
    put_at = islice((at for at in range(index + 1, len(new)) if new[at] == old[index]), _MOST_PLACES)
    left = [(_agree(old[at:], new[index:]), at) for at in left_at]
    put = [(_agree(old[index:], new[at:]), at) for at in put_at]
    if left and max(left)[0] > edited:
        detail = f"{_count(max(left)[1] - index)} taken out of the conversation here"
        return Difference("history_shortened", index, None, detail)
    if put and max(put)[0] > edited:
        return Difference("message_changed", index, None, f"{_count(max(put)[1] - index)} put in here")
    return None


def _agree(old: Sequence[Message], new: Sequence[Message]) -> int:
    """How many messages are the same before the first that is not."""
    return next((n for n, (was, now) in enumerate(zip(old, new, strict=False)) if was != now), min(len(old), len(new)))


def _count(messages: int) -> str:
    return "1 message was" if messages == 1 else f"{messages} messages were"


def _message(old: Message, new: Message, index: int) -> Difference:
    if old.role != new.role:
        return Difference("message_changed", index, None, f"its role was {old.role} and is {new.role}")
    if old.content == new.content:
        return Difference("message_changed", index, None, _other_part(old, new))
    character = shared_length(old.content, new.content)
    if new.role == "system" or (new.role == "user" and in_header(new.content, character)):
        shape = volatile_shape(old.content, new.content, character)
        if shape:
            detail = f"the {new.role} message differs in what looks like {shape}"
            return Difference("volatile_header", index, character, detail)
    spaces = " in white space only" if old.content.split() == new.content.split() else ""
    return Difference("message_changed", index, character, f"the {new.role} message differs{spaces}")


def _other_part(old: Message, new: Message) -> str:
    if len(old.tool_calls) != len(new.tool_calls):
        return f"it had {len(old.tool_calls)} tool calls and has {len(new.tool_calls)}"
    for was, now in zip(old.tool_calls, new.tool_calls, strict=True):
        if was.function.name != now.function.name:
            return f"its call of {was.function.name} became one of {now.function.name}"
        if was.function.arguments != now.function.arguments:
            return f"the arguments of its call of {now.function.name} {how_json_differs(was, now)}"
    return "the id or the name of its tool call differs"


def how_json_differs(was: Any, now: Any) -> str:
    """How the arguments of two calls differ, in words."""
    try:
        same = json.loads(was.function.arguments) == json.loads(now.function.arguments)
    except (ValueError, RecursionError):
        same = False
    return "are the same values in another form: spaces, escapes or the order of keys" if same else "differ"


def _shows(session: EngineSession, prompt: Prompt, place: int, difference: Difference) -> bool:
    """Whether the texts part where ``difference`` says, by what stands around it."""
    index, character = difference.message_index, difference.character
    if index is None or character is None:
        return False
    old, new = session.messages[index].content, prompt.messages[index].content
    return _stands_at(session.text, place, old, character) and _stands_at(prompt.text, place, new, character)


def _stands_at(text: bytes | bytearray, place: int, content: str, character: int) -> bool:
    # The texts may part inside a character.
    while place and text[place : place + 1] and text[place] & 0xC0 == 0x80:
        place -= 1
    before = content[max(0, character - _EVIDENCE) : character].encode("utf-8", "replace")
    after = content[character : character + _EVIDENCE].encode("utf-8", "replace")
    return text[max(0, place - len(before)) : place] == before and text[place : place + len(after)] == after


def tools_difference(old: Sequence[Tool], new: Sequence[Tool]) -> Difference | None:
    """How the tools changed; ``None``: they did not. The order of keys in a schema counts: templates write it down."""
    if list(map(_written, old)) == list(map(_written, new)):
        return None
    was = {tool.function.name: tool for tool in old}
    now = {tool.function.name: tool for tool in new}
    changed = [name for name, tool in now.items() if name in was and _written(was[name]) != _written(tool)]
    added, removed = [n for n in now if n not in was], [n for n in was if n not in now]
    if not (changed or added or removed) and len(old) == len(new):
        return Difference("tool_order", detail=f"the tools were {_names(was)} and are {_names(now)}")
    fields = [f"{name}: {_tool_field(was[name], now[name])}" for name in changed]
    words = (("added", added), ("removed", removed), ("changed", fields))
    detail = "; ".join(f"{word} {_names(names)}" for word, names in words if names)
    return Difference("tools_changed", detail=f"tools {detail or 'of the same name were added or removed'}")


def _written(tool: Tool) -> str:
    """All that templates are given of it."""
    return json.dumps(tool_of(tool))


def _names(names: Iterable[str]) -> str:
    listed = [name if len(name) <= 120 else name[:120] + "\N{HORIZONTAL ELLIPSIS}" for name in names]
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")


def _tool_field(old: Tool, new: Tool) -> str:
    was, now = old.function.description, new.function.description
    if was != now:
        character = shared_length(was, now)
        shape = volatile_shape(was, now, character)
        like = f", in what looks like {shape}" if shape else ""
        return f"the description at character {character}{like}"
    before, after = _parameters(old), _parameters(new)
    keys = [key for key in (*before, *after) if before.get(key) != after.get(key)]
    return f"its parameters, in {keys[0]!r}" if keys else "the order of keys in its parameters"


def _parameters(tool: Tool) -> dict[str, str]:
    """As JSON by key: what is null is there, 1 is not true, and the order of keys does not count."""
    parameters = tool_of(tool)["function"]["parameters"]
    return {key: json.dumps(value, sort_keys=True) for key, value in parameters.items()}
