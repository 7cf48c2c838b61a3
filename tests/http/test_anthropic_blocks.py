"""Hazard: blocks that say something else in a stream than in one piece, or that come back as another conversation."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.errors import InvalidRequestError
from modeld.http.anthropic_answer import Answer, Blocks, Events
from modeld.http.anthropic_blocks import Assistant, Reading, Text, ToolResult, User
from modeld.http.anthropic_marks import carried, carry
from modeld.http.errors import Refusal
from modeld.types import (
    EndPart,
    ErrorPart,
    FinishReason,
    Message,
    PartsJoiner,
    ProgressPart,
    StreamPart,
    TextPart,
    ThinkingPart,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    Usage,
)

ID = "0123456789abcdef"
KINDS = ("text", "thinking", "call", "broken", "taken", "open", "progress")
ARGUMENTS = ('{"city":"Oslo"}', '{ "n" : 1.50, "big": 123456789012345678901234567890 }', "", "{}", '{"\\u00e9": []}')
BROKEN = ("[]", '"x"', "{", '{"a": NaN}', "nonsense")


@st.composite
def answers(draw: st.DrawFn) -> list[StreamPart]:
    """What an engine or a vendor may say."""
    parts: list[StreamPart] = []
    calls = 0
    for kind in draw(st.lists(st.sampled_from(KINDS), max_size=8)):
        if kind == "text":
            parts.append(TextPart(draw(st.text(max_size=5))))
        elif kind == "thinking":
            parts.append(ThinkingPart(draw(st.text(max_size=5))))
        elif kind == "progress":
            parts.append(ProgressPart(0, 1, 2))
        else:
            text = draw(st.sampled_from(BROKEN if kind == "broken" else ARGUMENTS))
            cut = draw(st.integers(0, len(text)))
            parts.append(ToolCallStart(calls, f"call_{calls}", "tool"))
            parts += [ToolCallDelta(calls, piece) for piece in (text[:cut], text[cut:])]
            if kind == "taken":
                parts.append(ErrorPart("malformed_tool_call", "no", raw=text, call=calls))
            elif kind != "open":
                parts.append(ToolCallEnd(calls, draw(st.sampled_from((None, {"vendor": {"sign": "x"}})))))
            calls += 1
    meta = draw(st.sampled_from((None, {"vendor": {"items": [1, "two"]}})))
    reason: FinishReason = "tool_calls" if calls else "stop"
    parts.append(EndPart(finish_reason=reason, usage=Usage(input=3, output=2), provider_meta=meta))
    return parts


def whole(parts: list[StreamPart], *, thinking: bool = True) -> dict[str, Any]:
    blocks = Blocks(ID, thinking=thinking)
    for part in parts:
        blocks.add(part)
    end = parts[-1]
    assert isinstance(end, EndPart)
    found: dict[str, Any] = json.loads(msgspec.json.encode(Answer("msg", "model", blocks).whole(end)))
    return found


def streamed(parts: list[StreamPart]) -> dict[str, Any]:
    """As a client puts events together, which checks that each block ends before the next begins."""
    events = Events(Answer("msg", "model", Blocks(ID)), progress=True)
    data = b"".join([*map(events.part, parts), events.end()])
    message: dict[str, Any] = {}
    block: dict[str, Any] | None = None
    pieces = ""
    for chunk in data.decode().split("\n\n")[:-1]:
        name, _, line = chunk.partition("\n")
        event = json.loads(line.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        match event["type"]:
            case "message_start":
                message = event["message"]
            case "content_block_start":
                assert block is None
                assert event["index"] == len(message["content"])
                block, pieces = event["content_block"], ""
            case "content_block_delta":
                assert block is not None
                delta = event["delta"]
                field = {"input_json_delta": "partial_json", "signature_delta": "signature"}.get(
                    delta["type"], delta["type"].removesuffix("_delta")
                )
                if field == "partial_json":
                    pieces += delta[field]
                else:
                    block[field] += delta[field]
            case "content_block_stop":
                assert block is not None
                assert event["index"] == len(message["content"])
                message["content"].append(block | ({"input": json.loads(pieces)} if pieces else {}))
                block = None
            case "message_delta":
                message |= event["delta"] | {"modeld": event["modeld"]}
                message["usage"] |= event["usage"]
            case kind:
                assert kind in ("ping", "message_stop")
    assert block is None
    return message


@given(answers())
def test_a_stream_joins_to_the_whole_answer(parts: list[StreamPart]) -> None:
    assert streamed(parts) == whole(parts)


@given(answers(), st.booleans())
def test_what_comes_back_is_what_was_said(parts: list[StreamPart], thinking: bool) -> None:
    message = whole(parts, thinking=thinking)
    content = [{name: value for name, value in block.items() if value is not None} for block in message["content"]]
    back = msgspec.convert({"role": "assistant", "content": content}, Assistant)
    reading = Reading(True, "model", lambda id, arguments: None)
    found = reading.conversation(None, [back])[0]
    joiner = PartsJoiner()
    for part in parts:
        joiner.add(part)
    said = joiner.result().message
    broken = [call for call in said.tool_calls if call.function.arguments in BROKEN]
    assert found.thinking == said.thinking
    assert bool(message["modeld"]["errors"]) >= bool(broken)
    if not broken:
        assert found.content == said.content
    kept = [call for call in said.tool_calls if call not in broken]
    # One that nobody ended is told last.
    calls = sorted(found.tool_calls, key=lambda call: call.id)
    assert [(call.id, call.function.name, call.provider_meta) for call in calls] == [
        (call.id, call.function.name, call.provider_meta) for call in kept
    ]
    assert [json.loads(call.function.arguments) for call in calls] == [
        json.loads(call.function.arguments or "{}") for call in kept
    ]
    assert found.provider_meta == said.provider_meta
    assert (message["stop_reason"] == "tool_use") == bool(kept)


@given(st.dictionaries(st.text(max_size=5), st.text(max_size=5)))
def test_what_is_carried_comes_back(value: dict[str, Any]) -> None:
    assert carried(carry(value), "here") == value


DEEP = (b"[" * 100_000, b'{"a":' * 100_000, b'{"a":' + b"[" * 500 + b"]" * 500 + b"}")


@given(st.binary(max_size=20) | st.sampled_from(DEEP))
def test_what_is_carried_and_changed_is_refused(data: bytes) -> None:
    text = "modeld.carried." + base64.urlsafe_b64encode(data).decode()
    with suppress(InvalidRequestError, Refusal):
        assert isinstance(carried(text, "here"), dict)


@pytest.mark.parametrize("signature", ["", "modeld", "modeld.unsigned", "EqQB", "carried."])
def test_what_nobody_here_wrote_carries_nothing(signature: str) -> None:
    assert carried(signature, "here") == {}


def test_results_and_what_stands_between_them_keep_their_order() -> None:
    user = User(
        content=[
            Text(text="a"),
            ToolResult(tool_use_id=f"modeld_{ID[:12]}_call_1", content="one"),
            ToolResult(tool_use_id="toolu_2", content=[Text(text="two")], is_error=True),
            Text(text="b"),
            Text(text="c"),
        ]
    )
    assert Reading(False, "model", lambda id, arguments: None).conversation("s", [user]) == [
        Message("system", "s"),
        Message("user", "a"),
        Message("tool", "one", tool_call_id="call_1"),
        Message("tool", "Error: two", tool_call_id="toolu_2"),
        Message("user", "bc"),
    ]
