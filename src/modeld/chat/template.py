"""A model's own Jinja chat template, rendered in a sandbox with bounds, and what rendering shows about it.

The environment is that of ``transformers.utils.chat_template_utils``: trimmed blocks, loop controls, ``tojson`` without
HTML escapes, ``raise_exception``, ``strftime_now`` and the ``generation`` tag.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from datetime import datetime
from types import BuiltinMethodType
from typing import Any, Final

import jinja2
from jinja2 import nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer
from msgspec import Struct

from modeld.chat.parser import THINK_TAGS
from modeld.errors import TemplateError
from modeld.thinking import ThinkLevel
from modeld.types import FunctionCall, FunctionTool, Message, Tool, ToolCall

CHATML: Final = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
"""The default for a model without a template: plain ChatML. It has no tools and no thinking."""

MAX_SOURCE: Final = 64 << 10
"""Characters of a template's source at most: compiling one of this size took 0.3 to 1.4 s."""
MAX_OUTPUT: Final = 16 << 20
"""Characters of a rendered prompt, and of any one string on the way, at most."""
MAX_ITEMS: Final = 1 << 20
"""Items of a list that an operator makes, at most."""
MAX_INTEGER: Final = 100_000
"""Largest integer that a filter or a string method takes; bits of a product or power at most."""
RENDER_SECONDS: Final = 0.8
"""Processor time of one render, and of all probes together, at most."""

_BUDGET: Final = " budget"  # a name that no template can write
_EFFORT: Final[dict[str, str]] = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high"}


class TemplateFacts(Struct, frozen=True, kw_only=True):
    """What rendering showed; nothing is taken from the model's name.

    :param default: the template is not the model's own.
    :param tools: offered tools appear in the prompt.
    :param thinking: ``enable_thinking`` changes the prompt, or the prompt opens thinking by itself.
    :param effort: ``reasoning_effort`` changes the prompt.
    :param system: a system message appears in the prompt.
    :param parallel_tool_calls: one message may hold two calls.
    :param opens_thinking: with thinking on, the prompt ends in an open thinking tag.
    """

    default: bool
    tools: bool
    thinking: bool
    effort: bool
    system: bool
    parallel_tool_calls: bool
    opens_thinking: bool


class ChatTemplate:
    """A compiled template. Rendering keeps no state: it may run in several threads.

    Bounded: the source, attributes (Jinja's immutable sandbox), ``range``, processor time (looked at in each loop step,
    call and operator), the output while it is made, and strings made by operators, ``replace``, ``join``, capture
    blocks and padding. Not bounded yet: one long step in C between two looks at the clock (a filter such as ``sort`` or
    ``striptags`` over a huge value), and the text of containers that hold the same value many times over.

    :param source: Jinja source; empty means the default, ChatML.
    :param bos: text of the token that begins a sequence. :param eos: of the one that ends it.
    :param engine_default: ``source`` was chosen by the engine, as the model has none of its own.
    :ivar name: ``model`` or ``default``. :ivar digest: SHA-256 of the source.
    :ivar facts: what the template can do.
    :ivar arguments_form: whether tool-call arguments are given as the model's own JSON text (``string``, kept to the
        byte) or parsed (``dict``), for templates that write a string as a quoted one.
    :raises TemplateError: the source cannot be compiled, or probing it does not end in time.
    """

    def __init__(self, source: str, *, bos: str = "", eos: str = "", engine_default: bool = False) -> None:
        default = engine_default or not source
        self.source = source or CHATML
        self.name = "default" if default else "model"
        self.digest = hashlib.sha256(self.source.encode("utf-8", "surrogatepass")).hexdigest()
        self._tokens = {"bos_token": bos, "eos_token": eos}
        self._template = _compile(self.source)
        self.arguments_form = "string"
        probe = _Prober(self, _Budget())
        self.arguments_form = probe.arguments_form()
        self.facts = probe.facts(default)

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        think: ThinkLevel = "auto",
        add_generation_prompt: bool,
    ) -> str:
        """The prompt. ``thinking`` of a message is never part of it.

        With level ``auto`` the template decides; ``off`` sets ``enable_thinking`` to false; the others set it to true
        and ``reasoning_effort`` to low, medium or high.

        :raises TemplateError: whatever went wrong; ``reason`` is the template's own message.
        """
        return self._render(messages, tools, think, add_generation_prompt, _Budget())

    def _render(
        self, messages: Sequence[Message], tools: Sequence[Tool], think: ThinkLevel, generate: bool, budget: _Budget
    ) -> str:
        variables: dict[str, Any] = {
            **self._tokens,
            "messages": [self._message(message) for message in messages],
            "tools": [_tool(tool) for tool in tools] or None,
            "add_generation_prompt": generate,
            _BUDGET: budget,
        }
        if think != "auto":
            variables["enable_thinking"] = think != "off"
        if think in _EFFORT:
            variables["reasoning_effort"] = _EFFORT[think]
        pieces: list[str] = []
        size = 0
        try:
            for piece in self._template.generate(variables):
                budget.spend()
                size += len(piece)
                _check_size(size)
                pieces.append(piece)
            prompt = "".join(pieces)
            prompt.encode()  # half a surrogate pair could not be tokenised
            return prompt
        except Exception as error:
            failure = _failed(error)
        raise failure  # out here, so that it does not keep the frames of the render and what they hold

    def _message(self, message: Message) -> dict[str, Any]:
        out: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            out["tool_calls"] = [self._call(call) for call in message.tool_calls]
        if message.tool_call_id:
            out["tool_call_id"] = message.tool_call_id
        if message.name:
            out["name"] = message.name
        return out

    def _call(self, call: ToolCall) -> dict[str, Any]:
        arguments: Any = call.function.arguments
        if self.arguments_form == "dict":
            try:
                arguments = json.loads(arguments)
            except (ValueError, RecursionError):
                pass  # what the model wrote is no JSON: it stays the string it is
        return {"id": call.id, "type": call.type, "function": {"name": call.function.name, "arguments": arguments}}


