"""Hazard: a conversation cut in the wrong place: a call without its result, half a turn, another cut each time."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from modeld.engine.overflow import Shown, cuts, shorten, show
from modeld.engine.session import Prompt
from modeld.types import FunctionCall, Message, ToolCall

WINDOW = 100
IDS = ("call_1", "call_2", "")

kinds = st.one_of(
    st.sampled_from(["user", "user", "assistant", "system"]),
    st.tuples(st.just("tool"), st.sampled_from(IDS)),
    st.tuples(st.just("calls"), st.lists(st.sampled_from(IDS[:2]), min_size=1, max_size=2)),
)


def message(kind: object, content: str) -> Message:
    match kind:
        case ("tool", str(call)):
            return Message("tool", content, tool_call_id=call)
        case ("calls", list(ids)):
            calls = tuple(ToolCall(id_, FunctionCall("look")) for id_ in ids)
            return Message("assistant", content, tool_calls=calls)
        case role:
            return Message(role, content)  # type: ignore[arg-type]


# Each message says its own place: what is kept can be told from any two.
conversations = st.lists(kinds, max_size=14).map(lambda some: tuple(message(k, str(i)) for i, k in enumerate(some)))


def call_of(messages: tuple[Message, ...], result: int) -> int | None:
    """The call that a tool's message answers: the latest of its id, else the latest."""
    before = [i for i in range(result) if messages[i].tool_calls]
    named = [i for i in before if messages[result].tool_call_id in [call.id for call in messages[i].tool_calls]]
    return max(named or before, default=None)


def turns(messages: tuple[Message, ...]) -> list[list[int]]:
    """Places of the messages of each turn; what comes before the first one's user is one too."""
    starts = [0, *(i for i, m in enumerate(messages) if m.role == "user"), len(messages)]
    return [list(range(start, end)) for start, end in pairwise(starts) if start < end]


@given(conversations, st.integers(0, 3))
def test_what_leaves_is_whole_and_what_must_stay_stays(messages: tuple[Message, ...], stable: int) -> None:
    shown = show(messages, messages[:stable], None, WINDOW)
    assert shown.messages == messages
    for cut in cuts(messages, shown.head):
        after = shown.without(cut, WINDOW)
        kept = [int(message.content) for message in after.messages]
        assert kept == sorted(kept)
        assert after.messages == tuple(messages[i] for i in kept)
        assert set(range(len(messages[:stable]))) <= set(kept)
        assert {i for i, m in enumerate(messages) if m.role == "system"} <= set(kept)
        assert set(turns(messages)[-1]) <= set(kept)
        for turn in turns(messages):
            speech = {i for i in turn if messages[i].role != "system"}
            # A turn that begins among the stable messages stays to its end.
            assert speech <= set(kept) or not speech & set(kept)
        for place in kept:
            call = call_of(messages, place) if messages[place].role == "tool" else None
            assert call is None or call in kept
        assert after.left is not None
        assert after.left.messages == len(messages) - len(kept) > 0


@given(conversations, st.integers(0, 2), conversations, st.data())
def test_the_same_turns_leave_when_the_conversation_comes_again(
    messages: tuple[Message, ...], stable: int, more: tuple[Message, ...], data: st.DataObject
) -> None:
    shown = show(messages, messages[:stable], None, WINDOW)
    if not (options := cuts(messages, shown.head)):
        return
    after = shown.without(data.draw(st.sampled_from(options)), WINDOW)
    left = after.left
    assert left is not None
    added = tuple(m for m in more if m.role != "tool")
    assert show((*messages, *added), messages[:stable], left, WINDOW) == structs.replace(
        after, messages=(*after.messages, *added)
    )
    # A late result of a call that left brings it back, and another window all of it.
    assert show((*messages, *more), messages[:stable], left, WINDOW).left in (left, None)
    assert show(messages, messages[:stable], left, WINDOW + 1) == shown
    place = data.draw(st.integers(0, left.cut - 1))
    edited = (*messages[:place], structs.replace(messages[place], content="other"), *messages[place + 1 :])
    assert show(edited, edited[:stable], left, WINDOW).left is None
    assert show(messages[: left.cut], messages[:stable], left, WINDOW).left is None
    # What is never sent to a model changes nothing.
    thought = tuple(structs.replace(m, thinking="hm", provider_meta={"x": 1}) for m in messages)
    assert show(thought, thought[:stable], left, WINDOW).left == left


