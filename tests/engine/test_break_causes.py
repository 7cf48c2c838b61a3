"""Hazard: a broken cache is blamed on the wrong message, the wrong character or the wrong cause.

Conversations are rendered with the templates of the fake and of tiny, one rune is one token, and one thing is edited.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from msgspec import structs

from modeld.chat.template import ChatTemplate
from modeld.engine.differences import tools_difference
from modeld.engine.explain import RUN, computed_again, why_stopped
from modeld.engine.session import EngineSession, Prompt, Span, shared_length
from modeld.thinking import ThinkLevel
from modeld.types import FunctionCall, FunctionTool, Message, ReuseStop, Tool, ToolCall
from support import anything
from support.engines import ENGINES

Conversation = tuple[Message, ...]
TEMPLATES = [pytest.param(ENGINES[name].template, id=name) for name in ENGINES]

# No white space at the ends: templates may strip that. Letters only: nothing of it looks like a date.
LETTERS = "abcdefgäöü \N{SNOWMAN}\N{PILE OF POO}"
contents = st.text(LETTERS, min_size=1, max_size=60).map(lambda text: f"x{text}y")


@st.composite
def conversations(draw: st.DrawFn, least: int = 1) -> Conversation:
    """System, then user and assistant in turns, the last a user; no two texts are the same."""
    turns = draw(st.integers(least, 4))
    texts = draw(st.lists(contents, min_size=2 * turns, max_size=2 * turns, unique=True))
    roles: list[Any] = ["system", *("user", "assistant") * turns][: 2 * turns]
    return tuple(Message(role, text) for role, text in zip(roles, texts, strict=True))


def prompt_of(
    template: ChatTemplate, messages: Sequence[Message], tools: Sequence[Tool] = (), think: ThinkLevel = "auto"
) -> Prompt:
    text = template.render(messages, tools, think=think, add_generation_prompt=True)
    return Prompt(tuple(messages), tuple(tools), think, text.encode(), list(map(ord, text)))


def session_after(prompt: Prompt, answer: str, *, thinking: bool = False) -> EngineSession:
    """A session that holds the prompt and the answer to it."""
    session = EngineSession(1)
    session.adopt(prompt, len(prompt.ids))
    begin, text_begin = len(session.ids), len(session.text)
    session.ids += map(ord, answer)
    session.text += answer.encode()
    session.hot = len(session.ids)
    if answer:
        session.spans.append(Span(begin, len(session.ids), text_begin, len(session.text), thinking))
    return session


def explain(session: EngineSession, prompt: Prompt) -> ReuseStop:
    shared = shared_length(session.ids, prompt.ids)
    stop = why_stopped(session, prompt, shared)
    assert stop is not None
    assert stop.token == shared
    assert stop.detail
    assert stop.advice
    assert len(stop.old) <= 40 >= len(stop.new)
    return stop


def first_difference(old: str, new: str) -> int:
    return next((n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))


@pytest.mark.parametrize("template", TEMPLATES)
@settings(deadline=None)
@given(data=st.data())
def test_the_edited_message_and_character_are_named(template: Callable[[], ChatTemplate], data: st.DataObject) -> None:
    messages = data.draw(conversations())
    index = data.draw(st.integers(0, len(messages) - 1))
    old = messages[index].content
    start = data.draw(st.integers(1, len(old) - 1))
    end = data.draw(st.integers(start, len(old) - 1))
    new = old[:start] + data.draw(st.text(LETTERS, max_size=8)) + old[end:]
    assume(new not in {message.content for message in messages})
    edited = [*messages[:index], structs.replace(messages[index], content=new), *messages[index + 1 :]]
    more = [Message("assistant", "an answer"), Message("user", "more")] if data.draw(st.booleans()) else []
    session = session_after(prompt_of(template(), messages), "an answer")
    stop = explain(session, prompt_of(template(), [*edited, *more]))
    assert (stop.reason, stop.message_index) == ("message_changed", index)
    assert stop.character == first_difference(old, new)
    assert messages[index].role in stop.detail


@pytest.mark.parametrize("template", TEMPLATES)
@settings(deadline=None)
@given(data=st.data())
def test_messages_taken_out_or_put_in_are_counted(template: Callable[[], ChatTemplate], data: st.DataObject) -> None:
    messages = data.draw(conversations(least=3))
    at = data.draw(st.integers(1, len(messages) - 3))
    longer, shorter = messages, (*messages[:at], *messages[at + 2 :])
    left = explain(session_after(prompt_of(template(), longer), "answer"), prompt_of(template(), shorter))
    assert (left.reason, left.message_index, left.character) == ("history_shortened", at, None)
    assert left.detail.startswith("2 messages were taken out")
    put = explain(session_after(prompt_of(template(), shorter), "answer"), prompt_of(template(), longer))
    assert (put.reason, put.message_index) == ("message_changed", at)
    assert put.detail.startswith("2 messages were put in")


@pytest.mark.parametrize("template", TEMPLATES)
@settings(deadline=None)
@given(data=st.data())
def test_a_conversation_cut_at_its_end(template: Callable[[], ChatTemplate], data: st.DataObject) -> None:
    messages = data.draw(conversations(least=2))
    keep = 2 * data.draw(st.integers(1, len(messages) // 2))
    stop = explain(session_after(prompt_of(template(), messages), "answer"), prompt_of(template(), messages[:keep]))
    assert (stop.reason, stop.message_index) == ("history_shortened", keep)


@pytest.mark.parametrize("template", TEMPLATES)
@settings(deadline=None)
@given(data=st.data())
def test_what_looks_like_a_date_in_the_header(template: Callable[[], ChatTemplate], data: st.DataObject) -> None:
    first, *rest = data.draw(conversations())
    days = data.draw(st.lists(st.dates(), min_size=2, max_size=2, unique=True))
    headers = [
        structs.replace(first, content=f"{first.content}\nToday: {day.isoformat()}\n{first.content}") for day in days
    ]
    session = session_after(prompt_of(template(), [headers[0], *rest]), "answer")
    stop = explain(session, prompt_of(template(), [headers[1], *rest]))
    assert (stop.reason, stop.message_index) == ("volatile_header", 0)
    assert stop.character == first_difference(headers[0].content, headers[1].content)
    assert "a date" in stop.detail
    # What a user says is the user's own, unless a program has put it between tags.
    asked = [structs.replace(headers[n], role="user") for n in (0, 1)]
    said = explain(session_after(prompt_of(template(), asked[:1]), "answer"), prompt_of(template(), asked[1:]))
    assert said.reason == "message_changed"
    tagged = [structs.replace(m, content=f"<system-reminder>\n{m.content}\n</system-reminder>\n\nHi!") for m in asked]
    put = explain(session_after(prompt_of(template(), tagged[:1]), "answer"), prompt_of(template(), tagged[1:]))
    assert put.reason == "volatile_header"


def tool(name: str, description: str = "", **properties: str) -> Tool:
    return Tool(FunctionTool(name, description, {"type": "object", "properties": properties}))


def schema(name: str, **parameters: Any) -> Tool:
    return Tool(FunctionTool(name, "", {"type": "object"} | parameters))


A, B, C = tool("alpha", "Does a.", x="1", y="2"), tool("beta", "Does b."), tool("gamma", "Does c.")


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(
    ("old", "new", "reason", "words"),
    [
        ((A, B, C), (A, C, B), "tool_order", "alpha, beta, gamma and are alpha, gamma, beta"),
        ((A, B), (A, B, C), "tools_changed", "added gamma"),
        ((A, B), (B,), "tools_changed", "removed alpha"),
        ((A, B), (A, C), "tools_changed", "added gamma; removed beta"),
        ((A, B), (A, tool("beta", "Does d.")), "tools_changed", "changed beta: the description at character 5"),
        ((A, B), (tool("alpha", "Does a.", y="2", x="1"), B), "tools_changed", "the order of keys in its parameters"),
        ((A, B), (tool("alpha", "Does a.", x="1", y="3"), B), "tools_changed", "its parameters, in 'properties'"),
        ((schema("a", x=None),), (schema("a"),), "tools_changed", "changed a: its parameters, in 'x'"),
        ((schema("a", x=1),), (schema("a", x=True),), "tools_changed", "changed a: its parameters, in 'x'"),
        ((schema("a", x=1, y=2),), (schema("a", y=2, x=1),), "tools_changed", "the order of keys in its parameters"),
        ((A, A), (A,), "tools_changed", "tools of the same name were added or removed"),
        (
            (tool("now", "It is 2026-02-10."),),
            (tool("now", "It is 2026-02-11."),),
            "tools_changed",
            "in what looks like a date",
        ),
    ],
)
def test_tools_are_named(
    template: Callable[[], ChatTemplate], old: tuple[Tool, ...], new: tuple[Tool, ...], reason: str, words: str
) -> None:
    messages = [Message("system", "Be kind to all that ask."), Message("user", "Hello there")]
    stop = explain(session_after(prompt_of(template(), messages, old), "answer"), prompt_of(template(), messages, new))
    assert stop.reason == reason
    assert words in stop.detail


def test_what_no_template_shows_of_a_tool_is_no_difference() -> None:
    """What OpenAI calls ``strict``, a mark for a vendor's cache, and parameters that are left out or have no fields."""
    empty = {"type": "object", "properties": {}}
    old = Tool(FunctionTool("a", "", {}, strict=True, provider_meta={"anthropic": {"cache_control": {}}}))
    assert tools_difference([old], [Tool(FunctionTool("a", "", empty))]) is None


