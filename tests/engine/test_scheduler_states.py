"""Hazard: any order of requests, cancels, forks and evictions. No wrong cell, no wrong count, nothing left behind.

The scheduler runs in this thread over the fake backend, whose answers are a checksum of all that its KV holds: a wrong
cell anywhere shows as a wrong answer.
"""

from __future__ import annotations

import queue
import zlib
from collections import Counter
from functools import partial

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from msgspec import structs

from modeld.chat.template import ChatTemplate
from modeld.engine.backend import Slice, StepResult
from modeld.engine.checkpoints import Checkpoints
from modeld.engine.control import Control
from modeld.engine.fake.backend import FakeBackend
from modeld.engine.fake.lexicon import END, START, TEMPLATE
from modeld.engine.prompts import Prompts
from modeld.engine.protocol import (
    Cancel,
    Credit,
    Done,
    Evicted,
    Failed,
    Forget,
    Fork,
    Held,
    Load,
    Parts,
    Prefix,
    Reply,
    Request,
    Suffix,
    Turn,
    decode_result,
)
from modeld.engine.scheduler import Scheduler
from modeld.engine.words import Words
from modeld.session import Manifest
from modeld.types import DecodeOptions, EndPart, Message, PartsJoiner
from support.examples import examples

LOAD = Load(path="", name="fake", digest="d", cells=310, window=300, sequences=3, batch=32)
TEMPLATED = ChatTemplate(TEMPLATE)

texts = st.text(st.sampled_from("ab \u2603"), min_size=0, max_size=90)


def rendered(messages: tuple[Message, ...], *, generate: bool = True) -> str:
    return TEMPLATED.render(messages, (), think="auto", add_generation_prompt=generate)


def answer_to(messages: tuple[Message, ...]) -> str:
    """What the fake says, from its documentation alone."""
    prompt = rendered(messages)
    before = prompt.rpartition(START + "assistant ")[0]
    asked = before.rpartition(START + "user ")[2].partition(END)[0]
    return f"{asked} #{zlib.crc32(before.encode()):08x}"


class Waits(Exception):
    """The scheduler would wait for a request."""


class Mailbox(queue.SimpleQueue[Request]):
    """An inbox in which nobody waits: here, waiting would be for ever."""

    def get(self, block: bool = True, timeout: float | None = None) -> Request:
        if self.empty():
            raise queue.Empty if timeout == 0 else Waits
        return super().get()


class Engine:
    """A scheduler with a mailbox instead of a process."""

    def __init__(self, load: Load = LOAD, inbox: type[Mailbox] = Mailbox) -> None:
        self.backend = FakeBackend(load)
        self.computed: Counter[int] = Counter()
        self._step = self.backend.step
        self.backend.step = self.step  # type: ignore[method-assign]
        self.inbox = inbox()
        self.control = Control()
        self.control.bind(self.backend)
        self.replies: list[Reply] = []
        manifest = Manifest(engine="fake", engine_build="1", model_digest="d", template_digest="t")
        prompts = Prompts(self.backend, TEMPLATED, load.window)
        words = partial(Words, self.backend)
        self.scheduler = Scheduler(
            self.backend, load, manifest, prompts, words, self.replies.append, self.inbox, self.control
        )

    def step(self, slices: list[Slice]) -> StepResult:
        """Counts what is really computed, for the first request of each session."""
        result = self._step(slices)
        if result is StepResult.OK:
            by_sequence = {s.sequence: s for s in self.scheduler._pool.sessions.values()}
            for part in slices:
                if part.sequence in by_sequence:
                    self.computed[by_sequence[part.sequence].jobs[0].id] += len(part.tokens)
        return result

    def ask(self, *requests: Request) -> None:
        for request in requests:
            self.inbox.put(request)

    def steps(self, count: int) -> bool:
        """Go on for so many steps; whether it then had nothing left to do."""
        for _ in range(count):
            try:
                self.scheduler.iterate()
            except Waits:
                return True
        return False


