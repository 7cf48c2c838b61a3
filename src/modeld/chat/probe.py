"""What a chat template can do, found out by rendering small conversations and looking at what comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any, Final, Literal

from msgspec import structs

from modeld.chat.budget import Deadline
from modeld.chat.dialect import SWITCHES, Form
from modeld.chat.parser import THINK_TAGS
from modeld.errors import TemplateError
from modeld.template_facts import TemplateFacts
from modeld.types import FunctionCall, FunctionTool, Message, Tool, ToolCall

Render = Callable[[Form, Sequence[Message], Sequence[Tool], Mapping[str, Any], Deadline], str]

_USER: Final = Message("user", "probe text")
_SYSTEM: Final = Message("system", "probe system")
_TOOL: Final = Tool(FunctionTool("probe_tool", "Probe.", {"type": "object", "properties": {"probe_field": {}}}))
_LEVELS: Final = ("low", "medium", "high")
_ARGUMENTS: Final = '{"probe_key":  "probe value"}'  # two blanks: no serialiser writes it so


class Prober:
    """Probes of one template. They share one end in time; what the template refuses is seen as not there."""

    def __init__(self, render: Render, limit: Deadline) -> None:
        self._render = render
        self._limit = limit
        self._form = Form()

    def find_form(self) -> Form:
        """The dialect in which the input comes out as it went in."""
        if _USER.content not in self._try([_USER]):
            parts = structs.replace(self._form, content="parts")
            if _USER.content in self._try([_USER], form=parts):
                self._form = parts
        self._form = self._form_of_calls()
        crowd = _calls(1, content="probe said", thinking="probe thought")
        apart = structs.replace(self._form, crowded=False)
        if not self._try(crowd, [_TOOL]) and self._try(crowd, [_TOOL], form=apart):
            self._form = apart
        if not self._offers([_USER]) and self._offers([_SYSTEM, _USER]):
            self._form = structs.replace(self._form, system_for_tools=True)
        prefix = structs.replace(self._form, variables=(("tools_in_user_message", False),))
        if not self._offers([_SYSTEM]) and self._offers([_SYSTEM], prefix):
            # Tools that can stand before the first message of the user can be computed before it comes.
            self._form = prefix
        self._form = structs.replace(self._form, switches=self._switches())
        return self._form

    def _offers(self, messages: Sequence[Message], form: Form | None = None) -> bool:
        return _TOOL.function.name in self._try(messages, [_TOOL], form=form, generate=False)

    def _form_of_calls(self) -> Form:
        for silent, ids, arguments in product(("", None), ("any", "nine"), ("string", "dict")):
            form = structs.replace(self._form, silent=silent, ids=ids, arguments=arguments)
            shown = self._try(_calls(1), [_TOOL], form=form, generate=False)
            if (_ARGUMENTS if arguments == "string" else "probe_key") in shown:
                return form
        return self._form

    def _switches(self) -> tuple[str, ...]:
        def differs(name: str) -> bool:
            return self._try([_USER], given={name: True}) != self._try([_USER], given={name: False})

        return tuple(name for name in SWITCHES if differs(name))

    def facts(self, name: str) -> TemplateFacts:
        """What it can do, in the dialect that was found. ``name``: ``model``, or that of a default."""
        on = dict.fromkeys(self._form.switches, True)
        prompt = self._try([_USER], given=on)
        opens = prompt.rstrip().endswith(tuple(start for start, _ in THINK_TAGS))
        levels = {level: self._try([_USER], given={**on, "reasoning_effort": level}) for level in _LEVELS}
        distinct = {shown: level for level, shown in reversed(levels.items()) if shown}
        efforts = tuple(level for level in _LEVELS if level in distinct.values()) if len(distinct) > 1 else ()
        tools = self._offers([_USER])
        two = self._try(_calls(2), [_TOOL], generate=False)
        history = self._history(tools=tools)
        document = {"title": "probe title", "text": "probe document"}
        return TemplateFacts(
            source="rendered" if name == "model" else "default",
            name=name,
            system=_SYSTEM.content in self._try([_SYSTEM, _USER]),
            tools=tools,
            tool_results=tools and "probe result" in self._try(_calls(1), [_TOOL]),
            parallel_tool_calls=tools and "probe_1" in two and "probe_2" in two,
            object_arguments=self._form.arguments == "dict",
            documents=document["text"] in self._try([_USER], given={"documents": [document]}),
            thinking=opens or bool(self._form.switches or efforts) or history != "dropped" or self._strips(),
            thinking_switch=bool(self._form.switches),
            efforts=efforts,
            opens_thinking=opens,
            thinking_history=history,
        )

    def _history(self, *, tools: bool) -> Literal["dropped", "since_user", "kept"]:
        first = Message("assistant", "probe said", thinking="probe thought 1")
        rest = _calls(1, thinking="probe thought 2") if tools else []
        rest = rest or [_USER, Message("assistant", "probe said", thinking="probe thought 2")]
        shown = self._try([_USER, first, *rest], generate=False)
        if "probe thought 1" in shown:
            return "kept"
        return "since_user" if "probe thought 2" in shown else "dropped"

    def _strips(self) -> bool:
        # Of a model that thinks without being asked, the template may do no more than this.
        for start, end in THINK_TAGS:
            said = Message("assistant", f"{start}probe thought{end}probe said")
            shown = self._try([_USER, said, _USER])
            if "probe said" in shown and "probe thought" not in shown:
                return True
        return False

    def _try(
        self,
        messages: Sequence[Message],
        tools: Sequence[Tool] = (),
        *,
        form: Form | None = None,
        given: dict[str, Any] | None = None,
        generate: bool = True,
    ) -> str:
        """The prompt; empty where the template refuses.

        :raises TemplateError: the time is over.
        """
        variables = {"add_generation_prompt": generate, **(given or {})}
        try:
            return self._render(form or self._form, messages, tools, variables, self._limit)
        except TemplateError:
            if self._limit.spent():
                raise
            return ""


def _calls(count: int, *, content: str = "", thinking: str = "") -> list[Message]:
    calls = tuple(ToolCall(f"call_{n}", FunctionCall(f"probe_{n}", _ARGUMENTS)) for n in range(1, count + 1))
    results = [Message("tool", "probe result", tool_call_id=call.id, name=call.function.name) for call in calls]
    return [_USER, Message("assistant", content, thinking=thinking, tool_calls=calls), *results]
