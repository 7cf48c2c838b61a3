"""What Anthropic's Messages wire takes: the shape of a request, and what of it the vendor refuses.

Source: https://platform.claude.com/docs/en/api/messages and the request types of the SDK 2.12. Blocks of text, images,
thinking, tool calls and tool results; documents and server tools are no part of it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct, field

VERSIONS: Final = ("2023-06-01", "2026-10-21")

FULL: Final = ("low", "medium", "high", "xhigh", "max")
"""Every effort."""


class Model(Struct, frozen=True, kw_only=True):
    """A model as the server knows it.

    :param thinking: values of ``thinking.type`` it takes. :param sampling: takes temperature, top_p and top_k under
        2023-06-01. :param forced_tools: takes ``tool_choice`` any and tool. :param prefill: goes on with an answer.
    """

    id: str
    thinking: tuple[str, ...]
    efforts: tuple[str, ...] = ()
    window: int = 1_000_000
    ceiling: int = 128_000
    sampling: bool = False
    forced_tools: bool = True
    prefill: bool = False


MODELS: Final = (
    Model(id="claude-opus-5-5", thinking=("adaptive",), efforts=FULL, forced_tools=False),
    Model(id="claude-sonnet-5-5", thinking=("adaptive", "between_tools"), efforts=FULL, forced_tools=False),
    Model(id="claude-opus-5", thinking=("adaptive", "disabled"), efforts=FULL),
    Model(
        id="claude-sonnet-4-6",
        thinking=("adaptive", "disabled", "enabled"),
        efforts=("low", "medium", "high", "max"),
        sampling=True,
    ),
    Model(
        id="claude-haiku-4-5-20251001",
        thinking=("disabled", "enabled"),
        window=200_000,
        ceiling=64_000,
        sampling=True,
        prefill=True,
    ),
)


class Strict(Struct, forbid_unknown_fields=True, kw_only=True):
    """A field that is not known is the vendor's 400."""


class CacheControl(Strict, kw_only=True, tag="ephemeral"):
    """A mark: how many there may be, and in which order, :func:`problems` says."""

    ttl: Literal["5m", "1h"] = "5m"


class Block(Strict, kw_only=True):
    """What most blocks share."""

    cache_control: CacheControl | None = None


class Text(Block, kw_only=True, tag="text"):
    """Text; the vendor refuses an empty one."""

    text: Annotated[str, Meta(min_length=1)]


class Source(Strict, kw_only=True, tag="base64"):
    """Where an image is from."""

    media_type: Literal["image/jpeg", "image/png", "image/gif", "image/webp"]
    data: str


class Image(Block, kw_only=True, tag="image"):
    """An image."""

    source: Source


class Thinking(Strict, kw_only=True, tag="thinking"):
    """Signed thinking."""

    thinking: str
    signature: str


class Redacted(Strict, kw_only=True, tag="redacted_thinking"):
    """Thinking nobody may read."""

    data: str


class ToolUse(Block, kw_only=True, tag="tool_use"):
    """A call."""

    id: Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]+$")]
    name: Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,128}$")]
    input: dict[str, Any]


class ToolResult(Block, kw_only=True, tag="tool_result"):
    """What a call gave."""

    tool_use_id: Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]+$")]
    content: str | list[Text | Image] = ""
    is_error: bool = False


class InputMessage(Strict, kw_only=True):
    """One turn."""

    role: Literal["user", "assistant"]
    content: Annotated[str, Meta(min_length=1)] | list[Text | Image | Thinking | Redacted | ToolUse | ToolResult]

    @property
    def blocks(self) -> list[Any]:
        """Text alone is one block."""
        return [Text(text=self.content)] if isinstance(self.content, str) else self.content


class Adaptive(Strict, kw_only=True, tag="adaptive"):
    """The model decides how much to think."""

    display: Literal["summarized", "omitted"] | None = None


