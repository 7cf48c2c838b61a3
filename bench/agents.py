"""Agents at work on a modeld node and on llama-server of the same llama.cpp sources, side by side in one run.

    .venv/bin/python bench/build_llama_server.py            prints the path of a llama-server, built once
    .venv/bin/python bench/agents.py --llama-server PATH [--agents 1,4,16] [--rounds N] [--model tiny|90m]
                                     [--json] [--write]

All agents share a system prompt of 600 tokens and two tools, start at the same time and take four turns each: a task,
two results of tools, a question. Answers have 64 tokens, greedy, and are fed back as each server gave them. Both
servers get the same GGUF, threads, KV cells, batch and KV type, and a warm-up; they take turns, each time as a new
process with nothing cached. Then each is stopped and started, and every agent takes one more turn.

``--llama-flags`` replaces llama-server's own flags, and ``--free-slots`` lets it choose the slot of each call.
``--write`` puts the table into ``docs/benchmarks.md``; ``--json`` prints every run.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agent_trace import TOOLS, Trace, make_trace
from judge import Judge, Least, least
from make_shape import TINY, ensure
from modeld.engine.llama.runtime import default_threads
from modeld.node.capacity import AUTO_CELLS
from modeld.types import Message
from page import machine, write_section
from processes import BenchError, Processes, Watch
from servers import Answer, LlamaServer, Modeld, Server, Setting

TURNS = 4
FLAGS = "--no-kv-unified --cache-ram 8192"
Run = dict[str, float]
"""Numbers of one server in one round, by what was measured."""

ROWS = {
    "prefilled": "tokens prefilled",
    "of_least": "tokens prefilled, of the least",
    "first_p50": "time to first token, p50, s",
    "first_p95": "time to first token, p95, s",
    "gap": "worst gap in a stream, s",
    "rate": "tokens answered per second, all agents",
    "stream_rate": "tokens per second within a stream, median",
    "busy": "processor time of its processes, s",
    "memory": "memory of its processes, peak, MiB",
    "restart_prefilled": "after a restart: tokens prefilled",
    "restart_p95": "after a restart: time to first token, p95, s",
    "by_hand_prefilled": "after a restart, slots saved by hand: tokens prefilled",
    "by_hand_p95": "after a restart, slots saved by hand: time to first token, p95, s",
}


@dataclass
class Play:
    """A trace as it is played on one server: the answers of each agent so far."""

    trace: Trace
    judge: Judge
    answers: list[list[Answer]] = field(init=False)

    def __post_init__(self) -> None:
        self.answers = [[] for _ in self.trace.agents]

    async def turns(self, server: Server, count: int) -> list[Answer]:
        """All agents take that many turns, at the same time."""
        await asyncio.gather(*(self._agent(server, agent, count) for agent in range(len(self.answers))))
        return [answer for answers in self.answers for answer in answers[-count:]]

    async def _agent(self, server: Server, agent: int, count: int) -> None:
        for _ in range(count):
            answer = await server.ask(agent, self._messages(agent, len(self.answers[agent])), TOOLS, self.trace.answer)
            if answer.output != self.trace.answer:
                raise BenchError(f"{server.name} answered {answer.output} tokens, not {self.trace.answer}")
            self.answers[agent].append(answer)

    def _messages(self, agent: int, turn: int) -> tuple[Message, ...]:
        return self.trace.messages(agent, [answer.text for answer in self.answers[agent][:turn]])

    def least(self, turns: int) -> Least:
        """Of the first ``turns`` turns of all agents."""
        calls = []
        for agent, answers in enumerate(self.answers):
            for turn in range(turns):
                messages, answer = self._messages(agent, turn), answers[turn]
                prompt = self.judge.prompt(messages, TOOLS)
                # No later prompt shows the thinking.
                made = prompt if answer.thought else self.judge.decoded(messages, TOOLS, answer.text, answer.output)
                calls.append((prompt, made))
        return least(calls)

    def asked(self, turns: int) -> int:
        """Tokens of all prompts of the first ``turns`` turns."""
        return sum(
            len(self.judge.prompt(self._messages(agent, turn), TOOLS))
            for agent in range(len(self.answers))
            for turn in range(turns)
        )


async def measure(server: Server, play: Play) -> Run:
    """The trace on a new process, and then after restarts."""
    await server.start()
    await warm_up(server)
    async with Watch(server.pid) as watch:
        began = time.perf_counter()
        answers = await play.turns(server, TURNS)
        wall = time.perf_counter() - began
    await server.stop()
    found = numbers(answers, wall, play) | {"memory": watch.peak / 2**20, "busy": watch.busy}
    await server.start()
    await warm_up(server)
    found |= after_restart("restart", await play.turns(server, 1))
    if isinstance(server, LlamaServer):
        await server.save_slots()
        await server.stop()
        await server.start()
        await warm_up(server)
        await server.restore_slots()
        found |= after_restart("by_hand", await play.turns(server, 1))
    await server.stop()
    return found


async def warm_up(server: Server) -> None:
    """The first call of a process wakes threads and reserves buffers. It shares the three tokens with
    the trace that all prompts begin with."""
    await server.ask(-1, [Message("system", "Warm-up."), Message("user", "Count to 12.")], (), 16)


def numbers(answers: Sequence[Answer], wall: float, play: Play) -> Run:
    """What is told of the trace."""
    bound, prefilled = play.least(TURNS), sum(answer.prefilled for answer in answers)
    first = [answer.times[0] for answer in answers]
    output = sum(answer.output for answer in answers)
    rates = [(answer.output - 1) / (answer.times[-1] - answer.times[0]) for answer in answers]
    return {
        "prefilled": prefilled,
        "of_least": prefilled / bound.new,
        "restored": sum(answer.restored for answer in answers),
        "least": bound.new,
        "trie": bound.prompts,
        "prompts": play.asked(TURNS),
        "prompts_reported": sum(answer.prompt for answer in answers),
        "first_p50": quantile(first, 0.5),
        "first_p95": quantile(first, 0.95),
        "gap": max(later - earlier for answer in answers for earlier, later in itertools.pairwise(answer.times)),
        "rate": output / wall,
        "stream_rate": statistics.median(rates),
        "wall": wall,
    }


def after_restart(name: str, answers: Sequence[Answer]) -> Run:
    """What is told of the turn after a restart."""
    prefilled = sum(answer.prefilled for answer in answers)
    return {f"{name}_prefilled": prefilled, f"{name}_p95": quantile([answer.times[0] for answer in answers], 0.95)}


def quantile(values: Iterable[float], part: float) -> float:
    """The smallest value that ``part`` of all are not above."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)]


