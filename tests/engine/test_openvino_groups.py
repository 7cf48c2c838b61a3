"""Hazards of sequences that are computed together: a row sees another's padding or tokens, who leaves takes the wrong
values along, a group takes room that is somebody's, one failure loses all."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy
import openvino
import pytest
from openvino import opset13

from modeld.chat.template import ChatTemplate
from modeld.engine.backend import Slice, StepResult
from modeld.engine.control import Control
from modeld.engine.openvino.backend import OpenvinoBackend
from modeld.engine.openvino.graph import read_graph
from modeld.engine.openvino.group import GAP, PAD, PATIENCE, ROUNDS, Gathering, Group
from modeld.engine.openvino.runtime import OpenvinoRuntime
from modeld.engine.prompts import Prompts
from modeld.engine.protocol import Done, Load, Parts, Reply, Turn
from modeld.engine.scheduler import Scheduler
from modeld.engine.words import Words
from modeld.session import Manifest
from modeld.types import DecodeOptions, Message
from support.engines import ENGINES, TINY_IR

from .test_openvino_numerics import WARM_BOUND, apart, compute, loaded, prompt
from .test_scheduler_states import Mailbox

NUMBERS = 2 * 4 * 2 * 64
"""Of a token in the states of tiny: keys and values of 4 layers, 2 heads of 64."""


@pytest.fixture(scope="module")
def runtime() -> OpenvinoRuntime:
    return OpenvinoRuntime()


@pytest.fixture(params=["f16", "f32"])
def backend(runtime: OpenvinoRuntime, request: pytest.FixtureRequest) -> Iterator[OpenvinoBackend]:
    backend = eager(runtime, request.param)
    yield backend
    backend.close()


def eager(runtime: OpenvinoRuntime, kv_type: str = "f16", **settings: int) -> OpenvinoBackend:
    """Whose sequences are a group as soon as they decode side by side."""
    backend = loaded(runtime, kv_type, **settings)
    backend._gathering = Gathering(NUMBERS, price=0.0)
    return backend


def together(backend: OpenvinoBackend, *sequences: int) -> bool:
    group = backend._sequences[sequences[0]].group
    return group is not None and group.members == [backend._sequences[number] for number in sequences]


def decode(backend: OpenvinoBackend, tokens: dict[int, int]) -> list[list[float]]:
    """A token for each sequence; logits of all."""
    step = [Slice(number, backend._sequences[number].tokens, [token], True) for number, token in tokens.items()]
    assert backend.step(step) is StepResult.OK
    return [[float(value) for value in backend.logits(row)] for row in range(len(tokens))]


def state(backend: OpenvinoBackend, sequence: int) -> numpy.ndarray[Any, Any]:
    """The values of a saved sequence."""
    kind = backend._sequences[sequence].kind
    return numpy.frombuffer(backend.save(sequence)[12:], kind).astype(numpy.float32)


@pytest.fixture
def inferences(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each inference."""
    rows: list[int] = []
    real = Group.infer

    def infer(group: Group, feeds: dict[str, Any]) -> Any:
        rows.append(len(feeds["input_ids"]))
        return real(group, feeds)

    monkeypatch.setattr(Group, "infer", infer)
    return rows


def test_rows_have_the_logits_and_the_kv_that_their_sequences_have_alone(
    runtime: OpenvinoRuntime, backend: OpenvinoBackend
) -> None:
    kv_type = "f16" if backend._kind is numpy.float16 else "f32"
    alone = loaded(runtime, kv_type)
    alone.together = False
    draw = random.Random(kv_type)
    lengths = {0: 7, 1: 300, 2: 33, 3: 121}
    for number, length in lengths.items():
        ids = (prompt(number) * 9)[:length]
        assert compute(backend, number, 0, ids) == compute(alone, number, 0, ids)
    running = [0, 1, 2, 3]
    for step in range(60):
        if step in (20, 40):
            running.pop(draw.randrange(len(running)))
        tokens = {number: draw.randrange(5, 1900) for number in running}
        for ours, theirs in zip(decode(backend, tokens), decode(alone, tokens), strict=True):
            assert apart(ours, theirs) <= WARM_BOUND[kv_type]
        assert together(backend, *(number for number in (0, 2, 3, 1) if number in running))
    for number in lengths:
        ours, theirs = state(backend, number), state(alone, number)
        assert numpy.abs(ours - theirs).max() <= WARM_BOUND[kv_type]
        assert backend.length(number) == alone.length(number)
    alone.close()


