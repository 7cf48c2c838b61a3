"""The body of ``POST /v1/responses``: every field that is taken, and what it becomes.

As in :mod:`modeld.http.openai_request` a field that is not here is refused by name, and one of type ``None`` is the
vendor's and not supported.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from modeld.errors import InvalidRequestError, NotSupportedError
from modeld.http.bodies import check_depth
from modeld.http.cache_marks import CacheWishes, count_marks
from modeld.http.openai_request import CacheOptions, think_of
from modeld.http.openai_sampling import PlainStreamOptions, Strict, check_stream_options
from modeld.http.responses_items import Conversation, Item, check_calls
from modeld.http.responses_tools import Function, Namespace, OfferedTools, echoed
from modeld.types import ChatConfig, Message, ResponseFormat, Tool

_LOGPROBS = "message.output_text.logprobs"
_SEALED = "reasoning.encrypted_content"


class _Named(Strict, frozen=True):
    name: str
    type: Literal["function"]


class _ChooseOne(Strict, frozen=True, tag="function"):
    name: str


class _ChooseAmong(Strict, frozen=True, tag="allowed_tools"):
    mode: Literal["auto", "required"]
    tools: list[_Named]


class _AnyText(Strict, frozen=True, tag="text"):
    pass


class _AnyObject(Strict, frozen=True, tag="json_object"):
    pass


class _Schema(Strict, frozen=True, tag="json_schema"):
    name: str
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class _TextConfig(Strict, frozen=True):
    format: _AnyText | _AnyObject | _Schema | None = None
    verbosity: Literal["medium"] | None = None


class _Reasoning(Strict, frozen=True):
    """``generate_summary`` is what ``summary`` was called before."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None
    context: Literal["auto"] | None = None
    mode: Literal["standard"] | None = None


