"""Soak with faults: many sessions on one node while engines are killed and answers are cancelled; owners that end; and
HTTP, fuzzed.

    .venv/bin/python scripts/long.py [--minutes 20] [--soak-minutes 30] [--fuzz-minutes 10] [--rounds 200] [--seed N]

Writes what it found to ``docs/long-run.md`` and exits 1 when something was found that must not be: an untyped error, a
typed one that no fault explains, answers that went wrong, or a node whose memory grows.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import modeld
from fuzz import fuzzed
from modeld.types import DecodeOptions, Message
from soak import run as agents_soak
from takeover import Takeovers, takeovers

PAGE = Path(__file__).resolve().parent.parent / "docs" / "long-run.md"
WORDS = ("river", "stone", "lotus", "amber", "copper", "kite", "maple", "silver")
WORKERS, SESSIONS, TURNS = 4, 12, 8
FAULT_SECONDS = 10.0
CLIENTS = 16
EXPLAINED = {"engine_crashed", "stale_generation", "model_busy"}
"""Codes that a killed or unloaded engine may give to the calls it was busy with."""
GREEDY = DecodeOptions(temperature=0, max_tokens=64)


class Soak:
    """One run; it owns all the counts."""

    def __init__(self, client: modeld.Client, seed: int, seconds: float) -> None:
        self.client = client
        self.random = random.Random(seed)
        self.end = time.monotonic() + seconds
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.rss: list[int] = []
        self.found: list[str] = []

    async def run(self) -> None:
        """All workers, the faults and the meter, to the end of the time."""
        async with asyncio.TaskGroup() as group:
            for worker in range(WORKERS):
                group.create_task(self.work(worker))
            group.create_task(self.faults())
            group.create_task(self.meter())

    async def work(self, worker: int) -> None:
        """Conversations, one after the other, each error counted by its code."""
        while time.monotonic() < self.end:
            try:
                await self.converse(f"{worker}-{self.random.randrange(SESSIONS)}")
            except modeld.ModeldError as e:
                self.errors[e.code] += 1
                if e.code not in EXPLAINED:
                    self.note(f"{e.code}: {e}")
            except Exception as e:
                self.errors[type(e).__name__] += 1
                self.note(f"untyped {type(e).__name__}: {e}")

    async def converse(self, name: str) -> None:
        """Some turns of one session; now and then the answer is cancelled instead of read."""
        session = await self.client.open_session("tiny", modeld.SessionConfig(workspace="long", name=name))
        history: list[Message] = []
        for _ in range(self.random.randint(1, TURNS)):
            text = " ".join(self.random.choices(WORDS, k=self.random.randint(2, 6)))
            history.append(Message("user", f"Repeat: {text}"))
            async with session.turn(history, options=GREEDY) as stream:
                if self.random.random() < 0.2:
                    async for _ in stream:
                        break
                    await stream.cancel()
                    self.counts["cancelled"] += 1
                    history.pop()
                    continue
                result = await stream.join()
            self.counts["answers"] += 1
            if result.text.strip() != text:
                await self.ask_again(name, history, result.text)
            self.counts["reused"] += result.receipt.reused
            self.counts["prefilled"] += result.receipt.prefilled
            history.append(result.message)
        await session.close()

    async def ask_again(self, name: str, history: list[Message], answer: str) -> None:
        """The model is small and errs. A session that starts anew errs the same way, unless warm KV was wrong."""
        session = await self.client.open_session("tiny", modeld.SessionConfig(workspace="again", name=name))
        async with session.turn(history, options=GREEDY) as stream:
            same = (await stream.join()).text == answer
        self.counts["not as asked, cold too" if same else "not as asked, cold differs"] += 1

    async def faults(self) -> None:
        """Kill the engine or unload it, in turns; the next call must load again."""
        while time.monotonic() < self.end - FAULT_SECONDS:
            await asyncio.sleep(FAULT_SECONDS)
            if self.random.random() < 0.3:
                await self.client.unload()
                self.counts["unloads"] += 1
                continue
            engine = (await self.client.status()).engine
            if engine is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(engine.pid, signal.SIGKILL)
                    self.counts["kills"] += 1

    async def meter(self) -> None:
        """The node's memory, and that its status answers at any time."""
        while time.monotonic() < self.end:
            started = time.monotonic()
            self.rss.append((await self.client.status()).rss)
            if time.monotonic() - started > 1:
                self.note(f"status took {time.monotonic() - started:.1f} s")
            await asyncio.sleep(1)

    def note(self, text: str) -> None:
        """Keep the first findings; their number is counted."""
        self.counts["findings"] += 1
        if len(self.found) < 20:
            self.found.append(text)

    def judge(self) -> None:
        """What only the whole run shows."""
        # Batch shapes change the arithmetic a little, so near-ties may fall differently; lost KV would show far more.
        if self.counts["not as asked, cold differs"] > 0.02 * self.counts["answers"] or not self.counts["answers"]:
            self.note("too many answers differ from those of a session that starts anew")
        quarter = len(self.rss) // 4
        if quarter >= 15:
            # The first quarter warms up. What then grows by more than 16 MiB keeps something.
            early, late = (statistics.median(part) for part in (self.rss[quarter : 2 * quarter], self.rss[-quarter:]))
            if late - early > 16 * 2**20:
                self.note(f"the node grew from {early / 2**20:.0f} to {late / 2**20:.0f} MiB")


