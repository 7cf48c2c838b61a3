"""A prompt in a slightly wrong dialect makes a good model a bad one, and nobody sees why.

``tests/data/templates`` holds templates in the dialects of well-known models, written for modeld from each format's
public description (the first line names it), and beside each the prompt that the description gives for a fixed
conversation, written by hand. Rendered here they must equal that, and what ``transformers`` makes of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import transformers.utils.chat_template_utils as reference
from msgspec import Struct

from modeld.chat.dialect import Form
from modeld.chat.template import ChatTemplate
from modeld.template_facts import TemplateFacts
from modeld.thinking import ThinkLevel
from modeld.types import FunctionCall, FunctionTool, Message, Tool, ToolCall

FOLDER = Path(__file__).parents[1] / "data" / "templates"
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
NOW = datetime(2025, 6, 1)

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Name of the city."}},
    "required": ["city"],
}
TOOL = Tool(FunctionTool("get_weather", "Tells the weather.", CITY))
SYSTEM = Message("system", "Be brief.")
OSLO, BOTH, WARMEST = (
    Message("user", text) for text in ("What is the weather in Oslo?", "And in Rome and Lima?", "Which is warmest?")
)
ONE, TWO = Message("assistant", "4 degrees in Oslo."), Message("assistant", "17 in Rome, 19 in Lima.")
DOCUMENTS = (
    {"title": "Oslo", "text": "Oslo lies at the sea."},
    {"title": "Rain", "text": "It rains a lot."},
)


def call(number: int, city: str) -> ToolCall:
    return ToolCall(f"call0000{number}", FunctionCall("get_weather", json.dumps({"city": city})))


def asks(*calls: ToolCall, thinking: str = "") -> Message:
    return Message("assistant", thinking=thinking, tool_calls=calls)


def tells(number: int, degrees: int) -> Message:
    return Message("tool", f'{{"celsius": {degrees}}}', tool_call_id=f"call0000{number}", name="get_weather")


HEAD = (SYSTEM, OSLO, asks(call(1, "Oslo"), thinking="I need Oslo."), tells(1, 4), ONE, BOTH)
PARALLEL = (*HEAD, asks(call(2, "Rome"), call(3, "Lima"), thinking="Two cities."), tells(2, 17), tells(3, 19))
ONE_BY_ONE = (*HEAD, asks(call(2, "Rome"), thinking="Two cities."), tells(2, 17), asks(call(3, "Lima")), tells(3, 19))
WITHOUT_TOOLS = (SYSTEM, OSLO, ONE, BOTH, TWO, WARMEST)
SHORT = (SYSTEM, OSLO)


class Dialect(Struct, frozen=True):
    """What is known of a template from its description.

    :param given: what transformers must be told, where modeld finds it out by itself.
    """

    facts: TemplateFacts
    form: Form = Form()
    bos: str = ""
    eos: str = ""
    given: dict[str, Any] = {}


def facts(*words: str, **more: Any) -> TemplateFacts:
    return TemplateFacts(**dict.fromkeys(words, True), **more)


CALLS = ("system", "tools", "tool_results")
FULL = (*CALLS, "parallel_tool_calls")
THINKS = ("thinking", "thinking_switch")
OBJECT = Form(arguments="dict")
S, DEEPSEEK = ("<s>", "</s>"), ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
PREFIX = {"tools_in_user_message": False}
TOOLS_BY_OBJECT = facts(*FULL, "object_arguments")
NINE = Form(arguments="dict", ids="nine")

DIALECTS = {
    "chatml": Dialect(facts("system")),
    "command-r7b": Dialect(facts(*FULL, "object_arguments", "documents"), OBJECT, "<BOS_TOKEN>"),
    "deepseek-r1": Dialect(facts("system", "thinking", "opens_thinking"), Form(), *DEEPSEEK),
    "deepseek-v3.1": Dialect(facts(*FULL, *THINKS, "opens_thinking"), Form(switches=("thinking",)), *DEEPSEEK),
    "falcon-3": Dialect(facts("system"), eos="<|endoftext|>"),
    "gemma-2": Dialect(facts(), bos="<bos>"),
    "gemma-3": Dialect(facts("system"), bos="<bos>"),
    "glm-4.5": Dialect(
        facts(*FULL, *THINKS, "object_arguments", thinking_history="since_user"),
        Form(arguments="dict", switches=("enable_thinking",)),
    ),
    "gpt-oss": Dialect(
        facts(*CALLS, "thinking", "object_arguments", efforts=("low", "medium", "high"), thinking_history="since_user"),
        Form(arguments="dict", crowded=False),
    ),
    "granite-3": Dialect(
        facts(*FULL, *THINKS, "object_arguments", "documents"), Form(arguments="dict", switches=("thinking",))
    ),
    "hermes-2-pro": Dialect(TOOLS_BY_OBJECT, OBJECT),
    "kimi-k2": Dialect(facts(*FULL)),
    "llama-2": Dialect(facts("system"), Form(), *S),
    "llama-3.1": Dialect(
        facts(*CALLS, "object_arguments"),
        Form(arguments="dict", variables=tuple(PREFIX.items())),
        "<|begin_of_text|>",
        given=PREFIX,
    ),
    "llama-4": Dialect(TOOLS_BY_OBJECT, OBJECT, "<|begin_of_text|>"),
    "mistral-v13-tekken": Dialect(facts(*FULL, "thinking", thinking_history="kept"), Form(), *S),
    "mistral-v3": Dialect(facts(*FULL, "object_arguments"), NINE, *S),
    "mistral-v7": Dialect(facts(*FULL, "object_arguments"), NINE, *S),
    "mistral-v7-tekken": Dialect(facts(*FULL, "object_arguments"), NINE, *S),
    "mixtral": Dialect(facts("system"), Form(), *S),
    "olmo-2": Dialect(facts("system"), Form(), "<|endoftext|>", "<|endoftext|>"),
    "phi-3": Dialect(facts("system")),
    "phi-4": Dialect(facts("system")),
    "phi-4-mini": Dialect(TOOLS_BY_OBJECT, Form(arguments="dict", system_for_tools=True)),
    "qwen-2.5": Dialect(TOOLS_BY_OBJECT, OBJECT),
    "qwen-3": Dialect(facts(*FULL, *THINKS, thinking_history="since_user"), Form(switches=("enable_thinking",))),
    "qwen-3-coder": Dialect(TOOLS_BY_OBJECT, OBJECT),
    "smollm-3": Dialect(facts(*FULL, *THINKS), Form(switches=("enable_thinking",))),
    "vicuna": Dialect(facts("system"), Form(), *S),
    "zephyr": Dialect(facts("system"), Form(), *S),
}


LATE_TOOLS = ("mistral-v3", "mistral-v7", "mistral-v7-tekken")
"""Their tools stand before the newest message of the user."""


class Case(Struct, frozen=True, kw_only=True):
    """A prompt: of which conversation, and with what the template is told."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    think: ThinkLevel = "auto"
    documents: tuple[dict[str, str], ...] = ()
    variables: dict[str, Any] = {}
    given: dict[str, Any] = {}


