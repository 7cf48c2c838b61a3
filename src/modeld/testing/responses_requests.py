"""What OpenAI's Responses API takes: requests, typed as the vendor documents them, and what it rejects besides.

Source: ``ResponseCreateParams`` of the ``openai`` SDK 3.54. Fields that modeld's fakes have no behaviour for
(hosted tools, stored conversations, background runs) are unknown here. The words of the rejections are the vendor's,
as users quote them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from modeld.testing.server import Rejected

Text64 = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_-]+$")]
CallId = Annotated[str, Meta(min_length=1, max_length=64)]
Schema = dict[str, Any]

SEAL: Final = "gAAAAA-"
"""How encrypted content begins."""

REASONING_MODELS: Final = ("gpt-5*", "gpt-6*", "o[1-9]*", "codex-*")
CHAT_MODELS: Final = ("gpt-5-chat*", "gpt-5.[0-9]-chat*")
"""Among those by name, and without reasoning."""

ALWAYS_REASONING: Final = ("gpt-5", "gpt-5-*", "o[1-9]*", "codex-*")
"""They reason unless told otherwise, and take no sampling options then."""


class InputText(Struct, frozen=True, forbid_unknown_fields=True, tag="input_text"):
    text: str


class InputImage(Struct, frozen=True, forbid_unknown_fields=True, tag="input_image", kw_only=True):
    image_url: Annotated[str, Meta(pattern=r"^(https?://|data:image/(png|jpeg|webp|gif);base64,)")]
    detail: Literal["auto", "low", "high", "original"]


Content = str | list[InputText | InputImage]


class InputMessage(Struct, frozen=True, forbid_unknown_fields=True, tag="message", kw_only=True):
    role: Literal["user", "assistant", "system", "developer"]
    content: Content
    phase: Literal["commentary", "final_answer"] | None = None


class FunctionCallItem(Struct, frozen=True, forbid_unknown_fields=True, tag="function_call", kw_only=True):
    call_id: CallId
    name: Text64
    arguments: str
    id: str | None = None


class FunctionCallOutput(Struct, frozen=True, forbid_unknown_fields=True, tag="function_call_output", kw_only=True):
    call_id: CallId
    output: Content


class SummaryText(Struct, frozen=True, forbid_unknown_fields=True, tag="summary_text"):
    text: str


class ReasoningItem(Struct, frozen=True, forbid_unknown_fields=True, tag="reasoning", kw_only=True):
    id: Annotated[str, Meta(pattern=r"^rs_")]
    summary: list[SummaryText]
    encrypted_content: str | None = None


InputItem = InputMessage | FunctionCallItem | FunctionCallOutput | ReasoningItem


class Function(Struct, frozen=True, forbid_unknown_fields=True, tag="function", kw_only=True):
    name: Text64
    parameters: Schema
    strict: bool
    description: str = ""


class ChosenFunction(Struct, frozen=True, forbid_unknown_fields=True, tag="function", kw_only=True):
    name: str


class PlainText(Struct, frozen=True, forbid_unknown_fields=True, tag="text"):
    pass


class JsonObject(Struct, frozen=True, forbid_unknown_fields=True, tag="json_object"):
    pass


class JsonSchema(Struct, frozen=True, forbid_unknown_fields=True, tag="json_schema", kw_only=True):
    name: Text64
    schema: Schema
    strict: bool | None = None
    description: str = ""


class TextConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    format: PlainText | JsonObject | JsonSchema = PlainText()
    verbosity: Literal["low", "medium", "high"] | None = None


class ReasoningConfig(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None


class StreamOptions(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    include_obfuscation: bool = True


class CreateResponse(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The body of ``POST /v1/responses``."""

    model: str
    input: str | list[InputItem]
    instructions: str | None = None
    include: list[Literal["reasoning.encrypted_content", "message.output_text.logprobs"]] | None = None
    max_output_tokens: Annotated[int, Meta(ge=16)] | None = None
    metadata: dict[str, str] | None = None
    parallel_tool_calls: bool | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    reasoning: ReasoningConfig | None = None
    safety_identifier: str | None = None
    store: bool = True
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    text: TextConfig = TextConfig()
    tool_choice: Literal["auto", "none", "required"] | ChosenFunction | None = None
    tools: list[Function] = []
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    truncation: Literal["auto", "disabled"] | None = None

    def echoed(self) -> dict[str, Any]:
        """What the answer repeats of the request, with the vendor's defaults."""
        reasoning = self.reasoning or ReasoningConfig()
        return {
            "model": self.model,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "prompt_cache_key": self.prompt_cache_key,
            "reasoning": {"effort": reasoning.effort, "summary": reasoning.summary},
            "safety_identifier": self.safety_identifier,
            "temperature": 1.0 if self.temperature is None else self.temperature,
            "text": {
                "format": msgspec.to_builtins(self.text.format),
                "verbosity": self.text.verbosity or "medium",
            },
            "tool_choice": msgspec.to_builtins(self.tool_choice or "auto"),
            "tools": msgspec.to_builtins(self.tools),
            "top_p": 1.0 if self.top_p is None else self.top_p,
            "truncation": self.truncation or "disabled",
            "user": None,
        }


