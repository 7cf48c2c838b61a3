"""Hazard: memory of windowed, hybrid and recurrent models that the plan does not count."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modeld.node.capacity import kv_bytes, overhead_bytes
from modeld.node.gguf import read_header
from support.shapes import write_hybrid, write_recurrent, write_windowed

MIB = 2**20
CELLS, SEQUENCES = 8192, 16

# Runs apart: llama.cpp writes to the process's log, and it holds native memory.
NATIVE = """
import sys
from llama_cpp import llama_cpp as native
lines = []
@native.llama_log_callback
def keep(level, text, data):
    lines.append(text.decode())
native.llama_log_set(keep, None)
from modeld.engine.llama.runtime import LlamaRuntime
from modeld.engine.protocol import Load
runtime = LlamaRuntime()
native.llama_log_set(keep, None)
runtime.load(Load(sys.argv[1], "shape", "d", int(sys.argv[2]), int(sys.argv[2]), sequences=int(sys.argv[3])))
print("".join(lines))
"""


@pytest.mark.parametrize("write", [write_windowed, write_hybrid, write_recurrent])
def test_llama_cpp_allocates_what_was_planned(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "shape.gguf"
    write(path)
    command = [sys.executable, "-c", NATIVE, str(path), str(CELLS), str(SEQUENCES)]
    log = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    sizes = {
        what: sum(float(size) for size in re.findall(what + r" buffer size = +([0-9.]+) MiB", log))
        for what in ("KV", "RS", "compute", "output")
    }
    header = read_header(path)
    assert kv_bytes(header, CELLS, "f16") / MIB == pytest.approx(sizes["KV"], abs=0.01)
    overhead = overhead_bytes(header, CELLS, SEQUENCES) / MIB - 64
    assert sizes["RS"] + sizes["compute"] + sizes["output"] < overhead
    assert (sizes["KV"] > 0, sizes["RS"] > 0) == {
        write_windowed: (True, False),
        write_hybrid: (True, True),
        write_recurrent: (False, True),
    }[write]
