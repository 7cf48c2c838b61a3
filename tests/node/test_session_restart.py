"""Hazard: the engine or the node ends. Sessions are back by name with the tokens they had, or say that they are not."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import msgspec
import pytest

from modeld.engine.snapshots import SavedSession
from modeld.errors import (
    EngineCrashedError,
    InvalidRequestError,
    LeaseLostError,
    ModeldError,
    SessionFatalError,
    StaleEpochError,
)
from modeld.node import session_files, session_keeper, slot
from modeld.node.config import NodeConfig
from modeld.node.node import Node
from modeld.node.session_files import Change, SessionFiles, SessionHeader
from modeld.session import Manifest, ModelRef, Session, SessionConfig
from modeld.types import DecodeOptions, Message, Receipt
from support.engines import TINY_F16

pytestmark = pytest.mark.anyio

GREEDY = DecodeOptions(temperature=0)
ODD = DecodeOptions(temperature=5.0, top_k=0, top_p=1.0, min_p=0.0, max_tokens=30)
"""So hot that tiny spells some answers in other tokens than the tokeniser would."""

REFS = {"fake": ModelRef("fake"), "llama": ModelRef(path=str(TINY_F16))}
COLD = SessionConfig(name="cold")
SYSTEM = (Message("system", "Be brief."),)


class Root:
    """A data root, and its nodes one after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.epoch = 0
        self.nodes: list[Node] = []

    async def start(self) -> Node:
        """The next owner's node; the one before must have ended."""
        self.epoch += 1
        self.nodes.append(Node(NodeConfig(data_root=self.path, allow_fake=True), epoch=self.epoch))
        return self.nodes[-1]

    async def restart(self) -> Node:
        await self.nodes[-1].aclose()
        return await self.start()

    def files(self, ending: str = "session") -> list[Path]:
        return sorted((self.path / "sessions").glob(f"*.{ending}"))

    async def kept(self, count: int = 1) -> None:
        """Wait until so many states are on disk, and what the sessions are."""
        async with asyncio.timeout(session_keeper.ROUND_SECONDS + 3):
            while len(self.files()) != count or self.files("used") or list((self.path / "sessions").glob(".*")):
                await asyncio.sleep(0.02)


@pytest.fixture
async def root(tmp_path: Path) -> AsyncIterator[Root]:
    root = Root(tmp_path)
    yield root
    for node in root.nodes:
        await node.aclose()


def told(receipt: Receipt) -> str:
    return receipt.stop.reason if receipt.stop is not None else ""


async def token_hash(session: Session, talk: list[Message]) -> str:
    return (await session.ensure_prefix(talk)).prefix_token_hash


async def odd_conversation(node: Node, ref: ModelRef) -> tuple[Session, list[Message], str]:
    """A session, how its conversation goes on, and the hash of the tokens of that where nothing is interrupted."""
    for seed in range(30):
        session = await node.open_session(ref, SessionConfig(name="odd"))
        ask = Message("user", f"Repeat: river stone {seed} lotus")
        answer = await session.turn([ask], options=msgspec.structs.replace(ODD, seed=seed)).join()
        talk = [ask, Message("assistant", answer.text), Message("user", "Hello!")]
        uninterrupted = await token_hash(await session.fork("fork"), talk)
        if ref.name == "fake" or uninterrupted != await token_hash(await node.open_session(ref, COLD), talk):
            return session, talk, uninterrupted
    raise AssertionError("all answers are spelt as the tokeniser would: a lost state would not be seen")


@pytest.mark.parametrize("engine", REFS)
@pytest.mark.parametrize("way", ["open", "attach"])
async def test_tokens_after_a_restart_are_those_of_a_run_without_one(root: Root, engine: str, way: str) -> None:
    ref = REFS[engine]
    session, talk, uninterrupted = await odd_conversation(await root.start(), ref)
    held = (await session.explain()).resident
    node = await root.restart()
    listed = {found.name: found for found in await node.sessions()}["odd"]
    assert (listed.tape, listed.hot, listed.generation) == (held, 0, 0)
    assert listed.window == session.handle.window
    again = node.attach(session.handle) if way == "attach" else await node.open_session(ref, SessionConfig(name="odd"))
    status = await again.ensure_prefix(talk)
    assert status.prefix_token_hash == uninterrupted
    assert told(status.receipt) == ""
    assert status.receipt.restored > 0
    assert status.receipt.rebound == (way == "attach")
    assert status.receipt.reused + status.receipt.restored + status.receipt.prefilled == status.prefix_tokens