def test_what_a_row_leaves_with_is_bit_for_bit_what_it_had(backend: OpenvinoBackend) -> None:
    for number in (0, 1, 2):
        compute(backend, number, 0, prompt(number)[: 40 + 30 * number])
    for token in range(50, 60):
        decode(backend, {0: token, 1: token, 2: token})
    assert together(backend, 0, 1, 2)
    saved = [backend.save(number) for number in (0, 1, 2)]
    compute(backend, 1, 80, prompt(9)[:30])
    decode(backend, {0: 60, 2: 60})
    assert together(backend, 0, 2)
    assert backend.remove(1, 80)
    assert backend.remove(0, 50)
    assert backend.remove(2, 110)
    assert [backend.save(number) for number in (0, 1, 2)] == saved
    assert backend.restore(3, saved[1])
    assert backend.save(3) == saved[1]
    decode(backend, dict.fromkeys(range(4), 61))
    assert together(backend, 0, 1, 3, 2)
    logits = decode(backend, dict.fromkeys(range(4), 62))
    assert apart(logits[1], logits[3]) <= WARM_BOUND["f32"]


def test_a_group_that_fails_inside_loses_nobody(backend: OpenvinoBackend) -> None:
    for number in (0, 1, 2):
        compute(backend, number, 0, prompt(number)[: 60 + 50 * number])
    failed, deadline = 0, time.monotonic() + 60
    for seconds in itertools.cycle((0.0, 0.0002, 0.0004, 0.0006, 0.001, 0.002)):
        # A machine that is fast or busy may be done before the end comes.
        if failed >= 2:
            return
        assert time.monotonic() < deadline
        decode(backend, {0: 7, 1: 7, 2: 7})
        assert together(backend, 0, 1, 2)
        lengths = [backend.length(number) for number in (0, 1, 2)]
        saved = [backend.save(number) for number in (0, 1, 2)]
        request = backend._sequences[0].group.request  # type: ignore[union-attr]

        def infer(feeds: Any, request: Any = request, seconds: float = seconds, **how: bool) -> None:
            request.start_async(feeds, share_inputs=True)
            time.sleep(seconds)
            request.cancel()
            request.wait()

        request.infer = infer
        # In this step a row goes, too.
        result = backend.step([Slice(number, lengths[number], [8], True) for number in (0, 2)])
        failed += result is StepResult.FAILED
        for number in (0, 1, 2):
            assert backend.remove(number, lengths[number])
            assert backend.length(number) == lengths[number]
        assert [backend.save(number) for number in (0, 1, 2)] == saved
        logits = decode(backend, {0: 9, 1: 9})
        for number in (0, 1):
            assert backend.remove(number, lengths[number])
            assert apart(logits[number], *decode(backend, {number: 9})) <= WARM_BOUND["f16"]
            assert backend.remove(number, lengths[number])


def test_an_ended_step_leaves_a_group_as_it_was(backend: OpenvinoBackend) -> None:
    for number in (0, 1):
        compute(backend, number, 0, prompt(number)[:50])
    decode(backend, {0: 7, 1: 7})
    saved = [backend.save(number) for number in (0, 1)]
    backend.request_abort()
    assert backend.step([Slice(0, 51, [8], True), Slice(1, 51, [8], True)]) is StepResult.ABORTED
    backend.clear_abort()
    assert all(backend.remove(number, 51) for number in (0, 1))
    assert [backend.save(number) for number in (0, 1)] == saved
    assert together(backend, 0, 1)


