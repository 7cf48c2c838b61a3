"""What requests say of a vendor's cache, and which backends are told.

A node keeps every beginning, so nothing depends on it here, and nothing is moved. A backend of Anthropic keeps what is
marked, which is a matter of money: it gets the marks at the very places, and the blocks as the client cut them, since
it finds what it kept by its blocks. A backend of OpenAI gets the key and the time to keep. Others get nothing, and a
warning says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from msgspec import Struct, structs

from modeld.errors import InvalidRequestError
from modeld.types import ChatConfig, Message, Tool, WarningPart

_KEEPERS: Final = ("modeld", "llama", "openvino")
"""Types of backends that keep everything unasked."""


class Ephemeral(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a vendor's cache may end."""

    # Not as the tag: outside of a union msgspec takes an object without one.
    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class CacheWishes(Struct, frozen=True, kw_only=True):
    """All of it in one request.

    :param whole: of the request itself. :param tools: by the tool's name. :param marks: how many there are, with those.
    :param points: how many of OpenAI's own marks and options. :param retention: OpenAI's time to keep.
    """

    whole: Ephemeral | None = None
    tools: Mapping[str, Ephemeral] = {}
    marks: int = 0
    points: int = 0
    key: str | None = None
    retention: Literal["in_memory", "24h"] | None = None

    def config(self, config: ChatConfig, kind: str) -> ChatConfig:
        """``config`` with what a backend of type ``kind`` is told. Marks of blocks are :func:`laid_out`'s."""
        if kind == "openai":
            return config.replace(prompt_cache=self.retention, prompt_cache_key=self.key or None)
        if kind != "anthropic":
            return config
        tools = tuple(_marked(tool, self.tools.get(tool.function.name)) for tool in config.tools)
        return config.replace(tools=tools, prompt_cache=(self.whole.ttl or "5m") if self.whole else None)

    def notes(self, kind: str) -> list[WarningPart]:
        """What is not sent on, where that changes anything."""
        unsent = self.points + (0 if kind == "anthropic" else self.marks)
        unsent += self.retention is not None and kind != "openai"
        if not unsent or kind in _KEEPERS:
            return []
        text = f"{unsent} marks or options of a cache were understood and not sent on to the backend, of type {kind}"
        return [WarningPart("cache_marks_kept_here", text)]


def takes_marks(kind: str) -> bool:
    """Whether messages for a backend of this type are to be :func:`laid_out`."""
    return kind == "anthropic"


def laid_out(message: Message, content: object, mark: Ephemeral | None = None) -> Message:
    """``message`` with how its content was cut into blocks, as :mod:`modeld.providers.anthropic_messages` reads it.

    :param content: the blocks; a text is left as it is. :param mark: of the whole message, a tool's result.
    :raises InvalidRequestError: an empty text is marked.
    """
    own: dict[str, Any] = mark_of(mark)
    if isinstance(content, list) and content:
        calls = [{"type": "tool_use"} for _ in message.tool_calls]
        own["content"] = _cut(content) + calls
    return structs.replace(message, provider_meta={"anthropic": own}) if own else message


def _cut(content: Sequence[Struct]) -> list[dict[str, Any]]:
    """Their entries. The vendor takes no text of blanks only: it belongs to the text beside it."""
    found: list[dict[str, Any]] = []
    blank = False
    for block in content:
        if (entry := entry_of(block)) is None:
            continue
        empty = "cache_control" not in entry and getattr(block, "text", "x").isspace()
        if (empty or blank) and entry["type"] == "text" and found and found[-1]["type"] == "text":
            found[-1] |= entry | {"length": found[-1]["length"] + entry["length"]}
            blank = blank and empty
        else:
            found.append(entry)
            blank = empty
    return found


def entry_of(block: Struct) -> dict[str, Any] | None:
    """A block of text or a picture in such a layout; ``None``: an empty text. :raises InvalidRequestError: as above."""
    mark = mark_of(getattr(block, "cache_control", None))
    text = getattr(block, "text", getattr(block, "refusal", None))
    if text is None:
        return {"type": "image"} | mark
    if not text and mark:
        raise InvalidRequestError("cache_control cannot be set for an empty text", parameter="messages")
    return {"type": "text", "length": len(text)} | mark if text else None


def mark_of(mark: Ephemeral | None) -> dict[str, Any]:
    """The field as it is sent."""
    if mark is None:
        return {}
    return {"cache_control": {"type": mark.type} | ({"ttl": mark.ttl} if mark.ttl else {})}


def count_marks(blocks: object, field: str = "cache_control") -> int:
    """How many of these blocks have it, those inside of them included."""
    if not isinstance(blocks, Sequence) or isinstance(blocks, str):
        return 0
    return sum(
        (getattr(block, field, None) is not None) + count_marks(getattr(block, "content", None), field)
        for block in blocks
    )


def _marked(tool: Tool, mark: Ephemeral | None) -> Tool:
    if mark is None:
        return tool
    return structs.replace(tool, function=structs.replace(tool.function, provider_meta={"anthropic": mark_of(mark)}))