async def test_looking_at_a_session_or_forking_it_after_a_restart_does_not_empty_it(root: Root) -> None:
    node = await root.start()
    session = await node.open_session("fake", SessionConfig(name="kept"))
    await session.turn([Message("user", "x" * 100)], options=GREEDY).join()
    held = (await session.explain()).resident
    node = await root.restart()
    await node.load("fake")
    again = node.attach(session.handle)
    assert [segment.kind for segment in (await again.explain()).segments] == ["user"]
    await again.fork("branch")
    assert {listed.name: listed.tape for listed in await node.sessions()} == {"kept": held, "branch": held}
    receipt = (await again.ensure_prefix([Message("user", "x" * 100)])).receipt
    assert receipt.restored > 0


@pytest.mark.parametrize("engine", REFS)
async def test_decode_and_suffix_go_on_after_a_restart(root: Root, engine: str) -> None:
    async def talk(again: Callable[[Session], Awaitable[Session]]) -> list[str]:
        session = await (root.nodes[-1]).open_session(REFS[engine], SessionConfig(name=f"talk{len(root.nodes)}"))
        await session.ensure_prefix(SYSTEM)
        await session.prefill_suffix([Message("user", "Count to 12.")])
        session = await again(session)
        texts = [(await session.decode(DecodeOptions(temperature=0, max_tokens=5)).join()).text]
        session = await again(session)
        # Goes on in the middle of the answer.
        texts.append((await session.decode(GREEDY).join()).text)
        session = await again(session)
        await session.prefill_suffix([Message("user", "Thanks!")])
        return [*texts, (await session.decode(GREEDY).join()).text]

    async def stays(session: Session) -> Session:
        return session

    async def restarts(session: Session) -> Session:
        return (await root.restart()).attach(session.handle)

    await root.start()
    assert await talk(restarts) == await talk(stays)
    assert len(root.nodes) == 4


async def test_engine_that_crashes_after_a_rest_leaves_the_session_as_it_was(root: Root) -> None:
    node = await root.start()
    session = await node.open_session("fake")
    await session.ensure_prefix(SYSTEM)
    await session.prefill_suffix([Message("user", "!count 9")])
    await root.kept()
    await crash(node)
    answer = await session.decode(GREEDY).join()
    assert answer.text == "1 2 3 4 5 6 7 8 9"
    assert told(answer.receipt) == ""
    assert answer.receipt.prefilled <= 1


async def test_engine_that_crashes_before_a_rest_is_not_gone_on_from(root: Root) -> None:
    """The engine told of the state before the last call: to go on from that would be another conversation."""
    node = await root.start()
    session = await node.open_session("fake")
    await session.ensure_prefix(SYSTEM)
    await session.prefill_suffix([Message("user", "one")])
    await root.kept()
    await session.prefill_suffix([Message("user", "two")])
    await crash(node)
    for call in (session.decode(GREEDY).join(), session.prefill_suffix([Message("user", "three")])):
        with pytest.raises(InvalidRequestError, match="turn"):
            await call
    # Nor after the node has ended as well.
    node = await root.restart()
    with pytest.raises(StaleEpochError, match="ensure_prefix or turn"):
        await node.attach(session.handle).prefill_suffix([Message("user", "three")])
    session = await node.open_session("fake")
    with pytest.raises(InvalidRequestError, match="ensure_prefix or turn"):
        await session.prefill_suffix([Message("user", "three")])
    answer = await session.turn([Message("user", "hi")], options=GREEDY).join()
    assert answer.text.startswith("hi #")
    await session.prefill_suffix([Message("user", "four")])


async def test_handle_of_a_session_that_nobody_has_any_more(root: Root) -> None:
    node = await root.start()
    session = await node.open_session("fake")
    await session.prefill_suffix([Message("user", "one")])
    await node.aclose()
    root.files()[0].unlink()
    again = (await root.start()).attach(session.handle)
    for call in (
        again.prefill_suffix([Message("user", "two")]),
        again.decode(GREEDY).join(),
        again.snapshot(),
        again.fork("copy"),
    ):
        with pytest.raises(StaleEpochError) as caught:
            await call
        assert (caught.value.epoch, caught.value.current) == (1, 2)
    await again.ensure_prefix(SYSTEM)
    await again.prefill_suffix([Message("user", "two")])
    assert (await again.decode(GREEDY).join()).text.startswith("two #")


