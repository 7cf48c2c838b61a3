"""The bodies of ``POST /v1/messages`` and ``/v1/messages/count_tokens``: every field, and what it becomes.

As in :mod:`modeld.http.openai_request` a field that is not here is refused by name, and one of type ``None`` is one of
Anthropic's that is not supported. ``docs/http.md`` lists both.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from modeld.errors import InvalidRequestError, NotSupportedError
from modeld.http.anthropic_blocks import (
    Assistant,
    OnlyText,
    Reading,
    Redacted,
    Strict,
    System,
    User,
)
from modeld.http.anthropic_marks import is_ours
from modeld.http.bodies import check_depth, convert
from modeld.http.cache_marks import CacheWishes, Ephemeral, count_marks
from modeld.thinking import LEVELS, level_of_budget
from modeld.types import ChatConfig, FunctionTool, Message, ResponseFormat, Tool, WarningPart

LEAST_BUDGET: Final = 1024
"""Tokens, as the vendor has it."""

_Display = Literal["summarized", "omitted"]


class _Tool(Strict, frozen=True):
    name: str
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None
    cache_control: Ephemeral | None = None
    eager_input_streaming: bool | None = None
    defer_loading: Literal[False] | None = None
    allowed_callers: list[Literal["direct"]] | None = None
    input_examples: None = None


class _Auto(Strict, tag_field="type", tag="auto", frozen=True):
    disable_parallel_tool_use: bool | None = None


class _Any(Strict, tag_field="type", tag="any", frozen=True):
    disable_parallel_tool_use: bool | None = None


class _Named(Strict, tag_field="type", tag="tool", frozen=True):
    name: str
    disable_parallel_tool_use: bool | None = None


class _NoTool(Strict, tag_field="type", tag="none", frozen=True):
    pass


class _Adaptive(Strict, tag_field="type", tag="adaptive", frozen=True):
    display: _Display | None = None


class _Enabled(Strict, tag_field="type", tag="enabled", frozen=True):
    budget_tokens: int
    display: _Display | None = None


class _Disabled(Strict, tag_field="type", tag="disabled", frozen=True):
    pass


class _BetweenTools(Strict, tag_field="type", tag="between_tools", frozen=True):
    """No thinking. Notes between calls are then text, as any other."""


class _Format(Strict, frozen=True):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class _OutputConfig(Strict, frozen=True):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: _Format | None = None


class _KeepThinking(Strict, frozen=True):
    type: Literal["clear_thinking_20251015"]
    keep: Literal["all"]


class _ContextManagement(Strict, frozen=True):
    """Coding agents send it to have all thinking kept, which it is here."""

    edits: tuple[_KeepThinking, ...] = ()


class _Metadata(Strict, frozen=True):
    """``session_id`` is modeld's own."""

    user_id: str | None = None
    session_id: str | None = None


