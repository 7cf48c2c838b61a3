"""Hazard: an answer of the Messages wire is read wrong: at another split, of a kind that is new, or ended oddly."""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from anthropic.types import Message as VendorMessage
from anthropic.types import RawMessageStreamEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs
from pydantic import TypeAdapter

from modeld import (
    AuthenticationError,
    BackendProtocolError,
    BackendUnavailableError,
    ChatResult,
    ContextOverflowError,
    EndPart,
    FunctionCall,
    FunctionTool,
    InvalidRequestError,
    ModelNotFoundError,
    PermissionDeniedError,
    QuotaError,
    RateLimitError,
    StreamPart,
    TextPart,
    Tool,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from modeld.providers.anthropic_events import Decoder
from modeld.providers.sse import sse_data
from modeld.repository.names import ToolNames
from modeld.testing.anthropic import FakeAnthropic
from modeld.testing.server import Answer, Recorded
from modeld.types import PartsJoiner
from support.examples import examples

pytestmark = pytest.mark.anyio

MODEL = "claude-sonnet-4-6"
NAMES = ToolNames((Tool(FunctionTool("fs.list")), Tool(FunctionTool("clock"))), 128)
EVENT: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)
CALLS = (ToolCall("toolu_1", FunctionCall("fs_list", '{"path": "/tmp"}')), ToolCall("toolu_2", FunctionCall("clock")))
FULL = Answer(
    text="Let me see. Ünïcödé 🎈",
    thinking="Which folder?\nThat one.",
    tool_calls=CALLS,
    finish_reason="tool_calls",
    usage=Usage(input=100, cache_read=60, cache_write=30, output=50, reasoning=20, source="reported"),
    pieces=5,
)


async def written(answer: Answer, *, stream: bool) -> bytes:
    """What the fake writes."""
    server = FakeAnthropic()
    server.script(answer)
    body = {"model": MODEL, "max_tokens": 9, "messages": [{"role": "user", "content": "x"}], "stream": stream}
    headers = {
        "authorization": f"Bearer {server.key}",
        "anthropic-version": "2026-10-21",
        "content-type": "application/json",
    }
    request = Recorded(method="POST", path="/v1/messages", query={}, headers=headers, body=json.dumps(body).encode())
    reply = await server.respond(request)
    return b"".join(reply.pieces) if reply.pieces is not None else reply.body


def events(*values: dict[str, Any]) -> list[StreamPart]:
    decoder = Decoder(MODEL, NAMES)
    return [part for value in values for part in decoder.feed(json.dumps(value).encode())]


def joined(parts: Sequence[StreamPart]) -> ChatResult:
    joiner = PartsJoiner()
    for part in parts:
        joiner.add(part)
    return joiner.result()


def start(**message: Any) -> dict[str, Any]:
    return {"type": "message_start", "message": {"id": "msg_1", "model": MODEL, "content": [], **message}}