async def test_engine_that_crashes_before_it_told_anything(root: Root) -> None:
    node = await root.start()
    session = await node.open_session("fake")
    await session.ensure_prefix(SYSTEM)
    await crash(node)
    with pytest.raises(InvalidRequestError, match="ensure_prefix or turn"):
        await session.prefill_suffix([Message("user", "one")])
    assert told((await session.ensure_prefix(SYSTEM)).receipt) == "engine_lost"
    await session.prefill_suffix([Message("user", "one")])


async def test_switch_and_unload_keep_the_session(root: Root) -> None:
    node = await root.start()
    session = await node.open_session("fake")
    await session.prefill_suffix([Message("user", "!count 5")])
    await node.open_session("tiny")
    assert (await session.decode(DecodeOptions(max_tokens=3)).join()).text == "1 2"
    await node.unload()
    answer = await session.decode(GREEDY).join()
    assert answer.text == " 3 4 5"
    assert told(answer.receipt) == "unloaded"


async def test_running_call_is_cut_and_kept_when_the_node_closes(root: Root) -> None:
    node = await root.start()
    session = await node.open_session("fake:delay=0.005")
    stream = session.turn([Message("user", "!count 900")], options=GREEDY)
    await anext(aiter(stream))
    node = await root.restart()
    with pytest.raises(ModeldError, match="closing"):
        await stream.join()
    answer = await node.attach(session.handle).decode(DecodeOptions(max_tokens=20)).join()
    assert len(answer.text) == 20
    assert not answer.text.startswith("1 2 3")


async def test_wedged_engine_does_not_hold_up_the_end(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slot, "SETTLE_SECONDS", 0.5)
    monkeypatch.setattr("modeld.node.engine_process.STOP_SECONDS", 0.2)
    node = await root.start()
    session = await node.open_session("fake")
    await session.turn([Message("user", "kept")], options=GREEDY).join()
    await root.kept()
    status = await node.status()
    assert status.engine is not None
    os.kill(status.engine.pid, signal.SIGSTOP)
    began = time.monotonic()
    node = await root.restart()
    assert time.monotonic() - began < 3
    assert [listed.name for listed in await node.sessions()] == ["default"]
    assert told((await node.attach(session.handle).ensure_prefix(SYSTEM)).receipt) == "engine_lost"


async def test_dead_engine_does_not_hold_up_the_end(root: Root) -> None:
    node = await root.start()
    await node.open_session("fake")
    status = await node.status()
    assert status.engine is not None
    os.kill(status.engine.pid, signal.SIGKILL)
    began = time.monotonic()
    await node.aclose()
    assert time.monotonic() - began < 3


async def test_node_without_its_lease_writes_nothing(root: Root) -> None:
    node = await root.start()
    session = await node.open_session("fake")
    await session.turn([Message("user", "kept")], options=GREEDY).join()
    await root.kept()
    before = {path: path.read_bytes() for path in (root.path / "sessions").iterdir()}
    await (await node.open_session("fake", SessionConfig(name="late"))).turn(SYSTEM, options=GREEDY).join()
    node.refuse(LeaseLostError("another one owns the data root"))
    await node.aclose()
    assert {path: path.read_bytes() for path in (root.path / "sessions").iterdir()} == before