@st.composite
def prompts(draw: st.DrawFn, template: ChatTemplate) -> Prompt:
    offered = draw(st.lists(anything.tools, max_size=3))
    said = draw(st.lists(anything.messages, min_size=1, max_size=4))
    return prompt_of(template, said, offered, draw(st.sampled_from(["auto", "off", "high"])))


@pytest.mark.parametrize("template", TEMPLATES)
@settings(deadline=None)
@given(data=st.data(), answer=anything.texts, thinking=st.booleans())
def test_whatever_changed_there_is_a_cause(
    template: Callable[[], ChatTemplate], data: st.DataObject, answer: str, thinking: bool
) -> None:
    """An engine that cannot say why would end with all that it holds."""
    old, new = data.draw(prompts(template())), data.draw(prompts(template()))
    session = session_after(old, answer, thinking=thinking)
    shared = shared_length(session.tape, new.ids)
    stop = why_stopped(session, new, shared)
    assert (stop is None) == (shared == len(session.tape))
    assert stop is None or (stop.advice and stop.token == shared)


def test_a_message_that_changed_before_the_tools_is_named_first() -> None:
    """Tiny's template writes the tools behind the system message."""
    template = ENGINES["llama"].template()
    old = [Message("system", "Be kind to all that ask."), Message("user", "Hello there")]
    new = [Message("system", "Be cold to all that ask."), old[1]]
    behind = [old[0], Message("user", "Good bye then")]
    session = session_after(prompt_of(template, old, (A, B)), "answer")
    assert explain(session, prompt_of(template, new, (B, A))).message_index == 0
    assert explain(session, prompt_of(template, behind, (B, A))).reason == "tool_order"