def main_case(name: str) -> Case:
    known = DIALECTS[name].facts
    if not known.tools and name != "deepseek-r1":
        return Case(messages=WITHOUT_TOOLS if known.system else WITHOUT_TOOLS[1:])
    turn = PARALLEL if known.parallel_tool_calls or not known.tools else ONE_BY_ONE
    return Case(messages=(*turn, TWO, WARMEST), tools=(TOOL,) if known.tools else ())


USER_TOOLS = {"tools_in_user_message": True, "date_string": "24 Dec 2025"}
CASES = {name: main_case(name) for name in DIALECTS} | {
    "command-r7b.rag": Case(messages=SHORT, documents=DOCUMENTS),
    "deepseek-v3.1.on": Case(messages=(*PARALLEL, TWO, WARMEST), tools=(TOOL,), think="high", given={"thinking": True}),
    "glm-4.5.off": Case(messages=SHORT, think="off", given={"enable_thinking": False}),
    "glm-4.5.results": Case(messages=PARALLEL, tools=(TOOL,)),
    "gpt-oss.high": Case(messages=SHORT, think="xhigh", given={"reasoning_effort": "high"}),
    "gpt-oss.results": Case(messages=ONE_BY_ONE, tools=(TOOL,)),
    "granite-3.on": Case(messages=SHORT, think="low", given={"thinking": True}),
    "granite-3.rag": Case(messages=SHORT, documents=DOCUMENTS),
    "llama-3.1.user": Case(messages=(*ONE_BY_ONE, TWO, WARMEST), tools=(TOOL,), variables=USER_TOOLS),
    "qwen-3.off": Case(
        messages=(*PARALLEL, TWO, WARMEST), tools=(TOOL,), think="off", given={"enable_thinking": False}
    ),
    "qwen-3.results": Case(messages=PARALLEL, tools=(TOOL,)),
    "smollm-3.off": Case(messages=SHORT, think="off", given={"enable_thinking": False}),
}


def name_of(case: str) -> str:
    return max((name for name in NAMES if case == name or case.startswith(name + ".")), key=len)


def template_of(name: str) -> ChatTemplate:
    known = DIALECTS[name]
    return ChatTemplate((FOLDER / f"{name}.jinja").read_text(), bos=known.bos, eos=known.eos, clock=lambda: NOW)


def rendered(name: str, case: Case) -> str:
    return template_of(name).render(
        case.messages,
        case.tools,
        think=case.think,
        documents=case.documents,
        variables=case.variables,
        add_generation_prompt=True,
    )


def as_openai_writes_it(message: Message, *, arguments: str) -> dict[str, Any]:
    out: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.thinking:
        out["reasoning_content"] = message.thinking
    if message.tool_calls:
        out["tool_calls"] = [
            {
                "id": one.id,
                "type": "function",
                "function": {
                    "name": one.function.name,
                    "arguments": json.loads(one.function.arguments) if arguments == "dict" else one.function.arguments,
                },
            }
            for one in message.tool_calls
        ]
    if message.role == "tool":
        out |= {"tool_call_id": message.tool_call_id, "name": message.name}
    return out


