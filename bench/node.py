"""The measurement of ``raw.py`` through a node: gRPC, scheduler, template, text and all. Prints JSON.

    .venv/bin/python bench/node.py MODEL.gguf [--prefill N] [--decode M] [--data-root DIR]

Without ``--data-root`` a node of its own is started and stopped again. Rates ending in ``_client`` are wall-clock time
at the client: the prompt up to the first text, and decode from there on. The others are the receipt's own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import modeld
from modeld.session import ModelService
from modeld.types import DecodeOptions, EndPart, Message, TextPart, ThinkingPart

WORDS = "river stone lotus amber copper kite maple silver"
"""Words of the tiny model's vocabulary, one token each."""


async def measure(client: ModelService, model: Path, prefill: int, decode: int, run: int) -> dict[str, float]:
    """One turn of about ``prefill`` tokens, ``run`` first in its text so that no two runs share a prefix."""
    words = WORDS.split()
    text = f"{run}: " + " ".join(words[i % len(words)] for i in range(prefill))
    session = await client.open_session(
        modeld.ModelRef(path=str(model)), modeld.SessionConfig(workspace="bench", context=prefill + decode + 512)
    )
    options = DecodeOptions(max_tokens=decode, temperature=0, ignore_eos=True)
    first = 0.0
    end: EndPart | None = None
    start = time.perf_counter()
    async with session.turn([Message("user", text)], options=options) as stream:
        async for part in stream:
            if not first and isinstance(part, TextPart | ThinkingPart):
                first = time.perf_counter()
            if isinstance(part, EndPart):
                end = part
    finish = time.perf_counter()
    await session.close()
    if end is None or end.usage.output != decode:
        raise SystemExit(f"node: {decode} tokens were asked for, the answer ended with {end}")
    receipt = end.cost()
    return {
        "prefill": receipt.prefilled / receipt.prefill_seconds,
        "decode": decode / receipt.decode_seconds,
        "prefill_client": receipt.prefilled / (first - start),
        "decode_client": (decode - 1) / (finish - first),
        "prefilled": receipt.prefilled,
    }


@contextlib.contextmanager
def node_root() -> Iterator[Path]:
    """A data root for a node of its own, which is stopped at the end."""
    with tempfile.TemporaryDirectory(prefix="modeld-bench-") as root:
        try:
            yield Path(root)
        finally:
            command = Path(sys.executable).with_name("modeld")
            subprocess.run([command, "stop", "--data-root", root], check=False, stdout=subprocess.DEVNULL)


async def run_once(root: Path, model: Path, prefill: int, decode: int) -> dict[str, float]:
    """A warm-up, which loads the model, and one measurement."""
    async with await modeld.connect(root, start=True) as client:
        await measure(client, model, 64, 16, 0)
        return await measure(client, model, prefill, decode, 1)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--prefill", type=int, default=2000)
    parser.add_argument("--decode", type=int, default=256)
    parser.add_argument("--data-root", type=Path)
    args = parser.parse_args()
    with contextlib.nullcontext(args.data_root) if args.data_root else node_root() as root:
        print(json.dumps(asyncio.run(run_once(root, args.model.resolve(), args.prefill, args.decode))))


if __name__ == "__main__":
    main()
