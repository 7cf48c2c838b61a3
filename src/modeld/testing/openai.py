"""A fake of OpenAI: models, Chat Completions and embeddings; Responses are in :mod:`modeld.testing.responses`.

Source: the types of the ``openai`` SDK 3.54 (``CompletionCreateParams``, ``ChatCompletion``, ``ChatCompletionChunk``),
https://platform.openai.com/docs/api-reference, and the errors that the vendor is quoted with.
"""

from __future__ import annotations

import re
from contextvars import ContextVar
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from modeld.testing.compatible import (
    DONE,
    AssistantMessage,
    CompatibleRequest,
    FakeCompatible,
    Flat,
    NamedChoice,
    ObjectFormat,
    SchemaFormat,
    ToolMessage,
    add_logprobs,
    check_logprobs,
    dump,
    event,
)
from modeld.testing.responses import respond_responses, responses_error_event
from modeld.testing.server import Answer, Recorded, Rejected, Reply, split
from modeld.types import Usage

SNAPSHOTS: Final = {
    "gpt-4o": "gpt-4o-2024-08-06",
    "gpt-4o-mini": "gpt-4o-mini-2024-07-18",
    "o3-mini": "o3-mini-2025-01-31",
    "o4-mini": "o4-mini-2025-04-16",
    "gpt-5": "gpt-5-2025-08-07",
    "gpt-5.1": "gpt-5.1-2025-11-13",
}
"""Models that answer under the name of their snapshot."""

CHAT_MODELS: Final = ("gpt-4o", "gpt-4o-mini", "gpt-4", "o3-mini", "o4-mini", "gpt-5", "gpt-5.1", "house-model")
RESPONSES_MODELS: Final = ("o1-pro", "gpt-5-pro")
EMBEDDING_MODELS: Final = ("text-embedding-3-small", "text-embedding-ada-002")
OTHER_MODELS: Final = ("whisper-1", "gpt-image-1", "omni-moderation-latest")

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


class StreamOptions(Struct, forbid_unknown_fields=True):
    include_usage: bool = False


class ChatRequest(CompatibleRequest, forbid_unknown_fields=True, kw_only=True):
    """What ``/chat/completions`` takes, of what has a place in :class:`modeld.types.ChatConfig`."""

    max_completion_tokens: int | UnsetType = UNSET
    logprobs: bool | UnsetType = UNSET
    top_logprobs: int | UnsetType = UNSET
    seed: int | UnsetType = UNSET
    tool_choice: Literal["auto", "none", "required"] | NamedChoice | UnsetType = UNSET
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh"] | UnsetType = UNSET
    prompt_cache_key: str | UnsetType = UNSET
    prompt_cache_retention: Literal["in_memory", "24h"] | UnsetType = UNSET
    stream_options: StreamOptions | UnsetType = UNSET


