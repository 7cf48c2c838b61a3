"""The body of ``POST /v1/chat/completions``: every field that is taken, and what it becomes.

A field that is not here is refused by name. A field of type ``None`` is one of OpenAI's that is not supported: absent
or null is fine, a value is refused. ``docs/http.md`` lists both.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any, Final, Literal

from msgspec import Struct

from modeld.errors import InvalidRequestError, NotSupportedError
from modeld.http.bodies import check_depth
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


class _Strict(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    pass


class CacheMark(_Strict, frozen=True):
    """Where a vendor's cache may end. Here every beginning is kept: it is understood, and changes nothing."""

    mode: Literal["explicit"]
    ttl: Literal["30m", "12h"] | None = None


class _Ephemeral(_Strict, frozen=True):
    """The same as Anthropic writes it, which many programs send to everybody."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class _Text(_Strict, tag_field="type", tag="text", frozen=True):
    text: str
    prompt_cache_breakpoint: CacheMark | None = None
    cache_control: _Ephemeral | None = None


class _Refused(_Strict, tag_field="type", tag="refusal", frozen=True):
    refusal: str


class _ImageUrl(_Strict, frozen=True):
    url: str
    detail: Literal["auto"] | None = None


class _Image(_Strict, tag_field="type", tag="image_url", frozen=True):
    image_url: _ImageUrl
    prompt_cache_breakpoint: CacheMark | None = None
    cache_control: _Ephemeral | None = None


class _CalledFunction(_Strict, frozen=True):
    """``parsed_arguments`` is what OpenAI's client makes of ``arguments``, and sends back with them."""

    name: str
    arguments: str
    parsed_arguments: Any = None


class _Called(_Strict, frozen=True):
    id: str
    function: _CalledFunction
    type: Literal["function"] = "function"
    index: int | None = None


class _System(_Strict, tag_field="role", tag="system", frozen=True):
    content: str | list[_Text]
    name: None = None


class _Developer(_Strict, tag_field="role", tag="developer", frozen=True):
    content: str | list[_Text]
    name: None = None


class _User(_Strict, tag_field="role", tag="user", frozen=True):
    content: str | list[_Text | _Image]
    name: None = None


class _Assistant(_Strict, tag_field="role", tag="assistant", frozen=True):
    content: str | list[_Text | _Refused] | None = None
    reasoning_content: str | None = None
    refusal: str | None = None
    tool_calls: list[_Called] | None = None
    annotations: list[None] | None = None
    parsed: Any = None
    name: None = None
    audio: None = None
    function_call: None = None


class _ToolResult(_Strict, tag_field="role", tag="tool", frozen=True):
    content: str | list[_Text]
    tool_call_id: str


class _Function(_Strict, frozen=True):
    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class _Tool(_Strict, frozen=True):
    function: _Function
    type: Literal["function"]
    cache_control: _Ephemeral | None = None


class _Named(_Strict, frozen=True):
    name: str


class _NamedTool(_Strict, frozen=True):
    function: _Named
    type: Literal["function"] = "function"


class _ChooseOne(_Strict, tag_field="type", tag="function", frozen=True):
    function: _Named


class _Allowed(_Strict, frozen=True):
    mode: Literal["auto", "required"]
    tools: list[_NamedTool]


class _ChooseAmong(_Strict, tag_field="type", tag="allowed_tools", frozen=True):
    allowed_tools: _Allowed


class _AnyText(_Strict, tag_field="type", tag="text", frozen=True):
    pass


class _AnyObject(_Strict, tag_field="type", tag="json_object", frozen=True):
    pass


class _Schema(_Strict, frozen=True):
    name: str
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class _FittingSchema(_Strict, tag_field="type", tag="json_schema", frozen=True):
    json_schema: _Schema


class PlainStreamOptions(_Strict, frozen=True):
    """``include_obfuscation`` is only false: there is none."""

    include_obfuscation: bool | None = None


class StreamOptions(PlainStreamOptions, frozen=True):
    """Also with ``include_usage``."""

    include_usage: bool | None = None


class CacheOptions(_Strict, frozen=True):
    """Understood like :class:`CacheMark`."""

    mode: Literal["implicit", "explicit"] | None = None
    ttl: Literal["30m"] | None = None


class ChatRequest(_Strict, frozen=True):
    """See the module. ``top_k`` and what follows are fields of modeld's own."""

    model: str
    messages: list[_System | _Developer | _User | _Assistant | _ToolResult]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
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
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    think: bool | str | None = None
    shift: bool | None = None
    truncate: bool | None = None

    def conversation(self, *, images: bool) -> list[Message]:
        """The messages.

        :param images: whether what answers may take pictures.
        :raises InvalidRequestError: a picture is none. :raises NotSupportedError: there is one.
        """
        names: dict[str, str] = {}
        found = []
        for index, message in enumerate(self.messages):
            found.append(_message(message, names, images, f"messages[{index}].content"))
            names |= {call.id: call.function.name for call in found[-1].tool_calls}
        return found

    def config(self) -> ChatConfig:
        """The options.

        :raises InvalidRequestError: a value is out of its range, or two contradict. :raises NotSupportedError: one of
            them cannot be had.
        """
        self._check()
        tools, choice = self._tools()
        return ChatConfig(
            temperature=self.temperature,
            max_tokens=self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ()),
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            repeat_penalty=self.repeat_penalty,
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

    def _check(self) -> None:
        if self.store:
            raise NotSupportedError("store is not supported here; leave it out", feature="store")
        pairs = (("max_tokens", "max_completion_tokens"), ("think", "reasoning_effort"), ("user", "safety_identifier"))
        for one, other in pairs:
            values = (getattr(self, one), getattr(self, other))
            if None not in values and values[0] != values[1]:
                raise InvalidRequestError(f"{one} and {other} say the same: give one of them", parameter=one)
        check_stream_options(self.stream_options, self.stream)

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
                text = f"tool_choice allows {sorted(missing)[0]!r}, which is none of the tools"
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


def check_stream_options(options: PlainStreamOptions | None, stream: bool | None) -> None:
    """:raises InvalidRequestError: they are of no stream. :raises NotSupportedError: one of them cannot be had."""
    if options is None:
        return
    if not stream:
        raise InvalidRequestError("stream_options are for streams: set stream", parameter="stream_options")
    if options.include_obfuscation:
        name = "stream_options.include_obfuscation"
        raise NotSupportedError(f"{name} is not supported here; leave it out", feature=name)


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
