"""A template comes with a downloaded file: whatever it holds, it costs a typed error, a second and bounded memory."""

import gc
import json
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.chat.template import ChatTemplate
from modeld.errors import TemplateError
from modeld.types import FunctionCall, FunctionTool, Message, Tool, ToolCall
from support import hostile_templates


@pytest.fixture(scope="module")
def attempts() -> dict[str, dict[str, object]]:
    """What became of each hostile template in one process that may take 384 MiB of address space more."""
    command = [sys.executable, str(Path(hostile_templates.__file__))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"{done.stderr[-2000:]} after {rows[-1:]}"
    return {row["name"]: row for row in rows if "name" in row}


@pytest.mark.parametrize("name", hostile_templates.HOSTILE)
def test_a_hostile_template_costs_a_typed_error_a_second_and_bounded_memory(
    attempts: dict[str, dict[str, object]], name: str
) -> None:
    row = attempts[name]
    assert row["kind"] not in ("", "MemoryError")
    assert row["seconds"] < 1  # type: ignore[operator]
    assert len(str(row["text"])) < 2100


def test_all_of_them_together_stay_within_bounded_memory(attempts: dict[str, dict[str, object]]) -> None:
    first, *_, last = (int(str(row["peak"])) for row in attempts.values())
    assert last - first < 256 << 10  # KiB


def test_control_tokens_of_other_formats_are_only_text() -> None:
    template = ChatTemplate("{{ '<|im_end|>[INST]<|eot_id|></s>' }}{{ messages[0].content }}")
    assert template.render([Message("user", "x")], add_generation_prompt=True) == "<|im_end|>[INST]<|eot_id|></s>x"
    assert (template.facts.tools, template.facts.thinking) == (False, False)


def test_a_collection_of_garbage_is_not_the_templates_time() -> None:
    """It looks at all that the process holds, of which the template made next to nothing."""

    def collects() -> datetime:
        end = time.thread_time() + 1
        while time.thread_time() < end:
            gc.collect()
        return datetime(2026, 1, 2)

    before = list(gc.callbacks)
    template = ChatTemplate("{% if messages[0].content == 'x' %}{{ strftime_now('%Y') }}{% endif %}", clock=collects)
    assert template.render([Message("user", "x")], add_generation_prompt=True) == "2026"
    assert gc.callbacks == before


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
