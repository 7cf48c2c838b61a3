"""Hazards of set-up: interrupted, run twice at once, killed, changed inputs, missing tools. pip is a stand-in."""

import ast
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "setup.py"
FAKE_PYTHON = """#!/bin/sh
if [ "$1" = -c ]; then echo "{version}"; exit; fi
if [ -e slow ]; then seconds=$(cat slow); fi
echo "begin CMAKE_ARGS=$CMAKE_ARGS $*" >> calls.log
if [ -n "$seconds" ]; then sleep "$seconds"; fi
echo "pip is speaking"
echo end >> calls.log
if [ -e fail ]; then case "$*" in *"$(cat fail)"*) echo "No space left on device"; exit 7;; esac; fi
"""


class Clone:
    """A folder with a space in its name that set-up takes for a clone."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log = root / "calls.log"
        (root / "scripts").mkdir(parents=True)
        shutil.copy(SCRIPT, root / "scripts")
        (root / "pyproject.toml").write_text("[project]\n")
        (root / "requirements-build.lock").write_text("pip==26.0 \\\n    --hash=sha256:00\n")
        (root / "requirements.lock").write_text(
            "llama-cpp-python==1.0 \\\n    --hash=sha256:11\nzlib==2 \\\n    --hash=x\n"
        )
        python = root / ".venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(FAKE_PYTHON.format(version=" ".join(map(str, sys.version_info[:2]))))
        python.chmod(0o755)
        (root / ".venv" / "pyvenv.cfg").write_text(f"command = python3 -m venv {root / '.venv'}\n")

    def start(self, variables: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        env = {k: v for k, v in os.environ.items() if k != "CMAKE_ARGS"} | dict(variables or {})
        command = [sys.executable, str(self.root / "scripts" / "setup.py")]
        return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)

    def run(self, **variables: str) -> tuple[int, str]:
        process = self.start(variables)
        out, _ = process.communicate(timeout=30)
        return process.returncode, out

    def calls(self) -> list[str]:
        """The pip calls so far; asserts that no two ran at once."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        assert all(line.startswith("begin") == (i % 2 == 0) for i, line in enumerate(lines))
        return [line for line in lines if line != "end"]


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path / "a clone")


