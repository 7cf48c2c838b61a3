"""A prompt that differs by one byte is another prompt: exact strings, written by hand from the documented formats."""

from hashlib import sha256
from pathlib import Path
from typing import get_args

import pytest

from modeld.chat.dialect import Form
from modeld.chat.parser import make_parser
from modeld.chat.template import CHATML, ChatTemplate
from modeld.errors import TemplateError
from modeld.template_facts import TemplateFacts
from modeld.thinking import ThinkLevel
from modeld.types import (
    EndPart,
    FunctionCall,
    FunctionTool,
    Message,
    PartsJoiner,
    Receipt,
    TextPart,
    ThinkingPart,
    Tool,
    ToolCall,
    Usage,
)

SOURCE = (Path(__file__).parents[1] / "data/tiny-hf/chat_template.jinja").read_text()
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = Tool(FunctionTool("get_weather", "Weather in a città <now>.", CITY))
SYSTEM = Message("system", "Be brief.")
USER = Message("user", "What is the weather in Oslo and Rome?")
OSLO = ToolCall("call_1", FunctionCall("get_weather", '{"city":  "Oslo"}'))
ROME = ToolCall("call_2", FunctionCall("get_weather", '{"city": "Rome"}'))
TOOLS_TEXT = (
    '# Tools\n<tools>\n{"type": "function", "function": {"name": "get_weather", "description": '
    '"Weather in a città <now>.", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, '
    '"required": ["city"]}}}\n</tools>'
)
USER_TEXT = "<|im_start|>user\nWhat is the weather in Oslo and Rome?<|im_end|>\n"
CALLS_TEXT = (
    '<tool_call>\n{"name": "get_weather", "arguments": {"city":  "Oslo"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
)


@pytest.fixture(scope="module")
def tiny() -> ChatTemplate:
    return ChatTemplate(SOURCE, bos="<|begin|>", eos="<|im_end|>")


def test_plain_and_system(tiny: ChatTemplate) -> None:
    assert tiny.render([USER], add_generation_prompt=False) == USER_TEXT
    assert tiny.render([USER], add_generation_prompt=True) == f"{USER_TEXT}<|im_start|>assistant\n"
    history = [SYSTEM, USER, Message("assistant", "Rain.", thinking="never sent"), Message("user", " ok\n")]
    assert tiny.render(history, add_generation_prompt=True) == (
        f"<|im_start|>system\nBe brief.<|im_end|>\n{USER_TEXT}"
        "<|im_start|>assistant\nRain.<|im_end|>\n<|im_start|>user\n ok\n<|im_end|>\n<|im_start|>assistant\n"
    )


def test_tools_stand_in_the_system_turn(tiny: ChatTemplate) -> None:
    assert tiny.render([USER], [WEATHER], add_generation_prompt=False) == (
        f"<|im_start|>system\n{TOOLS_TEXT}<|im_end|>\n{USER_TEXT}"
    )
    assert tiny.render([SYSTEM, USER], [WEATHER], add_generation_prompt=False) == (
        f"<|im_start|>system\nBe brief.\n\n{TOOLS_TEXT}<|im_end|>\n{USER_TEXT}"
    )


def test_a_tool_without_description_and_parameters_has_all_keys(tiny: ChatTemplate) -> None:
    assert (
        '\n{"type": "function", "function": {"name": "now", "description": "", '
        '"parameters": {"type": "object", "properties": {}}}}\n'
    ) in tiny.render([USER], [Tool(FunctionTool("now"))], add_generation_prompt=False)


def test_tool_calls_and_results_keep_the_bytes_of_the_arguments(tiny: ChatTemplate) -> None:
    result = Message("tool", '{"temp": 21}', tool_call_id="call_1", name="get_weather")
    alone = [USER, Message("assistant", tool_calls=(OSLO, ROME)), result]
    assert tiny.render(alone, add_generation_prompt=False) == (
        f"{USER_TEXT}<|im_start|>assistant\n{CALLS_TEXT}<|im_end|>\n"
        '<|im_start|>user\n<tool_response>\n{"temp": 21}\n</tool_response><|im_end|>\n'
    )
    spoken = [USER, Message("assistant", "Both.", tool_calls=(OSLO, ROME))]
    assert tiny.render(spoken, add_generation_prompt=False) == (
        f"{USER_TEXT}<|im_start|>assistant\nBoth.\n{CALLS_TEXT}<|im_end|>\n"
    )