class Sessions(RuleBasedStateMachine):
    """Conversations on more sessions than there are sequences, in few cells."""

    running: Bundle[int] = Bundle("running")

    load = LOAD

    def __init__(self) -> None:
        super().__init__()
        self.engine = Engine(self.load)
        self.ids = 0
        self.said: dict[int, tuple[Message, ...]] = {}
        self.asked: dict[int, Request] = {}
        self.joined: dict[int, PartsJoiner] = {}
        self.tapes: dict[int, list[int]] = {}
        self.cancelled: set[int] = set()
        self.preempted: set[int] = set()
        self.frames: dict[int, int] = {}

    def ask(self, request: Request) -> int:
        self.ids += 1
        self.asked[self.ids] = request
        self.joined[self.ids] = PartsJoiner()
        self.engine.ask(request)
        return self.ids

    @rule(
        target=running,
        session=st.integers(1, 5),
        text=texts,
        keep=st.integers(0, 9),
        tokens=st.integers(1, 60),
        credit=st.sampled_from([1, 5, 30, 10**6]),
    )
    def turn(self, session: int, text: str, keep: int, tokens: int, credit: int) -> int:
        history = self.said.get(session, ())[:keep]
        if history and history[-1].role == "user":
            history = history[:-1]
        messages = (*history, Message("user", text))
        self.said[session] = messages
        options = DecodeOptions(temperature=0, max_tokens=tokens)
        return self.ask(Turn(self.ids + 1, session, messages, options, credit=credit))

    @rule(credit=st.integers(1, 30))
    def readers_take_some(self, credit: int) -> None:
        for id_ in self.asked:
            self.engine.ask(Credit(id_, credit))

    @rule(sizes=st.lists(st.integers(60, 270), min_size=2, max_size=5), tokens=st.integers(20, 300))
    def turns_that_do_not_fit_together(self, sizes: list[int], tokens: int) -> None:
        for session, size in enumerate(sizes, 1):
            self.turn(session, "x" * size, 0, tokens, 40)

    @rule(target=running, session=st.integers(1, 5), text=texts)
    def prefix(self, session: int, text: str) -> int:
        return self.ask(Prefix(self.ids + 1, session, (Message("system", text),)))

    @rule(target=running, session=st.integers(1, 5), text=texts)
    def suffix(self, session: int, text: str) -> int:
        return self.ask(Suffix(self.ids + 1, session, (Message("user", text),)))

    @rule(target=running, session=st.integers(1, 5), other=st.integers(1, 5))
    def fork(self, session: int, other: int) -> int:
        return self.ask(Fork(self.ids + 1, session, other))

    @rule(target=running, session=st.integers(1, 5))
    def forget(self, session: int) -> int:
        return self.ask(Forget(self.ids + 1, session))

    @rule(id_=consumes(running))
    def cancel(self, id_: int) -> None:
        self.cancelled.add(id_)
        self.engine.ask(Cancel(id_))
        self.engine.control.cancel(id_)

    @rule(count=st.integers(1, 20))
    def steps(self, count: int) -> None:
        self.engine.steps(count)
        self.read()

    @rule()
    def drain(self) -> None:
        # Never more steps than there is work: a loop that finds nothing to do must wait.
        assert self.engine.steps(20_000)
        self.read()
        for _ in range(2 * len(self.asked) + 2):  # a stream that waits behind another takes no credit yet
            for id_ in self.asked:
                self.engine.ask(Credit(id_, 10**6))
            assert self.engine.steps(20_000)
            self.read()
        assert not self.asked
        assert self.engine.backend.used() == self.engine.scheduler._pool.used()
        self.audited()

    def audited(self) -> None:
        assert self.engine.scheduler._pool.audit() == ()

    def read(self) -> None:
        for reply in self.engine.replies:
            if isinstance(reply, Parts | Done | Failed):
                assert reply.seq == self.frames.get(reply.id, 0)
                self.frames[reply.id] = reply.seq + 1
            match reply:
                case Parts(id=id_, parts=parts):
                    for part in parts:
                        self.joined[id_].add(part)
                case Done() | Failed():
                    self.ended(reply)
                case Evicted(sessions=sessions):
                    self.preempted |= {id_ for id_, request in self.asked.items() if request.session in sessions}
                case Held():
                    pass
        self.engine.replies.clear()

    def ended(self, reply: Done | Failed) -> None:
        request = self.asked.pop(reply.id)
        self.tapes_changed(reply)
        if isinstance(reply, Failed):
            expected = {
                "context_overflow",
                "cancelled",
                "invalid_request",
                "does_not_fit",
                "session_error",
                "model_busy",
            }
            assert reply.code in expected, reply
            return
        if isinstance(request, Turn):
            self.answered(reply, request)
        elif isinstance(request, Forget):
            self.tapes[request.session] = []

    def tapes_changed(self, reply: Done | Failed) -> None:
        for tape in reply.tapes:
            known = self.tapes.setdefault(tape.session, [])
            assert tape.keep <= len(known)
            known[tape.keep :] = tape.added
            if tape.hot:
                assert tape.hot == len(known)

    def answered(self, reply: Done, request: Turn) -> None:
        end = decode_result(reply.result, EndPart)
        self.joined[reply.id].add(end)
        result = self.joined[reply.id].result()
        whole = answer_to(request.messages)
        assert whole.startswith(result.text)
        if end.finish_reason == "stop":
            assert result.text == whole
        elif end.finish_reason == "length":
            assert len(result.text) == request.options.max_tokens
        else:
            assert end.finish_reason in ("cancelled", "context_full"), end
            assert end.finish_reason != "cancelled" or reply.id in self.cancelled
        assert end.usage.output == len(result.text)
        receipt = end.cost()
        again = receipt.recomputed
        assert receipt.input == receipt.reused + receipt.restored + receipt.prefilled - again == end.usage.input
        assert min(receipt.reused, receipt.restored, receipt.prefilled, again) >= 0
        assert again == 0 or reply.id in self.preempted
        # What a step computes is of a prompt, or goes on behind a token of the answer.
        assert 0 <= self.engine.computed[reply.id] - receipt.prefilled <= end.usage.output
        if end.usage.output:
            assert end.usage.input == len(rendered(request.messages))
            assert receipt.prefilled >= 1
            said = (*request.messages, Message("assistant", result.text))
            if self.said.get(request.session) == request.messages:
                self.said[request.session] = said

    @invariant()
    def cells_are_those_of_the_sessions(self) -> None:
        held = {}
        for session in self.engine.scheduler._pool.sessions.values():
            if session.sequence is None:
                assert session.hot == 0
                continue
            assert session.sequence not in held
            held[session.sequence] = session
            assert self.engine.backend.tape(session.sequence) == session.ids[: session.hot]
            assert session.hot <= len(session.ids)


