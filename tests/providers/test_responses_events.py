"""Hazard: an answer of the Responses API comes cut up, interleaved, failed or new, and is taken for another one."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from modeld import (
    BackendError,
    BackendProtocolError,
    BackendUnavailableError,
    ChatResult,
    ContextOverflowError,
    EndPart,
    FunctionCall,
    FunctionTool,
    InvalidRequestError,
    QuotaError,
    RateLimitError,
    StreamPart,
    TextPart,
    ThinkingPart,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Usage,
    WarningPart,
)
from modeld.providers.responses_events import Decoder
from modeld.providers.sse import sse_data
from modeld.repository.names import ToolNames
from modeld.testing.responses import WrittenResponse, responses_error_event
from modeld.testing.responses_requests import Function, checked_request
from modeld.testing.server import Answer
from modeld.types import PartsJoiner

pytestmark = pytest.mark.anyio

TOOLS = (Tool(FunctionTool("fs.list")), Tool(FunctionTool("clock")))
CALLS = (
    ToolCall("call_a", FunctionCall("fs.list", '{"path":"/tmp"}')),
    ToolCall("call_b", FunctionCall("clock", '{"zone":"UTC"}')),
)
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


def decoder() -> Decoder:
    return Decoder(ToolNames(TOOLS, 64), "gpt-5")


def written(answer: Answer, **request: Any) -> WrittenResponse:
    tools = [Function(name=name, parameters={}, strict=False) for name in ("fs_list", "clock")]
    body = {"model": "gpt-5", "input": "hi", "reasoning": {"effort": "high", "summary": "auto"}, **request}
    wanted = checked_request(json.dumps(body).encode())
    wanted.tools.extend(tools)
    return WrittenResponse(wanted, answer, 7)


def whole(answer: Answer) -> list[StreamPart]:
    return decoder().whole(json.dumps(written(answer).response()).encode())


def events(answer: Answer) -> list[dict[str, Any]]:
    lines = b"".join(written(answer).pieces()).decode().split("\n")
    return [json.loads(line[6:]) for line in lines if line.startswith("data: ")]


def fed(*said: Any) -> list[StreamPart]:
    reader = decoder()
    return [part for event in said for part in reader.feed(json.dumps(event).encode())]


def joined(parts: list[StreamPart]) -> ChatResult:
    joiner = PartsJoiner()
    for part in parts:
        joiner.add(part)
    return joiner.result()


def answers() -> st.SearchStrategy[Answer]:
    arguments = st.dictionaries(st.text(max_size=5), st.text(max_size=20), max_size=3).map(
        lambda value: json.dumps(value, ensure_ascii=False)
    )
    calls = st.lists(
        st.builds(FunctionCall, st.sampled_from(["fs.list", "clock", "made.up"]), arguments), max_size=3
    ).map(lambda found: tuple(ToolCall(f"call_{n}", call) for n, call in enumerate(found)))
    return st.builds(
        Answer,
        text=st.text(max_size=60),
        thinking=st.text(max_size=60),
        refusal=st.sampled_from(["", "I cannot."]),
        tool_calls=calls,
        finish_reason=st.sampled_from(["stop", "length", "refused"]),
        usage=st.builds(
            Usage,
            input=st.integers(0, 99),
            output=st.integers(0, 99),
            cache_read=st.integers(0, 9),
            cache_write=st.integers(0, 9),
            reasoning=st.integers(0, 9),
        ),
        pieces=st.integers(1, 9),
    )


@given(answers())
def test_the_joined_stream_equals_the_whole_answer(answer: Answer) -> None:
    result = joined(whole(answer))
    assert joined(fed(*events(answer))) == result
    assert result.text == (answer.text + answer.refusal)
    assert result.thinking == answer.thinking
    assert [(c.id, c.function.arguments) for c in result.tool_calls] == [
        (c.id, c.function.arguments) for c in answer.tool_calls
    ]
    usage = answer.usage
    assert result.usage == Usage(
        input=usage.input,
        output=usage.output,
        cache_read=usage.cache_read,
        cache_write=usage.cache_write,
        reasoning=usage.reasoning,
        source="reported",
    )


@given(answers(), st.data())
async def test_where_the_bytes_are_cut_changes_nothing(answer: Answer, data: st.DataObject) -> None:
    body = b"".join(written(answer).pieces())
    cuts = sorted(data.draw(st.sets(st.integers(1, len(body) - 1), max_size=40)))

    async def chunks() -> AsyncIterator[bytes]:
        for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True):
            yield body[start:end]

    reader = decoder()
    parts = [part async for event in sse_data(chunks()) for part in reader.feed(event)]
    assert joined(parts) == joined(whole(answer))


def of_calls(answer: Answer) -> tuple[list[Any], list[list[Any]], list[Any]]:
    """Head, the events of each call, tail."""
    said = events(answer)
    groups = [[e for e in said if e.get("output_index") == n] for n in range(len(answer.tool_calls))]
    return said[:2], groups, said[-1:]


@given(st.data())
def test_parallel_calls_may_be_interleaved(data: st.DataObject) -> None:
    answer = Answer(tool_calls=CALLS, finish_reason="tool_calls", pieces=5)
    head, groups, tail = of_calls(answer)
    first, second = groups
    # Items are added in order; what follows of each may come in any.
    mixed, rest = [first.pop(0), second.pop(0)], [first, second]
    while rest[0] or rest[1]:
        mixed.append(rest[data.draw(st.sampled_from([n for n in (0, 1) if rest[n]]))].pop(0))
    assert joined(fed(*head, *mixed, *tail)) == joined(whole(answer))


@pytest.mark.parametrize("lost", ["item_id", "output_index"])
def test_a_call_is_told_by_its_place_or_by_its_id(lost: str) -> None:
    """Gateways give an item a new id with each event, or number every item 0."""
    answer = Answer(tool_calls=CALLS, finish_reason="tool_calls")
    head, (first, second), tail = of_calls(answer)
    said = [*head, *(event for pair in zip(first, second, strict=True) for event in pair), *tail]
    for number, event in enumerate(said):
        if lost == "output_index" and "output_index" in event:
            event["output_index"] = 0
        elif lost == "item_id" and "item_id" in event:
            event["item_id"] = f"fc_{number}"
    assert joined(fed(*said)).tool_calls == joined(whole(answer)).tool_calls


def test_parts_come_in_order_and_calls_are_whole() -> None:
    parts = fed(*events(Answer(text="ab", thinking="hm", tool_calls=CALLS, finish_reason="tool_calls", pieces=1)))
    assert parts[:-1] == [
        ThinkingPart("hm"),
        TextPart("ab"),
        ToolCallStart(0, "call_a", "fs.list"),
        ToolCallDelta(0, '{"path":"/tmp"}'),
        ToolCallEnd(0),
        ToolCallStart(1, "call_b", "clock"),
        ToolCallDelta(1, '{"zone":"UTC"}'),
        ToolCallEnd(1),
    ]
    end = parts[-1]
    assert isinstance(end, EndPart)
    assert (end.finish_reason, end.model) == ("tool_calls", "gpt-5")
    assert end.id.startswith("resp_")


def test_arguments_without_deltas_are_taken_from_the_item() -> None:
    said = [e for e in events(Answer(tool_calls=CALLS[:1])) if not e["type"].endswith("arguments.delta")]
    assert joined(fed(*said)).tool_calls == CALLS[:1]


def test_a_call_without_arguments_and_id_gets_both() -> None:
    said = events(Answer(tool_calls=(ToolCall("x", FunctionCall("clock", "")),)))
    for event in said:
        if "item" in event:
            del event["item"]["call_id"]
    (call,) = joined(fed(*said)).tool_calls
    assert call.function.arguments == "{}"
    assert len(call.id) == 29
    assert call.id.startswith("call_")


def test_a_call_that_is_not_done_at_the_end_is_ended() -> None:
    said = [e for e in events(Answer(tool_calls=CALLS)) if e["type"] != "response.output_item.done"]
    parts = fed(*said)
    assert [p.index for p in parts if isinstance(p, ToolCallEnd)] == [0, 1]
    assert joined(parts).tool_calls == CALLS


def test_parts_of_a_summary_are_paragraphs_in_both_ways() -> None:
    summary = [{"type": "summary_text", "text": text} for text in ("**One**\n\nFirst.", "", "**Two**\n\nSecond.")]
    item = {"type": "reasoning", "id": "rs_1", "summary": summary, "encrypted_content": "secret"}
    body = {**written(Answer(text="x")).response(), "output": [item, {**item, "id": "rs_2"}]}
    place = {"item_id": "rs_1", "type": "response.reasoning_summary_text.delta"}
    deltas = [
        {**place, "output_index": n, "summary_index": m, "delta": text}
        for n in (0, 1)
        for m, part in enumerate(summary)
        for text in (part["text"][:4], part["text"][4:])
    ]
    said = [*deltas, {"type": "response.completed", "response": body}]
    result = joined(decoder().whole(json.dumps(body).encode()))
    assert result.thinking == "\n\n".join(["**One**\n\nFirst.", "**Two**\n\nSecond."] * 2)
    assert joined(fed(*said)).thinking == result.thinking


def test_raw_reasoning_of_open_models_is_thinking() -> None:
    item = {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
    body = {**written(Answer()).response(), "output": [item]}
    delta = {"type": "response.reasoning_text.delta", "output_index": 0, "content_index": 0, "delta": "hm"}
    assert joined(fed(delta, {"type": "response.completed", "response": body})).thinking == "hm"
    assert joined(decoder().whole(json.dumps(body).encode())).thinking == "hm"


# How it ends.


def test_a_refusal_gives_its_words_and_is_refused() -> None:
    for result in (joined(whole(Answer(refusal="No."))), joined(fed(*events(Answer(refusal="No."))))):
        assert (result.text, result.finish_reason) == ("No.", "refused")


@pytest.mark.parametrize(("reason", "finish"), [("max_output_tokens", "length"), ("content_filter", "refused")])
def test_an_incomplete_answer_says_why(reason: str, finish: str) -> None:
    body = {"id": "r", "model": "m", "status": "incomplete", "output": [], "incomplete_details": {"reason": reason}}
    parts = decoder().whole(json.dumps(body).encode())
    assert [p.finish_reason for p in parts if isinstance(p, EndPart)] == [finish]
    assert fed({"type": "response.incomplete", "response": body}) == parts


@pytest.mark.parametrize("details", [{"reason": "steered"}, {"reason": None}, {}, None, "new shape"])
def test_an_unknown_reason_is_a_stop_with_a_warning(details: Any) -> None:
    body = {"id": "r", "model": "m", "status": "incomplete", "output": [], "incomplete_details": details}
    warning, end = decoder().whole(json.dumps(body).encode())
    assert isinstance(warning, WarningPart)
    assert warning.code == "unknown_finish_reason"
    assert isinstance(end, EndPart)
    assert end.finish_reason == "stop"
    assert fed({"type": "response.incomplete", "response": body}) == [warning, end]


FAILURES = [
    ("server_error", BackendUnavailableError, True),
    ("rate_limit_exceeded", RateLimitError, True),
    ("too_many_requests", RateLimitError, True),
    ("insufficient_quota", QuotaError, False),
    ("context_length_exceeded", ContextOverflowError, False),
    ("invalid_image", InvalidRequestError, False),
    ("something_new", BackendError, False),
    (None, BackendError, False),
]


def failing_ways(code: str | None, message: str) -> Iterator[Any]:
    error = {"code": code, "message": message, "type": "invalid_request_error" if code == "bio_policy" else None}
    failed = {"id": "r", "status": "failed", "output": [], "error": error}
    yield lambda: decoder().whole(json.dumps(failed).encode())
    yield lambda: fed({"type": "response.failed", "response": failed})
    yield lambda: fed(json.loads(responses_error_event(code or "", message).split(b"data: ")[1]))
    yield lambda: fed({"type": "error", "sequence_number": 2, "error": {**error, "param": None}})
    yield lambda: fed({"error": error})


@pytest.mark.parametrize(("code", "error", "retryable"), FAILURES)
def test_a_failure_is_typed_however_it_is_told(code: str | None, error: type[BackendError], retryable: bool) -> None:
    for way in failing_ways(code, "it broke"):
        with pytest.raises(error, match="it broke") as caught:
            way()
        assert type(caught.value) is error
        assert caught.value.retryable is retryable
        assert caught.value.details["vendor_code"] == (code or "")


@pytest.mark.parametrize("code", ["invalid_prompt", "bio_policy", "image_content_policy_violation"])
def test_a_policy_declines_however_it_is_told(code: str) -> None:
    for way in failing_ways(code, "Your prompt was flagged."):
        result = joined(way())
        assert (result.text, result.finish_reason) == ("Your prompt was flagged.", "refused")


def test_a_failed_answer_without_an_error_is_still_failed() -> None:
    for status in ("failed", "cancelled"):
        with pytest.raises(BackendError, match=status):
            decoder().whole(json.dumps({"id": "r", "status": status, "output": []}).encode())


def test_an_error_after_text_is_raised_and_not_ended() -> None:
    reader = decoder()
    for event in events(Answer(text="Hello there"))[:6]:
        reader.feed(json.dumps(event).encode())
    with pytest.raises(BackendUnavailableError):
        reader.feed(responses_error_event("server_error", "gone").split(b"data: ")[1])


def test_a_stream_without_its_last_event_has_no_end() -> None:
    assert not any(isinstance(part, EndPart) for part in fed(*events(Answer(text="Hello"))[:-1]))
    assert decoder().close() == []


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[1]",
        b'"text"',
        b'{"type": 3}',
        b"\xff\xfe",
        b'{"type":"response.completed"}',
        b'{"type":"response.completed","response":{"output":3}}',
        b'{"type":"response.output_item.done","item":null}',
        b'{"type":"response.function_call_arguments.delta","item_id":"x","output_index":0,"delta":"{"}',
    ],
)
def test_what_is_no_event_is_a_protocol_error(data: bytes) -> None:
    with pytest.raises(BackendProtocolError):
        decoder().feed(data)


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"{}", b"[]", b'{"output": null}', b'{"status":"queued","output":[]}', b'{"output":[3]}'],
)
def test_what_is_no_answer_is_a_protocol_error(body: bytes) -> None:
    with pytest.raises(BackendProtocolError):
        decoder().whole(body)


@pytest.mark.parametrize(
    "event",
    [
        {"type": "response.brand_new", "delta": {"a": 1}, "item": [], "output_index": {}},
        {"type": "response.output_text.annotation.added", "annotation": {}},
        {"type": "response.output_text.delta", "delta": None},
        {"type": "response.output_text.delta", "delta": ""},
        {"type": "response.output_item.added", "item": {"type": "web_search_call", "arguments": {}, "content": 3}},
        {"type": "response.output_item.done", "item": {"type": "mcp_call", "name": [], "id": {}}},
        {"type": "keepalive", "sequence_number": 3},
        {},
    ],
)
def test_what_the_vendor_adds_is_passed_over(event: Any) -> None:
    assert fed(event) == []


def test_nulls_where_numbers_were_do_not_break_an_answer() -> None:
    body = {
        "id": None,
        "model": None,
        "status": None,
        "output": [{"type": "message", "content": None}],
        "usage": {"input_tokens": 3, "input_tokens_details": None, "output_tokens": "many"},
    }
    (end,) = decoder().whole(json.dumps(body).encode())
    assert end == EndPart(finish_reason="stop", usage=Usage(input=3, source="reported"), model="gpt-5")


def test_done_marks_of_other_servers_are_no_event() -> None:
    assert decoder().feed(b"[DONE]") == []


# The fake is not only our opinion.


@given(answers())
def test_the_vendors_types_take_what_the_fake_writes(answer: Answer) -> None:
    for event in events(answer):
        known = EVENT.validate_python(event)
        assert set(known.model_extra) <= {"obfuscation"}
    assert not Response.model_validate(written(answer).response()).model_extra


def test_a_stream_is_numbered_and_ends_with_the_whole() -> None:
    said = events(Answer(text="Hello", thinking="hm", tool_calls=CALLS, finish_reason="tool_calls"))
    assert [event["sequence_number"] for event in said] == list(range(len(said)))
    assert (
        said[-1]["response"]
        == written(Answer(text="Hello", thinking="hm", tool_calls=CALLS, finish_reason="tool_calls")).response()
    )
