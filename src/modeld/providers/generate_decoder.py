"""The ``generateContent`` wire of Gemini and Vertex: answers, streamed and whole.

Source: https://ai.google.dev/api/generate-content (GenerateContentResponse) and the enums of the SDK.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec
from msgspec import Struct

from modeld.errors import BackendProtocolError, InvalidRequestError
from modeld.providers.generate_content import META
from modeld.providers.google_errors import google_failure
from modeld.repository.names import ToolNames
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
    TopLogprob,
    Usage,
    WarningPart,
)


class _Call(Struct):
    name: str | None = None
    id: str | None = None
    args: msgspec.Raw = msgspec.Raw()


class _Part(Struct, rename="camel"):
    text: str | None = None
    thought: bool | None = None
    thought_signature: str | None = None
    function_call: _Call | None = None
    inline_data: msgspec.Raw = msgspec.Raw()
    file_data: msgspec.Raw = msgspec.Raw()


class _Content(Struct):
    parts: list[_Part] | None = None


class _Scored(Struct, rename="camel"):
    log_probability: float | None = None
    token: str | None = None
    token_id: int | None = None


class _Best(Struct):
    candidates: list[_Scored] | None = None


class _Logprobs(Struct, rename="camel"):
    chosen_candidates: list[_Scored] | None = None
    top_candidates: list[_Best] | None = None


class _Candidate(Struct, rename="camel"):
    content: _Content | None = None
    finish_reason: str | None = None
    finish_message: str | None = None
    continuation_token: str | None = None
    logprobs_result: _Logprobs | None = None


class _Feedback(Struct, rename="camel"):
    block_reason: str | None = None
    block_reason_message: str | None = None


class _Tokens(Struct, rename="camel"):
    prompt_token_count: int | None = None
    cached_content_token_count: int | None = None
    candidates_token_count: int | None = None
    thoughts_token_count: int | None = None
    tool_use_prompt_token_count: int | None = None


class _Chunk(Struct, rename="camel"):
    candidates: list[_Candidate] | None = None
    prompt_feedback: _Feedback | None = None
    usage_metadata: _Tokens | None = None
    model_version: str | None = None
    response_id: str | None = None
    error: dict[str, Any] | None = None


_decode = msgspec.json.Decoder(_Chunk).decode

_REASONS: Final[Mapping[str, FinishReason]] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    # Only where no token came, or one that did not lead on.
    "CONTINUATION": "length",
    "SAFETY": "refused",
    "RECITATION": "refused",
    "LANGUAGE": "refused",
    "BLOCKLIST": "refused",
    "PROHIBITED_CONTENT": "refused",
    "SPII": "refused",
    "IMAGE_SAFETY": "refused",
    "IMAGE_PROHIBITED_CONTENT": "refused",
    "IMAGE_RECITATION": "refused",
    "MODEL_ARMOR": "refused",
    "ESCALATION": "refused",
    "PUP_LIMITED_DISABLED": "refused",
}
_MALFORMED: Final = ("MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "MALFORMED_RESPONSE", "TOO_MANY_TOOL_CALLS")


class Decoder:
    """Parts of one answer, which may take several requests.

    Past the limit of one request Gemini 4 ends with CONTINUATION and a token, which the same request sent again has to
    carry (https://ai.google.dev/gemini-api/docs/generate-content/long-decode); ``continuation`` is that token.
    """

    def __init__(self, backend: str, model: str, names: ToolNames) -> None:
        self._backend = backend
        self._model = model
        self._names = names
        self._calls = 0
        self._signature = ""
        self._reason = ""
        self._message = ""
        self._blocked = False
        self._version = ""
        self._id = ""
        self._tokens: _Tokens | None = None
        self._spent = Usage(source="reported")
        self._unread: set[str] = set()
        self._continued = ""
        self.continuation = ""

    def feed(self, data: bytes | str) -> Sequence[StreamPart]:
        """What one chunk, or the whole answer, holds.

        :raises BackendProtocolError: it is no answer. :raises BackendError: it is an error.
        """
        if data in (b"[DONE]", "[DONE]"):
            return ()
        try:
            chunk = _decode(data)
        except msgspec.DecodeError as error:
            text = f"an answer of {self._backend} cannot be read: {error}"
            raise BackendProtocolError(text, backend=self._backend, model=self._model) from error
        if chunk.error is not None:
            raise google_failure(self._backend, self._model, chunk.error)
        if chunk.usage_metadata is not None:
            self._tokens = chunk.usage_metadata
        if not self._id:
            self._id, self._version = chunk.response_id or "", chunk.model_version or ""
        if not chunk.candidates:
            self._feedback(chunk.prompt_feedback)
            return ()
        candidate = chunk.candidates[0]
        if candidate.finish_reason:
            self._reason, self._message = candidate.finish_reason, candidate.finish_message or ""
            self.continuation = candidate.continuation_token or ""
        said = self._said(candidate.content)
        return said if candidate.logprobs_result is None else [*said, *_logprobs(candidate.logprobs_result)]

    def _said(self, content: _Content | None) -> Sequence[StreamPart]:
        if content is None or not content.parts:
            return ()
        parts = content.parts
        first = parts[0]
        if len(parts) == 1 and first.text and not (first.thought or first.thought_signature or first.function_call):
            # Nearly every chunk of a stream.
            return (TextPart(first.text),)
        return [made for part in parts for made in self._part(part)]

    def _part(self, part: _Part) -> Iterator[StreamPart]:
        if part.function_call is not None:
            yield from self._call(part.function_call, part.thought_signature)
            return
        if part.thought_signature:
            self._signature = part.thought_signature
        if part.text:
            yield ThinkingPart(part.text) if part.thought else TextPart(part.text)
        for kind in ("inline_data", "file_data"):
            if bytes(getattr(part, kind)) not in (b"", b"null") and kind not in self._unread:
                self._unread.add(kind)
                yield WarningPart("part_not_carried", f"the answer holds {kind}, which a message of text cannot carry")

    def _call(self, call: _Call, signature: str | None) -> Iterator[StreamPart]:
        index, self._calls = self._calls, self._calls + 1
        yield ToolCallStart(index, call.id or f"call_{uuid.uuid4().hex[:24]}", self._names.original(call.name or ""))
        # Whole answers come indented, streams do not.
        arguments = msgspec.json.format(bytes(call.args) or b"{}", indent=-1).decode()
        yield ToolCallDelta(index, "{}" if arguments == "null" else arguments)
        yield ToolCallEnd(index, {META: {"thought_signature": signature}} if signature else None)

    def _feedback(self, feedback: _Feedback | None) -> None:
        if feedback is not None and feedback.block_reason:
            self._reason, self._message = feedback.block_reason, feedback.block_reason_message or ""
            self._blocked = True

    def hop(self) -> bool:
        """Whether the answer goes on in another request; its tokens so far are added up."""
        goes_on = self._reason == "CONTINUATION" and self.continuation not in ("", self._continued)
        if goes_on:
            self._continued = self.continuation
            self._spent, self._tokens = self._usage(), None
            self._reason = ""
        return goes_on

    def finish(self) -> Sequence[StreamPart]:
        """The last parts; nothing where the answer had no end: it was cut.

        :raises InvalidRequestError: Google wants a signature that the history does not have.
        """
        if not self._reason:
            return ()
        if self._reason == "MISSING_THOUGHT_SIGNATURE":
            text = f"{self._backend} ({self._model}): a call of the history lost its thought signature (provider_meta)"
            raise InvalidRequestError(text, parameter="messages")
        parts: list[StreamPart] = []
        reason: FinishReason = "refused" if self._blocked else _REASONS.get(self._reason, "stop")
        about = f"{self._reason}: {self._message}" if self._message else self._reason
        if self._reason in _MALFORMED:
            if self._message:
                parts.append(TextPart(self._message))
            parts.append(ErrorPart("malformed_tool_call", f"no usable call ({self._reason})", self._message))
        elif reason == "refused":
            parts.append(WarningPart("refusal_reason", about))
        elif self._reason not in _REASONS:
            parts.append(WarningPart("unknown_finish_reason", about))
        elif reason == "stop" and self._calls:
            reason = "tool_calls"
        meta = {META: {"thought_signature": self._signature}} if self._signature else None
        model = self._version or self._model
        end = EndPart(finish_reason=reason, usage=self._usage(), model=model, id=self._id, provider_meta=meta)
        return [*parts, end]

    def _usage(self) -> Usage:
        tokens = self._tokens or _Tokens()
        # Neither promptTokenCount nor candidatesTokenCount holds what tools and thoughts took.
        now = Usage(
            input=_sum(tokens.prompt_token_count, tokens.tool_use_prompt_token_count),
            cache_read=tokens.cached_content_token_count,
            output=_sum(tokens.candidates_token_count, tokens.thoughts_token_count),
            reasoning=tokens.thoughts_token_count,
            source="reported",
        )
        spent = self._spent
        return Usage(
            input=_sum(spent.input, now.input),
            cache_read=_sum(spent.cache_read, now.cache_read),
            output=_sum(spent.output, now.output),
            reasoning=_sum(spent.reasoning, now.reasoning),
            source="reported",
        )


def _logprobs(said: _Logprobs) -> Iterator[LogprobsPart]:
    """What Google says of the tokens that these parts, thoughts among them or not, are made of."""
    tops = iter(said.top_candidates or ())
    tokens = []
    for chosen in said.chosen_candidates or ():
        best = next(tops, None)
        if chosen.log_probability is not None:
            top = tuple(
                TopLogprob(one.log_probability, (one.token or "").encode(), one.token_id)
                for one in (best.candidates or () if best is not None else ())
                if one.log_probability is not None
            )
            data = (chosen.token or "").encode()
            tokens.append(TokenLogprob(chosen.log_probability, data, chosen.token_id, top=top))
    if tokens:
        yield LogprobsPart(tuple(tokens))


def _sum(*counts: int | None) -> int | None:
    known = [count for count in counts if count is not None]
    return sum(known) if known else None
