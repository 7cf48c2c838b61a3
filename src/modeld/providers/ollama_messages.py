"""Requests and answers of Ollama's ``/api/chat``.

Source: https://docs.ollama.com/api/chat and, for ``truncate``, ``shift``, ``tool_call_id`` and
``prompt_eval_cached_count``, the server's own types: https://github.com/ollama/ollama/blob/main/api/types.go
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from typing import Any, Final
from uuid import uuid4

import msgspec
from msgspec import Raw, Struct

from modeld.errors import BackendProtocolError, InvalidRequestError
from modeld.providers.ollama_models import ROOM, Card, think_value, unsupported
from modeld.providers.sse import MAX_EVENT
from modeld.providers.token_logprobs import read_logprobs
from modeld.repository.options import asks
from modeld.repository.wire import Call
from modeld.types import (
    EndPart,
    FinishReason,
    Message,
    StreamPart,
    TextPart,
    ThinkingPart,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Usage,
    WarningPart,
)

OPTIONS: Final = {
    "temperature": "temperature",
    "max_tokens": "num_predict",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "seed": "seed",
    "stop": "stop",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "repeat_penalty": "repeat_penalty",
}
"""Options that are one value, and the field of ``options`` for each."""

IMAGE_TOKENS: Final = 2048
"""Kept for each image. The server itself counts 768; newer models cut large pictures into more."""

TEMPLATE_TOKENS: Final = 256
"""Kept for what a template adds of its own: gpt-oss and tool instructions write about 100."""

DENSE: Final = 3
"""Bytes of text to a token, for the window to ask for. Prose has 3.2 to 3.9. Where a tokenizer needs more tokens than
this the server says how many, and is asked again."""

SPARSE: Final = 6
"""Bytes to a token that only a conversation that was cut would have."""


class ChatRequest:
    """One request: checked, encoded once, and sized.

    :raises NotSupportedError: this model cannot do what is asked. :raises InvalidRequestError: a call of the history
        has arguments that are no JSON object.
    """

    def __init__(self, call: Call, card: Card) -> None:
        _check(call, card)
        config = call.config
        self._body: dict[str, Any] = {"model": call.model.name}
        self._options: dict[str, Any] = {}
        messages = msgspec.json.encode(_messages(call.messages))
        images = [image for message in call.messages for image in message.images]
        self.size = len(messages) - sum(4 * -(-len(image.data) // 3) for image in images)
        self._extra = IMAGE_TOKENS * len(images) + TEMPLATE_TOKENS
        self._body["messages"] = Raw(messages)
        if config.tools and config.tool_choice != "none":
            tools = msgspec.json.encode([_tool(tool) for tool in config.tools])
            self.size += len(tools)
            self._body["tools"] = Raw(tools)
        if config.response_format is not None:
            schema = config.response_format.schema
            self._body["format"] = "json" if schema is None else schema
        if (think := think_value(call, card)) is not None:
            self._body["think"] = think
        # The server's default for both is to cut the conversation and not to say so.
        self._body |= {"truncate": bool(config.truncate), "shift": bool(config.shift)}
        for option in ("logprobs", "top_logprobs"):
            if asks(config, option):
                self._body[option] = getattr(config, option)
        for option, field in OPTIONS.items():
            if (value := getattr(config, option)) not in (None, ()):
                self._options[field] = value
        self.may_cut = bool(config.truncate or config.shift)
        self.max_tokens = config.max_tokens
        self.room = config.max_tokens or ROOM

    @property
    def tokens(self) -> int:
        """Tokens of the prompt, more than there are for most texts."""
        return self.size // DENSE + self._extra

    @property
    def most_tokens(self) -> int:
        """Tokens of the prompt at most: no tokenizer makes more of a text than it has bytes."""
        return self.size + self._extra

    def encode(self, window: int, stream: bool) -> bytes:
        """The body, with a window of that many tokens."""
        options = {**self._options, "num_ctx": window}
        return msgspec.json.encode({**self._body, "stream": stream, "options": options})


def _check(call: Call, card: Card) -> None:
    config, name = call.config, call.model.name
    if config.parallel_tool_calls is not None:
        raise unsupported("parallel_tool_calls", name, "no way to say how many tools are called at once")
    if config.tool_choice not in (None, "auto", "none"):
        raise unsupported("tool_choice", name, f"no way to hold a model to tool_choice={config.tool_choice!r}")
    if config.tools and config.tool_choice != "none" and not card.has("tools"):
        raise unsupported("tools", name, "no tools (/api/show)")
    if any(message.images for message in call.messages) and not card.has("vision"):
        raise unsupported("images", name, "no vision (/api/show)")


def _messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    names = {call.id: call.function.name for message in messages for call in message.tool_calls}
    return [_message(message, names) for message in messages]


def _message(message: Message, names: dict[str, str]) -> dict[str, Any]:
    body: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.images:
        body["images"] = [b64encode(image.data).decode("ascii") for image in message.images]
    if message.tool_calls:
        body["tool_calls"] = [_call(call, index) for index, call in enumerate(message.tool_calls)]
    meta = (message.provider_meta or {}).get("ollama")
    if isinstance(meta, dict) and isinstance(meta.get("thinking"), str):
        body["thinking"] = meta["thinking"]
    if message.role == "tool":
        if name := message.name or names.get(message.tool_call_id, ""):
            body["tool_name"] = name
        if message.tool_call_id:
            body["tool_call_id"] = message.tool_call_id
    return body


def _call(call: ToolCall, index: int) -> dict[str, Any]:
    name, text = call.function.name, call.function.arguments.strip() or "{}"
    try:
        msgspec.json.decode(text, type=dict)
    except msgspec.MsgspecError as error:
        raise InvalidRequestError(
            f"ollama takes a call's arguments as a JSON object only; those of call {call.id!r} of {name!r} are none: "
            f"{error}",
            parameter="messages",
        ) from None
    return {"id": call.id, "function": {"index": index, "name": name, "arguments": Raw(text.encode())}}


def _tool(tool: Tool) -> dict[str, Any]:
    # The server rejects parameters without a type.
    parameters = {"type": "object", "properties": {}, **tool.function.parameters}
    function = {"name": tool.function.name, "description": tool.function.description, "parameters": parameters}
    return {"type": "function", "function": function}


class _Function(Struct, frozen=True):
    name: str = ""
    arguments: Raw = Raw(b"{}")


class _Call(Struct, frozen=True):
    function: _Function
    id: str | None = None


class _Message(Struct, frozen=True):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[_Call] | None = None


class Frame(Struct, frozen=True):
    """A line of an answer; the last one has ``done``. A whole answer is one line.

    Counts of 0 are left out by the server, and so are unknown ones: absent is unknown here. Durations are nanoseconds.
    """

    message: _Message | None = None
    logprobs: Any = None
    done: bool | None = None
    done_reason: str | None = None
    model: str | None = None
    prompt_eval_count: int | None = None
    prompt_eval_cached_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None
    error: Any = None


class FrameError(Exception):
    """The server's error within an answer."""

    def __init__(self, error: Any) -> None:
        super().__init__("error in an answer")
        self.error = error