@pytest.mark.parametrize("template", TEMPLATES)
@settings(deadline=None)
@given(answer=contents, other=contents)
def test_an_answer_that_came_back_otherwise(template: Callable[[], ChatTemplate], answer: str, other: str) -> None:
    assume(answer.split() != other.split())
    asked = (Message("system", "Be kind"), Message("user", "Hello"))
    session = session_after(prompt_of(template(), asked), f"{answer}  end\n")
    for sent, words in ((f"{answer} end", "white space"), (other, "another text")):
        prompt = prompt_of(template(), [*asked, Message("assistant", sent), Message("user", "More")])
        stop = explain(session, prompt)
        assert (stop.reason, stop.message_index) == ("answer_changed", 2)
        assert stop.character == first_difference(f"{answer}  end\n", sent)
        assert words in stop.detail
    stop = explain(session, prompt_of(template(), [*asked, Message("user", "More")]))
    assert (stop.reason, stop.message_index) == ("answer_changed", 2)
    assert "left out" in stop.detail


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [('{"b":2,"a":"1"}', "another form"), ('{"a": "1", "b": 3}', "other values"), ("{broken", "other values")],
)
def test_a_call_that_came_back_otherwise(template: Callable[[], ChatTemplate], arguments: str, words: str) -> None:
    asked = (Message("user", "Hello"),)
    said = '<tool_call>\n{"name": "alpha", "arguments": {"a": "1",  "b": 2}}\n</tool_call>'
    session = session_after(prompt_of(template(), asked, (A,)), said)
    call = ToolCall("call_1", FunctionCall("alpha", arguments))
    sent = [*asked, Message("assistant", tool_calls=(call,)), Message("tool", "7", tool_call_id="call_1")]
    stop = explain(session, prompt_of(template(), sent, (A,)))
    assert (stop.reason, stop.message_index) == ("answer_changed", 1)
    assert "alpha" in stop.detail
    assert words in stop.detail


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_arguments_of_an_earlier_call(template: Callable[[], ChatTemplate]) -> None:
    def conversation(id_: str, arguments: str) -> list[Message]:
        call = ToolCall(id_, FunctionCall("alpha", arguments))
        return [
            Message("user", "Hello"),
            Message("assistant", tool_calls=(call,)),
            Message("tool", "7", tool_call_id=id_),
        ]

    session = session_after(prompt_of(template(), conversation("call_1", '{"a": 1}')), "answer")
    stop = explain(session, prompt_of(template(), conversation("call_2", '{"a": 11}')))
    assert (stop.reason, stop.message_index, stop.character) == ("message_changed", 1, None)
    assert "the arguments of its call of alpha differ" in stop.detail
    # Neither template shows the ids: other ones alone are no difference.
    same = prompt_of(template(), conversation("call_2", '{"a": 1}'))
    assert why_stopped(session, same, len(session.ids) - len("answer")).reason == "history_shortened"  # type: ignore[union-attr]


