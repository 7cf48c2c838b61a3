"""Hazard: a page that does not do what it shows, in a real browser: Chromium, driven by Playwright's core.

``scripts/browser.py`` installs both (``make test`` runs it); where they are missing these tests fail and say so.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import re
import shutil
from pathlib import Path

import httpx2
import pytest

from modeld.http import pages
from modeld.node import capacity, ir
from modeld.session.values import SessionConfig
from support.engines import TINY_IR

from .conftest import Opened, Site

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
SCENARIOS = Path(__file__).parent / "browser" / "scenarios.cjs"
NAMES = re.findall(r"^  async (\w+)\(page", SCENARIOS.read_text(), re.MULTILINE)


def lacking() -> str:
    """What is not installed."""
    spec = importlib.util.spec_from_file_location("browser_setup", ROOT / "scripts" / "browser.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: str = module.missing()
    return found


def test_the_browser_is_installed() -> None:
    assert lacking() == ""
    assert len(NAMES) >= 7


@pytest.mark.parametrize("name", NAMES)
async def test_people_can(open_site: Opened, name: str) -> None:
    if missing := await asyncio.to_thread(lacking):
        pytest.fail(f"the console cannot be tested: {missing}")
    site = await open_site()
    shutil.copytree(TINY_IR, site.root / "models" / TINY_IR.name)
    process = await asyncio.create_subprocess_exec(
        *("node", str(SCENARIOS), name, site.url),
        env=os.environ | {"MODELD_TOKEN": site.token, "NODE_PATH": str(ROOT / ".venv" / "browser" / "node_modules")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said = (await process.communicate())[0].decode()
    assert process.returncode == 0, said
    await site.until_idle()


async def test_the_page_comes_with_its_policy_and_without_a_token(site: Site) -> None:
    async with httpx2.AsyncClient(base_url=site.url) as stranger:
        for path in pages.FILES:
            answer = await stranger.get(path)
            assert answer.status_code == 200
            assert answer.headers["content-security-policy"] == pages.POLICY
            assert answer.headers["referrer-policy"] == "no-referrer"
            assert site.token not in answer.text
            # No address of anybody else, nothing inline, no picture of a letter.
            assert not re.search(r"https?://|@import|url\(|<style| style=|<script>| on\w+=", answer.text)
            assert answer.text.isascii()
        for path in ("/console/index.html", "/console.html", "/index.html", "/console.js/../auth.py"):
            assert (await stranger.get(path)).status_code in (401, 404)
        assert (await stranger.get("/", headers={"host": "rebound.example"})).status_code == 403
        assert (await stranger.post("/", json={})).status_code == 405


def test_what_is_offered_for_kv_is_what_the_node_takes() -> None:
    script = (ROOT / "src" / "modeld" / "http" / "console" / "console.js").read_text()
    (line,) = re.findall(r"^const KV_TYPES = \{ llama: (\[.*?\]), openvino: (\[.*?\]) \};$", script, re.MULTILINE)
    for offered, taken in zip(map(json.loads, line), (capacity.KV_TYPES, ir.KV_TYPES), strict=True):
        assert offered[0] == SessionConfig().kv_type
        assert set(offered) == set(taken)


def test_what_writes_markup_is_not_used() -> None:
    script = (ROOT / "src" / "modeld" / "http" / "console" / "console.js").read_text()
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function|localStorage", script
    )