class Clock(datetime):
    """The time for transformers, which asks the class."""

    @classmethod
    def now(cls, tz: Any = None) -> Clock:
        return cls(NOW.year, NOW.month, NOW.day)


def rendered_by_transformers(name: str, case: Case, **options: Any) -> str:
    known = DIALECTS[name]
    tool = {"type": "function", "function": {"name": "get_weather", "description": "Tells the weather."}}
    tool["function"]["parameters"] = CITY  # type: ignore[index]
    given = {"bos_token": known.bos, "eos_token": known.eos, **known.given, **case.variables, **case.given, **options}
    prompts, _ = reference.render_jinja_template(
        conversations=[[as_openai_writes_it(message, arguments=known.form.arguments) for message in case.messages]],
        tools=[tool] if case.tools else None,
        documents=list(case.documents) or None,
        chat_template=(FOLDER / f"{name}.jinja").read_text(),
        **{"add_generation_prompt": True, **given},
    )
    return str(prompts[0])


def test_each_template_is_known_and_says_where_it_comes_from() -> None:
    assert set(NAMES) == set(DIALECTS)
    assert len(NAMES) >= 20
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(CASES)
    for name in NAMES:
        assert (FOLDER / f"{name}.jinja").read_text().startswith("{#- Source: ")


@pytest.mark.parametrize("name", CASES)
def test_a_conversation_is_the_prompt_that_the_format_s_description_gives(name: str) -> None:
    assert rendered(name_of(name), CASES[name]) == (FOLDER / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", CASES)
def test_a_conversation_is_the_prompt_that_transformers_makes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "datetime", Clock)
    assert rendered(name_of(name), CASES[name]) == rendered_by_transformers(name_of(name), CASES[name])


@pytest.mark.parametrize("name", DIALECTS)
def test_what_a_template_can_do_is_seen_in_what_it_renders(name: str) -> None:
    template = template_of(name)
    assert template.facts == DIALECTS[name].facts
    assert template.form == DIALECTS[name].form


@pytest.mark.parametrize("name", DIALECTS)
def test_an_answer_that_was_begun_goes_on_where_transformers_lets_it(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference, "datetime", Clock)
    messages = (*(SHORT if DIALECTS[name].facts.system else SHORT[1:]), Message("assistant", "It is "))
    prompt = template_of(name).render(messages, add_generation_prompt=False, continue_final_message=True)
    options: Mapping[str, Any] = {"add_generation_prompt": False, "continue_final_message": True}
    assert prompt == rendered_by_transformers(name, Case(messages=messages), **options)
    assert prompt.rstrip().endswith("It is")


def test_tools_are_not_dropped_where_only_a_system_message_can_hold_them() -> None:
    prompt = template_of("phi-4-mini").render([OSLO], [TOOL], add_generation_prompt=True)
    assert prompt.startswith('<|system|><|tool|>[{"name": "get_weather"')
    assert template_of("phi-4-mini").render([OSLO], add_generation_prompt=True) == (
        f"<|user|>{OSLO.content}<|end|><|assistant|>"
    )


def test_a_prefix_of_tools_and_system_message_can_be_rendered_and_begins_the_prompt() -> None:
    for name, known in DIALECTS.items():
        if not known.facts.tools or name in LATE_TOOLS:
            continue
        template = template_of(name)
        prefix = template.render([SYSTEM], [TOOL], add_generation_prompt=False)
        assert "get_weather" in prefix
        assert template.render([SYSTEM, OSLO], [TOOL], add_generation_prompt=True).startswith(prefix)


def test_ids_are_made_for_templates_that_take_nine_letters_and_digits() -> None:
    calls = asks(ToolCall("call_1", FunctionCall("get_weather", "{}")))
    result = Message("tool", "{}", tool_call_id="call_1")
    prompt = template_of("mistral-v7").render([OSLO, calls, result], [TOOL], add_generation_prompt=True)
    (made,) = re.findall(r'"id": "([0-9a-z]{9})"', prompt)
    assert f"[TOOL_RESULTS] {made}[TOOL_CONTENT]" in prompt


def test_a_result_without_a_name_has_that_of_its_call() -> None:
    result = Message("tool", "4", tool_call_id="call00001")
    prompt = template_of("kimi-k2").render([OSLO, asks(call(1, "Oslo")), result], add_generation_prompt=True)
    assert "<|im_system|>get_weather<|im_middle|>## Return of call00001\n4<|im_end|>" in prompt


def test_text_and_thinking_and_a_call_at_once_do_not_fail_where_a_template_refuses_them() -> None:
    crowd = Message("assistant", "I look.", thinking="Oslo.", tool_calls=(call(1, "Oslo"),))
    prompt = template_of("gpt-oss").render([OSLO, crowd, tells(1, 4)], [TOOL], add_generation_prompt=True)
    assert "<|channel|>analysis<|message|>I look.<|end|>" in prompt
