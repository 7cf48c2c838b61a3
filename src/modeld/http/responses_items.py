"""The items of ``POST /v1/responses``: a conversation as that API writes it, and what it becomes.

What the model answered with, reasoning, a message and calls, came as an item each and was one message: it is one again,
so that the prompt of the next turn begins as the tape of the last one does.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec
from msgspec import Struct

from modeld.errors import InvalidRequestError, NotSupportedError
from modeld.http.errors import Refusal
from modeld.http.openai_request import CacheMark, picture
from modeld.http.responses_tools import OfferedTools
from modeld.types import FunctionCall, ImagePart, Message, ToolCall

_SEAL: Final = "modeld.1."


class InputText(Struct, frozen=True, forbid_unknown_fields=True, tag="input_text"):
    text: str
    prompt_cache_breakpoint: CacheMark | None = None


class OutputText(Struct, frozen=True, forbid_unknown_fields=True, tag="output_text"):
    """``annotations`` and ``logprobs`` are the vendor's of its answer: they are passed over."""

    text: str
    annotations: Any = None
    logprobs: Any = None
    parsed: Any = None


class Declined(Struct, frozen=True, forbid_unknown_fields=True, tag="refusal"):
    refusal: str


class InputImage(Struct, frozen=True, forbid_unknown_fields=True, tag="input_image"):
    image_url: str
    detail: Literal["auto"] | None = None
    file_id: None = None
    prompt_cache_breakpoint: CacheMark | None = None


class Summary(Struct, frozen=True, forbid_unknown_fields=True):
    # Not as the tag: outside of a union msgspec takes an object without one.
    type: Literal["summary_text"]
    text: str


class Thought(Struct, frozen=True, forbid_unknown_fields=True, tag="reasoning_text"):
    text: str


Part = InputText | OutputText | Declined | InputImage | Thought
ItemType = Literal["message", "function_call", "function_call_output", "reasoning"]


