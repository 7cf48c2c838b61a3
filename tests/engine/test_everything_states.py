"""Hazard: all at once: turns that slide, forks, snapshots, files, kills. No wrong cell, and nobody waits for ever.

As in ``test_scheduler_states``, with a model of the node: it keeps what engines tell of sessions, and gives it to the
next one.
"""

from __future__ import annotations

import tempfile
import zlib
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any
from unittest import mock

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule
from msgspec import structs

from engine.test_overflow_states import ShiftingSessions
from engine.test_scheduler_states import LOAD, TEMPLATED, Engine, texts
from modeld.engine.block_files import read_block, read_header
from modeld.engine.blocks import descendants
from modeld.engine.checkpoints import Checkpoints
from modeld.engine.disk_thread import DiskThread
from modeld.engine.fake.lexicon import START
from modeld.engine.protocol import (
    Audit,
    Decode,
    Done,
    Explain,
    Failed,
    Forget,
    Fork,
    Kept,
    Open,
    Request,
    Restore,
    Settle,
    Snapshot,
    State,
    Turn,
    decode_result,
)
from modeld.engine.tiers import Tiers
from modeld.engine.transfers import WAKE
from modeld.session import ContextReport, ModelRef, PrefixStatus, SessionConfig, SnapshotInfo
from modeld.session.manifest import pack_tokens
from modeld.types import DecodeOptions, EndPart, Message
from support.disks import StepwiseDisk, kv_files, spoil
from support.examples import examples

GREEDY = DecodeOptions(temperature=0)
BLOCK = 32
RAM, DISK = 2500, 8000
SESSIONS = st.integers(1, 6)
SNAPSHOT_FAILS = {"manifest_mismatch", "snapshot_not_found", "does_not_fit", "model_busy", "session_error", "cancelled"}


