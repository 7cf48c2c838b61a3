"""Chat Completions: the wire of OpenAI and of all who copy it. What differs between them is data, in :class:`Dialect`.

Source: https://platform.openai.com/docs/api-reference/chat, as the types of the SDK have it (``openai`` 3.54).
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections.abc import Mapping
from typing import Any, Final

from msgspec import Struct, field

from modeld.errors import (
    AuthenticationError,
    BackendUnavailableError,
    ContextOverflowError,
    InvalidRequestError,
    ModelNotFoundError,
    NotSupportedError,
    PermissionDeniedError,
    QuotaError,
    RateLimitError,
    RefusedError,
)
from modeld.providers.chat_decoder import ChatDecoder
from modeld.providers.facts import Facts
from modeld.providers.failures import Codes
from modeld.repository.names import ToolNames
from modeld.repository.options import Rule, Rules, asks, make_rules, mapped, native
from modeld.repository.wire import Call
from modeld.thinking import parse_think
from modeld.types import FinishReason, Message, ResponseFormat, TokenKind, Tool

FIELDS: Final[Mapping[str, str]] = {
    "temperature": "temperature",
    "max_tokens": "max_completion_tokens",
    "top_p": "top_p",
    "seed": "seed",
    "stop": "stop",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "logprobs": "logprobs",
    "top_logprobs": "top_logprobs",
}
"""Options that are one value, and the field of the request for each."""

CACHE_FIELDS: Final[Mapping[str, str]] = {
    "prompt_cache": "prompt_cache_retention",
    "prompt_cache_key": "prompt_cache_key",
}
"""The same for OpenAI's cache, in both of its APIs."""

EFFORTS: Final[Mapping[str, str]] = {
    "off": "none",
    "minimal": "minimal",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "xhigh",
}
"""Our levels of thinking, and the vendor's words for ``reasoning_effort``."""

FINISH_REASONS: Final[Mapping[str, FinishReason]] = {
    "stop": "stop",
    "length": "length",
    "tool_calls": "tool_calls",
    "content_filter": "refused",
}

CODES: Final[Codes] = {
    "insufficient_quota": QuotaError,
    "billing_hard_limit_reached": QuotaError,
    "billing_not_active": QuotaError,
    "context_length_exceeded": ContextOverflowError,
    "invalid_api_key": AuthenticationError,
    "account_deactivated": AuthenticationError,
    "rate_limit_exceeded": RateLimitError,
    "model_not_found": ModelNotFoundError,
    "unsupported_country_region_territory": PermissionDeniedError,
    "content_policy_violation": RefusedError,
    "content_filter": RefusedError,
    "invalid_prompt": RefusedError,
    "server_error": BackendUnavailableError,
    "engine_overloaded": BackendUnavailableError,
}
"""Codes of OpenAI: https://platform.openai.com/docs/guides/error-codes. ``invalid_prompt`` is a prompt that was
flagged, not one that is malformed."""


class Dialect(Struct, frozen=True, kw_only=True):
    """Where a server's Chat Completions are its own.

    :param backend: canonical type; in errors, and the key of what it wants to see again (``provider_meta``).
    :param fields: option to request field, for options that are one value; the others have no field.
    :param name_limit: characters of a tool's name; 0: any name.
    :param id_length: a call's id must be exactly that many letters and digits; 0: any id.
    :param result_name: a tool's result carries the tool's name.
    :param required_choice: the word for ``tool_choice="required"``.
    :param max_stop: stop strings at most; 0: no limit.
    :param efforts: our level to the vendor's word, for models whose facts say nothing.
    :param think: vendor's word to what it adds to the request; a word that is not there is ``reasoning_effort``.
    :param usage_option: a stream tells its usage only when ``stream_options`` asks for it.
    :param details_field: list in a message that the vendor wants to see again, such as ``reasoning_details``.
    :param stop_field: the choice says in ``stop_reason`` which stop string ended it.
    :param finish_reasons: the vendor's words for how an answer ended.
    :param logprobs_of: what the tokens of an answer's ``logprobs`` are part of; ``None``: of anything.
    :param failed: its words for an answer that broke off, which is an error; ``codes`` may say which.
    :param codes: the vendor's codes of failures.
    :param keeps_prompts: it has OpenAI's options of its cache.
    :param extra: goes into every chat request.
    """

    backend: str
    fields: Mapping[str, str] = field(default_factory=lambda: FIELDS)
    name_limit: int = 64
    id_length: int = 0
    result_name: bool = False
    required_choice: str = "required"
    max_stop: int = 4
    efforts: Mapping[str, str] = field(default_factory=lambda: EFFORTS)
    think: Mapping[str, Mapping[str, Any]] = {}
    usage_option: bool = True
    details_field: str = ""
    stop_field: bool = False
    finish_reasons: Mapping[str, FinishReason] = field(default_factory=lambda: FINISH_REASONS)
    logprobs_of: TokenKind | None = None
    failed: tuple[str, ...] = ("error",)
    codes: Codes = field(default_factory=lambda: CODES)
    keeps_prompts: bool = False
    extra: Mapping[str, Any] = {}


