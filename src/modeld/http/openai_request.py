"""The body of ``POST /v1/chat/completions``: every field that is taken, and what it becomes.

A field that is not here is refused by name. A field of type ``None`` is one of OpenAI's that is not supported: absent
or null is fine, a value is refused. ``docs/http.md`` lists both.
"""

from __future__ import annotations

import base64
import binascii
import re
import reprlib
from typing import Any, Final, Literal

from modeld.errors import InvalidRequestError, NotSupportedError
from modeld.http.bodies import check_depth
from modeld.http.cache_marks import CacheWishes, Ephemeral, count_marks, laid_out
from modeld.http.openai_sampling import Sampling, Strict
from modeld.types import (
    ChatConfig,
    FunctionCall,
    FunctionTool,
    ImagePart,
    Message,
    ResponseFormat,
    Tool,
    ToolCall,
)

_IMAGE_URL: Final = re.compile(r"data:(image/[a-z0-9.+-]{1,40});base64,(.*)", re.DOTALL | re.IGNORECASE)
_EFFORT: Final = {"none": "off", "max": "xhigh"}


class CacheMark(Strict, frozen=True):
    """Where OpenAI's cache may end. Here every beginning is kept: it is understood, and changes nothing."""

    mode: Literal["explicit"]
    ttl: Literal["30m", "12h"] | None = None


class _AnyTextPart(Strict, frozen=True, kw_only=True):
    text: str
    prompt_cache_breakpoint: CacheMark | None = None
    cache_control: Ephemeral | None = None


class _Text(_AnyTextPart, tag_field="type", tag="text", frozen=True, kw_only=True):
    pass


class _OnlyText(_AnyTextPart, frozen=True, kw_only=True):
    """Where nothing else can stand: there msgspec would not ask for a tag."""

    type: Literal["text"]


class _Refused(Strict, tag_field="type", tag="refusal", frozen=True):
    refusal: str


class _ImageUrl(Strict, frozen=True):
    url: str
    detail: Literal["auto"] | None = None


class _Image(Strict, tag_field="type", tag="image_url", frozen=True):
    image_url: _ImageUrl
    prompt_cache_breakpoint: CacheMark | None = None
    cache_control: Ephemeral | None = None


class _CalledFunction(Strict, frozen=True):
    """``parsed_arguments`` is what OpenAI's client makes of ``arguments``, and sends back with them."""

    name: str
    arguments: str
    parsed_arguments: Any = None


class _Called(Strict, frozen=True):
    id: str
    function: _CalledFunction
    type: Literal["function"] = "function"
    index: int | None = None


class _System(Strict, tag_field="role", tag="system", frozen=True):
    content: str | list[_OnlyText]
    name: None = None


class _Developer(Strict, tag_field="role", tag="developer", frozen=True):
    content: str | list[_OnlyText]
    name: None = None


class _User(Strict, tag_field="role", tag="user", frozen=True):
    content: str | list[_Text | _Image]
    name: None = None


class _Assistant(Strict, tag_field="role", tag="assistant", frozen=True):
    content: str | list[_Text | _Refused] | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[_Called] | None = None
    annotations: list[None] | None = None
    parsed: Any = None
    name: None = None
    audio: None = None
    function_call: None = None


class _ToolResult(Strict, tag_field="role", tag="tool", frozen=True):
    content: str | list[_OnlyText]
    tool_call_id: str


