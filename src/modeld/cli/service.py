"""``modeld install-service``: the node as a service of systemd for this user."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Final

import typer

from modeld.cli.options import DataRootOption, JsonOption, root_of
from modeld.cli.output import emit, say
from modeld.errors import InvalidRequestError, ModeldError, NodeError, NotSupportedError

UNIT: Final = "modeld.service"

_MARK: Final = "# Written by `modeld install-service`, which replaces and removes it."
_VERIFY_SECONDS: Final = 30.0

_TEMPLATE: Final = """\
{mark}
[Unit]
Description=modeld, the local model daemon

[Service]
Type=exec
ExecStart={command}
WorkingDirectory={folder}
Restart=on-failure
RestartSec=2
# Another node owns the data root: trying again would only ask it once more.
RestartPreventExitStatus=3
# The node ends its engine; what is left after the time to drain is killed.
KillMode=mixed
TimeoutStopSec=35
UMask=0077
NoNewPrivileges=yes
LockPersonality=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
# Not here: PrivateDevices (no GPU), MemoryDenyWriteExecute (drivers compile kernels), PrivateTmp and ProtectHome (the
# socket and the models may lie there).

[Install]
WantedBy=default.target
"""


def install_service(
    remove: Annotated[bool, typer.Option("--remove", help="Remove the unit file instead.")] = False,
    show: Annotated[bool, typer.Option("--print", help="Print the unit and write nothing.")] = False,
    data_root: DataRootOption = None,
    as_json: JsonOption = False,
) -> int:
    """Write a unit of systemd for this user that serves the data root. Nothing is enabled or started.

    It prints the commands that do. A unit of that name that modeld has not written is left alone.
    """
    if remove and show:
        raise typer.BadParameter("--remove and --print exclude each other")
    path = _unit_path()
    root = root_of(data_root)
    text = unit_text(sys.executable, root)
    if show:
        print(text, end="")
        return 0
    if sys.platform != "linux":
        raise NotSupportedError("systemd runs on Linux only; start `modeld serve` by other means", feature="systemd")
    steps = _removed(path) if remove else _installed(path, text, root)
    if as_json:
        emit({"path": str(path), "commands": steps})
    else:
        say(f"{'removed' if remove else 'wrote'} {path}; now run:")
        print("\n".join(steps))
    return 0


def unit_text(python: str, root: Path) -> str:
    """The unit that serves ``root`` with the interpreter ``python``; systemd.service(5), systemd.exec(5).

    :raises InvalidRequestError: a path that a unit cannot hold.
    """
    # -P: the working directory is no place to look for modules in.
    command = [python, "-P", "-m", "modeld", "serve", "--data-root", str(root)]
    if any(ord(character) < 32 or "\ud800" <= character <= "\udfff" for word in command for character in word):
        raise InvalidRequestError(f"a unit file cannot hold the path {str(root)!r}", parameter="data_root")
    # A path of its own setting is taken as it stands, but for specifiers.
    folder = str(root).replace("%", "%%")
    return _TEMPLATE.format(mark=_MARK, command=" ".join(map(_word, command)), folder=folder)


def _word(text: str) -> str:
    """One word of a command line in a unit, where ``%`` is a specifier and ``$`` a variable."""
    text = text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return text if text and not set(text) & set(" '\"\\;") else f'"{text}"'


def _unit_path() -> Path:
    configuration = os.environ.get("XDG_CONFIG_HOME", "")
    base = Path(configuration) if os.path.isabs(configuration) else Path("~/.config").expanduser()
    return base / "systemd" / "user" / UNIT


def _installed(path: Path, text: str, root: Path) -> list[str]:
    _require_ours(path)
    try:
        # systemd would not start it without its working directory.
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".modeld-", dir=path.parent) as folder:
            draft = Path(folder, UNIT)
            with open(draft, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            _verify(draft)
            os.replace(draft, path)
        _sync(path.parent)
    except OSError as error:
        raise NodeError(f"cannot write {str(path)!r}: {error.strerror}", path=str(path)) from error
    return ["systemctl --user daemon-reload", f"systemctl --user enable --now {UNIT}"]


def _removed(path: Path) -> list[str]:
    _require_ours(path)
    try:
        path.unlink()
    except FileNotFoundError:
        raise InvalidRequestError(f"there is no {str(path)!r}", parameter="remove") from None
    except OSError as error:
        raise NodeError(f"cannot remove {str(path)!r}: {error.strerror}", path=str(path)) from error
    _sync(path.parent)
    return [f"systemctl --user disable --now {UNIT}", "systemctl --user daemon-reload"]


def _require_ours(path: Path) -> None:
    try:
        first = path.read_text("utf-8", "replace").partition("\n")[0]
    except FileNotFoundError:
        return
    except OSError as error:
        raise NodeError(f"cannot read {str(path)!r}: {error.strerror}", path=str(path)) from error
    if first != _MARK:
        raise InvalidRequestError(f"{str(path)!r} was not written by modeld; move it away", parameter="path")


def _verify(unit: Path) -> None:
    """Let systemd read it, where systemd is there.

    :raises ModeldError: it finds a mistake.
    """
    tool = shutil.which("systemd-analyze")
    if tool is None:
        return
    command = [tool, "verify", "--user", str(unit)]
    # It wants a runtime directory, also where no session of this user has one.
    environment = {"XDG_RUNTIME_DIR": str(unit.parent)} | dict(os.environ)
    try:
        done = subprocess.run(
            command, capture_output=True, timeout=_VERIFY_SECONDS, stdin=subprocess.DEVNULL, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        say(f"the unit was not checked: {error}")
        return
    told = done.stderr.decode("utf-8", "replace").strip()
    if f"{UNIT}:" in told:
        raise ModeldError(f"systemd does not take the unit: {told[:1000]}", path=str(unit))
    if done.returncode:
        # It could not even start to look, as in a container without a manager of the user.
        say(f"the unit was not checked: {told[:300]}")


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