class CountRequest(Strict, frozen=True):
    """What makes a prompt. Tools are converted one by one: those of the vendor's own are refused by their type."""

    model: str
    messages: list[System | User | Assistant]
    system: str | list[OnlyText] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: _Auto | _Any | _Named | _NoTool | None = None
    thinking: _Adaptive | _Enabled | _Disabled | _BetweenTools | None = None
    output_config: _OutputConfig | None = None
    cache_control: Ephemeral | None = None
    context_management: _ContextManagement | None = None
    speed: Literal["standard"] | None = None
    user_profile_id: None = None
    workspace_id: None = None

    @property
    def shows_thinking(self) -> bool:
        """Whether its text is part of the answer."""
        return not isinstance(self.thinking, _Adaptive | _Enabled) or self.thinking.display != "omitted"

    @property
    def wishes(self) -> CacheWishes:
        """What it says of caches. :raises Refusal: a tool's mark is none."""
        given = ((index, tool) for index, tool in enumerate(self.tools or ()) if tool.get("cache_control") is not None)
        tools = {
            str(tool.get("name")): convert(tool["cache_control"], Ephemeral, f"tools[{index}].cache_control")
            for index, tool in given
        }
        blocks = count_marks(self.messages) + count_marks(self.system)
        marks = len(tools) + blocks + (self.cache_control is not None)
        return CacheWishes(whole=self.cache_control, tools=tools, marks=marks)

    def conversation(self, reading: Reading) -> list[Message]:
        """The messages. :raises ModeldError: as :meth:`Reading.conversation`."""
        if not self.messages:
            raise InvalidRequestError("messages: at least one is needed", parameter="messages")
        if isinstance(self.messages[-1], Assistant):
            text = "messages: the last one is an answer, and a node does not go on with one; end with a user's message"
            raise NotSupportedError(text, feature="messages")
        return reading.conversation(self.system, self.messages)

    def config(self, *, backend: bool) -> ChatConfig:
        """The options that make the prompt.

        :raises InvalidRequestError: a value is out of its range. :raises NotSupportedError: one cannot be had.
        """
        wanted = self.output_config.format if self.output_config else None
        check_depth(wanted and wanted.schema, "output_config.format.schema")
        choice = self.tool_choice
        alone = not isinstance(choice, _NoTool | None) and choice.disable_parallel_tool_use
        return ChatConfig(
            tools=tuple(_tool(tool, f"tools[{index}]") for index, tool in enumerate(self.tools or ())),
            tool_choice=_choice(choice),
            parallel_tool_calls=False if alone else None,
            response_format=None if wanted is None else ResponseFormat(schema=wanted.schema),
            think=self._level(backend),
        )

    def notes(self, *, backend: bool) -> list[WarningPart]:
        """What is taken and changes nothing, where that is not all there is to say."""
        found = []
        if isinstance(self.thinking, _Disabled | _BetweenTools) and self.output_config and self.output_config.effort:
            found.append(
                WarningPart("effort_without_thinking", "thinking is disabled: output_config.effort says nothing")
            )
        unread = 0 if backend else sum(_redacted(message) for message in self.messages)
        if unread:
            text = f"{unread} blocks of redacted_thinking are of somebody else's model, which alone can read them"
            found.append(WarningPart("thinking_not_read", text))
        return found

    def _level(self, backend: bool) -> str | None:
        """The lower one of budget and effort. ``adaptive`` alone is the template's choice, or a vendor's default."""
        thinking = self.thinking
        if isinstance(thinking, _Disabled | _BetweenTools):
            return "off"
        effort = self.output_config.effort if self.output_config else None
        levels: list[str] = [] if effort is None else ["xhigh" if effort == "max" else effort]
        if isinstance(thinking, _Enabled):
            if thinking.budget_tokens < LEAST_BUDGET:
                text = f"thinking.budget_tokens is at least {LEAST_BUDGET}, not {thinking.budget_tokens}"
                raise InvalidRequestError(text, parameter="thinking.budget_tokens")
            levels.append(level_of_budget(thinking.budget_tokens))
        if not levels and isinstance(thinking, _Adaptive):
            return "high" if backend else "auto"
        return min(levels, key=LEVELS.index, default=None)


class MessagesRequest(CountRequest, frozen=True, kw_only=True):
    """See the module. ``min_p`` and what follows are fields of modeld's own."""

    max_tokens: int
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    metadata: _Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    container: None = None
    diagnostics: None = None
    inference_geo: None = None
    mcp_servers: None = None
    min_p: float | None = None
    seed: int | None = None
    repeat_penalty: float | None = None
    shift: bool | None = None
    truncate: bool | None = None

    def config(self, *, backend: bool) -> ChatConfig:
        """As :meth:`CountRequest.config`, with all options."""
        thinking = self.thinking
        if isinstance(thinking, _Enabled) and thinking.budget_tokens >= self.max_tokens:
            text = f"thinking.budget_tokens is below max_tokens, not {thinking.budget_tokens} of {self.max_tokens}"
            raise InvalidRequestError(text, parameter="thinking.budget_tokens")
        return (
            super()
            .config(backend=backend)
            .replace(
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                top_p=self.top_p,
                top_k=self.top_k,
                min_p=self.min_p,
                seed=self.seed,
                repeat_penalty=self.repeat_penalty,
                stop=tuple(self.stop_sequences or ()),
                shift=self.shift,
                truncate=self.truncate,
            )
        )


def _choice(choice: _Auto | _Any | _Named | _NoTool | None) -> str | None:
    match choice:
        case _Any():
            return "required"
        case _Named(name=name):
            return name
        case _NoTool():
            return "none"
    return None if choice is None else "auto"


def _tool(given: dict[str, Any], place: str) -> Tool:
    kind = given.get("type")
    if kind not in (None, "custom"):
        text = (
            f"{place}.type: {str(kind)[:60]!r} is a tool of the vendor's own; define a custom tool with an input_schema"
        )
        raise NotSupportedError(text, feature=f"{place}.type")
    check_depth(given, place)
    tool = convert(given, _Tool, place)
    return Tool(FunctionTool(tool.name, tool.description or "", tool.input_schema, tool.strict))


def _redacted(message: System | User | Assistant) -> int:
    """Blocks of it that no model here can read."""
    if not isinstance(message, Assistant) or isinstance(message.content, str):
        return 0
    return sum(isinstance(block, Redacted) and not is_ours(block.data) for block in message.content)
