"""Messages of Anthropic's dialect: their blocks, and what they become.

A block or field that is not here is refused by name. Nothing of a conversation is lost on its way but marks of caches.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, Literal

from msgspec import Struct

from modeld.errors import InvalidRequestError, NotSupportedError
from modeld.http.anthropic_marks import carried, is_ours, own_id
from modeld.http.bodies import check_depth
from modeld.http.cache_marks import Ephemeral, entry_of, laid_out, mark_of
from modeld.types import FunctionCall, ImagePart, Message, ToolCall

FAILED: Final = "Error: "
"""Before the result of a tool that failed: a template has no other place for ``is_error``."""


class Strict(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A field that is not known is refused."""


class _Marked(Strict, frozen=True):
    cache_control: Ephemeral | None = None


class AnyText(_Marked, frozen=True, kw_only=True):
    """``parsed_output`` is what the vendor's client makes of an answer, and sends back with it."""

    text: str
    citations: list[None] | None = None
    parsed_output: Any = None


class Text(AnyText, tag_field="type", tag="text", frozen=True, kw_only=True):
    """Among other blocks."""


class OnlyText(AnyText, frozen=True, kw_only=True):
    """Where nothing else can stand: there msgspec would not ask for a tag."""

    type: Literal["text"]


class _Base64(Strict, frozen=True):
    type: Literal["base64"]
    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: str


class Image(_Marked, tag_field="type", tag="image", frozen=True, kw_only=True):
    """A picture itself; the node fetches nothing and stores no files."""

    source: _Base64
    transformations: None = None


class Thinking(Strict, tag_field="type", tag="thinking", frozen=True):
    """Thinking of an earlier answer."""

    thinking: str
    signature: str


class Redacted(Strict, tag_field="type", tag="redacted_thinking", frozen=True):
    """Thinking that nobody reads but who wrote it."""

    data: str


class _Direct(Strict, frozen=True):
    type: Literal["direct"]


class ToolUse(_Marked, tag_field="type", tag="tool_use", frozen=True, kw_only=True):
    """A call in an earlier answer."""

    id: str
    name: str
    input: dict[str, Any]
    caller: _Direct | None = None
    toolset_name: None = None


class ToolResult(_Marked, tag_field="type", tag="tool_result", frozen=True, kw_only=True):
    """What a call gave."""

    tool_use_id: str
    content: str | list[Text | Image] | None = None
    is_error: bool | None = None
    toolset_name: None = None


class System(Strict, tag_field="role", tag="system", frozen=True):
    """Instructions, also in the middle."""

    content: str | list[OnlyText]


class User(Strict, tag_field="role", tag="user", frozen=True):
    """A turn of the user, with the results of tools."""

    content: str | list[Text | Image | ToolResult]


class Assistant(Strict, tag_field="role", tag="assistant", frozen=True):
    """An earlier answer."""

    content: str | list[Text | Thinking | Redacted | ToolUse]


Recall = Callable[[str, dict[str, Any]], str | None]
"""The text of a call's arguments as the model wrote it, by the call's id and what the arguments are."""