Told = tuple[list[str], list[str]]
"""Lines of the page, and findings."""


def report(soak: Soak, ownership: Takeovers, agents: Told, http: Told, minutes: float, seed: int) -> str:
    """The page."""
    counts = [f"| {name} | {count:,} |" for name, count in sorted(soak.counts.items())]
    errors = [f"| error `{code}` | {count:,} |" for code, count in sorted(soak.errors.items())]
    found = [*soak.found, *ownership.found, *agents[1], *http[1]]
    memory = f"{min(soak.rss) / 2**20:.0f} to {max(soak.rss) / 2**20:.0f} MiB" if soak.rss else "not seen"
    return "\n".join(
        [
            "# Long run",
            "",
            f"`make long`: {WORKERS} workers and {WORKERS * SESSIONS} sessions of the tiny model on one node. Each",
            f"{FAULT_SECONDS:.0f} s the engine is killed or unloaded; a fifth of the answers are cancelled.",
            f"{minutes:g} minutes, seed {seed}.",
            "",
            "| what | count |",
            "| --- | --- |",
            *counts,
            *errors,
            f"| memory of the node | {memory} |",
            "",
            *ownership.lines(),
            "",
            *agents[0],
            "",
            *http[0],
            "",
            "Findings:" if found else "No findings.",
            *(f"- {text}" for text in found),
            "",
        ]
    )


async def soak(root: str, seed: int, minutes: float) -> Soak:
    """Start a node, run, and let whatever the run left end."""
    async with await modeld.connect(root, start=True) as client:
        run = Soak(client, seed, minutes * 60)
        await run.run()
        run.judge()
        return run


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--soak-minutes", type=float, default=30, help="of agents on one node without engine faults")
    parser.add_argument("--fuzz-minutes", type=float, default=10, help="of schemathesis on a node's HTTP")
    parser.add_argument("--rounds", type=int, default=200, help="owners that are killed or stopped")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    args = parser.parse_args()
    ownership = takeovers(args.rounds, args.seed)
    with tempfile.TemporaryDirectory(prefix="modeld-long-") as root:
        try:
            run = asyncio.run(soak(root, args.seed, args.minutes))
        finally:
            subprocess.run([Path(sys.executable).with_name("modeld"), "stop", "--data-root", root], check=False)
    agents = agents_soak(args.soak_minutes, CLIENTS, args.seed)
    http = fuzzed(args.fuzz_minutes, args.seed)
    page = report(run, ownership, agents, http, args.minutes, args.seed)
    PAGE.write_text(page)
    print(page)
    return 1 if run.found or ownership.found or agents[1] or http[1] else 0


if __name__ == "__main__":
    sys.exit(main())
