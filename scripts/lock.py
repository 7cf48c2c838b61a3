"""Write the lock files: names, versions and hashes, nothing about where packages come from.

    .venv/bin/python scripts/lock.py [--upgrade]

``requirements-build.lock`` pins what builds packages (pip itself, build backends, CMake), ``requirements.lock`` the
project's dependencies with the extras that its tests use. They are resolved with the oldest Python supported and
hold the hashes of every file of a version, so that they serve newer Pythons and other platforms too.
``bench/peers.lock`` pins what the benchmarks measure beside modeld, for an environment of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILD_LOCK = ROOT / "requirements-build.lock"
LOCK = ROOT / "requirements.lock"
PEERS_LOCK = ROOT / "bench" / "peers.lock"
BUILD_TOOLS = (
    "cmake",  # builds the binding where the machine has no CMake
    "editables",  # hatchling asks for it to install the project in place
    "hatchling",
    "ninja",
    "pip>=23.1",  # the first that finds its own wheels again in hash-checking mode
    "pip-tools",
    "scikit-build-core",  # build backend of llama-cpp-python
    "setuptools",  # build backend of forbiddenfruit
)
EXTRAS = ("llama", "openvino", "openai", "google", "ollama", "anthropic", "keyring", "otel", "http", "testing", "dev")
HEADER = "# Written by `make lock`; do not edit.\n"


def main() -> int:
    """Resolve both files anew; versions stay where they still fit unless ``--upgrade`` is given."""
    if sys.version_info[:2] != (3, 11):
        print(f"lock: resolve with Python 3.11, the oldest supported, not {sys.version.split()[0]}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as folder:
        tools = Path(folder, "build.in")
        tools.write_text("\n".join(BUILD_TOOLS) + "\n")
        compile_lock(BUILD_LOCK, str(tools))
        compile_lock(PEERS_LOCK, str(PEERS_LOCK.with_suffix(".in")))
        compile_lock(LOCK, "pyproject.toml", *(f"--extra={e}" for e in EXTRAS), f"--constraint={BUILD_LOCK}")
    return 0


def compile_lock(target: Path, *args: str) -> None:
    """Run pip-compile. Only the main index counts: an extra one of this machine may serve builds of its own."""
    env = {k: v for k, v in os.environ.items() if k not in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS")}
    command = [sys.executable, "-m", "piptools", "compile", "--quiet", "--generate-hashes", "--allow-unsafe"]
    command += ["--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links", "--no-emit-options"]
    command += ["--strip-extras", f"--output-file={target}", *sys.argv[1:], *args]
    subprocess.run(command, cwd=ROOT, env=env | {"PIP_CONFIG_FILE": os.devnull}, check=True)
    target.write_text(HEADER + target.read_text().removeprefix(HEADER))


if __name__ == "__main__":
    sys.exit(main())
