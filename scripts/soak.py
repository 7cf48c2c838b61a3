"""Agents on one node for half an hour: is memory flat, and does the ledger say what is really held?

    .venv/bin/python scripts/soak.py [--minutes 30] [--clients 16] [--seed N]

Each client is a process of its own with conversations that grow, branch and are given up in the middle of an answer;
one of them is killed every few seconds and replaced. Once a minute, and at the end, everything held is counted again.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
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
from modeld.types import DecodeOptions, Message

WORDS = ("river", "stone", "lotus", "amber", "copper", "kite", "maple", "silver")
NAMES, TURNS = 6, 6
KILL_SECONDS = 5.0
WARM_SHARE = 1 / 3
"""Of the time, after which memory must be flat: the tenth minute of thirty."""
FLAT = 0.05
RAM, DISK = 96 * 2**20, 256 * 2**20
OPTIONS = DecodeOptions(temperature=0, max_tokens=48)


async def client(root: str, number: int, seed: int) -> None:
    """One agent, until it is killed. A typed error is its own affair; anything else ends it, and shows."""
    rng = random.Random(seed)
    system = Message("system", "You repeat what you are told. " + " ".join(WORDS * 8))
    async with await modeld.connect(root) as node:
        while True:
            name = f"{number}-{rng.randrange(NAMES)}"
            session = await node.open_session("tiny", modeld.SessionConfig(workspace="soak", name=name))
            history = [system]
            for turn in range(rng.randint(1, TURNS)):
                history.append(Message("user", f"Repeat: {' '.join(rng.choices(WORDS, k=rng.randint(2, 40)))}"))
                async with session.turn(history, options=OPTIONS) as stream:
                    if rng.random() < 0.2:
                        async for _ in stream:
                            if rng.random() < 0.3:
                                break
                        await stream.cancel()
                        history.pop()
                        continue
                    history.append((await stream.join()).message)
                if rng.random() < 0.2:
                    branch = await session.fork(f"{number}-branch-{turn % 2}")
                    await branch.turn([*history, Message("user", "Repeat: kite")], options=OPTIONS).join()
                    await branch.close()
            await session.close()


class Clients:
    """The processes; it owns them and ends every one."""

    def __init__(self, root: str, count: int, seed: int) -> None:
        self._root = root
        self._random = random.Random(seed)
        self._processes = [self._start(number) for number in range(count)]
        self.killed = 0
        self.failed: list[str] = []

    def _start(self, number: int) -> subprocess.Popen[str]:
        command = [sys.executable, __file__, "--client", str(number), "--root", self._root]
        command += ["--seed", str(self._random.randrange(2**32))]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)

    def kill_one(self) -> None:
        """Kill one in the middle of whatever it does, and start another in its place."""
        number = self._random.randrange(len(self._processes))
        process = self._processes[number]
        if process.poll() is None:
            process.kill()
        _, text = process.communicate()
        if process.returncode != -signal.SIGKILL:
            self.failed.append(f"client {number} ended with {process.returncode}: {text.strip()[-300:]}")
        self.killed += 1
        self._processes[number] = self._start(number)

    def end(self) -> None:
        """Kill them all."""
        for process in self._processes:
            process.kill()
            process.communicate()


class Meter:
    """What was seen of the node, and what of it must not be."""

    def __init__(self, root: str) -> None:
        self._root = Path(root)
        self._started = time.monotonic()
        self.rss: list[tuple[float, int]] = []
        self.found: list[str] = []
        self.seen: Counter[str] = Counter()

    async def look(self, node: modeld.Client) -> None:
        """One sample of memory."""
        status = await node.status()
        # The node's and the engine's; what is on disk is not in it.
        self.rss.append((time.monotonic() - self._started, status.rss + (status.engine.rss if status.engine else 0)))

    async def audit(self, node: modeld.Client) -> None:
        """Count again, while everything runs."""
        report = await node.audit()
        self.seen["audits"] += 1
        self.found += report.faults
        ledger = report.ledger
        for kind, held, budget in (
            ("RAM", ledger.ram, ledger.ram_budget),
            ("disk", ledger.disk, ledger.disk_budget),
            ("the engine", ledger.cells_used, ledger.cells),
        ):
            if held > budget:
                self.found.append(f"{kind} holds {held} of {budget}")

    async def settle(self, node: modeld.Client) -> None:
        """Nobody asks any more: what the files take must be what the ledger says."""
        for _ in range(100):
            before = (await node.status()).ledger
            await asyncio.sleep(3)
            after = (await node.status()).ledger
            if before == after and not (await node.status()).active:
                break
        await self.audit(node)
        files = sum(path.stat().st_size for path in (self._root / "kv").rglob("*") if path.is_file())
        if files != after.disk:
            self.found.append(f"the files take {files} bytes, the ledger says {after.disk}")
        self.seen["bytes in files"], self.seen["bytes in RAM"] = after.disk, after.ram
        self.seen["cells in use"], self.seen["sessions"] = after.cells_used, (await node.status()).sessions

    def judge(self, seconds: float) -> str:
        """Memory by minute after it is warm; a line for the page."""
        warm = [(at, size) for at, size in self.rss if at > seconds * WARM_SHARE]
        minutes = [
            statistics.median(part)
            for minute in range(int(seconds) // 60 + 1)
            if len(part := [size for at, size in warm if minute <= at / 60 < minute + 1]) > 10
        ]
        if len(minutes) < 2:
            return "too short to judge memory"
        low, high = min(minutes), max(minutes)
        if high > low * (1 + FLAT):
            self.found.append(f"memory went from {low / 2**20:.0f} to {high / 2**20:.0f} MiB in the last two thirds")
        return f"{low / 2**20:.1f} to {high / 2**20:.1f} MiB, {high / low - 1:.1%} apart, {len(minutes)} minutes"


async def soak(root: str, count: int, seed: int, seconds: float) -> tuple[Meter, Clients, str]:
    """Run it against a node that serves already."""
    meter = Meter(root)
    async with await modeld.connect(root, timeout=30) as node:
        await node.load("tiny")
        clients = Clients(root, count, seed)
        try:
            end, kill, audit = time.monotonic() + seconds, time.monotonic() + KILL_SECONDS, time.monotonic() + 60
            while time.monotonic() < end:
                await asyncio.sleep(1)
                await meter.look(node)
                if time.monotonic() > kill:
                    await asyncio.to_thread(clients.kill_one)
                    kill += KILL_SECONDS
                if time.monotonic() > audit:
                    await meter.audit(node)
                    audit += 60
        finally:
            clients.end()
        memory = meter.judge(seconds)
        await meter.settle(node)
    meter.found += clients.failed
    return meter, clients, memory


def run(minutes: float, count: int, seed: int) -> tuple[list[str], list[str]]:
    """Start a node, soak it, stop it.

    :returns: lines for the page, and findings.
    """
    program = str(Path(sys.executable).with_name("modeld"))
    with tempfile.TemporaryDirectory(prefix="modeld-soak-") as root:
        serve = [program, "serve", "--data-root", root, "--ram", f"{RAM // 2**20}MiB", "--disk", f"{DISK // 2**20}MiB"]
        node = subprocess.Popen(serve, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not (Path(root) / "owner.json").exists() and node.poll() is None:
                time.sleep(0.05)
            meter, clients, memory = asyncio.run(soak(root, count, seed, minutes * 60))
        finally:
            node.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                node.wait(30)
            node.kill()
    lines = [
        f"{count} clients, each a process, on one node for {minutes:g} minutes, seed {seed}: conversations that grow",
        f"and branch, a fifth of the answers given up; every {KILL_SECONDS:g} s a client is killed ({clients.killed}).",
        "",
        "| what | seen |",
        "| --- | --- |",
        f"| memory of node and engine after {minutes * WARM_SHARE:.0f} minutes, by minute | {memory} |",
        *(f"| {what} | {number:,} |" for what, number in meter.seen.items()),
    ]
    return lines, meter.found


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    parser.add_argument("--client", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--root", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.client is not None:
        asyncio.run(client(args.root, args.client, args.seed))
        return 1
    lines, found = run(args.minutes, args.clients, args.seed)
    print("\n".join([*lines, "", *(f"FOUND {text}" for text in found)]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