class _Function(Strict, frozen=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Tool(Strict, frozen=True):
    function: _Function
    type: Literal["function"]
    cache_control: Ephemeral | None = None


class _Named(Strict, frozen=True):
    name: str


class _NamedTool(Strict, frozen=True):
    function: _Named
    type: Literal["function"] = "function"


class _ChooseOne(Strict, tag_field="type", tag="function", frozen=True):
    function: _Named


class _Allowed(Strict, frozen=True):
    mode: Literal["auto", "required"]
    tools: list[_NamedTool]


class _ChooseAmong(Strict, tag_field="type", tag="allowed_tools", frozen=True):
    allowed_tools: _Allowed


class _AnyText(Strict, tag_field="type", tag="text", frozen=True):
    pass


class _AnyObject(Strict, tag_field="type", tag="json_object", frozen=True):
    pass


class _Schema(Strict, frozen=True):
    name: str
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class _FittingSchema(Strict, tag_field="type", tag="json_schema", frozen=True):
    json_schema: _Schema


class CacheOptions(Strict, frozen=True):
    """Understood like :class:`CacheMark`."""

    mode: Literal["implicit", "explicit"] | None = None
    ttl: Literal["30m"] | None = None


class ChatRequest(Sampling, frozen=True, kw_only=True):
    """See the module. ``think`` and what follows are fields of modeld's own."""

    model: str
    messages: list[_System | _Developer | _User | _Assistant | _ToolResult]
    max_completion_tokens: int | None = None
    tools: list[_Tool] | None = None
    tool_choice: Literal["none", "auto", "required"] | _ChooseOne | _ChooseAmong | None = None
    parallel_tool_calls: bool | None = None
    response_format: _AnyText | _AnyObject | _FittingSchema | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    n: Literal[1] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, str] | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: CacheOptions | None = None
    prompt_cache_retention: Literal["in_memory", "24h"] | None = None
    store: bool | None = None
    service_tier: Literal["auto", "default"] | None = None
    modalities: list[Literal["text"]] | None = None
    verbosity: Literal["medium"] | None = None
    audio: None = None
    function_call: None = None
    functions: None = None
    logit_bias: None = None
    moderation: None = None
    prediction: None = None
    web_search_options: None = None
    think: bool | str | None = None
    cache_control: Ephemeral | None = None
    shift: bool | None = None
    truncate: bool | None = None

    def conversation(self, *, images: bool, marks: bool = False) -> list[Message]:
        """The messages.

        :param images: whether what answers may take pictures. :param marks: it is told of marks of caches.
        :raises InvalidRequestError: a picture is none. :raises NotSupportedError: there is one.
        """
        names: dict[str, str] = {}
        found = []
        for index, message in enumerate(self.messages):
            made = _message(message, names, images, f"messages[{index}].content")
            found.append(laid_out(made, message.content) if marks else made)
            names |= {call.id: call.function.name for call in found[-1].tool_calls}
        return found

    def config(self) -> ChatConfig:
        """The options.

        :raises InvalidRequestError: a value is out of its range, or two contradict. :raises NotSupportedError: one of
            them cannot be had.
        """
        self._check()
        tools, choice = self._tools()
        return self.sampling().replace(
            max_tokens=self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens,
            tools=tools,
            tool_choice=choice,
            parallel_tool_calls=self.parallel_tool_calls,
            response_format=self._format(),
            think=self._think(),
            shift=self.shift,
            truncate=self.truncate,
            logprobs=self.logprobs,
            top_logprobs=self.top_logprobs,
        )

    @property
    def wishes(self) -> CacheWishes:
        """What it says of caches."""
        tools = {tool.function.name: tool.cache_control for tool in self.tools or () if tool.cache_control is not None}
        options = self.prompt_cache_options
        return CacheWishes(
            whole=self.cache_control,
            tools=tools,
            marks=len(tools) + count_marks(self.messages) + (self.cache_control is not None),
            points=count_marks(self.messages, "prompt_cache_breakpoint") + (options is not None),
            key=self.prompt_cache_key,
            retention=self.prompt_cache_retention,
        )

    def _check(self) -> None:
        if self.store:
            raise NotSupportedError("store is not supported here; leave it out", feature="store")
        pairs = (("max_tokens", "max_completion_tokens"), ("think", "reasoning_effort"), ("user", "safety_identifier"))
        for one, other in pairs:
            values = (getattr(self, one), getattr(self, other))
            if None not in values and values[0] != values[1]:
                raise InvalidRequestError(f"{one} and {other} say the same: give one of them", parameter=one)

    def _think(self) -> str | None:
        if self.think is not None:
            return str(self.think)
        return think_of(self.reasoning_effort)

    def _tools(self) -> tuple[tuple[Tool, ...], str | None]:
        tools = tuple(_tool(tool, index) for index, tool in enumerate(self.tools or ()))
        choice = self.tool_choice
        if isinstance(choice, _ChooseOne):
            return tools, choice.function.name
        if isinstance(choice, _ChooseAmong):
            names = [tool.function.name for tool in choice.allowed_tools.tools]
            if missing := set(names) - {tool.function.name for tool in tools}:
                text = f"tool_choice allows {reprlib.repr(min(missing))}, which is none of the tools"
                raise InvalidRequestError(text, parameter="tool_choice")
            return tuple(tool for tool in tools if tool.function.name in names), choice.allowed_tools.mode
        return tools, choice

    def _format(self) -> ResponseFormat | None:
        wanted = self.response_format
        if isinstance(wanted, _AnyObject):
            return ResponseFormat()
        if not isinstance(wanted, _FittingSchema):
            return None
        schema = wanted.json_schema
        check_depth(schema.schema, "response_format.json_schema.schema")
        return ResponseFormat(schema=schema.schema, name=schema.name, strict=schema.strict is not False)


