"""What the fakes of servers with OpenAI's wire share. What differs between vendors is a type or a method to override.

Requests are decoded into structs that take no field the vendor does not document.
"""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from itertools import count
from typing import Any, ClassVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from modeld.testing.server import Answer, FakeServer, Recorded, Rejected, Reply, split, vectors_for
from modeld.testing.token_logprobs import shares, token_entries
from modeld.types import ToolCall, Usage

Flat = dict[str, Any]
"""An object of JSON."""

DONE = b"data: [DONE]\n\n"


class TextItem(Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    text: str


class ImageUrl(Struct, forbid_unknown_fields=True):
    url: str


class ImageItem(Struct, tag_field="type", tag="image_url", forbid_unknown_fields=True):
    image_url: ImageUrl


class SystemMessage(Struct, tag_field="role", tag="system", forbid_unknown_fields=True):
    content: str


class UserMessage(Struct, tag_field="role", tag="user", forbid_unknown_fields=True):
    content: str | list[TextItem | ImageItem]


class CalledFunction(Struct, forbid_unknown_fields=True):
    name: str
    arguments: str


class CallItem(Struct, tag_field="type", tag="function", forbid_unknown_fields=True):
    id: str
    function: CalledFunction


class AssistantMessage(Struct, tag_field="role", tag="assistant", forbid_unknown_fields=True):
    content: str | None = None
    tool_calls: list[CallItem] | UnsetType = UNSET


class ToolMessage(Struct, tag_field="role", tag="tool", forbid_unknown_fields=True):
    content: str
    tool_call_id: str


class OfferedFunction(Struct, forbid_unknown_fields=True):
    name: str
    description: str | UnsetType = UNSET
    parameters: Flat | UnsetType = UNSET


class ToolItem(Struct, tag_field="type", tag="function", forbid_unknown_fields=True):
    function: OfferedFunction


class NamedFunction(Struct, forbid_unknown_fields=True):
    name: str


class NamedChoice(Struct, tag_field="type", tag="function", forbid_unknown_fields=True):
    function: NamedFunction


class JsonSchema(Struct, forbid_unknown_fields=True):
    name: str
    schema: Flat
    strict: bool | UnsetType = UNSET


class SchemaFormat(Struct, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    json_schema: JsonSchema


class ObjectFormat(Struct, tag_field="type", tag="json_object", forbid_unknown_fields=True):
    pass


class CompatibleRequest(Struct, forbid_unknown_fields=True, kw_only=True):
    """Fields that all have. ``messages`` is decoded apart, as the vendor's roles differ."""

    model: str
    messages: msgspec.Raw
    temperature: float | UnsetType = UNSET
    top_p: float | UnsetType = UNSET
    max_tokens: int | UnsetType = UNSET
    stop: list[str] | UnsetType = UNSET
    frequency_penalty: float | UnsetType = UNSET
    presence_penalty: float | UnsetType = UNSET
    tools: list[ToolItem] | UnsetType = UNSET
    parallel_tool_calls: bool | UnsetType = UNSET
    response_format: SchemaFormat | ObjectFormat | UnsetType = UNSET
    stream: bool = False


class CompatibleEmbedding(Struct, forbid_unknown_fields=True, kw_only=True):
    """A request for vectors."""

    model: str
    input: list[str]
    encoding_format: str | UnsetType = UNSET
    dimensions: int | UnsetType = UNSET


class FakeCompatible(FakeServer):
    """A server with OpenAI's wire: ``/models``, ``/chat/completions`` and ``/embeddings`` below :attr:`prefix`.

    :param key: the only API key it takes; ``""`` takes all, and none.
    """

    prefix: ClassVar[str] = "/v1"
    request_type: ClassVar[type[CompatibleRequest]] = CompatibleRequest
    embedding_type: ClassVar[type[Struct]] = CompatibleEmbedding
    messages_type: ClassVar[Any] = list[SystemMessage | UserMessage | AssistantMessage | ToolMessage]

    def __init__(self, *, key: str = "test-key") -> None:
        super().__init__(key=key)
        self._numbers = count(1)

    # What a vendor has of its own.

    @abstractmethod
    def cards(self, query: Flat) -> list[Flat]:
        """The models it lists."""

    def check(self, request: Any, messages: list[Any]) -> None:
        """Refuse what the types cannot say. :raises Rejected: the vendor would not take it."""

    def embeds(self, model: str) -> None:
        """:raises Rejected: the model gives no vectors."""

    def dimensions(self, request: Any) -> int | None:
        """The length of the vectors that is asked for."""
        return request.dimensions or None

    def finish_reason(self, answer: Answer) -> str:
        """The vendor's word for how the answer ended."""
        if answer.refusal:
            return "content_filter"
        return {"refused": "content_filter", "context_full": "length"}.get(answer.finish_reason, answer.finish_reason)

    def message(self, answer: Answer) -> Flat:
        """The message of a whole answer."""
        message: Flat = {"role": "assistant", "content": answer.text or answer.refusal or None}
        if answer.tool_calls:
            message["tool_calls"] = [self.call(call, index) for index, call in enumerate(answer.tool_calls)]
        return message

    def call(self, call: ToolCall, index: int) -> Flat:
        """A whole call."""
        function = {"name": call.function.name, "arguments": call.function.arguments}
        return {"id": call.id, "type": "function", "function": function}

    def deltas(self, answer: Answer) -> list[Flat]:
        """The deltas of a stream, without the first and the last."""
        return [
            *self.thinking_deltas(answer),
            *({"content": piece} for piece in split(answer.text or answer.refusal, answer.pieces)),
            *self.call_deltas(answer),
        ]

    def thinking_deltas(self, answer: Answer) -> list[Flat]:
        """Those of the thinking."""
        return [{"reasoning": piece} for piece in split(answer.thinking, answer.pieces)]

    def call_deltas(self, answer: Answer) -> list[Flat]:
        """Those of the calls: the name first, the arguments in pieces."""
        deltas: list[Flat] = []
        for index, call in enumerate(answer.tool_calls):
            first = {"index": index, **self.call(call, index), "function": {"name": call.function.name}}
            deltas.append({"tool_calls": [first]})
            deltas += (
                {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}
                for piece in split(call.function.arguments, answer.pieces)
            )
        return deltas

    def usage(self, usage: Usage) -> Flat:
        """Tokens, as the vendor counts them."""
        return {
            "prompt_tokens": usage.input,
            "completion_tokens": usage.output,
            "total_tokens": (usage.input or 0) + (usage.output or 0),
        }

    def choice(self, **fields: Any) -> Flat:
        """A choice of a whole answer or of a chunk."""
        return {"index": 0, **fields}

    def whole(self, request: Any, answer: Answer) -> Flat:
        """A whole answer."""
        choice = self.choice(message=self.message(answer), finish_reason=self.finish_reason(answer))
        add_logprobs([choice], request, answer)
        return {**self.head(request, "chat.completion"), "choices": [choice], "usage": self.usage(answer.usage)}

    def pieces(self, request: Any, answer: Answer) -> list[bytes]:
        """The events of a stream; usage in a chunk of its own before the end."""
        head = self.head(request, "chat.completion.chunk")
        deltas: list[tuple[Flat, str | None]] = [({"role": "assistant", "content": ""}, None)]
        deltas += [(delta, None) for delta in self.deltas(answer)]
        deltas.append(({"content": ""}, self.finish_reason(answer)))
        choices = [self.choice(delta=delta, finish_reason=reason) for delta, reason in deltas]
        add_logprobs(choices, request, answer)
        chunks = [{**head, "choices": [choice]} for choice in choices]
        chunks.append({**head, "choices": [], "usage": self.usage(answer.usage)})
        return [*map(event, chunks), DONE]

    def head(self, request: Any, kind: str) -> Flat:
        """What every answer and every chunk begins with."""
        name = f"chatcmpl-{next(self._numbers):032x}"
        return {"id": name, "object": kind, "created": 1700000000, "model": request.model}

    # The server.

    async def respond(self, request: Recorded) -> Reply:
        """See :meth:`FakeServer.respond`."""
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            raise Rejected("Unauthorized", status=401)
        match request.method, request.path.removeprefix(self.prefix):
            case "GET", "/models":
                return Reply(body=dump({"object": "list", "data": self.cards(dict(request.query))}))
            case "POST", "/chat/completions" if request.path.startswith(self.prefix):
                return self._chat(request)
            case "POST", "/embeddings" if request.path.startswith(self.prefix):
                return self._embed(request)
        raise Rejected(f"no such route: {request.method} {request.path}", status=404)

    def _chat(self, recorded: Recorded) -> Reply:
        request = self.decoded(recorded.body, self.request_type)
        messages = self.decoded(request.messages, self.messages_type)
        known = [card["id"] for card in self.cards({"output_modalities": "all"})]
        if request.model not in known:
            raise Rejected(f"The model `{request.model}` does not exist.", status=404)
        check_calls(messages)
        self.check(request, messages)
        answer = self.next_answer()
        if request.stream:
            return Reply(content_type="text/event-stream; charset=utf-8", pieces=tuple(self.pieces(request, answer)))
        return Reply(body=dump(self.whole(request, answer)))

    def _embed(self, recorded: Recorded) -> Reply:
        request = self.decoded(recorded.body, self.embedding_type)
        self.embeds(request.model)
        vectors = vectors_for(self.next_answer(), request.input, self.dimensions(request))
        data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(vectors)]
        usage = {"prompt_tokens": len(request.input), "total_tokens": len(request.input)}
        return Reply(body=dump({"object": "list", "data": data, "model": request.model, "usage": usage}))

    def decoded(self, body: bytes | msgspec.Raw, kind: Any) -> Any:
        """``body`` as ``kind``. :raises Rejected: it is not; 400 with what is wrong."""
        try:
            return msgspec.json.decode(body, type=kind)
        except msgspec.MsgspecError as error:
            raise Rejected(str(error)) from error


def add_logprobs(choices: Sequence[Flat], request: Any, answer: Answer) -> None:
    """Put the log-probabilities that were asked for on the choices that hold the text."""
    if getattr(request, "logprobs", UNSET) is not True:
        return
    texts = [choice for choice in choices if (choice.get("delta") or choice.get("message") or {}).get("content")]
    for choice, tokens in zip(texts, shares(answer.logprobs, len(texts)), strict=True):
        choice["logprobs"] = {"content": token_entries(tokens, request.top_logprobs or 0), "refusal": None}


def check_logprobs(request: Any) -> None:
    """What servers want of both options. :raises Rejected: it does not hold."""
    if request.top_logprobs is UNSET:
        return
    if request.logprobs is not True:
        raise Rejected("Invalid 'top_logprobs': 'logprobs' must be true.")
    if not 0 <= request.top_logprobs <= 20:
        raise Rejected(f"Invalid 'top_logprobs': {request.top_logprobs} is not between 0 and 20.")


def check_calls(messages: Sequence[Any]) -> None:
    """Every result belongs to a call before it, as all vendors want. :raises Rejected: one does not."""
    open_calls: set[str] = set()
    for message in messages:
        if isinstance(message, AssistantMessage) and message.tool_calls:
            open_calls |= {call.id for call in message.tool_calls}
        elif isinstance(message, ToolMessage) and message.tool_call_id not in open_calls:
            raise Rejected(f"Unexpected tool call id {message.tool_call_id} in tool results")


def dump(value: Any) -> bytes:
    """JSON as the vendors write it, without blanks."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def event(value: Any) -> bytes:
    """One event of a stream."""
    return b"data: " + dump(value) + b"\n\n"
