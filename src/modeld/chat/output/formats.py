"""Which formats of thinking and tool calls there are, as data, and which of them a chat template speaks.

A format is chosen by what the template's source mentions (*signs*), never by the model's name.
``docs/output-formats.md`` is the table for readers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

from msgspec import Struct, structs

S = TypeVar("S", bound=Struct)
Special = Callable[[str], bool]
"""Whether the model's vocabulary has one special token for just this text."""

THINK_TAGS: Final = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
    ("<thinking>", "</thinking>"),
    ("<reasoning>", "</reasoning>"),
)
"""Pairs of tags around thinking."""

DROPPED: Final = (
    "<|START_RESPONSE|>",
    "<|END_RESPONSE|>",
    "<|START_TEXT|>",
    "<|END_TEXT|>",
    "<response>",
    "</response>",
)
"""Markers around the answer itself. They leave the text where the template mentions them."""


class JsonBody(Struct, frozen=True, tag=True):
    """An object with name and arguments, or a list of them. Where there are several keys, the first is the model's own.

    :param listed: the model itself writes a list, if of one call.
    :param late_id: the id may come last, so a call is only told when its object is complete.
    """

    names: tuple[str, ...] = ("name",)
    arguments: tuple[str, ...] = ("arguments", "parameters")
    ids: tuple[str, ...] = ()
    late_id: bool = False
    listed: bool = False


class PythonBody(Struct, frozen=True, tag=True):
    """Calls as Python writes them, with keyword arguments: ``[f(a=1), g()]``, or one after the other."""


class TaggedBody(Struct, frozen=True, tag=True):
    """A name, then pairs of key and value, each between two texts. Values are text, or JSON where the schema says so.

    :param trims: one line break on either side of a value is not part of it.
    """

    before_name: str
    after_name: str
    before_key: str
    after_key: str
    before_value: str
    after_value: str
    end: str
    trims: bool


class SectionBody(Struct, frozen=True, tag=True):
    """Any number of ``begin name separator {...} end``; or, after the separator, a name and a fenced block.

    :param numbered: the name is an id as well: ``functions.name:0``.
    """

    begin: str
    separator: str
    end: str
    numbered: bool = False


class NamedBody(Struct, frozen=True, tag=True):
    """``name [CALL_ID]id [ARGS]{...}``, or a list of JSON objects."""

    before_id: str
    before_arguments: str
    listed: JsonBody


Body = JsonBody | PythonBody | TaggedBody | SectionBody | NamedBody


class CallFormat(Struct, frozen=True, kw_only=True):
    """How a model writes tool calls.

    :param signs: one of them is in the source of each template that speaks it.
    :param open: what a call, or several, begins with. :param close: ends with; empty: the body says where it ends.
    :param bare: without ``open``, an answer that begins with a call of an offered tool is one too.
    :param line: one line break before ``open`` is part of it.
    :param between: stands between two such spans; ``None``: all calls are in one.
    :param call_id: of a call to which the model gives none; the place is its number, from 1.
    """

    name: str
    signs: tuple[str, ...]
    open: str
    close: str = ""
    body: Body
    bare: bool = False
    line: bool = False
    between: str | None = None
    call_id: str = "call_{}"

    @property
    def prose(self) -> bool:
        """The tag is one that people write about: it must be followed by what looks like a call."""
        return is_tag(self.open)


class ChannelFormat(Struct, frozen=True, kw_only=True):
    """A whole answer in messages with headers: ``start assistant channel NAME to=functions.f message ... end``.

    :param constrain: may stand before the name of a call's notation. :param call: of the ends, the one behind a call.
    """

    name: str
    signs: tuple[str, ...]
    start: str
    channel: str
    constrain: str
    message: str
    ends: tuple[str, ...]
    call: str
    call_id: str = "call_{}"


class Dialect(Struct, frozen=True):
    """What one template speaks.

    :param thinking: closing tag by opening tag. :param dropped: markers that leave the text.
    """

    thinking: dict[str, str]
    calls: tuple[CallFormat, ...]
    channels: ChannelFormat | None
    dropped: tuple[str, ...]


_QWEN_TAGS: Final = TaggedBody(
    before_name="<function=",
    after_name=">",
    before_key="<parameter=",
    after_key=">",
    before_value="",
    after_value="</parameter>",
    end="</function>",
    trims=True,
)
_GLM_TAGS: Final = TaggedBody(
    before_name="",
    after_name="",
    before_key="<arg_key>",
    after_key="</arg_key>",
    before_value="<arg_value>",
    after_value="</arg_value>",
    end="",
    trims=False,
)
_MINIMAX_TAGS: Final = TaggedBody(
    before_name='<invoke name="',
    after_name='">',
    before_key='<parameter name="',
    after_key='">',
    before_value="",
    after_value="</parameter>",
    end="</invoke>",
    trims=True,
)

