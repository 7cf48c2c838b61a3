"""Hazard: a server's Chat Completions are not quite OpenAI's, or come in pieces cut anywhere."""

import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeld import (
    BackendError,
    BackendProtocolError,
    BackendUnavailableError,
    ChatResult,
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
    ToolCallStart,
    Usage,
    WarningPart,
)
from modeld.providers.chat_completions import Dialect
from modeld.providers.chat_decoder import ChatDecoder
from modeld.providers.sse import sse_data
from modeld.repository.names import ToolNames
from modeld.testing.openai import ChatRequest, FakeOpenAI
from modeld.testing.server import Answer
from modeld.types import PartsJoiner
from support.examples import examples

pytestmark = pytest.mark.anyio

OPENAI = Dialect(backend="openai")
TOOLS = (Tool(FunctionTool("fs.list")), Tool(FunctionTool("clock")))


def decoder(dialect: Dialect = OPENAI) -> ChatDecoder:
    return ChatDecoder(dialect, "m", ToolNames(TOOLS, dialect.name_limit))


def joined(parts: list[StreamPart]) -> ChatResult:
    joiner = PartsJoiner()
    for part in parts:
        joiner.add(part)
    return joiner.result()


def chunk(delta: Any = None, finish: Any = None, **more: Any) -> bytes:
    return json.dumps({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}], **more}).encode()


def read(*chunks: bytes, dialect: Dialect = OPENAI) -> ChatResult:
    """A stream of these deltas, ended by ``stop``."""
    reader = decoder(dialect)
    parts = [part for data in (*chunks, chunk({}, "stop"), b"[DONE]") for part in reader.feed(data)]
    return joined(parts)


async def sliced(body: bytes, cuts: list[int]) -> AsyncIterator[bytes]:
    places = [0, *sorted(cut % (len(body) + 1) for cut in cuts), len(body)]
    for start, end in itertools.pairwise(places):
        yield body[start:end]


REQUEST = msgspec.convert(
    {"model": "gpt-4o", "messages": msgspec.Raw(b"[]"), "stream": True, "stream_options": {"include_usage": True}},
    ChatRequest,
)
CALLS = (
    ToolCall("call_a", FunctionCall("fs_list", '{"path":"/tmp/ü"}')),
    ToolCall("call_b", FunctionCall("clock", "{}")),
)
answers = st.builds(
    Answer,
    text=st.text(max_size=40),
    tool_calls=st.sampled_from([(), CALLS[:1], CALLS]),
    refusal=st.sampled_from(["", "", "I will not."]),
    finish_reason=st.sampled_from(["length", "stop"]),
    usage=st.builds(
        Usage,
        input=st.integers(0, 10**6),
        output=st.integers(0, 10**6),
        cache_read=st.integers(0, 10),
        reasoning=st.integers(0, 10),
    ),
    pieces=st.integers(1, 30),
)


@given(answer=answers, cuts=st.lists(st.integers(0, 10**6), max_size=30), bare=st.booleans())
@settings(max_examples=examples(150), deadline=None)
async def test_a_stream_cut_anywhere_joins_to_the_whole_answer(answer: Answer, cuts: list[int], bare: bool) -> None:
    server = FakeOpenAI()
    body = b"".join(server.pieces(REQUEST, answer))
    if bare:
        body = body.replace(b"\n", b"\r\n").replace(b"data: ", b"data:")
    reader = decoder()
    streamed = [part async for data in sse_data(sliced(body, cuts)) for part in reader.feed(data)]
    whole = decoder().whole(json.dumps(server.whole(REQUEST, answer)).encode())
    one, other = joined(streamed), joined(whole)
    assert one.message == other.message
    assert (one.usage, one.finish_reason, one.model) == (other.usage, other.finish_reason, other.model)
    assert one.text == (answer.refusal or answer.text)
    assert one.usage.reasoning == answer.usage.reasoning
    assert one.usage.input == answer.usage.input