class WarmSessions(Sessions):
    """The same, and what leaves the engine may come back from RAM, which has room for some of it."""

    load = structs.replace(LOAD, ram=2000)

    @invariant()
    def ram_is_within_its_budget(self) -> None:
        tiers = self.engine.scheduler._pool._tiers
        assert tiers is not None
        assert tiers.ram <= 2000


class WholeSessions(Sessions):
    """The same with a model that can only share, keep and forget whole sequences."""

    load = structs.replace(LOAD, name="fake:whole=1")


class KeptSessions(WarmSessions):
    """The same, and RAM has room for some states of it."""

    load = structs.replace(LOAD, name="fake:whole=1", ram=2000)

    @invariant()
    def states_of_no_conversation_are_many(self) -> None:
        kept = self.engine.scheduler._pool._tiers
        assert isinstance(kept, Checkpoints)
        assert kept.ram == sum(len(one.state) for one in kept._all)
        assert len({tuple(one.tokens) for one in kept._all}) == len(kept._all)


class CopiedSessions(WarmSessions):
    """The same where sharing is copying."""

    load = structs.replace(LOAD, name="fake:copies=1", ram=2000)

    @invariant()
    def each_copy_counts(self) -> None:
        pool = self.engine.scheduler._pool
        assert pool.used() == self.engine.backend.used() <= self.load.cells
        assert pool.audit() == ()


