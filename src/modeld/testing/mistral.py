"""A fake of Mistral's server.

Sources: the types of https://github.com/mistralai/client-python (``chatcompletionrequest.py``, ``deltamessage.py``,
``thinkchunk.py``, ``basemodelcard.py``, ``modelcapabilities.py``, ``embeddingrequest.py``), which take no field that
they do not name, and https://docs.mistral.ai/capabilities/reasoning/. The forms of the errors are those that public bug
reports quote.
"""

from __future__ import annotations

import hashlib
import re
from itertools import pairwise
from typing import Any, Final, Literal

from msgspec import UNSET, Struct, UnsetType

from modeld.testing.compatible import (
    DONE,
    AssistantMessage,
    CompatibleRequest,
    FakeCompatible,
    Flat,
    NamedChoice,
    SystemMessage,
    ToolMessage,
    UserMessage,
    dump,
    event,
)
from modeld.testing.server import Answer, Rejected, split
from modeld.types import ToolCall

CHAT_MODEL: Final = "mistral-medium-2508"
THINKING_MODEL: Final = "mistral-small-latest"
NATIVE_MODEL: Final = "magistral-medium-2509"
EMBED_MODEL: Final = "mistral-embed"
OCR_MODEL: Final = "mistral-ocr-2512"


class NamedToolMessage(ToolMessage, tag_field="role", tag="tool", forbid_unknown_fields=True):
    name: str | UnsetType = UNSET


class MistralRequest(CompatibleRequest, forbid_unknown_fields=True, kw_only=True):
    """What ``/v1/chat/completions`` takes, of what has a place in :class:`modeld.types.ChatConfig`."""

    random_seed: int | UnsetType = UNSET
    tool_choice: Literal["auto", "none", "any", "required"] | NamedChoice | UnsetType = UNSET
    reasoning_effort: Literal["none", "low", "medium", "high"] | UnsetType = UNSET
    prompt_mode: Literal["reasoning"] | UnsetType = UNSET


class MistralEmbedding(Struct, forbid_unknown_fields=True, kw_only=True):
    """What ``/v1/embeddings`` takes."""

    model: str
    input: list[str]
    encoding_format: Literal["float", "base64"] | UnsetType = UNSET
    output_dimension: int | UnsetType = UNSET
    output_dtype: Literal["float", "int8", "uint8", "binary", "ubinary"] | UnsetType = UNSET