def test_a_stream_without_its_end_has_no_end_part() -> None:
    server = FakeOpenAI()
    pieces = [piece.removeprefix(b"data: ").strip() for piece in server.pieces(REQUEST, Answer(text="one two three"))]
    for kept in range(len(pieces) - 2):
        reader = decoder()
        parts = [part for data in pieces[:kept] for part in reader.feed(data)]
        finished = any(b'"finish_reason":"stop"' in data for data in pieces[:kept])
        assert any(isinstance(part, EndPart) for part in [*parts, *reader.close()]) == finished


def test_a_forgotten_done_is_made_up_for_once() -> None:
    reader = decoder()
    reader.feed(chunk({"content": "hi"}, "stop"))
    assert [type(part) for part in reader.close()] == [EndPart]
    assert reader.close() == []
    assert reader.feed(b"[DONE]") == []


def call(index: Any = None, id: Any = None, name: Any = None, arguments: Any = None) -> dict[str, Any]:
    given = {"index": index, "id": id, "function": {"name": name, "arguments": arguments}}
    return {key: value for key, value in given.items() if value is not None}


SHAPES = {
    "as documented": [[call(0, "a", "fs_list", "")], [call(0, None, None, '{"x"')], [call(0, None, None, ":1}")],
                      [call(1, "b", "clock", "")], [call(1, None, None, "{}")]],
    "interleaved": [[call(0, "a", "fs_list", "")], [call(1, "b", "clock", "")], [call(0, None, None, '{"x":1}')],
                    [call(1, None, None, "{}")]],
    "in one chunk": [[call(0, "a", "fs_list", '{"x":1}'), call(1, "b", "clock", "{}")]],
    "no index": [[call(None, "a", "fs_list", "")], [call(None, None, None, '{"x":1}')], [call(None, "b", "clock")]],
    "no index, id each time": [[call(None, "a", "fs_list", "")], [call(None, "b", "clock", "")],
                               [call(None, "a", None, '{"x":1}')]],
    "all numbered 0": [[call(0, "a", "fs_list", '{"x":')], [call(0, None, None, "1}")], [call(0, "b", "clock", "")]],
    "name again": [[call(0, "a", "fs_list", '{"x":')], [call(0, "a", "fs_list", "1}")], [call(1, "b", "clock")]],
    "name late": [[call(0, "a", "", '{"x":')], [call(0, None, "fs_list", "1}")], [call(1, "b", "clock")]],
    "another id for each piece": [[call(0, "a", "fs_list", '{"x":')], [call(0, "z", None, "1}")],
                                  [call(1, "b", "clock")]],
    "arguments as an object": [[call(0, "a", "fs_list", {"x": 1})], [call(1, "b", "clock", {})]],
    "blank arguments": [[call(0, "a", "fs_list", '{"x":1}')], [call(1, "b", "clock", " ")]],
}  # fmt: skip


@pytest.mark.parametrize("deltas", SHAPES.values(), ids=SHAPES.keys())
def test_calls_are_put_together_by_index_and_id(deltas: list[list[dict[str, Any]]]) -> None:
    result = read(*(chunk({"tool_calls": calls}) for calls in deltas))
    assert [(c.function.name, json.loads(c.function.arguments)) for c in result.tool_calls] == [
        ("fs.list", {"x": 1}),
        ("clock", {}),
    ]
    assert [c.id for c in result.tool_calls] == ["a", "b"]
    assert result.finish_reason == "tool_calls"


def test_calls_without_ids_get_ids_of_their_own() -> None:
    result = read(chunk({"tool_calls": [call(0, None, "clock", "{}"), call(1, None, "clock", "{}")]}))
    ids = [c.id for c in result.tool_calls]
    assert len(set(ids)) == 2
    assert all(len(id) == 29 and id.startswith("call_") for id in ids)


