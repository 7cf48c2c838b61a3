"""What a chat template can do, and how that is known."""

from __future__ import annotations

from typing import Literal

from msgspec import Struct


class TemplateFacts(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Capabilities of a chat template. Nothing is taken from the model's name.

    :param source: ``rendered``: seen in what it renders. ``declared``: its text mentions it; nobody rendered it yet.
        ``default``: the model brings no template, and these are of the default that is used.
    :param name: ``model``, or the name of the default.
    :param system: a system message appears in the prompt.
    :param tools: offered tools appear. :param tool_results: results of calls appear.
    :param parallel_tool_calls: one message may hold two calls.
    :param object_arguments: it wants the arguments of calls as an object; else as the JSON text that the model wrote.
    :param documents: documents appear.
    :param thinking: something of the following was seen.
    :param thinking_switch: thinking can be switched on and off.
    :param efforts: levels of effort that give prompts of their own.
    :param opens_thinking: with thinking on, the prompt ends in an open thinking tag.
    :param thinking_history: of earlier answers' thinking, what appears: all (``kept``), that after the last message of
        the user (``since_user``), or none (``dropped``).
    """

    source: Literal["rendered", "declared", "default"] = "rendered"
    name: str = "model"
    system: bool = False
    tools: bool = False
    tool_results: bool = False
    parallel_tool_calls: bool = False
    object_arguments: bool = False
    documents: bool = False
    thinking: bool = False
    thinking_switch: bool = False
    efforts: tuple[str, ...] = ()
    opens_thinking: bool = False
    thinking_history: Literal["dropped", "since_user", "kept"] = "dropped"