class Enabled(Strict, kw_only=True, tag="enabled"):
    """Thinking with a budget."""

    budget_tokens: Annotated[int, Meta(ge=1024)]
    display: Literal["summarized", "omitted"] | None = None


class Disabled(Strict, kw_only=True, tag="disabled"):
    """No thinking."""


class BetweenTools(Strict, kw_only=True, tag="between_tools"):
    """No thinking but notes between calls."""


class Format(Strict, kw_only=True, tag="json_schema"):
    """A schema that the answer follows."""

    schema: dict[str, Any]


class OutputConfig(Strict, kw_only=True):
    """What the answer is like."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: Format | None = None


class Tool(Block, kw_only=True):
    """A tool of the client."""

    name: Annotated[str, Meta(pattern="^[a-zA-Z0-9_-]{1,128}$")]
    input_schema: dict[str, Any]
    description: str = ""
    strict: bool = False
    type: Literal["custom"] | None = None


class Auto(Strict, kw_only=True, tag="auto"):
    """The model decides."""

    disable_parallel_tool_use: bool = False


class AnyTool(Strict, kw_only=True, tag="any"):
    """Some call, whichever."""

    disable_parallel_tool_use: bool = False


class Named(Strict, kw_only=True, tag="tool"):
    """A call of one tool."""

    name: str
    disable_parallel_tool_use: bool = False


class NoTool(Strict, kw_only=True, tag="none"):
    """No call."""


class MessagesRequest(Strict, kw_only=True):
    """The body of ``POST /v1/messages``."""

    model: str
    max_tokens: Annotated[int, Meta(ge=1)]
    messages: Annotated[list[InputMessage], Meta(min_length=1)]
    system: str | list[Text] = ""
    stop_sequences: list[Annotated[str, Meta(min_length=1)]] = []
    stream: bool = False
    thinking: Adaptive | Enabled | Disabled | BetweenTools | None = None
    output_config: OutputConfig = field(default_factory=OutputConfig)
    tools: list[Tool] = []
    tool_choice: Auto | AnyTool | Named | NoTool | None = None
    metadata: dict[Literal["user_id"], str | None] | None = None
    service_tier: Literal["auto", "standard_only"] = "auto"
    cache_control: CacheControl | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None

    @property
    def marks(self) -> list[CacheControl]:
        """Marks of caches, in the order of the prompt; the request's own is on its last block."""
        blocks: list[Any] = [*self.tools, *([] if isinstance(self.system, str) else self.system)]
        for block in (block for message in self.messages for block in message.blocks):
            inner = block.content if isinstance(block, ToolResult) and not isinstance(block.content, str) else []
            blocks += [*inner, block]
        return [mark for block in [*blocks, self] if (mark := getattr(block, "cache_control", None)) is not None]


def problems(request: MessagesRequest, model: Model, version: str) -> Iterator[str]:
    """What the vendor would refuse, in its words or close to them."""
    if request.max_tokens > model.ceiling:
        yield f"max_tokens: {request.max_tokens} > {model.ceiling}, which is the maximum for {model.id}"
    yield from _sampling_problems(request, model, version)
    yield from _thinking_problems(request, model)
    yield from _tool_problems(request, model)
    yield from _history_problems(request, model)
    times = [mark.ttl for mark in request.marks]
    if len(times) > 4:
        yield f"A maximum of 4 blocks with cache_control may be provided. Found {len(times)}."
    if times != sorted(times):
        yield "a ttl='1h' cache_control block must not come after a ttl='5m' cache_control block"
    if request.output_config.format and not _closed(request.output_config.format.schema):
        yield "output_config.format.schema: For 'object' type, 'additionalProperties' must be explicitly set to false"


