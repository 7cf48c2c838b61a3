"""Reads the answers of Chat Completions, whole or streamed, with one state machine.

Containers are typed, leaves are not: a vendor that adds a field, sends null, or gives a leaf another shape breaks
nothing. What is of no use is not decoded at all. Measured: see ``docs/benchmarks.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import msgspec
from msgspec import Struct

from modeld.errors import BackendProtocolError, ModeldError
from modeld.providers.failures import Codes, Failure, failure_error
from modeld.providers.token_logprobs import read_logprobs
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
    Usage,
    WarningPart,
)

if TYPE_CHECKING:
    from modeld.providers.chat_completions import Dialect

DONE: Final = b"[DONE]"


class _Function(Struct, gc=False):
    name: Any = None
    arguments: Any = None


class _Call(Struct, gc=False):
    index: Any = None
    id: Any = None
    function: _Function | None = None


class _Delta(Struct, gc=False):
    content: Any = None
    reasoning_content: Any = None
    reasoning: Any = None
    reasoning_details: Any = None
    refusal: Any = None
    tool_calls: list[_Call] | None = None


class _Choice(Struct, gc=False):
    delta: _Delta | None = None
    message: _Delta | None = None
    index: Any = 0
    finish_reason: Any = None
    stop_reason: Any = None
    error: Any = None
    logprobs: Any = None


class _Chunk(Struct, gc=False):
    """A chunk of a stream, and a whole answer as well: ``delta`` and ``message`` have the same fields."""

    choices: list[_Choice] | None = None
    id: Any = None
    model: Any = None
    usage: Any = None
    error: Any = None
    object: Any = None
    message: Any = None
    code: Any = None
    type: Any = None


_decode: Final = msgspec.json.Decoder(_Chunk).decode


class _Open:
    """A call that is being put together. It starts when its name is known."""

    def __init__(self, index: int, call_id: str, said_id: str) -> None:
        self.index = index
        self.id = call_id
        self.said_id = said_id
        self.name: Any = None
        self.started = False
        self.blank = True
        self.waiting: list[str] = []


class ChatDecoder:
    """The parts of one answer: :meth:`feed` and :meth:`close` for a stream, :meth:`whole` for a body."""

    def __init__(self, dialect: Dialect, model: str, names: ToolNames) -> None:
        self._dialect = dialect
        self._model = model
        self._names = names
        self._calls: list[_Open] = []
        self._by_index: dict[int, _Open] = {}
        self._by_id: dict[str, _Open] = {}
        self._id = ""
        self._answered_by = ""
        self._usage: Any = None
        self._finish: Any = None
        self._stop = ""
        self._refused = False
        self._details: list[dict[str, Any]] = []
        self._ended = False

    def feed(self, data: bytes) -> list[StreamPart]:
        """The parts of one event's data.

        :raises ModeldError: the event is an error, or none that can be understood.
        """
        if data == DONE:
            return self.close()
        return self._absorb(self._chunk(data))

    def close(self) -> list[StreamPart]:
        """The last parts, once, if the vendor said why the answer ended; else nothing: it was cut off.

        Servers forget ``[DONE]``; the end of the body then stands for it.
        """
        if self._ended or self._finish is None:
            return []
        self._ended = True
        return self._end()

    def whole(self, body: bytes) -> list[StreamPart]:
        """The parts of an answer that was not streamed."""
        chunk = self._chunk(body)
        parts = self._absorb(chunk)
        if self._finish is None:
            raise self._broken("has no choice that says how it ended", body)
        return parts + self.close()

    def _chunk(self, data: bytes) -> _Chunk:
        try:
            chunk = _decode(data)
        except msgspec.DecodeError as error:
            raise self._broken(f"is not what it should be ({error})", data) from error
        if chunk.error:
            raise vendor_error(self._dialect.backend, self._model, chunk.error, self._dialect.codes)
        if chunk.object == "error":
            # vLLM before 0.10 had the error's fields at the top.
            body = {"message": chunk.message, "code": chunk.code, "type": chunk.type}
            raise vendor_error(self._dialect.backend, self._model, body, self._dialect.codes)
        return chunk

    def _broken(self, what: str, data: bytes) -> BackendProtocolError:
        backend = self._dialect.backend
        said = data[:200].decode("utf-8", "replace")
        return BackendProtocolError(f"an answer of {backend} {what}: {said}", backend=backend, model=self._model)

    def _absorb(self, chunk: _Chunk) -> list[StreamPart]:
        if not self._id and chunk.id:
            self._id = str(chunk.id)
        if not self._answered_by and chunk.model:
            self._answered_by = str(chunk.model)
        if chunk.usage:
            self._usage = chunk.usage
        parts: list[StreamPart] = []
        for choice in chunk.choices or ():
            if choice.index:
                continue
            if choice.error:
                raise vendor_error(self._dialect.backend, self._model, choice.error, self._dialect.codes)
            if choice.delta is not None:
                self._read(choice.delta, parts)
            elif choice.message is not None:
                self._read(choice.message, parts, whole=True)
            if isinstance(choice.logprobs, dict):
                for list_ in (choice.logprobs.get("content"), choice.logprobs.get("refusal")):
                    parts += read_logprobs(list_, self._dialect.logprobs_of)
            # Servers send "" as long as there is none.
            if choice.finish_reason:
                self._finish = choice.finish_reason
                if self._dialect.stop_field and isinstance(choice.stop_reason, str):
                    self._stop = choice.stop_reason
        return parts

    def _read(self, delta: _Delta, parts: list[StreamPart], *, whole: bool = False) -> None:
        # Two names for one thing; servers that send both send the same in both.
        if (thinking := delta.reasoning_content or delta.reasoning) and (text := _text(thinking)):
            parts.append(ThinkingPart(text))
        if content := delta.content:
            if type(content) is str:
                parts.append(TextPart(content))
            else:
                _read_pieces(content, parts)
        if delta.refusal:
            self._refused = True
            parts.append(TextPart(_text(delta.refusal)))
        if delta.tool_calls:
            for call in delta.tool_calls:
                self._read_call(call, self._open(call) if whole else self._find(call), parts)
        if delta.reasoning_details and self._dialect.details_field:
            self._keep(delta.reasoning_details)

    def _read_call(self, call: _Call, known: _Open, parts: list[StreamPart]) -> None:
        function = call.function or _Function()
        if not known.started and function.name:
            known.started, known.name = True, function.name
            parts.append(ToolCallStart(known.index, known.id, self._names.original(str(function.name))))
            known.waiting, waiting = [], known.waiting
            for text in waiting:
                parts.append(ToolCallDelta(known.index, text))
        if text := _json_text(function.arguments):
            known.blank = known.blank and not text.strip()
            if known.started:
                parts.append(ToolCallDelta(known.index, text))
            else:
                known.waiting.append(text)

    def _find(self, call: _Call) -> _Open:
        """The call that a piece belongs to: by index and id, since servers get either wrong.

        A piece with a name and a new id begins a call, also at an index that is taken (servers that number every call
        0); so does one with another name, and one with a name at another index, whatever its id (servers that give
        every call the same). One without a name goes on with the call of its index or id, also under another id
        (servers that draw an id for each piece), or with the last call.
        """
        name = call.function.name if call.function is not None else None
        named = bool(name)
        index = call.index if type(call.index) is int else None
        call_id = str(call.id) if call.id else ""
        known = self._by_id.get(call_id) if call_id else None
        if known is not None and index is not None and (place := self._by_index.get(index)) is not known:
            # The same id at another index: another call of that id, which went on or begins.
            known = place if place is not None and place.said_id == call_id else None if named else known
        if known is None and index is not None:
            known = self._by_index.get(index)
            if known is not None and named and call_id:
                known = None
        elif known is None and not named and self._calls:
            known = self._calls[-1]
        if known is None or (named and known.started and known.name != name):
            return self._open(call)
        if index is not None:
            self._by_index[index] = known
        return known

    def _open(self, call: _Call) -> _Open:
        """A new call. An id that another has already is replaced: results are told apart by it."""
        said = str(call.id) if call.id else ""
        fresh = not said or said in self._by_id
        known = _Open(len(self._calls), f"call_{uuid4().hex[:24]}" if fresh else said, said)
        self._calls.append(known)
        self._by_id[known.id] = known
        if type(call.index) is int:
            self._by_index[call.index] = known
        return known

    def _keep(self, details: Any) -> None:
        """Collect what goes back to the vendor: pieces of one text come with the same type and index."""
        for piece in details if isinstance(details, list) else [details]:
            if not isinstance(piece, dict):
                continue
            last = self._details[-1] if self._details else {}
            same = bool(last) and all(last.get(key) == piece.get(key) for key in ("type", "index"))
            if not same:
                self._details.append(dict(piece))
                continue
            for key, value in piece.items():
                grows = key in ("text", "summary", "data") and isinstance(value, str)
                last[key] = str(last.get(key) or "") + value if grows else (value or last.get(key))

    def _end(self) -> list[StreamPart]:
        parts: list[StreamPart] = []
        for call in self._calls:
            if not call.started:
                parts.append(ToolCallStart(call.index, call.id, ""))
                parts += [ToolCallDelta(call.index, text) for text in call.waiting]
            if call.blank:
                parts.append(ToolCallDelta(call.index, "{}"))
            parts.append(ToolCallEnd(call.index))
        reason = self._reason(parts)
        field = self._dialect.details_field
        meta = {self._dialect.backend: {field: self._details}} if field and self._details else None
        end = EndPart(
            finish_reason=reason,
            usage=read_usage(self._usage),
            model=self._answered_by or self._model,
            id=self._id,
            stop=self._stop,
            provider_meta=meta,
        )
        return [*parts, end]

    def _reason(self, parts: list[StreamPart]) -> FinishReason:
        if self._finish in self._dialect.failed:
            said = {"code": self._finish, "message": "the answer broke off"}
            raise vendor_error(self._dialect.backend, self._model, said, self._dialect.codes)
        reason = self._dialect.finish_reasons.get(str(self._finish))
        if reason is None:
            text = (
                f"{self._dialect.backend} ended the answer with {str(self._finish)[:80]!r}, which has no meaning here"
            )
            parts.append(WarningPart("unknown_finish_reason", text))
            reason = "stop"
        if self._refused:
            return "refused"
        if reason in ("stop", "tool_calls"):
            return "tool_calls" if self._calls else "stop"
        return reason


def read_usage(said: Any) -> Usage:
    """What the vendor counted. ``prompt_tokens`` has the cached ones in it, ``completion_tokens`` the thinking.

    Source: https://platform.openai.com/docs/api-reference/chat/object
    """
    said = said if isinstance(said, dict) else {}
    prompt = said.get("prompt_tokens_details")
    completion = said.get("completion_tokens_details")
    return Usage(
        input=_count(said, "prompt_tokens"),
        cache_read=_count(prompt, "cached_tokens"),
        cache_write=_count(prompt, "cache_write_tokens"),
        output=_count(said, "completion_tokens"),
        reasoning=_count(completion, "reasoning_tokens"),
        source="reported",
    )


def _count(said: Any, name: str) -> int | None:
    value = said.get(name) if isinstance(said, dict) else None
    return value if type(value) is int and value >= 0 else None


def _text(value: Any) -> str:
    """Text that may come in pieces: a string, an object with text, or a list of such."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(_text(piece) for piece in value)
    if isinstance(value, dict):
        return _text(value.get("text") or value.get("thinking") or "")
    return ""


