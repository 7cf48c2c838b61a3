"""The node with its OpenVINO engine against OpenVINO GenAI's own pipeline on the same IR, as ratios: 1 is no loss.

    MODELD_CONVERT_PYTHON=DIR/bin/python .venv/bin/python bench/ov_compare.py [--rounds N] [--write]

Then streams that decode side by side in the node, against one: tokens per second of all.

Both take turns within one run and medians are compared. The interpreter is that of an environment with the extra
``openvino-convert``; it is needed once, for the IR of the 90m shape in ``bench/models``. Wanted: decode at least 0.9.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import modeld
from compare import median
from make_hf import write_hf
from make_shape import MODELS, SHAPES
from modeld.node.importing import import_model
from modeld.session import ModelService
from modeld.types import DecodeOptions, Message
from node import WORDS, measure, node_root
from page import machine, write_section

BENCH = Path(__file__).resolve().parent
PREFILL, DECODE = 2000, 256

STREAMS, HELD = (1, 2, 4), (64, 512, 2000)
"""Streams at once, and about how many tokens each session holds before."""

Runs = list[dict[str, float]]


def ensure_ir(shape: str) -> Path:
    """The IR of this shape, made if it is not there."""
    out = MODELS / f"shape-{shape}-ov"
    if not out.exists():
        source = MODELS / f"shape-{shape}-hf"
        write_hf(source, SHAPES[shape])
        import_model(source, MODELS, out.name, say=lambda line: print(line, file=sys.stderr))
    return out


async def compare(model: Path, root: Path, rounds: int) -> tuple[Runs, Runs, Runs]:
    """Runs of the pipeline with the node's numbers, with its own, and of the node."""
    exact: Runs = []
    shipped: Runs = []
    node: Runs = []
    async with await modeld.connect(root, start=True) as client:
        await measure(client, model, 64, 16, 0)
        for run in range(1, rounds + 1):
            exact.append(await asyncio.to_thread(pipeline, model))
            node.append(await measure(client, model, PREFILL, DECODE, run))
            shipped.append(await asyncio.to_thread(pipeline, model, "--as-shipped"))
            print(f"{run}/{rounds}: {exact[-1]} {shipped[-1]} node {node[-1]}", file=sys.stderr, flush=True)
    return exact, shipped, node


async def side_by_side(model: Path, root: Path, rounds: int) -> dict[tuple[int, int], list[float]]:
    """Tokens per second of all streams, by what each session held and how many there were."""
    found: dict[tuple[int, int], list[float]] = {(held, count): [] for held in HELD for count in STREAMS}
    async with await modeld.connect(root, start=True) as client:
        await measure(client, model, 64, 16, 0)
        for run in range(1, rounds + 1):
            for (held, count), rates in found.items():
                rates.append(await decode_all(client, model, held, count, run))
                print(f"{run}/{rounds}: {count} x {held}: {rates[-1]:.0f}", file=sys.stderr, flush=True)
    return found


async def decode_all(client: ModelService, model: Path, held: int, count: int, run: int) -> float:
    """Sessions get their beginnings; then each answers a short question, all at once, on the clock."""
    words = WORDS.split()
    sessions, asked = [], []
    for number in range(count):
        config = modeld.SessionConfig(workspace="bench", name=f"{number}", context=max(HELD) + DECODE + 512)
        sessions.append(session := await client.open_session(modeld.ModelRef(path=str(model)), config))
        text = f"{run} {number}: " + " ".join(words[i % len(words)] for i in range(held))
        messages = [Message("user", text)]
        short = DecodeOptions(max_tokens=1, temperature=0, ignore_eos=True)
        answer = await session.turn(messages, options=short).join()
        asked.append([*messages, answer.message, Message("user", "More.")])
    options = DecodeOptions(max_tokens=DECODE, temperature=0, ignore_eos=True)
    began = time.perf_counter()
    turns = (session.turn(messages, options=options).join() for session, messages in zip(sessions, asked, strict=True))
    results = await asyncio.gather(*turns)
    seconds = time.perf_counter() - began
    for session in sessions:
        await session.close()
    return sum(result.usage.output or 0 for result in results) / seconds


def streams_table(found: dict[tuple[int, int], list[float]]) -> list[str]:
    """A row for each length."""
    lines = [
        "| each holds | 2 streams / 1 | 4 streams / 1 | tokens/s of all: 1 stream | 2 | 4 |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for held in HELD:
        one, two, four = (statistics.median(found[held, count]) for count in STREAMS)
        lines.append(f"| {held:,} | {two / one:.2f} | {four / one:.2f} | {one:,.0f} | {two:,.0f} | {four:,.0f} |")
    return lines


def pipeline(model: Path, *options: str) -> dict[str, float]:
    """In a process of its own."""
    command = [sys.executable, str(BENCH / "ov_raw.py"), str(model), f"--prefill={PREFILL}", f"--decode={DECODE}"]
    found: dict[str, float] = json.loads(subprocess.run([*command, *options], check=True, capture_output=True).stdout)
    return found


def row(name: str, base: Runs, node: Runs) -> str:
    """A row of the table."""
    pairs = (("decode_client", "decode"), ("decode", "decode"), ("prefill_client", "prefill"), ("prefill", "prefill"))
    cells = [f"{median(node, ours) / median(base, theirs):.2f}" for ours, theirs in pairs]
    cells += [f"{median(runs, what):,.0f}" for what in ("decode", "prefill") for runs in (node, base)]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    args = parser.parse_args()
    with node_root() as root:
        exact, shipped, node = asyncio.run(compare(ensure_ir("90m"), root, args.rounds))
        streams = asyncio.run(side_by_side(ensure_ir("90m"), root, args.rounds))
    table = "\n".join(
        [
            "| LLMPipeline | decode, client | decode, engine | prefill, client | prefill, engine "
            "| decode, tokens/s: node | pipeline | prefill, tokens/s: node | pipeline |",
            "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
            row("f32, KV f16, as the node has it", exact, node),
            row("as shipped", shipped, node),
            "",
            f"{machine()}; 90m shape, {PREFILL} + {DECODE} tokens, medians of {args.rounds} rounds.",
            "",
            *streams_table(streams),
            "",
            f"Streams of {DECODE} tokens each through the node, from the question on; what it costs to bring them "
            "together is in it.",
        ]
    )
    print(table)
    if args.write:
        write_section("openvino", table)


if __name__ == "__main__":
    main()