def checked_request(body: bytes) -> CreateResponse:
    """The request.

    :raises Rejected: the vendor would answer with status 400.
    """
    try:
        wanted = msgspec.json.decode(body, type=CreateResponse)
    except msgspec.ValidationError as error:
        code = "unknown_parameter" if "unknown field" in str(error) else "invalid_value"
        raise Rejected(f"Invalid request: {error}", code=code) from error
    except msgspec.DecodeError as error:
        raise Rejected("We could not parse the JSON body of your request.") from error
    _check_model(wanted)
    _check_tools(wanted)
    _check_format(wanted)
    if not isinstance(wanted.input, str):
        _check_reasoning(wanted.input, wanted.store)
        _check_calls(wanted.input)
        _check_images(wanted.input)
    return wanted


def sealed(id: str, signature: str) -> str:
    """The encrypted content of reasoning item ``id``: it fits no other."""
    return f"{SEAL}{hashlib.sha256(id.encode()).hexdigest()[:32]}{signature}"


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _check_model(wanted: CreateResponse) -> None:
    reasons = _matches(wanted.model, REASONING_MODELS) and not _matches(wanted.model, CHAT_MODELS)
    effort = wanted.reasoning.effort if wanted.reasoning is not None else None
    if not reasons:
        if effort is not None:
            raise _unsupported("reasoning.effort")
        if "reasoning.encrypted_content" in (wanted.include or ()):
            raise Rejected("Encrypted content is not supported with this model.")
        return
    active = effort != "none" if effort is not None else _matches(wanted.model, ALWAYS_REASONING)
    for name in ("temperature", "top_p"):
        if active and getattr(wanted, name) is not None:
            raise _unsupported(name)


def _unsupported(name: str) -> Rejected:
    text = f"Unsupported parameter: '{name}' is not supported with this model."
    return Rejected(text, code="unsupported_parameter")


def _check_tools(wanted: CreateResponse) -> None:
    names = [tool.name for tool in wanted.tools]
    if len(set(names)) != len(names):
        raise Rejected("Tool names must be unique.")
    if isinstance(wanted.tool_choice, ChosenFunction) and wanted.tool_choice.name not in names:
        raise Rejected(f"Tool choice 'function' with name '{wanted.tool_choice.name}' not found in 'tools' parameter.")
    if wanted.tool_choice == "required" and not names:
        raise Rejected("Tool choice 'required' must be specified with 'tools' parameter.")
    for tool in wanted.tools:
        if tool.parameters.get("type") != "object":
            text = f"Invalid schema for function '{tool.name}': schema must be a JSON Schema of 'type: \"object\"'."
            raise Rejected(text, code="invalid_function_parameters")
        if tool.strict:
            _check_strict(tool.parameters, f"function '{tool.name}'", "invalid_function_parameters")


def _check_format(wanted: CreateResponse) -> None:
    form = wanted.text.format
    if isinstance(form, JsonSchema) and form.strict:
        _check_strict(form.schema, f"response_format '{form.name}'", "invalid_json_schema")
    said = f"{wanted.instructions} {wanted.input}".lower()
    if isinstance(form, JsonObject) and "json" not in said:
        raise Rejected("'input' must contain the word 'json' in some form, to use 'text.format' of type 'json_object'.")


def _check_strict(schema: Schema, where: str, code: str) -> None:
    """The outermost object of a strict schema; the vendor looks at the inner ones as well."""
    properties = schema.get("properties", {})
    if schema.get("additionalProperties") is not False:
        raise Rejected(f"Invalid schema for {where}: 'additionalProperties' is required to be false.", code=code)
    if sorted(schema.get("required", ())) != sorted(properties):
        raise Rejected(f"Invalid schema for {where}: 'required' has to include every key in properties.", code=code)


def _check_reasoning(items: Sequence[InputItem], store: bool) -> None:
    for item, follower in zip(items, [*items[1:], None], strict=True):
        if not isinstance(item, ReasoningItem):
            continue
        answer = isinstance(follower, InputMessage) and follower.role == "assistant"
        if not answer and not isinstance(follower, FunctionCallItem | ReasoningItem):
            text = f"Item '{item.id}' of type 'reasoning' was provided without its required following item."
            raise Rejected(text)
        if item.encrypted_content is None:
            text = f"Item with id '{item.id}' not found. Items are not persisted when `store` is set to false."
            raise Rejected(text, status=404)
        if not item.encrypted_content.startswith(sealed(item.id, "")):
            text = f"The encrypted content for item {item.id} could not be verified."
            raise Rejected(text, code="invalid_encrypted_content")


def _check_calls(items: Sequence[InputItem]) -> None:
    """Every call has its output, and every output its call before it."""
    called: set[str] = set()
    open_calls: set[str] = set()
    for item in items:
        if isinstance(item, FunctionCallItem):
            called.add(item.call_id)
            open_calls.add(item.call_id)
        elif isinstance(item, FunctionCallOutput):
            if item.call_id not in called:
                raise Rejected(f"No tool call found for function call output with call_id {item.call_id}.")
            open_calls.discard(item.call_id)
    if open_calls:
        raise Rejected(f"No tool output found for function call {min(open_calls)}.")


def _check_images(items: Sequence[InputItem]) -> None:
    for item in items:
        if isinstance(item, InputMessage) and item.role == "assistant" and not isinstance(item.content, str):
            raise Rejected("Invalid value: 'input_text'. Supported values are: 'output_text' and 'refusal'.")