class FakeOpenAI(FakeCompatible):
    """OpenAI's server.

    :param page_size: models on a page of the listing; 0: all on one, as the vendor has it.
    """

    request_type = ChatRequest

    def __init__(self, *, key: str = "test-key", page_size: int = 0) -> None:
        super().__init__(key=key)
        self.page_size = page_size

    def cards(self, query: Flat) -> list[Flat]:
        """See :meth:`FakeCompatible.cards`."""
        names = (*CHAT_MODELS, *RESPONSES_MODELS, *EMBEDDING_MODELS, *OTHER_MODELS)
        return [{"id": name, "object": "model", "created": 1715367049, "owned_by": "system"} for name in names]

    async def respond(self, request: Recorded) -> Reply:
        """See :meth:`FakeServer.respond`."""
        _path.set(request.path)
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if self.key and given != self.key:
            quoted = f"{given[:2]}{'*' * 8}{given[-2:]}"
            said = f"Incorrect API key provided: {quoted}." if given else "You didn't provide an API key."
            raise Rejected(said, status=401, code="invalid_api_key")
        if request.method == "POST" and request.headers.get("content-type") != "application/json":
            raise Rejected("you must provide a JSON body with content type application/json")
        if request.path == "/v1/responses":
            return await respond_responses(self, request)
        if request.method == "GET" and request.path == "/v1/models" and self.page_size:
            return self._page(request.query.get("after", ""))
        return await super().respond(request)

    def _page(self, after: str) -> Reply:
        cards = self.cards({})
        start = next((i + 1 for i, card in enumerate(cards) if card["id"] == after), 0)
        page = cards[start : start + self.page_size]
        more = start + self.page_size < len(cards)
        return Reply(body=dump({"object": "list", "data": page, "has_more": more, "last_id": page[-1]["id"]}))

    # Requests.

    def check(self, request: Any, messages: list[Any]) -> None:
        """See :meth:`FakeCompatible.check`."""
        if request.model in RESPONSES_MODELS:
            raise Rejected("This model is only supported in v1/responses.", status=404)
        if request.model not in CHAT_MODELS:
            raise Rejected("This is not a chat model.", status=404)
        _check_ranges(request)
        check_logprobs(request)
        _check_model(request)
        _check_tools(request)
        _check_history(messages)
        if request.stream_options is not UNSET and not request.stream:
            raise Rejected("The 'stream_options' parameter is only allowed when 'stream' is enabled.")
        match request.response_format:
            case ObjectFormat() if b"json" not in bytes(request.messages).lower():
                raise Rejected("'messages' must contain the word 'json' in some form.")
            case SchemaFormat(json_schema=wanted) if wanted.strict is True:
                _check_schema(wanted.schema)
        if isinstance(request.response_format, SchemaFormat):
            _check_name(request.response_format.json_schema.name, "response_format.json_schema.name")

    def embeds(self, model: str) -> None:
        """See :meth:`FakeCompatible.embeds`."""
        if model not in EMBEDDING_MODELS:
            raise Rejected(f"You are not allowed to generate embeddings from this model: {model}", status=403)

    # Answers.

    def finish_reason(self, answer: Answer) -> str:
        """A refusal in words ends with ``stop``."""
        if answer.refusal:
            return "stop"
        return {"refused": "content_filter", "context_full": "length"}.get(answer.finish_reason, answer.finish_reason)

    def message(self, answer: Answer) -> Flat:
        """See :meth:`FakeCompatible.message`. What the model thinks is not shown by this API."""
        silent = answer.refusal or (answer.tool_calls and not answer.text)
        message: Flat = {
            "role": "assistant",
            "content": None if silent else answer.text,
            "refusal": answer.refusal or None,
        }
        if answer.tool_calls:
            message["tool_calls"] = [self.call(call, index) for index, call in enumerate(answer.tool_calls)]
        return {**message, "annotations": []}

    def deltas(self, answer: Answer) -> list[Flat]:
        """See :meth:`FakeCompatible.deltas`."""
        words = "refusal" if answer.refusal else "content"
        pieces = split(answer.refusal or answer.text, answer.pieces)
        return [*({words: piece} for piece in pieces), *self.call_deltas(answer)]

    def call_deltas(self, answer: Answer) -> list[Flat]:
        """The first piece of a call has its name and empty arguments."""
        deltas: list[Flat] = []
        for index, call in enumerate(answer.tool_calls):
            function = {"name": call.function.name, "arguments": ""}
            deltas.append({"tool_calls": [{"index": index, "id": call.id, "type": "function", "function": function}]})
            deltas += (
                {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}
                for piece in split(call.function.arguments, answer.pieces)
            )
        return deltas

    def usage(self, usage: Usage) -> Flat:
        """See :meth:`FakeCompatible.usage`."""
        prompt = {"cached_tokens": usage.cache_read or 0, "audio_tokens": 0}
        completion = {
            "reasoning_tokens": usage.reasoning or 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        }
        return {
            **super().usage(usage),
            "prompt_tokens_details": prompt,
            "completion_tokens_details": completion,
        }

    def choice(self, **fields: Any) -> Flat:
        """See :meth:`FakeCompatible.choice`."""
        return {"index": 0, **{k: v for k, v in fields.items() if k != "finish_reason"}, "logprobs": None} | fields

    def head(self, request: Any, kind: str) -> Flat:
        """See :meth:`FakeCompatible.head`."""
        head = {**super().head(request, kind), "model": SNAPSHOTS.get(request.model, request.model)}
        return {**head, "service_tier": "default", "system_fingerprint": "fp_07871e2ad8"}

    def pieces(self, request: Any, answer: Answer) -> list[bytes]:
        """With ``include_usage`` each chunk has a usage: null, and in a last one without choices the numbers."""
        counted = request.stream_options is not UNSET and request.stream_options.include_usage
        head = {**self.head(request, "chat.completion.chunk"), **({"usage": None} if counted else {})}
        first = {"role": "assistant", "content": "", "refusal": None}
        if answer.tool_calls and not answer.text:
            first["content"] = None
        deltas: list[tuple[Flat, str | None]] = [(first, None)]
        deltas += [(delta, None) for delta in self.deltas(answer)]
        deltas.append(({}, self.finish_reason(answer)))
        # Padding against guessing the text from the length of encrypted packets.
        choices = [self.choice(delta=delta, finish_reason=reason) for delta, reason in deltas]
        add_logprobs(choices, request, answer)
        chunks = [{**head, "choices": [choice], "obfuscation": "Xk3"} for choice in choices]
        if counted:
            chunks.append({**head, "choices": [], "usage": self.usage(answer.usage), "obfuscation": ""})
        return [*map(event, chunks), DONE]

    def error_body(self, status: int, code: str, message: str) -> bytes:
        """See :meth:`FakeServer.error_body`."""
        return dump({"error": _error(status, code, message)})

    def error_event(self, code: str, message: str) -> bytes:
        """See :meth:`FakeServer.error_event`."""
        if _path.get() == "/v1/responses":
            return responses_error_event(code, message)
        return event({"error": _error(500, code, message)})