class FakeMistral(FakeCompatible):
    """Mistral's server."""

    request_type = MistralRequest
    embedding_type = MistralEmbedding
    messages_type = list[SystemMessage | UserMessage | AssistantMessage | NamedToolMessage]

    def cards(self, query: Flat) -> list[Flat]:
        """See :meth:`FakeCompatible.cards`."""
        return [
            _card(CHAT_MODEL, 131072, completion_chat=True, function_calling=True, vision=True),
            _card(THINKING_MODEL, 262144, completion_chat=True, function_calling=True, vision=True, reasoning=True),
            _card(NATIVE_MODEL, 131072, completion_chat=True, function_calling=True, reasoning=True),
            _card(EMBED_MODEL, 8192),
            _card(OCR_MODEL, 16384, ocr=True),
        ]

    def check(self, request: Any, messages: list[Any]) -> None:
        """See :meth:`FakeCompatible.check`."""
        if request.model in (EMBED_MODEL, OCR_MODEL):
            raise Rejected(f"Invalid model: {request.model}", code="1500")
        if request.reasoning_effort is not UNSET and request.model != THINKING_MODEL:
            raise Rejected(f"reasoning_effort is not enabled for this model: {request.model}", code="3051")
        if request.prompt_mode is not UNSET and request.model != NATIVE_MODEL:
            raise Rejected(f"prompt_mode is not supported for this model: {request.model}", code="3051")
        if request.temperature is not UNSET and not 0 <= request.temperature <= 1.5:
            raise Rejected("Input should be less than or equal to 1.5", status=422)
        for tool in request.tools or ():
            if tool.function.parameters is UNSET:
                raise Rejected("body.tools.0.function.parameters: Field required", status=422)
            _check_name(tool.function.name)
        _check_history(messages)

    def embeds(self, model: str) -> None:
        """See :meth:`FakeCompatible.embeds`."""
        if model != EMBED_MODEL:
            raise Rejected(f"Invalid model: {model}", code="1500")

    def dimensions(self, request: Any) -> int | None:
        """See :meth:`FakeCompatible.dimensions`."""
        return request.output_dimension or None

    def finish_reason(self, answer: Answer) -> str:
        """See :meth:`FakeCompatible.finish_reason`. The vendor has no word for a refusal."""
        return {"context_full": "model_length"}.get(answer.finish_reason, answer.finish_reason)

    def message(self, answer: Answer) -> Flat:
        """See :meth:`FakeCompatible.message`. An answer with thinking is a list of chunks."""
        text: Any = answer.text or answer.refusal
        if answer.thinking:
            text = [_thinking(answer.thinking), *([{"type": "text", "text": text}] if text else [])]
        calls = [self.call(call, index) for index, call in enumerate(answer.tool_calls)] or None
        return {"role": "assistant", "content": text, "tool_calls": calls}

    def call(self, call: ToolCall, index: int) -> Flat:
        """See :meth:`FakeCompatible.call`. The vendor's ids have nine characters; ``type`` is left out."""
        function = {"name": call.function.name, "arguments": call.function.arguments}
        return {"id": short_id(call.id), "function": function, "index": index}

    def thinking_deltas(self, answer: Answer) -> list[Flat]:
        """See :meth:`FakeCompatible.thinking_deltas`."""
        return [{"content": [_thinking(piece)]} for piece in split(answer.thinking, answer.pieces)]

    def call_deltas(self, answer: Answer) -> list[Flat]:
        """See :meth:`FakeCompatible.call_deltas`. All calls come whole, in one delta."""
        calls = [self.call(call, index) for index, call in enumerate(answer.tool_calls)]
        return [{"tool_calls": calls}] if calls else []

    def pieces(self, request: Any, answer: Answer) -> list[bytes]:
        """See :meth:`FakeCompatible.pieces`. Usage is in the chunk that says how the answer ended."""
        head = self.head(request, "chat.completion.chunk")
        deltas: list[Flat] = [{"role": "assistant", "content": ""}, *self.deltas(answer), {"content": ""}]
        chunks = [{**head, "choices": [self.choice(delta=delta, finish_reason=None)]} for delta in deltas]
        chunks[-1]["choices"][0]["finish_reason"] = self.finish_reason(answer)
        chunks[-1]["usage"] = self.usage(answer.usage)
        return [*map(event, chunks), DONE]

    def head(self, request: Any, kind: str) -> Flat:
        """See :meth:`FakeCompatible.head`."""
        return {**super().head(request, kind), "id": f"{next(self._numbers):032x}"}

    def error_body(self, status: int, code: str, message: str) -> bytes:
        """See :meth:`FakeServer.error_body`. The gateway, the checks of types and the model server each have a form."""
        if status == 401:
            return dump({"detail": message})
        if status == 422:
            return dump({"detail": [{"type": "value_error", "msg": message, "loc": ["body"], "input": None}]})
        kinds = {"1500": "invalid_model", "3051": "invalid_request_invalid_args", "3280": "invalid_function_call"}
        kind = kinds.get(code, "invalid_request_error" if status < 500 else "internal_server_error")
        error = {"message": message, "type": kind, "param": None, "code": code or None}
        return dump({"object": "error", **error, "raw_status_code": status})

    def error_event(self, code: str, message: str) -> bytes:
        """See :meth:`FakeServer.error_event`."""
        kind = "internal_server_error"
        return event({"object": "error", "message": message, "type": kind, "param": None, "code": code or None})


def short_id(call_id: str) -> str:
    """An id as the vendor makes them, the same for the same call."""
    return hashlib.sha256(f"mistral {call_id}".encode()).hexdigest()[:9]


def _thinking(text: str) -> Flat:
    return {"type": "thinking", "thinking": [{"type": "text", "text": text}]}


def _card(name: str, length: int, **capabilities: bool) -> Flat:
    none = dict.fromkeys(
        (
            "completion_chat",
            "function_calling",
            "reasoning",
            "completion_fim",
            "fine_tuning",
            "vision",
            "ocr",
            "classification",
            "moderation",
            "audio",
        ),
        False,
    )
    return {
        "id": name,
        "object": "model",
        "created": 1700000000,
        "owned_by": "mistralai",
        "capabilities": {**none, **capabilities},
        "name": name,
        "description": "",
        "max_context_length": length,
        "aliases": [],
        "deprecation": None,
        "deprecation_replacement_model": None,
        "default_model_temperature": 0.3,
        "type": "base",
    }


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name):
        text = f"Function name was {name} but must be a-z, A-Z, 0-9, or contain underscores and dashes, with a maximum"
        raise Rejected(f"{text} length of 64.", code="3280")


def _check_history(messages: list[Any]) -> None:
    for message in messages:
        calls = (message.tool_calls or ()) if isinstance(message, AssistantMessage) else ()
        ids = [call.id for call in calls] or ([message.tool_call_id] if isinstance(message, ToolMessage) else [])
        for call_id in ids:
            if not re.fullmatch(r"[A-Za-z0-9]{9}", call_id):
                text = f"Tool call id was {call_id} but must be a-z, A-Z, 0-9, with a length of 9."
                raise Rejected(text, code="3280")
        for call in calls:
            _check_name(call.function.name)
    for before, after in pairwise(messages):
        if isinstance(before, ToolMessage) and isinstance(after, UserMessage):
            raise Rejected("Unexpected role 'user' after role 'tool'", code="3230")
    if isinstance(messages[-1], AssistantMessage):
        raise Rejected("Expected last role User or Tool (or Assistant with prefix True) for serving", code="3230")
