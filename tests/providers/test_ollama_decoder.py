"""Hazard: a frame of Ollama's is lost, joined wrongly or breaks the stream."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld import BackendProtocolError, EndPart, Message, StreamPart, TextPart, ToolCallDelta, ToolCallStart
from modeld.providers import ollama_messages
from modeld.providers.ollama_messages import ChatRequest, FrameDecoder, FrameError
from modeld.providers.ollama_models import Shown, make_card, observed
from modeld.providers.ollama_models import Tag as ListedTag
from modeld.repository.stream import Watch
from modeld.repository.tracker import NoSpan
from modeld.repository.wire import Call
from modeld.types import ChatConfig, PartsJoiner, Usage, WarningPart

CALL = {"id": "call_1", "function": {"index": 0, "name": "fs.list", "arguments": {"path": "/tmp", "n": 1.50}}}
END = {"model": "m", "created_at": "2026", "message": {"role": "assistant", "content": ""}, "done": True}
DONE = {**END, "done_reason": "stop", "prompt_eval_count": 20, "prompt_eval_cached_count": 8, "eval_count": 9}


def frame(**message: Any) -> dict[str, Any]:
    return {"model": "m", "created_at": "2026", "message": {"role": "assistant", **message}, "done": False}


def lines(*frames: Any) -> bytes:
    return b"".join(json.dumps(f, ensure_ascii=False).encode() + b"\n" for f in frames)


def decoder() -> FrameDecoder:
    card = make_card("m", Shown(capabilities=["completion", "tools"]))
    call = Call(model=observed(ListedTag("m"), None), messages=(Message("user", "x"),), config=ChatConfig())
    return FrameDecoder(ChatRequest(call, card), 8192)


def decode(*chunks: bytes) -> list[StreamPart]:
    reader = decoder()
    return [part for chunk in chunks for part in reader.feed(chunk)] + reader.finish()


STREAM = lines(
    frame(content=""),
    frame(content="", thinking="Let me "),
    frame(content="", thinking="see. 🎈"),
    frame(content="It "),
    frame(content="is ü."),
    frame(content="", tool_calls=[CALL]),
    frame(content="", tool_calls=[{**CALL, "id": "call_2"}]),
    DONE,
)


def test_every_split_gives_the_same_parts() -> None:
    whole = decode(STREAM)
    for at in range(len(STREAM) + 1):
        assert decode(STREAM[:at], STREAM[at:]) == whole, at
    assert decode(*[bytes([byte]) for byte in STREAM]) == whole
    assert decode(STREAM.replace(b"\n", b"\r\n\n \n")) == whole
    assert decode(STREAM.rstrip(b"\n")) == whole


@given(st.lists(st.tuples(st.sampled_from(["content", "thinking"]), st.text(max_size=9)), max_size=9), st.data())
def test_a_stream_and_a_whole_answer_say_the_same(pieces: list[tuple[str, str]], data: st.DataObject) -> None:
    frames = [frame(**{"content": "", kind: text}) for kind, text in pieces] + [frame(tool_calls=[CALL]), DONE]
    stream = lines(*frames)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
    chunks = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    texts = {kind: "".join(text for k, text in pieces if k == kind) for kind in ("content", "thinking")}
    body = lines({**DONE, "message": {"role": "assistant", **texts, "tool_calls": [CALL]}})
    joined, whole = PartsJoiner(), PartsJoiner()
    for part in decode(*chunks):
        joined.add(part)
    for part in decoder().whole(body):
        whole.add(part)
    assert joined.result() == whole.result()


def test_two_calls_of_one_tool_are_two_calls() -> None:
    parts = decode(STREAM)
    assert [(p.index, p.id, p.name) for p in parts if isinstance(p, ToolCallStart)] == [
        (0, "call_1", "fs.list"),
        (1, "call_2", "fs.list"),
    ]
    end = parts[-1]
    assert isinstance(end, EndPart)
    assert end.finish_reason == "tool_calls"
    assert end.usage == Usage(input=20, cache_read=8, output=9, source="reported")
    # A model that thinks between calls wants to see it again.
    assert end.provider_meta == {"ollama": {"thinking": "Let me see. 🎈"}}


def test_a_call_without_an_id_gets_one_of_its_own() -> None:
    bare = {"function": {"name": "clock", "arguments": {}}}
    parts = decode(lines(frame(tool_calls=[bare, bare]), DONE))
    ids = [part.id for part in parts if isinstance(part, ToolCallStart)]
    assert len(set(ids)) == 2
    assert all(len(id) == 29 and id.startswith("call_") for id in ids)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [({}, "{}"), (None, "{}"), ('{"a": 1}', '{"a": 1}'), ("", "{}"), ({"n": 12345678901234567890}, None)],
)
def test_arguments_are_the_servers_own_text(arguments: Any, text: str | None) -> None:
    sent = lines(frame(tool_calls=[{"function": {"name": "f", "arguments": arguments}}]), DONE)
    (delta,) = [part for part in decode(sent) if isinstance(part, ToolCallDelta)]
    assert delta.arguments == (json.dumps(arguments) if text is None else text)


def test_nulls_and_new_fields_break_nothing() -> None:
    parts = decode(
        lines(
            {"status": "loading"},
            {"message": None, "done": None},
            frame(content=None, thinking=None, tool_calls=None, audio=[1]),
            frame(content="x", images=None),
            {**DONE, "prompt_eval_count": None, "eval_count": None, "logprobs": None, "new": {"a": [1]}},
        )
    )
    assert [part for part in parts if isinstance(part, TextPart)] == [TextPart("x")]
    assert isinstance(parts[-1], EndPart)


def test_an_absent_count_is_unknown_and_not_zero() -> None:
    (end,) = decode(lines({**END, "done_reason": "stop"}))
    assert isinstance(end, EndPart)
    assert end.usage == Usage(source="reported")


@pytest.mark.parametrize("reason", ["load", "unload", "", None, "sleepy"])
def test_an_unknown_reason_is_told(reason: str | None) -> None:
    warning, end = decode(lines({**END, "done_reason": reason}))
    assert isinstance(warning, WarningPart)
    assert warning.code == "unknown_finish_reason"
    assert isinstance(end, EndPart)
    # Without any the engine hung up, and what came is not the whole answer.
    assert end.finish_reason == ("stop" if reason else "error")


def test_seconds_are_told_and_absurd_ones_are_not() -> None:
    (end,) = decode(lines({**DONE, "prompt_eval_duration": 325_953_000, "eval_duration": 0}))
    assert isinstance(end, EndPart)
    assert (end.usage.prefill_seconds, end.usage.decode_seconds) == (0.325953, 0)
    (end,) = decode(lines({**DONE, "prompt_eval_duration": -1, "eval_duration": 10**26}))
    assert isinstance(end, EndPart)
    *_, checked = Watch(NoSpan(), ()).seen(end)
    assert isinstance(checked, EndPart)
    assert (checked.usage.prefill_seconds, checked.usage.decode_seconds) == (None, None)
    assert checked.usage.input == 20


def test_a_length_stop_after_calls_is_a_length_stop() -> None:
    end = decode(lines(frame(tool_calls=[CALL]), {**DONE, "done_reason": "length"}))[-1]
    assert isinstance(end, EndPart)
    assert end.finish_reason == "length"


def test_nothing_comes_after_the_end() -> None:
    assert len([p for p in decode(STREAM + lines(frame(content="more"), DONE)) if isinstance(p, EndPart)]) == 1
    assert decode(lines(frame(content="x"))) == [TextPart("x")]


@pytest.mark.parametrize("error", ["it fell over", {"message": "it fell over"}])
def test_an_error_line_is_raised_and_what_came_before_is_given(error: Any) -> None:
    reader = decoder()
    assert reader.feed(lines(frame(content="x"))) == [TextPart("x")]
    with pytest.raises(FrameError):
        reader.feed(lines({"error": error}))


@pytest.mark.parametrize("line", [b"{\n", b"[]\n", b"null\n", b'{"message": "text"}\n', b"\xff\n", b"data: {}\n"])
def test_what_is_no_frame_is_not_taken_for_one(line: bytes) -> None:
    with pytest.raises((msgspec.MsgspecError, UnicodeDecodeError)):
        decode(line)


def test_a_line_without_end_does_not_fill_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ollama_messages, "MAX_EVENT", 1000)
    reader = decoder()
    for _ in range(10):
        reader.feed(b"x" * 100)
    with pytest.raises(BackendProtocolError, match="1000 bytes"):
        reader.feed(b"x")
