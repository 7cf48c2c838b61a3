"""What a streamed chunk costs the client, and what an import costs: modeld beside the SDKs, any-llm and LiteLLM.

    .venv/bin/python bench/providers.py [--write] [--rounds N]

CPU time of the reading process, per chunk, from a loopback server that is a process of its own. All clients take turns
within one run and medians are compared. The peers get an environment of their own (``.venv-peers``, from
``bench/peers.lock``): they need other versions of the SDKs. ``--write`` puts the tables into ``docs/benchmarks.md``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import venv
from collections import defaultdict
from pathlib import Path

from page import machine, write_section

BENCH = Path(__file__).resolve().parent
ROOT = BENCH.parent
PEERS = ROOT / ".venv-peers"
LOCK = BENCH / "peers.lock"
CHUNKS = 2000

OURS = sys.executable
THEIRS = str(PEERS / "bin" / "python")

CLIENTS = {
    "raw": OURS,
    "openai SDK": OURS,
    "modeld openai": OURS,
    "any-llm": THEIRS,
    "LiteLLM": THEIRS,
    "anthropic SDK": OURS,
    "modeld anthropic": OURS,
    "google-genai SDK": OURS,
    "modeld gemini": OURS,
    "ollama SDK": OURS,
    "modeld ollama": OURS,
}
IMPORTS = {
    "modeld, modeld.repository": OURS,
    "modeld.repository.daemon": OURS,
    "openai": OURS,
    "any_llm": THEIRS,
    "litellm": THEIRS,
}


def ensure_peers() -> None:
    """The peers' environment, as the lock file says; nothing where it is there already."""
    stamp = PEERS / "lock"
    if stamp.exists() and stamp.read_bytes() == LOCK.read_bytes():
        return
    print("installing the peers into .venv-peers", file=sys.stderr, flush=True)
    venv.create(PEERS, with_pip=True, clear=True)
    command = [THEIRS, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]
    subprocess.run([*command, "-r", str(LOCK)], check=True)
    stamp.write_bytes(LOCK.read_bytes())


def chunk_costs(rounds: int) -> dict[str, float]:
    """Microseconds of CPU per chunk, by client."""
    found: dict[str, list[float]] = defaultdict(list)
    server = subprocess.Popen(
        [OURS, str(BENCH / "wires.py"), str(CHUNKS)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        url = f"http://127.0.0.1:{int(server.stdout.readline())}"
        for round in range(rounds):
            for name, python in CLIENTS.items():
                command = [python, str(BENCH / "stream_cost.py"), name, url, str(CHUNKS)]
                out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout
                found[name].append(json.loads(out.splitlines()[-1]))
                print(f"{round + 1}/{rounds} {name}: {found[name][-1]:.1f} us", file=sys.stderr, flush=True)
    finally:
        server.stdin.close()
        server.wait(10)
    return {name: statistics.median(costs) for name, costs in found.items()}


def import_costs(rounds: int) -> dict[str, float]:
    """Milliseconds, less those of an interpreter that imports nothing."""
    code = "import time; t = time.perf_counter(); import {}; print(1000 * (time.perf_counter() - t))"
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds + 1):
        for name, python in IMPORTS.items():
            command = [python, "-c", code.format(name)]
            out = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
            found[name].append(float(out.splitlines()[-1]))
    return {name: statistics.median(costs[1:]) for name, costs in found.items()}


def table(costs: dict[str, float], imports: dict[str, float]) -> str:
    """Both tables."""
    sdk = costs["openai SDK"]
    lines = ["| OpenAI wire | CPU per chunk, us | of the bare SDK |", "| --- | --- | --- |"]
    for name in ("raw", "modeld openai", "openai SDK", "any-llm", "LiteLLM"):
        label = "raw httpx2 + json" if name == "raw" else name
        lines.append(f"| {label} | {costs[name]:.0f} | {costs[name] / sdk:.2f} |")
    lines += ["", "| other wires | SDK, us | modeld, us | modeld / SDK |", "| --- | --- | --- | --- |"]
    for wire, bare in (("anthropic", "anthropic SDK"), ("gemini", "google-genai SDK"), ("ollama", "ollama SDK")):
        own = costs[f"modeld {wire}"]
        lines.append(f"| {wire} | {costs[bare]:.0f} | {own:.0f} | {own / costs[bare]:.2f} |")
    ours = imports["modeld, modeld.repository"]
    lines += ["", "| import | ms | of modeld's |", "| --- | --- | --- |"]
    lines += [f"| `{name}` | {ms:.0f} | {ms / ours:.0f} |" for name, ms in imports.items()]
    return "\n".join([*lines, "", f"{CHUNKS} chunks an answer; {machine()}."])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    args = parser.parse_args()
    ensure_peers()
    text = table(chunk_costs(args.rounds), import_costs(args.rounds))
    print(text)
    if args.write:
        write_section("providers", text)


if __name__ == "__main__":
    main()