def think_of(effort: str | None) -> str | None:
    """The level of thinking that OpenAI calls so."""
    return _EFFORT.get(effort or "", effort)


def _message(
    message: _System | _Developer | _User | _Assistant | _ToolResult, names: dict[str, str], images: bool, place: str
) -> Message:
    match message:
        case _System(content=content) | _Developer(content=content):
            return Message("system", _text(content))
        case _User(content=content):
            return Message("user", _text(content), images=_pictures(content, images, place))
        case _ToolResult(content=content, tool_call_id=id):
            return Message("tool", _text(content), tool_call_id=id, name=names.get(id, ""))
        case _Assistant():
            calls = message.tool_calls or ()
            return Message(
                "assistant",
                _text(message.content) or message.refusal or "",
                thinking=message.reasoning_content or "",
                tool_calls=tuple(ToolCall(c.id, FunctionCall(c.function.name, c.function.arguments)) for c in calls),
            )


def _text(content: Any) -> str:
    """Parts are joined as they are: a break between them would be a token that nobody wrote."""
    if isinstance(content, str):
        return content
    pieces = [part.refusal if isinstance(part, _Refused) else getattr(part, "text", "") for part in content or ()]
    return "".join(pieces)


def _pictures(content: str | list[_Text | _Image], wanted: bool, place: str) -> tuple[ImagePart, ...]:
    found = []
    for index, part in enumerate(content if isinstance(content, list) else ()):
        if not isinstance(part, _Image):
            continue
        where = f"{place}[{index}].image_url"
        if not wanted:
            raise NotSupportedError(f"{where}: models of this node take no images", feature=where)
        found.append(picture(part.image_url.url, where))
    return tuple(found)


def picture(url: str, where: str) -> ImagePart:
    """The picture in a ``data:`` URL. :raises InvalidRequestError: it is none; ``where`` it stands."""
    match = _IMAGE_URL.fullmatch(url)
    if match is None:
        text = f"{where}: send the picture itself, as data:image/...;base64,...; the node fetches nothing"
        raise InvalidRequestError(text, parameter=where)
    try:
        return ImagePart(base64.b64decode(match[2], validate=True), match[1].lower())
    except binascii.Error:
        raise InvalidRequestError(f"{where} is no base64", parameter=where) from None


def _tool(tool: _Tool, index: int) -> Tool:
    function = tool.function
    check_depth(function.parameters, f"tools[{index}].function.parameters")
    return Tool(FunctionTool(function.name, function.description or "", function.parameters or {}, function.strict))
