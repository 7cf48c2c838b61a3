"""Hazard: a format that takes the engine's time or memory. It costs a typed error, or as little as any other."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support import hostile_formats


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, object]]:
    """What became of each in one process that may take 512 MiB of address space more."""
    command = [sys.executable, str(Path(hostile_formats.__file__))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"{done.stderr[-2000:]} after {rows[-1:]}"
    return {str(row["name"]): row for row in rows}


@pytest.mark.parametrize("name", hostile_formats.HOSTILE)
def test_it_is_refused_or_made_within_a_second(rows: dict[str, dict[str, object]], name: str) -> None:
    row = rows[name]
    assert row["seconds"] < 1  # type: ignore[operator]
    assert row["token"] < 0.5  # type: ignore[operator]
    assert row["error"] in ("", "invalid_request", "unsupported_feature")
    assert len(str(row["text"])) < 1000


def test_some_of_them_are_refused_and_all_stay_within_bounded_memory(rows: dict[str, dict[str, object]]) -> None:
    assert {name for name, row in rows.items() if row["error"]} >= {
        "doubled",
        "doubled often",
        "doubled too often",
        "length against pattern",
    }
    assert max(int(str(row["grown"])) for row in rows.values()) < 128 << 10  # KiB
