"""The ``generateContent`` wire of Gemini and Vertex: requests.

Sources: https://ai.google.dev/api/generate-content and the types of the SDK, which name every field.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec

from modeld.errors import NotSupportedError
from modeld.providers.google_facts import google_facts, thinking_config
from modeld.repository.names import ToolNames
from modeld.repository.options import Rules, make_rules, mapped, native, refused
from modeld.repository.wire import Call
from modeld.thinking import parse_think
from modeld.types import FunctionTool, Message, ToolCall

META: Final = "google"
"""Key of what is ours in ``provider_meta``; it holds ``thought_signature``, base64 as Google wrote it."""

NAME_LIMIT: Final = 64
"""Characters of a function's name (FunctionDeclaration; newer models take 128)."""

NO_SIGNATURE: Final = "skip_thought_signature_validator"
"""What stands for the signature of a call that Gemini did not make (thought-signatures page, FAQ)."""

RULES: Final[Rules] = make_rules(
    temperature=native("generationConfig.temperature"),
    max_tokens=native("generationConfig.maxOutputTokens"),
    top_p=native("generationConfig.topP"),
    top_k=native("generationConfig.topK"),
    min_p=refused("generationConfig has no field of the kind"),
    seed=native("generationConfig.seed"),
    stop=native("generationConfig.stopSequences"),
    frequency_penalty=native("generationConfig.frequencyPenalty"),
    presence_penalty=native("generationConfig.presencePenalty"),
    repeat_penalty=refused("generationConfig has frequencyPenalty and presencePenalty only"),
    tools=mapped("tools.functionDeclarations", "names with _ for what Google does not take, and back"),
    tool_choice=mapped("toolConfig.functionCallingConfig", "AUTO, NONE, ANY; a name is ANY with allowedFunctionNames"),
    parallel_tool_calls=refused("Gemini decides how many calls it makes at once"),
    response_format=mapped(
        "generationConfig.responseMimeType", "application/json, with the schema as responseJsonSchema; always strict"
    ),
    logprobs=native("generationConfig.responseLogprobs"),
    top_logprobs=mapped("generationConfig.logprobs", "0 sends nothing"),
    think=mapped("generationConfig.thinkingConfig", "thinkingBudget for 2.5, thinkingLevel since 3, with summaries"),
    shift=refused("Google keeps no conversation that could lose its oldest turns"),
    truncate=refused("Google refuses what does not fit"),
    images=mapped("contents.parts.inlineData", "base64 within the request"),
)


def build_request(backend: str, call: Call, names: ToolNames) -> dict[str, Any]:
    """The body of ``generateContent`` and ``streamGenerateContent``, as it goes over the wire.

    :raises NotSupportedError: the model cannot take a value.
    """
    config = call.config
    _refuse(backend, call)
    body: dict[str, Any] = {"contents": _contents(call, names)}
    system = "\n\n".join(m.content for m in call.messages if m.role == "system" and m.content)
    if system:
        body["systemInstruction"] = {"parts": [{"text": system}]}
    if config.tools:
        body["tools"] = [{"functionDeclarations": [_declaration(names, tool.function) for tool in config.tools]}]
    if config.tool_choice is not None:
        body["toolConfig"] = {"functionCallingConfig": _calling(config.tool_choice, names)}
    if generation := _generation(backend, call):
        body["generationConfig"] = generation
    return body


def _declaration(names: ToolNames, function: FunctionTool) -> dict[str, Any]:
    declared = {"name": names.sent(function.name), "description": function.description}
    # The whole JSON schema; the older field "parameters" takes a reduced one only.
    return declared | ({"parametersJsonSchema": function.parameters} if function.parameters else {})


def _calling(choice: str, names: ToolNames) -> dict[str, Any]:
    modes = {"auto": "AUTO", "none": "NONE", "required": "ANY"}
    if choice in modes:
        return {"mode": modes[choice]}
    return {"mode": "ANY", "allowedFunctionNames": [names.sent(choice)]}


def _generation(backend: str, call: Call) -> dict[str, Any]:
    config = call.config
    values: dict[str, Any] = {
        "temperature": config.temperature,
        "maxOutputTokens": config.max_tokens,
        "topP": config.top_p,
        "topK": config.top_k,
        "seed": config.seed,
        "stopSequences": list(config.stop) or None,
        "frequencyPenalty": config.frequency_penalty,
        "presencePenalty": config.presence_penalty,
        "responseLogprobs": config.logprobs or None,
        "logprobs": config.top_logprobs or None,
        "thinkingConfig": thinking_config(backend, call.model, parse_think(config.think)),
    }
    if config.response_format is not None:
        values["responseMimeType"] = "application/json"
        values["responseJsonSchema"] = config.response_format.schema
    return {name: value for name, value in values.items() if value is not None}


