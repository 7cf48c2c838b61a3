"""A fake of OpenRouter's server.

Sources: the types of https://github.com/OpenRouterTeam/typescript-sdk (``chatrequest.ts``, ``chatstreamdelta.ts``,
``reasoningdetailtext.ts``, ``model.ts``), and https://openrouter.ai/docs/: api/reference/streaming,
api/reference/errors-and-debugging, guides/best-practices/reasoning-tokens, guides/overview/models.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from msgspec import UNSET, Struct, UnsetType

from modeld.testing.compatible import (
    AssistantMessage,
    CompatibleRequest,
    FakeCompatible,
    Flat,
    NamedChoice,
    SchemaFormat,
    SystemMessage,
    ToolMessage,
    UserMessage,
    check_logprobs,
    dump,
    event,
)
from modeld.testing.server import Answer, Rejected, split
from modeld.types import Usage

CHAT_MODEL: Final = "qwen/qwen3-coder"
THINKING_MODEL: Final = "anthropic/claude-sonnet-4.6"
SWITCH_MODEL: Final = "deepseek/deepseek-v3.2"
BARE_MODEL: Final = "gryphe/mythomax-l2-13b"
IMAGE_MODEL: Final = "google/gemini-image-only"
EMBED_MODEL: Final = "openai/text-embedding-3-small"

PROCESSING: Final = b": OPENROUTER PROCESSING\n\n"

ALL_PARAMETERS: Final = (
    "frequency_penalty",
    "include_reasoning",
    "logprobs",
    "max_tokens",
    "min_p",
    "parallel_tool_calls",
    "presence_penalty",
    "reasoning",
    "repetition_penalty",
    "response_format",
    "seed",
    "stop",
    "structured_outputs",
    "temperature",
    "tool_choice",
    "tools",
    "top_k",
    "top_logprobs",
    "top_p",
)


class Effort(Struct, forbid_unknown_fields=True):
    effort: Literal["max", "xhigh", "high", "medium", "low", "minimal", "none"] | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET


class Routing(Struct, forbid_unknown_fields=True):
    require_parameters: bool = False


class ReplayedMessage(AssistantMessage, tag_field="role", tag="assistant", forbid_unknown_fields=True):
    reasoning_details: list[Flat] | UnsetType = UNSET


class OpenRouterRequest(CompatibleRequest, forbid_unknown_fields=True, kw_only=True):
    """What ``/api/v1/chat/completions`` takes, of what has a place in :class:`modeld.types.ChatConfig`."""

    seed: int | UnsetType = UNSET
    top_k: int | UnsetType = UNSET
    min_p: float | UnsetType = UNSET
    repetition_penalty: float | UnsetType = UNSET
    logprobs: bool | UnsetType = UNSET
    top_logprobs: int | UnsetType = UNSET
    tool_choice: Literal["auto", "none", "required"] | NamedChoice | UnsetType = UNSET
    reasoning: Effort | UnsetType = UNSET
    provider: Routing | UnsetType = UNSET


class FakeOpenRouter(FakeCompatible):
    """OpenRouter's server."""

    prefix = "/api/v1"
    request_type = OpenRouterRequest
    messages_type = list[SystemMessage | UserMessage | ReplayedMessage | ToolMessage]

    def __init__(self, *, key: str = "test-key") -> None:
        super().__init__(key=key)
        self._signed: dict[str, list[Flat]] = {}
        """Call to the thinking that came before it: the model's host wants it back."""

    def cards(self, query: Flat) -> list[Flat]:
        """See :meth:`FakeCompatible.cards`. Only what writes text, unless the query says which."""
        plain = tuple(name for name in ALL_PARAMETERS if "reasoning" not in name)
        levels = {"supported_efforts": ["high", "medium", "low", "minimal", "none"], "default_effort": "medium"}
        cards = [
            _card(CHAT_MODEL, plain, vision=True),
            _card(THINKING_MODEL, ALL_PARAMETERS, vision=True, reasoning={**levels, "mandatory": False}),
            _card(SWITCH_MODEL, ALL_PARAMETERS, reasoning={"default_enabled": False}),
            _card(BARE_MODEL, ("max_tokens", "temperature", "top_p"), context=4096, ceiling=None),
            _card(IMAGE_MODEL, ("temperature",), output="image"),
            _card(EMBED_MODEL, (), output="embeddings", ceiling=None),
        ]
        wanted = str(query.get("output_modalities", "text")).split(",")
        return [c for c in cards if "all" in wanted or set(c["architecture"]["output_modalities"]) & set(wanted)]

    def check(self, request: Any, messages: list[Any]) -> None:
        """See :meth:`FakeCompatible.check`. A parameter that no host of the model takes is a 404, if asked for."""
        (card,) = [card for card in self.cards({"output_modalities": "all"}) if card["id"] == request.model]
        given = {name for name in (*ALL_PARAMETERS, "tools") if getattr(request, name, UNSET) is not UNSET}
        if isinstance(request.response_format, SchemaFormat):
            given.add("structured_outputs")
        strict = request.provider is not UNSET and request.provider.require_parameters
        if strict and not given <= set(card["supported_parameters"]):
            text = "No endpoints found that can handle the requested parameters. To learn more about provider routing,"
            raise Rejected(f"{text} visit: https://openrouter.ai/docs/guides/routing/provider-selection", status=404)
        check_logprobs(request)
        if request.stop is not UNSET and len(request.stop) > 4:
            raise Rejected("stop: Too big: expected array to have <=4 items")
        for message in messages:
            if isinstance(message, ReplayedMessage) and message.tool_calls:
                signed = self._signed.get(message.tool_calls[0].id)
                if signed and message.reasoning_details != signed:
                    raise Rejected("Expected `thinking`, but found `tool_use`: reasoning_details must be passed back")

    def embeds(self, model: str) -> None:
        """See :meth:`FakeCompatible.embeds`."""
        if model != EMBED_MODEL:
            raise Rejected(f"Model {model} does not exist", status=404)

    def message(self, answer: Answer) -> Flat:
        """See :meth:`FakeCompatible.message`."""
        message = {**super().message(answer), "refusal": answer.refusal or None, "reasoning": answer.thinking or None}
        message["content"] = answer.text or None
        if details := self._remember(answer):
            message["reasoning_details"] = details
        return message

    def _remember(self, answer: Answer) -> list[Flat]:
        details = [{**_detail(answer.thinking), "signature": answer.signature}] if answer.thinking else []
        for call in answer.tool_calls:
            self._signed[call.id] = details
        return details

    def deltas(self, answer: Answer) -> list[Flat]:
        """See :meth:`FakeCompatible.deltas`."""
        self._remember(answer)
        words = "refusal" if answer.refusal else "content"
        text = [{words: piece} for piece in split(answer.refusal or answer.text, answer.pieces)]
        return [*self.thinking_deltas(answer), *text, *self.call_deltas(answer)]

    def thinking_deltas(self, answer: Answer) -> list[Flat]:
        """See :meth:`FakeCompatible.thinking_deltas`. The signature comes last, alone."""
        if not answer.thinking:
            return []
        deltas: list[Flat] = [
            {"role": "assistant", "content": "", "reasoning": piece, "reasoning_details": [_detail(piece)]}
            for piece in split(answer.thinking, answer.pieces)
        ]
        sign = {key: value for key, value in _detail("").items() if key != "text"} | {"signature": answer.signature}
        return [*deltas, {"role": "assistant", "content": "", "reasoning": None, "reasoning_details": [sign]}]

    def usage(self, usage: Usage) -> Flat:
        """See :meth:`FakeCompatible.usage`."""
        return {
            **super().usage(usage),
            "cost": 0.00014,
            "is_byok": False,
            "prompt_tokens_details": {
                "cached_tokens": usage.cache_read or 0,
                "cache_write_tokens": usage.cache_write or 0,
                "audio_tokens": 0,
            },
            "completion_tokens_details": {"reasoning_tokens": usage.reasoning or 0},
        }

    def choice(self, **fields: Any) -> Flat:
        """See :meth:`FakeCompatible.choice`."""
        return {"index": 0, **fields, "native_finish_reason": fields.get("finish_reason"), "logprobs": None}

    def head(self, request: Any, kind: str) -> Flat:
        """See :meth:`FakeCompatible.head`."""
        name = f"gen-1700000000-{next(self._numbers):020d}"
        return {**super().head(request, kind), "id": name, "provider": "Novita"}

    def pieces(self, request: Any, answer: Answer) -> list[bytes]:
        """See :meth:`FakeCompatible.pieces`. Comments keep the connection alive."""
        first, *others = super().pieces(request, answer)
        return [PROCESSING + PROCESSING + first, *others]

    def error_body(self, status: int, code: str, message: str) -> bytes:
        """See :meth:`FakeServer.error_body`."""
        return dump({"error": _error(status, code, message), "user_id": "user_2"})

    def error_event(self, code: str, message: str) -> bytes:
        """See :meth:`FakeServer.error_event`."""
        choice = self.choice(delta={"role": "assistant", "content": ""}, finish_reason="error")
        head = {"id": "gen-1", "object": "chat.completion.chunk", "created": 1700000000, "model": "m", "provider": "N"}
        return event({**head, "error": _error(502, code or "provider_unavailable", message), "choices": [choice]})