def _tool(tool: Tool) -> dict[str, Any]:
    # All keys are always there: templates read them without asking.
    function = tool.function
    parameters = function.parameters or {"type": "object", "properties": {}}
    return {
        "type": tool.type,
        "function": {"name": function.name, "description": function.description, "parameters": parameters},
    }


def _failed(error: Exception) -> TemplateError:
    reason = (str(error) or type(error).__name__)[:2000]
    if isinstance(error, jinja2.TemplateSyntaxError):
        reason = f"{reason} (line {error.lineno})"
    return TemplateError(f"the chat template failed: {reason}", reason=reason, kind=type(error).__name__)


def _compile(source: str) -> jinja2.Template:
    try:
        if len(source) > MAX_SOURCE:
            raise SecurityError(f"its source has {len(source)} characters, at most {MAX_SOURCE} are taken")
        return _Environment().from_string(source)
    except Exception as error:
        raise _failed(error) from error


class _Prober:
    """Renders small conversations and looks at what comes out. All probes share one budget."""

    def __init__(self, template: ChatTemplate, budget: _Budget) -> None:
        self._template = template
        self._budget = budget

    def _try(
        self, messages: Sequence[Message], tools: Sequence[Tool] = (), think: ThinkLevel = "auto", generate: bool = True
    ) -> str | None:
        try:
            return self._template._render(messages, tools, think, generate, self._budget)
        except TemplateError:
            if self._budget.spent():
                raise
            return None

    def arguments_form(self) -> str:
        """``string`` unless only a parsed object comes out as it went in."""
        self._template.arguments_form = "string"
        messages = _probe_calls(1)
        if _PROBE_ARGUMENTS in (self._try(messages, generate=False) or ""):
            return "string"
        self._template.arguments_form = "dict"
        parsed = self._try(messages, generate=False) or ""
        return "dict" if "probe_key" in parsed else "string"

    def facts(self, default: bool) -> TemplateFacts:
        user = Message("user", "Hello")
        tool = Tool(FunctionTool("probe_tool", "Probe.", {"type": "object", "properties": {"probe_key": {}}}))
        on, off = self._try([user], think="high"), self._try([user], think="off")
        low = self._try([user], think="low")
        opens = (on or "").rstrip().endswith(tuple(start for start, _ in THINK_TAGS))
        two = self._try(_probe_calls(2), [tool], generate=False) or ""
        return TemplateFacts(
            default=default,
            tools="probe_tool" in (self._try([user], [tool]) or ""),
            thinking=opens or on != off,
            effort=on != low,
            system="probe system" in (self._try([Message("system", "probe system"), user]) or ""),
            parallel_tool_calls="probe_1" in two and "probe_2" in two,
            opens_thinking=opens,
        )


_PROBE_ARGUMENTS: Final = '{"probe_key":  "probe value"}'  # two blanks: no serialiser writes it so


def _probe_calls(count: int) -> list[Message]:
    # Nine letters and digits: some templates refuse other ids.
    calls = tuple(ToolCall(f"probe000{n}", FunctionCall(f"probe_{n}", _PROBE_ARGUMENTS)) for n in range(1, count + 1))
    results = [Message("tool", "4", tool_call_id=call.id, name=call.function.name) for call in calls]
    return [Message("user", "Hello"), Message("assistant", tool_calls=calls), *results]


class _Budget:
    """Processor time of this thread, so that a busy machine fails no template."""

    def __init__(self) -> None:
        self._end = time.thread_time() + RENDER_SECONDS

    def spent(self) -> bool:
        return time.thread_time() > self._end

    def spend(self) -> None:
        if self.spent():
            raise SecurityError(f"it took more than {RENDER_SECONDS} s of processor time")


def _check_size(size: int, most: int = MAX_OUTPUT) -> None:
    if size > most:
        raise SecurityError(f"it made {size} characters or items, at most {most} are allowed")


