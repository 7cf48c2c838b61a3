"""HTTP under load: many streams at once beside llama-server, and what a token costs more than over gRPC.

    .venv/bin/python bench/build_llama_server.py            prints the path of a llama-server, built once
    .venv/bin/python bench/http_load.py --llama-server PATH [--streams 64] [--clients 8] [--seconds 60] [--rounds N]
                                        [--threads N] [--only load|cost] [--json] [--write]

The tiny model, greedy, 256 tokens an answer, prompts of some 50 tokens that share nothing. *Load*: so many streams of
so many clients ask again and again for so long; the node and llama-server of the same llama.cpp sources take turns,
with equal threads, KV cells, batch and KV type. *Cost*: one client, and eight at once, have one long answer each,
over HTTP and over gRPC in turns on one node. All readers are processes of their own: see ``http_reader.py``.

Without ``--llama-server`` the one that is on PATH; ``--write`` puts the tables into ``docs/benchmarks.md``.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import shlex
import shutil
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import psutil

from agents import quantile
from http_reader import Found, Plan
from make_shape import TINY
from modeld.engine.llama.runtime import default_threads
from modeld.node.capacity import AUTO_CELLS
from modeld.session import ModelRef, SessionConfig
from modeld.transport.security import read_token
from page import machine, write_section
from processes import BenchError, Processes, Watch
from servers import LlamaServer, Modeld, Setting

READER = Path(__file__).resolve().parent / "http_reader.py"
MODEL = "tiny"
TOKENS = 256
FLAGS = "--no-kv-unified"
COST_TOKENS = {1: 3000, 8: 2000}
"""Tokens of an answer, by the number of clients: all fit into the cells."""
COST_ROUNDS = 7
OWN = {"chat_template_kwargs": {"enable_thinking": False}, "ignore_eos": True}
"""What llama-server is told beyond the fields of both."""

Run = dict[str, float]
Load = dict[str, list[Run]]
"""Of each server."""
Cost = dict[int, dict[str, list[Run]]]
"""By the number of clients, of each way."""

ROWS = {
    "answers": "whole answers",
    "rate": "tokens per second, all streams",
    "clients": "tokens of a client, most / least",
    "streams": "tokens of a stream, most / least",
    "first_p50": "time to first token, p50, ms",
    "first_p95": "time to first token, p95, ms",
    "gap_p50": "time between tokens, p50, ms",
    "gap_p95": "time between tokens, p95, ms",
    "gap_ratio": "time between tokens, p95 / p50",
    "gap_worst": "time between tokens, worst, ms",
    "arrival": "tokens that come at once, mean",
    "busy": "processors used by the server",
    "reader": "processors used by the reader",
}


async def read(plan: Plan) -> Found:
    """Let a process of its own read. :raises BenchError: an answer was not whole."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(READER),
        msgspec.json.encode(plan).decode(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        said, wrong = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()
    if process.returncode:
        raise BenchError(f"the reader failed:\n{wrong.decode()[-2000:]}")
    return msgspec.json.decode(said, type=Found)


async def load(pid: int, plan: Plan) -> Run:
    """All streams of a server, for a while."""
    async with Watch(pid) as watch:
        found = await read(plan)
    reads = found.reads
    wall = max(one.times[-1] for one in reads) - min(one.began for one in reads)
    gaps = [1e3 * (later - earlier) for one in reads for earlier, later in itertools.pairwise(one.times)]
    first = [1e3 * (one.times[0] - one.began) for one in reads]
    clients, streams = Counter(one.client for one in reads), Counter(one.stream for one in reads)
    p50, p95 = quantile(gaps, 0.5), quantile(gaps, 0.95)
    return {
        "answers": len(reads),
        "rate": len(reads) * plan.tokens / wall,
        "clients": max(clients.values()) / min(clients.values()),
        "streams": max(streams.values()) / min(streams.values()),
        "first_p50": quantile(first, 0.5),
        "first_p95": quantile(first, 0.95),
        "gap_p50": p50,
        "gap_p95": p95,
        "gap_ratio": p95 / p50,
        "gap_worst": max(gaps),
        "arrival": len(reads) * plan.tokens / sum(len(one.times) for one in reads),
        "busy": watch.busy / wall,
        "reader": found.busy / wall,
    }


async def loads(args: argparse.Namespace, node: Modeld, peer: LlamaServer, over_http: Plan) -> Load:
    """Both servers in turns."""
    each, more = divmod(args.streams, args.clients)
    clients = {f"client-{number}": each + (number < more) for number in range(args.clients)}
    ours = msgspec.structs.replace(over_http, tokens=TOKENS, clients=clients, seconds=args.seconds)
    theirs = msgspec.structs.replace(ours, url=peer.url, token="", own=OWN)
    runs: Load = {Modeld.name: [], LlamaServer.name: []}
    for number in range(1, args.rounds + 1):
        for name, pid, plan in ((Modeld.name, node.pid, ours), (LlamaServer.name, peer.pid, theirs)):
            await reload(node)
            runs[name].append(await load(pid, msgspec.structs.replace(plan, salt=f"load {number}")))
            tell(f"load {number}/{args.rounds}, {name}", runs[name][-1])
    return runs


async def cost(node: psutil.Process, plan: Plan) -> Run:
    """One answer for each client: microseconds for a token, or for an arrival of some of them."""
    before = node.cpu_times()
    found = await read(plan)
    after = node.cpu_times()
    tokens = plan.tokens * len(found.reads) / 1e6
    wall = max(one.times[-1] for one in found.reads) - min(one.times[0] for one in found.reads)
    busy = after.user + after.system - before.user - before.system
    arrivals = sum(len(one.times) for one in found.reads)
    told = {"wall": wall / tokens, "node": busy / tokens, "frame": 1e6 * busy / arrivals}
    return told | {"reader": found.busy / tokens, "arrival": 1e6 * tokens / arrivals}


async def costs(node: Modeld, over_http: Plan) -> Cost:
    """By the number of clients; both ways in turns, each the first as often as the other."""
    process = psutil.Process(node.pid)
    found: Cost = {}
    for count, tokens in COST_TOKENS.items():
        asked = msgspec.structs.replace(over_http, tokens=tokens, clients={f"client-{n}": 1 for n in range(count)})
        plans = {"HTTP": asked, "gRPC": msgspec.structs.replace(asked, url="", root=str(node.root))}
        runs = found[count] = {name: [] for name in plans}
        for number in range(COST_ROUNDS):
            for name in sorted(plans, reverse=bool(number % 2)):
                plan = msgspec.structs.replace(plans[name], salt=f"cost-{count}-{number}-{name}")
                await reload(node)
                runs[name].append(await cost(process, plan))
                tell(f"{count} clients, round {number + 1}/{COST_ROUNDS}, {name}", runs[name][-1])
    return found


async def reload(node: Modeld) -> None:
    """Begin with an engine that holds nothing: what earlier answers left in its cells slows a step."""
    await node.client.unload()
    await node.client.load(ModelRef(name=MODEL), SessionConfig())


def tell(what: str, run: Run) -> None:
    """Of one run."""
    told = ", ".join(f"{key} {value:,.2f}" for key, value in run.items())
    print(f"{what}: {told}", file=sys.stderr, flush=True)


async def measure(args: argparse.Namespace, processes: Processes) -> tuple[Load, Cost]:
    """Both servers run the whole time; one of them is asked."""
    setting = Setting(TINY, args.threads, AUTO_CELLS, args.streams, Path(tempfile.mkdtemp(dir=processes.folder)))
    node = Modeld(processes, setting, "--http", "127.0.0.1:0")
    await node.start()
    url = (await node.client.status()).http
    over_http = Plan(tokens=16, clients={"warm-up": 2}, url=url, token=read_token(node.root), model=MODEL)
    await read(over_http)
    found_load: Load = {}
    found_cost: Cost = {}
    if args.only != "load":
        found_cost = await costs(node, over_http)
    if args.only != "cost":
        peer = LlamaServer(
            processes, setting, args.llama_server, shlex.split(args.llama_flags), pinned=False, stripped=""
        )
        await peer.start()
        await read(msgspec.structs.replace(over_http, url=peer.url, own=OWN))
        found_load = await loads(args, node, peer, over_http)
        await peer.stop()
    await node.stop()
    return found_load, found_cost


def load_table(runs: Load) -> list[str]:
    """Medians of the rounds, and the ratio in each."""
    ours, theirs = runs[Modeld.name], runs[LlamaServer.name]
    rows = ["| | modeld | llama-server | modeld / llama-server, median (least to most) |", "| --- | --- | --- | --- |"]
    for key, label in ROWS.items():
        spread = ratios([run[key] for run in ours], [run[key] for run in theirs])
        cells = [number([run[key] for run in side]) for side in (ours, theirs)]
        rows.append(f"| {label} | {' | '.join(cells)} | {spread} |")
    return rows


def cost_table(found: Cost) -> list[str]:
    """Likewise of HTTP and gRPC."""
    rows = [
        "| clients | for a token | HTTP | gRPC | HTTP / gRPC, median (least to most) |",
        "| --- | --- | --- | --- | --- |",
    ]
    labels = {"wall": "time at the readers, us", "node": "processor time of the node without its engine, us"}
    labels |= {"frame": "the same for each arrival of text, us"}
    labels |= {"reader": "processor time of the readers, us", "arrival": "tokens that come at once, mean"}
    for count, runs in found.items():
        for key, label in labels.items():
            http, grpc = ([run[key] for run in runs[name]] for name in ("HTTP", "gRPC"))
            rows.append(f"| {count} | {label} | {number(http)} | {number(grpc)} | {ratios(http, grpc)} |")
    return rows


def ratios(mine: Sequence[float], their: Sequence[float]) -> str:
    """Of the pairs, which were measured side by side."""
    found = sorted(one / other for one, other in zip(mine, their, strict=True) if other)
    return f"{statistics.median(found):.2f} ({found[0]:.2f} to {found[-1]:.2f})" if found else ""


def number(values: Sequence[float], middle: Callable[[Sequence[float]], float] = statistics.median) -> str:
    """The median; large numbers without decimals."""
    value = middle(values)
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-server", type=Path, default=shutil.which("llama-server"), metavar="PATH")
    parser.add_argument("--llama-flags", default=FLAGS, help=f"default: {FLAGS}")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=default_threads(), help="of both servers' engines")
    parser.add_argument("--only", choices=("load", "cost"), help="default: both")
    parser.add_argument("--json", action="store_true", help="print every run instead of the tables")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    args = parser.parse_args()
    if args.llama_server is None and args.only != "cost":
        raise SystemExit("http_load: there is no llama-server on PATH; name one with --llama-server")
    try:
        with Processes() as processes:
            load_runs, cost_runs = asyncio.run(measure(args, processes))
    except BenchError as error:
        raise SystemExit(f"http_load: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    if args.json:
        print(json.dumps({"load": load_runs, "cost": cost_runs}, indent=1))
    told = f"{TINY.stem}; {machine()}; engine threads in this run: {args.threads}"
    if load_runs:
        each = (
            f"{args.streams} streams of {args.clients} clients, medians of {args.rounds} rounds of {args.seconds:g} s."
        )
        show("http-load", [*load_table(load_runs), "", f"{told}; {each}"], args)
    if cost_runs:
        show("http-cost", [*cost_table(cost_runs), "", f"{told}; medians of {COST_ROUNDS} rounds."], args)


def show(section: str, lines: list[str], args: argparse.Namespace) -> None:
    """Print a table, and write it."""
    page = "\n".join(lines)
    if not args.json:
        print(page)
    if args.write:
        write_section(section, page)


if __name__ == "__main__":
    main()