async def compare(args: argparse.Namespace, model: Path, agents: int, processes: Processes) -> dict[str, list[Run]]:
    """Both servers in turns, so that a slow moment of the machine meets both."""
    judge = Judge(model)
    trace = make_trace(agents, TURNS + 2, args.seed)
    runs: dict[str, list[Run]] = {Modeld.name: [], LlamaServer.name: []}
    for number in range(1, args.rounds + 1):
        for name in runs:
            folder = Path(tempfile.mkdtemp(dir=processes.folder))
            server = make_server(name, args, processes, Setting(model, args.threads, AUTO_CELLS, agents, folder))
            runs[name].append(await measure(server, Play(trace, judge)))
            told = ", ".join(f"{key} {value:,.2f}" for key, value in runs[name][-1].items())
            print(f"{agents} agents, round {number}/{args.rounds}, {name}: {told}", file=sys.stderr, flush=True)
    return runs


def make_server(name: str, args: argparse.Namespace, processes: Processes, setting: Setting) -> Server:
    """By its name."""
    if name == Modeld.name:
        return Modeld(processes, setting)
    flags = shlex.split(args.llama_flags)
    # The shapes answer in words with a space before each.
    stripped = "" if setting.model == TINY else " "
    return LlamaServer(processes, setting, args.llama_server, flags, pinned=not args.free_slots, stripped=stripped)


def table(agents: int, runs: dict[str, list[Run]]) -> list[str]:
    """Rows of the page: medians of the rounds, and the ratio in each round."""
    ours, theirs = runs[Modeld.name], runs[LlamaServer.name]
    rows = []
    for key, label in ROWS.items():
        # What a user has to do by hand there, the node does by itself.
        own = key if key in ours[0] else key.replace("by_hand", "restart")
        ratios = sorted(mine[own] / their[key] for mine, their in zip(ours, theirs, strict=True))
        cells = [number([run[own] for run in ours]), number([run[key] for run in theirs])]
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        rows.append(f"| {agents} | {label} | {' | '.join(cells)} | {spread} |")
    return rows


def number(values: Sequence[float]) -> str:
    """The median; large numbers without decimals."""
    value = statistics.median(values)
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


async def compare_all(args: argparse.Namespace, model: Path, processes: Processes) -> dict[int, dict[str, list[Run]]]:
    """For each number of agents."""
    return {agents: await compare(args, model, agents, processes) for agents in args.agents}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-server", type=Path, required=True, metavar="PATH")
    parser.add_argument("--llama-flags", default=FLAGS, help=f"default: {FLAGS}")
    parser.add_argument("--free-slots", action="store_true", help="llama-server chooses slots; default: one per agent")
    parser.add_argument("--agents", type=lambda text: [int(n) for n in text.split(",")], default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, default=default_threads())
    parser.add_argument("--model", choices=("tiny", "90m"), default="90m")
    parser.add_argument("--json", action="store_true", help="print every run instead of the table")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    args = parser.parse_args()
    model = TINY if args.model == "tiny" else ensure("90m", "q8_0")
    try:
        with Processes() as processes:
            found = asyncio.run(compare_all(args, model, processes))
    except BenchError as error:
        raise SystemExit(f"agents: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    page = "\n".join(
        [
            "| agents | | modeld | llama-server | modeld / llama-server, median (least to most) |",
            "| --- | --- | --- | --- | --- |",
            *(row for agents, runs in found.items() for row in table(agents, runs)),
            "",
            f"{model.stem}; {machine()}; medians of {args.rounds} rounds; llama-server with {args.llama_flags}.",
        ]
    )
    print(json.dumps(found, indent=1) if args.json else page)
    if args.write:
        write_section("agents", page)


if __name__ == "__main__":
    main()