def block(index: int, **fields: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": index, "content_block": fields}


def delta(index: int, kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": index, "delta": {"type": kind, **fields}}


def stop(reason: str | None, **fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    ending = {"stop_reason": reason, "stop_sequence": None, **fields}
    return {"type": "message_delta", "delta": ending, "usage": {"output_tokens": 3}}, {"type": "message_stop"}


async def read(data: bytes, cuts: Sequence[int]) -> ChatResult:
    """The answer, its bytes cut at ``cuts``."""

    async def chunks() -> AsyncIterator[bytes]:
        last = 0
        for cut in (*sorted(cuts), len(data)):
            yield data[last:cut]
            last = cut

    decoder = Decoder(MODEL, NAMES)
    return joined([part async for event in sse_data(chunks()) for part in decoder.feed(event)])


async def test_the_answer_is_the_same_however_it_is_cut() -> None:
    data = await written(FULL, stream=True)
    whole = joined(Decoder(MODEL, NAMES).whole(await written(FULL, stream=False)))
    assert whole.message.tool_calls[0].function == FunctionCall("fs.list", '{"path": "/tmp"}')
    assert whole.message.tool_calls[1].function == FunctionCall("clock", "{}")
    assert whole.thinking == FULL.thinking
    for cut in range(0, len(data), 3):
        assert await read(data, [cut]) == whole


@settings(max_examples=examples(60), deadline=None)
@given(cuts=st.lists(st.integers(0, 2000), max_size=20), pieces=st.integers(1, 30))
async def test_pieces_of_any_size_join_to_the_whole_answer(cuts: list[int], pieces: int) -> None:
    answer = structs.replace(FULL, pieces=pieces)
    data = await written(answer, stream=True)
    whole = joined(Decoder(MODEL, NAMES).whole(await written(answer, stream=False)))
    assert await read(data, [min(cut, len(data)) for cut in cuts]) == whole


@pytest.mark.parametrize(
    "answer",
    [FULL, Answer(), Answer(text="x", finish_reason="length"), Answer(refusal="No."), Answer(text="x", pieces=9)],
)
async def test_the_fake_writes_what_the_vendors_types_take(answer: Answer) -> None:
    body = json.loads(await written(answer, stream=False))
    assert VendorMessage.model_validate(body, strict=True).model_dump(exclude_unset=True) == body
    data = await written(answer, stream=True)
    seen = [json.loads(line[6:]) for line in data.decode().splitlines() if line.startswith("data: ")]
    names = [line[7:] for line in data.decode().splitlines() if line.startswith("event: ")]
    assert names == [event["type"] for event in seen]
    for event in seen:
        if event["type"] != "ping":
            assert EVENT.validate_python(event, strict=True).model_dump(exclude_unset=True) == event


def test_usage_counts_what_came_from_the_cache_and_is_cumulative() -> None:
    usage = {"input_tokens": 10, "cache_read_input_tokens": 60, "cache_creation_input_tokens": 30, "output_tokens": 1}
    more = {"type": "message_delta", "delta": {}, "usage": {"output_tokens": 5, "input_tokens": None}}
    last, done = stop("end_turn")
    last["usage"] = {"output_tokens": 50, "output_tokens_details": {"thinking_tokens": 20}}
    late = {"type": "message_delta", "delta": {"stop_reason": None}, "usage": {"output_tokens": None}}
    end = joined(events(start(usage=usage), more, last, late, done)).end
    assert end.usage == Usage(input=100, cache_read=60, cache_write=30, output=50, reasoning=20, source="reported")


def test_what_the_vendor_does_not_count_is_unknown_and_not_zero() -> None:
    end = joined(events(start(), *stop("end_turn"))).end
    assert end.usage == Usage(output=3, source="reported")


@pytest.mark.parametrize(
    ("reason", "finish", "warning"),
    [
        ("end_turn", "stop", None),
        ("tool_use", "stop", None),
        ("max_tokens", "length", None),
        ("refusal", "refused", None),
        ("model_context_window_exceeded", "context_full", None),
        ("pause_turn", "stop", "paused"),
        ("went_fishing", "stop", "unknown_finish_reason"),
    ],
)
def test_why_it_ended(reason: str, finish: str, warning: str | None) -> None:
    result = joined(events(start(), *stop(reason)))
    assert result.finish_reason == finish
    assert [w.code for w in result.warnings] == ([warning] if warning else [])
    assert (result.id, result.model) == ("msg_1", MODEL)


def test_the_stop_sequence_is_named() -> None:
    end = joined(events(start(), *stop("stop_sequence", stop_sequence="END"))).end
    assert (end.finish_reason, end.stop) == ("stop", "END")


def test_a_refusal_has_its_words() -> None:
    details = {"type": "refusal", "category": None, "explanation": "Not that."}
    assert joined(events(start(), *stop("refusal", stop_details=details))).text == "Not that."
    late = joined(events(start(), block(0, type="text", text="Sure"), *stop("refusal", stop_details=details)))
    assert late.text == "Sure"
    assert [w.message for w in late.warnings] == ["Not that."]


@pytest.mark.parametrize("last", [stop(None), stop("end_turn")[:1], ()])
def test_without_its_end_an_answer_has_no_end_part(last: Any) -> None:
    parts = events(start(), block(0, type="text", text="Hi"), *last)
    assert parts == [TextPart("Hi")]


def test_calls_are_told_apart_by_index_and_begin_before_they_end() -> None:
    parts = events(
        start(),
        block(0, type="text", text=""),
        block(2, type="tool_use", id="a", name="fs_list", input={}),
        block(5, type="tool_use", id="b", name="clock", input={}),
        delta(5, "input_json_delta", partial_json='{"zone"'),
        delta(2, "input_json_delta", partial_json='{"path":1}'),
        delta(5, "input_json_delta", partial_json=":2}"),
        {"type": "content_block_stop", "index": 5},
        *stop("tool_use"),
    )
    result = joined(parts)
    assert [(c.id, c.function.name, c.function.arguments) for c in result.tool_calls] == [
        ("a", "fs.list", '{"path":1}'),
        ("b", "clock", '{"zone":2}'),
    ]
    assert result.finish_reason == "tool_calls"
    assert isinstance(parts[-1], EndPart)


def test_a_call_without_an_id_gets_one_and_arguments_at_its_start_count() -> None:
    parts = events(start(), block(0, type="tool_use", name="made_up", input={"a": 1}), *stop("end_turn"))
    (call,) = joined(parts).tool_calls
    assert call.id.startswith("call_")
    assert call.function.name == "made_up"
    assert json.loads(call.function.arguments) == {"a": 1}


def test_a_call_that_was_cut_by_the_length_is_no_whole_one() -> None:
    parts = events(
        start(),
        block(0, type="tool_use", id="a", name="clock", input={}),
        delta(0, "input_json_delta", partial_json='{"zo'),
        *stop("max_tokens"),
    )
    result = joined(parts)
    assert (result.finish_reason, result.tool_calls[0].function.arguments) == ("length", '{"zo')


def test_signed_and_hidden_thinking_is_kept_with_its_place() -> None:
    result = joined(
        events(
            start(),
            block(0, type="thinking", thinking="", signature=""),
            delta(0, "thinking_delta", thinking="hm"),
            delta(0, "signature_delta", signature="si"),
            delta(0, "signature_delta", signature="g"),
            block(1, type="redacted_thinking", data="abc"),
            block(2, type="text", text="Hel"),
            delta(2, "text_delta", text="lo"),
            block(3, type="thinking", thinking="unsigned", signature=""),
            block(4, type="tool_use", id="a", name="clock", input={}),
            *stop("tool_use"),
        )
    )
    assert result.message.provider_meta == {
        "anthropic": {
            "model": MODEL,
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "sig"},
                {"type": "redacted_thinking", "data": "abc"},
                {"type": "text", "length": 5},
                {"type": "tool_use"},
            ],
        }
    }


def test_an_answer_without_thinking_keeps_nothing() -> None:
    assert joined(events(start(), block(0, type="text", text="Hi"), *stop("end_turn"))).message.provider_meta is None


def test_what_is_new_is_passed_over() -> None:
    parts = events(
        start(usage={"input_tokens": 1, "planets": [1]}, mood={"type": "good"}),
        {"type": "ping", "message": "a string where an object would be"},
        {"type": "aurora", "index": "north", "delta": 5},
        block(0, type="server_tool_use", id=7, name=["web_search"], input="odd"),
        delta(0, "input_json_delta", partial_json='{"query":"x"}'),
        block(1, type="web_search_tool_result", tool_use_id="x", content=[{"type": "web_search_result"}]),
        block(2, type="text", text="Hi", citations=None),
        delta(2, "citations_delta", citation={"type": "char_location"}),
        delta(2, "colour_delta", text={"red": 1}),
        {"type": "content_block_stop", "index": 0},
        {"type": "content_block_stop", "index": 1},
        {"type": "content_block_stop", "index": 2},
        *stop("end_turn", container=None, stop_details=None),
    )
    assert joined(parts).text == "Hi"
    assert not any(isinstance(part, ToolCallDelta) for part in parts)


def test_nulls_are_no_values() -> None:
    parts = events(
        start(usage=None),
        block(0, type="text", text=None),
        delta(0, "text_delta", text=None),
        delta(0, "thinking_delta", thinking=None),
        *stop("end_turn", stop_details=None),
    )
    assert [type(part) for part in parts] == [EndPart]


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"[]",
        b'{"type":"content_block_delta","index":"one","delta":{"type":"text_delta","text":"x"}}',
        b'{"type":"content_block_start","index":0,"content_block":{"type":"text","text":7}}',
        b'{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"\xff"}}',
        b'{"type":"error","error":"overloaded"}',
    ],
)
def test_what_cannot_be_understood_is_an_error(data: bytes) -> None:
    with pytest.raises(BackendProtocolError):
        Decoder(MODEL, NAMES).feed(data)