def _refuse(backend: str, call: Call) -> None:
    """Values that Google has no way to do, of options that it has."""
    model, wrong = call.model.name, ""
    if call.config.top_k == 0:
        wrong, why = "top_k=0", "topK is at least 1, and leaving it out means the model's own"
    elif call.config.parallel_tool_calls is False:
        wrong, why = "parallel_tool_calls=False", RULES["parallel_tool_calls"].note
    if wrong:
        feature = wrong.partition("=")[0]
        text = f"{model} of {backend} cannot do {wrong}: {why}"
        raise NotSupportedError(text, feature=feature, backend=backend, model=model)


def _contents(call: Call, names: ToolNames) -> list[dict[str, Any]]:
    """The turns; neighbours of one role become one, so that the results of parallel calls arrive together."""
    called = {c.id: c.function.name for message in call.messages for c in message.tool_calls}
    signed = google_facts(call.model.name).signed_calls
    contents: list[dict[str, Any]] = []
    for message in call.messages:
        if message.role == "system":
            continue
        role = "model" if message.role == "assistant" else "user"
        parts = list(_parts(message, called, names, signed))
        if contents and contents[-1]["role"] == role:
            contents[-1]["parts"] += parts
        elif parts:
            contents.append({"role": role, "parts": parts})
    return contents


def _parts(message: Message, called: dict[str, str], names: ToolNames, signed: bool) -> Iterator[dict[str, Any]]:
    if message.role == "tool":
        name = message.name or called.get(message.tool_call_id) or "tool_response"
        answer = {"name": names.sent(name), "response": tool_response(message.content)}
        yield {"functionResponse": ({"id": message.tool_call_id} if message.tool_call_id else {}) | answer}
    else:
        signature = _signature(message.provider_meta) if message.role == "assistant" else ""
        if message.content or signature:
            # A signature without text came in an empty part, and goes back in one.
            yield {"text": message.content} | ({"thoughtSignature": signature} if signature else {})
    for image in message.images:
        data = base64.b64encode(image.data).decode("ascii")
        yield {"inlineData": {"mimeType": image.mime_type, "data": data}}
    yield from _calls(message.tool_calls, names, signed)


def _calls(calls: Sequence[ToolCall], names: ToolNames, signed: bool) -> Iterator[dict[str, Any]]:
    signatures = [_signature(call.provider_meta) for call in calls]
    if calls and signed and not any(signatures):
        # Of parallel calls only the first carries a signature.
        signatures[0] = NO_SIGNATURE
    for call, signature in zip(calls, signatures, strict=True):
        function = {"name": names.sent(call.function.name), "args": _arguments(call.function.arguments)}
        part: dict[str, Any] = {"functionCall": ({"id": call.id} if call.id else {}) | function}
        yield part | ({"thoughtSignature": signature} if signature else {})


def _signature(meta: dict[str, Any] | None) -> str:
    ours = (meta or {}).get(META)
    signature = ours.get("thought_signature") if isinstance(ours, dict) else None
    return signature if isinstance(signature, str) else ""


def _arguments(text: str) -> dict[str, Any]:
    """Google takes objects only. What another vendor's model wrote wrongly stays readable for this one."""
    try:
        value = msgspec.json.decode(text or "{}")
    except msgspec.DecodeError:
        value = text
    return value if isinstance(value, dict) else {"arguments": value}


def tool_response(text: str) -> dict[str, Any]:
    """The result of a call as the object that ``functionResponse.response`` must be.

    An object goes as it is, everything else under ``content``. An object that looks like a JSON schema goes as text:
    ``$ref`` in a response means a part beside it, and was refused where there is none.
    """
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        value = text
    if _is_schema(value):
        return {"content": text}
    return value if isinstance(value, dict) else {"content": value}


def _is_schema(value: Any) -> bool:
    if isinstance(value, dict):
        marked = any(key in ("$schema", "$defs", "definitions") or key.startswith("$ref") for key in value)
        return marked or any(_is_schema(item) for item in value.values())
    return isinstance(value, list) and any(_is_schema(item) for item in value)