class ModelFacts(Facts, frozen=True, kw_only=True):
    """What a vendor's pages say of a family of models, beyond what it can do.

    :param efforts: our level to the vendor's word, of the levels the model has; empty: it does not think;
        ``None``: unknown.
    :param default_effort: the vendor's word for what it does when nothing is asked for.
    :param refuses: options that the vendor rejects for it.
    :param unless_effort: at this effort it takes them all the same.
    """

    efforts: Mapping[str, str] | None = None
    default_effort: str = ""
    refuses: tuple[str, ...] = ()
    unless_effort: str = ""


def chat_rules(dialect: Dialect, **more: Rule) -> Rules:
    """The rules of a wire that speaks ``dialect``: its fields, what all dialects have, and ``more``.

    :raises InvalidRequestError: an option is left without a rule.
    """
    alone = "without tools it says nothing and is not sent: vendors reject it alone"
    rules = {
        **{option: native(name) for option, name in dialect.fields.items()},
        "tools": native("tools"),
        "tool_choice": mapped("tool_choice", f"a tool's name becomes an object; {alone}"),
        "parallel_tool_calls": mapped("parallel_tool_calls", alone),
        "response_format": mapped("response_format", "json_schema; json_object without a schema"),
        "think": mapped("reasoning_effort", "auto sends nothing; off is none; a level a model lacks is an error"),
        "images": mapped("messages", "image_url with a data URI, in messages of the user"),
    }
    return make_rules(**{**rules, **more})


def effort_for(call: Call, facts: ModelFacts | None, efforts: Mapping[str, str], backend: str) -> str | None:
    """The vendor's word for the level asked for; ``None``: nothing is to be sent.

    :raises NotSupportedError: the model does not have the level; the error lists those it has.
    """
    level = parse_think(call.config.think)
    model = call.model
    listed = "can_think" in model.evidence and not model.capabilities.can_think
    thoughtless = listed or (facts is not None and facts.can_think is False)
    if level == "auto" or (level == "off" and thoughtless):
        return None
    if facts is not None and facts.efforts is not None:
        efforts = facts.efforts
    if level in efforts:
        return efforts[level]
    raise NotSupportedError(
        f"{model.name} of {backend} has no thinking level {level!r}; it has {', '.join(['auto', *efforts])}",
        feature="think",
        backend=backend,
        model=model.name,
    )


def check_taken(call: Call, facts: ModelFacts | None, effort: str | None, backend: str) -> None:
    """Refuse options that the vendor rejects for this model.

    :raises NotSupportedError: names option and model.
    """
    if facts is None or not facts.refuses:
        return
    if facts.unless_effort and (effort or facts.default_effort) == facts.unless_effort:
        return
    for name in facts.refuses:
        if asks(call.config, name):
            but = f" unless think is such that its effort is {facts.unless_effort!r}" if facts.unless_effort else ""
            raise NotSupportedError(
                f"{call.model.name} of {backend} does not take {name}{but} ({facts.source})",
                feature=name,
                backend=backend,
                model=call.model.name,
            )


def cache_fields(call: Call, backend: str) -> dict[str, Any]:
    """What is sent of :data:`CACHE_FIELDS`.

    :raises NotSupportedError: the time asked for is another vendor's.
    """
    wanted = call.config.prompt_cache
    if wanted not in (None, "in_memory", "24h"):
        raise NotSupportedError(
            f"{backend} keeps the prompts of {call.model.name} for 'in_memory' or '24h', not for {wanted!r}",
            feature="prompt_cache",
            backend=backend,
            model=call.model.name,
        )
    return {name: getattr(call.config, option) for option, name in CACHE_FIELDS.items() if asks(call.config, option)}


