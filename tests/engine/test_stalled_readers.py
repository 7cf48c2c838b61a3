"""Hazard: streams that nobody reads. They keep their place, and nobody else's; and nothing spins while they wait."""

from __future__ import annotations

import pytest

from modeld.engine.protocol import Credit, Decode, Done, Evicted, Load, Parts, Prefix, Suffix, Turn, decode_result
from modeld.session import PrefixStatus, SuffixStatus
from modeld.types import DecodeOptions, EndPart, FunctionTool, Message, TextPart, Tool

from .test_scheduler_states import Engine

GREEDY = DecodeOptions(temperature=0)


def asked(text: str) -> tuple[Message, ...]:
    return (Message("user", text),)


def small(**settings: int) -> Engine:
    wanted = {"cells": 300, "window": 300, "sequences": 2, "batch": 32, **settings}
    return Engine(Load(path="", name="fake", digest="d", **wanted))


def ends(engine: Engine) -> dict[int, EndPart]:
    done = [reply for reply in engine.replies if isinstance(reply, Done)]
    return {reply.id: decode_result(reply.result, EndPart) for reply in done}


def text_of(engine: Engine, id_: int) -> str:
    parts = [part for reply in engine.replies if isinstance(reply, Parts) and reply.id == id_ for part in reply.parts]
    return "".join(part.text for part in parts if isinstance(part, TextPart))


def test_stream_without_reader_gives_its_cells_to_one_with() -> None:
    engine = small()
    engine.ask(Turn(1, 1, asked("!count 100"), GREEDY, credit=150))
    assert engine.steps(1000)
    engine.ask(Turn(2, 2, asked("x" * 130), GREEDY))
    assert engine.steps(1000)
    assert ends(engine)[2].finish_reason == "stop"
    assert Evicted((1,)) in engine.replies
    engine.ask(Credit(1, 1000))
    assert engine.steps(1000)
    end = ends(engine)[1]
    assert text_of(engine, 1).startswith("1 2 3 ")
    assert end.finish_reason == "context_full"
    receipt = end.receipt
    # The prompt and the answer until then were computed twice, but for the beginning that all conversations share.
    assert receipt.recomputed > 28 + 150 - 10
    assert receipt.reused + receipt.prefilled - receipt.recomputed == end.usage.input == receipt.input


def test_preempted_stream_says_what_was_taken_from_it() -> None:
    engine = small(sequences=3)
    engine.ask(Turn(1, 1, asked("!count 40"), GREEDY, credit=10**6))
    assert engine.steps(1000)
    said = Message("assistant", text_of(engine, 1))
    engine.ask(Turn(2, 1, (*asked("!count 40"), said, *asked("!count 20")), GREEDY, credit=5))
    assert engine.steps(1000)
    engine.ask(Turn(3, 2, asked("y" * 100), GREEDY))
    assert engine.steps(1000)
    engine.ask(Credit(2, 1000))
    assert engine.steps(1000)
    receipt = ends(engine)[2].receipt
    # All conversations begin alike.
    assert receipt.reused < 10
    assert receipt.dropped > 100
    assert receipt.stop is not None
    assert receipt.stop.reason == "evicted"


def test_preempted_job_is_before_newcomers_and_nothing_spins() -> None:
    engine = small()
    engine.ask(Turn(1, 1, asked("!count 90"), GREEDY, credit=242))
    engine.steps(1)
    engine.ask(Turn(2, 2, asked("!count 40"), GREEDY, credit=20))
    engine.steps(260)
    engine.ask(Turn(3, 3, asked("xxx"), GREEDY, credit=3))
    engine.steps(400)
    engine.ask(Credit(2, 500))
    assert engine.steps(5000)
    for id_ in (1, 2, 3):
        engine.ask(Credit(id_, 10_000))
    assert engine.steps(5000)
    assert {id_: end.finish_reason for id_, end in ends(engine).items()}.keys() == {1, 2, 3}


def test_short_prompt_does_not_wait_for_long_ones() -> None:
    engine = small(cells=4000, window=1000, sequences=8, batch=128)
    engine.ask(*(Turn(id_, id_, asked("x" * 900), DecodeOptions(temperature=0, max_tokens=1)) for id_ in (1, 2, 3)))
    engine.ask(Turn(4, 4, asked("hi"), DecodeOptions(temperature=0, max_tokens=1)))
    assert engine.steps(1000)
    assert next(iter(ends(engine))) == 4


def test_tools_of_the_prefix_survive_a_turn_without_them() -> None:
    engine = small(cells=2000, window=1000)
    tools = (Tool(FunctionTool("f", "A function.", {})),)
    engine.ask(
        Prefix(1, 1, (Message("system", "S"),), tools), Turn(2, 1, asked("q"), GREEDY), Suffix(3, 1, asked("hi"))
    )
    assert engine.steps(1000)
    first, _, last = [reply for reply in engine.replies if isinstance(reply, Done)]
    prefix = decode_result(first.result, PrefixStatus)
    suffix = decode_result(last.result, SuffixStatus)
    assert suffix.prefix_tokens == prefix.prefix_tokens
    assert suffix.suffix_tokens > 0
    assert "".join(map(chr, engine.scheduler._pool.get(1).ids)).count("A function.") == 1


def test_decode_after_an_eviction_says_so() -> None:
    engine = small()
    engine.ask(Turn(1, 1, asked("!count 9"), DecodeOptions(temperature=0, max_tokens=3)))
    assert engine.steps(100)
    held = engine.scheduler._pool.get(1).hot
    for key in (2, 3):
        engine.ask(Turn(key, key, asked("x"), GREEDY))
    assert engine.steps(1000)
    engine.ask(Decode(9, 1, GREEDY))
    assert engine.steps(1000)
    receipt = ends(engine)[9].receipt
    assert receipt.stop is not None
    assert (receipt.stop.reason, receipt.dropped + receipt.reused) == ("evicted", held)
    assert receipt.reused < 10


class Forgetful:
    """A backend that can only forget whole sequences, as recurrent models do."""

    def __init__(self, engine: Engine) -> None:
        self._remove = engine.backend.remove
        engine.backend.remove = self.remove  # type: ignore[method-assign]

    def remove(self, sequence: int, start: int) -> bool:
        if start == 0:
            return self._remove(sequence, 0)
        return start >= len(self._remove.__self__._cells.get(sequence, []))  # type: ignore[attr-defined]


@pytest.mark.parametrize("stop", [(), ("5 6",)])
def test_model_that_cannot_cut_is_computed_again_and_says_so(stop: tuple[str, ...]) -> None:
    engine = small(cells=2000, window=1000)
    Forgetful(engine)
    engine.ask(Turn(1, 1, asked("!count 9"), DecodeOptions(temperature=0, stop=stop)))
    assert engine.steps(1000)
    engine.ask(Turn(2, 1, asked("something else"), GREEDY))
    assert engine.steps(1000)
    assert text_of(engine, 2).startswith("something else #")
    end = ends(engine)[2]
    assert end.receipt.stop is not None
    assert end.receipt.dropped > 0
    assert end.receipt.reused + end.receipt.prefilled == end.usage.input