def test_thinking_that_the_template_drops() -> None:
    asked = (Message("user", "Hello"),)
    more = [*asked, Message("assistant", "Hi!"), Message("user", "More")]
    for name in ENGINES:
        template = ENGINES[name].template()
        session = session_after(prompt_of(template, asked, (), "high"), "<think>\nHm.\n</think>\n\nHi!", thinking=True)
        stop = explain(session, prompt_of(template, more, (), "high"))
        assert (stop.reason, stop.message_index, stop.character) == ("thinking_dropped", 1, 0)


EMPTY = ChatTemplate(
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}[/]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
LEVELS = ChatTemplate(
    "[system]Effort: {{ reasoning_effort }}[/]{% for m in messages %}[{{ m.role }}]{{ m.content }}[/]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
CLOCK = "[system]Today is %s.[/]{%% for m in messages %%}[{{ m.role }}]{{ m.content }}[/]{%% endfor %%}[assistant]"
WORDY = "[system]%s.[/]{%% for m in messages %%}[{{ m.role }}]{{ m.content }}[/]{%% endfor %%}[assistant]"
HELLO = (Message("user", "Hello there, how is it going"),)
MORE = (*HELLO, Message("assistant", "Hi!"), Message("user", "More"))


def test_empty_thinking_that_the_template_drops() -> None:
    stop = explain(session_after(prompt_of(EMPTY, HELLO, (), "off"), "Hi!"), prompt_of(EMPTY, MORE, (), "off"))
    assert (stop.reason, stop.message_index) == ("thinking_dropped", 1)


def test_another_level_of_thinking() -> None:
    session = session_after(prompt_of(LEVELS, HELLO, (), "low"), "Hi!")
    for messages in (HELLO, MORE):
        stop = explain(session, prompt_of(LEVELS, messages, (), "high"))
        assert stop.reason == "think_changed"
        assert "low" in stop.detail
        assert "high" in stop.detail
    off = session_after(prompt_of(EMPTY, HELLO, (), "off"), "Hi!")
    assert explain(off, prompt_of(EMPTY, HELLO, (), "high")).reason == "think_changed"


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (CLOCK % "10 Feb 2026", CLOCK % "11 Feb 2026", "volatile_header"),
        (WORDY % "Be kind", WORDY % "Be cold", "template_changed"),
    ],
)
def test_what_the_template_itself_writes(old: str, new: str, reason: str) -> None:
    for messages in (HELLO, MORE):
        stop = explain(
            session_after(prompt_of(ChatTemplate(old), HELLO), "Hi!"), prompt_of(ChatTemplate(new), messages)
        )
        assert (stop.reason, stop.message_index) == (reason, None)
        assert "template" in stop.detail