class Reading(Struct, frozen=True):
    """How messages are to be read.

    :param backend: whether a backend's model answers: it may take pictures, and has thinking of its own.
    :param model: its name there. :param marks: it is told of marks of caches, and where blocks begin and end.
    """

    backend: bool
    model: str
    recall: Recall
    marks: bool = False

    def conversation(
        self, system: str | list[OnlyText] | None, messages: Sequence[System | User | Assistant]
    ) -> list[Message]:
        """All of it.

        :raises InvalidRequestError: a block makes no sense. :raises NotSupportedError: it cannot be shown to the model.
        """
        found = [self._laid(Message("system", text), system)] if (text := text_of(system)) else []
        names: dict[str, str] = {}
        for index, message in enumerate(messages):
            place = f"messages[{index}].content"
            match message:
                case System(content=content):
                    found.append(self._laid(Message("system", text_of(content)), content))
                case User(content=content):
                    found += self._user(content, names, place)
                case Assistant(content=content):
                    found.append(self._assistant(content, place))
                    names |= {call.id: call.function.name for call in found[-1].tool_calls}
        return found

    def _user(
        self, content: str | list[Text | Image | ToolResult], names: Mapping[str, str], place: str
    ) -> Iterator[Message]:
        """Messages in the order of the blocks: each result is one, and so is what stands between results."""
        if isinstance(content, str):
            yield Message("user", content)
            return
        between: list[Text | Image] = []
        for index, block in enumerate(content):
            if not isinstance(block, ToolResult):
                between.append(block)
                continue
            if between:
                yield self._shown(between, f"{place}[{index - len(between)}]")
                between = []
            yield self._result(block, names, f"{place}[{index}]")
        if between or not content:
            yield self._shown(between, f"{place}[{len(content) - len(between)}]")

    def _result(self, block: ToolResult, names: Mapping[str, str], place: str) -> Message:
        given = block.content or ""
        blocks: list[Text | Image] = [Text(text=given)] if isinstance(given, str) else given
        if block.is_error:
            blocks = [Text(text=FAILED), *blocks]
        id = own_id(block.tool_use_id)
        images = self._images(blocks, f"{place}.content")
        message = Message("tool", text_of(blocks), tool_call_id=id, name=names.get(id, ""), images=images)
        return self._laid(message, given if isinstance(given, str) else blocks, block.cache_control)

    def _shown(self, blocks: list[Text | Image], place: str) -> Message:
        return self._laid(Message("user", text_of(blocks), images=self._images(blocks, place)), blocks)

    def _laid(self, message: Message, content: object, mark: Ephemeral | None = None) -> Message:
        return laid_out(message, content, mark) if self.marks else message

    def _images(self, blocks: Sequence[Text | Image], place: str) -> tuple[ImagePart, ...]:
        return tuple(self._image(block, place) for block in blocks if isinstance(block, Image))

    def _image(self, block: Image, place: str) -> ImagePart:
        if not self.backend:
            raise NotSupportedError(f"{place}: models of this node take no images", feature=place)
        try:
            return ImagePart(base64.b64decode(block.source.data, validate=True), block.source.media_type)
        except (binascii.Error, ValueError):
            raise InvalidRequestError(f"{place}: source.data is no base64", parameter=place) from None

    def _assistant(self, content: str | list[Text | Thinking | Redacted | ToolUse], place: str) -> Message:
        blocks = [Text(text=content)] if isinstance(content, str) else content
        kept: dict[str, Any] = {}
        thinking = []
        for index, block in enumerate(blocks):
            where = f"{place}[{index}]"
            if isinstance(block, ToolUse):
                check_depth(block.input, f"{where}.input")
            elif isinstance(block, Thinking):
                thinking.append(block.thinking or str(carried(block.signature, f"{where}.signature").get("text", "")))
            elif isinstance(block, Redacted):
                kept |= carried(block.data, f"{where}.data")
        calls = kept.get("calls")
        return Message(
            "assistant",
            text_of(blocks),
            thinking="".join(thinking),
            tool_calls=tuple(
                self._call(block, calls if isinstance(calls, dict) else {})
                for block in blocks
                if isinstance(block, ToolUse)
            ),
            provider_meta=self._meta(kept.get("message"), blocks),
        )

    def _call(self, block: ToolUse, metas: Mapping[str, Any]) -> ToolCall:
        arguments = self.recall(block.id, block.input)
        if arguments is None:
            arguments = json.dumps(block.input, ensure_ascii=False)
        id = own_id(block.id)
        meta = metas.get(id) if self.backend else None
        return ToolCall(id, FunctionCall(block.name, arguments), provider_meta=meta if isinstance(meta, dict) else None)

    def _meta(self, kept: Any, blocks: Sequence[Struct]) -> dict[str, Any] | None:
        """What the backend wants to see again: what it gave here, or signed blocks that a client has from elsewhere."""
        if not self.backend:
            return None
        entries = [entry for block in blocks if (entry := _entry(block)) is not None]
        made = {"model": self.model, "content": entries}
        if isinstance(kept, dict) and self.marks:
            own = kept.get("anthropic", made)
            another = isinstance(own, dict) and own.get("model") != self.model
            return kept | {"anthropic": made if another else _marked(own, entries)}
        if isinstance(kept, dict):
            return kept
        if not self.marks and all(entry["type"] in ("text", "tool_use") for entry in entries):
            return None
        return {"anthropic": made}


def _entry(block: Struct) -> dict[str, Any] | None:
    """As the wire keeps an answer (``modeld.providers.anthropic_events``): thinking, and where the rest stood."""
    match block:
        case AnyText():
            return entry_of(block)
        case ToolUse(cache_control=mark):
            return {"type": "tool_use"} | mark_of(mark)
        case Thinking(thinking=thinking, signature=signature) if not is_ours(signature):
            return {"type": "thinking", "thinking": thinking, "signature": signature}
        case Redacted(data=data) if not is_ours(data):
            return {"type": "redacted_thinking", "data": data}
    return None


def _marked(own: Any, entries: Sequence[Mapping[str, Any]]) -> Any:
    """What a backend gave, with the marks of a client's blocks, which may be cut in another way."""
    waiting = [
        (place, {"cache_control": mark}) for place, entry in _places(entries) if (mark := entry.get("cache_control"))
    ]
    content = []
    try:
        for place, entry in _places(own["content"]):
            fits = waiting and place >= waiting[0][0] and entry["type"] in ("text", "tool_use")
            content.append(entry | waiting.pop(0)[1] if fits else entry)
    except (KeyError, TypeError):
        return own  # it was changed: the wire says so
    return own | {"content": content}


def _places(entries: Sequence[Mapping[str, Any]]) -> Iterator[tuple[tuple[int, int], Any]]:
    """Each with the characters and the calls up to its end."""
    text = calls = 0
    for entry in entries:
        text += entry["length"] if entry["type"] == "text" else 0
        calls += entry["type"] == "tool_use"
        yield (text, calls), entry


def text_of(content: str | Sequence[Struct] | None) -> str:
    """Blocks of text are joined as they are: a break between them would be a token that nobody wrote."""
    if isinstance(content, str):
        return content
    return "".join(block.text for block in content or () if isinstance(block, AnyText))