def test_padding_takes_no_room_from_tokens(runtime: OpenvinoRuntime, inferences: list[int]) -> None:
    backend = eager(runtime, cells=256, window=256, sequences=3)
    compute(backend, 0, 0, prompt(1)[:100])
    compute(backend, 1, 0, prompt(2)[:60])
    decode(backend, {0: 7, 1: 7})
    assert inferences[-1] == 2
    assert backend.step([Slice(2, 0, prompt(3)[:40], False), Slice(0, 101, [8], True)]) is StepResult.OK
    # 202 cells are tokens, 40 padding, and 14 are left.
    decode(backend, {0: 9, 1: 9})
    assert inferences[-1] == 2
    assert backend.step([Slice(2, 40, prompt(4)[:30], False)]) is StepResult.OK
    assert not together(backend, 1, 0)
    rows = len(inferences)
    decode(backend, {0: 10, 1: 10})
    assert inferences[rows:] == [1, 1]
    assert backend.step([Slice(2, 70, prompt(4)[:19], False)]) is StepResult.OK
    assert sum(backend.length(number) for number in range(3)) == 256
    assert backend.step([Slice(0, 104, [11], True)]) is StepResult.NO_SPACE
    backend.close()


def test_a_group_is_formed_when_it_has_been_paid_for(runtime: OpenvinoRuntime) -> None:
    backend = loaded(runtime)
    for number in (0, 1):
        compute(backend, number, 0, prompt(number)[:50])
    cost = NUMBERS * 2 * 51
    backend._gathering = Gathering(NUMBERS, price=1e-9 / cost)
    decode(backend, {0: 7, 1: 7})
    assert not together(backend, 0, 1)
    decode(backend, {0: 7, 1: 7})
    assert together(backend, 0, 1)
    decode(backend, {0: 7})
    assert not together(backend, 0, 1)
    # It would cost more than the streams may wait for.
    backend._gathering = Gathering(NUMBERS, price=1.1 * GAP / cost)
    backend._gathering.took(0.0, PATIENCE * 3 * GAP / ROUNDS)
    decode(backend, {0: 7, 1: 7})
    assert not together(backend, 0, 1)
    # Such steps are as long themselves; what is spent now is not enough.
    backend._gathering = Gathering(NUMBERS, price=1.1 * GAP / cost)
    backend._gathering.took(0.0, 2 * GAP)
    decode(backend, {0: 7, 1: 7})
    assert not together(backend, 0, 1)
    backend._gathering.took(0.0, 2 * GAP)
    decode(backend, {0: 7, 1: 7})
    assert together(backend, 1, 0)
    backend.close()


def test_lengths_too_different_are_not_padded(runtime: OpenvinoRuntime, inferences: list[int]) -> None:
    backend = eager(runtime, cells=8192)
    for number, length in enumerate((PAD + 200, 90, 20, 150)):
        for start in range(0, length, 512):
            compute(backend, number, start, (prompt(number) * 90)[start : min(length, start + 512)])
    inferences.clear()
    decode(backend, dict.fromkeys(range(4), 7))
    assert inferences == [1, 3]
    assert together(backend, 2, 1, 3)
    backend.close()


def test_a_graph_that_does_not_mask_padding_computes_one_after_the_other(runtime: OpenvinoRuntime) -> None:
    ids = [prompt(1)[:80], prompt(2)[:30]]
    for spoil in (forget_mask, count_from_the_longest):
        backend = changed(spoil)
        assert not backend.together
        backend._gathering = Gathering(NUMBERS, price=0.0)
        for number in (0, 1):
            compute(backend, number, 0, ids[number])
        decode(backend, {0: 7, 1: 7})
        assert not together(backend, 0, 1)
        backend.close()
    backend = changed(lambda model: None)
    assert backend.together
    backend.close()


def changed(change: Any) -> OpenvinoBackend:
    """Tiny with another graph."""
    core = openvino.Core()
    graph = read_graph(core, TINY_IR / "openvino_model.xml", "tiny")
    change(graph.model)
    load = Load(str(TINY_IR), "tiny", "d", 1024, 1024, sequences=2)
    properties = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f16", "INFERENCE_NUM_THREADS": 2}
    return OpenvinoBackend(lambda: core.compile_model(graph.model, "CPU", properties), graph, load, "CPU")


def forget_mask(model: Any) -> None:
    rewire(model, "attention_mask", lambda port: opset13.maximum(port, numpy.int64(1)))


def count_from_the_longest(model: Any) -> None:
    """As frequencies that are chosen by the longest of a batch."""

    def moved(port: Any) -> Any:
        longest = opset13.reduce_max(port, numpy.array([0, 1], numpy.int64), True)
        return opset13.add(port, opset13.convert(opset13.greater(longest, numpy.int64(900)), "i64"))

    rewire(model, "position_ids", moved)