class ChatCodec:
    """Requests and answers of one dialect."""

    path = "/chat/completions"

    def __init__(self, dialect: Dialect) -> None:
        self.dialect = dialect

    def build(self, call: Call, names: ToolNames, facts: ModelFacts | None) -> dict[str, Any]:
        """The body of a request that does not stream.

        :raises NotSupportedError: this model cannot do what is asked. :raises InvalidRequestError: too many stops.
        """
        config, dialect = call.config, self.dialect
        effort = effort_for(call, facts, dialect.efforts, dialect.backend)
        check_taken(call, facts, effort, dialect.backend)
        if dialect.max_stop and len(config.stop) > dialect.max_stop:
            text = f"{dialect.backend} takes {dialect.max_stop} stop strings at most, not {len(config.stop)}"
            raise InvalidRequestError(text, parameter="stop")
        body: dict[str, Any] = {
            "model": call.model.name,
            "messages": [self._message(message, names) for message in call.messages],
        }
        for option, name in dialect.fields.items():
            if asks(config, option):
                body[name] = getattr(config, option)
        if dialect.keeps_prompts:
            body |= cache_fields(call, dialect.backend)
        if config.tools:
            body["tools"] = [_tool(tool, names) for tool in config.tools]
            if config.tool_choice is not None:
                body["tool_choice"] = self._choice(config.tool_choice, names)
            if config.parallel_tool_calls is not None:
                body["parallel_tool_calls"] = config.parallel_tool_calls
        if config.response_format is not None:
            body["response_format"] = _response_format(config.response_format)
        if effort is not None:
            body.update(dialect.think.get(effort, {"reasoning_effort": effort}))
        return {**body, **dialect.extra}

    def streaming(self, body: dict[str, Any]) -> dict[str, Any]:
        """``body`` as a request that streams."""
        usage = {"stream_options": {"include_usage": True}} if self.dialect.usage_option else {}
        return {**body, "stream": True, **usage}

    def decoder(self, call: Call, names: ToolNames) -> ChatDecoder:
        """What reads the answer of one request."""
        return ChatDecoder(self.dialect, call.model.name, names)

    def _choice(self, choice: str, names: ToolNames) -> Any:
        if choice == "required":
            return self.dialect.required_choice
        if choice in ("auto", "none"):
            return choice
        return {"type": "function", "function": {"name": names.sent(choice)}}

    def _message(self, message: Message, names: ToolNames) -> dict[str, Any]:
        if message.images and message.role != "user":
            text = f"{self.dialect.backend} takes images in messages of the user, not of role {message.role!r}"
            raise NotSupportedError(text, feature="images", backend=self.dialect.backend)
        wire: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.images:
            wire["content"] = _content(message)
        if message.role == "tool":
            wire["tool_call_id"] = self._id(message.tool_call_id)
            if self.dialect.result_name and message.name:
                wire["name"] = names.sent(message.name)
        if message.tool_calls:
            wire["content"] = message.content or None
            wire["tool_calls"] = [
                {
                    "id": self._id(call.id),
                    "type": "function",
                    "function": {
                        "name": names.sent(call.function.name),
                        "arguments": call.function.arguments.strip() or "{}",
                    },
                }
                for call in message.tool_calls
            ]
        details = self.dialect.details_field
        meta = (message.provider_meta or {}).get(self.dialect.backend)
        if details and isinstance(meta, dict) and meta.get(details):
            wire[details] = meta[details]
        return wire

    def _id(self, call_id: str) -> str:
        """``call_id`` as the vendor takes it: the same one always becomes the same."""
        length = self.dialect.id_length
        if not length or re.fullmatch(rf"[A-Za-z0-9]{{{length}}}", call_id):
            return call_id
        return hashlib.sha256(call_id.encode()).hexdigest()[:length]


def _content(message: Message) -> list[dict[str, Any]]:
    text = [{"type": "text", "text": message.content}] if message.content else []
    return [
        *text,
        *(
            {
                "type": "image_url",
                "image_url": {"url": f"data:{image.mime_type};base64,{b64encode(image.data).decode('ascii')}"},
            }
            for image in message.images
        ),
    ]


def _tool(tool: Tool, names: ToolNames) -> dict[str, Any]:
    function: dict[str, Any] = {"name": names.sent(tool.function.name)}
    if tool.function.description:
        function["description"] = tool.function.description
    if tool.function.parameters:
        function["parameters"] = tool.function.parameters
    if tool.function.strict:
        function["strict"] = True
    return {"type": "function", "function": function}


def _response_format(wanted: ResponseFormat) -> dict[str, Any]:
    if wanted.schema is None:
        return {"type": "json_object"}
    schema = {"name": wanted.name, "schema": wanted.schema, "strict": wanted.strict}
    return {"type": "json_schema", "json_schema": schema}