@pytest.fixture
def script(clone: Clone) -> ModuleType:
    spec = importlib.util.spec_from_file_location("setup_under_test", clone.root / "scripts" / "setup.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_second_run_does_nothing(clone: Clone) -> None:
    assert clone.run()[0] == 0
    before = clone.calls()
    assert [("--require-hashes" in call, "--no-build-isolation" in call) for call in before] == [
        (True, True),
        (True, True),
        (False, True),
    ]
    assert clone.run() == (0, "")
    assert clone.calls() == before


@pytest.mark.parametrize("name", ["requirements.lock", "requirements-build.lock", "pyproject.toml"])
def test_changed_input_sets_up_again(clone: Clone, name: str) -> None:
    clone.run()
    with (clone.root / name).open("a") as file:
        file.write("# changed\n")
    assert clone.run()[0] == 0
    assert len(clone.calls()) == 6


def test_failure_shows_the_log_and_is_tried_again(clone: Clone) -> None:
    (clone.root / "fail").touch()
    code, out = clone.run()
    assert code == 1
    assert "exit code 7" in out
    assert "pip is speaking" in out
    assert "the disk is full" in out
    (clone.root / "fail").unlink()
    assert clone.run()[0] == 0
    assert len(clone.calls()) == 4


def test_torn_stamp_sets_up_again(clone: Clone) -> None:
    clone.run()
    stamp = clone.root / ".venv" / "setup.json"
    stamp.write_text(stamp.read_text()[:40])
    assert clone.run()[0] == 0
    assert len(clone.calls()) == 6


def test_two_at_once_work_one_after_the_other(clone: Clone) -> None:
    (clone.root / "slow").write_text(".3")
    both = [clone.start(), clone.start()]
    outputs = [process.communicate(timeout=30)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert len(clone.calls()) == 3
    assert sum("waiting for it" in out for out in outputs) == 1


def test_killed_setup_leaves_a_pip_that_the_next_one_waits_for(clone: Clone) -> None:
    (clone.root / "slow").write_text("3")  # seconds: the next set-up comes long before it ends
    process = clone.start()
    while not clone.log.exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    (clone.root / "slow").unlink()
    process.communicate(timeout=30)
    code, out = clone.run()
    assert code == 0
    assert "waiting for it" in out
    assert len(clone.calls()) == 4


def test_build_settings_rebuild_the_binding_past_the_cache_and_are_remembered(clone: Clone) -> None:
    clone.run()
    assert clone.run(CMAKE_ARGS="-DGGML_CUDA=on")[0] == 0
    build = clone.calls()[4]
    assert "CMAKE_ARGS=-DGGML_CUDA=on " in build
    assert {"--force-reinstall", "--no-cache-dir", "--no-deps", "--require-hashes"} <= set(build.split())
    only = (clone.root / ".venv" / "setup.binding.txt").read_text()
    assert only == "llama-cpp-python==1.0 \\\n    --hash=sha256:11\n"
    assert clone.run() == (0, "")
    assert clone.run(CMAKE_ARGS="-DGGML_CUDA=on") == (0, "")
    assert clone.run(CMAKE_ARGS="")[0] == 0
    back = clone.calls()[8]
    assert "--force-reinstall" in back
    assert "--no-cache-dir" not in back


def test_new_binding_version_is_built_with_the_remembered_settings(clone: Clone) -> None:
    clone.run(CMAKE_ARGS="-DGGML_VULKAN=on")
    before = len(clone.calls())
    lock = clone.root / "requirements.lock"
    lock.write_text(lock.read_text().replace("==1.0", "==1.1"))
    assert clone.run()[0] == 0
    rebuilds = [call for call in clone.calls()[before:] if "--no-cache-dir" in call]
    assert len(rebuilds) == 1
    assert "CMAKE_ARGS=-DGGML_VULKAN=on " in rebuilds[0]


def test_interrupted_rebuild_does_not_pass_for_the_default_build(clone: Clone) -> None:
    clone.run()
    (clone.root / "fail").write_text("--no-cache-dir")
    assert clone.run(CMAKE_ARGS="-DGGML_CUDA=on")[0] == 1
    (clone.root / "fail").unlink()
    before = len(clone.calls())
    assert clone.run()[0] == 0
    assert any("--force-reinstall" in call for call in clone.calls()[before:])


def test_missing_compiler_names_the_package_before_any_download(clone: Clone, tmp_path: Path) -> None:
    code, out = clone.run(PATH=str(tmp_path), CC="cc")
    assert code == 1
    assert "C++ compiler" in out
    assert "apt install build-essential" in out
    assert clone.calls() == []


def test_moved_folder_is_set_up_anew(clone: Clone, script: ModuleType) -> None:
    assert script.venv_usable()
    config = clone.root / ".venv" / "pyvenv.cfg"
    config.write_text(config.read_text().replace("a clone", "another"))
    assert not script.venv_usable()


def test_missing_ensurepip_names_the_package(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ensurepip", None)
    with pytest.raises(script.SetupError, match="apt install python3-venv"):
        script.create_venv()


def test_old_python_says_so(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script.sys, "version_info", (3, 9, 2))
    monkeypatch.setattr(script.shutil, "which", lambda name: None)
    with pytest.raises(script.SetupError, match=r"Python 3\.11 or newer is needed"):
        script.use_supported_python()


def test_old_python_can_read_the_script() -> None:
    ast.parse(SCRIPT.read_text(), feature_version=(3, 7))


@pytest.mark.parametrize(
    ("log", "shown"),
    [
        ("Collecting anyio==4\n", "Collecting anyio==4"),
        ("Building wheel for llama-cpp-python (pyproject.toml): started\n", "Building wheel for llama-cpp-python"),
        ("x\n  [7/193] /usr/bin/g++ -O2 -c /tmp/a b/ggml.cpp\n", "compiling [7/193] ggml.cpp"),
        ("\n", "working"),
    ],
)
def test_progress_tells_the_last_step(script: ModuleType, log: str, shown: str) -> None:
    script.LOG.write_text(log)
    assert script.last_step(0).startswith(shown)
