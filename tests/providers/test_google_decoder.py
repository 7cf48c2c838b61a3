"""Hazard: an answer of Google is read wrongly, or differently when it is streamed."""

import json
from collections.abc import AsyncIterator
from itertools import pairwise
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld import (
    BackendProtocolError,
    BackendUnavailableError,
    ChatResult,
    EndPart,
    FunctionTool,
    InvalidRequestError,
    RateLimitError,
    TextPart,
    Tool,
    Usage,
)
from modeld.providers.generate_decoder import Decoder
from modeld.providers.sse import sse_data
from modeld.repository.names import ToolNames
from modeld.types import PartsJoiner, StreamPart

LIST = Tool(FunctionTool("fs.list"))
CALL = {"functionCall": {"name": "fs_list", "args": {"path": "/tmp", "deep": None}, "id": "fc-1"}}


def decoder() -> Decoder:
    return Decoder("gemini", "gemini-3-flash-preview", ToolNames([LIST], 64))


def chunk(*parts: dict[str, Any], **candidate: Any) -> dict[str, Any]:
    return {"candidates": [{"content": {"parts": list(parts), "role": "model"}, **candidate}], "responseId": "r1"}


def parts_of(*chunks: dict[str, Any]) -> list[StreamPart]:
    made = decoder()
    parts = [part for one in chunks for part in made.feed(json.dumps(one))]
    return [*parts, *made.finish()]


def joined(parts: list[StreamPart]) -> ChatResult:
    joiner = PartsJoiner()
    for part in parts:
        joiner.add(part)
    return joiner.result()


STREAM = [
    chunk({"text": ""}),
    chunk({"text": "I think, ", "thought": True}),
    chunk({"text": "so 🎈.", "thought": True, "thoughtSignature": "dGg="}),
    chunk({"text": "Two\u2028lines"}),
    chunk({"text": " and a call."}, CALL | {"thoughtSignature": "c2ln"}),
    chunk({"functionCall": {"name": "fs_list"}}),
    chunk({"text": "", "thoughtSignature": "dGV4dA=="}, finishReason="STOP")
    | {"usageMetadata": {"promptTokenCount": 11, "candidatesTokenCount": 4, "thoughtsTokenCount": 3}},
]
WHOLE = chunk(*[part for one in STREAM for part in one["candidates"][0]["content"]["parts"]], finishReason="STOP") | {
    "usageMetadata": STREAM[-1]["usageMetadata"]
}
BYTES = b"".join(b"data: " + json.dumps(one, ensure_ascii=False).encode() + b"\r\n\r\n" for one in STREAM)


def without_drawn_ids(result: ChatResult) -> str:
    return str(result).replace(result.tool_calls[1].id, "drawn")


def test_a_stream_says_what_the_whole_says() -> None:
    made = decoder()
    whole = joined([*made.feed(json.dumps(WHOLE, indent=2)), *made.finish()])
    assert without_drawn_ids(whole) == without_drawn_ids(joined(parts_of(*STREAM)))
    assert whole.text == "Two\u2028lines and a call."
    assert whole.thinking == "I think, so 🎈."
    assert [call.function.name for call in whole.tool_calls] == ["fs.list", "fs.list"]
    assert [call.function.arguments for call in whole.tool_calls] == ['{"path":"/tmp","deep":null}', "{}"]
    assert whole.tool_calls[0].id == "fc-1"
    assert whole.tool_calls[1].id.startswith("call_")
    assert whole.tool_calls[0].provider_meta == {"google": {"thought_signature": "c2ln"}}
    assert whole.tool_calls[1].provider_meta is None
    assert whole.message.provider_meta == {"google": {"thought_signature": "dGV4dA=="}}
    assert whole.finish_reason == "tool_calls"
    assert whole.usage == Usage(input=11, output=7, reasoning=3, source="reported")
    assert whole.id == "r1"


@given(st.lists(st.integers(0, len(BYTES)), max_size=12))
def test_where_the_bytes_are_split_changes_nothing(cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(BYTES)]

    async def chunks() -> AsyncIterator[bytes]:
        for start, end in pairwise(edges):
            yield BYTES[start:end]

    async def read() -> list[StreamPart]:
        made = decoder()
        parts = [part async for data in sse_data(chunks()) for part in made.feed(data)]
        return [*parts, *made.finish()]

    assert without_drawn_ids(joined(anyio.run(read))) == without_drawn_ids(joined(parts_of(*STREAM)))


@pytest.mark.parametrize(
    ("reason", "finish", "warning"),
    [
        ("STOP", "stop", ""),
        ("MAX_TOKENS", "length", ""),
        ("SAFETY", "refused", "refusal_reason"),
        ("RECITATION", "refused", "refusal_reason"),
        ("BLOCKLIST", "refused", "refusal_reason"),
        ("PROHIBITED_CONTENT", "refused", "refusal_reason"),
        ("SPII", "refused", "refusal_reason"),
        ("IMAGE_SAFETY", "refused", "refusal_reason"),
        ("MODEL_ARMOR", "refused", "refusal_reason"),
        ("OTHER", "stop", "unknown_finish_reason"),
        ("CONTINUATION", "length", ""),
        ("INVENTED_TOMORROW", "stop", "unknown_finish_reason"),
    ],
)
def test_a_finish_reason_is_typed(reason: str, finish: str, warning: str) -> None:
    result = joined(parts_of(chunk({"text": "x"}, finishReason=reason, finishMessage="why")))
    assert result.finish_reason == finish
    assert [w.code for w in result.warnings] == ([warning] if warning else [])
    if warning:
        assert result.warnings[0].message == f"{reason}: why"