@pytest.mark.parametrize("level", get_args(ThinkLevel))
def test_thinking_opens_in_the_prompt_only_when_asked_for(tiny: ChatTemplate, level: ThinkLevel) -> None:
    opened = "" if level in ("auto", "off") else "<think>\n"
    expected = f"{USER_TEXT}<|im_start|>assistant\n{opened}"
    assert tiny.render([USER], think=level, add_generation_prompt=True) == expected


def test_thinking_levels_reach_the_template() -> None:
    template = ChatTemplate("{{ enable_thinking | default('unset') }} {{ reasoning_effort | default('unset') }}")
    seen = {level: template.render([], think=level, add_generation_prompt=True) for level in get_args(ThinkLevel)}
    assert seen == {
        "auto": "unset unset",
        "off": "False unset",
        "minimal": "True low",
        "low": "True low",
        "medium": "True medium",
        "high": "True high",
        "xhigh": "True high",
    }
    facts = template.facts
    assert (facts.thinking, facts.thinking_switch, facts.opens_thinking) == (True, True, False)
    assert facts.efforts == ("low", "medium", "high")


@pytest.mark.parametrize(
    "raw",
    ["It rains.", " spaces \n\n", "naïve 👍\r\n", "a <b> `<think>`", CALLS_TEXT, f"Both.\n{CALLS_TEXT}", "\n\nx"],
)
def test_an_answer_rendered_again_gives_the_bytes_the_model_wrote(tiny: ChatTemplate, raw: str) -> None:
    prompt = tiny.render([USER], [WEATHER], add_generation_prompt=True)
    parser = make_parser(SOURCE, tools=True, prompt_tail=prompt)
    joiner = PartsJoiner()
    for part in parser.feed(raw.encode()) + parser.finish():
        joiner.add(part)
    joiner.add(EndPart(finish_reason="stop", usage=Usage(), receipt=Receipt()))
    again = tiny.render([USER, joiner.result().message], [WEATHER], add_generation_prompt=False)
    assert again == f"{prompt}{raw}<|im_end|>\n"


def test_with_thinking_on_the_answer_begins_in_thinking(tiny: ChatTemplate) -> None:
    prompt = tiny.render([USER], think="high", add_generation_prompt=True)
    parser = make_parser(SOURCE, tools=False, prompt_tail=prompt)
    parts = parser.feed(b"A short sentence.\n</think>\n\nThe answer.") + parser.finish()
    assert parts == [ThinkingPart("A short sentence."), TextPart("The answer.")]


def test_tiny_shows_what_it_can_do(tiny: ChatTemplate) -> None:
    assert tiny.facts == TemplateFacts(
        source="rendered",
        name="model",
        system=True,
        tools=True,
        tool_results=True,
        parallel_tool_calls=True,
        thinking=True,
        thinking_switch=True,
        opens_thinking=True,
    )
    assert (tiny.form, tiny.name) == (Form(switches=("enable_thinking",)), "model")
    assert tiny.digest == sha256(SOURCE.encode()).hexdigest()


def test_a_model_without_a_template_gets_chatml_and_says_so() -> None:
    default = ChatTemplate("")
    assert (default.name, default.source) == ("chatml", CHATML)
    assert default.facts == TemplateFacts(source="default", name="chatml", system=True)
    assert default.render([SYSTEM, USER], add_generation_prompt=True) == (
        f"<|im_start|>system\nBe brief.<|im_end|>\n{USER_TEXT}<|im_start|>assistant\n"
    )


CALL_LOOP = "{% for m in messages %}{% for c in m.tool_calls or [] %}%s{% endfor %}{% endfor %}"


@pytest.mark.parametrize(
    ("body", "form", "expected"),
    [
        ("{{ c.function.arguments }}", "string", '{"city":  "Oslo"}'),
        ("{{ c.function.arguments | tojson }}", "dict", '{"city": "Oslo"}'),
        ("{{ c.function | tojson }}", "dict", '{"name": "get_weather", "arguments": {"city": "Oslo"}}'),
        ("{% for k, v in c.function.arguments.items() %}<{{ k }}>{{ v }}{% endfor %}", "dict", "<city>Oslo"),
        ("{% for k, v in c.function.arguments | items %}<{{ k }}>{{ v }}{% endfor %}", "dict", "<city>Oslo"),
        (
            "{% if c.function.arguments is mapping %}{{ c.function.arguments | tojson }}"
            "{% else %}{{ c.function.arguments }}{% endif %}",
            "string",
            '{"city":  "Oslo"}',
        ),
    ],
)
def test_arguments_are_given_in_the_form_the_template_writes_well(body: str, form: str, expected: str) -> None:
    template = ChatTemplate(CALL_LOOP.replace("%s", body))
    assert template.form.arguments == form
    assert template.render([USER, Message("assistant", tool_calls=(OSLO,))], add_generation_prompt=False) == expected


