"""Hazard: bytes that are no frames, and frames that are no requests. Typed errors, a bounded buffer, a living node."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeld.engine.protocol import (
    MAX_FRAME,
    Cancel,
    Credit,
    Decode,
    Detokenize,
    Done,
    Embed,
    Fork,
    FrameReader,
    Held,
    Load,
    Open,
    Parts,
    Prefix,
    Ready,
    Render,
    Reply,
    Request,
    Rerank,
    Settle,
    State,
    Suffix,
    Tokenize,
    Turn,
    encode,
    encode_result,
)
from modeld.errors import EngineCrashedError, EngineProtocolError
from modeld.node.config import NodeConfig
from modeld.node.node import Node
from modeld.session import EmbedInput, Manifest
from modeld.template_facts import TemplateFacts
from modeld.types import DecodeOptions, Message, TextPart

GOOD: list[Request | Reply] = [
    Open(1, (1, 2)),
    Prefix(1, 1, (Message("user", "hi"),)),
    Suffix(2, 1, (Message("user", "hi"),), "high"),
    Decode(3, 1, DecodeOptions(seed=1)),
    Turn(4, 1, (Message("user", "hi"),), DecodeOptions(stop=("a",))),
    Fork(5, 1, 2),
    Settle(6, 1.0),
    Embed(7, (EmbedInput("a"), EmbedInput(tokens=(1, 2))), True, 3, "chunk"),
    Rerank(8, "q", ("a", "b"), "truncate"),
    Tokenize(9, "text", False),
    Detokenize(10, (1, 2)),
    Render(11, (Message("user", "hi"),), (), "high", False),
    Cancel(4),
    Credit(4, 10),
    Held(1, 2, 3),
    State(1, b"x"),
    Load("p", "n", "d", 1, 1),
    Ready(
        Manifest(engine="e", engine_build="b", model_digest="m", template_digest="t"), 1, 1, TemplateFacts(tools=True)
    ),
    Parts(4, 0, (TextPart("x"),), 1),
    Done(4, 1, encode_result(None)),
]
REQUESTS = [frame for frame in GOOD if isinstance(frame, Request)]


def read(union: object, data: bytes) -> int:
    """Frames in ``data``; anything but a typed error fails the test."""
    try:
        return len(FrameReader(union).feed(data))
    except EngineProtocolError:
        return -1


@pytest.mark.parametrize("union", [Request, Reply], ids=["request", "reply"])
def test_ten_thousand_random_and_mutated_frames(union: object) -> None:
    random_ = random.Random(7)
    tracemalloc.start()
    outcomes = {-1: 0, 0: 0, 1: 0}
    for round_ in range(10_000):
        if round_ % 2:
            body = random_.randbytes(random_.randrange(64))
        else:
            body = bytearray(encode(random_.choice(GOOD))[4:])
            for _ in range(random_.randrange(1, 4)):
                body[random_.randrange(len(body))] = random_.randrange(256)
        size = len(body) if random_.random() < 0.9 else random_.randrange(2**32)
        outcomes[min(1, read(union, struct.pack(">I", size) + body))] += 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50 * 2**20
    assert all(outcomes.values()), outcomes


@given(st.lists(st.sampled_from(REQUESTS), max_size=5), st.data())
@settings(deadline=None)
def test_frames_come_through_any_split(frames: list[Request], data: st.DataObject) -> None:
    stream = b"".join(map(encode, frames))
    reader = FrameReader(Request)
    got = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        got += reader.feed(stream[:cut])
        stream = stream[cut:]
    assert got == frames


def test_announced_size_is_believed_only_up_to_the_bound() -> None:
    reader = FrameReader(Request)
    with pytest.raises(EngineProtocolError, match=str(MAX_FRAME)):
        reader.feed(struct.pack(">I", MAX_FRAME + 1))
    assert FrameReader(Request).feed(struct.pack(">I", MAX_FRAME)) == []


def test_deep_nesting_is_a_typed_error() -> None:
    body = b"\x81\xa1a" * 100_000 + b"\xc0"
    assert read(Request, struct.pack(">I", len(body)) + body) == -1


def test_frame_too_large_to_send_is_refused_by_the_sender() -> None:
    with pytest.raises(EngineProtocolError, match="larger than a frame"):
        encode(Prefix(1, 1, (Message("user", "x" * (MAX_FRAME + 1)),)))


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(NodeConfig(data_root=tmp_path, allow_fake=True))
    yield node
    await node.aclose()


@pytest.mark.anyio
async def test_engine_that_gets_rubbish_ends_and_the_node_lives(node: Node) -> None:
    session = await node.open_session("fake")
    for rubbish in (b"\xff" * 100, struct.pack(">I", 3) + b"abc", encode(Load("", "", "", 1, 1))):
        resident = node._slot.resident
        assert resident is not None
        assert resident.engine._transport is not None
        resident.engine._transport.write(rubbish)
        await asyncio.wait_for(resident.engine.gone.wait(), 5)
        result = await session.turn([Message("user", "hi")], options=DecodeOptions(temperature=0)).join()
        assert result.receipt.rebound


@pytest.mark.anyio
async def test_engine_that_talks_rubbish_is_ended(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    await node.open_session("fake")
    resident = node._slot.resident
    assert resident is not None
    call = asyncio.ensure_future(resident.engine.call(Prefix(77, 99, (Message("user", "hi"),)), type(None)))
    resident.engine.data_received(struct.pack(">I", 3) + b"abc")
    with pytest.raises(EngineCrashedError):
        await call
    assert (await node.status()).state == "failed"


@pytest.mark.anyio
async def test_frames_out_of_order_are_not_believed(node: Node) -> None:
    await node.open_session("fake")
    resident = node._slot.resident
    assert resident is not None
    resident.engine.data_received(encode(Done(5, 3, encode_result(None))))
    await asyncio.wait_for(resident.engine.gone.wait(), 5)


@pytest.mark.anyio
async def test_random_requests_never_hurt_a_living_engine(node: Node) -> None:
    """Well-formed requests with senseless contents: each is answered, and the engine serves on."""
    session = await node.open_session("fake")
    resident = node._slot.resident
    assert resident is not None
    engine = resident.engine
    random_ = random.Random(3)
    texts = ["", "x", "\ue000assistant ", "\ue001", "!count 5", "!call", "\0", "\U0010ffff", "<think>", "a" * 5000]
    calls = []
    for _ in range(300):
        messages = tuple(
            Message(random_.choice(["system", "user", "assistant", "tool"]), random_.choice(texts))
            for _ in range(random_.randrange(4))
        )
        key = random_.randrange(-2, 30)
        request = random_.choice(
            [
                lambda id_, key=key, messages=messages: Prefix(id_, key, messages),
                lambda id_, key=key, messages=messages: Suffix(id_, key, messages),
                lambda id_, key=key, _=0: Fork(id_, key, random_.randrange(-2, 30)),
            ]
        )
        calls.append(asyncio.ensure_future(engine.call(request(engine.next_id()), msgspec.Raw)))
    outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 30)
    assert not any(isinstance(outcome, EngineCrashedError) for outcome in outcomes)
    assert (await session.turn([Message("user", "hi")], options=DecodeOptions(temperature=0)).join()).text


def test_engine_started_by_nobody_ends(tmp_path: Path) -> None:
    import subprocess
    import sys

    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-m", "modeld.engine.worker", "--fd", str(theirs.fileno()), "--backend", "fake"]
        command += ["--lock", str(tmp_path / "lock"), "--parent", str(os.getpid() + 1)]
        ended = subprocess.run(command, pass_fds=[theirs.fileno()], timeout=30, check=False)
        assert ended.returncode == 71
