"""OpenAI's Responses API: how a request is written. :mod:`modeld.providers.responses_events` reads the answer.

Wire facts: ``ResponseCreateParams`` of the ``openai`` SDK 3.54, and
https://developers.openai.com/api/reference/resources/responses/methods/create.
"""

from __future__ import annotations

from base64 import b64encode
from typing import Any, Final

import msgspec
from msgspec import Struct

from modeld.errors import NotSupportedError
from modeld.providers.chat_completions import EFFORTS, ModelFacts, cache_fields, check_taken, effort_for
from modeld.providers.responses_events import Decoder
from modeld.repository.names import ToolNames
from modeld.repository.options import asks
from modeld.repository.wire import Call
from modeld.types import TOOL_CHOICES, ChatConfig, ImagePart, Message, ResponseFormat, Tool

UNAVAILABLE: Final = ("seed", "stop", "frequency_penalty", "presence_penalty", "logprobs", "top_logprobs")
"""Options that Chat Completions has and this API has not, or, as ``logprobs``, not for models that think."""


class ResponsesCodec:
    """Requests and answers of the models of ``backend`` that speak this API."""

    path = "/responses"

    def __init__(self, backend: str = "openai") -> None:
        self._backend = backend

    def build(self, call: Call, names: ToolNames, facts: ModelFacts | None) -> dict[str, Any]:
        """The body of a request that does not stream.

        Nothing is stored at the vendor. What the model thought comes back encrypted, and goes there again with the
        next request: :class:`Decoder` says how. A model that is known not to think gets neither: it refuses both. One
        of which nothing is known is not asked for it, and gets back what it sent of its own.

        :raises NotSupportedError: this API or this model cannot do what is asked.
        """
        model, config = call.model, call.config
        for name in UNAVAILABLE:
            if asks(config, name):
                raise self._unsupported(name, f"{model.name} speaks the Responses API, which has no {name}", model.name)
        effort = effort_for(call, facts, EFFORTS, self._backend)
        check_taken(call, facts, effort, self._backend)
        thinks = model.capabilities.can_think or effort not in (None, "none")
        replays = thinks or "can_think" not in model.evidence
        body: dict[str, Any] = {
            "model": model.name,
            "input": [item for message in call.messages for item in self._items(message, names, replays, model.name)],
            "store": False,
            # "auto" would drop the oldest items, and the answer would not say which.
            "truncation": "disabled",
        }
        if thinks:
            body["include"] = ["reasoning.encrypted_content"]
        if instructions := "\n\n".join(m.content for m in call.messages if m.role == "system" and m.content.strip()):
            body["instructions"] = instructions
        if effort is not None:
            # Summaries are of thinking: without any there is nothing to sum up.
            body["reasoning"] = {"effort": effort} if effort == "none" else {"effort": effort, "summary": "auto"}
        return body | _sampling(config) | cache_fields(call, self._backend) | _tools(config, names)

    def streaming(self, body: dict[str, Any]) -> dict[str, Any]:
        """``body`` as a request that streams."""
        return {**body, "stream": True}

    def decoder(self, call: Call, names: ToolNames) -> Decoder:
        """What reads the answer of one request."""
        return Decoder(names, call.model.name, self._backend)

    def _items(self, message: Message, names: ToolNames, replays: bool, model: str) -> list[dict[str, Any]]:
        if message.images and message.role in ("system", "assistant"):
            text = f"{self._backend} takes images from the user and from tools, not in a message of role {message.role}"
            raise self._unsupported("images", f"{text} ({model})", model)
        match message.role:
            case "user" if message.content or message.images:
                return [{"type": "message", "role": "user", "content": _content(message)}]
            case "tool":
                # The output is required, also where a tool says nothing.
                return [{"type": "function_call_output", "call_id": message.tool_call_id, "output": _content(message)}]
            case "assistant":
                return _assistant_items(message, names, replays)
        return []

    def _unsupported(self, feature: str, text: str, model: str) -> NotSupportedError:
        return NotSupportedError(text, feature=feature, backend=self._backend, model=model)


def _sampling(config: ChatConfig) -> dict[str, Any]:
    values = {"temperature": config.temperature, "top_p": config.top_p, "max_output_tokens": config.max_tokens}
    body: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    if config.response_format is not None:
        body["text"] = {"format": _format(config.response_format)}
    return body


