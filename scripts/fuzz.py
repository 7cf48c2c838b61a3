"""Fuzz a node over HTTP: schemathesis sends what the published document allows, and what it does not.

    .venv/bin/python scripts/fuzz.py [--seconds 120] [--seed N]

Exits 1 when something was found: a status of 500 or above, an error that is not in the dialect's shape, an answer of
a type or status that the document does not have, a body that it forbids and the node takes, or a route that lets
strangers in.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import random
import re
import sys
import tempfile
from pathlib import Path

from modeld.http.door import HttpConfig, HttpDoor
from modeld.node.config import NodeConfig
from modeld.transport.host import HostConfig, hosted
from modeld.transport.security import read_token

HERE = Path(__file__).resolve().parent
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "ignored_auth",
    "unsupported_method",
    "error_has_the_dialects_shape",
)
OVER = 60.0
"""Seconds that a run may take beyond its budget, before it is ended and counts as failed."""


async def fuzz(seconds: float, seed: int) -> tuple[int, str]:
    """Exit code and output of one run against a node of its own."""
    with tempfile.TemporaryDirectory(prefix="modeld-fuzz-") as folder:
        root = Path(folder, "root")
        config = HostConfig(node=NodeConfig(data_root=root, allow_fake=True))
        door = HttpDoor(HttpConfig(data_root=root, host="127.0.0.1", port=0, required=True))
        async with hosted(config, lambda: None, door):
            return await _run(door.state, read_token(root), folder, seconds, seed)


async def _run(url: str, token: str, folder: str, seconds: float, seed: int) -> tuple[int, str]:
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{url}/openapi.json", "--no-color"]
    command += [f"--header=Authorization: Bearer {token}", f"--checks={','.join(CHECKS)}", f"--seed={seed}"]
    command += [f"--max-time={seconds:.0f}", "--request-timeout=30", "--workers=2", "--suppress-health-check=all"]
    command += ["--phases=examples,coverage,fuzzing", "--continue-on-failure"]
    env = os.environ | {"SCHEMATHESIS_HOOKS": "fuzz_hooks", "PYTHONPATH": str(HERE)}
    child = await asyncio.create_subprocess_exec(
        *command, cwd=folder, env=env, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        out, _ = await asyncio.wait_for(child.communicate(), seconds + OVER)
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return child.returncode or 0, out.decode("utf-8", "replace")


def fuzzed(minutes: float, seed: int) -> tuple[list[str], list[str]]:
    """A run as lines for a page, and what it found that must not be."""
    code, output = asyncio.run(fuzz(minutes * 60, seed))
    cases = re.search(r"Test cases:\s+(\d+) generated", output)
    sent = f"{int(cases[1]):,}" if cases else "no"
    page = f"schemathesis on a node's HTTP by its document, {minutes:g} minutes, seed {seed}: {sent} requests."
    failures = output.rpartition("Failures:")[2].partition("\n\n")[0].split("\n") if code else []
    return [page], [line.strip() for line in failures if line.strip()] or (["the run broke off"] if code else [])


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--seed", type=int, default=random.randrange(2**32))
    args = parser.parse_args()
    # What an engine that ended has left as its last words.
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("modeld.engine").setLevel(logging.INFO)
    code, output = asyncio.run(fuzz(args.seconds, args.seed))
    print(output)
    return 1 if code else 0


if __name__ == "__main__":
    sys.exit(main())
