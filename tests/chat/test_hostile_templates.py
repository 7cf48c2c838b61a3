"""A template comes with a downloaded file: whatever it holds, it costs a typed error, a second and bounded memory."""

import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.chat.sandbox import MAX_SOURCE
from modeld.chat.template import ChatTemplate
from modeld.errors import TemplateError
from modeld.types import FunctionCall, FunctionTool, Message, Tool, ToolCall

PEAK = 200 << 20
LOOP = "{% for i in range(100000) %}"
BIG = "{% set ns = namespace(s='aaaaaaaaaaaaaaaa') %}{% for i in range(60) %}"

HOSTILE = {
    "attribute walk": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "attribute alone": "{{ ''.__class__ }}",
    "item walk": "{{ ''['__class__'] }}",
    "attr filter": "{{ '' | attr('__class__') }}",
    "map attribute": "{{ [''] | map(attribute='__class__') | list }}",
    "globals of cycler": "{{ cycler.__init__.__globals__ }}",
    "globals of raise_exception": "{{ raise_exception.__globals__ }}",
    "globals of self": "{{ self._TemplateReference__context.environment }}",
    "format walk": "{{ '{0.__class__}'.format('') }}",
    "format_map walk": "{{ '{a.__class__}'.format_map({'a': ''}) }}",
    "change the messages": "{% set _ = messages.append(1) %}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}",
    "the budget": "{{ ' budget' ~ missing.budget.spend() }}",
    "string times": "{{ 'a' * 10000000000 }}",
    "times string": "{{ 10000000000 * 'a' }}",
    "list times": "{{ [0] * 10000000000 }}",
    "list times after list": "{{ ([0] * 1000000) * 1000000 }}",
    "power": "{{ 10 ** (10 ** 10) }}",
    "product of integers": "{% set ns = namespace(n=99) %}" + LOOP + "{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "doubling by +": BIG + "{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "doubling by ~": BIG + "{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "doubling lists": BIG.replace("'aaaaaaaaaaaaaaaa'", "[0]") + "{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "doubling by join": BIG + "{% set ns.s = [ns.s, ns.s] | join %}{% endfor %}",
    "doubling by join method": BIG + "{% set ns.s = ns.s.join(['', ns.s, '']) %}{% endfor %}",
    "doubling by replace": BIG + "{% set ns.s = ns.s | replace('a', ns.s) %}{% endfor %}",
    "doubling by replace method": BIG + "{% set ns.s = ns.s.replace('a', ns.s) %}{% endfor %}",
    "doubling by %": BIG + "{% set ns.s = '%s%s' % (ns.s, ns.s) %}{% endfor %}",
    "doubling by format": BIG + "{% set ns.s = '{0}{0}'.format(ns.s) %}{% endfor %}",
    "doubling by the format filter": BIG + "{% set ns.s = '%s%s' | format(ns.s, ns.s) %}{% endfor %}",
    "doubling by a block": BIG + "{% set t %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = t %}{% endfor %}",
    "doubling by a macro": "{% macro m(s) %}{{ s ~ s }}{% endmacro %}" + BIG + "{% set ns.s = m(ns.s) %}{% endfor %}",
    "width by %": "{{ '%10000000000d' % 1 }}",
    "width by % and *": "{{ '%*d' % (10000000000, 1) }}",
    "width by format": "{{ '{:>10000000000}'.format(1) }}",
    "width by a nested format": "{{ '{:{}}'.format(1, 10000000000) }}",
    "width by the format filter": "{{ '%10000000000d' | format(1) }}",
    "center filter": "{{ 'a' | center(10000000000) }}",
    "ljust": "{{ 'a'.ljust(10000000000) }}",
    "zfill": "{{ 'a'.zfill(10000000000) }}",
    "expandtabs": "{{ '\t'.expandtabs(2000000000) }}",
    "to_bytes": "{{ (1).to_bytes(10000000000, 'big') }}",
    "indent": "{{ 'a\nb' | indent(10000000000) }}",
    "tojson indent": "{{ [1] | tojson(indent=10000000000) }}",
    "batch": "{{ [1] | batch(10000000000, 'x') | list }}",
    "slice": "{{ [1] | slice(10000000000) | list }}",
    "round": "{{ 1 | round(1000000000, 'ceil') }}",
    "lipsum": "{{ lipsum(n=100000) }}",
    "gigantic range": "{% for i in range(10000000000) %}x{% endfor %}",
    "nested ranges": LOOP * 4 + "{% endfor %}" * 4,
    "nested ranges with output": LOOP + LOOP + "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}{% endfor %}",
    "nested ranges in a block": "{% set t %}" + LOOP + "{{ '" + "a" * 999 + "' }}{% endfor %}{% endset %}{{ t }}",
    "filters in ranges": LOOP + "{% set _ = range(100000) | map('string') | list %}{% endfor %}",
    "macro recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "exponential macros": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "loop recursion": "{% for i in [[]] recursive %}{{ loop([1]) }}{% endfor %}",
    "deep value": "{% set ns = namespace(v=[]) %}" + LOOP + "{% set ns.v = [ns.v] %}{% endfor %}{{ ns.v | tojson }}",
    "deep source": "{{ " + "(" * 20000 + "1" + ")" * 20000 + " }}",
    "deep blocks": "{% if 1 %}" * 2000 + "{% endif %}" * 2000,
    "huge source": "a" * (MAX_SOURCE + 1),
    "huge constants": "{{ 'a' | center(100000) | replace(' ', '" + "a" * 1000 + "') }}" * 40,
    "raise_exception": "{{ raise_exception('no') }}",
    "undefined attribute": "{{ missing.attribute }}",
    "undefined call": "{{ missing() }}",
    "unknown filter": "{{ 1 | nothing }}",
    "syntax": "{% if %}",
    "unclosed": "{% for m in messages %}",
    "division by zero": "{{ 1 / 0 }}",
    "half a surrogate pair": "{{ '\ud800' }}",
    "json of a function": "{{ raise_exception | tojson }}",
}  # fmt: skip


@pytest.mark.parametrize("source", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_template_costs_a_typed_error_a_second_and_bounded_memory(source: str) -> None:
    tracemalloc.start()
    try:
        begin = time.thread_time()
        with pytest.raises(TemplateError) as caught:  # noqa: PT012
            template = ChatTemplate(source)
            begin = time.thread_time()
            template.render([Message("user", "Hello")], add_generation_prompt=True)
        seconds = time.thread_time() - begin
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert seconds < 1
    assert peak < PEAK, f"{peak >> 20} MiB"
    assert caught.value.details["reason"]
    assert len(str(caught.value)) < 2100


def test_a_failed_render_leaves_the_template_usable() -> None:
    template = ChatTemplate("{{ raise_exception('no') if messages[0].content == 'x' }}{{ messages[0].content * 2 }}")
    for _ in range(2):
        with pytest.raises(TemplateError):
            template.render([Message("user", "x")], add_generation_prompt=True)
        assert template.render([Message("user", "y")], add_generation_prompt=True) == "yy"


TINY = ChatTemplate((Path(__file__).parents[1] / "data/tiny-hf/chat_template.jinja").read_text())
BY_OBJECT = ChatTemplate(
    "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{% for k, v in c.function.arguments.items() %}{{ k ~ v }}{% endfor %}{% endfor %}{% endfor %}"
)
texts = st.text(st.characters(), max_size=8)
json_texts = st.sampled_from(['{"a": 1}', "[1]", "null", "{", '"x"', "NaN", "[" * 5000, "9" * 5000])
calls = st.builds(ToolCall, texts, st.builds(FunctionCall, texts, texts | json_texts))
messages = st.builds(
    Message,
    st.sampled_from(["system", "user", "assistant", "tool"]),
    texts,
    tool_calls=st.lists(calls, max_size=2).map(tuple),
    tool_call_id=texts,
    name=texts,
)
tools = st.builds(FunctionTool, texts, texts, st.dictionaries(texts, st.none() | st.integers() | texts, max_size=2))


@given(st.lists(messages, max_size=5), st.lists(tools.map(Tool), max_size=2), st.booleans())
def test_any_messages_render_or_raise_a_template_error(
    conversation: list[Message], offered: list[Tool], generate: bool
) -> None:
    for template in (TINY, BY_OBJECT):
        try:
            prompt = template.render(conversation, offered, add_generation_prompt=generate)
        except TemplateError:
            continue
        prompt.encode()
        assert all(m.content in prompt for m in conversation if m.role == "user")