def test_each_call_starts_before_its_arguments_and_ends_once() -> None:
    reader = decoder()
    parts = reader.feed(chunk({"tool_calls": [call(0, "a", None, '{"x"'), call(0, None, "clock", ":1}")]}))
    assert isinstance(parts[0], ToolCallStart)
    parts += reader.feed(chunk({}, "tool_calls")) + reader.feed(b"[DONE]")
    assert [type(part).__name__ for part in parts] == [
        "ToolCallStart",
        "ToolCallDelta",
        "ToolCallDelta",
        "ToolCallEnd",
        "EndPart",
    ]


@pytest.mark.parametrize(
    "delta",
    [
        {"reasoning_content": "why"},
        {"reasoning": "why"},
        {"reasoning_content": "why", "reasoning": "why"},
        {"reasoning_content": None, "reasoning": "why", "content": ""},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "why"}]}]},
    ],
)
def test_thinking_is_read_under_each_of_its_names_once(delta: dict[str, Any]) -> None:
    result = read(chunk(delta), chunk({"content": [{"type": "text", "text": "so"}]}))
    assert (result.thinking, result.text) == ("why", "so")


NULLS = [
    b'{"choices":null}',
    b'{"choices":[]}',
    b'{"choices":[{"index":0,"delta":null,"finish_reason":null}],"usage":null,"error":null}',
    b'{"choices":[{"delta":{"content":null,"tool_calls":null,"refusal":null,"role":null,"audio":{}}}]}',
    b'{"choices":[{"index":1,"delta":{"content":"another choice"},"finish_reason":"length"}]}',
    b'{"id":7,"model":null,"choices":[{"delta":{"tool_calls":[]}}],"new":{"field":[1,2]}}',
]


@pytest.mark.parametrize("data", NULLS)
def test_nulls_and_new_fields_break_nothing(data: bytes) -> None:
    result = read(data, chunk({"content": "fine"}), data)
    assert result.text == "fine"
    assert result.finish_reason == "stop"


def test_a_refusal_in_words_and_one_without() -> None:
    words = read(chunk({"refusal": "I will "}), chunk({"refusal": "not."}))
    assert (words.text, words.finish_reason) == ("I will not.", "refused")
    filtered = decoder()
    parts = filtered.feed(chunk({"content": "Well"}, "content_filter")) + filtered.close()
    assert joined(parts).finish_reason == "refused"


@pytest.mark.parametrize(
    ("said", "calls", "reason"),
    [
        ("length", True, "length"),
        ("stop", True, "tool_calls"),
        ("tool_calls", False, "stop"),
        ("length", False, "length"),
    ],
)
def test_the_reason_says_how_it_ended(said: str, calls: bool, reason: str) -> None:
    reader = decoder()
    parts = reader.feed(chunk({"tool_calls": [call(0, "a", "clock")]} if calls else {}, said)) + reader.close()
    assert joined(parts).finish_reason == reason


def test_an_unknown_reason_is_a_stop_with_a_warning() -> None:
    reader = decoder()
    parts = reader.feed(chunk({"content": "x"}, "abort")) + reader.close()
    assert [part.code for part in parts if isinstance(part, WarningPart)] == ["unknown_finish_reason"]
    assert joined(parts).finish_reason == "stop"
    assert isinstance(parts[-1], EndPart)


ERRORS = [
    ({"error": {"message": "busy", "type": "server_error", "code": None}}, BackendUnavailableError, 0),
    ({"error": {"message": "busy", "code": 429}}, RateLimitError, 429),
    ({"error": {"message": "busy", "code": "502"}}, BackendUnavailableError, 502),
    ({"error": "busy"}, BackendError, 0),
    ({"error": {"message": "busy", "type": "x", "code": "insufficient_quota"}}, QuotaError, 0),
    ({"object": "error", "message": "busy", "type": "BadRequestError", "code": 400}, InvalidRequestError, 400),
    ({"choices": [{"index": 0, "error": {"code": 503, "message": "busy"}}]}, BackendUnavailableError, 503),
]