@given(conversations, st.data())
def test_leaving_in_two_steps_is_leaving_at_once(messages: tuple[Message, ...], data: st.DataObject) -> None:
    whole = show(messages, (), None, WINDOW)
    options = cuts(messages, 0)
    for first in options:
        step = whole.without(first, WINDOW)
        again = cuts(step.messages, step.head)
        assert [messages.index(step.messages[cut]) for cut in again] == [cut for cut in options if cut > first]
        for cut in again:
            assert step.without(cut, WINDOW) == whole.without(messages.index(step.messages[cut]), WINDOW)


def prompt_of(shown: Shown) -> Prompt:
    return Prompt(shown.messages, (), "auto", b"", [0] * (5 + 10 * len(shown.messages)), shown.left)


@given(conversations, st.integers(0, 150))
def test_as_few_turns_leave_as_the_goal_allows(messages: tuple[Message, ...], goal: int) -> None:
    shown = show(messages, (), None, WINDOW)
    tokens = len(prompt_of(shown).ids)
    found = shorten(shown, tokens, prompt_of, goal=goal, window=WINDOW)
    tried = [prompt_of(shown.without(cut, WINDOW)) for cut in cuts(messages, 0)]
    if not tried:
        assert found is None
        return
    best = next((one for one in tried if len(one.ids) <= goal), tried[-1])
    assert found is not None
    assert found.messages == best.messages
    assert found.left is not None
    assert found.left.tokens == tokens - len(best.ids)
    assert structs.replace(found.left, tokens=0) == best.left


def test_a_greeting_before_the_first_question_leaves_like_a_turn() -> None:
    talk = (Message("system", "s"), Message("assistant", "Welcome!"), Message("user", "a"), Message("user", "b"))
    assert cuts(talk, 0) == [2, 3]
    assert show(talk, (), None, WINDOW).without(2, WINDOW).messages == (talk[0], *talk[2:])


def test_a_call_that_ids_name_again_in_each_turn_is_the_latest_one() -> None:
    rounds = [
        (Message("user", f"{n}"), message(("calls", ["call_1"]), f"{n}c"), message(("tool", "call_1"), f"{n}r"))
        for n in range(3)
    ]
    assert cuts([m for one in rounds for m in one], 0) == [3, 6]


def test_a_result_that_comes_after_the_next_question_holds_both_turns_together() -> None:
    call, result = message(("calls", ["call_1"]), "c"), message(("tool", "call_1"), "r")
    talk = (Message("user", "a"), call, Message("user", "hurry up"), result, Message("user", "b"))
    assert cuts(talk, 0) == [4]


def test_system_messages_in_the_middle_stay_and_are_remembered() -> None:
    talk = tuple(Message(role, str(i)) for i, role in enumerate(("user", "system", "user", "system", "user", "user")))  # type: ignore[arg-type]
    after = show(talk, (), None, WINDOW).without(4, WINDOW)
    assert [m.content for m in after.messages] == ["1", "3", "4", "5"]
    assert after.left is not None
    assert (after.left.cut, after.left.stays, after.left.messages) == (4, 2, 2)
    again = show((*talk, Message("user", "6")), (), after.left, WINDOW)
    assert [m.content for m in again.messages] == ["1", "3", "4", "5", "6"]
    (cut,) = [cut for cut in cuts(again.messages, again.head) if again.messages[cut].content == "6"]
    assert [m.content for m in again.without(cut, WINDOW).messages] == ["1", "3", "6"]