def test_the_same_text_in_other_tokens() -> None:
    prompt = prompt_of(EMPTY, HELLO)
    session = session_after(prompt, "Hi!")
    other = prompt_of(EMPTY, MORE)
    spelled = Prompt(other.messages, (), "auto", bytes(session.text) + b"[/]", [*prompt.ids, 1, 2, 3])
    stop = why_stopped(session, spelled, len(prompt.ids))
    assert stop is not None
    assert stop.reason == "retokenized"


def test_a_tape_of_an_earlier_engine_is_not_blamed_on_the_conversation() -> None:
    prompt = prompt_of(EMPTY, HELLO)
    session = EngineSession(1)
    session.ids = [*prompt.ids[:5], 7, 7, 7]
    session.lost, session.lost_tokens, session.lost_detail = "model_changed", 8, "the kv type was f16 and is q8_0"
    stop = why_stopped(session, prompt, 5)
    assert stop is not None
    assert (stop.reason, stop.token) == ("model_changed", 5)
    assert "f16" in stop.detail


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), max_size=80), st.lists(st.integers(0, 3), max_size=80), st.data())
def test_only_what_the_tape_had_counts_as_computed_again(
    tape: list[int], target: list[int], data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, len(target)))
    end = data.draw(st.integers(start, len(target)))
    common = first_difference("".join(map(str, tape)), "".join(map(str, target)))
    had = {tuple(tape[n : n + RUN]) for n in range(common, len(tape) - RUN + 1)}
    begin = max(start, common)
    runs = [n for n in range(begin, end - RUN + 1) if tuple(target[n : n + RUN]) in had]
    again = set(range(start, min(common, end))) | {n + k for n in runs for k in range(RUN)}
    assert computed_again(tape, target, start, end) == len(again)


@settings(deadline=None)
@given(st.lists(st.integers(0, 10**6), min_size=RUN, max_size=200), st.data())
def test_a_changed_header_costs_all_that_follows_it(rest: list[int], data: st.DataObject) -> None:
    more = data.draw(st.lists(st.integers(10**7, 10**8), max_size=20))
    again = computed_again([1, 2, 3, *rest], [1, 2, 4, *rest, *more], 2, 3 + len(rest) + len(more))
    assert again == len(rest)


def test_a_message_that_became_like_a_later_one_was_edited() -> None:
    old = [Message("user", "Hello"), Message("user", "Yes"), Message("user", "No")]
    new = [old[0], old[2], old[2]]
    stop = explain(session_after(prompt_of(EMPTY, old), "answer"), prompt_of(EMPTY, new))
    assert (stop.reason, stop.message_index, stop.character) == ("message_changed", 1, 0)