def _format(wanted: ResponseFormat) -> dict[str, Any]:
    if wanted.schema is None:
        return {"type": "json_object"}
    return {"type": "json_schema", "name": wanted.name, "schema": wanted.schema, "strict": wanted.strict}


def _tools(config: ChatConfig, names: ToolNames) -> dict[str, Any]:
    if not config.tools:
        # A choice among no tools is none: auto and none say nothing, the others were refused.
        return {}
    body: dict[str, Any] = {"tools": [_tool(tool, names) for tool in config.tools]}
    if config.tool_choice in TOOL_CHOICES:
        body["tool_choice"] = config.tool_choice
    elif config.tool_choice is not None:
        body["tool_choice"] = {"type": "function", "name": names.sent(config.tool_choice)}
    if config.parallel_tool_calls is not None:
        body["parallel_tool_calls"] = config.parallel_tool_calls
    return body


def _tool(tool: Tool, names: ToolNames) -> dict[str, Any]:
    function = tool.function
    body: dict[str, Any] = {
        "type": "function",
        "name": names.sent(function.name),
        "parameters": function.parameters or {"type": "object", "properties": {}},
        # Left out it means true here, and a schema outside the vendor's subset is then refused.
        "strict": bool(function.strict),
    }
    return body | ({"description": function.description} if function.description else {})


def _content(message: Message) -> str | list[dict[str, Any]]:
    if not message.images:
        return message.content
    text = [{"type": "input_text", "text": message.content}] if message.content else []
    return [*text, *(_image(image) for image in message.images)]


def _image(image: ImagePart) -> dict[str, Any]:
    data = b64encode(image.data).decode("ascii")
    return {"type": "input_image", "image_url": f"data:{image.mime_type};base64,{data}", "detail": "auto"}


class _Place(Struct, frozen=True):
    """One item of an answer. ``length``: characters of the message's content that are this item's."""

    type: str
    length: int = 0
    phase: str | None = None


class _Kept(Struct, frozen=True):
    """``provider_meta["openai"]`` of a message, as :class:`Decoder` left it."""

    reasoning: tuple[dict[str, Any], ...] = ()
    order: tuple[_Place, ...] = ()


def _assistant_items(message: Message, names: ToolNames, replays: bool) -> list[dict[str, Any]]:
    """The items of an answer as they came: the vendor's cache and its models know them in that order."""
    if not message.content and not message.tool_calls:
        # Reasoning alone would be refused: it has to be followed by what was reasoned about.
        return []
    kept = _kept(message)
    reasoning = iter(kept.reasoning if replays else ())
    calls = (
        {
            "type": "function_call",
            "call_id": call.id,
            "name": names.sent(call.function.name),
            "arguments": call.function.arguments.strip() or "{}",
        }
        for call in message.tool_calls
    )
    items: list[dict[str, Any]] = []
    at = 0
    for place in _order(kept, message):
        if place.type == "reasoning":
            items.extend(item for item in [next(reasoning, None)] if item is not None)
        elif place.type == "function_call":
            items.append(next(calls))
        elif place.length:
            text = message.content[at : at + place.length]
            at += place.length
            phase = {"phase": place.phase} if place.phase else {}
            items.append({"type": "message", "role": "assistant", "content": text, **phase})
    return items


def _kept(message: Message) -> _Kept:
    try:
        return msgspec.convert((message.provider_meta or {}).get("openai"), _Kept)
    except msgspec.ValidationError:
        return _Kept()


def _order(kept: _Kept, message: Message) -> tuple[_Place, ...]:
    """Where each item goes: as it came, or the usual way where the message is not the one that came."""
    usual = (
        *[_Place("reasoning")] * len(kept.reasoning),
        _Place("message", len(message.content)),
        *[_Place("function_call")] * len(message.tool_calls),
    )
    came = [place.type for place in kept.order]
    same = (
        sum(place.length for place in kept.order if place.type == "message") == len(message.content)
        and came.count("function_call") == len(message.tool_calls)
        and came.count("reasoning") == len(kept.reasoning)
    )
    return kept.order if came and same else usual