class Item(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Any item. :data:`_FIELDS` has what each type needs and may have; ``message`` is what has no type.

    The last two are the vendor's, which its client writes as null.
    """

    type: ItemType = "message"
    id: str | None = None
    status: Literal["in_progress", "completed", "incomplete"] | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[Part] | None = None
    phase: Literal["commentary", "final_answer"] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    parsed_arguments: Any = None
    output: str | list[InputText | InputImage] | None = None
    summary: list[Summary] | None = None
    encrypted_content: str | None = None
    namespace: str | None = None
    async_: None = None
    caller: None = None


_FIELDS: Final[dict[ItemType, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "message": (("role", "content"), ("phase",)),
    "function_call": (("call_id", "name", "arguments"), ("parsed_arguments", "namespace")),
    "function_call_output": (("call_id", "output"), ("name", "namespace")),
    "reasoning": ((), ("summary", "content", "encrypted_content")),
}
_PARTS: Final[dict[str, tuple[type[Struct], ...]]] = {
    "reasoning": (Thought,),
    "assistant": (OutputText, InputText, Declined),
    "user": (InputText, InputImage),
    "system": (InputText,),
    "developer": (InputText,),
}


def seal(thinking: str) -> str:
    """``encrypted_content`` of thinking: opaque, though no secret. Only who sends items back whole needs it not."""
    return _SEAL + base64.b64encode(thinking.encode()).decode()


def _unsealed(sealed: str, place: str) -> str:
    try:
        if not sealed.startswith(_SEAL):
            raise ValueError
        return base64.b64decode(sealed[len(_SEAL) :], validate=True).decode()
    except (ValueError, binascii.Error):
        text = f"{place} was not written by a node of modeld, and nobody else can read it; leave the item out"
        raise Refusal(400, "invalid_encrypted_content", text, param=place) from None


class Conversation:
    """Messages from items.

    :param offered: tools, by whose names calls are told. :param images: whether what answers may take pictures.
    """

    def __init__(self, offered: OfferedTools, *, images: bool) -> None:
        self._offered = offered
        self._images = images
        self._names: dict[str, str] = {}
        self._found: list[Message] = []
        self._thinking = ""
        self._text: list[str] = []
        self._calls: list[ToolCall] = []

    def of(self, items: Sequence[Item], instructions: str) -> list[Message]:
        """The messages.

        :raises Refusal: an item is none. :raises NotSupportedError: there is a picture where none can be.
        :raises InvalidRequestError: a picture is none.
        """
        if instructions:
            self._found.append(Message("system", instructions))
        for index, item in enumerate(items):
            place = f"input[{index}]"
            _check(item, place)
            self._add(item, place)
        self._close()
        return self._found

    def _add(self, item: Item, place: str) -> None:
        if item.type == "reasoning":
            if self._text or self._calls:
                self._close()
            self._thinking += _thinking(item, place)
        elif item.type == "function_call":
            id, name = item.call_id or "", self._offered.flat(item.name or "", item.namespace)
            self._names[id] = name
            self._calls.append(ToolCall(id, FunctionCall(name, item.arguments or "")))
        elif item.type == "function_call_output":
            self._close()
            id = item.call_id or ""
            text, images = self._content(item.output, f"{place}.output")
            name = self._names.get(id) or self._offered.flat(item.name or "", item.namespace)
            self._found.append(Message("tool", text, tool_call_id=id, name=name, images=images))
        elif item.role == "assistant":
            if self._text or self._calls:
                self._close()
            # A message of the model is one also where it said nothing.
            self._text.append(self._content(item.content, f"{place}.content")[0])
        else:
            self._close()
            text, images = self._content(item.content, f"{place}.content")
            self._found.append(Message("user" if item.role == "user" else "system", text, images=images))

    def _close(self) -> None:
        """What came of an answer is a message."""
        if self._thinking or self._text or self._calls:
            text, calls = "".join(self._text), tuple(self._calls)
            self._found.append(Message("assistant", text, thinking=self._thinking, tool_calls=calls))
        self._thinking, self._text, self._calls = "", [], []

    def _content(self, content: str | Sequence[Part] | None, place: str) -> tuple[str, tuple[ImagePart, ...]]:
        """Parts of text are joined as they are."""
        if content is None or isinstance(content, str):
            return content or "", ()
        texts, images = [], []
        for index, part in enumerate(content):
            if isinstance(part, InputImage):
                images.append(self._picture(part, f"{place}[{index}].image_url"))
            else:
                texts.append(part.refusal if isinstance(part, Declined) else part.text)
        return "".join(texts), tuple(images)

    def _picture(self, part: InputImage, place: str) -> ImagePart:
        if not self._images:
            raise NotSupportedError(f"{place}: models of this node take no images", feature=place)
        return picture(part.image_url, place)


def _thinking(item: Item, place: str) -> str:
    """Whole, where the item has it whole; a summary is better than nothing."""
    if item.encrypted_content is not None:
        return _unsealed(item.encrypted_content, f"{place}.encrypted_content")
    if isinstance(item.content, str):
        return item.content
    if item.content:
        return "".join(part.text for part in item.content if isinstance(part, Thought))
    return "\n\n".join(part.text for part in item.summary or ())


def _check(item: Item, place: str) -> None:
    """:raises Refusal: a field is missing, or of another type of item."""
    needed, allowed = _FIELDS[item.type]
    for name in needed:
        if getattr(item, name) is None:
            text = f"{place}.{name} is missing"
            raise Refusal(400, "missing_required_parameter", text, param=f"{place}.{name}")
    others = set(Item.__struct_fields__) - {"type", "id", "status", *needed, *allowed}
    for name in sorted(others):
        if getattr(item, name) is not None:
            text = f"{place}.{name} is no field of a {item.type}"
            raise Refusal(400, "unknown_parameter", text, param=f"{place}.{name}")
    kind = item.role if item.type == "message" else item.type
    if isinstance(item.content, list):
        for index, part in enumerate(item.content):
            if not isinstance(part, _PARTS[kind or "user"]):
                where, tag = f"{place}.content[{index}].type", msgspec.to_builtins(part)["type"]
                raise Refusal(400, "invalid_value", f"{where}: {tag} does not stand in {kind}", param=where)


def check_calls(messages: Sequence[Message]) -> None:
    """:raises InvalidRequestError: a tool's output has no call before it: the model would not know whose it is."""
    called: set[str] = set()
    for message in messages:
        called |= {call.id for call in message.tool_calls}
        if message.role == "tool" and message.tool_call_id not in called:
            text = f"input: no function_call has the call_id {message.tool_call_id[:60]!r} of a function_call_output"
            raise InvalidRequestError(text, parameter="input")
