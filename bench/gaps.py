"""How a running stream flows while another client's long prompt is computed. Prints JSON.

    .venv/bin/python bench/gaps.py MODEL.gguf [--prompt N] [--data-root DIR]

The same length of prompt is computed twice: alone, and beside a stream that decodes. A *gap* is the time between two
arrivals of text at the reading client, in milliseconds. The long prompts are asked for by a process of their own, so
that the node sees two clients. ``calm_*`` are the gaps before the prompt came.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import modeld
from modeld.session import ModelService
from modeld.types import DecodeOptions, EndPart, Message, ProgressPart, StreamPart, TextPart, ThinkingPart
from node import WORDS, node_root

CALM_SECONDS = 3.0
MARGIN = 2048
"""Tokens of the window beyond the prompt: more than the stream generates meanwhile."""


async def prefill(client: ModelService, model: Path, tokens: int, run: int) -> dict[str, float]:
    """Compute one prompt of about ``tokens`` tokens, ``run`` first in its text so that no two share a prefix."""
    words = WORDS.split()
    text = f"{run}: " + " ".join(words[i % len(words)] for i in range(tokens))
    config = modeld.SessionConfig(workspace="bench", name=f"long-{run}", context=tokens + MARGIN)
    session = await client.open_session(modeld.ModelRef(path=str(model)), config)
    options = DecodeOptions(max_tokens=1, temperature=0, ignore_eos=True)
    told, longest, progress = time.perf_counter(), 0.0, 0
    end: EndPart | None = None
    async with session.turn([Message("user", text)], options=options) as stream:
        async for part in stream:
            now = time.perf_counter()
            told, longest = now, max(longest, now - told)
            progress += isinstance(part, ProgressPart)
            if isinstance(part, EndPart):
                end = part
    if end is None:
        raise SystemExit("gaps: the long prompt's stream had no end")
    receipt = end.cost()
    return {
        "tokens": receipt.prefilled,
        "tokens_per_second": receipt.prefilled / receipt.prefill_seconds,
        "progress_parts": progress,
        "longest_silence_s": longest,
    }


class Reader:
    """Reads a stream and notes when text came."""

    def __init__(self) -> None:
        self.arrivals: list[float] = []

    async def read(self, client: ModelService, model: Path, tokens: int) -> None:
        """Go on until cancelled, or to the end of the window."""
        config = modeld.SessionConfig(workspace="bench", name="stream", context=tokens + MARGIN)
        session = await client.open_session(modeld.ModelRef(path=str(model)), config)
        options = DecodeOptions(temperature=0, ignore_eos=True)
        async with session.turn([Message("user", "river stone lotus")], options=options) as stream:
            async for part in stream:
                self.note(part)

    def note(self, part: StreamPart) -> None:
        """A part came."""
        if isinstance(part, TextPart | ThinkingPart):
            self.arrivals.append(time.perf_counter())

    def gaps(self, start: float, end: float) -> list[float]:
        """Milliseconds between arrivals that reach into the time from ``start`` to ``end``."""
        pairs = zip(self.arrivals, self.arrivals[1:], strict=False)
        return [1000 * (after - before) for before, after in pairs if after > start and before < end]


def summary(gaps: list[float], name: str) -> dict[str, float]:
    """Median, 99th percentile and worst."""
    ordered = sorted(gaps)
    median = statistics.median(ordered)
    return {
        f"{name}_median_ms": median,
        f"{name}_p99_ms": ordered[int(0.99 * (len(ordered) - 1))],
        f"{name}_worst_ms": ordered[-1],
        f"{name}_worst_of_median": ordered[-1] / median,
        f"{name}_gaps": len(ordered),
    }


async def ask(root: Path, model: Path, tokens: int, run: int) -> dict[str, float]:
    """:func:`prefill` by another process."""
    arguments = [str(Path(__file__)), str(model), "--prompt", str(tokens), "--data-root", str(root), "--run", str(run)]
    process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)
    out, _ = await process.communicate()
    if process.returncode:
        raise SystemExit(f"gaps: the client with the long prompt ended with code {process.returncode}")
    result: dict[str, float] = json.loads(out)
    return result


async def measure(root: Path, model: Path, tokens: int) -> dict[str, Any]:
    """Alone, then beside a stream."""
    async with await modeld.connect(root, start=True) as client:
        # The first loads the model, with a window that all that follows fits.
        await prefill(client, model, tokens // 16, 0)
        alone = await ask(root, model, tokens, 1)
        reader = Reader()
        reading = asyncio.ensure_future(reader.read(client, model, tokens))
        await asyncio.sleep(CALM_SECONDS)
        start = time.perf_counter()
        beside = await ask(root, model, tokens, 2)
        end = time.perf_counter()
        reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await reading
    return {
        **summary(reader.gaps(0, start), "calm"),
        **summary(reader.gaps(start, end), "beside"),
        "alone": alone,
        "beside": beside,
        "speed_kept": beside["tokens_per_second"] / alone["tokens_per_second"],
    }


async def only_prefill(root: Path, model: Path, tokens: int, run: int) -> dict[str, float]:
    """What the process of the other client does."""
    async with await modeld.connect(root) as client:
        return await prefill(client, model, tokens, run)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompt", type=int, default=8000)
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--run", type=int, help="only compute the prompt of this run, on the node of --data-root")
    args = parser.parse_args()
    model = args.model.resolve()
    if args.run is not None:
        print(json.dumps(asyncio.run(only_prefill(args.data_root, model, args.prompt, args.run))))
        return
    with contextlib.nullcontext(args.data_root) if args.data_root else node_root() as root:
        print(json.dumps(asyncio.run(measure(root, model, args.prompt)), indent=1))


if __name__ == "__main__":
    main()
