"""What a conversation becomes on the Messages wire.

Sources: https://platform.claude.com/docs/en/api/messages and the request types of the vendor's SDK 2.12.

``provider_meta["anthropic"]`` of a message says how its content was laid out: ``content`` names the blocks in their
order, ``{"type": "text", "length": 5}``, ``{"type": "image"}``, ``{"type": "tool_use"}``, or is a signed block itself.
Where it does not fit the message any more the usual order holds. A block's, a tool's (``FunctionTool.provider_meta``)
or a whole result's ``cache_control`` is sent with it: https://platform.claude.com/docs/en/build-with-claude/prompt-caching
"""

from __future__ import annotations

import base64
import json
import re
from hashlib import blake2b
from typing import Any, Final

from modeld.errors import InvalidRequestError
from modeld.providers.anthropic_facts import cannot, facts_of, sampling_of, thinking_of
from modeld.repository.names import ToolNames
from modeld.repository.wire import Call
from modeld.types import ImagePart, Message, ToolCall

NAME_LIMIT: Final = 128
IMAGES: Final = ("image/jpeg", "image/png", "image/gif", "image/webp")


def build_request(call: Call, names: ToolNames) -> dict[str, Any]:
    """The body of ``POST /v1/messages``, without ``stream``.

    :raises NotSupportedError: the model cannot take an option. :raises InvalidRequestError: a message makes no sense.
    """
    config = call.config
    thinking = thinking_of(call)
    system, messages = _history(call, names)
    body: dict[str, Any] = {"model": call.model.name, "max_tokens": thinking.max_tokens, "messages": messages}
    if system:
        body["system"] = system
    if config.stop:
        body["stop_sequences"] = list(config.stop)
    if thinking.field:
        body["thinking"] = thinking.field
    if output := ({"effort": thinking.effort} if thinking.effort else {}) | _response_format(call):
        body["output_config"] = output
    if config.tools:
        body["tools"] = [
            {
                "name": names.sent(tool.function.name),
                **({"description": tool.function.description} if tool.function.description else {}),
                "input_schema": {"type": "object", **tool.function.parameters},
                **_mark(_own(tool.function.provider_meta)),
            }
            for tool in config.tools
        ]
        if choice := _tool_choice(call, names, thinking.on):
            body["tool_choice"] = choice
    return body | sampling_of(call, thinking.on) | _whole_prompt(call)


def _whole_prompt(call: Call) -> dict[str, Any]:
    """The vendor's own mark, on the last block that can have one."""
    wanted = call.config.prompt_cache
    if wanted is None:
        return {}
    if wanted not in ("5m", "1h"):
        raise cannot("prompt_cache", call, f"has its prompts kept for '5m' or '1h', not for {wanted!r}")
    return {"cache_control": {"type": "ephemeral", "ttl": wanted}}


def _own(meta: dict[str, Any] | None) -> dict[str, Any]:
    """What is Anthropic's of it. :raises InvalidRequestError: it is no object."""
    own = (meta or {}).get("anthropic", {})
    if not isinstance(own, dict):
        raise _changed()
    return own


def _mark(entry: dict[str, Any]) -> dict[str, Any]:
    return {"cache_control": entry["cache_control"]} if entry.get("cache_control") else {}


def _changed() -> InvalidRequestError:
    text = "provider_meta of anthropic was changed; it has to go back as it came"
    return InvalidRequestError(text, parameter="messages")


def _response_format(call: Call) -> dict[str, Any]:
    wanted = call.config.response_format
    if wanted is None:
        return {}
    if call.model.meta.get("structured_outputs") == "no":
        raise cannot("response_format", call, "has no structured outputs, by its listing")
    if wanted.schema is None:
        raise cannot("response_format", call, "holds an answer to a schema only; it has no mode for any JSON object")
    return {"format": {"type": "json_schema", "schema": _closed(wanted.schema)}}


def _closed(schema: Any) -> Any:
    """``schema`` with ``additionalProperties: false`` where an object does not say: the vendor refuses it without."""
    if not isinstance(schema, dict):
        return schema
    closed = dict(schema)
    for key in ("properties", "$defs", "definitions"):
        if isinstance(schema.get(key), dict):
            closed[key] = {name: _closed(value) for name, value in schema[key].items()}
    for key in ("anyOf", "allOf", "oneOf"):
        if isinstance(schema.get(key), list):
            closed[key] = [_closed(value) for value in schema[key]]
    if "items" in schema:
        closed["items"] = _closed(schema["items"])
    kinds = schema.get("type")
    if "object" in (kinds if isinstance(kinds, list) else [kinds]):
        closed.setdefault("additionalProperties", False)
    return closed


def _tool_choice(call: Call, names: ToolNames, thinking: bool) -> dict[str, Any]:
    wanted = call.config.tool_choice
    choice: dict[str, Any] = {}
    if wanted in ("auto", "none"):
        choice = {"type": wanted}
    elif wanted is not None:
        facts = facts_of(call.model.name)
        if facts is not None and not facts.forced_tools:
            raise cannot("tool_choice", call, "takes no tool_choice that forces a call; auto and none are fine")
        if thinking:
            raise cannot("tool_choice", call, "takes no tool_choice that forces a call while it thinks")
        choice = {"type": "any"} if wanted == "required" else {"type": "tool", "name": names.sent(wanted)}
    if call.config.parallel_tool_calls is False and wanted != "none":
        choice = {"type": "auto", **choice, "disable_parallel_tool_use": True}
    return choice


