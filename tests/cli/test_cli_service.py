"""Hazards of a service: a unit systemd reads otherwise, a file of somebody else's, a service enabled unasked."""

from __future__ import annotations

import configparser
import os
import shlex
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from modeld.cli.service import UNIT, unit_text
from modeld.errors import InvalidRequestError

from .conftest import CommandLine


def parsed(text: str) -> configparser.ConfigParser:
    """A unit is an INI file whose keys have cases; a key here stands once."""
    parser = configparser.ConfigParser(interpolation=None, comment_prefixes=("#", ";"), delimiters=("=",))
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(text)
    return parser


@pytest.fixture
def units(tmp_path: Path, command: CommandLine) -> Path:
    """The folder of the user's units, not there yet."""
    command.env["XDG_CONFIG_HOME"] = str(tmp_path / "configuration")
    return tmp_path / "configuration" / "systemd" / "user"


def test_the_unit_starts_this_python_on_this_data_root(command: CommandLine, units: Path) -> None:
    done = command("install-service", "--print")
    unit = parsed(done.out)
    service = unit["Service"]
    assert shlex.split(service["ExecStart"]) == [
        sys.executable, "-P", "-m", "modeld", "serve", "--data-root", str(command.root)
    ]  # fmt: skip
    assert os.path.isabs(sys.executable)
    assert service["WorkingDirectory"] == str(command.root)
    assert service["Restart"] == "on-failure"
    assert service["RestartPreventExitStatus"] == "3"
    assert service["KillMode"] == "mixed"
    # More than a node takes to drain, or systemd would kill it meanwhile.
    assert int(service["TimeoutStopSec"]) > 10
    assert service["NoNewPrivileges"] == "yes"
    assert not {"PrivateDevices", "MemoryDenyWriteExecute", "PrivateTmp", "ProtectHome"} & set(service)
    assert unit["Install"]["WantedBy"] == "default.target"
    assert not units.exists()
    assert not command.root.exists()


def test_installing_enables_nothing_and_says_what_would(command: CommandLine, units: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    called = tmp_path / "called"
    (tools / "systemctl").write_text(f"#!/bin/sh\ntouch {shlex.quote(str(called))}\n")
    (tools / "systemctl").chmod(0o755)
    environment = {"PATH": f"{tools}:{os.environ['PATH']}"}
    done = command("install-service", env=environment)
    assert done.code == 0, done.err
    assert done.out == f"systemctl --user daemon-reload\nsystemctl --user enable --now {UNIT}\n"
    assert os.listdir(units) == [UNIT]
    assert (units / UNIT).read_text() == command("install-service", "--print").out
    assert stat.S_IMODE(command.root.stat().st_mode) == 0o700
    # Again: ours is replaced.
    assert command("install-service", "--json", env=environment).json["path"] == str(units / UNIT)
    removed = command("install-service", "--remove", env=environment)
    assert removed.out == f"systemctl --user disable --now {UNIT}\nsystemctl --user daemon-reload\n"
    assert os.listdir(units) == []
    assert not called.exists()
    assert command("install-service", "--remove").code == 1


def test_a_unit_of_somebody_else_is_left_alone(command: CommandLine, units: Path) -> None:
    units.mkdir(parents=True)
    (units / UNIT).write_text("[Service]\nExecStart=/bin/true\n")
    for words in ((), ("--remove",)):
        done = command("install-service", *words, "--json")
        assert (done.code, done.json["error"]["code"]) == (1, "invalid_request")
    assert (units / UNIT).read_text() == "[Service]\nExecStart=/bin/true\n"
    assert command("install-service", "--remove", "--print").code == 2


def test_a_unit_that_systemd_does_not_take_is_not_installed(command: CommandLine, units: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for said, code in (("a/modeld.service:3: Unknown key", 1), ("Failed to initialize manager", 0)):
        (tools / "systemd-analyze").write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
        (tools / "systemd-analyze").chmod(0o755)
        done = command("install-service", env={"PATH": f"{tools}:{os.environ['PATH']}"})
        assert done.code == code
        assert said in done.err
        assert (units / UNIT).exists() == (code == 0)


@pytest.mark.parametrize(
    "name",
    [
        "plain", "with space", 'a"quote', "per%cent %n", "dollar$HOME ${x}", "back\\slash", "semi;colon", "it's", "#x",
    ],
)  # fmt: skip
def test_any_folder_survives_the_unit(tmp_path: Path, name: str) -> None:
    root = tmp_path / name
    root.mkdir()
    text = unit_text(sys.executable, root)
    unit = parsed(text)
    # What systemd undoes: quotes, then specifiers, then variables.
    words = shlex.split(unit["Service"]["ExecStart"])
    assert words[-1].replace("%%", "%").replace("$$", "$") == str(root)
    assert unit["Service"]["WorkingDirectory"].replace("%%", "%") == str(root)
    path = tmp_path / UNIT
    path.write_text(text)
    if tool := shutil.which("systemd-analyze"):
        environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
        done = subprocess.run([tool, "verify", "--user", path], env=environment, capture_output=True, timeout=60)
        assert f"{UNIT}:" not in done.stderr.decode()


@pytest.mark.parametrize("name", ["new\nline", "tab\t", "\udcff"])
def test_a_folder_that_a_unit_cannot_hold_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequestError):
        unit_text(sys.executable, tmp_path / name)
