"""OpenAI's Responses API: how an answer is read, streamed or whole.

Wire facts: ``ResponseStreamEvent`` of the ``openai`` SDK 3.54, and
https://developers.openai.com/api/reference/resources/responses/streaming-events.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar
from uuid import uuid4

import msgspec
from msgspec import Raw

from modeld.errors import BackendProtocolError, ModeldError
from modeld.providers.chat_decoder import vendor_failure
from modeld.providers.failures import failure_error
from modeld.providers.responses_values import (
    CODES,
    DECLINED,
    EVENT,
    ITEM,
    RESPONSE,
    Event,
    Item,
    Response,
    is_text,
    texts,
    usage_of,
)
from modeld.repository.names import ToolNames
from modeld.types import (
    EndPart,
    FinishReason,
    StreamPart,
    TextPart,
    ThinkingPart,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    WarningPart,
)

T = TypeVar("T")

FINISH_REASONS: Final[dict[str, FinishReason]] = {"max_output_tokens": "length", "content_filter": "refused"}
"""``incomplete_details.reason``. ``max_messages`` and ``steered`` are of features that no request asks for."""


class _Call:
    """A tool call that is being streamed. ``sent``: its arguments as they went out."""

    __slots__ = ("ended", "index", "sent")

    def __init__(self, index: int) -> None:
        self.index = index
        self.sent: list[str] = []
        self.ended = False


class Decoder:
    """Reads one answer: events in order by :meth:`feed`, or the whole by :meth:`whole`. Joined, both are the same.

    The end part's ``provider_meta["openai"]`` keeps what the next request has to show again: ``reasoning``, the
    reasoning items with their encrypted content; and ``order``, the kinds of the answer's items with the length and
    phase of each message, where they did not come in the usual order (reasoning, one message, calls).
    Reasoning without encrypted content, or with nothing after it, is not kept: the vendor would refuse it.

    Summaries are the thinking; a blank line goes between two parts of them. Items of hosted tools are passed over:
    no request asks for one.
    """

    def __init__(self, names: ToolNames, model: str, backend: str = "openai") -> None:
        self._names = names
        self._model = model
        self._backend = backend
        self._calls: list[_Call] = []
        self._by_place: dict[int, _Call] = {}
        self._by_id: dict[str, _Call | None] = {}
        self._told: set[Any] = set()
        """Places of the items of which words came."""
        self._thought: tuple[Any, ...] | None = None
        self._refused = False
        self._items: list[tuple[int, dict[str, Any]]] = []

    def feed(self, data: bytes) -> list[StreamPart]:
        """The parts that one event gives; mostly one, none for events that say nothing new.

        :raises ModeldError: the event is the vendor's error. :raises BackendProtocolError: it is no event.
        """
        if data == b"[DONE]":
            # Not of this API; servers that speak Chat Completions as well send it.
            return []
        event = self._decoded(EVENT, data)
        handler = _HANDLERS.get(event.type)
        return handler(self, event) if handler is not None else []

    def whole(self, body: bytes) -> list[StreamPart]:
        """The parts of a whole answer.

        :raises ModeldError: the answer failed. :raises BackendProtocolError: it is none.
        """
        response = self._decoded(RESPONSE, body)
        status = response.status or "completed"
        if status in ("failed", "cancelled") or response.error:
            return self._failed(response)
        if response.output is None or status not in ("completed", "incomplete"):
            raise self._protocol(f"an answer of status {status!r} with {len(response.output or ())} items of output")
        return self._output(response) + self._finish(response, status)

    def _output(self, response: Response) -> list[StreamPart]:
        parts: list[StreamPart] = []
        for index, raw in enumerate(response.output or ()):
            item = self._decoded(ITEM, raw)
            parts += self._start(item, index)
            parts += self._said(item, index)
            parts += self._done(item, index)
        return parts

    def close(self) -> list[StreamPart]:
        """Nothing: an answer ends with an event that says so, and one without was cut off."""
        return []

    # Events.

    def _text(self, event: Event) -> list[StreamPart]:
        self._told.add(event.output_index)
        return [TextPart(event.delta)] if is_text(event.delta) else []

    def _refusal(self, event: Event) -> list[StreamPart]:
        self._refused = True
        return self._text(event)

    def _summary(self, event: Event) -> list[StreamPart]:
        self._told.add(event.output_index)
        return self._think((event.output_index, "summary", event.summary_index), event.delta)

    def _reasoning(self, event: Event) -> list[StreamPart]:
        self._told.add(event.output_index)
        return self._think((event.output_index, "text", event.content_index), event.delta)

    def _item_added(self, event: Event) -> list[StreamPart]:
        return self._start(self._decoded(ITEM, event.item), event.output_index)

    def _arguments(self, event: Event) -> list[StreamPart]:
        call = self._call(event.item_id, event.output_index)
        if call is None:
            raise self._protocol(f"arguments of a call that was not begun (output {event.output_index!r})")
        return _grown(call, event.delta)

    def _item_done(self, event: Event) -> list[StreamPart]:
        item = self._decoded(ITEM, event.item)
        begun: list[StreamPart] = []
        if item.type == "function_call" and self._call(item.id, event.output_index) is None:
            begun = self._start(item, event.output_index)
        # Words of which no delta came: not the vendor's way, but nothing may be lost.
        place = event.output_index
        told = place in self._told or (place is None and bool(self._told))
        said = [] if told else self._said(item, place)
        self._told.add(place)
        return [*begun, *said, *self._done(item, place)]

    def _completed(self, event: Event) -> list[StreamPart]:
        return self._closed(event, "completed")

    def _incomplete(self, event: Event) -> list[StreamPart]:
        return self._closed(event, "incomplete")

    def _closed(self, event: Event, status: str) -> list[StreamPart]:
        """The end of a stream. Where nothing came before it, the whole answer is in it."""
        response = self._decoded(RESPONSE, event.response)
        parts = [] if self._told or self._calls else self._output(response)
        return parts + self._finish(response, status)

    def _response_failed(self, event: Event) -> list[StreamPart]:
        return self._failed(self._decoded(RESPONSE, event.response))

    def _error(self, event: Event) -> list[StreamPart]:
        """Documented flat; servers also send it within ``error``, and that without a type."""
        if event.error:
            return self._failure(event.error, Response())
        if not event.type:
            return []
        return self._failure({"code": event.code, "message": event.message}, Response())

    # Items, the same for both ways.

    def _start(self, item: Item, place: Any) -> list[StreamPart]:
        if item.type != "function_call":
            return []
        call = _Call(len(self._calls))
        self._calls.append(call)
        if isinstance(place, int):
            self._by_place[place] = call
        if is_text(item.id):
            # An id that two have tells none: the place does.
            self._by_id[item.id] = None if item.id in self._by_id else call
        name = item.name if is_text(item.name) else ""
        id = item.call_id if is_text(item.call_id) else f"call_{uuid4().hex[:24]}"
        return [ToolCallStart(call.index, id, self._names.original(name))]

    def _said(self, item: Item, place: Any) -> list[StreamPart]:
        """The words of a whole item: in a stream they were deltas before."""
        parts: list[StreamPart] = []
        if item.type == "message":
            for kind, words in texts(item.content):
                self._refused |= kind == "refusal"
                parts.append(TextPart(words))
        elif item.type == "reasoning":
            for number, (_, words) in enumerate(texts(item.summary)):
                parts += self._think((place, "summary", number), words)
            for number, (_, words) in enumerate(texts(item.content)):
                parts += self._think((place, "text", number), words)
        return parts

    def _done(self, item: Item, place: Any) -> list[StreamPart]:
        parts: list[StreamPart] = []
        kept: dict[str, Any] | None = None
        if item.type == "function_call":
            call = self._call(item.id, place)
            if call is not None and not call.ended:
                # Without deltas, or with a part of them, the rest of the arguments is here.
                parts = _grown(call, self._rest(call, item))
                parts += _ended(call)
            kept = {"type": "function_call"}
        elif item.type == "message":
            length = sum(len(words) for _, words in texts(item.content))
            phase = {"phase": item.phase} if is_text(item.phase) else {}
            kept = {"type": "message", "length": length, **phase} if length else None
        elif item.type == "reasoning" and is_text(item.encrypted_content):
            kept = {"type": "reasoning", "id": item.id, "summary": item.summary or []}
            kept["encrypted_content"] = item.encrypted_content
        if kept is not None:
            self._items.append((place if isinstance(place, int) else len(self._items), kept))
        return parts

    def _rest(self, call: _Call, item: Item) -> str:
        """What of the arguments did not come in deltas."""
        sent = "".join(call.sent)
        whole = item.arguments if is_text(item.arguments) else sent
        if not whole.startswith(sent):
            raise self._protocol("arguments of a call that are not what came of them before")
        return whole[len(sent) :]

    def _think(self, part: tuple[Any, ...], words: Any) -> list[StreamPart]:
        if not is_text(words):
            return []
        another = self._thought not in (None, part)
        self._thought = part
        return [ThinkingPart("\n\n" + words if another else words)]

    def _call(self, id: Any, place: Any) -> _Call | None:
        """By the item's id; servers that give an item a new id with each event are known by the place."""
        found = self._by_id.get(id) if is_text(id) else None
        return found or (self._by_place.get(place) if isinstance(place, int) else None)

    # The end.

    def _finish(self, response: Response, status: str) -> list[StreamPart]:
        parts: list[StreamPart] = []
        for call in self._calls:
            parts += [] if call.ended else _ended(call)
        if status == "completed":
            return [
                *parts,
                self._end(response, "refused" if self._refused else "tool_calls" if self._calls else "stop"),
            ]
        why = response.incomplete_details.get("reason") if isinstance(response.incomplete_details, dict) else None
        reason = FINISH_REASONS.get(str(why))
        if reason is None:
            text = f"{self._backend} calls the answer incomplete because of {why!r}, which means nothing here"
            parts.append(WarningPart("unknown_finish_reason", text))
        return [*parts, self._end(response, reason or "stop")]

    def _end(self, response: Response, reason: FinishReason) -> EndPart:
        meta = self._meta()
        return EndPart(
            finish_reason=reason,
            usage=usage_of(response.usage),
            model=response.model or self._model,
            id=response.id or "",
            provider_meta={"openai": meta} if meta else None,
        )

    def _meta(self) -> dict[str, Any]:
        items = [item for _, item in sorted(self._items, key=lambda entry: entry[0])]
        while items and items[-1]["type"] == "reasoning":
            items.pop()
        reasoning = [item for item in items if item["type"] == "reasoning"]
        kinds = [item["type"] for item in items]
        usual = kinds == sorted(kinds, key=_USUAL.index) and kinds.count("message") <= 1
        meta: dict[str, Any] = {"reasoning": reasoning} if reasoning else {}
        if not usual or any("phase" in item for item in items):
            meta["order"] = [{"type": "reasoning"} if item in reasoning else item for item in items]
        return meta

    def _failed(self, response: Response) -> list[StreamPart]:
        said = response.error or {"message": f"the answer is {response.status or 'failed'}"}
        return self._failure(said, response)

    def _failure(self, said: Any, response: Response) -> list[StreamPart]:
        failure = vendor_failure(said, 0, {}, CODES)
        if failure.code in DECLINED:
            words: list[StreamPart] = [TextPart(failure.message)] if failure.message else []
            return [*words, self._end(response, "refused")]
        raise failure_error(self._backend, self._model, failure, CODES)

    def _decoded(self, decoder: msgspec.json.Decoder[T], data: bytes | Raw) -> T:
        try:
            return decoder.decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._protocol(str(error)) from error

    def _protocol(self, what: str) -> ModeldError:
        text = f"{self._backend} ({self._model}) sent what cannot be read: {what}"
        return BackendProtocolError(text, backend=self._backend, model=self._model)


_HANDLERS: Final[dict[str, Callable[[Decoder, Event], list[StreamPart]]]] = {
    "": Decoder._error,
    "error": Decoder._error,
    "response.output_text.delta": Decoder._text,
    "response.refusal.delta": Decoder._refusal,
    "response.reasoning_summary_text.delta": Decoder._summary,
    "response.reasoning_text.delta": Decoder._reasoning,
    "response.output_item.added": Decoder._item_added,
    "response.output_item.done": Decoder._item_done,
    "response.function_call_arguments.delta": Decoder._arguments,
    "response.completed": Decoder._completed,
    "response.incomplete": Decoder._incomplete,
    "response.failed": Decoder._response_failed,
}

_USUAL: Final = ("reasoning", "message", "function_call")


def _grown(call: _Call, arguments: Any) -> list[StreamPart]:
    if not is_text(arguments):
        return []
    call.sent.append(arguments)
    return [ToolCallDelta(call.index, arguments)]


def _ended(call: _Call) -> list[StreamPart]:
    call.ended = True
    empty = [] if call.sent else _grown(call, "{}")
    return [*empty, ToolCallEnd(call.index)]
