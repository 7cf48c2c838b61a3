"""The command as users run it: a process, on a data root of its own whose node ends with the test."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import modeld
from modeld.node.record import probe

SECONDS = 60.0
"""Bound of every wait; nothing here takes a tenth of it."""

# Who started the tests may ignore SIGINT, which children inherit.
_EXEC = (
    "import os, signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "os.execv(sys.executable, [sys.executable, '-m', 'modeld', *sys.argv[1:]])"
)
_EXEC_ON_TERMINAL = f"import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); {_EXEC}"


def wait_for(so: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + SECONDS
    while not so():
        assert time.monotonic() < end, what
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """A zombie is not: nobody may wait for it where the first process of a container does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class Result:
    """How a command ended."""

    def __init__(self, code: int, out: bytes, err: bytes) -> None:
        self.code, self.out, self.err = code, out.decode(), err.decode()
        assert "Traceback" not in self.err

    @property
    def json(self) -> Any:
        """What it answered with ``--json``: one line."""
        assert self.out.count("\n") == 1
        return json.loads(self.out)


class Terminal:
    """A process on a pseudo terminal that it controls: what is typed as ctrl-C is a SIGINT."""

    def __init__(self, command: list[str], env: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, b"\x28\x00\x78\x00\x00\x00\x00\x00")
        self.process = subprocess.Popen(
            command, env=env, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
        )
        os.close(slave)
        self._seen = b""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, text: str) -> str:
        """Read until ``text``; what came up to its end."""
        end = time.monotonic() + SECONDS
        while text.encode() not in self._seen:
            assert time.monotonic() < end, f"{text!r} not in {self._seen!r}"
            if select.select([self._master], [], [], 0.1)[0]:
                try:
                    self._seen += os.read(self._master, 65536)
                except OSError:
                    raise AssertionError(f"ended without {text!r}: {self._seen!r}") from None
        before, _, self._seen = self._seen.partition(text.encode())
        return before.decode() + text

    def end(self) -> int:
        """Read to the end; its exit code."""
        end = time.monotonic() + SECONDS
        while self.process.poll() is None:
            assert time.monotonic() < end, self._seen
            if select.select([self._master], [], [], 0.05)[0]:
                try:
                    self._seen += os.read(self._master, 65536)
                except OSError:
                    continue
        return self.process.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)


class CommandLine:
    """Runs ``modeld`` on one data root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.python = sys.executable
        self.ready_line = ""
        drop = ("NO_COLOR", "MODELD_DEBUG", "COLUMNS", "FORCE_COLOR")
        self.env = {name: value for name, value in os.environ.items() if name not in drop}
        self.env |= {
            "PYTHONPATH": str(Path(modeld.__file__).parent.parent),
            "MODELD_DATA_ROOT": str(root),
            "PYTHONWARNINGS": "error",
            "TERM": "xterm",
        }
        self._children: list[subprocess.Popen[bytes]] = []
        self._terminals: list[Terminal] = []

    def __call__(self, *arguments: str, stdin: str = "", env: dict[str, str] | None = None) -> Result:
        """Run it to its end."""
        command = [sys.executable, "-m", "modeld", *arguments]
        done = subprocess.run(
            command, env=self.env | (env or {}), input=stdin.encode(), capture_output=True, timeout=SECONDS
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        """Run it beside the test."""
        child = subprocess.Popen(
            [sys.executable, "-c", _EXEC, *arguments],
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._children.append(child)
        return child

    def finish(self, child: subprocess.Popen[bytes]) -> Result:
        """Wait for one that was started."""
        out, err = child.communicate(timeout=SECONDS)
        return Result(child.returncode, out, err)

    def terminal(self, *arguments: str) -> Terminal:
        """Run it on a terminal."""
        terminal = Terminal([sys.executable, "-c", _EXEC_ON_TERMINAL, *arguments], self.env)
        self._terminals.append(terminal)
        return terminal

    def serve(self, *arguments: str) -> subprocess.Popen[bytes]:
        """A node that serves fake models too, once it is ready."""
        child = self.start("serve", "--allow-fake", *arguments)
        self.ready_line = read_line(child)
        return child

    def close(self) -> None:
        """End what is left, by its pid."""
        for terminal in self._terminals:
            terminal.close()
        record = probe(self.root).record
        if record is not None and probe(self.root).state == "running":
            os.kill(record.pid, signal.SIGTERM)
            wait_for(lambda: not alive(record.pid), f"process {record.pid} did not end")
        for child in self._children:
            if child.poll() is None:
                child.kill()
            child.communicate(timeout=SECONDS)
        for process in self._started_nodes():
            process.terminate()
            wait_for(lambda process=process: not alive(process.pid), f"process {process.pid} did not end")

    def _started_nodes(self) -> list[psutil.Process]:
        """What clients started to serve the data root, which outlives them: one may not own it yet."""
        found = []
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or ()
            if "serve" in words and str(self.root) in words and alive(process.pid):
                found.append(process)
        return found


def read_line(child: subprocess.Popen[bytes]) -> str:
    """The next line that it says on stderr."""
    assert child.stderr is not None
    assert select.select([child.stderr], [], [], SECONDS)[0], "it says nothing"
    return child.stderr.readline().decode()


@pytest.fixture
def command(tmp_path: Path) -> Iterator[CommandLine]:
    made = CommandLine(tmp_path / "root")
    yield made
    made.close()


@pytest.fixture
def node(command: CommandLine) -> subprocess.Popen[bytes]:
    """A node that serves fake models, on the data root of ``command``."""
    return command.serve()
