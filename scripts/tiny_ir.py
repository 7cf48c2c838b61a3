"""Make the tests' IR anew: ``tests/data/tiny-ov`` of ``tests/data/tiny-hf``, by the project's own import.

    MODELD_CONVERT_PYTHON=DIR/bin/python .venv/bin/python scripts/tiny_ir.py

The interpreter is that of an environment with the extra ``openvino-convert``: torch is too large for every test run,
so what it makes is checked in. Other versions of it write other bytes for the same numbers.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

from modeld.node.importing import import_model

DATA = Path(__file__).resolve().parent.parent / "tests" / "data"


def main() -> int:
    """Replace the folder once the new one is whole."""
    with tempfile.TemporaryDirectory(dir=DATA) as scratch:
        made = import_model(DATA / "tiny-hf", Path(scratch), "tiny-ov", say=lambda line: print(line, file=sys.stderr))
        shutil.rmtree(DATA / "tiny-ov", ignore_errors=True)
        os.rename(made, DATA / "tiny-ov")
    return 0


if __name__ == "__main__":
    sys.exit(main())
