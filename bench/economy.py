"""What forks and restarts cost: a session of 4,000 tokens on the 90m shape.

    .venv/bin/python bench/economy.py [--rounds N] [--model tiny|90m] [--json] [--write]

*Fork*: a session is forked some times. One branch goes on where it ended, the others are asked something else. All
answers are compared with those of new nodes that compute the same from the start, and the parent with what it was.

*Restart*: a node answers, is stopped with ``modeld stop`` and started; or it is idle for some seconds, node and engine
are killed with signal 9, and it is started. Then the session is asked again. *Cold* is the same question to a new node
with the model loaded. Times are of calls alone, after a warm-up in each process.

``--write`` puts the tables into ``docs/benchmarks.md``; ``--json`` prints every round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent_trace import WORDS
from judge import Judge
from make_shape import TINY, ensure
from modeld.engine.llama.runtime import default_threads
from modeld.node.capacity import AUTO_CELLS
from modeld.session import ModelRef, Session, SessionConfig
from modeld.types import DecodeOptions, Message
from page import machine, write_section
from processes import BenchError, Processes
from servers import Answer, Modeld, Setting, collect

TOKENS = 4000
ANSWER = 64
BRANCHES = 4
IDLE_SECONDS = 5.0
Round = dict[str, Any]


@dataclass
class Bench:
    """What all measurements have in common."""

    processes: Processes
    model: Path
    threads: int
    judge: Judge

    def __post_init__(self) -> None:
        random_ = random.Random(0)
        self.first = Message("user", "Repeat: " + " ".join(random_.choices(WORDS, k=TOKENS)))
        self.questions = [Message("user", "Repeat: " + " ".join(random_.choices(WORDS, k=40))) for _ in range(BRANCHES)]

    @asynccontextmanager
    async def node(self) -> AsyncIterator[Modeld]:
        """A node on a new data root, started and warm. It runs at the end too."""
        folder = Path(tempfile.mkdtemp(dir=self.processes.folder))
        node = Modeld(self.processes, Setting(self.model, self.threads, AUTO_CELLS, 1, folder))
        await self.start(node)
        yield node
        await node.stop()

    async def start(self, node: Modeld) -> None:
        """Start it, or start it again."""
        await node.start()
        await node.ask(-1, [Message("user", "Count to 12.")], (), 16)

    async def open(self, node: Modeld) -> Session:
        """The session that is measured, by its name."""
        return await node.client.open_session(ModelRef(path=str(self.model)), SessionConfig(name="long"))

    async def ask(self, node: Modeld, messages: Sequence[Message], tokens: int = ANSWER) -> Answer:
        """A turn of that session. Opening it is part of the time."""
        began = time.perf_counter()
        session = await self.open(node)
        return await collect(session.turn(messages, think="off", options=options(tokens)), began)

    async def tape(self, node: Modeld) -> int:
        """Tokens of that session's conversation, as ``modeld ps`` shows them."""
        return next(info.tape for info in await node.client.sessions() if info.name == "long")

    def follow_up(self, answer: Answer, question: int) -> list[Message]:
        """The conversation that asks something after the first answer."""
        return [self.first, Message("assistant", answer.text), self.questions[question]]

    def new_tokens(self, answer: Answer, question: int) -> int:
        """Tokens of :meth:`follow_up` that have no KV yet."""
        held = self.judge.decoded([self.first], (), answer.text, answer.output)
        return len(self.judge.prompt(self.follow_up(answer, question), ())) - len(held)


def options(tokens: int = ANSWER) -> DecodeOptions:
    """Greedy, and exactly so long."""
    return DecodeOptions(max_tokens=tokens, temperature=0, ignore_eos=True)


async def measure_fork(bench: Bench) -> Round:
    """Branches of one session, and what became of the parent."""
    async with bench.node() as node:
        answer = await bench.ask(node, [bench.first])
        parent = await bench.open(node)
        before = await bench.tape(node)
        seconds, branches = [], []
        for number in range(BRANCHES):
            began = time.perf_counter()
            branches.append(await parent.fork(f"branch-{number}"))
            seconds.append(time.perf_counter() - began)
        on, *others = [
            await collect(branch.turn(bench.follow_up(answer, n), think="off", options=options()), 0.0)
            if n
            else await collect(branch.decode(options()), 0.0)
            for n, branch in enumerate(branches)
        ]
        untouched = await bench.tape(node) == before
        went_on = await collect(parent.decode(options()), 0.0)
    async with bench.node() as node:
        whole = await bench.ask(node, [bench.first], 2 * ANSWER)
    equal = [whole.text == answer.text + on.text]
    for n, other in enumerate(others, 1):
        async with bench.node() as node:
            equal.append((await bench.ask(node, bench.follow_up(answer, n))).text == other.text)
    return {
        "tokens": answer.prompt + answer.output,
        "fork_ms": [1000 * s for s in seconds],
        "prefilled_going_on": on.prefilled,
        "prefilled_asked": [other.prefilled for other in others],
        "new_asked": [bench.new_tokens(answer, n) for n in range(1, BRANCHES)],
        "equal_to_cold": equal,
        "parent_untouched": untouched and went_on.text == on.text and went_on.prefilled <= 1,
    }