_decode: Final = msgspec.json.Decoder(Frame).decode


class FrameDecoder:
    """Bytes of an answer, split anywhere, as parts. Used by streams and whole answers alike.

    :param window: tokens that were asked for.
    """

    def __init__(self, request: ChatRequest, window: int) -> None:
        self._request = request
        self._window = window
        self._rest = b""
        self._calls = 0
        self._thinking: list[str] = []
        self.ended = False
        self.full = False
        """The answer ended because the window was full."""

    def feed(self, data: bytes) -> list[StreamPart]:
        """Parts of the lines that ``data`` completes.

        :raises FrameError: the server failed. :raises msgspec.MsgspecError: a line is no frame.
        :raises BackendProtocolError: a line is longer than ``MAX_EVENT``.
        """
        parts: list[StreamPart] = []
        *lines, self._rest = (self._rest + data if self._rest else data).split(b"\n")
        for line in lines:
            if line and not self.ended:
                self._frame(line, parts)
        if len(self._rest) > MAX_EVENT:
            raise BackendProtocolError(f"a line of an answer is longer than {MAX_EVENT} bytes", backend="ollama")
        return parts

    def finish(self) -> list[StreamPart]:
        """Parts of a last line without a newline."""
        return self.feed(b"\n")

    def whole(self, body: bytes) -> list[StreamPart]:
        """Parts of an answer that is one frame."""
        parts: list[StreamPart] = []
        self._frame(body, parts)
        return parts

    def _frame(self, line: bytes, parts: list[StreamPart]) -> None:
        if line.isspace():
            return
        frame = _decode(line)
        if frame.error is not None:
            raise FrameError(frame.error)
        message = frame.message
        if message is not None:
            if message.thinking:
                self._thinking.append(message.thinking)
                parts.append(ThinkingPart(message.thinking))
            if message.content:
                parts.append(TextPart(message.content))
            for call in message.tool_calls or ():
                parts += self._call(call)
        # Of all that the model writes, thinking and calls too.
        parts += read_logprobs(frame.logprobs, None)
        if frame.done:
            parts += self._end(frame)

    def _call(self, call: _Call) -> list[StreamPart]:
        """A call comes whole, never in pieces. Servers before 0.12.10 give it no id."""
        index, self._calls = self._calls, self._calls + 1
        text = bytes(call.function.arguments).decode()
        if text.startswith('"'):
            text = msgspec.json.decode(text, type=str)
        start = ToolCallStart(index, call.id or f"call_{uuid4().hex[:24]}", call.function.name)
        return [start, ToolCallDelta(index, "{}" if text in ("", "null") else text), ToolCallEnd(index)]

    def _end(self, frame: Frame) -> list[StreamPart]:
        self.ended = True
        warnings = self._cut(frame)
        reason: FinishReason = "stop"
        if frame.done_reason == "length":
            self.full = self._is_full(frame)
            reason = "context_full" if self.full else "length"
        elif frame.done_reason != "stop":
            # ``load`` and ``unload`` answer a request to load a model; nothing: the engine hung up.
            reason = "stop" if frame.done_reason else "error"
            text = f"ollama gave {frame.done_reason!r} as the reason why the answer ended"
            warnings.append(WarningPart("unknown_finish_reason", text))
        if self._calls and reason == "stop":
            reason = "tool_calls"
        # Models that think between calls forget why they called when they do not see it again.
        replay = self._calls and self._thinking
        end = EndPart(
            finish_reason=reason,
            usage=Usage(
                input=frame.prompt_eval_count,
                cache_read=frame.prompt_eval_cached_count,
                output=frame.eval_count,
                source="reported",
                prefill_seconds=_seconds(frame.prompt_eval_duration),
                decode_seconds=_seconds(frame.eval_duration),
            ),
            model=frame.model or "",
            provider_meta={"ollama": {"thinking": "".join(self._thinking)}} if replay else None,
        )
        return [*warnings, end]

    def _is_full(self, frame: Frame) -> bool:
        """Whether ``length`` means the window: prompt and answer fill it, give or take what the engine keeps free."""
        asked = self._request.max_tokens
        if asked is not None and (frame.eval_count or 0) >= asked:
            return False
        return (frame.prompt_eval_count or 0) + (frame.eval_count or 0) >= self._window - 4

    def _cut(self, frame: Frame) -> list[WarningPart]:
        """What hints at a conversation that was cut. The server never says so itself."""
        seen, window, request = frame.prompt_eval_count, self._window, self._request
        total = (seen or 0) + (frame.eval_count or 0)
        filled = seen is not None and seen >= window - 1
        left = request.tokens > window and (request.may_cut or seen is None or seen * SPARSE < request.size)
        if not filled and not left and not (request.may_cut and total > window):
            return []
        text = (
            f"the conversation, about {request.size // DENSE} tokens, and its answer may not have fitted the window of "
            f"{window}: the server counted {'no' if seen is None else seen} tokens of it, and does not tell what left"
        )
        return [WarningPart("context_cut", text)]


def _seconds(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1e9
