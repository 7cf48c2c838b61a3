"""The node against the bare loop on the same files, as ratios: 1 is no loss.

    .venv/bin/python bench/compare.py [--rounds N] [--write]

Both are measured in turns within one run, so that a slow moment of the machine meets both, and medians are compared.
``--write`` puts the table into ``docs/benchmarks.md``. Wanted: decode at least 0.95 on the 90m shape, 0.3 on tiny.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import modeld
from make_shape import TINY, ensure
from node import measure, node_root
from page import machine, write_section

BENCH = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Case:
    """A model and how many tokens it gets and gives."""

    name: str
    model: Path
    prefill: int
    decode: int


async def compare(case: Case, root: Path, rounds: int) -> str:
    """A row of the table."""
    bare: list[dict[str, float]] = []
    node: list[dict[str, float]] = []
    async with await modeld.connect(root, start=True) as client:
        await measure(client, case.model, 64, 16, 0)
        for run in range(1, rounds + 1):
            bare.append(await asyncio.to_thread(run_bare, case))
            node.append(await measure(client, case.model, case.prefill, case.decode, run))
            print(f"{case.name} {run}/{rounds}: bare {bare[-1]} node {node[-1]}", file=sys.stderr, flush=True)

    def ratio(measured: str, base: str) -> str:
        return f"{median(node, measured) / median(bare, base):.2f}"

    cells = [case.name, f"{case.prefill} + {case.decode}", ratio("decode_client", "decode"), ratio("decode", "decode")]
    cells += [ratio("prefill_client", "prefill"), ratio("prefill", "prefill")]
    cells += [f"{median(bare, 'decode'):,.0f}", f"{median(bare, 'prefill'):,.0f}"]
    return f"| {' | '.join(cells)} |"


def run_bare(case: Case) -> dict[str, float]:
    """The bare loop needs a process of its own."""
    command = [
        sys.executable,
        str(BENCH / "raw.py"),
        str(case.model),
        f"--prefill={case.prefill}",
        f"--decode={case.decode}",
    ]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


def median(runs: list[dict[str, float]], name: str) -> float:
    """Of one number over the rounds."""
    return statistics.median(run[name] for run in runs)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    args = parser.parse_args()
    cases = (Case("tiny q8_0", TINY, 500, 1000), Case("90m q8_0", ensure("90m", "q8_0"), 2000, 256))
    with node_root() as root:
        rows = [asyncio.run(compare(case, root, args.rounds)) for case in cases]
    table = "\n".join(
        [
            "| model | tokens in + out | decode, client / bare | decode, engine / bare "
            "| prefill, client / bare | prefill, engine / bare | bare decode, tokens/s | bare prefill, tokens/s |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
            *rows,
            "",
            f"{machine()}; medians of {args.rounds} rounds.",
        ]
    )
    print(table)
    if args.write:
        write_section("compare", table)


if __name__ == "__main__":
    main()