def _read_pieces(content: Any, parts: list[StreamPart]) -> None:
    """Content as a list of typed pieces, as Mistral's thinking models send it."""
    for piece in content if isinstance(content, list) else [content]:
        thinks = isinstance(piece, dict) and piece.get("type") == "thinking"
        if text := _text(piece):
            parts.append(ThinkingPart(text) if thinks else TextPart(text))


def _json_text(arguments: Any) -> str:
    """Arguments as JSON text; some servers send the object itself."""
    if arguments is None or type(arguments) is str:
        return arguments or ""
    return msgspec.json.encode(arguments).decode()


def vendor_failure(said: Any, status: int, headers: Mapping[str, str], codes: Codes) -> Failure:
    """``said``, the ``error`` of an answer, as a failure.

    Of the vendor's code and type the one that ``codes`` knows wins. A code that is a number is an HTTP status where
    there is none.
    """
    body = said if isinstance(said, dict) else {"message": said}
    code, kind = body.get("code"), body.get("type")
    details = body.get("metadata")
    # OpenRouter's code is a status; its own word is in the metadata.
    word = details.get("error_type") if isinstance(details, dict) else None
    if type(code) is str and code.isdigit():
        code = int(code)
    if type(code) is int and not status and 400 <= code < 600:
        status = code
    known = [str(name) for name in (word, code, kind) if name is not None]
    message = body.get("message") or ""
    return Failure(
        message=message if isinstance(message, str) else msgspec.json.encode(message).decode(),
        status=status,
        code=next((name for name in known if name in codes), known[0] if known else ""),
        headers=headers,
    )


def vendor_error(backend: str, model: str, said: Any, codes: Codes) -> ModeldError:
    """The error that an ``error`` inside an answer is."""
    return failure_error(backend, model, vendor_failure(said, 0, {}, codes), codes)
