"""Hazard: an event is lost, doubled or joined wrongly where a stream is split, or a line without end fills memory."""

from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld import BackendProtocolError
from modeld.providers import sse
from modeld.providers.sse import sse_data

pytestmark = pytest.mark.anyio


async def chunks(*data: bytes) -> AsyncIterator[bytes]:
    for chunk in data:
        yield chunk


async def read(*data: bytes) -> list[bytes]:
    return [event async for event in sse_data(chunks(*data))]


TEXT = (
    b": comment\nevent: a\ndata: one\n\ndata:two\ndata: lines\nid: 7\n\n\n\n"
    b"data:  spaced\n\nretry: 5\n\ndata\n\ndata: \xf0\x9f\x8e\x88\n\ndata: [DONE]\n\n"
)
EVENTS = [b"one", b"two\nlines", b" spaced", b"\xf0\x9f\x8e\x88", b"[DONE]"]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
async def test_every_split_gives_the_same_events(newline: bytes) -> None:
    text = TEXT.replace(b"\n", newline)
    for at in range(len(text) + 1):
        assert await read(text[:at], text[at:]) == EVENTS, at
    assert await read(*[bytes([byte]) for byte in text]) == EVENTS


@given(
    st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1), max_size=8),
    st.lists(st.integers(1, 7), min_size=1, max_size=5),
)
async def test_any_chunks_give_the_same_events(events: list[str], sizes: list[int]) -> None:
    text = "".join(f"data: {event}\r\n\r\n" for event in events).encode()
    pieces, at, turn = [], 0, 0
    while at < len(text):
        pieces.append(text[at : at + sizes[turn % len(sizes)]])
        at += len(pieces[-1])
        turn += 1
    assert await read(*pieces) == [event.encode() for event in events]


async def test_half_a_line_at_the_end_is_no_event_and_a_whole_one_is() -> None:
    assert await read(b"data: a\n\ndata: ha") == [b"a"]
    assert await read(b"data: a\n\ndata: b\n") == [b"a", b"b"]


async def test_a_line_longer_than_64_kib_is_one_event() -> None:
    assert await read(b"data: " + b"x" * 200_000, b"y\n\n") == [b"x" * 200_000 + b"y"]


async def test_an_event_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT", 1000)
    with pytest.raises(BackendProtocolError, match="1000 bytes"):
        await read(*[b"data: " + b"x" * 100] * 20)
    with pytest.raises(BackendProtocolError):
        await read(*[b"data: x\n" * 20] * 20)