def _check_integers(values: Iterable[object]) -> None:
    for value in values:
        if isinstance(value, int) and abs(value) > MAX_INTEGER:
            raise SecurityError(f"an argument is above {MAX_INTEGER}")


def _check_format(pattern: str, mark: str, values: Iterable[object]) -> None:
    if re.search(r"\d{4}|\*|\{[^}]*\{", pattern):
        raise SecurityError("a format string must not hold a width above 999 or one that is computed")
    longest = max((len(value) for value in values if isinstance(value, Sized)), default=0)
    _check_size(len(pattern) + pattern.count(mark) * (longest + 1000))


def _check_operands(operator: str, left: Any, right: Any) -> None:
    if isinstance(left, int) and isinstance(right, int):
        if operator == "*":
            _check_integers([left.bit_length() + right.bit_length()])
        elif operator == "**":
            _check_integers([right, left.bit_length() * right])
    elif operator == "%" and isinstance(left, str):
        values = right if isinstance(right, tuple) else right.values() if isinstance(right, Mapping) else (right,)
        _check_format(left, "%", values)
    elif operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
        _check_size(len(left) + len(right), MAX_OUTPUT if isinstance(left, str) else MAX_ITEMS)
    elif operator == "*":
        sized, times = (left, right) if isinstance(right, int) else (right, left)
        if isinstance(sized, Sized) and isinstance(times, int):
            _check_size(len(sized) * times, MAX_OUTPUT if isinstance(sized, str) else MAX_ITEMS)


def _join(pieces: Iterable[str], separator: str = "") -> str:
    pieces = list(pieces)
    _check_size(sum(map(len, pieces)) + len(separator) * len(pieces))
    return separator.join(pieces)


def _replace(text: str, old: str, new: str, count: int = -1) -> str:
    text = str(text)
    found = text.count(old)
    _check_size(len(text) + (found if count is None or count < 0 else min(found, count)) * len(new))
    return text.replace(old, new, -1 if count is None else count)


def _bounded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The filter with a look at the clock, and with no huge integer (a width, a count, a precision) as an argument.

    As it needs the context, Jinja does not run it on constants while it compiles, where no bound holds.
    """
    wanted = getattr(function, "jinja_pass_arg", None)

    @pass_context
    def checked(context: Context, *args: Any, **kwargs: Any) -> Any:
        context.parent[_BUDGET].spend()
        _check_integers([*args[1:], *kwargs.values()])  # the value itself may be any number
        if wanted is None:
            return function(*args, **kwargs)
        first = {"context": context, "eval_context": context.eval_ctx, "environment": context.environment}[wanted.name]
        return function(first, *args, **kwargs)

    return checked


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _filter_join(value: Iterable[Any], d: str = "", attribute: str | int | None = None) -> str:
    if attribute is not None:
        raise SecurityError("join takes no attribute here; use map(attribute=...) before it")
    return _join(map(str, value), d)


def _filter_format(value: str, *args: Any, **kwargs: Any) -> str:
    _check_format(value, "%", (*args, *kwargs.values()))
    return value % (kwargs or args)


@pass_context
def _each(context: Context, items: Iterable[Any]) -> Iterator[Any]:
    budget = context.parent[_BUDGET]
    for item in items:
        budget.spend()
        yield item


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


class _GenerationTag(Extension):
    """``{% generation %}`` marks an answer for training; here its body is simply rendered."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Bounds(NodeTransformer):
    """Leads loops and ``~`` through filters that look at the budget; templates cannot write such names."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, " each", [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(
            nodes.List(node.nodes, lineno=node.lineno), " concat", [], [], None, None, lineno=node.lineno
        )


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})
    concat = staticmethod(_join)

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, LoopControlExtension])
        self.filters.update(tojson=_tojson, join=_filter_join, replace=_replace, format=_filter_format)
        self.filters[" concat"] = _filter_join
        self.filters = {name: _bounded(function) for name, function in self.filters.items()}
        self.filters[" each"] = _each
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        del self.globals["lipsum"]

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Bounds().visit(super()._parse(source, name, filename))
        return tree

    def unsafe_undefined(self, obj: Any, attribute: str) -> jinja2.Undefined:
        raise SecurityError(f"attribute {attribute!r} of a {type(obj).__name__} is not safe")

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None

        def checked(*args: Any, **kwargs: Any) -> str:
            _check_format(value.__self__, "{", (*args, *kwargs.values()))
            return wrapped(*args, **kwargs)

        return checked

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        context.parent[_BUDGET].spend()
        _check_operands(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        __context.parent[_BUDGET].spend()
        if isinstance(__obj, BuiltinMethodType):
            _check_integers(args)
            if isinstance(text := __obj.__self__, str) and __obj.__name__ == "replace":
                return _replace(text, *args)
            if isinstance(text, str) and __obj.__name__ == "join":
                return _join(args[0], text)
        return super().call(__context, __obj, *args, **kwargs)
