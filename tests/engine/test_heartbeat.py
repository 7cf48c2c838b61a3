"""Hazard: silence. Who waits for text hears at least once a second where it stands, in a long step and in the queue."""

from __future__ import annotations

import queue
import threading
import time
from itertools import pairwise
from pathlib import Path

import pytest
from msgspec import structs

from modeld.engine.backend import Slice, StepResult
from modeld.engine.pace import Pace
from modeld.engine.progress import HEARTBEAT_SECONDS
from modeld.engine.protocol import Load, Parts, Request, Turn
from modeld.node.config import NodeConfig
from modeld.node.node import Node
from modeld.session import ModelRef, SessionConfig
from modeld.types import DecodeOptions, Message, ProgressPart, TextPart

from .test_scheduler_states import Engine

GREEDY = DecodeOptions(temperature=0)


class Stop(Exception):
    """Ends the scheduler's thread."""


class Inbox(queue.SimpleQueue[Request | None]):
    """Ends who takes ``None`` from it."""

    def get(self, block: bool = True, timeout: float | None = None) -> Request:
        request = super().get(block, timeout)
        if request is None:
            raise Stop
        return request


class Living:
    """A scheduler that runs in a thread of its own, with a step as long as the test wants."""

    def __init__(self, load: Load, step_seconds: float) -> None:
        self.heard: list[tuple[float, object]] = []
        self._engine = Engine(load)
        self._inbox = Inbox()
        step = self._engine.backend.step

        def slow(slices: list[Slice]) -> StepResult:
            if any(len(part.tokens) > 1 for part in slices):
                time.sleep(step_seconds)
            return step(slices)

        self._engine.backend.step = slow  # type: ignore[method-assign]
        scheduler = self._engine.scheduler
        scheduler._inbox = self._inbox  # type: ignore[assignment]
        for teller in (scheduler, scheduler._progress):
            teller._send = lambda frame: self.heard.append((time.monotonic(), frame))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._engine.scheduler.run()
        except Stop:
            pass

    def ask(self, *requests: Request) -> None:
        for request in requests:
            self._inbox.put(request)

    def end(self) -> None:
        self._inbox.put(None)
        self._thread.join(20)
        assert not self._thread.is_alive()

    def parts(self, id_: int) -> list[tuple[float, Parts]]:
        return [(when, frame) for when, frame in self.heard if isinstance(frame, Parts) and frame.id == id_]


def turn(id_: int, text: str, tokens: int = 2, credit: int = 512) -> Turn:
    return Turn(id_, id_, (Message("user", text),), DecodeOptions(temperature=0, max_tokens=tokens), credit=credit)


def load(**settings: int) -> Load:
    wanted = {"cells": 4000, "window": 2000, "sequences": 8, "batch": 512, **settings}
    return Load(path="", name="fake", digest="d", **wanted)


def test_stream_hears_of_its_prompt_during_one_long_step() -> None:
    engine = Living(load(), step_seconds=2.6)
    asked = time.monotonic()
    engine.ask(turn(1, "x" * 150), turn(2, "y" * 150))
    while not all(any(frame.tokens for _, frame in engine.parts(id_)) for id_ in (1, 2)):
        time.sleep(0.05)
    engine.end()
    for id_ in (1, 2):
        told = [(when, part) for when, frame in engine.parts(id_) for part in frame.parts]
        first_text = next(when for when, part in told if isinstance(part, TextPart))
        times = [asked, *(when for when, part in told if isinstance(part, ProgressPart)), first_text]
        assert len(times) >= 4
        assert max(after - before for before, after in pairwise(times)) < HEARTBEAT_SECONDS + 0.5
        seqs = [frame.seq for _, frame in engine.parts(id_)]
        assert seqs == list(range(len(seqs)))


def test_place_in_the_queue_is_told_while_nothing_happens() -> None:
    """A stream whose reader takes nothing, and another request of its session behind it: no step is done at all."""
    engine = Living(load(), step_seconds=0.0)
    engine.ask(turn(1, "!count 400", tokens=400, credit=3), structs.replace(turn(2, "b"), session=1))
    time.sleep(2.6)
    engine.end()
    told = [part for _, frame in engine.parts(2) for part in frame.parts]
    assert len(told) >= 2
    assert all(isinstance(part, ProgressPart) and part.position == 1 for part in told)
    # The first is heard by its reader no more than its credit allows.
    assert sum(frame.tokens for _, frame in engine.parts(1)) == 3
    assert [frame.seq for _, frame in engine.parts(1)] == list(range(len(engine.parts(1))))


@pytest.mark.anyio
async def test_waiting_stream_of_a_node_hears_its_place(tmp_path: Path) -> None:
    node = Node(NodeConfig(data_root=tmp_path, allow_fake=True, sequences=1))
    try:
        model = ModelRef("fake:delay=0.01")
        talker = await node.open_session(model, SessionConfig(name="talker"))
        running = talker.turn([Message("user", "!count 400")], options=GREEDY)
        await anext(aiter(running))
        waiting = []
        for number in (1, 2):
            session = await node.open_session(model, SessionConfig(name=f"waiting-{number}"))
            waiting.append(session.turn([Message("user", "hello")], options=GREEDY))
            part = await anext(aiter(waiting[-1]))
            assert isinstance(part, ProgressPart)
            assert (part.position, part.rate, part.seconds_left) == (number, 0, 0)
        await running.cancel()
        # They go on now, and what was told of waiting is no part of their answers.
        for stream in waiting:
            assert (await stream.join()).text.startswith("hello #")
    finally:
        await node.aclose()


def test_pace_is_that_of_the_last_seconds() -> None:
    pace = Pace(0.0, 100)
    assert pace.rate(0.0, 100) == 0
    assert pace.rate(1.0, 200) == 100
    for second in range(2, 10):
        pace.rate(float(second), 200 + 10 * (second - 1))
    assert pace.rate(10.0, 290) == pytest.approx(10)
    # What was taken away begins anew.
    assert pace.rate(11.0, 0) == 0
    assert pace.rate(12.0, 50) == 50
