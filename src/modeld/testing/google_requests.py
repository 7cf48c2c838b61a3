"""Requests of Google's ``generateContent`` and embeddings, checked as the services check them.

Sources: https://ai.google.dev/api/generate-content, https://ai.google.dev/api/embeddings,
https://ai.google.dev/gemini-api/docs/thought-signatures.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from modeld.testing.server import Rejected

Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]
T = TypeVar("T")


class Blob(Struct, rename="camel", forbid_unknown_fields=True, frozen=True):
    mime_type: Literal["image/png", "image/jpeg", "image/webp", "image/heic", "image/heif"]
    data: bytes


class FunctionCallPart(Struct, forbid_unknown_fields=True, frozen=True):
    name: str
    args: dict[str, Any] = {}
    id: str = ""


class FunctionResponsePart(Struct, forbid_unknown_fields=True, frozen=True):
    name: str
    response: dict[str, Any]
    id: str = ""


class Part(Struct, rename="camel", forbid_unknown_fields=True, frozen=True):
    text: str | None = None
    inline_data: Blob | None = None
    function_call: FunctionCallPart | None = None
    function_response: FunctionResponsePart | None = None
    thought: bool = False
    thought_signature: str | None = None


class Content(Struct, forbid_unknown_fields=True, frozen=True):
    parts: list[Part]
    role: Literal["user", "model"] | None = None


class FunctionDeclaration(Struct, rename="camel", forbid_unknown_fields=True, frozen=True):
    name: str
    description: str = ""
    parameters_json_schema: dict[str, Any] | None = None


class ToolList(Struct, rename="camel", forbid_unknown_fields=True, frozen=True):
    function_declarations: list[FunctionDeclaration]


class FunctionCallingConfig(Struct, rename="camel", forbid_unknown_fields=True, frozen=True):
    mode: Literal["AUTO", "NONE", "ANY"]
    allowed_function_names: list[str] = []


class ToolConfig(Struct, rename="camel", forbid_unknown_fields=True, frozen=True):
    function_calling_config: FunctionCallingConfig


class ThinkingConfig(Struct, rename="camel", forbid_unknown_fields=True, frozen=True):
    include_thoughts: bool = False
    thinking_budget: int | None = None
    thinking_level: Literal["MINIMAL", "LOW", "MEDIUM", "HIGH"] | None = None


class GenerationConfig(Struct, rename="camel", forbid_unknown_fields=True, frozen=True):
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    max_output_tokens: Count | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Count | None = None
    seed: Annotated[int, Meta(ge=-(2**31), le=2**31 - 1)] | None = None
    stop_sequences: Annotated[list[str], Meta(max_length=5)] = []
    frequency_penalty: Annotated[float, Meta(ge=-2, lt=2)] | None = None
    presence_penalty: Annotated[float, Meta(ge=-2, lt=2)] | None = None
    response_mime_type: Literal["text/plain", "application/json"] = "text/plain"
    response_json_schema: dict[str, Any] | None = None
    response_logprobs: bool = False
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    thinking_config: ThinkingConfig = ThinkingConfig()


class GenerateContent(Struct, rename="camel", forbid_unknown_fields=True, frozen=True):
    contents: list[Content]
    system_instruction: Content | None = None
    tools: list[ToolList] = []
    tool_config: ToolConfig | None = None
    generation_config: GenerationConfig = GenerationConfig()
    continuation_token: str = ""


class EmbedRequest(Struct, rename="camel", forbid_unknown_fields=True, frozen=True):
    content: Content
    model: str = ""
    output_dimensionality: Count | None = None


class BatchEmbed(Struct, forbid_unknown_fields=True, frozen=True):
    requests: list[EmbedRequest]


class EmbedConfig(Struct, rename="camel", forbid_unknown_fields=True, frozen=True):
    output_dimensionality: Count | None = None


class VertexEmbed(Struct, rename="camel", forbid_unknown_fields=True, frozen=True):
    content: Content
    embed_content_config: EmbedConfig = EmbedConfig()


class VertexBatchEmbed(Struct, forbid_unknown_fields=True, frozen=True):
    requests: list[VertexEmbed]


class Instance(Struct, forbid_unknown_fields=True, frozen=True):
    content: str


class Predict(Struct, forbid_unknown_fields=True, frozen=True):
    instances: Annotated[list[Instance], Meta(min_length=1, max_length=250)]
    parameters: EmbedConfig = EmbedConfig()


def invalid(message: str) -> Rejected:
    return Rejected(message, code="INVALID_ARGUMENT")


def read(body: bytes, kind: type[T]) -> T:
    """``body`` as ``kind``.

    :raises Rejected: as Google refuses what it does not know.
    """
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.DecodeError as error:
        raise invalid(f"Invalid JSON payload received. {error}") from error


def texts_of(contents: Iterable[Content]) -> list[str]:
    """The text of each content to be embedded."""
    found = [[part.text for part in content.parts] for content in contents]
    if any(len(parts) != 1 or not parts[0] for parts in found):
        raise invalid("empty or several parts in a content to be embedded")
    return [str(parts[0]) for parts in found]


class Thinking(Struct, frozen=True):
    """How a model thinks: by budget, within a range, or by level; and whether calls have to be signed."""

    budget: tuple[int, int] | None = None
    can_stop: bool = False
    levels: tuple[str, ...] = ()
    signed: bool = False


def check(request: GenerateContent, thinking: Thinking, signatures: set[str]) -> None:
    """:raises Rejected: as Google refuses what does not go together."""
    if not request.contents:
        raise invalid("* GenerateContentRequest.contents: contents is not specified")
    for content in request.contents:
        _check_parts(content)
    _check_calls(request.contents)
    _check_tools(request)
    if thinking.signed:
        _check_signatures(request.contents, signatures)
    _check_thinking(request.generation_config.thinking_config, thinking)
    config = request.generation_config
    if config.response_json_schema is not None and config.response_mime_type != "application/json":
        raise invalid("response_schema is allowed only for the mime type application/json")


def _check_parts(content: Content) -> None:
    if not content.parts:
        raise invalid("* GenerateContentRequest.contents[0].parts: contents.parts must not be empty.")
    for part in content.parts:
        data = (part.text, part.inline_data, part.function_call, part.function_response)
        if sum(value is not None for value in data) != 1:
            raise invalid("* contents.parts.data: required oneof field 'data' must have one initialized field")
        if part.text == "" and part.thought_signature is None:
            raise invalid("Unable to submit request because it must have a text parameter.")


def _check_calls(contents: list[Content]) -> None:
    for before, content in zip([Content([]), *contents], [*contents, Content([])], strict=True):
        calls = [p.function_call.id for p in before.parts if p.function_call is not None]
        results = [p.function_response.id for p in content.parts if p.function_response is not None]
        if len(calls) != len(results) and content.parts:
            raise invalid(
                "Please ensure that the number of function response parts is equal to the number of function call "
                "parts of the function call turn."
            )
        if results and sorted(calls) != sorted(results):
            raise invalid("Function response ids do not match the ids of the calls.")


def _check_tools(request: GenerateContent) -> None:
    declared = [function for tool in request.tools for function in tool.function_declarations]
    for function in declared:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.:-]{0,63}", function.name):
            raise invalid(f"Invalid function name {function.name!r}. Must start with a letter or an underscore.")
    if len({function.name for function in declared}) != len(declared):
        raise invalid("Duplicate function declaration found.")
    calling = request.tool_config.function_calling_config if request.tool_config else None
    if calling is not None and calling.allowed_function_names:
        if calling.mode != "ANY":
            raise invalid("allowed_function_names should be set only when the function calling mode is ANY.")
        if not {function.name for function in declared} >= set(calling.allowed_function_names):
            raise invalid("allowed_function_names should be a subset of the function declarations.")


def _check_signatures(contents: list[Content], signatures: set[str]) -> None:
    """The first call of each step since the last thing a person said is signed; what is signed was signed here."""
    current = 0
    for index, content in enumerate(contents):
        if content.role == "user" and any(part.function_response is None for part in content.parts):
            current = index
    for index, content in enumerate(contents):
        first = next((part for part in content.parts if part.function_call is not None), None)
        if index > current and first is not None and not first.thought_signature:
            raise invalid(
                "Function call is missing a thought_signature in functionCall parts. This is required for tools to "
                "work correctly, and missing thought_signature may lead to degraded model performance."
            )
        for part in content.parts:
            if part.thought_signature not in (None, "skip_thought_signature_validator", *signatures):
                raise invalid("Corrupted thought signature.")


def _check_thinking(config: ThinkingConfig, thinking: Thinking) -> None:
    budget, level = config.thinking_budget, config.thinking_level
    if budget is not None and level is not None:
        raise invalid("You can only set only one of thinking budget and thinking level.")
    if level is not None and level.lower() not in thinking.levels:
        raise invalid(f"Thinking level {level} is not supported for this model.")
    if budget is None or budget == -1 or (budget == 0 and thinking.can_stop):
        return
    if thinking.budget is None or not thinking.budget[0] <= budget <= thinking.budget[1]:
        low, high = thinking.budget or (0, 0)
        raise invalid(f"The thinking budget {budget} is invalid. Please choose a value between {low} and {high}.")
