"""Hazard: tests of the console that silently do not run, or run what no lock names."""

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROJECT = ROOT / "tests" / "http" / "browser"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The set-up, on a machine that has nothing."""
    spec = importlib.util.spec_from_file_location("browser_under_test", ROOT / "scripts" / "browser.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "CHROMIUM", tmp_path / "chromium")
    monkeypatch.setattr(module, "PLACE", tmp_path / "place")
    monkeypatch.setattr(module, "STAMP", tmp_path / "place" / "installed")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return module


def program(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def test_what_is_missing_is_named_with_its_command(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main() == 1
    assert "apt install chromium nodejs npm" in capsys.readouterr().err


def test_what_is_there_is_left_alone_and_another_lock_is_installed(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("node", "npm"):
        program(tmp_path / "bin" / name, f'echo "{name} $*" >> {tmp_path}/calls')
    script.CHROMIUM.touch()
    assert script.main() == 0
    assert script.main() == 0
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 1
    assert calls[0].startswith("npm ci --ignore-scripts")
    assert (script.PLACE / "package-lock.json").read_bytes() == (PROJECT / "package-lock.json").read_bytes()
    monkeypatch.setattr(script, "fingerprint", lambda: "another")
    assert "another one" in script.missing()


def test_an_interrupted_install_is_done_again(script: ModuleType, tmp_path: Path) -> None:
    program(tmp_path / "bin" / "node", "")
    program(tmp_path / "bin" / "npm", "exit 1")
    script.CHROMIUM.touch()
    assert script.main() == 1
    program(tmp_path / "bin" / "npm", "exit 0")
    assert script.main() == 0


def test_the_lock_names_versions_and_checksums_and_no_address() -> None:
    text = (PROJECT / "package-lock.json").read_text()
    assert "://" not in text
    assert "resolved" not in text
    packages = json.loads(text)["packages"]
    wanted = json.loads((PROJECT / "package.json").read_text())["dependencies"]
    assert {f"node_modules/{name}" for name in wanted} == packages.keys() - {""}
    for name, version in wanted.items():
        assert packages[f"node_modules/{name}"]["version"] == version
        assert packages[f"node_modules/{name}"]["integrity"].startswith("sha512-")
