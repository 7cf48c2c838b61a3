"""Install what drives the console in tests: Chromium and Node.js from Debian, Playwright's core from npm's lock.

    .venv/bin/python scripts/browser.py

Standard library only. Does nothing where all is there. System packages are installed with apt, as root; elsewhere this
says what is missing, and the tests of the console fail. Playwright itself downloads nothing.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = ROOT / "tests" / "http" / "browser"
PLACE = ROOT / ".venv" / "browser"
"""Beside what pip installed: a folder that is nobody's source."""
INPUTS = ("package.json", "package-lock.json", ".npmrc")
CHROMIUM = Path("/usr/bin/chromium")
STAMP = PLACE / "installed"


def main() -> int:
    """Install what is missing; the exit code."""
    try:
        install_packages()
        install_core()
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"browser: {error}", file=sys.stderr)
    lacking = missing()
    if lacking:
        print(f"browser: the tests of the console will fail: {lacking}", file=sys.stderr)
    return 1 if lacking else 0


def missing() -> str:
    """What is not there, and what brings it; ``""``: nothing is missing."""
    if absent := absent_packages():
        return (
            f"{' and '.join(absent)} not installed: run scripts/browser.py as root, or: apt install {' '.join(absent)}"
        )
    if not (STAMP.exists() and STAMP.read_text() == fingerprint()):
        return "Playwright's core is not installed, or another one: run scripts/browser.py"
    return ""


def absent_packages() -> list[str]:
    """Names of the system packages that are not installed. Node.js from elsewhere is as good."""
    found = [] if CHROMIUM.exists() else ["chromium"]
    return found + [package for program, package in (("node", "nodejs"), ("npm", "npm")) if not shutil.which(program)]


def install_packages() -> None:
    """With apt, where that is possible."""
    absent = absent_packages()
    if not absent or not shutil.which("apt-get") or os.geteuid() != 0:
        return
    print(f"browser: installing {' and '.join(absent)}", flush=True)
    quiet = {"stdout": subprocess.DEVNULL, "env": os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, "check": True}
    subprocess.run(["apt-get", "update"], **quiet)  # type: ignore[call-overload]
    subprocess.run(["apt-get", "install", "-y", "--no-install-recommends", *absent], **quiet)  # type: ignore[call-overload]


def install_core() -> None:
    """With ``npm ci``: what the lock names, by its checksums."""
    if not shutil.which("npm") or (STAMP.exists() and STAMP.read_text() == fingerprint()):
        return
    PLACE.mkdir(parents=True, exist_ok=True)
    STAMP.unlink(missing_ok=True)
    for name in INPUTS:
        shutil.copy(PROJECT / name, PLACE)
    command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]
    subprocess.run(command, cwd=PLACE, check=True, stdout=subprocess.DEVNULL)
    STAMP.write_text(fingerprint())


def fingerprint() -> str:
    """Of what is to be installed."""
    content = hashlib.sha256()
    for name in INPUTS:
        content.update((PROJECT / name).read_bytes())
    return content.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
