"""Hazard: values of the wrong kind, readers that stop, ends that cannot be read. The engine lives, the caller knows."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from modeld.engine.protocol import Done, encode, encode_result
from modeld.errors import EngineCrashedError, InvalidRequestError, ModeldError, NodeError
from modeld.node import sessions
from modeld.node.config import NodeConfig
from modeld.node.node import Node
from modeld.session import SessionConfig
from modeld.types import DecodeOptions, FunctionTool, Message, Tool

pytestmark = pytest.mark.anyio

GREEDY = DecodeOptions(temperature=0)
DEEP: dict[str, Any] = {}
for _ in range(3000):
    DEEP = {"a": DEEP}

SENSELESS = {
    "content that is nothing": [Message("assistant", None)],  # type: ignore[arg-type]
    "unknown role": [Message("developer", "x")],  # type: ignore[arg-type]
    "content that is a list": [Message("user", [{"type": "text"}])],  # type: ignore[arg-type]
    "half a character": [Message("user", "\ud800")],
    "no message": ["hi"],
    "too much": [Message("user", "x" * (65 * 2**20))],
}


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(NodeConfig(data_root=tmp_path, allow_fake=True))
    yield node
    await node.aclose()


async def same_engine(node: Node) -> int:
    engine = (await node.status()).engine
    assert engine is not None
    return engine.pid


@pytest.mark.parametrize("kind", SENSELESS)
async def test_senseless_messages_are_refused_before_they_reach_the_engine(node: Node, kind: str) -> None:
    session = await node.open_session("fake")
    pid = await same_engine(node)
    with pytest.raises(InvalidRequestError):
        await session.turn(SENSELESS[kind], options=GREEDY).join()  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError):
        await session.ensure_prefix(SENSELESS[kind])  # type: ignore[arg-type]
    assert (await session.turn([Message("user", "hi")], options=GREEDY).join()).text
    assert await same_engine(node) == pid
    assert (await node.status()).active == 0


@pytest.mark.parametrize("schema", [{"maximum": 2**70}, {"a": "\ud800"}, {1: 2}, DEEP])
async def test_senseless_tools_are_refused(node: Node, schema: dict[str, Any]) -> None:
    session = await node.open_session("fake")
    pid = await same_engine(node)
    tools = [Tool(FunctionTool("f", "", schema))]
    with pytest.raises(InvalidRequestError):
        await session.turn([Message("user", "hi")], tools=tools, options=GREEDY).join()
    assert await same_engine(node) == pid


def test_options_of_the_wrong_kind_are_refused() -> None:
    with pytest.raises(InvalidRequestError):
        DecodeOptions(stop="\n")  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError):
        DecodeOptions(stop=("x" * 1001,))


async def test_call_longer_than_the_credit_comes_whole(node: Node) -> None:
    session = await node.open_session("fake")
    arguments = '{"city": "' + "x" * 1500 + '"}'
    tool = Tool(FunctionTool("get_weather"))
    result = await asyncio.wait_for(
        session.turn([Message("user", f"!call get_weather {arguments}")], tools=[tool], options=GREEDY).join(), 20
    )
    assert result.message.tool_calls[0].function.arguments == arguments


async def test_stop_string_longer_than_the_credit_is_held_and_let_go(node: Node) -> None:
    session = await node.open_session("fake")
    options = DecodeOptions(temperature=0, stop=("a" * 650 + "b",))
    result = await asyncio.wait_for(session.turn([Message("user", "a" * 700)], options=options).join(), 20)
    assert result.text.startswith("a" * 700 + " #")


async def test_streams_nobody_reads_hold_up_nobody(node: Node) -> None:
    streams = []
    for index in range(16):
        session = await node.open_session("tiny", SessionConfig(name=f"open-{index}"))
        options = DecodeOptions(temperature=0, ignore_eos=True)
        stream = session.turn([Message("user", "Count to 60.")], options=options)
        await anext(aiter(stream))
        streams.append(stream)
    late = await node.open_session("tiny", SessionConfig(name="late"))
    result = await asyncio.wait_for(late.turn([Message("user", "Count to 12.")], options=GREEDY).join(), 30)
    assert result.text == "1 2 3 4 5 6 7 8 9 10 11 12"
    for stream in streams:
        await stream.aclose()
    await asyncio.wait_for(node.unload(), 10)


async def test_end_that_cannot_be_read_ends_the_engine_and_the_stream(node: Node) -> None:
    session = await node.open_session("fake:delay=0.01")
    stream = session.turn([Message("user", "!count 50")], options=GREEDY)
    await anext(aiter(stream))
    assert stream._stream is not None
    engine = stream._stream._engine
    sequence = engine._sequence[stream._stream.id]
    engine.data_received(encode(Done(stream._stream.id, sequence, encode_result(5))))
    with pytest.raises(EngineCrashedError):
        await asyncio.wait_for(stream.join(), 10)
    assert (await node.status()).active == 0


async def test_closed_node_starts_nothing_and_says_so(tmp_path: Path) -> None:
    node = Node(NodeConfig(data_root=tmp_path, allow_fake=True))
    session = await node.open_session("fake")
    waiting = asyncio.ensure_future(node.open_session("tiny"))
    os.kill(await same_engine(node), signal.SIGKILL)
    await asyncio.sleep(0.001)
    await node.aclose()
    with pytest.raises(NodeError):
        await waiting
    with pytest.raises(NodeError):
        await node.open_session("fake")
    with pytest.raises(NodeError):
        await session.turn([Message("user", "hi")]).join()
    assert (await node.status()).state == "empty"


async def test_restore_makes_room_for_itself(node: Node) -> None:
    words = " ".join(["stone"] * 7000)
    sessions = []
    for index in range(4):
        session = await node.open_session("tiny", SessionConfig(name=f"s{index}"))
        await session.ensure_prefix([Message("user", words)])
        sessions.append(session)
    saved = await sessions[0].snapshot()
    assert (await sessions[0].restore(saved.id)).receipt.restored == saved.tokens
    fifth = await node.open_session("tiny", SessionConfig(name="fifth"))
    assert (await fifth.restore(saved.id)).receipt.restored == saved.tokens


async def test_snapshot_that_was_given_up_leaves_no_file(node: Node, tmp_path: Path) -> None:
    session = await node.open_session("fake")
    await session.turn([Message("user", "x" * 2000)], options=GREEDY).join()
    for delay in (0, 0.0005, 0.001, 0.002, 0.005):
        task = asyncio.ensure_future(session.snapshot())
        await asyncio.sleep(delay)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await session.snapshot()
    async with asyncio.timeout(5):
        while (await node.status()).active:
            await asyncio.sleep(0.01)
    assert [path.name for path in (tmp_path / "snapshots").iterdir() if path.suffix == ".part"] == []


async def test_drafts_of_a_dead_engine_are_swept(node: Node, tmp_path: Path) -> None:
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / ".old.part").write_text("half")
    await (await node.open_session("fake")).snapshot()
    assert not (tmp_path / "snapshots" / ".old.part").exists()


async def test_pin_given_later_counts(tmp_path: Path) -> None:
    node = Node(NodeConfig(data_root=tmp_path, allow_fake=True, sequences=2))
    question = [Message("user", "hi")]
    pinned = await node.open_session("fake", SessionConfig(name="a"))
    await pinned.turn(question, options=GREEDY).join()
    await node.open_session("fake", SessionConfig(name="a", pin=True))
    for name in ("b", "c", "d"):
        await (await node.open_session("fake", SessionConfig(name=name))).turn(question, options=GREEDY).join()
    assert (await pinned.turn(question, options=GREEDY).join()).receipt.prefilled == 1
    await node.aclose()


async def test_session_with_a_ttl_is_forgotten_and_others_stay(node: Node) -> None:
    for name, ttl in (("short", 0.2), ("long", 0.0)):
        session = await node.open_session("fake", SessionConfig(name=name, ttl=ttl))
        await session.turn([Message("user", f"{name}: hi")], options=GREEDY).join()
    held = (await node.status()).ledger.cells_used
    assert {info.name for info in await node.sessions()} == {"short", "long"}
    await asyncio.sleep(0.3)
    assert {info.name for info in await node.sessions()} == {"long"}
    again = await node.open_session("fake", SessionConfig(name="short"))
    # No more than the other conversation begins with.
    assert (await again.turn([Message("user", "short: hi")], options=GREEDY).join()).receipt.reused < 10
    assert (await node.status()).ledger.cells_used == held


async def test_sessions_with_a_ttl_are_bounded_in_number_and_the_longest_unused_leave(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A service that asks something new a hundred times a second would fill memory long before its hour is over.
    monkeypatch.setattr(sessions, "MAX_PASSING", 3)
    named = await node.open_session("fake", SessionConfig(name="named"))
    await named.turn([Message("user", "named")], options=GREEDY).join()
    first = await node.open_session("fake", SessionConfig(name="0", ttl=3600))
    running = first.turn([Message("user", "0: hi")], options=DecodeOptions(temperature=0, ignore_eos=True))
    await anext(aiter(running))
    for number in range(1, 8):
        session = await node.open_session("fake", SessionConfig(name=str(number), ttl=3600))
        await session.turn([Message("user", f"{number}: hi")], options=GREEDY).join()
    # What is in use stays, as the last one is until a moment after its answer.
    kept: set[str] = set()
    for _ in range(1000):
        kept = {info.name for info in await node.sessions()}
        if len(kept) == 5:
            break
        await asyncio.sleep(0.01)
    assert kept == {"named", "0", "5", "6", "7"}
    await running.cancel()


async def test_cancelled_before_the_first_read_still_joins(node: Node) -> None:
    session = await node.open_session("fake")
    stream = session.turn([Message("user", "hi")], options=GREEDY)
    end = await stream.cancel()
    assert (await stream.join()).end == end


async def test_frames_of_any_size_of_tape_are_sent(node: Node) -> None:
    session = await node.open_session("tiny")
    status = await session.ensure_prefix([Message("user", " ".join(["stone"] * 8000))])
    infos = {info.name: info for info in await node.sessions()}
    assert infos["default"].tape == status.prefix_tokens > 8000


def test_errors_hold_json_only() -> None:
    with pytest.raises(ModeldError) as caught:
        DecodeOptions(temperature=-1)
    msgspec.json.encode(caught.value.details)