@pytest.mark.parametrize(("body", "error", "status"), ERRORS)
def test_an_error_within_an_answer_is_raised(body: dict[str, Any], error: type[Exception], status: int) -> None:
    data = json.dumps(body).encode()
    for read_it in (decoder().feed, decoder().whole):
        with pytest.raises(error, match="busy") as caught:
            read_it(data)
        assert caught.value.details["status"] == status  # type: ignore[attr-defined]


@pytest.mark.parametrize("data", [b"{", b"[]", b'"x"', b'{"choices":5}', b'{"choices":[5]}', b"\xff", b""])
def test_what_is_no_answer_is_a_protocol_error(data: bytes) -> None:
    for read_it in (decoder().feed, decoder().whole):
        with pytest.raises(BackendProtocolError):
            read_it(data)


@pytest.mark.parametrize("data", [b"{}", b'{"choices":[]}', b'{"choices":[{"message":{"content":"x"}}]}'])
def test_a_whole_answer_without_an_end_is_none(data: bytes) -> None:
    with pytest.raises(BackendProtocolError):
        decoder().whole(data)


@pytest.mark.parametrize(
    ("said", "usage"),
    [
        (None, Usage(source="reported")),
        ({}, Usage(source="reported")),
        ({"prompt_tokens": 0, "completion_tokens": None}, Usage(input=0, source="reported")),
        ({"prompt_tokens": 5, "prompt_tokens_details": None, "cost": 0.1}, Usage(input=5, source="reported")),
        (
            {
                "prompt_tokens": 9,
                "completion_tokens": 4,
                "prompt_tokens_details": {"cached_tokens": 8, "cache_write_tokens": 1},
                "completion_tokens_details": {"reasoning_tokens": 3},
            },
            Usage(input=9, cache_read=8, cache_write=1, output=4, reasoning=3, source="reported"),
        ),
        ({"prompt_tokens": "many", "completion_tokens": -1}, Usage(source="reported")),
    ],
)
def test_usage_not_told_is_not_zero(said: Any, usage: Usage) -> None:
    assert read(chunk({"content": "x"}, usage=said)).usage == usage


def test_the_last_usage_counts() -> None:
    """Some servers send it with every chunk, growing."""
    result = read(chunk({"content": "a"}, usage={"completion_tokens": 1}), chunk({}, usage={"completion_tokens": 2}))
    assert result.usage.output == 2


def test_details_go_back_to_the_vendor_that_wants_them() -> None:
    dialect = Dialect(backend="router", details_field="reasoning_details")
    pieces = [
        {"type": "reasoning.text", "index": 0, "text": "I thi", "signature": None},
        {"type": "reasoning.text", "index": 0, "text": "nk", "signature": "sig"},
        {"type": "reasoning.encrypted", "index": 1, "data": "abc", "id": "r1"},
    ]
    result = read(*(chunk({"reasoning_details": [piece]}) for piece in pieces), dialect=dialect)
    assert result.message.provider_meta == {
        "router": {
            "reasoning_details": [
                {"type": "reasoning.text", "index": 0, "text": "I think", "signature": "sig"},
                {"type": "reasoning.encrypted", "index": 1, "data": "abc", "id": "r1"},
            ]
        }
    }
    assert read(*(chunk({"reasoning_details": [piece]}) for piece in pieces)).message.provider_meta is None


def test_the_stop_string_is_told_where_the_vendor_does() -> None:
    data = json.dumps({"choices": [{"delta": {}, "finish_reason": "stop", "stop_reason": "END"}]}).encode()
    assert read(data, dialect=Dialect(backend="vllm", stop_field=True)).end.stop == "END"
    assert read(data).end.stop == ""


def test_parts_come_as_they_arrive() -> None:
    reader = decoder()
    assert reader.feed(chunk({"content": "a"})) == [TextPart("a")]
    assert reader.feed(chunk({"reasoning": "b", "content": "c"})) == [ThinkingPart("b"), TextPart("c")]
    assert reader.feed(chunk({"content": ""})) == []
