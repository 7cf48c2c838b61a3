"""Hazard: what OpenAI's client for Python reads, and the one for Node does not."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from .conftest import Site

pytestmark = pytest.mark.anyio

HERE = Path(__file__).parent / "node"
BUILD = Path(__file__).parents[2] / "build"
FILES = ("package.json", "package-lock.json")


def require(program: str) -> str:
    """Its path. A machine without Node.js fails the test: that its programs work is part of what is promised."""
    found = shutil.which(program)
    assert found, f"{program} is missing: this test runs OpenAI's client for Node.js (apt install nodejs npm)"
    return found


@pytest.fixture(scope="session")
def installed() -> Path:
    """A folder with the client, made once for each lock file."""
    npm = require("npm")
    content = hashlib.sha256(b"".join((HERE / name).read_bytes() for name in FILES)).hexdigest()[:16]
    folder = BUILD / f"node-{content}"
    if not folder.exists():
        part = BUILD / f"node-{content}.{os.getpid()}.part"
        part.mkdir(parents=True)
        for name in FILES:
            shutil.copy(HERE / name, part)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=part, capture_output=True, text=True, timeout=100, check=False)
        assert done.returncode == 0, f"npm ci failed; is the registry there?\n{done.stdout}{done.stderr}"
        try:
            part.rename(folder)
        except OSError:  # another run was faster
            shutil.rmtree(part)
    return folder


async def test_a_session_of_the_node_sdk(site: Site, installed: Path, tmp_path: Path) -> None:
    script = shutil.copy(HERE / "session.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(installed / "node_modules")
    told = {"OPENAI_BASE_URL": f"{site.url}/v1", "OPENAI_API_KEY": site.token, "PATH": os.environ["PATH"]}
    process = await asyncio.create_subprocess_exec(
        require("node"), script, env=told, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        out, err = await asyncio.wait_for(process.communicate(), 90)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, err.decode()
    steps = re.findall(r"^  async (\w+)\(", (HERE / "session.mjs").read_text(), re.MULTILINE)
    assert len(steps) > 10
    assert [json.loads(line) for line in out.splitlines()] == steps
    # The last one left in the middle.
    await site.until_idle()


def test_the_lock_names_no_registry() -> None:
    assert "://" not in (HERE / "package-lock.json").read_text()
