"""Hazard: an answer that no vendor would give loses words, mixes calls, or raises what nobody expects."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from modeld.errors import BackendProtocolError, InvalidRequestError
from modeld.providers.anthropic_events import Decoder as AnthropicDecoder
from modeld.providers.anthropic_messages import build_request
from modeld.providers.chat_decoder import ChatDecoder
from modeld.providers.facts import observe
from modeld.providers.failures import Failure, failure_error, is_http, retry_after
from modeld.providers.openai import OPENAI
from modeld.providers.responses_events import Decoder as ResponsesDecoder
from modeld.providers.sse import sse_data
from modeld.repository.names import ToolNames
from modeld.repository.wire import Call
from modeld.types import ChatConfig, ChatResult, Message, PartsJoiner, StreamPart

NAMES = ToolNames((), 64)


def encoded(value: Any) -> bytes:
    return json.dumps(value).encode()


def joined(parts: Sequence[StreamPart]) -> ChatResult:
    joiner = PartsJoiner()
    for part in parts:
        joiner.add(part)
    return joiner.result()


def chunk(finish: str | None = None, **delta: Any) -> bytes:
    return encoded({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


def called(index: int | None, id: str | None, name: str | None, arguments: str) -> dict[str, Any]:
    return {"index": index, "id": id, "function": {"name": name, "arguments": arguments}}


def streamed(*events: bytes) -> list[StreamPart]:
    decoder = ChatDecoder(OPENAI, "m", NAMES)
    return [part for event in events for part in decoder.feed(event)] + decoder.close()


TWO = [("a", '{"x": 1}'), ("b", '{"y": 2}')]


def calls_of(result: ChatResult) -> list[tuple[str, str]]:
    assert len({call.id for call in result.tool_calls}) == len(result.tool_calls)
    return [(call.function.name, call.function.arguments) for call in result.tool_calls]


@pytest.mark.parametrize(("first", "second"), [((0, "c"), (1, "c")), ((0, None), (0, None)), ((0, ""), (1, ""))])
def test_two_calls_that_look_alike_stay_two_in_a_stream(first: tuple[Any, Any], second: tuple[Any, Any]) -> None:
    events = []
    for (index, id), (name, arguments) in zip((first, second), TWO, strict=True):
        events.append(chunk(tool_calls=[called(index, id, name, arguments[:4])]))
        events.append(chunk(tool_calls=[called(index, id, None, arguments[4:])]))
    assert calls_of(joined(streamed(*events, chunk("tool_calls")))) == TWO


def test_pieces_of_two_calls_with_one_id_go_where_their_index_says() -> None:
    begin = [chunk(tool_calls=[called(index, "c", name, "")]) for index, (name, _) in enumerate(TWO)]
    rest = [chunk(tool_calls=[called(index, "c", None, text)]) for index, (_, text) in enumerate(TWO)]
    assert calls_of(joined(streamed(*begin, *rest, chunk("tool_calls")))) == TWO


@pytest.mark.parametrize(("index", "id"), [(0, "c"), (0, None), (None, "c"), (None, None)])
def test_each_call_of_a_whole_answer_is_one(index: int | None, id: str | None) -> None:
    message = {"tool_calls": [called(index, id, name, arguments) for name, arguments in TWO]}
    body = encoded({"choices": [{"message": message, "finish_reason": "tool_calls"}]})
    assert calls_of(joined(ChatDecoder(OPENAI, "m", NAMES).whole(body))) == TWO


def test_an_empty_finish_reason_is_none_and_a_cut_stays_a_cut() -> None:
    assert [type(part).__name__ for part in streamed(chunk("", content="half"))] == ["TextPart"]


BLOCK = {"type": "content_block_start", "index": 0, "content_block": {"type": "tool_use", "id": "t", "name": "n"}}
DELTA = {"type": "content_block_delta", "index": 0}


@pytest.mark.parametrize(
    "events",
    [
        [{**DELTA, "delta": {"type": "text_delta", "text": "lost"}}],
        [{**DELTA, "delta": {"type": "input_json_delta", "partial_json": "{}"}}],
        [
            BLOCK,
            {"type": "content_block_stop", "index": 0},
            {**DELTA, "delta": {"type": "input_json_delta", "partial_json": "{}"}},
        ],
    ],
)
def test_a_delta_without_its_block_is_not_dropped_in_silence(events: list[dict[str, Any]]) -> None:
    decoder = AnthropicDecoder("m", NAMES)
    for event in events[:-1]:
        decoder.feed(encoded(event))
    with pytest.raises(BackendProtocolError, match="block 0"):
        decoder.feed(encoded(events[-1]))


@pytest.mark.parametrize(
    "meta", ["x", {"model": "claude-x", "content": [5]}, {"model": "claude-x", "content": [{"type": "text"}]}]
)
def test_thinking_that_was_changed_is_said(meta: Any) -> None:
    said = Message("assistant", "y", provider_meta={"anthropic": meta})
    call = Call(model=observe("claude-x", None), messages=(Message("user", "x"), said), config=ChatConfig())
    with pytest.raises(InvalidRequestError, match="provider_meta"):
        build_request(call, NAMES)


def responded(*events: dict[str, Any]) -> ChatResult:
    decoder = ResponsesDecoder(NAMES, "m")
    return joined([part for event in events for part in decoder.feed(encoded(event))])


MESSAGE = {"type": "message", "content": [{"type": "output_text", "text": "words"}]}
DONE = {"type": "response.completed", "response": {"status": "completed", "output": []}}


@pytest.mark.parametrize(
    "events",
    [
        [{"type": "response.output_item.done", "output_index": 0, "item": MESSAGE}, DONE],
        [{"type": "response.output_item.done", "item": MESSAGE}, DONE],
        [{"type": "response.completed", "response": {"status": "completed", "output": [MESSAGE]}}],
        [
            {"type": "response.output_text.delta", "output_index": 0, "delta": "words"},
            {"type": "response.output_item.done", "output_index": 0, "item": MESSAGE},
            {"type": "response.completed", "response": {"status": "completed", "output": [MESSAGE]}},
        ],
    ],
)
def test_words_that_came_without_deltas_are_said_once(events: list[dict[str, Any]]) -> None:
    assert responded(*events).text == "words"


def item(name: str, arguments: str) -> dict[str, Any]:
    return {"type": "function_call", "id": "f", "call_id": f"call_{name}", "name": name, "arguments": arguments}


def test_calls_that_share_an_id_are_told_apart_by_their_place() -> None:
    added = [
        {"type": "response.output_item.added", "output_index": place, "item": item(name, "")}
        for place, (name, _) in enumerate(TWO)
    ]
    done = [
        {"type": "response.output_item.done", "output_index": place, "item": item(name, arguments)}
        for place, (name, arguments) in enumerate(TWO)
    ]
    assert calls_of(responded(*added, *done, DONE)) == TWO


def test_arguments_that_contradict_their_pieces_are_no_arguments() -> None:
    events = [
        {"type": "response.output_item.added", "output_index": 0, "item": item("a", "")},
        {"type": "response.function_call_arguments.delta", "output_index": 0, "item_id": "f", "delta": "{}"},
        {"type": "response.output_item.done", "output_index": 0, "item": item("a", '{"x": 1}')},
    ]
    with pytest.raises(BackendProtocolError, match="arguments"):
        responded(*events)


@pytest.mark.anyio
async def test_the_first_event_is_read_behind_a_byte_order_mark_and_empty_ones_are_none() -> None:
    async def chunks(size: int) -> Any:
        body = b"\xef\xbb\xbfdata: one\n\ndata:\n\ndata: two\n\n"
        for at in range(0, len(body), size):
            yield body[at : at + size]

    for size in (1, 2, 5, 100):
        assert [event async for event in sse_data(chunks(size))] == [b"one", b"two"]


@pytest.mark.parametrize("value", ["9" * 400, "Mon, 01 Jan 99999999999999 00:00:00 GMT"])
def test_a_wait_without_end_is_no_wait(value: str) -> None:
    assert retry_after({"retry-after": value}) is None


def test_a_redirect_says_where_to() -> None:
    failure = Failure(message="", status=307, headers={"location": "https://other/v1"})
    assert "https://other/v1" in failure_error("openai", "m", failure, {}).message


@pytest.mark.parametrize("url", ["http://[::1", "http://h:99999", "ftp://h/x", "http:///v1", ""])
def test_what_is_no_address_is_none(url: str) -> None:
    assert not is_http(url)