def rewire(model: Any, name: str, change: Any) -> None:
    port = next(port for port in model.inputs if port.get_any_name() == name)
    targets = list(port.get_target_inputs())
    made = change(port).output(0)
    for target in targets:
        target.replace_source_output(made)
    model.validate_nodes_and_infer_types()


class Streams:
    """A scheduler over the engine, in this thread."""

    def __init__(self, backend: OpenvinoBackend, load: Load) -> None:
        self.replies: list[Reply] = []
        self.inbox = Mailbox()
        control = Control()
        control.bind(backend)
        case = ENGINES["openvino"]
        template: ChatTemplate = case.template()
        manifest = Manifest(engine="openvino", engine_build="1", model_digest="d", template_digest="t")
        prompts = Prompts(backend, template, load.window)
        words = partial(Words, backend)
        self.scheduler = Scheduler(backend, load, manifest, prompts, words, self.replies.append, self.inbox, control)

    def turn(self, key: int, text: str, tokens: int) -> None:
        options = DecodeOptions(temperature=0, max_tokens=tokens, ignore_eos=True)
        self.inbox.put(Turn(key, key, (Message("user", text),), options, credit=1000))

    def run(self, until: int) -> None:
        """Step until so many requests are done."""
        while sum(isinstance(reply, Done) for reply in self.replies) < until:
            self.scheduler.iterate()

    def texts(self) -> dict[int, str]:
        said: dict[int, str] = {}
        for reply in self.replies:
            if isinstance(reply, Parts):
                text = "".join(getattr(part, "text", "") for part in reply.parts)
                said[reply.id] = said.get(reply.id, "") + text
        return said


def test_four_streams_take_one_inference_a_step(runtime: OpenvinoRuntime, inferences: list[int]) -> None:
    asks = ("Count to 40.", "Repeat: " + "river stone " * 90, "Remember that kiwi is 77.", "Count to 9.")
    load = Load(str(TINY_IR), "tiny", "d", 4096, 4096, sequences=6)
    found = []
    for grouped in (True, False):
        backend = eager(runtime, sequences=6)
        backend.together = grouped
        streams = Streams(backend, load)
        inferences.clear()
        for key, ask in enumerate(asks):
            streams.turn(key + 1, ask, 40)
        streams.run(until=4)
        found.append((streams.texts(), list(inferences)))
        backend.close()
    (ours, rows), (theirs, apart_) = found
    assert ours == theirs
    assert all(len(text) > 20 for text in ours.values())
    # 160 tokens. The prompts take some steps, and the streams begin and end one after the other.
    assert rows.count(4) >= 30
    assert len(rows) < 60
    assert len(apart_) == sum(apart_) >= 160


def test_one_who_comes_joins_and_one_who_ends_leaves(runtime: OpenvinoRuntime, inferences: list[int]) -> None:
    backend = eager(runtime, sequences=6)
    streams = Streams(backend, Load(str(TINY_IR), "tiny", "d", 4096, 4096, sequences=6))
    streams.turn(1, "Count to 40.", 90)
    streams.turn(2, "Count to 30.", 60)
    for _ in range(30):
        streams.scheduler.iterate()
    streams.turn(3, "Repeat: " + "amber kite " * 60, 90)
    streams.run(until=3)
    # Two beside a prompt, then three; the second ends first, and the third last.
    steps = [rows for rows, before in zip(inferences, [0, *inferences], strict=False) if rows != before]
    assert steps[-5:] == [2, 1, 3, 2, 1]
    assert inferences.count(3) >= 20
    alone = loaded(runtime, sequences=6)
    alone.together = False
    again = Streams(alone, Load(str(TINY_IR), "tiny", "d", 4096, 4096, sequences=6))
    for key, ask, tokens in (
        (1, "Count to 40.", 90),
        (2, "Count to 30.", 60),
        (3, "Repeat: " + "amber kite " * 60, 90),
    ):
        again.turn(key, ask, tokens)
        again.run(until=key)
    assert again.texts() == streams.texts()
    assert streams.scheduler._pool.audit() == ()
    backend.close()
    alone.close()