class ResponsesRequest(Strict, frozen=True):
    """See the module. ``seed`` and what follows are fields of modeld's own.

    ``client_metadata`` is what Codex says of itself in every request: it is checked, and nothing depends on it.
    """

    model: str
    input: str | list[Item]
    instructions: str | None = None
    stream: bool | None = None
    stream_options: PlainStreamOptions | None = None
    max_output_tokens: Annotated[int, Meta(ge=1)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: list[Function | Namespace] | None = None
    tool_choice: Literal["none", "auto", "required"] | _ChooseOne | _ChooseAmong | None = None
    parallel_tool_calls: bool | None = None
    text: _TextConfig | None = None
    reasoning: _Reasoning | None = None
    include: list[Literal["reasoning.encrypted_content", "message.output_text.logprobs"]] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    store: bool | None = None
    background: Literal[False] | None = None
    metadata: dict[str, str] | None = None
    client_metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: CacheOptions | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    service_tier: Literal["auto", "default"] | None = None
    access_programs: None = None
    background_options: None = None
    context_management: None = None
    conversation: None = None
    image: None = None
    max_tool_calls: None = None
    moderation: None = None
    previous_response_id: None = None
    prompt: None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    shift: bool | None = None

    def conversation_of(self, *, images: bool) -> list[Message]:
        """The messages. :param images: whether what answers may take pictures.

        :raises Refusal: an item is none. :raises InvalidRequestError: there are none, or one does not fit the others.
        :raises NotSupportedError: there is a picture where none can be.
        """
        items = [Item(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        if not items:
            raise InvalidRequestError("input is empty: there is nothing to answer", parameter="input")
        messages = Conversation(self.offered, images=images).of(items, self.instructions or "")
        check_calls(messages)
        return messages

    def config(self) -> ChatConfig:
        """The options.

        :raises InvalidRequestError: a value is out of its range, or two contradict. :raises NotSupportedError: one of
            them cannot be had.
        """
        self._check()
        tools, choice = self._tools()
        reasoning = self.reasoning or _Reasoning()
        return ChatConfig(
            temperature=self.temperature,
            max_tokens=self.max_output_tokens,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            repeat_penalty=self.repeat_penalty,
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=self.parallel_tool_calls,
            response_format=self._format(),
            think=think_of(reasoning.effort),
            shift=self.shift,
            truncate=True if self.truncation == "auto" else None,
            logprobs=True if self.tells_logprobs else None,
            top_logprobs=self.top_logprobs,
        )

    @property
    def offered(self) -> OfferedTools:
        """Its tools. :raises InvalidRequestError: a namespace has two of one name."""
        return OfferedTools(self.tools or ())

    @property
    def wishes(self) -> CacheWishes:
        """What it says of caches."""
        items = () if isinstance(self.input, str) else self.input
        parts = [item.content for item in items] + [item.output for item in items]
        points = sum(count_marks(part, "prompt_cache_breakpoint") for part in parts)
        points += self.prompt_cache_options is not None
        return CacheWishes(points=points, key=self.prompt_cache_key, retention=self.prompt_cache_retention)

    @property
    def tells_logprobs(self) -> bool:
        """The answer has them."""
        return bool(self.top_logprobs) or _LOGPROBS in (self.include or ())

    @property
    def summarises(self) -> bool:
        """Thinking is looked for where summaries stand."""
        asked = self.reasoning or _Reasoning()
        return (asked.summary or asked.generate_summary) is not None

    @property
    def seals(self) -> bool:
        """Thinking comes also in the form that programs keep who keep nothing else of it."""
        return _SEALED in (self.include or ())

    def echoed(self) -> dict[str, Any]:
        """What the answer repeats of the request. Null: the engine's, or the backend's, own."""
        asked, text = self.reasoning or _Reasoning(), self.text or _TextConfig()
        return {
            "model": self.model,
            "instructions": self.instructions,
            "max_output_tokens": self.max_output_tokens,
            "max_tool_calls": None,
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": None,
            "prompt_cache_key": self.prompt_cache_key,
            "prompt_cache_retention": self.prompt_cache_retention,
            "reasoning": {"effort": asked.effort, "summary": asked.summary or asked.generate_summary},
            "safety_identifier": self.safety_identifier,
            "service_tier": "default",
            "store": False,
            "temperature": self.temperature,
            "text": {"format": _format_echoed(text.format), "verbosity": "medium"},
            "tool_choice": "auto" if self.tool_choice is None else msgspec.to_builtins(self.tool_choice),
            "tools": [echoed(tool) for tool in self.tools or ()],
            "top_logprobs": self.top_logprobs or 0,
            "top_p": self.top_p,
            "truncation": self.truncation or "disabled",
            "user": self.user,
            "background": False,
            "conversation": None,
            "prompt": None,
        }

    def _check(self) -> None:
        if self.store:
            text = "store is not supported here: nothing is kept; leave it out, and send the whole input each time"
            raise NotSupportedError(text, feature="store")
        check_stream_options(self.stream_options, self.stream)
        if self.shift and self.truncation == "auto":
            raise InvalidRequestError("truncation is disabled, or shift is off: one of them", parameter="truncation")
        if None not in (self.user, self.safety_identifier) and self.user != self.safety_identifier:
            text = "user and safety_identifier say the same: give one of them"
            raise InvalidRequestError(text, parameter="user")

    def _tools(self) -> tuple[tuple[Tool, ...], str | None]:
        offered, choice = self.offered, self.tool_choice
        if isinstance(choice, _ChooseOne):
            return tuple(offered.tools()), offered.chosen(choice.name)
        if isinstance(choice, _ChooseAmong):
            names = {offered.chosen(tool.name) for tool in choice.tools}
            if missing := names - offered.names:
                text = f"tool_choice allows {sorted(missing)[0]!r}, which is none of the tools"
                raise InvalidRequestError(text, parameter="tool_choice")
            return tuple(offered.tools(names)), choice.mode
        return tuple(offered.tools()), choice

    def _format(self) -> ResponseFormat | None:
        wanted = self.text.format if self.text is not None else None
        if isinstance(wanted, _AnyObject):
            return ResponseFormat()
        if not isinstance(wanted, _Schema):
            return None
        check_depth(wanted.schema, "text.format.schema")
        return ResponseFormat(schema=wanted.schema, name=wanted.name, strict=wanted.strict is not False)


def _format_echoed(wanted: _AnyText | _AnyObject | _Schema | None) -> dict[str, Any]:
    if isinstance(wanted, _Schema):
        told = {"type": "json_schema", "name": wanted.name, "schema": wanted.schema, "strict": wanted.strict}
        return told | ({"description": wanted.description} if wanted.description is not None else {})
    return {"type": "json_object" if isinstance(wanted, _AnyObject) else "text"}
