"""Build llama-server of the llama.cpp sources that the locked binding was built of, once, and print its path.

    .venv/bin/python bench/build_llama_server.py

pip downloads the binding's source archive (77 MB) and checks it against the lock file; cmake and ninja build it below
``build/``, in some minutes. ``CMAKE_ARGS`` are taken as for ``make setup``: give the same, or the two are not the same.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BINDING = "llama-cpp-python"
SETTINGS = ("-DCMAKE_BUILD_TYPE=Release", "-DLLAMA_OPENSSL=OFF", "-DLLAMA_BUILD_UI=OFF")
"""Release, and without what a server on loopback does not need. All else is the default, as in the binding."""


def locked() -> tuple[str, str]:
    """The binding's version, and its lines of the lock file."""
    lock = (ROOT / "requirements.lock").read_text()
    found = re.search(rf"^{BINDING}==(\S+)(?:.*\\\n)*.*\n", lock, re.MULTILINE)
    if found is None:
        raise SystemExit(f"requirements.lock does not pin {BINDING}")
    return found[1], found[0]


def fetch(requirement: str, target: Path) -> None:
    """Unpack the source archive to ``target``, wholly or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        wanted = Path(folder) / "requirement.txt"
        wanted.write_text(requirement)
        download = ["download", "--require-hashes", "--no-deps", "--no-build-isolation", "--no-binary", BINDING]
        run([sys.executable, "-m", "pip", *download, "--dest", folder, "-r", str(wanted)])
        (archive,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
        (unpacked,) = (path for path in Path(folder).iterdir() if path.is_dir())
        unpacked.rename(target)


def run(command: list[str]) -> None:
    """Run it with the build tools of the environment; what it says goes to standard error."""
    tools = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    code = subprocess.run(command, stdout=sys.stderr, env={**os.environ, "PATH": tools}, check=False).returncode
    if code:
        raise SystemExit(f"{command[0]} failed with exit code {code}; its words are above")


def main() -> None:
    """Nothing is done again that is there already."""
    if sys.argv[1:]:
        raise SystemExit(__doc__)
    version, requirement = locked()
    sources, out = ROOT / "build" / f"{BINDING}-{version}", ROOT / "build" / f"llama-server-{version}"
    binary = out / "bin" / "llama-server"
    if not binary.exists():
        if not sources.exists():
            fetch(requirement, sources)
        given = shlex.split(os.environ.get("CMAKE_ARGS", ""))
        llama = str(sources / "vendor" / "llama.cpp")
        run(["cmake", "-S", llama, "-B", str(out), "-G", "Ninja", *SETTINGS, *given])
        run(["cmake", "--build", str(out), "--target", "llama-server"])
    print(binary)


if __name__ == "__main__":
    main()
