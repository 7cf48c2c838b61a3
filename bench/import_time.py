"""What ``import modeld`` costs: median of ten fresh interpreters, less that of ten that import nothing.

    .venv/bin/python bench/import_time.py [--write] [--package NAME]

``--write`` puts the number into ``docs/benchmarks.md``. The budget is 60 ms.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

ROUNDS = 10


def seconds(code: str) -> float:
    """Wall-clock time of one interpreter that runs ``code``."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - start


def import_milliseconds(package: str) -> float:
    """Both kinds alternate, so that a slow moment of the machine meets both."""
    seconds(f"import {package}")  # writes the bytecode files
    pairs = [(seconds("pass"), seconds(f"import {package}")) for _ in range(ROUNDS)]
    return 1000 * (statistics.median(b for _, b in pairs) - statistics.median(a for a, _ in pairs))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", default="modeld")
    parser.add_argument("--write", action="store_true", help="into docs/benchmarks.md")
    args = parser.parse_args()
    cost = import_milliseconds(args.package)
    line = f"`import {args.package}`: {cost:.0f} ms (median of {ROUNDS}, less interpreter start)"
    print(line)
    if args.write:
        from page import machine, write_section

        write_section("import", f"{line}; {machine()}.")


if __name__ == "__main__":
    main()