CALL_FORMATS: Final = (
    CallFormat(
        name="qwen3-coder",
        signs=("<function=",),
        open="<tool_call>",
        close="</tool_call>",
        body=_QWEN_TAGS,
        line=True,
    ),
    CallFormat(
        name="qwen3-coder-function",
        signs=("<function=",),
        open="<function=",
        body=structs.replace(_QWEN_TAGS, before_name=""),
        line=True,
    ),
    CallFormat(name="glm", signs=("<arg_key>",), open="<tool_call>", close="</tool_call>", body=_GLM_TAGS, line=True),
    CallFormat(
        name="hermes",
        signs=("<tool_call>",),
        open="<tool_call>",
        close="</tool_call>",
        body=JsonBody(),
        line=True,
        between="\n",
    ),
    CallFormat(
        name="minimax",
        signs=("<minimax:tool_call>",),
        open="<minimax:tool_call>",
        close="</minimax:tool_call>",
        body=_MINIMAX_TAGS,
        line=True,
    ),
    CallFormat(
        name="seed",
        signs=("<seed:tool_call>",),
        open="<seed:tool_call>",
        close="</seed:tool_call>",
        body=_QWEN_TAGS,
        line=True,
    ),
    CallFormat(
        name="mistral",
        signs=("[TOOL_CALLS]",),
        open="[TOOL_CALLS]",
        body=NamedBody(
            before_id="[CALL_ID]",
            before_arguments="[ARGS]",
            listed=JsonBody(ids=("id",), late_id=True, listed=True),
        ),
        between="",
        call_id="call{:05}",  # its templates want nine letters and digits
    ),
    CallFormat(
        name="deepseek",
        signs=("<｜tool▁calls▁begin｜>",),
        open="<｜tool▁calls▁begin｜>",
        close="<｜tool▁calls▁end｜>",
        body=SectionBody(begin="<｜tool▁call▁begin｜>", separator="<｜tool▁sep｜>", end="<｜tool▁call▁end｜>"),
    ),
    CallFormat(
        name="kimi",
        signs=("<|tool_calls_section_begin|>",),
        open="<|tool_calls_section_begin|>",
        close="<|tool_calls_section_end|>",
        body=SectionBody(
            begin="<|tool_call_begin|>",
            separator="<|tool_call_argument_begin|>",
            end="<|tool_call_end|>",
            numbered=True,
        ),
    ),
    CallFormat(
        name="command-r",
        signs=("<|START_ACTION|>",),
        open="<|START_ACTION|>",
        close="<|END_ACTION|>",
        body=JsonBody(
            names=("tool_name", "name"),
            arguments=("parameters", "arguments"),
            ids=("tool_call_id",),
            listed=True,
        ),
    ),
    CallFormat(
        name="phi",
        signs=("<|/tool_call|>", "<|/tool|>"),
        open="<|tool_call|>",
        close="<|/tool_call|>",
        body=JsonBody(listed=True),
    ),
    CallFormat(name="granite", signs=("<|tool_call|>",), open="<|tool_call|>", body=JsonBody(listed=True)),
    CallFormat(
        name="lfm",
        signs=("<|tool_call_start|>",),
        open="<|tool_call_start|>",
        close="<|tool_call_end|>",
        body=PythonBody(),
    ),
    CallFormat(name="gemma-python", signs=("```tool_code",), open="```tool_code\n", close="```", body=PythonBody()),
    CallFormat(
        name="llama-python",
        signs=("func_name1(params_name1=", "<|python_start|>"),
        open="<|python_start|>",
        close="<|python_end|>",
        body=PythonBody(),
        bare=True,
    ),
    CallFormat(
        name="llama-json",
        signs=("<|python_tag|>", '"parameters": dictionary of argument name'),
        open="<|python_tag|>",
        body=JsonBody(arguments=("parameters", "arguments")),
        bare=True,
        between="; ",
    ),
)
"""Where two share what they open with, the body's first character decides; of two with one kind of body, the first."""

HARMONY: Final = ChannelFormat(
    name="harmony",
    signs=("<|channel|>",),
    start="<|start|>",
    channel="<|channel|>",
    constrain="<|constrain|>",
    message="<|message|>",
    ends=("<|end|>", "<|call|>", "<|return|>"),
    call="<|call|>",
)


def is_tag(marker: str) -> bool:
    """Whether it is written as a tag of XML is: people write about those, in prose and code."""
    return marker[:1] == "<" and marker[1:2].isalpha()


def find_dialect(template_source: str) -> Dialect:
    """The formats that a template mentions."""

    def mentions(signs: tuple[str, ...]) -> bool:
        return any(sign in template_source for sign in signs)

    calls: list[CallFormat] = []
    for call_format in CALL_FORMATS:
        taken = any(type(c.body) is type(call_format.body) and c.open == call_format.open for c in calls)
        if not taken and mentions(call_format.signs):
            calls.append(call_format)
    return Dialect(
        thinking={tags[0]: tags[1] for tags in THINK_TAGS if mentions(tags)},
        calls=tuple(calls),
        channels=HARMONY if mentions(HARMONY.signs) else None,
        dropped=tuple(marker for marker in DROPPED if marker in template_source),
    )


def in_vocabulary(value: S, marked: Callable[[str], str]) -> S:
    """The same format with each of its texts as the vocabulary has it.

    :param marked: from a text to what stands for it in the parser.
    """
    changes: dict[str, object] = {}
    for name in value.__struct_fields__:
        field = getattr(value, name)
        if isinstance(field, JsonBody | PythonBody | TaggedBody | SectionBody | NamedBody):
            changes[name] = in_vocabulary(field, marked)
        elif isinstance(field, str) and name not in ("name", "between", "call_id"):
            changes[name] = marked(field)
        elif name == "ends":
            changes[name] = tuple(map(marked, field))
    return structs.replace(value, **changes)
