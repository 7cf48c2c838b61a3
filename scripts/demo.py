"""``make run``: a node on a temporary data root answers one question of the bundled model, and stops again.

It uses the command line only, as a person would: ``modeld run`` starts the node on demand.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

MODEL, PROMPT = "tiny", "Count to 12."
MODELD = str(Path(sys.executable).with_name("modeld"))


def main() -> int:
    """Ask, then stop the node whatever happened."""
    with tempfile.TemporaryDirectory(prefix="modeld-demo-") as root:
        print(f'$ modeld run {MODEL} "{PROMPT}"', flush=True)
        try:
            code = subprocess.call([MODELD, "run", MODEL, PROMPT, "--data-root", root])
        finally:
            print("$ modeld stop", flush=True)
            stopped = subprocess.call([MODELD, "stop", "--data-root", root])
    return code or stopped


if __name__ == "__main__":
    sys.exit(main())