class StepwiseTransfers:
    """In the place of the thread of snapshots: does one thing when it is told to."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.todo: list[tuple[Callable[[], Any], Future[Any]]] = []

    def ask(self, work: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        self.todo.append((work, future))
        return future

    def step(self) -> None:
        work, future = self.todo.pop(0)
        try:
            future.set_result(work())
        except Exception as error:
            future.set_exception(error)


class BusyEngine(Engine):
    """An engine whose files are touched when it waits, or when the test says so."""

    def __init__(self, load: Any) -> None:
        made: list[StepwiseTransfers] = []

        def transfers(wake: Callable[[], None]) -> StepwiseTransfers:
            made.append(StepwiseTransfers(wake))
            return made[0]

        with mock.patch("modeld.engine.scheduler.Disk", transfers):
            super().__init__(load)
        self.transfers = made[0]
        self.pool = self.scheduler._pool
        get = self.inbox.get

        def wait(block: bool = True, timeout: float | None = None) -> Request:
            if timeout != 0 and self.inbox.empty():
                self.touch_files()
            return get(block, timeout)

        self.inbox.get = wait  # type: ignore[method-assign]

    @property
    def thread(self) -> DiskThread | None:
        tiers = self.pool._tiers
        return tiers._disk.thread if isinstance(tiers, Tiers) and tiers._disk is not None else None

    def touch_files(self) -> bool:
        if self.transfers.todo:
            self.transfers.step()
            self.ask_nothing()
        elif isinstance(self.thread, StepwiseDisk) and self.thread.has_work:
            self.thread.step()
        else:
            return False
        return True

    def end(self) -> None:
        """The process is killed: a kernel closes its files. What they hold may be anything."""
        if (running := self.scheduler._transfers._running) is not None:
            running.close()
        while self.transfers.todo:
            self.transfers.step()

    def ask_nothing(self) -> None:
        self.ask(WAKE)


class Everything(ShiftingSessions):
    """Few cells, few sequences, little memory, a small disk, and an engine that ends at any time."""

    name = "fake"

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        root = Path(self.folder.name)
        (root / "snapshots").mkdir()
        self.load = structs.replace(
            LOAD, name=self.name, window=200, cells=260, batch=16, ram=RAM, disk=DISK, kv_folder=str(root / "kv")
        )
        self.patches = [
            mock.patch("modeld.engine.disk.DiskThread", StepwiseDisk),
            mock.patch("modeld.engine.housekeeping.WRITE_SECONDS", 0.0),
            mock.patch("modeld.engine.housekeeping.REST_SECONDS", 0.0),
            mock.patch("modeld.engine.housekeeping.THIN_SECONDS", 0.0),
            mock.patch("modeld.engine.blocks.BLOCK", BLOCK),
            mock.patch("os.fsync"),
        ]
        for patch in self.patches:
            patch.start()
        super().__init__()
        # What the node knows: states, the last request that changes a session, class and pin.
        self.states: dict[int, State] = {}
        self.changed: dict[int, int] = {}
        self.kinds: dict[int, tuple[Any, bool]] = {}
        self.snapshots: list[tuple[str, str]] = []
        self.fatal: set[int] = set()
        self.ever_spoilt = False
        self.start()

    def teardown(self) -> None:
        self.engine.end()
        for patch in self.patches:
            patch.stop()
        self.folder.cleanup()

    def start(self) -> None:
        """A new engine; sessions are told to it before their first request."""
        if isinstance(self.engine, BusyEngine):
            self.engine.end()
        self.engine: BusyEngine = BusyEngine(self.load)
        self.spoilt = False
        self.asked.clear()
        self.opened: set[int] = set()
        for key in self.fatal:
            self.tapes.pop(key, None)
            self.states.pop(key, None)
        self.fatal.clear()

    # The node

    def ask(self, request: Request) -> int:
        key = getattr(request, "session", 0)
        keys = [key, request.target] if isinstance(request, Fork) else [key]
        for one in keys:
            if one and one not in self.opened:
                self.open(one)
        if not isinstance(request, Explain | Snapshot | Kept | Audit | Settle):
            self.changed.update(dict.fromkeys(keys, self.ids + 1))
        if isinstance(request, Turn | Decode):
            request = structs.replace(request, client=f"client {key % 2}")
        return super().ask(request)

    def open(self, key: int) -> None:
        self.opened.add(key)
        state = self.states.get(key)
        current = state is not None and state.after >= self.changed.get(key, 0)
        kind, pin = self.kinds.get(key, ("main", False))
        known, data = tuple(self.tapes.get(key, ())), state.state if state is not None else b""
        self.changed[key] = 0
        self.engine.ask(Open(key, known, "engine_lost", kind, pin, data, stale=not current))

    def read(self) -> None:
        for reply in self.engine.replies:
            if isinstance(reply, State):
                self.states[reply.session] = reply
        super().read()

    def ended(self, reply: Done | Failed) -> None:
        request = self.asked[reply.id]
        assert not isinstance(request, Open)
        if isinstance(reply, Failed) and reply.code == "session_fatal":
            said = request.messages[-1].content if isinstance(request, Turn) else ""
            assert said == "!fail" or request.session in self.fatal  # type: ignore[union-attr]
            self.fatal.add(request.session)  # type: ignore[union-attr]
            self.asked.pop(reply.id)
            self.tapes_changed(reply)
        elif isinstance(reply, Failed) and isinstance(request, Snapshot | Restore):
            assert reply.code in SNAPSHOT_FAILS, reply
            self.asked.pop(reply.id)
            self.tapes_changed(reply)
            assert not (
                isinstance(request, Snapshot) and Path(request.path).exists() and not self.engine.transfers.todo
            )
        else:
            super().ended(reply)
        if isinstance(request, Forget) and isinstance(reply, Done):
            self.fatal.discard(request.session)
            self.states.pop(request.session, None)
            self.said.pop(request.session, None)
        if isinstance(reply, Done):
            self.done(reply, request)

    def done(self, reply: Done, request: Request) -> None:
        match request:
            case Snapshot(path=path):
                self.snapshots.append((path, decode_result(reply.result, SnapshotInfo).id))
            case Restore(session=session):
                receipt = decode_result(reply.result, PrefixStatus).receipt
                assert receipt.restored == receipt.resident
                self.said.pop(session, None)
            case Fork(session=session, target=target):
                self.said[target] = self.said.get(session, ())
            case Audit():
                faults = decode_result(reply.result, tuple[str, ...])
                assert faults == () or self.spoilt, faults
            case Explain():
                assert decode_result(reply.result, ContextReport).resident <= self.load.window + 1
            case Decode():
                end = decode_result(reply.result, EndPart)
                self.joined[reply.id].add(end)
                assert end.cost().input == end.usage.input
                assert end.usage.output == len(self.joined[reply.id].result().text) or end.usage.reasoning
            case _:
                pass

    def answered(self, reply: Done, request: Turn) -> None:
        if request.think == "auto":
            super().answered(reply, request)
            return
        end = decode_result(reply.result, EndPart)
        self.joined[reply.id].add(end)
        result = self.joined[reply.id].result()
        receipt = end.cost()
        assert receipt.input == receipt.reused + receipt.restored + receipt.prefilled - receipt.recomputed
        assert receipt.input == end.usage.input
        before = TEMPLATED.render(request.messages, (), think=request.think, add_generation_prompt=True)
        if end.finish_reason == "stop" and request.overflow == "error":
            crc = zlib.crc32(before.rpartition(START + "assistant ")[0].encode())
            assert result.text == f"{request.messages[-1].content} #{crc:08x}".lstrip()
        if end.finish_reason == "stop":
            self.said[request.session] = (*request.messages, Message("assistant", result.text))

    # Rules

    @initialize(rest=st.sampled_from([0.0, 1000.0]))
    def when_sessions_rest(self, rest: float) -> None:
        patch = mock.patch("modeld.engine.housekeeping.REST_SECONDS", rest)
        patch.start()
        self.patches.insert(0, patch)

    @rule(session=SESSIONS, text=texts, credit=st.sampled_from([1, 10**6]))
    def thoughtful_turn(self, session: int, text: str, credit: int) -> None:
        messages = (*self.said.get(session, ())[:4], Message("user", text))
        if len(messages) > 1 and messages[-2].role == "user":
            messages = (Message("user", text),)
        self.ask(Turn(self.ids + 1, session, messages, GREEDY, think="high", credit=credit))

    @rule(session=SESSIONS, first=texts, tokens=st.integers(1, 40), credit=st.sampled_from([1, 10**6]))
    def prefix_suffix_decode(self, session: int, first: str, tokens: int, credit: int) -> None:
        self.prefix(session, first)
        self.suffix(session, first[::-1])
        self.ask(Decode(self.ids + 1, session, DecodeOptions(temperature=0, max_tokens=tokens), credit=credit))

    @rule(session=SESSIONS, tokens=st.integers(1, 40), count=st.integers(1, 3))
    def decode(self, session: int, tokens: int, count: int) -> None:
        for _ in range(count):
            self.ask(Decode(self.ids + 1, session, DecodeOptions(temperature=0, max_tokens=tokens), credit=10**6))

    @rule(session=SESSIONS, count=st.integers(2, 25))
    def pipelined(self, session: int, count: int) -> None:
        for number in range(count):
            options = DecodeOptions(temperature=0, max_tokens=1)
            self.ask(Turn(self.ids + 1, session, (Message("user", f"{session} {number}"),), options, credit=10**6))

    @rule(session=SESSIONS)
    def fails(self, session: int) -> None:
        self.ask(Turn(self.ids + 1, session, (Message("user", "!fail"),), GREEDY, credit=10**6))

    @rule(target=ShiftingSessions.running, session=SESSIONS)
    def snapshot(self, session: int) -> int:
        path = Path(self.folder.name) / "snapshots" / f"{self.ids + 1}"
        return self.ask(Snapshot(self.ids + 1, session, str(path), ModelRef("fake"), SessionConfig(name="s")))

    @rule(target=ShiftingSessions.running, session=SESSIONS, which=st.integers(0, 20))
    def restore(self, session: int, which: int) -> int:
        if not self.snapshots:
            return 0
        path, digest = self.snapshots[which % len(self.snapshots)]
        return self.ask(Restore(self.ids + 1, session, path, digest))

    @rule(session=SESSIONS)
    def explain(self, session: int) -> None:
        self.ask(Explain(self.ids + 1, session))

    @rule()
    def looks(self) -> None:
        self.ask(Audit(self.ids + 1))
        self.ask(Kept(self.ids + 1))

    @rule(session=SESSIONS, kind=st.sampled_from(["main", "subagent", "side"]), pin=st.booleans())
    def class_and_pin(self, session: int, kind: Any, pin: bool) -> None:
        self.kinds[session] = (kind, pin)
        if session in self.opened:
            self.engine.ask(Open(session, session_class=kind, pin=pin))

    @rule(count=st.integers(1, 5))
    def files_are_touched(self, count: int) -> None:
        while count and self.engine.touch_files():
            count -= 1

    @rule()
    def disk_says_nothing(self) -> None:
        if self.engine.thread is not None:
            self.engine.thread._progress -= 100
            self.engine.ask_nothing()
            self.engine.steps(50)
            self.read()

    @rule()
    def settled(self) -> None:
        self.ask(Settle(self.ids + 1, 5.0))
        self.engine.steps(1)
        self.read()

    @rule()
    def settled_and_stopped(self) -> None:
        self.drain()
        self.ask(Settle(self.ids + 1, 5.0))
        assert self.engine.steps(20_000)
        self.read()
        self.start()

    @rule()
    def killed(self) -> None:
        self.read()
        self.start()

    @rule(which=st.integers(0, 50), how=st.integers(0, 5), where=st.integers(0, 10**6))
    def a_file_is_spoilt(self, which: int, how: int, where: int) -> None:
        if files := kv_files(Path(self.folder.name) / "kv"):
            spoil(files[which % len(files)], how, where)
            self.spoilt = self.ever_spoilt = True

    # What must hold

    @rule()
    def drain(self) -> None:
        super().drain()
        assert not self.engine.pool.guests
        assert not self.engine.scheduler._transfers
        self.payloads_are_of_their_tokens()

    def audited(self) -> None:
        if not self.spoilt:
            super().audited()

    def payloads_are_of_their_tokens(self) -> None:
        tiers = self.engine.pool._tiers
        blocks = tiers._all if isinstance(tiers, Checkpoints) else descendants(tiers.blocks.root)[1:]  # type: ignore[union-attr]
        for block in blocks:
            if block.state is not None:
                start, _, text = block.state.decode("utf-8", "surrogatepass").partition(":")
                assert (int(start), pack_tokens(list(map(ord, text)))) == (block.start, block.tokens)
        if self.ever_spoilt:
            return
        for path in kv_files(Path(self.folder.name) / "kv"):
            key, header = read_header(str(path))
            text = read_block(str(path), key, header.size).decode("utf-8", "surrogatepass").partition(":")[2]
            assert pack_tokens(list(map(ord, text))) == header.tokens

    @invariant()
    def every_sequence_holds_its_tape(self) -> None:
        pool, backend = self.engine.pool, self.engine.backend
        if backend.shares:
            assert all(backend.tape(number) == pool._tree.tape(number) for number in range(self.load.sequences))
            assert backend.used() == pool.used()
            assert pool.used() >= pool._tree.cells
            assert backend.copies or pool.used() == pool._tree.cells
        for session in pool.sessions.values():
            # Of some only the tape outlived an engine.
            assert session.text.decode() in ("", "".join(map(chr, session.ids)))

    @invariant()
    def ledger_holds_at_any_time(self) -> None:
        if not self.spoilt:
            assert self.engine.pool.audit() == ()
        tiers = self.engine.pool._tiers
        assert tiers is not None
        assert tiers.ram <= RAM
        assert 0 <= tiers.disk <= DISK


class WholeEverything(Everything):
    """The same with a model that can only share, keep and forget whole sequences."""

    name = "fake:whole=1"


class CopiedEverything(Everything):
    """The same where sharing is copying."""

    name = "fake:copies=1"


BOUNDS = settings(
    max_examples=examples(40), stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
TestEverything = Everything.TestCase
TestEverything.settings = BOUNDS
TestWholeEverything = WholeEverything.TestCase
TestWholeEverything.settings = BOUNDS
TestCopiedEverything = CopiedEverything.TestCase
TestCopiedEverything.settings = BOUNDS
