"""Hazard: an answer that goes on on another owner repeats, loses or mixes text."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from modeld.transport.resume import DivergedError, Replay, TokenReplay, Transcript
from modeld.types import (
    ChatResult,
    EndPart,
    ErrorPart,
    LogprobsPart,
    PartsJoiner,
    ProgressPart,
    Receipt,
    StreamPart,
    TextPart,
    ThinkingPart,
    TokenLogprob,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Usage,
    WarningPart,
)

END = EndPart(finish_reason="stop", usage=Usage(), receipt=Receipt())
CANCELLED = EndPart(finish_reason="cancelled", usage=Usage(), receipt=Receipt())
words = st.text("ab \n", max_size=6)


@st.composite
def answers(draw: st.DrawFn) -> list[StreamPart]:
    """The content of an answer, in order."""
    parts: list[StreamPart] = []
    for index in range(draw(st.integers(0, 5))):
        match draw(st.sampled_from(["text", "thinking", "call", "error"])):
            case "text":
                parts.append(TextPart(draw(words)))
            case "thinking":
                parts.append(ThinkingPart(draw(words)))
            case "error":
                parts.append(ErrorPart("broken", "m", draw(words)))
            case "call":
                parts += [
                    ToolCallStart(index, f"id{index}", "f"),
                    ToolCallDelta(index, draw(words)),
                    ToolCallEnd(index),
                ]
    return [*parts, END]


@st.composite
def cut_anew(draw: st.DrawFn, answer: Sequence[StreamPart]) -> list[StreamPart]:
    """The same content in other pieces, with progress and empty parts between."""
    parts: list[StreamPart] = []
    for part in answer:
        if draw(st.booleans()):
            parts.append(draw(st.sampled_from([ProgressPart(0, 1, 2), TextPart("")])))
        match part:
            case TextPart(text=text) | ThinkingPart(text=text):
                parts += [type(part)(piece) for piece in draw(pieces(text))]
            case ToolCallDelta(index=index, arguments=text):
                parts += [ToolCallDelta(index, piece) for piece in draw(pieces(text))]
            case _:
                parts.append(part)
    return parts


@st.composite
def pieces(draw: st.DrawFn, text: str) -> list[str]:
    cuts = sorted(draw(st.lists(st.integers(0, len(text)), max_size=3)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


def joined(parts: Sequence[StreamPart]) -> ChatResult:
    joiner = PartsJoiner()
    for part in parts:
        joiner.add(part)
    return joiner.result()


def repeat(delivered: Sequence[StreamPart], again: Sequence[StreamPart]) -> list[StreamPart]:
    """What a caller gets who has ``delivered`` when the second run says ``again``."""
    transcript = Transcript()
    for part in delivered:
        transcript.add(part)
    replay = Replay(transcript)
    return [*delivered, *(fresh for part in again if (fresh := replay.fresh(part)) is not None)]


@given(st.data())
def test_wherever_it_is_cut_the_whole_is_the_same(data: st.DataObject) -> None:
    answer = data.draw(answers())
    first, second = data.draw(cut_anew(answer)), data.draw(cut_anew(answer))
    delivered = first[: data.draw(st.integers(0, len(first) - 1))]
    got = joined(repeat(delivered, second))
    assert got.message == joined(answer).message
    assert [error.raw for error in got.errors] == [error.raw for error in joined(answer).errors]


@given(st.data())
def test_another_answer_is_never_mixed_in(data: st.DataObject) -> None:
    answer, other = data.draw(answers()), data.draw(answers())
    delivered = answer[: data.draw(st.integers(0, len(answer) - 1))]
    try:
        got = joined(repeat(delivered, other))
    except DivergedError:
        return
    # It passed: then the other answer begins with all that was delivered.
    assert got.message == joined(other).message


@pytest.mark.parametrize(
    "again",
    [
        [TextPart("ax"), END],
        [TextPart("a"), END],
        [END],
        [ThinkingPart("ab"), END],
        [TextPart("ab"), ToolCallStart(0, "x", "g")],
        [TextPart("abc"), ToolCallStart(0, "x", "f"), END],
        [TextPart("ab"), ToolCallStart(0, "x", "f"), TextPart("more")],
        [TextPart("ab"), ToolCallStart(0, "x", "f"), ToolCallDelta(0, '{"b')],
        [TextPart("ab"), ToolCallStart(0, "x", "f"), ToolCallDelta(1, '{"a')],
    ],
)
def test_what_differs_is_refused(again: list[StreamPart]) -> None:
    with pytest.raises(DivergedError):
        repeat([TextPart("ab"), ToolCallStart(0, "mine", "f"), ToolCallDelta(0, '{"a')], again)


def test_a_call_keeps_the_id_it_was_given_first() -> None:
    call = [ToolCallStart(0, "mine", "f"), ToolCallDelta(0, "{}"), ToolCallEnd(0), END]
    got = joined(repeat(call[:2], [ToolCallStart(0, "other", "f"), *call[1:]]))
    assert [(call.id, call.function.arguments) for call in got.message.tool_calls] == [("mine", "{}")]


def test_warnings_of_the_repeated_stretch_are_not_said_twice() -> None:
    warning = WarningPart("w", "once")
    assert joined(repeat([warning, TextPart("a")], [warning, TextPart("ab"), END])).warnings == (warning,)


def test_a_cancelled_repetition_ends() -> None:
    assert repeat([TextPart("long")], [TextPart("lo"), CANCELLED]) == [TextPart("long"), CANCELLED]


TOKENS = tuple(TokenLogprob(-0.5 * place, data) for place, data in enumerate((b"Oslo", b" is", b" ", b"dry")))


@pytest.mark.parametrize("had", range(5))
@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_a_token_is_told_once_wherever_the_parts_were_cut(had: int, size: int) -> None:
    transcript = Transcript()
    transcript.add(LogprobsPart(TOKENS[:had]))
    replay = TokenReplay(transcript)
    # The same tokens, with numbers of another machine.
    again = [structs.replace(token, logprob=token.logprob - 1e-3) for token in TOKENS]
    fresh = [replay.fresh(LogprobsPart(tuple(again[at : at + size]))) for at in range(0, 4, size)]
    assert [token for part in fresh if part is not None for token in part.tokens] == again[had:]


def test_other_tokens_of_the_same_text_are_refused() -> None:
    transcript = Transcript()
    transcript.add(LogprobsPart(TOKENS))
    with pytest.raises(DivergedError):
        TokenReplay(transcript).fresh(LogprobsPart((TOKENS[0], TokenLogprob(-1.0, b" i"))))


def test_characters_are_counted_as_delivered() -> None:
    transcript = Transcript()
    for part in (TextPart("abc"), ThinkingPart("de"), ToolCallDelta(0, "f"), ProgressPart(0, 1, 2)):
        transcript.add(part)
    assert transcript.characters == 6
