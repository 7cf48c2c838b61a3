"""How models write what is no plain answer: thinking, and tool calls. Data, chosen by what a template mentions."""

from __future__ import annotations

from typing import Final

from msgspec import Struct


class CallSyntax(Struct, frozen=True):
    """A tool call as text: ``opening``, ``begin``, the name, ``middle``, the arguments as JSON, ``end``, ``closing``.

    :param opening: the trigger: what follows it is a call. :param between: separates two calls.
    """

    opening: str
    begin: str
    middle: str
    end: str
    closing: str
    between: str


CALLS: Final = (
    # Hermes and Qwen: <tool_call>\n{"name": ..., "arguments": {...}}\n</tool_call>
    CallSyntax("<tool_call>", '\n{"name": "', '", "arguments": ', "}\n", "</tool_call>", "\n"),
)
"""A new format is one entry, the first that a template mentions counts. Its parser is :mod:`modeld.chat.parser`'s."""

THINKING: Final = (("<think>", "</think>"),)
"""Tags around thinking."""


def call_syntax(template_source: str) -> CallSyntax | None:
    """How a model with this template writes calls; ``None``: nobody here knows."""
    return next((syntax for syntax in CALLS if syntax.opening in template_source), None)