def _sampling_problems(request: MessagesRequest, model: Model, version: str) -> Iterator[str]:
    given = [name for name in ("temperature", "top_p", "top_k") if getattr(request, name) is not None]
    if given and version != VERSIONS[0]:
        yield f"{given[0]}: Extra inputs are not permitted"
    if given and not model.sampling:
        yield f"{given[0]}: is not supported for this model"
    if {"temperature", "top_p"} <= set(given):
        yield "`temperature` and `top_p` cannot both be specified for this model"
    odd = request.temperature not in (None, 1) or request.top_k is not None or (request.top_p or 1) < 0.95
    if odd and isinstance(request.thinking, Adaptive | Enabled):
        yield "`temperature` may only be set to 1 when thinking is enabled, `top_k` must be unset"


def _thinking_problems(request: MessagesRequest, model: Model) -> Iterator[str]:
    effort = request.output_config.effort
    if effort is not None and effort not in model.efforts:
        yield f"output_config.effort: {effort} is not supported for this model"
    if request.thinking is None:
        return
    kind = str(request.thinking.__struct_config__.tag)
    if kind not in model.thinking:
        yield f'"thinking.type.{kind}" is not supported for this model'
    if kind == "disabled" and effort in ("xhigh", "max"):
        yield "thinking: disabled is not allowed at this effort"
    if isinstance(request.thinking, Enabled) and request.thinking.budget_tokens >= request.max_tokens:
        yield "`max_tokens` must be greater than `thinking.budget_tokens`"
    if isinstance(request.tool_choice, AnyTool | Named) and kind in ("adaptive", "enabled"):
        yield "Thinking may not be enabled when tool_choice forces tool use"


def _tool_problems(request: MessagesRequest, model: Model) -> Iterator[str]:
    names = [tool.name for tool in request.tools]
    if len(set(names)) != len(names):
        yield "tools: Tool names must be unique"
    for tool in request.tools:
        if tool.input_schema.get("type") != "object":
            yield f"tools.{tool.name}.input_schema.type: Field required"
    if request.tool_choice is not None and not names:
        yield "tool_choice: may only be specified while providing tools"
    if isinstance(request.tool_choice, Named) and request.tool_choice.name not in names:
        yield f"tool_choice: Tool '{request.tool_choice.name}' not found in provided tools"
    if isinstance(request.tool_choice, AnyTool | Named) and not model.forced_tools:
        yield "tool_choice: forced tool use is not supported for this model"


def _history_problems(request: MessagesRequest, model: Model) -> Iterator[str]:
    if request.messages[-1].role == "assistant" and not model.prefill:
        yield "This model does not support assistant message prefill"
    open_calls: set[str] = set()
    for message in request.messages:
        blocks = message.blocks
        results = [block.tool_use_id for block in blocks if isinstance(block, ToolResult)]
        if not blocks:
            yield "messages: content must be non-empty"
        if any(isinstance(block, Text) and block.text.isspace() for block in blocks):
            yield "messages: text content blocks must contain non-whitespace text"
        if set(results) != open_calls or len(set(results)) != len(results):
            yield "messages: each `tool_use` block must have one `tool_result` block in the next message, and no other"
        if not all(isinstance(block, ToolResult) for block in blocks[: len(results)]):
            yield "messages: `tool_result` blocks must come first"
        only = (Text, Image, ToolResult) if message.role == "user" else (Text, Thinking, Redacted, ToolUse)
        if not all(isinstance(block, only) for block in blocks):
            yield f"messages: a block that a message of {message.role} cannot have"
        if not all(_is_base64(block.source.data) for block in blocks if isinstance(block, Image)):
            yield "messages: image.source.base64: invalid base64 data"
        open_calls = {block.id for block in blocks if isinstance(block, ToolUse)}


def _is_base64(text: str) -> bool:
    try:
        return bool(base64.b64decode(text, validate=True))
    except binascii.Error:
        return False


def _closed(schema: Any) -> bool:
    if isinstance(schema, list):
        return all(_closed(value) for value in schema)
    if not isinstance(schema, dict):
        return True
    here = schema.get("type") != "object" or schema.get("additionalProperties") is False
    return here and all(_closed(value) for value in schema.values())
