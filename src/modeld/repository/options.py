"""Which option a backend takes: as it is, as something else, or not at all. None is dropped.

Each wire has one :data:`Rules`: a rule for every option. It drives what is refused, the documentation
(``docs/providers.md``) and a test that sends each option and looks at the wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from msgspec import Struct

from modeld.errors import InvalidRequestError, NotSupportedError
from modeld.types import ChatConfig

OPTIONS: Final = tuple(name for name in ChatConfig.__struct_fields__)
"""Every option; :data:`FEATURES` come on top in the rules."""

FEATURES: Final = ("images", "strict_tools", "text_formats")
"""What is asked for inside of something else: ``images`` of messages, ``strict`` of a tool that is true, and a
``response_format`` of text: regex, choice or ebnf."""

Kind = Literal["native", "mapped", "error"]


class Rule(Struct, frozen=True):
    """What becomes of one option.

    :param wire: the field of the request, ``a.b`` for nested ones. :param note: what is mapped how, or why not.
    """

    kind: Kind
    wire: str = ""
    note: str = ""


Rules = Mapping[str, Rule]


def native(wire: str) -> Rule:
    """The backend has the same option under this name."""
    return Rule("native", wire)


def mapped(wire: str, note: str) -> Rule:
    """The backend has something that means the same; ``note`` says how it is written."""
    return Rule("mapped", wire, note)


def refused(note: str) -> Rule:
    """The backend has nothing of the kind; asking for it is an error."""
    return Rule("error", "", note)


def make_rules(**rules: Rule) -> Rules:
    """The rules of one wire, complete. Of what few backends have the default is an error.

    :raises InvalidRequestError: an option has no rule, or a rule no option.
    """
    wanted = {*OPTIONS, *FEATURES}
    full = {
        "timeout": Rule("mapped", "", "a deadline on this side; the request is closed when it passes"),
        "strict_tools": refused("arguments are what the model writes"),
        "text_formats": refused("a response format is JSON"),
        "prompt_cache": refused("its cache is not asked for: it has none, or keeps by itself what it keeps"),
        "prompt_cache_key": refused("it has no such key"),
        **rules,
    }
    if full.keys() != wanted:
        raise InvalidRequestError(f"rules and options differ: {sorted(full.keys() ^ wanted)}", parameter="rules")
    return full


_NOTHING: Final = {"shift": False, "truncate": False, "logprobs": False, "top_logprobs": 0}
"""What of these options asks for what always holds."""


def asks(config: ChatConfig, name: str) -> bool:
    """Whether the option is set to something that a backend must be able to do."""
    value = getattr(config, name)
    return value is not None and value != () and not (name in _NOTHING and value == _NOTHING[name])


def given(config: ChatConfig) -> dict[str, object]:
    """The options that are set."""
    values = {name: getattr(config, name) for name in OPTIONS}
    return {name: value for name, value in values.items() if value is not None and value != ()}


def check_options(backend: str, rules: Rules, config: ChatConfig) -> None:
    """Refuse what the backend has no way to do.

    ``False`` for ``shift``, ``truncate`` and ``logprobs`` asks for what always holds, and is fine everywhere.

    :raises NotSupportedError: an option is set whose rule is ``error``; ``feature`` names it.
    """
    for name, value in given(config).items():
        if rules[name].kind == "error" and asks(config, name):
            raise NotSupportedError(
                f"{backend} cannot do {name}={_short(value)}: {rules[name].note}", feature=name, backend=backend
            )
    wanted = config.response_format
    asked = {
        "strict_tools": any(tool.function.strict for tool in config.tools),
        "text_formats": wanted is not None and not wanted.kind.startswith("json"),
    }
    for name, value in asked.items():
        if value and rules[name].kind == "error":
            raise NotSupportedError(f"{backend} has no {name}: {rules[name].note}", feature=name, backend=backend)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def clamp_max_output_tokens(requested: int | None, ceiling: int) -> tuple[int | None, bool]:
    """``requested`` lowered to ``ceiling``, and whether that changed it. A ceiling of 0 is unknown and changes nothing.

    ``None``, 0 and negative numbers are no request and stay as they are.
    """
    if requested is not None and 0 < ceiling < requested:
        return ceiling, True
    return requested, False