def _error(status: int, code: str, message: str) -> Flat:
    error: Flat = {"message": message, "code": status}
    return {**error, "metadata": {"error_type": code}} if code else error


def _detail(text: str) -> Flat:
    return {"type": "reasoning.text", "text": text, "format": "anthropic-claude-v1", "index": 0}


def _card(
    name: str,
    parameters: tuple[str, ...],
    *,
    context: int = 262144,
    ceiling: int | None = 65536,
    vision: bool = False,
    output: str = "text",
    reasoning: Flat | None = None,
) -> Flat:
    inputs = ["text", "image"] if vision else ["text"]
    return {
        "id": name,
        "canonical_slug": f"{name}-20260101",
        "name": name.title(),
        "created": 1700000000,
        "description": "",
        "context_length": 2 * context,
        "architecture": {
            "modality": f"{'+'.join(inputs)}->{output}",
            "input_modalities": inputs,
            "output_modalities": [output],
            "tokenizer": "Other",
            "instruct_type": None,
        },
        "pricing": {"prompt": "0.000001", "completion": "0.000002"},
        "top_provider": {"context_length": context, "max_completion_tokens": ceiling, "is_moderated": False},
        "per_request_limits": None,
        "supported_parameters": list(parameters),
        "default_parameters": None,
        "expiration_date": None,
        **({} if reasoning is None else {"reasoning": reasoning}),
    }
