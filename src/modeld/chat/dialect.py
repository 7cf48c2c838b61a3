"""What templates want their input to look like, and messages and tools in that form."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from msgspec import Struct

from modeld.types import Message, Tool, ToolCall

SWITCHES: Final = ("enable_thinking", "thinking", "reasoning")
"""Variables that switch thinking in templates of well-known models."""

_NINE: Final = re.compile("[A-Za-z0-9]{9}")


class Form(Struct, frozen=True):
    """The dialect of a template's input.

    :param content: a message's text as it is, or as ``[{"type": "text", "text": ...}]``.
    :param silent: content of a message that only calls tools: empty text, or none.
    :param arguments: of a call: the model's own JSON text, kept to the byte, or parsed.
    :param ids: of calls: as they are, or made of nine letters and digits.
    :param crowded: a message may hold text, thinking and calls at once; else its thinking is left out.
    :param system_for_tools: tools appear only where there is a system message, so an empty one is added for them.
    :param switches: which of :data:`SWITCHES` it looks at.
    :param variables: that it must be given besides.
    """

    content: Literal["text", "parts"] = "text"
    silent: Literal[""] | None = ""
    arguments: Literal["string", "dict"] = "string"
    ids: Literal["any", "nine"] = "any"
    crowded: bool = True
    system_for_tools: bool = False
    switches: tuple[str, ...] = ()
    variables: tuple[tuple[str, bool], ...] = ()


def messages_of(messages: Sequence[Message], form: Form, *, tools: bool = False) -> list[dict[str, Any]]:
    """The conversation as the template sees it. Keys that would be empty are not there.

    :param tools: some are offered with it.
    """
    if tools and form.system_for_tools and not any(message.role == "system" for message in messages):
        messages = [Message("system"), *messages]
    # Some templates want the tool's name with a result; where the caller gave none, the call has it.
    names = {call.id: call.function.name for message in messages for call in message.tool_calls}
    return [_message(message, form, names) for message in messages]


def _message(message: Message, form: Form, names: Mapping[str, str]) -> dict[str, Any]:
    content: Any = message.content or (form.silent if message.tool_calls else "")
    if form.content == "parts" and content is not None:
        content = [{"type": "text", "text": content}]
    out: dict[str, Any] = {"role": message.role, "content": content}
    if message.thinking and (form.crowded or not (message.content and message.tool_calls)):
        # The second name is that of gpt-oss; transformers gives both too.
        out |= {"reasoning_content": message.thinking, "thinking": message.thinking}
    if message.tool_calls:
        out["tool_calls"] = [_call(call, form) for call in message.tool_calls]
    if message.tool_call_id:
        out["tool_call_id"] = _id(message.tool_call_id, form)
    if name := message.name or names.get(message.tool_call_id, ""):
        out["name"] = name
    return out


def _call(call: ToolCall, form: Form) -> dict[str, Any]:
    arguments: Any = call.function.arguments
    if form.arguments == "dict":
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            pass  # what the model wrote is no JSON: it stays the string it is
    function = {"name": call.function.name, "arguments": arguments}
    return {"id": _id(call.id, form), "type": call.type, "function": function}


def _id(text: str, form: Form) -> str:
    if form.ids == "any" or _NINE.fullmatch(text):
        return text
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:9]


def tool_of(tool: Tool) -> dict[str, Any]:
    """A tool as the template sees it."""
    # All keys are always there: templates read them without asking.
    function = tool.function
    parameters = function.parameters or {"type": "object", "properties": {}}
    return {
        "type": tool.type,
        "function": {"name": function.name, "description": function.description, "parameters": parameters},
    }
