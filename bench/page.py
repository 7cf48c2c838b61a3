"""Sections of ``docs/benchmarks.md`` that the benchmarks write themselves, and the machine they ran on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

from modeld.engine.llama.runtime import default_threads

PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"


def write_section(name: str, text: str, page: Path = PAGE) -> None:
    """Replace what stands between the markers of ``name``; the rest of the page stays as it is."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, begin_found, rest = page.read_text().partition(begin)
    _, end_found, after = rest.partition(end)
    if not begin_found or not end_found:
        raise SystemExit(f"{page.name} has no section between {begin} and {end}")
    page.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}")


def machine() -> str:
    """Processor, cores and threads; nothing that names the machine itself."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{processor()}, {cores} cores, {default_threads()} engine threads, Python {platform.python_version()}"


def processor() -> str:
    """The processor's own name."""
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found.group(1).strip() if found else platform.processor() or platform.machine()