@pytest.mark.parametrize("data", [b"{", b"{}", b'"x"', b'{"content":[]}', b'{"content":[{"type":"text","text":[]}]}'])
def test_a_whole_answer_that_is_none_is_an_error(data: bytes) -> None:
    with pytest.raises(BackendProtocolError):
        Decoder(MODEL, NAMES).whole(data)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("overloaded_error", BackendUnavailableError),
        ("api_error", BackendUnavailableError),
        ("timeout_error", BackendUnavailableError),
        ("rate_limit_error", RateLimitError),
        ("invalid_request_error", InvalidRequestError),
        ("request_too_large", InvalidRequestError),
        ("authentication_error", AuthenticationError),
        ("permission_error", PermissionDeniedError),
        ("not_found_error", ModelNotFoundError),
        ("billing_error", QuotaError),
    ],
)
def test_an_error_in_a_stream_is_typed(kind: str, error: type[Exception]) -> None:
    event = {"type": "error", "error": {"type": kind, "message": "why", "details": None}, "request_id": "req_1"}
    with pytest.raises(error, match="why") as caught:
        events(start(), event)
    assert type(caught.value) is error
    assert caught.value.details["vendor_code"] == kind  # type: ignore[attr-defined]
    assert caught.value.details["request_id"] == "req_1"  # type: ignore[attr-defined]


@pytest.mark.parametrize("cause", ["enforced_spend_limit_reached", "ramp_limit_exceeded"])
def test_a_limit_that_waiting_does_not_lift_is_a_quota(cause: str) -> None:
    error = {"type": "rate_limit_error", "message": "no", "details": {"error_code": cause}}
    with pytest.raises(RateLimitError if cause.startswith("ramp") else QuotaError):
        events({"type": "error", "error": error})


def test_words_tell_what_the_type_does_not() -> None:
    for message, error in (
        ("Your credit balance is too low to access the Anthropic API.", QuotaError),
        ("input length and `max_tokens` exceed context limit: 199000 + 8000 > 200000", ContextOverflowError),
    ):
        with pytest.raises(error):
            events({"type": "error", "error": {"type": "invalid_request_error", "message": message}})
