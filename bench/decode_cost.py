"""What a format and log-probabilities add to a token of a model.

    .venv/bin/python bench/decode_cost.py MODEL.gguf [--rounds N] [--write]

The model decodes through the engine's backend, 100 tokens behind a prompt. Every third token is free, every third is
held to a schema by the engine's own constraint, of every third the log-probabilities are told with 20 alternatives:
the three see the same machine. The words of the grammar are the made-up vocabulary of ``grammar_cost.py``, 151,936
tokens, so the model must have as many; what it samples means nothing either way. A round has new random schemas. Its
ratio is that of medians; *added* is the mean of what is done beside the step, without what a free token needs.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Literal, NamedTuple

from grammar_cost import SIZE, Made, vocabulary
from modeld.chat.call_grammar import whole_answer
from modeld.chat.grammar import check_format
from modeld.chat.parser import make_parser
from modeld.engine.backend import Slice
from modeld.engine.constraint import Constraint, Plan
from modeld.engine.llama.backend import LlamaBackend
from modeld.engine.llama.runtime import LlamaRuntime
from modeld.engine.protocol import Load
from modeld.engine.words import Words
from modeld.types import DecodeOptions, ResponseFormat
from page import machine, write_section
from random_schemas import Maker

TOKENS: Final = 16
"""Of each kind in a round."""
TOP: Final = 20

Kind = Literal["free", "held", "scored"]
KINDS: Final[tuple[Kind, ...]] = ("free", "held", "scored")


class Token(NamedTuple):
    """Seconds of one token: the step, and what is done beside it."""

    step: float
    beside: float


def constraints(words: Words, pieces: Made, seed: int) -> Iterator[Constraint]:
    """Answers that are held to random schemas, without end."""
    drawn = random.Random(seed)
    while True:
        rules = check_format(ResponseFormat(schema=Maker(drawn.randrange(10**6)).make())).rules
        plan = Plan(answer=words.matcher(whole_answer(rules)), formatted=True)
        yield Constraint(plan, words, pieces, make_parser("", tools=False, prompt_tail=""))


def play(backend: LlamaBackend, words: Words, pieces: Made, seed: int) -> dict[Kind, list[Token]]:
    """One round."""
    found: dict[Kind, list[Token]] = {kind: [] for kind in KINDS}
    answers = constraints(words, pieces, seed)
    constraint = next(answers)
    sampler = backend.sampler(DecodeOptions(temperature=1.0), seed, [])
    prompt = backend.tokenize(b"river stone lotus " * 25, add_special=False)[:100]
    backend.remove(0, 0)
    backend.step([Slice(0, 0, prompt, True)])
    for at in range(TOKENS * len(KINDS)):
        kind = KINDS[at % len(KINDS)]
        began = time.perf_counter()
        if kind == "scored":
            token = sampler.scored(0, TOP).token
        else:
            token = sampler.sample(0, constraint.allowed() if kind == "held" else None)
        ended = kind == "held" and pieces.is_end(token)
        if kind == "held" and not ended:
            constraint.took(token, pieces.piece(token))
        stepping = time.perf_counter()
        backend.step([Slice(0, len(prompt) + at, [token], True)])
        found[kind].append(Token(time.perf_counter() - stepping, stepping - began))
        if ended:
            constraint = next(answers)
    sampler.close()
    return found


def row(name: str, kind: Kind, rounds: list[dict[Kind, list[Token]]]) -> str:
    """What a kind costs beside a free token."""
    ratios = sorted(
        statistics.median(map(sum, round_[kind])) / statistics.median(map(sum, round_["free"])) for round_ in rounds
    )
    tokens, free = ([token for round_ in rounds for token in round_[which]] for which in (kind, "free"))
    added = 1000 * (statistics.mean(t.beside for t in tokens) - statistics.mean(t.beside for t in free))
    whole = 1000 * statistics.mean(map(sum, free))
    spread = f"{ratios[0]:.3f} to {ratios[-1]:.3f}"
    return f"| {name} | {statistics.median(ratios):.3f} | {spread} | {added:.2f} ms | {100 * added / whole:.1f} % |"


def main() -> int:
    """Print the table, and put it into the page where that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    backend = LlamaRuntime().load(Load(str(options.model), options.model.stem, "", cells=1024, window=1024))
    if backend.vocabulary != SIZE:
        parser.error(f"{options.model.name} has {backend.vocabulary} tokens, the grammar's words are {SIZE}")
    pieces = Made(vocabulary())
    words = Words(pieces)
    play(backend, words, pieces, 0)
    rounds = []
    for seed in range(1, options.rounds + 1):
        rounds.append(play(backend, words, pieces, seed))
        print(".", end="", file=sys.stderr, flush=True)
    free = [1000 * sum(token) for round_ in rounds for token in round_["free"]]
    text = "\n".join(
        [
            "| a token | of a free one, median of rounds | rounds | added, mean | of a free one |",
            "| --- | --- | --- | --- | --- |",
            row("held to a schema", "held", rounds),
            row(f"with log-probabilities, {TOP} alternatives", "scored", rounds),
            "",
            f"{options.model.stem}: a free token takes {statistics.median(free):.1f} ms (median). {machine()}; "
            f"{options.rounds} rounds of {TOKENS} tokens each.",
        ]
    )
    print(f"\n{text}")
    if options.write:
        write_section("decode", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