_path: ContextVar[str] = ContextVar("path", default="")
"""Of the request that the running task answers: the two APIs tell errors in different ways."""


def _error(status: int, code: str, message: str) -> Flat:
    kinds = {"insufficient_quota": "insufficient_quota", "rate_limit_exceeded": "requests"}
    kind = kinds.get(code, "server_error" if status >= 500 else "invalid_request_error")
    return {"message": message, "type": kind, "param": None, "code": code or None}


def _check_ranges(request: ChatRequest) -> None:
    for name, low, high in (
        ("temperature", 0, 2),
        ("top_p", 0, 1),
        ("frequency_penalty", -2, 2),
        ("presence_penalty", -2, 2),
        ("max_completion_tokens", 1, 2**31),
    ):
        value = getattr(request, name)
        if value is not UNSET and not low <= value <= high:
            raise Rejected(f"Invalid '{name}': {value} is not between {low} and {high}.")
    if request.max_tokens is not UNSET:
        raise Rejected("'max_tokens' is deprecated. Use 'max_completion_tokens' instead.")
    if request.stop is not UNSET and not 1 <= len(request.stop) <= 4:
        raise Rejected("Invalid 'stop': array too long. Expected an array with maximum length 4.")


def _check_model(request: ChatRequest) -> None:
    """What one model does not take."""
    thinks = request.model.startswith(("o3", "o4", "gpt-5"))
    if request.reasoning_effort is not UNSET and not thinks and request.model != "house-model":
        raise Rejected("Unrecognized request argument supplied: reasoning_effort")
    if not thinks:
        return
    refused = ["temperature", "top_p", "frequency_penalty", "presence_penalty", "logprobs", "top_logprobs"]
    if request.model.startswith("o"):
        refused.append("parallel_tool_calls")
        if request.reasoning_effort not in (UNSET, "low", "medium", "high"):
            raise Rejected(f"Unsupported value: 'reasoning_effort' does not support '{request.reasoning_effort}'.")
    if request.model == "o4-mini":
        refused.append("stop")
    for name in refused:
        if getattr(request, name) is not UNSET:
            text = f"Unsupported parameter: '{name}' is not supported with this model."
            raise Rejected(text, code="unsupported_parameter")


def _check_tools(request: ChatRequest) -> None:
    tools = [] if request.tools is UNSET else request.tools
    if request.tools is not UNSET and not tools:
        raise Rejected("Invalid 'tools': empty array.")
    for name in ("tool_choice", "parallel_tool_calls"):
        if not tools and getattr(request, name) is not UNSET:
            raise Rejected(f"Invalid value for '{name}': '{name}' is only allowed when 'tools' are specified.")
    names = [tool.function.name for tool in tools]
    for index, name in enumerate(names):
        _check_name(name, f"tools[{index}].function.name")
    if len(set(names)) != len(names):
        raise Rejected("Function names must be unique.")
    if isinstance(request.tool_choice, NamedChoice) and request.tool_choice.function.name not in names:
        raise Rejected(f"Tool choice '{request.tool_choice.function.name}' not found in 'tools' parameter.")


def _check_name(name: str, place: str) -> None:
    if not _NAME.fullmatch(name):
        raise Rejected(f"Invalid '{place}': does not match the pattern '^[a-zA-Z0-9_-]+$' or is too long.")


def _check_history(messages: list[Any]) -> None:
    """Each call has its result right after the message that made it."""
    waiting: set[str] = set()
    for message in messages:
        if isinstance(message, ToolMessage):
            waiting.discard(message.tool_call_id)
            continue
        if waiting:
            break
        if isinstance(message, AssistantMessage) and message.tool_calls:
            waiting = {call.id for call in message.tool_calls}
            for call in message.tool_calls:
                _check_name(call.function.name, "messages.tool_calls.function.name")
        elif isinstance(message, AssistantMessage) and message.content is None:
            raise Rejected("Invalid value for 'content': expected a string, got null.")
    if waiting:
        missing = ", ".join(sorted(waiting))
        raise Rejected(f"An assistant message with 'tool_calls' must be followed by tool messages: {missing}")


def _check_schema(schema: Flat) -> None:
    """What strict mode wants of an object."""
    if schema.get("type") == "object":
        properties = schema.get("properties", {})
        if schema.get("additionalProperties") is not False or set(schema.get("required", [])) != set(properties):
            raise Rejected("Invalid schema for response_format: 'additionalProperties' must be false, all required.")
        for inner in properties.values():
            _check_schema(inner)
    elif "type" not in schema and "anyOf" not in schema and "$ref" not in schema:
        raise Rejected(f"Invalid schema for response_format: no type in {msgspec.json.encode(schema).decode()}")
