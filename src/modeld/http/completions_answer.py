"""Answers of ``POST /v1/completions``: one object, or chunks of the same shape."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from modeld.http.openai_answer import FINISH, extension, usage_of
from modeld.http.openai_logprobs import LEAST
from modeld.http.sse import COMMENT, event
from modeld.types import (
    ChatResult,
    EndPart,
    LogprobsPart,
    ProgressPart,
    StreamPart,
    TextPart,
    TokenLogprob,
    Usage,
    WarningPart,
)

Body = dict[str, Any]


class Told:
    """``choices[].logprobs`` of one choice; offsets go on from call to call. :param start: characters before it."""

    def __init__(self, start: int) -> None:
        self._at = start
        self._decoder = getincrementaldecoder("utf-8")("replace")

    def write(self, tokens: Iterable[TokenLogprob]) -> Body:
        """The vendor's four lists. Alternatives whose bytes are no text may share a name: the best of them is told."""
        found: Body = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for token in tokens:
            name, logprob = token.data.decode("utf-8", "replace"), max(token.logprob, LEAST)
            top = {other.data.decode("utf-8", "replace"): max(other.logprob, LEAST) for other in reversed(token.top)}
            found["tokens"].append(name)
            found["token_logprobs"].append(logprob)
            found["top_logprobs"].append({name: logprob} | top)
            found["text_offset"].append(self._at)
            self._at += len(self._decoder.decode(token.data))
        return found


def text_completion(results: Sequence[ChatResult], echoes: Sequence[str], *, logprobs: bool, head: Body) -> Body:
    """The whole answer. :param echoes: what stands before each text."""
    choices = []
    for index, (result, echo) in enumerate(zip(results, echoes, strict=True)):
        told = Told(len(echo)).write(result.logprobs) if logprobs else None
        choices.append(_choice(index, echo + result.text, told, FINISH[result.finish_reason]))
    more = [extension(result.end, list(result.warnings), list(result.errors)) for result in results]
    usage = usage_of(_sum([result.usage for result in results]))
    return head | {"choices": choices, "usage": usage, "modeld": {"choices": more}}


class TextChunks:
    """The events of one streamed answer: its choices one after the other.

    :param usage: the client asked for a last chunk with the usage. :param progress: for chunks without choices.
    """

    def __init__(self, echoes: Sequence[str], *, logprobs: bool, usage: bool, progress: bool, head: Body) -> None:
        self._echoes = echoes
        self._head = head | ({"usage": None} if usage else {})
        self._usage = usage
        self._progress = progress
        self._index = 0
        self._begun = False
        self._told = [Told(len(echo)) for echo in echoes] if logprobs else []
        self._warnings: list[WarningPart] = []
        self._extensions: list[Body] = []
        self._usages: list[Usage] = []

    def part(self, part: StreamPart) -> bytes:
        """See :class:`modeld.http.sse.Encoder`."""
        match part:
            case TextPart(text=text):
                return self._chunk(text)
            case LogprobsPart(tokens=tokens) if self._told:
                return self._chunk("", self._told[self._index].write(tokens))
            case ProgressPart() if self._progress:
                return self._event({"choices": [], "modeld": {"progress": part}})
            case WarningPart():
                self._warnings.append(part)
            case EndPart():
                return self._end(part)
        return b""

    def heartbeat(self) -> bytes:
        """See :class:`modeld.http.sse.Encoder`."""
        return COMMENT

    def end(self) -> bytes:
        """See :class:`modeld.http.sse.Encoder`."""
        usage = self._event({"choices": [], "usage": usage_of(_sum(self._usages))}) if self._usage else b""
        return usage + event(b"[DONE]")

    def _end(self, end: EndPart) -> bytes:
        more = {"modeld": {"choices": [extension(end, self._warnings, [])]}}
        data = self._chunk("", None, FINISH[end.finish_reason], more)
        self._usages.append(end.usage)
        self._index, self._begun, self._warnings = self._index + 1, False, []
        return data

    def _chunk(self, text: str, told: Body | None = None, finish: str | None = None, more: Body | None = None) -> bytes:
        first = b""
        if not self._begun:
            self._begun = True
            first = self._chunk(self._echoes[self._index]) if self._echoes[self._index] else b""
        return first + self._event({"choices": [_choice(self._index, text, told, finish)]} | (more or {}))

    def _event(self, body: Body) -> bytes:
        return event(msgspec.json.encode(self._head | body))


def _choice(index: int, text: str, told: Body | None, finish: str | None) -> Body:
    return {"text": text, "index": index, "logprobs": told, "finish_reason": finish}


def _sum(usages: Sequence[Usage]) -> Usage:
    """Of all choices."""
    return Usage(
        input=sum(usage.input or 0 for usage in usages),
        output=sum(usage.output or 0 for usage in usages),
        cache_read=sum(usage.cache_read or 0 for usage in usages),
        reasoning=0,
    )