BOUNDS = settings(
    max_examples=examples(120), stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
TestSessions = Sessions.TestCase
TestSessions.settings = BOUNDS
TestWarmSessions = WarmSessions.TestCase
TestWarmSessions.settings = BOUNDS
TestWholeSessions = WholeSessions.TestCase
TestWholeSessions.settings = BOUNDS
TestKeptSessions = KeptSessions.TestCase
TestKeptSessions.settings = BOUNDS
TestCopiedSessions = CopiedSessions.TestCase
TestCopiedSessions.settings = BOUNDS


def test_what_was_evicted_comes_back_from_ram() -> None:
    engine = Engine(structs.replace(LOAD, ram=10**6))
    talks = {key: (Message("user", f"{key} " * 30),) for key in range(1, 6)}
    for key, talk in talks.items():
        engine.ask(Turn(key, key, talk, DecodeOptions(temperature=0)))
        assert engine.steps(1000)
    assert [reply for reply in engine.replies if isinstance(reply, Held)][-1].ram > 0
    engine.replies.clear()
    engine.ask(Turn(9, 1, talks[1], DecodeOptions(temperature=0)))
    assert engine.steps(1000)
    done = engine.replies[-1]
    assert isinstance(done, Done)
    receipt = decode_result(done.result, EndPart).cost()
    assert receipt.restored > 30
    assert receipt.prefilled == 1
    # The answer left with the question asked again; the KV of the question was there.
    assert receipt.stop is not None
    assert receipt.stop.reason == "history_shortened"


def test_credit_holds_a_stream_back_and_lets_it_go_on() -> None:
    engine = Engine()
    engine.ask(Turn(1, 1, (Message("user", "!count 50"),), DecodeOptions(temperature=0), credit=5))
    assert engine.steps(1000)
    assert sum(reply.tokens for reply in engine.replies if isinstance(reply, Parts)) == 5
    engine.ask(Credit(1, 1000))
    assert engine.steps(1000)
    assert isinstance(engine.replies[-1], Done)
    assert decode_result(engine.replies[-1].result, EndPart).finish_reason == "stop"


def test_step_that_fails_ends_only_the_session_to_blame() -> None:
    engine = Engine()
    good, bad = Message("user", "hello"), Message("user", "!fail")
    options = DecodeOptions(temperature=0)
    engine.ask(Turn(1, 1, (good,), options), Turn(2, 2, (bad,), options))
    assert engine.steps(1000)
    ends = {reply.id: reply for reply in engine.replies if isinstance(reply, Done | Failed)}
    assert isinstance(ends[1], Done)
    assert isinstance(ends[2], Failed)
    assert ends[2].code == "session_fatal"
    assert ends[2].tapes[0].fatal
    engine.ask(Turn(3, 2, (good,), options))
    assert engine.steps(1000)
    assert isinstance(engine.replies[-1], Failed)
    assert engine.replies[-1].code == "session_fatal"


def test_who_waits_for_a_prompt_that_is_cancelled_goes_on_alone() -> None:
    engine = Engine(structs.replace(LOAD, cells=2000, window=1000))
    talk = (Message("user", "x" * 300),)
    engine.ask(Turn(1, 1, talk, DecodeOptions(temperature=0)), Turn(2, 2, talk, DecodeOptions(temperature=0)))
    engine.steps(3)
    engine.ask(Cancel(1))
    engine.control.cancel(1)
    assert engine.steps(1000)
    ends = {reply.id: decode_result(reply.result, EndPart) for reply in engine.replies if isinstance(reply, Done)}
    assert {id_: end.finish_reason for id_, end in ends.items()} == {1: "cancelled", 2: "stop"}
    # What the first had computed was not computed again.
    assert ends[2].cost().reused == ends[1].cost().resident > 0


def test_another_tape_of_the_same_length_is_saved_too() -> None:
    engine = Engine(structs.replace(LOAD, cells=2000, window=1000, ram=10**6))
    for id_, word in enumerate(("aaaa", "bbbb", "cccc"), 1):
        engine.ask(Turn(id_, 1, (Message("user", word * 50),), DecodeOptions(temperature=0)))
        assert engine.steps(1000)
    pool = engine.scheduler._pool
    assert pool._tiers is not None
    for word in ("aaaa", "bbbb", "cccc"):
        prompt = [ord(rune) for rune in rendered((Message("user", word * 50),))]
        assert pool._tiers.blocks.length(prompt) == len(prompt)
    assert pool._branches == {}
