"""One tool call while it is written, and what of it may be told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from modeld.chat.output.parts import Parts
from modeld.chat.output.reader import MalformedError, ProseError, Reader, unmarked
from modeld.chat.output.values import is_value, quoted
from modeld.types import Tool


class CallWriter:
    """The calls of one span. A call is told from its name and first argument on, and ends when what follows it is seen.

    :param tools: those that were offered; ``None``: nobody knows which.
    :param call_id: of a call to which the model gives none, with a place for its number.
    :param late_id: wait for an id, up to the end of a call.
    :param bare: no marker says that it is a call: it must have arguments, and the name of an offered tool.
    :ivar index: of the call that was told and has not ended; ``None``: there is none.
    """

    def __init__(
        self,
        parts: Parts,
        reader: Reader,
        tools: Sequence[Tool] | None,
        *,
        call_id: str,
        late_id: bool,
        bare: bool,
    ) -> None:
        self._parts = parts
        self._reader = reader
        self._tools = tools
        self._call_id = call_id
        self._late_id = late_id
        self.bare = bare
        self.index: int | None = None
        self._forget()

    def _forget(self) -> None:
        self.index = None
        self._name = self._id = ""
        self._held: list[str] = []
        self._argued = self._complete = False

    @property
    def named(self) -> bool:
        """Its name is known."""
        return bool(self._name)

    def begin(self) -> None:
        """Another call begins, so the one before is as it should be."""
        self.finish()

    def name(self, name: str) -> None:
        """Its name.

        :raises MalformedError: it is empty, or a second one. :raises ProseError: it is no tool's, and had to be.
        """
        name = unmarked(name)
        if not name or self._name:
            raise MalformedError("it has two names" if name else "the name is empty")
        if self.bare and self._tools is not None and all(name != tool.function.name for tool in self._tools):
            raise ProseError
        self._name = name
        self._tell()

    def id(self, call_id: str) -> None:
        """The id that the model gave it."""
        self._id = unmarked(call_id)
        self._tell()

    def arguments_begin(self) -> None:
        """Arguments follow.

        :raises MalformedError: there were some.
        """
        if self._argued:
            raise MalformedError("it has arguments twice")
        self._argued = True

    def put(self, piece: str) -> None:
        """A piece of the arguments, as JSON text."""
        self._held.append(unmarked(piece))
        self._tell()

    def _tell(self, *, whole: bool = False) -> None:
        if self.index is None:
            if not (self._name and self._held) or (self._late_id and not self._id and not whole):
                return
            given = self._id or self._call_id.format(self._parts.calls + 1)
            self.index = self._parts.call_start(self._name, given)
        for piece in self._held:
            self._parts.call_delta(piece)
        self._held.clear()

    def end(self) -> None:
        """It is complete, if what follows is right.

        :raises MalformedError: it has no name. :raises ProseError: it must have arguments here, and has none.
        """
        if not self._name:
            raise MalformedError("it has no name")
        if not self._argued:
            if self.bare:
                raise ProseError
            self._held.append("{}")
        self._tell(whole=True)
        self._complete = True

    def finish(self) -> None:
        """What follows the call that was complete is right."""
        if self.index is not None and self._complete:
            self._parts.call_end(self.index, self._reader.span())
        self._forget()

    def is_text(self, key: str) -> bool | None:
        """Whether an argument is a string by the tool's schema; ``None``: it may be one."""
        for tool in self._tools or ():
            if tool.function.name == self._name:
                properties = (tool.function.parameters or {}).get("properties")
                schema = properties.get(key) if isinstance(properties, dict) else None
                types = set(_types(schema))
                return True if types == {"string"} else False if types and not types & {"string", "any"} else None
        return None


def _types(schema: Any, depth: int = 0) -> Iterator[str]:
    if not isinstance(schema, dict) or depth > 8:
        yield "any"
        return
    choices = schema.get("anyOf", schema.get("oneOf"))
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if "type" in schema:
        types = schema["type"]
        yield from map(str, types if isinstance(types, list) else [types])
    elif isinstance(choices, list):
        for choice in choices:
            yield from _types(choice, depth + 1)
    elif isinstance(values, list):
        yield from ("string" if isinstance(value, str) else "other" for value in values)
    else:
        yield "any"


def as_json(text: str, *, text_allowed: bool) -> str:
    """The JSON text of a value that a model wrote without quotes: JSON where it is, else a string."""
    word = text.strip()
    word = {"True": "true", "False": "false", "None": "null"}.get(word, word)
    if is_value(word) and not (text_allowed and word.startswith('"')):
        return word
    return f'"{quoted(text)}"'
