"""Answers of ``POST /v1/responses``: events in the vendor's order, and the object that they end with.

A whole answer is written by the same code, and its events are not sent.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from modeld.http.errors import Failure, openai_code
from modeld.http.openai_answer import extension
from modeld.http.openai_logprobs import Entry, entries, said
from modeld.http.responses_items import seal
from modeld.http.responses_request import ResponsesRequest
from modeld.http.sse import COMMENT
from modeld.types import (
    EndPart,
    ErrorPart,
    FinishReason,
    LogprobsPart,
    StreamPart,
    TextPart,
    ThinkingPart,
    TokenLogprob,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Usage,
    WarningPart,
)

Json = dict[str, Any]

_INCOMPLETE: Final[dict[FinishReason, str]] = {
    "length": "max_output_tokens",
    "context_full": "max_output_tokens",
    "refused": "content_filter",
}
_FAILED: Final[frozenset[FinishReason]] = frozenset({"error", "cancelled"})


class _Kind(Struct, frozen=True):
    """How words are told. :param index: the key of their place in the item, which is always 0."""

    item: str
    part: str
    events: str
    index: str
    frame: str


_TEXT: Final = _Kind("message", "output_text", "response.output_text", "content_index", "response.content_part")
_THOUGHT: Final = _Kind(
    "reasoning", "reasoning_text", "response.reasoning_text", "content_index", "response.content_part"
)
_SUMMARY: Final = _Kind(
    "reasoning",
    "summary_text",
    "response.reasoning_summary_text",
    "summary_index",
    "response.reasoning_summary_part",
)


class _Words(Struct):
    """An item of words that is open: a message, or reasoning."""

    kind: _Kind
    id: str
    place: int
    text: list[str] = []
    logprobs: list[Entry] = []


class _Call(Struct):
    """A call that is open."""

    item: Json
    place: int
    arguments: list[str] = []


class ResponseWriter:
    """One answer. :class:`modeld.http.sse.Encoder`, :class:`modeld.http.sse.Failing`; at its end :attr:`response`.

    :param notes: warnings besides those of the answer.
    """

    def __init__(self, request: ResponsesRequest, notes: Sequence[WarningPart] = ()) -> None:
        self._request = request
        self._offered = request.offered
        self._frame: Json = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "status": "in_progress",
            "completed_at": None,
            "error": None,
            "incomplete_details": None,
            "output": [],
            "usage": None,
            **request.echoed(),
        }
        self._sequence = 0
        self._begun = False
        self._places = 0
        self._output: dict[int, Json] = {}
        self._words: _Words | None = None
        self._message: Json | None = None
        self._calls: dict[int, _Call] = {}
        self._warnings = list(notes)
        self._errors: list[ErrorPart] = []
        self.response = self._frame

    def part(self, part: StreamPart) -> bytes:
        """See :class:`modeld.http.sse.Encoder`."""
        begun = self._begin()
        match part:
            case TextPart(text=text):
                return begun + self._say(_TEXT, text)
            case ThinkingPart(text=text):
                return begun + self._say(_SUMMARY if self._request.summarises else _THOUGHT, text)
            case ToolCallStart():
                return begun + self._start(part)
            case ToolCallDelta(index=index, arguments=arguments):
                return begun + self._argue(index, arguments)
            case ToolCallEnd(index=index):
                return begun + self._finish_call(index)
            case LogprobsPart(tokens=tokens) if self._request.tells_logprobs:
                return begun + self._tell(said(tokens))
            case WarningPart():
                self._warnings.append(part)
            case ErrorPart():
                self._errors.append(part)
                return begun + (b"" if part.call is None else self._take_back(part.call))
            case EndPart():
                return begun + self._end(part)
        return begun

    def heartbeat(self) -> bytes:
        """See :class:`modeld.http.sse.Encoder`."""
        return COMMENT

    def end(self) -> bytes:
        """See :class:`modeld.http.sse.Encoder`."""
        return b""

    def failed(self, failure: Failure) -> bytes:
        """See :class:`modeld.http.sse.Failing`. The first event has our code, the second one of the vendor's few."""
        data = self._begin() + self._close("incomplete")
        code, message = openai_code(failure), failure.message
        data += self._event("error", code=code, message=message, param=failure.param)
        kind = "rate_limit_exceeded" if failure.status == 429 else "server_error"
        more = {"code": code, "warnings": self._warnings, "errors": self._errors}
        frame = self._frame | {"status": "failed", "output": self._items(), "error": {"code": kind, "message": message}}
        self.response = frame | {"modeld": more}
        return data + self._event("response.failed", response=self.response)

    def _begin(self) -> bytes:
        if self._begun:
            return b""
        self._begun = True
        created = self._event("response.created", response=self._frame)
        return created + self._event("response.in_progress", response=self._frame)

    # Words

    def _say(self, kind: _Kind, text: str) -> bytes:
        data = b""
        if self._words is None or self._words.kind is not kind:
            data = self._close_words("completed") + self._open_words(kind)
        assert self._words is not None
        self._words.text.append(text)
        return data + self._delta(self._words, text, [])

    def _open_words(self, kind: _Kind) -> bytes:
        prefix = "msg" if kind is _TEXT else "rs"
        self._words = words = _Words(kind, f"{prefix}_{uuid.uuid4().hex}", self._place())
        added = self._event(
            "response.output_item.added", output_index=words.place, item=self._item(words, "in_progress", begun=False)
        )
        return added + self._event(f"{kind.frame}.added", **self._at(words), part=_part(kind, "", []))

    def _delta(self, words: _Words, text: str, logprobs: list[Entry]) -> bytes:
        more = {"logprobs": logprobs} if words.kind is _TEXT else {}
        return self._event(f"{words.kind.events}.delta", **self._at(words), delta=text, **more)

    def _tell(self, tokens: list[TokenLogprob]) -> bytes:
        """How probable text was, behind it: in a delta of its own, or, where its message is over, in the end only."""
        if not tokens:
            return b""
        told = entries(tokens)
        if self._words is not None and self._words.kind is _TEXT:
            self._words.logprobs += told
            return self._delta(self._words, "", told)
        if self._message is not None:
            self._message["content"][0]["logprobs"] += told
        return b""

    def _close_words(self, status: str) -> bytes:
        words, self._words = self._words, None
        if words is None:
            return b""
        kind, text = words.kind, "".join(words.text)
        item = self._output[words.place] = self._item(words, status)
        self._message = item if kind is _TEXT else self._message
        more = {"logprobs": words.logprobs} if kind is _TEXT else {}
        data = self._event(f"{kind.events}.done", **self._at(words), text=text, **more)
        data += self._event(f"{kind.frame}.done", **self._at(words), part=_part(kind, text, words.logprobs))
        return data + self._event("response.output_item.done", output_index=words.place, item=item)

    def _item(self, words: _Words, status: str, *, begun: bool = True) -> Json:
        """:param begun: with its words."""
        kind, text = words.kind, "".join(words.text)
        parts = [_part(kind, text, list(words.logprobs))] if begun else []
        item: Json = {"id": words.id, "type": kind.item, "status": status}
        if kind is _TEXT:
            return item | {"role": "assistant", "content": parts}
        sealed = seal(text) if begun and self._request.seals else None
        shown = {"summary": parts} if kind is _SUMMARY else {"summary": [], "content": parts}
        return item | shown | {"encrypted_content": sealed}

    def _at(self, words: _Words) -> Json:
        return {"item_id": words.id, "output_index": words.place, words.kind.index: 0}

    # Calls

    def _start(self, start: ToolCallStart) -> bytes:
        data = self._close_words("completed")
        item: Json = {"id": f"fc_{uuid.uuid4().hex}", "type": "function_call", "status": "in_progress", "arguments": ""}
        item |= {"call_id": start.id} | self._offered.own(start.name)
        call = self._calls[start.index] = _Call(item, self._place())
        return data + self._event("response.output_item.added", output_index=call.place, item=call.item)

    def _argue(self, index: int, arguments: str) -> bytes:
        call = self._calls[index]
        call.arguments.append(arguments)
        at = {"item_id": call.item["id"], "output_index": call.place}
        return self._event("response.function_call_arguments.delta", **at, delta=arguments)

    def _finish_call(self, index: int, status: str = "completed") -> bytes:
        call = self._calls.pop(index)
        arguments = "".join(call.arguments)
        item = self._output[call.place] = call.item | {"arguments": arguments, "status": status}
        at = {"item_id": item["id"], "output_index": call.place}
        data = self._event("response.function_call_arguments.done", **at, arguments=arguments)
        return data + self._event("response.output_item.done", output_index=call.place, item=item)

    def _take_back(self, index: int) -> bytes:
        """It was malformed, and is text as well: its item ends as incomplete, and the answer is without it."""
        if index not in self._calls:
            return b""
        place = self._calls[index].place
        data = self._finish_call(index, "incomplete")
        del self._output[place]
        return data

    # The end

    def _end(self, end: EndPart) -> bytes:
        reason = end.finish_reason
        whole = reason not in _INCOMPLETE and reason not in _FAILED
        data = b""
        if self._words is None and not self._output and not self._calls:
            data = self._open_words(_TEXT)
        data += self._close("completed" if whole else "incomplete")
        status = "completed" if whole else "failed" if reason in _FAILED else "incomplete"
        more: Json = {"completed_at": int(time.time())} if whole else {}
        if status == "incomplete":
            more["incomplete_details"] = {"reason": _INCOMPLETE[reason]}
        elif status == "failed":
            more["error"] = {"code": "server_error", "message": "the answer broke off: what came is not the whole"}
        told = extension(end, self._warnings, self._errors) | {"usage": end.usage}
        self.response = self._frame | {"status": status, "output": self._items(), "usage": _usage(end.usage)} | more
        self.response |= {"modeld": told}
        return data + self._event(f"response.{status}", response=self.response)

    def _close(self, status: str) -> bytes:
        """End what is open."""
        data = self._close_words(status)
        for index in sorted(self._calls):
            data += self._finish_call(index, status)
        return data

    def _items(self) -> list[Json]:
        return [item for _, item in sorted(self._output.items())]

    def _place(self) -> int:
        self._places += 1
        return self._places - 1

    def _event(self, type: str, **fields: Any) -> bytes:
        body = msgspec.json.encode({"type": type, "sequence_number": self._sequence, **fields})
        self._sequence += 1
        return b"event: " + type.encode() + b"\ndata: " + body + b"\n\n"


def _part(kind: _Kind, text: str, logprobs: list[Entry]) -> Json:
    return {"type": kind.part, "text": text} | ({"annotations": [], "logprobs": logprobs} if kind is _TEXT else {})


def _usage(usage: Usage) -> Json | None:
    """``None`` where a vendor told no numbers. A detail that it did not tell is 0, for want of a null:
    ``modeld.usage`` has what is known."""
    if usage.input is None or usage.output is None:
        return None
    return {
        "input_tokens": usage.input,
        "input_tokens_details": {
            "cached_tokens": usage.cache_read or 0,
            "cache_write_tokens": usage.cache_write or 0,
        },
        "output_tokens": usage.output,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning or 0},
        "total_tokens": usage.input + usage.output,
    }