def _history(call: Call, names: ToolNames) -> tuple[str | list[dict[str, Any]], list[dict[str, Any]]]:
    """The system prompt, and turns that alternate: messages of one side in a row are one turn.

    Results of parallel calls belong in one turn, ahead of all else in it; the vendor refuses them elsewhere.
    """
    system: list[Message] = []
    turns: list[dict[str, Any]] = []
    for message in call.messages:
        if message.images and message.role in ("system", "assistant"):
            raise InvalidRequestError(f"anthropic takes no image in a message of {message.role}", parameter="messages")
        if message.role == "system":
            system.extend([message] if message.content.strip() else [])
            continue
        role = "assistant" if message.role == "assistant" else "user"
        blocks = _assistant(message, names, call.model.name) if role == "assistant" else _user(message, call)
        if blocks and turns and turns[-1]["role"] == role:
            turns[-1]["content"].extend(blocks)
        elif blocks:
            turns.append({"role": role, "content": blocks})
    for turn in turns:
        turn["content"].sort(key=lambda block: turn["role"] == "user" and block["type"] != "tool_result")
    return _system(system), turns


def _system(messages: list[Message]) -> str | list[dict[str, Any]]:
    """One text; as blocks where one of them was laid out as such. Both read the same."""
    if not any(_own(message.provider_meta).get("content") for message in messages):
        return "\n\n".join(message.content for message in messages)
    found: list[dict[str, Any]] = []
    for message in messages:
        blocks = _laid_out(message, {}) or [{"type": "text", "text": message.content}]
        if found:
            blocks[0] = {**blocks[0], "text": f"\n\n{blocks[0]['text']}"}
        found += blocks
    return found


def _user(message: Message, call: Call) -> list[dict[str, Any]]:
    """Empty text is left out: the vendor refuses a block without text."""
    images = [_image(image, call) for image in message.images]
    laid = _laid_out(message, {"image": images})
    text = [{"type": "text", "text": message.content}] if message.content else []
    blocks = [*text, *images] if laid is None else laid
    if message.role == "user":
        return blocks
    if not message.tool_call_id:
        raise InvalidRequestError("a message of role tool needs the id of its call", parameter="messages")
    content = message.content if laid is None and not images else blocks
    result = {"type": "tool_result", "tool_use_id": _wire_id(message.tool_call_id), "content": content}
    return [result | _mark(_own(message.provider_meta))]


def _image(image: ImagePart, call: Call) -> dict[str, Any]:
    if image.mime_type not in IMAGES:
        raise cannot("images", call, f"takes images of {', '.join(IMAGES)}, not {image.mime_type}")
    data = base64.b64encode(image.data).decode()
    return {"type": "image", "source": {"type": "base64", "media_type": image.mime_type, "data": data}}


def _assistant(message: Message, names: ToolNames, model: str) -> list[dict[str, Any]]:
    """The blocks of an earlier answer, in the order in which they came if the message is still the same.

    Signed thinking is bound to the model that thought it: another model's is left out.
    """
    calls = [_tool_use(call, names) for call in message.tool_calls]
    laid = _laid_out(message, {"tool_use": calls}, model)
    if laid is not None:
        return laid
    thinking = [block for block in _kept(message, model) if block["type"] not in ("text", "tool_use")]
    text = [{"type": "text", "text": message.content}] if message.content else []
    return [*thinking, *text, *calls]


def _laid_out(
    message: Message, others: dict[str, list[dict[str, Any]]], model: str = ""
) -> list[dict[str, Any]] | None:
    """The blocks of a message as they came; ``None``: nobody said how, or the message is not the same any more.

    :param others: its blocks beside text, by type. :param model: whose signed thinking may be among them.
    """
    kept = _kept(message, model)
    kinds = [block["type"] for block in kept]
    whole = sum(block["length"] for block in kept if block["type"] == "text") == len(message.content)
    if not kept or not whole or any(kinds.count(kind) != len(blocks) for kind, blocks in others.items()):
        return None
    found: list[dict[str, Any]] = []
    rest, at = {kind: iter(blocks) for kind, blocks in others.items()}, 0
    for block in kept:
        kind = block["type"]
        if kind == "text":
            text, at = message.content[at : at + block["length"]], at + block["length"]
            found += [{"type": "text", "text": text} | _mark(block)] if text else []
        else:
            found.append(next(rest[kind]) | _mark(block) if kind in rest else block)
    return found


def _kept(message: Message, model: str) -> list[dict[str, Any]]:
    """:raises InvalidRequestError: what the decoder left in the message was changed."""
    own = _own(message.provider_meta)
    try:
        kept = list(own.get("content", ())) if own.get("model", model) == model else []
        fine = all(block["type"] != "text" or (type(n := block["length"]) is int and n >= 0) for block in kept)
    except (KeyError, TypeError):
        fine = False
    if not fine:
        raise _changed()
    return kept


def _tool_use(call: ToolCall, names: ToolNames) -> dict[str, Any]:
    try:
        value = json.loads(call.function.arguments.strip() or "{}")
    except ValueError:
        value = None
    if not call.id or not isinstance(value, dict):
        lacks = "arguments that are a JSON object" if call.id else "an id"
        raise InvalidRequestError(
            f"the call {call.id!r} of {call.function.name!r} in the history needs {lacks}: anthropic takes no other",
            parameter="messages",
        )
    return {"type": "tool_use", "id": _wire_id(call.id), "name": names.sent(call.function.name), "input": value}


def _wire_id(call_id: str) -> str:
    """Ids of other vendors may hold characters that this one refuses; the same id always becomes the same."""
    if re.fullmatch(r"[a-zA-Z0-9_-]+", call_id):
        return call_id
    return f"call_{blake2b(call_id.encode(), digest_size=12).hexdigest()}"
