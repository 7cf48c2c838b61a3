"""Generate the protobuf code of ``modeld.v1`` from its ``.proto`` file.

``python scripts/proto.py`` writes it, ``python scripts/proto.py --check`` fails when what is checked in differs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "src" / "modeld" / "transport" / "proto"
PROTO = "modeld/v1/modeld.proto"
GENERATED = ("modeld/v1/modeld_pb2.py", "modeld/v1/modeld_pb2.pyi")


def generate(out: Path) -> None:
    """Run the compiler of ``grpcio-tools``; ``out`` gets the files of ``GENERATED``."""
    command = [sys.executable, "-m", "grpc_tools.protoc", f"--proto_path={ROOT}", PROTO]
    subprocess.run([*command, f"--python_out={out}", f"--pyi_out={out}"], check=True)


def main() -> int:
    """Write or check; 0 is fine, 1 is drift."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, fail on drift")
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        drifted = [name for name in GENERATED if (Path(folder) / name).read_bytes() != (ROOT / name).read_bytes()]
    for name in drifted:
        print(f"{ROOT / name} differs from {PROTO}: run python scripts/proto.py", file=sys.stderr)
    return 1 if drifted else 0


if __name__ == "__main__":
    sys.exit(main())