async def test_storage_that_hangs_past_the_lease_replaces_nothing(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    node = await root.start()
    session = await node.open_session("fake")
    await session.turn([Message("user", "one")], options=GREEDY).join()
    await root.kept()
    before = root.files()[0].read_bytes()
    await session.turn([Message("user", "two")], options=GREEDY).join()
    fsync = os.fsync

    def hang(fd: int) -> None:
        node.refuse(LeaseLostError("another one owns the data root"))
        fsync(fd)

    monkeypatch.setattr(session_files.os, "fsync", hang)
    await node.aclose()
    assert [path.read_bytes() for path in root.files()] == [before]


async def test_full_disk_is_no_error_and_is_tried_again(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_keeper, "RETRY_SECONDS", 0.2)
    monkeypatch.setattr(session_keeper, "ROUND_SECONDS", 0.1)
    node = await root.start()
    session = await node.open_session("fake")
    await session.prefill_suffix([Message("user", "!count 5")])
    with monkeypatch.context() as full:

        def fail(fd: int) -> None:
            raise OSError(28, "No space left on device")

        full.setattr(session_files.os, "fsync", fail)
        await asyncio.sleep(1.6)
        assert root.files() == []
        # What could not be written is there all the same, for an engine of this node.
        await crash(node)
        assert (await session.decode(DecodeOptions(max_tokens=3)).join()).text == "1 2"
    await root.kept()
    session = (await root.restart()).attach(session.handle)
    assert (await session.decode(GREEDY).join()).text == " 3 4 5"


async def test_full_disk_to_the_end_costs_the_session_and_nothing_else(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = await root.start()
    session = await node.open_session("fake")
    await session.turn([Message("user", "hi")], options=GREEDY).join()
    with monkeypatch.context() as full:

        def fail(*arguments: object) -> None:
            raise OSError(28, "No space left on device")

        full.setattr(session_files.os, "replace", fail)
        node = await root.restart()
    assert await node.sessions() == []
    assert list((root.path / "sessions").iterdir()) == []
    assert (await node.attach(session.handle).turn([Message("user", "hi")], options=GREEDY).join()).text


@pytest.mark.parametrize("name", ["../..", "..", ".", "a/b\\c", "\N{SNOWMAN}" * 200, "%00", "con", "x.session", " "])
async def test_hostile_names_stay_in_the_folder(root: Root, name: str) -> None:
    node = await root.start()
    session = await node.open_session("fake", SessionConfig(workspace=name, name=name))
    await session.turn([Message("user", "hi")], options=GREEDY).join()
    node = await root.restart()
    assert [(listed.workspace, listed.name) for listed in await node.sessions()] == [(name, name)]
    (path,) = root.files()
    assert len(path.stem) == 64
    assert (path.stat().st_mode & 0o777, path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    ours = {"sessions", "kv", "engine.lock", "models", "digests.json", "template-facts.json"}
    assert {entry.name for entry in root.path.iterdir()} <= ours


@pytest.mark.parametrize("name", ["", "a\0b", "\n", "\ud800", "x" * 201])
async def test_names_that_are_none_write_nothing(root: Root, name: str) -> None:
    node = await root.start()
    with pytest.raises(InvalidRequestError):
        await node.open_session("fake", SessionConfig(name=name))
    await node.aclose()
    assert not (root.path / "sessions").exists()


async def test_files_follow_fork_ttl_and_fatal(root: Root) -> None:
    node = await root.start()
    session = await node.open_session("fake", SessionConfig(name="parent"))
    await session.prefill_suffix([Message("user", "!count 5")])
    await session.fork("child")
    brief = await node.open_session("fake", SessionConfig(name="brief", ttl=3600))
    await brief.turn([Message("user", "hi")], options=GREEDY).join()
    broken = await node.open_session("fake", SessionConfig(name="broken"))
    await broken.turn([Message("user", "hi")], options=GREEDY).join()
    await root.kept(4)
    with pytest.raises(SessionFatalError):
        await broken.turn([Message("user", "!fail")], options=GREEDY).join()
    node = await root.restart()
    assert {listed.name for listed in await node.sessions()} == {"parent", "child", "brief"}
    child = await node.open_session("fake", SessionConfig(name="child"))
    assert (await child.decode(GREEDY).join()).text == "1 2 3 4 5"
    node._registry.find("default", "brief", brief.handle.ref.digest).used_at -= 3601  # type: ignore[union-attr]
    assert {listed.name for listed in await node.sessions()} == {"parent", "child"}
    await node.aclose()
    assert len(root.files()) == 2


async def test_clock_that_jumps_ahead_ends_no_session(root: Root, monkeypatch: pytest.MonkeyPatch) -> None:
    node = await root.start()
    brief = await node.open_session("fake", SessionConfig(name="brief", ttl=3600))
    await brief.turn([Message("user", "hi")], options=GREEDY).join()
    real = time.time
    monkeypatch.setattr("time.time", lambda: real() + 10**6)
    assert [listed.name for listed in await node.sessions()] == ["brief"]
    node = await root.restart()
    assert [listed.name for listed in await node.sessions()] == ["brief"]


async def test_fork_that_fails_leaves_no_session(root: Root) -> None:
    node = await root.start()
    source = await node.open_session("fake", SessionConfig(name="source"))
    await source.prefill_suffix([Message("user", "!count 5")])
    engine = (await node.status()).engine
    assert engine is not None
    os.kill(engine.pid, signal.SIGSTOP)
    fork = asyncio.ensure_future(source.fork("branch"))
    await asyncio.sleep(0.1)
    os.kill(engine.pid, signal.SIGKILL)
    with pytest.raises(EngineCrashedError):
        await fork
    assert [listed.name for listed in await node.sessions()] == ["source"]


async def test_fork_onto_a_session_is_what_comes_back(root: Root) -> None:
    node = await root.start()
    old = await node.open_session("fake", SessionConfig(name="target"))
    await old.prefill_suffix([Message("user", "!count 3")])
    source = await node.open_session("fake", SessionConfig(name="source"))
    await source.prefill_suffix([Message("user", "!count 5")])
    await root.kept(2)
    await source.fork("target")
    await crash(node)
    with pytest.raises(InvalidRequestError, match="turn"):
        await old.decode(GREEDY).join()
    assert (await source.turn([Message("user", "hi")], options=GREEDY).join()).text.startswith("hi #")


async def test_two_clients_of_one_session_after_a_restart(root: Root) -> None:
    node = await root.start()
    session = await node.open_session("fake")
    await session.ensure_prefix(SYSTEM)
    node = await root.restart()
    clients = [node.attach(session.handle) for _ in range(8)]
    ask = [Message("user", "hi")]
    answers = await asyncio.gather(*(client.turn([*SYSTEM, *ask], options=GREEDY).join() for client in clients))
    assert len({answer.text for answer in answers}) == 1
    # The KV was gone for the first of them, and only for it.
    assert sum(told(answer.receipt) == "engine_lost" for answer in answers) == 1


async def test_state_of_another_manifest_is_model_changed(root: Root) -> None:
    node = await root.start()
    session = await node.open_session("fake")
    talk = [Message("user", "hi")]
    await session.turn(talk, options=GREEDY).join()
    await node.aclose()
    header, state = await asyncio.to_thread(read, root.files()[0])
    older = msgspec.structs.replace(header.manifest, engine_build="fake-0")
    saved = msgspec.msgpack.decode(state, type=SavedSession)
    await asyncio.to_thread(
        rewrite, root, header, older, msgspec.msgpack.encode(msgspec.structs.replace(saved, manifest=older))
    )
    node = await root.start()
    again = await node.open_session("fake")
    assert told((await again.turn(talk, options=GREEDY).join()).receipt) == "model_changed"
    assert (await again.explain()).resident > 0


async def test_state_that_is_no_state_costs_a_prefill(root: Root) -> None:
    session = await (await root.start()).open_session("fake")
    talk = [Message("user", "hi")]
    first = await session.turn(talk, options=GREEDY).join()
    for rubbish in (b"\x00", b"\xc1" * 100, b"\x80", b"\x91" * 100_000, os.urandom(1000)):
        await root.nodes[-1].aclose()
        header, _ = await asyncio.to_thread(read, root.files()[0])
        await asyncio.to_thread(rewrite, root, header, header.manifest, rubbish)
        node = await root.start()
        assert len(await node.sessions()) == 1
        again = await node.attach(session.handle).turn(talk, options=GREEDY).join()
        assert (again.text, again.receipt.reused) == (first.text, 0)


async def crash(node: Node) -> None:
    engine = (await node.status()).engine
    assert engine is not None
    os.kill(engine.pid, signal.SIGKILL)
    async with asyncio.timeout(5):
        while (await node.status()).engine is not None:
            await asyncio.sleep(0.01)


def read(path: Path) -> tuple[SessionHeader, bytes]:
    files = SessionFiles(path.parent)
    ((header, _),) = files.scan()
    return header, files.load(header.id)


def rewrite(root: Root, header: SessionHeader, manifest: Manifest, state: bytes) -> None:
    """The same session with another state, in a file that is sound."""
    sha256 = hashlib.sha256(state).hexdigest()
    changed = msgspec.structs.replace(header, manifest=manifest, size=len(state), sha256=sha256)
    assert SessionFiles(root.path / "sessions").apply(set(), {header.id: Change(changed, state, current=True)}) == set()