def test_every_finish_reason_of_the_sdk_was_looked_at() -> None:
    from google.genai.types import FinishReason

    from modeld.providers.generate_decoder import _MALFORMED, _REASONS

    left = {reason.value for reason in FinishReason} - _REASONS.keys() - set(_MALFORMED)
    others = {"FINISH_REASON_UNSPECIFIED", "OTHER", "IMAGE_OTHER", "NO_IMAGE"}
    assert left == {*others, "MISSING_THOUGHT_SIGNATURE"}


def test_a_length_stop_with_calls_is_no_tool_turn() -> None:
    assert joined(parts_of(chunk(CALL, finishReason="MAX_TOKENS"))).finish_reason == "length"


def test_a_token_that_leads_nowhere_ends_the_answer() -> None:
    made = decoder()
    again = chunk({"text": "x"}, finishReason="CONTINUATION", continuationToken="t")
    hops = []
    for _ in range(3):
        made.feed(json.dumps(again))
        hops.append(made.hop())
    assert hops == [True, False, False]
    end = made.finish()[-1]
    assert isinstance(end, EndPart)
    assert end.finish_reason == "length"


@pytest.mark.parametrize("reason", ["SAFETY", "OTHER", "JAILBREAK"])
def test_a_blocked_prompt_is_a_refusal_and_no_error(reason: str) -> None:
    feedback = {"blockReason": reason, "blockReasonMessage": "not this"}
    result = joined(parts_of({"promptFeedback": feedback, "usageMetadata": {"promptTokenCount": 5}}))
    assert (result.finish_reason, result.text, result.usage.input) == ("refused", "", 5)
    assert result.warnings[0].message == f"{reason}: not this"


def test_a_malformed_call_is_data() -> None:
    message = "Malformed function call: print(default_api.fs_list("
    result = joined(parts_of({"candidates": [{"finishReason": "MALFORMED_FUNCTION_CALL", "finishMessage": message}]}))
    assert (result.finish_reason, result.text) == ("stop", message)
    assert (result.errors[0].code, result.errors[0].raw) == ("malformed_tool_call", message)


def test_only_thinking_and_only_a_signature_are_answers() -> None:
    thinking = joined(parts_of(chunk({"text": "Hm.", "thought": True}, finishReason="STOP")))
    assert (thinking.text, thinking.thinking, thinking.finish_reason) == ("", "Hm.", "stop")
    signature = joined(parts_of(chunk({"thoughtSignature": "c2ln"}, finishReason="STOP")))
    assert signature.message.provider_meta == {"google": {"thought_signature": "c2ln"}}


def test_a_missing_signature_names_what_to_do() -> None:
    with pytest.raises(InvalidRequestError, match="provider_meta"):
        parts_of({"candidates": [{"finishReason": "MISSING_THOUGHT_SIGNATURE"}]})


def test_an_answer_without_an_end_has_none() -> None:
    assert not any(isinstance(part, EndPart) for part in parts_of(*STREAM[:-1]))
    assert parts_of({}) == []


def test_nulls_and_new_fields_break_nothing() -> None:
    odd: dict[str, Any] = {
        "candidates": [
            {
                "content": {"parts": [{"text": "x", "thought": None, "thoughtSignature": None, "new": {"a": [1]}}]},
                "finishReason": "STOP",
                "finishMessage": None,
                "groundingMetadata": {},
            },
            {"content": None},
        ],
        "usageMetadata": {"promptTokenCount": None, "trafficType": "ON_DEMAND"},
        "promptFeedback": None,
        "modelVersion": None,
    }
    result = joined(parts_of(odd))
    assert (result.text, result.usage, result.model) == ("x", Usage(source="reported"), "gemini-3-flash-preview")


def test_tokens_of_tools_and_thoughts_are_counted() -> None:
    counts = {
        "promptTokenCount": 10,
        "toolUsePromptTokenCount": 5,
        "cachedContentTokenCount": 4,
        "candidatesTokenCount": 3,
        "thoughtsTokenCount": 2,
    }
    result = joined(parts_of(chunk({"text": "x"}, finishReason="STOP") | {"usageMetadata": counts}))
    assert result.usage == Usage(input=15, cache_read=4, output=5, reasoning=2, source="reported")


def test_a_picture_in_the_answer_is_not_lost_silently() -> None:
    picture = {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}
    result = joined(parts_of(chunk({"text": "Here."}, picture, picture, finishReason="STOP")))
    assert [w.code for w in result.warnings] == ["part_not_carried"]


def test_an_error_within_a_stream_is_raised() -> None:
    made = decoder()
    assert made.feed(json.dumps(STREAM[3])) == (TextPart("Two\u2028lines"),)
    with pytest.raises(BackendUnavailableError, match="overloaded"):
        made.feed('{"error": {"code": 503, "message": "The model is overloaded.", "status": "UNAVAILABLE"}}')
    with pytest.raises(RateLimitError):
        made.feed('{"error": {"code": 429, "message": "slow", "status": "RESOURCE_EXHAUSTED"}}')


@pytest.mark.parametrize("data", ["", "<html>", "[]", '{"candidates": 3}', '{"candidates": [{"content": "x"}]}'])
def test_what_is_no_answer_is_refused(data: str) -> None:
    with pytest.raises(BackendProtocolError):
        decoder().feed(data)


def test_an_openai_like_end_marker_is_skipped() -> None:
    assert list(decoder().feed(b"[DONE]")) == []