async def measure_restart(bench: Bench) -> Round:
    """The same question cold, after a stop, and after a kill."""
    found: Round = {}
    answers = {}
    for how in ("stop", "kill"):
        async with bench.node() as node:
            first = await bench.ask(node, [bench.first])
            if how == "stop":
                await node.stop()
            else:
                await asyncio.sleep(IDLE_SECONDS)
                await node.kill()
            await bench.start(node)
            answers[how] = await bench.ask(node, bench.follow_up(first, 0))
            found["new"] = bench.new_tokens(first, 0)
    async with bench.node() as node:
        answers["cold"] = await bench.ask(node, bench.follow_up(first, 0))
    for how, answer in answers.items():
        found[f"{how}_prefilled"], found[f"{how}_restored"] = answer.prefilled, answer.restored
        found[f"{how}_first"] = answer.times[0]
        found[f"{how}_equal"] = answer.text == answers["cold"].text
    return found


async def measure(bench: Bench, rounds: int) -> dict[str, list[Round]]:
    """Both, in turns."""
    found: dict[str, list[Round]] = {"fork": [], "restart": []}
    for number in range(1, rounds + 1):
        found["fork"].append(await measure_fork(bench))
        found["restart"].append(await measure_restart(bench))
        for name, runs in found.items():
            print(f"{name} {number}/{rounds}: {runs[-1]}", file=sys.stderr, flush=True)
    return found


def fork_table(runs: list[Round]) -> list[str]:
    """All forks of all rounds."""
    milliseconds = [ms for run in runs for ms in run["fork_ms"]]
    asked = [f"{p} of {new}" for run in runs for p, new in zip(run["prefilled_asked"], run["new_asked"], strict=True)]
    equal = [one for run in runs for one in run["equal_to_cold"]]
    return [
        "| a session of | fork, ms, median (worst) | tokens prefilled to go on "
        "| to answer something else, of what is new to the parent | branches as computed cold | parents untouched |",
        "| --- | --- | --- | --- | --- | --- |",
        f"| {runs[0]['tokens']:,} tokens | {statistics.median(milliseconds):.1f} ({max(milliseconds):.1f}) "
        f"| {max(run['prefilled_going_on'] for run in runs)} | {', '.join(sorted(set(asked)))} "
        f"| {sum(equal)} of {len(equal)} | {sum(run['parent_untouched'] for run in runs)} of {len(runs)} |",
    ]


def restart_table(runs: list[Round]) -> list[str]:
    """Medians, and the ratio to cold in each round."""
    rows = [
        "| first turn of it | tokens prefilled | restored | time to first token, s | of cold, median (worst) "
        "| answers as computed cold |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    labels = {
        "cold": "cold",
        "stop": "after stop and start",
        "kill": f"after {IDLE_SECONDS:.0f} s idle, kill -9, start",
    }
    for how, label in labels.items():
        ratios = [run[f"{how}_first"] / run["cold_first"] for run in runs]
        prefilled, restored, first = (
            statistics.median(run[f"{how}_{name}"] for run in runs) for name in ("prefilled", "restored", "first")
        )
        equal = sum(run[f"{how}_equal"] for run in runs)
        rows.append(
            f"| {label} | {prefilled:,.0f} | {restored:,.0f} | {first:.3f} "
            f"| {statistics.median(ratios):.2f} ({max(ratios):.2f}) | {equal} of {len(runs)} |"
        )
    return [*rows, "", f"New to the session are {runs[0]['new']} tokens of that turn."]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--model", choices=("tiny", "90m"), default="90m")
    parser.add_argument("--json", action="store_true", help="print every round instead of the tables")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    args = parser.parse_args()
    model = TINY if args.model == "tiny" else ensure("90m", "q8_0")
    try:
        with Processes() as processes:
            found = asyncio.run(measure(Bench(processes, model, args.threads, Judge(model)), args.rounds))
    except BenchError as error:
        raise SystemExit(f"economy: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    about = f"{model.stem}; {machine()}; {args.rounds} rounds."
    page = "\n".join([*fork_table(found["fork"]), "", *restart_table(found["restart"]), "", about])
    print(json.dumps(found, indent=1) if args.json else page)
    if args.write:
        write_section("economy", page)


if __name__ == "__main__":
    main()
