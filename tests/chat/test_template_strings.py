"""A prompt that differs by one byte is another prompt: exact strings, written by hand from the documented formats."""

from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import get_args

import pytest

from modeld.chat.dialect import Form
from modeld.chat.parser import make_parser
from modeld.chat.template import CHATML, ChatTemplate
from modeld.errors import InvalidRequestError, TemplateError
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


NAMED = [
    {"name": "default", "template": "plain"},
    {"name": "tool_use", "template": "{{ tools | length }} tools"},
    {"name": "rag", "template": "{{ documents | length }} documents"},
]


def test_the_template_with_the_right_name_is_taken() -> None:
    config = {"chat_template": NAMED, "bos_token": {"content": "<s>", "special": True}, "eos_token": None}
    template = ChatTemplate.from_tokenizer_config(config)
    assert template.render([USER], add_generation_prompt=True) == "plain"
    assert template.render([USER], [WEATHER], add_generation_prompt=True) == "1 tools"
    assert template.render([USER], documents=[{"text": "x"}], add_generation_prompt=True) == "1 documents"
    assert template.render([USER], [WEATHER], documents=[{"text": "x"}], add_generation_prompt=True) == "1 tools"
    assert template.source == "plain\n{{ tools | length }} tools\n{{ documents | length }} documents"


def test_a_tokenizer_config_holds_one_text_or_none() -> None:
    config = {"chat_template": "{{ bos_token }}|{{ eos_token }}", "bos_token": "<s>", "eos_token": {"content": "</s>"}}
    assert ChatTemplate.from_tokenizer_config(config).render([USER], add_generation_prompt=True) == "<s>|</s>"
    assert ChatTemplate.from_tokenizer_config({}).name == "chatml"


@pytest.mark.parametrize(
    "shape", [3, {"name": 4}, [{"name": "default"}], [{"template": "x"}], [["default", "x"]], ["x"], NAMED[1:]]
)
def test_a_tokenizer_config_of_another_shape_is_refused(shape: object) -> None:
    with pytest.raises(TemplateError):
        ChatTemplate.from_tokenizer_config({"chat_template": shape})


def test_content_comes_in_parts_where_the_template_walks_through_it() -> None:
    template = ChatTemplate(
        "{% for m in messages %}{% for p in m.content %}[{{ p.type }}: {{ p.text }}]{% endfor %}{% endfor %}"
    )
    assert template.form.content == "parts"
    assert template.render([SYSTEM, USER], add_generation_prompt=True) == f"[text: Be brief.][text: {USER.content}]"


def test_a_message_that_only_calls_has_no_content_where_the_template_asks_for_that() -> None:
    template = ChatTemplate(
        "{% for m in messages %}{% if m.content is none %}{% for c in m.tool_calls %}{{ c.function.name }}"
        "({{ c.function.arguments }}){% endfor %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
    )
    assert template.form.silent is None
    calls = Message("assistant", tool_calls=(OSLO,))
    assert template.render([calls, SYSTEM], add_generation_prompt=True) == 'get_weather({"city":  "Oslo"})Be brief.'


def test_only_a_last_answer_can_be_continued(tiny: ChatTemplate) -> None:
    for messages in ([], [USER], [USER, Message("assistant", tool_calls=(OSLO,))]):
        with pytest.raises(InvalidRequestError, match="continued"):
            tiny.render(messages, add_generation_prompt=False, continue_final_message=True)
    with pytest.raises(InvalidRequestError, match="continued"):
        tiny.render([USER, Message("assistant", "x")], add_generation_prompt=True, continue_final_message=True)
    with pytest.raises(TemplateError, match="leaves the last answer out"):
        ChatTemplate("{{ messages[0].content }}").render(
            [USER, Message("assistant", "x")], add_generation_prompt=False, continue_final_message=True
        )


def test_levels_of_effort_are_those_that_differ() -> None:
    source = "{% if reasoning_effort == 'high' %}H{% else %}L{% endif %}{% if enable_thinking %}T{% endif %}"
    assert ChatTemplate(source).facts.efforts == ("low", "high")
    assert ChatTemplate(source.replace("high", "no")).facts.efforts == ()


@pytest.mark.parametrize("name", ["enable_thinking", "thinking", "reasoning"])
def test_the_switch_is_the_variable_that_changes_the_prompt(name: str) -> None:
    template = ChatTemplate("{{ messages[0].content }}{% if " + name + " is defined %}{{ " + name + " }}{% endif %}")
    assert template.form.switches == (name,)
    assert template.render([USER], think="off", add_generation_prompt=True) == f"{USER.content}False"
    assert template.render([USER], think="low", add_generation_prompt=True) == f"{USER.content}True"


def test_the_clock_is_the_caller_s() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", clock=lambda: datetime(2024, 7, 26))
    assert template.render([USER], add_generation_prompt=True) == "26 Jul 2024"
