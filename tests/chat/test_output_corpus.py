"""Hazard: an output that is parsed otherwise when it comes in other pieces, or by what its text looks like."""

import json
import random
from itertools import pairwise

import pytest

from modeld.chat.output.formats import CALL_FORMATS, HARMONY
from support.outputs import Case, Corpus, Piece, check_spans, corpora, joined, message_of, parse

ALL = [(corpus, case) for corpus in corpora() for case in corpus.cases]
IDS = [f"{corpus.format}: {case.name}" for corpus, case in ALL]


def cut(pieces: list[Piece], places: list[int]) -> list[Piece]:
    """The pieces with ordinary text cut at these bytes of the output; special tokens stay whole."""
    out: list[Piece] = []
    at = 0
    for data, special in pieces:
        marks = [0, *([] if special else [p - at for p in places if at < p < at + len(data)]), len(data)]
        out += [(data[a:b], special) for a, b in pairwise(marks)]
        at += len(data)
    return out


def check(corpus: Corpus, case: Case, pieces: list[Piece], *, plain: bool = False) -> None:
    spans: list[tuple[str, str]] = []
    parts = parse(corpus.parser(case, plain=plain, spans=spans), pieces)
    assert joined(parts) == case.expected
    check_spans(pieces, parts, spans)


def test_the_corpus_is_as_large_as_it_should_be() -> None:
    assert len(ALL) >= 150
    assert len(set(IDS)) == len(ALL)
    assert len(corpora()) >= 12
    spoken = {call.name for corpus in corpora() for call in corpus.syntax().dialect.calls}
    assert spoken | {HARMONY.name} == {call.name for call in CALL_FORMATS} | {HARMONY.name}


@pytest.mark.parametrize(("corpus", "case"), ALL, ids=IDS)
def test_every_split_gives_the_expected_parts(corpus: Corpus, case: Case) -> None:
    for plain in (False, True) if case.plain else (False,):
        pieces = corpus.pieces(case, plain=plain)
        size = sum(len(data) for data, _ in pieces)
        check(corpus, case, pieces, plain=plain)
        check(corpus, case, cut(pieces, list(range(size))), plain=plain)
        for at in range(1, size, 7 if plain else 1):
            check(corpus, case, cut(pieces, [at]), plain=plain)
        source = random.Random(case.name)
        for _ in range(4 if plain else 12):
            check(corpus, case, cut(pieces, sorted(source.sample(range(size), min(size, 8)))), plain=plain)


@pytest.mark.parametrize(("corpus", "case"), ALL, ids=IDS)
def test_a_client_joins_the_same_and_arguments_are_json(corpus: Corpus, case: Case) -> None:
    pieces = corpus.pieces(case)
    size = sum(len(data) for data, _ in pieces)
    whole = message_of(parse(corpus.parser(case), pieces))
    assert message_of(parse(corpus.parser(case), cut(pieces, list(range(size))))) == whole
    text, thinking, calls, errors = whole
    expected = case.expected
    assert text == "".join(part[1] for part in expected if part[0] == "text")
    assert thinking == "".join(part[1] for part in expected if part[0] == "thinking")
    assert calls == [part for part in expected if part[0] == "call"]
    assert errors == [part[1] for part in expected if part[0] == "error"]
    for call in calls:
        json.loads(call[3])


FRAGMENTS = [
    b"{", b"}", b"[", b"]", b"(", b")", b'"', b"'", b"`", b"\\", b"\n", b" ", b",", b":", b"=", b"<", b">", b"</", b"|",
    b"\xf0\x9f", b"\xff", "é".encode(), b"\\u12", b"\\ud800", b"null", b"-", b"1e", b"name", b'"name": "', b"to=f",
    b"json", b"```", b"[[[[", b"{{{{", b"\x00",
]  # fmt: skip


def mutated(pieces: list[Piece], markers: list[bytes], source: random.Random) -> list[Piece]:
    """The pieces with one to four of them changed: cut out, doubled, swapped, torn, joined by others."""
    out = cut(pieces, sorted(source.choices(range(1 + sum(len(data) for data, _ in pieces)), k=4)))
    for _ in range(source.randint(1, 4)):
        at = source.randrange(len(out) + 1)
        match source.randrange(6):
            case 0:
                del out[at : at + 1]
            case 1:
                out[at:at] = out[at : at + 1]
            case 2:
                out[at : at + 2] = out[at : at + 2][::-1]
            case 3:
                out[at:at] = [(source.choice(FRAGMENTS), False)]
            case 4:
                out[at:at] = [(source.choice(markers or FRAGMENTS), source.random() < 0.7)]
            case _:
                out = out[:at]
    return [piece for piece in out if piece[0]]


@pytest.mark.parametrize("seed", range(20))
def test_of_100_000_broken_outputs_nothing_is_lost_and_none_raises(seed: int) -> None:
    source = random.Random(seed)
    for _ in range(5_000):
        corpus, case = source.choice(ALL)
        pieces = mutated(corpus.pieces(case), [marker.encode() for marker in corpus.special], source)
        spans: list[tuple[str, str]] = []
        parts = parse(corpus.parser(case, spans=spans), pieces)
        check_spans(pieces, parts, spans)
        if source.random() < 0.1:
            size = sum(len(data) for data, _ in pieces)
            other = parse(corpus.parser(case), cut(pieces, list(range(size))))
            assert joined(other) == joined(parts), pieces
            for call in message_of(parts)[2]:
                json.loads(call[3])
