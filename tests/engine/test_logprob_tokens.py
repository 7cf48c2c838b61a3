"""Hazard: a token's log-probability that is told twice, not at all, for text that a stop string took, or too early."""

from __future__ import annotations

from codecs import getincrementaldecoder

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeld.chat.output.parts import SpanKind
from modeld.chat.parser import OutputParser, Syntax, make_parser
from modeld.engine.backend import Scored
from modeld.engine.distribution import best_tokens, log_sum
from modeld.engine.fake.lexicon import FakeLexicon
from modeld.engine.job import Stream
from modeld.engine.logprobs import TokenScores
from modeld.errors import EngineError
from modeld.types import DecodeOptions, LogprobsPart, StreamPart, TextPart
from support.examples import examples

TEMPLATE = "{{ '<think>' }}{{ '</think>' }}{{ '<tool_call>' }}"
TEXTS = (
    "<think>\nwell\n</think>\n\nIt is 4.",
    'Let me see.\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
    "<tool_call>\nno call\n</tool_call> and more",
    "a <think",
    "Ünï \N{BALLOON} <tool_call> is a tag",
    "\N{BALLOON}\N{BALLOON}",
)
RAW = (b"\xf0\x9f\x8e", b"\x88", b"\xff", b" END ", b"EN", b"")


class Pieces(FakeLexicon):
    """Tokens that stand for these bytes."""

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def piece(self, token: int) -> bytes:
        return self.pieces[token]

    def sample(self, row: int, allowed: bytes | None = None) -> int:
        return row

    def scored(self, row: int, top: int, allowed: bytes | None = None) -> Scored:
        return Scored(row, -float(row), tuple((row, -float(row)) for _ in range(top)))


@st.composite
def cut_texts(draw: st.DrawFn) -> list[bytes]:
    """Bytes of an answer, cut into tokens anywhere."""
    parts = draw(st.lists(st.sampled_from(TEXTS).map(str.encode) | st.sampled_from(RAW), max_size=5))
    data = b"".join(parts)
    cuts = sorted(draw(st.sets(st.integers(0, len(data)), max_size=30)))
    pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
    return pieces if draw(st.booleans()) else [piece for piece in pieces if piece]


def kinds_of(data: bytes) -> list[SpanKind]:
    """What each character became, from a parser that got all at once."""
    kinds: list[SpanKind] = []
    parser = make_parser(
        TEMPLATE, tools=True, prompt_tail="", spans=lambda kind, text: kinds.extend([kind] * len(text))
    )
    parser.feed(data)
    parser.finish()
    return kinds


def run(pieces: list[bytes], stop: tuple[str, ...], takes: set[int]) -> tuple[Stream, list[StreamPart]]:
    """The parts of an answer that are taken after some of its tokens."""
    lexicon = Pieces(pieces)
    scores = TokenScores(lexicon, 2)
    parser = OutputParser(Syntax(TEMPLATE, None), tools=True, prompt_tail="", spans=scores.became)
    stream = Stream(DecodeOptions(stop=stop), 0, 10**6, lexicon, parser, None, scores)
    parts: list[StreamPart] = []
    for row in range(len(pieces)):
        token = stream.choose(row)
        matched = stream.push(token, pieces[token], False)
        if row in takes:
            parts += stream.take()[0]
        if matched is not None:
            break
    stream.finish()
    return stream, parts + list(stream.take()[0])


@settings(max_examples=examples(300), deadline=None)
@given(cut_texts(), st.sampled_from([(), ("END",), ("END", "\N{BALLOON}")]), st.sets(st.integers(0, 40)))
def test_each_token_of_the_answer_is_told_once_and_as_what_it_became(
    pieces: list[bytes], stop: tuple[str, ...], takes: set[int]
) -> None:
    stream, parts = run(pieces, stop, takes)
    told = [token for part in parts if isinstance(part, LogprobsPart) for token in part.tokens]
    assert [token.token for token in told] == list(range(len(told)))
    assert all((token.logprob, len(token.top), token.data) == (-i, 2, pieces[i]) for i, token in enumerate(told))
    # All of them, but those of which the stop string left nothing.
    ends = np.cumsum([0, *map(len, pieces)])
    passed = stream.matcher.passed
    if stream.matcher.matched is None:
        assert len(told) == len(pieces)
    else:
        assert len(told) <= int(np.searchsorted(ends, passed)) or not all(pieces)
        assert b"".join(token.data for token in told)[:passed] == b"".join(pieces)[:passed]
    kinds = kinds_of(b"".join(pieces)[:passed])
    decoder, at = getincrementaldecoder("utf-8")("replace"), 0
    for token in told:
        if at < len(kinds):
            assert token.kind == kinds[at]
        at += len(decoder.decode(token.data))


@settings(max_examples=examples(150), deadline=None)
@given(cut_texts(), st.sets(st.integers(0, 40)))
def test_no_token_comes_before_its_text(pieces: list[bytes], takes: set[int]) -> None:
    said = 0
    kinds = kinds_of(b"".join(pieces))
    decoder, at = getincrementaldecoder("utf-8")("replace"), 0
    for part in run(pieces, (), takes)[1]:
        if isinstance(part, TextPart):
            said += len(part.text)
        for token in part.tokens if isinstance(part, LogprobsPart) else ():
            assert token.kind != "text" or kinds[: at + 1].count("text") <= said
            at += len(decoder.decode(token.data))
    assert said == kinds.count("text")


def test_the_best_are_the_best() -> None:
    draw = np.random.default_rng(1)
    for size in (1, 5, 255, 256, 257, 4096, 5000, 20_000):
        for count in (0, 1, 5, 20):
            for levels in (3, 10**6):
                logits = draw.integers(0, levels, size).astype(np.float32)
                logits[draw.random(size) < draw.choice([0, 0.5, 0.999])] = -np.inf
                if not np.isfinite(logits.max()):
                    logits[size // 2] = 1
                wanted = [int(i) for i in np.lexsort((np.arange(size), -logits)) if np.isfinite(logits[i])][:count]
                assert best_tokens(logits, count) == wanted


def test_logits_that_are_no_numbers_are_said_to_be_none() -> None:
    for broken in ([1.0, float("nan")], [float("inf"), 1.0], [-float("inf")] * 2):
        with pytest.raises(EngineError, match="no numbers"):
            log_sum(np.array(broken, np.float32))
    assert log_sum(np.full(1000, 80, np.float32)) == pytest.approx(80 + np.log(1000), abs=1e-6)
