"""Owners killed and stopped, round after round, with real processes that wait for their place."""

from __future__ import annotations

import queue
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field

TTL = 0.5
CONTENDERS = 2

# The monotonic clock is one for all processes of the machine.
CONTENDER = """
import asyncio, sys, time
from modeld.node.owner import OwnerLease, keep
lease = OwnerLease.acquire(sys.argv[1], ttl=float(sys.argv[2]), evict=True, wait=None)
print(lease.epoch, time.monotonic(), flush=True)
asyncio.run(keep(lease))
"""


@dataclass
class Takeovers:
    """What the rounds showed: seconds from the fault to the next owner, and what must not be."""

    after: dict[str, list[float]] = field(default_factory=lambda: {"SIGKILL": [], "SIGSTOP": []})
    found: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """For the page."""
        bounds = {"SIGKILL": "median below 0.5", "SIGSTOP": f"each below {TTL + 1:g}"}
        return [
            f"Owners of one data root, {CONTENDERS} contenders waiting, ttl {TTL:g} s: seconds from one to the next.",
            "",
            "| signal | rounds | median | worst | bound |",
            "| --- | --- | --- | --- | --- |",
            *(
                f"| {name} | {len(took)} | {statistics.median(took):.3f} | {max(took):.3f} | {bounds[name]} |"
                for name, took in self.after.items()
                if took
            ),
        ]


class Contest:
    """The processes that want one data root."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._answers: queue.SimpleQueue[tuple[subprocess.Popen[str], str]] = queue.SimpleQueue()
        self.running: list[subprocess.Popen[str]] = []

    def join(self) -> None:
        """Start one more."""
        command = [sys.executable, "-c", CONTENDER, self._root, str(TTL)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.running.append(process)
        threading.Thread(target=self._read, args=(process,), daemon=True).start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._answers.put((process, line))

    def next_owner(self) -> tuple[subprocess.Popen[str], int, float]:
        """The process that says it became owner, its epoch, and when."""
        process, line = self._answers.get(timeout=30)
        epoch, at = line.split()
        return process, int(epoch), float(at)

    def close(self) -> None:
        """End all."""
        for process in self.running:
            process.kill()
            process.wait()


def takeovers(rounds: int, seed: int) -> Takeovers:
    """Run them."""
    result, chance = Takeovers(), random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="modeld-takeover-") as root:
        contest = Contest(root)
        try:
            for _ in range(CONTENDERS + 1):
                contest.join()
            owner, epoch, _ = contest.next_owner()
            for number in range(rounds):
                time.sleep(chance.uniform(0, TTL))
                fault = chance.choice((signal.SIGKILL, signal.SIGSTOP))
                started = time.monotonic()
                owner.send_signal(fault)
                successor, next_epoch, at = contest.next_owner()
                took = at - started
                result.after[fault.name].append(took)
                if next_epoch <= epoch:
                    result.found.append(f"round {number}: epoch {next_epoch} came after {epoch}")
                if fault == signal.SIGSTOP and took > TTL + 1:
                    result.found.append(f"round {number}: {took:.2f} s until a stopped owner was replaced")
                owner.send_signal(signal.SIGCONT)
                if owner.wait(5) != -signal.SIGKILL:
                    result.found.append(
                        f"round {number}: the owner before ended with {owner.returncode}, not by a kill"
                    )
                contest.running.remove(owner)
                contest.join()
                owner, epoch = successor, next_epoch
        except (queue.Empty, subprocess.TimeoutExpired) as error:
            result.found.append(f"nobody became owner, or the one before lived on: {error!r}")
        finally:
            contest.close()
    if result.after["SIGKILL"] and statistics.median(result.after["SIGKILL"]) > 0.5:
        result.found.append("a killed owner was replaced too slowly")
    return result
