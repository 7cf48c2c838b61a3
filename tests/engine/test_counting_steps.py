"""Hazards of calls without a session inside an engine: a stream that stalls for them, work that nobody waits for."""

from __future__ import annotations

import queue

import msgspec
import pytest

from modeld.chat.template import ChatTemplate
from modeld.engine.embedding import SideLoop
from modeld.engine.fake.embedder import FakeEmbedder
from modeld.engine.prompts import Prompts
from modeld.engine.protocol import (
    RESIDENT_TEXT,
    Cancel,
    Done,
    Embed,
    Failed,
    Load,
    Reply,
    Request,
    Settle,
    Tokenize,
    Turn,
)
from modeld.engine.texts import Texts
from modeld.errors import EngineProtocolError
from modeld.session import Embeddings, EmbedInput
from modeld.types import DecodeOptions, Message

from .test_scheduler_states import Engine, Mailbox, Waits


def done(replies: list[Reply]) -> list[int]:
    return [reply.id for reply in replies if isinstance(reply, Done)]


def test_a_stream_goes_on_between_two_counts() -> None:
    engine = Engine()
    engine.ask(Turn(1, 1, (Message("user", "!count 9"),), DecodeOptions(max_tokens=30)))
    engine.steps(2)
    engine.ask(*(Tokenize(100 + n, "some text") for n in range(5)))
    counted = []
    for _ in range(5):
        before = len(done(engine.replies)), sum(engine.computed.values())
        engine.steps(1)
        counted.append((len(done(engine.replies)) - before[0], sum(engine.computed.values()) - before[1]))
    assert counted == [(1, 1)] * 5
    assert done(engine.replies) == [100, 101, 102, 103, 104]


def test_a_resident_engine_refuses_what_would_stall_it_and_what_is_not_for_it() -> None:
    engine = Engine()
    engine.ask(Tokenize(1, "x" * RESIDENT_TEXT), Tokenize(2, "x"), Tokenize(3, "x"), Cancel(2))
    assert engine.steps(9)
    refused, *_ = [reply for reply in engine.replies if isinstance(reply, Failed)]
    assert (refused.id, refused.code) == (1, "invalid_request")
    assert str(RESIDENT_TEXT) in refused.message
    assert done(engine.replies) == [3]
    engine.ask(Embed(4, (EmbedInput("x"),)))
    with pytest.raises(EngineProtocolError, match="vectors need another"):
        engine.steps(1)


class Side:
    """The loop of an engine for vectors, with a mailbox instead of a process."""

    def __init__(self, *, weights: bool = True, window: int = 64) -> None:
        load = Load("", "fake", "d", window, window, sequences=4, task="embed")
        self.embedder = FakeEmbedder(load)
        self.batches: list[list[int]] = []
        compute = self.embedder.compute
        self.embedder.compute = lambda inputs: (  # type: ignore[method-assign]
            self.batches.append([len(tokens) for tokens in inputs]) or compute(inputs)
        )
        self.inbox: queue.SimpleQueue[Request] = Mailbox()
        self.replies: list[Reply] = []
        template = ChatTemplate(self.embedder.template_source)
        prompts = Prompts(self.embedder, template, window)
        texts = Texts(self.embedder, prompts, "fake", self.replies.append, limit=10**6)
        self.loop = SideLoop(self.embedder if weights else None, texts, "fake", self.replies.append, self.inbox)

    def ask(self, *requests: Request, steps: int) -> None:
        for request in requests:
            self.inbox.put(request)
        for _ in range(steps):
            try:
                self.loop.iterate()
            except Waits:
                return


def inputs(*sizes: int) -> tuple[EmbedInput, ...]:
    return tuple(EmbedInput("x" * size) for size in sizes)


def test_batches_hold_no_more_tokens_and_sequences_than_there_are() -> None:
    side = Side()
    side.ask(Embed(1, inputs(60, 5, 30, 30, 1, 1, 1, 1, 1, 64)), steps=20)
    assert side.batches == [[60], [5, 30], [30, 1, 1, 1], [1, 1], [64]]
    (answer,) = [reply for reply in side.replies if isinstance(reply, Done)]
    assert len(msgspec.msgpack.decode(answer.result, type=Embeddings).items) == 10


def test_calls_take_turns_and_a_cancelled_one_costs_no_more_batches() -> None:
    side = Side()
    side.ask(Embed(1, inputs(*[60] * 50)), Embed(2, inputs(3)), Embed(3, inputs(*[60] * 50)), steps=6)
    assert done(side.replies) == [2]
    side.ask(Cancel(1), Cancel(3), steps=1)
    computed = len(side.batches)
    side.ask(Tokenize(4, "x"), Settle(5, 1.0), steps=9)
    assert len(side.batches) == computed < 10
    assert sorted(done(side.replies)) == [2, 4, 5]


def test_a_call_that_is_refused_computes_nothing() -> None:
    side = Side()
    side.ask(Embed(1, inputs(*[9] * 30, 65)), Embed(2, inputs(1), dimensions=17), steps=9)
    assert side.batches == []
    assert [(reply.id, reply.code) for reply in side.replies if isinstance(reply, Failed)] == [
        (2, "invalid_request"),
        (1, "context_overflow"),
    ]


def test_an_engine_without_weights_counts_and_nothing_else() -> None:
    side = Side(weights=False)
    side.ask(Tokenize(1, "x"), steps=2)
    assert done(side.replies) == [1]
    for wrong in (Embed(2, inputs(1)), Turn(3, 1, (Message("user", "x"),), DecodeOptions())):
        with pytest.raises(EngineProtocolError):
            side.ask(wrong, steps=1)