def test_arguments_that_are_no_json_stay_what_the_model_wrote() -> None:
    template = ChatTemplate(CALL_LOOP.replace("%s", "{{ c.function.arguments | tojson }}"))
    broken = ToolCall("call_1", FunctionCall("f", "{oops"))
    assert template.render([Message("assistant", tool_calls=(broken,))], add_generation_prompt=False) == '"{oops"'


def test_a_template_that_refuses_parallel_calls_and_system_messages_shows_it() -> None:
    facts = ChatTemplate(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% if m.tool_calls and m.tool_calls | length > 1 %}{{ raise_exception('one call') }}{% endif %}"
        "{{ m.content }}{% for c in m.tool_calls or [] %}{{ c.function.name }}{% endfor %}{% endfor %}"
    ).facts
    assert (facts.system, facts.parallel_tool_calls, facts.tools) == (False, False, False)


def test_the_extras_of_transformers_are_there() -> None:
    def out(source: str) -> str:
        return ChatTemplate(source, bos="<s>", eos="</s>").render([USER], add_generation_prompt=True)

    assert out("{{ bos_token }}|{{ eos_token }}|{{ tools is none }}") == "<s>|</s>|True"
    assert out("{{ {'b': '<é>', 'a': [1, none]} | tojson }}") == '{"b": "<é>", "a": [1, null]}'
    assert out("{{ {'a': [1]} | tojson(indent=2) }}") == '{\n  "a": [\n    1\n  ]\n}'
    assert out("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}") == '{"a":2,"b":1}'
    assert len(out("{{ strftime_now('%d %b %Y') }}").split()) == 3
    assert out("{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{{ i }}{% if i == 3 %}{% break %}{% endif %}{% endfor %}") == "023"  # fmt: skip # noqa: E501
    assert out("{% set ns = namespace(n=0) %}{% for i in [1, 2] %}{% set ns.n = ns.n + i %}{% endfor %}{{ ns.n }}") == "3"  # fmt: skip # noqa: E501
    assert out("{% generation %}{{ 1 }}{% endgeneration %}2") == "12"
    assert out("  {% if true %}\nx\n  {% endif %}\ny") == "x\ny"
    assert out("{{ '{} {:>3}'.format('a', 7) }} {{ '%s-%02d' % ('b', 3) }} {{ '%s' | format('c') }}") == "a   7 b-03 c"
    assert out("{{ ['a', 1] | join(', ') }} {{ ','.join(['x', 'y']) }} {{ 'aXa' | replace('a', 'b') }}") == "a, 1 x,y bXb"  # fmt: skip # noqa: E501
    assert out("{{ 'a' ~ 1 ~ none }}{{ [1] + [2] }}{{ 'ab' * 2 }}{{ 2 ** 5 }}{{ 7 % 4 }}") == "a1None[1, 2]abab323"
    assert out("{% for m in messages if m.role == 'user' %}{{ loop.last }}{{ loop.length }}{% else %}no{% endfor %}") == "True1"  # fmt: skip # noqa: E501
    assert out("{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='role') | list }}") == "['user']"
    assert out("{{ [3, 1] | map('string') | sort | first }}{{ '  x ' | trim }}{{ missing }}") == "1x"


def test_keys_that_are_empty_are_not_there() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.keys() | list }}{% endfor %}")
    full = Message("tool", "4", tool_call_id="call_1", name="f")
    assert template.render([USER, full], add_generation_prompt=False) == (
        "['role', 'content']['role', 'content', 'tool_call_id', 'name']"
    )


def test_the_template_s_own_message_reaches_the_caller() -> None:
    template = ChatTemplate("{% if messages[0].role != 'user' %}{{ raise_exception('roles must alternate') }}{% endif %}")  # fmt: skip # noqa: E501
    with pytest.raises(TemplateError, match="roles must alternate") as caught:
        template.render([SYSTEM], add_generation_prompt=True)
    assert caught.value.details["reason"] == "roles must alternate"
