"""``modeld doctor``: what could keep a node from working, and what to do about it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from msgspec import Struct

from modeld.cli.connection import finish
from modeld.cli.options import DataRootOption, JsonOption, root_of
from modeld.cli.output import emit
from modeld.errors import ModeldError

if TYPE_CHECKING:
    from modeld.node.record import OwnerRecord, OwnerState
    from modeld.session.values import NodeStatus

_ANSWER_SECONDS: Final = 5.0
_ENGINE_SECONDS: Final = 60.0
_LOW_DISK: Final = 2**30
_LOW_MEMORY: Final = 2**30

_ENGINE_PROGRAM: Final = """
import sys
import msgspec
from modeld.engine.runtimes import load_runtime
from modeld.errors import MissingDependencyError, ModeldError
try:
    runtime = load_runtime(sys.argv[1])
    found = {"build": runtime.build, "devices": runtime.devices}
except MissingDependencyError as error:
    found = {"missing": error.message}
except ModeldError as error:
    found = {"wrong": error.message}
sys.stdout.buffer.write(msgspec.json.encode(found))
"""


class Check(Struct, frozen=True, omit_defaults=True):
    """What one look found. ``hint`` is the next step."""

    name: str
    state: Literal["ok", "warn", "fail"]
    message: str
    hint: str = ""


def doctor(data_root: DataRootOption = None, as_json: JsonOption = False) -> int:
    """Check what a node needs, one line each, with the next step where something is wrong.

    Starts no node and writes nothing. Exits 1 when a check failed; a warning is no failure.
    """
    root = root_of(data_root)
    found = []
    for check in _checks(root):
        found.append(check)
        if not as_json:
            print(f"{check.state:4}  {check.name}: {check.message}{'; ' if check.hint else ''}{check.hint}", flush=True)
    if as_json:
        emit({"checks": found})
    return 1 if any(check.state == "fail" for check in found) else 0


def _checks(root: Path) -> Iterator[Check]:
    yield _python()
    yield _folder(root)
    yield _file_system(root)
    yield _disk(root)
    try:
        from modeld.node.record import probe

        seen = probe(root)
    except ModeldError as error:
        yield Check("owner", "fail", error.message)
    else:
        yield _owner(seen)
        yield _socket(seen)
        yield from _answer(root, seen)
    yield _backends(root)
    yield _engine("llama", "llama-cpp-python jinja2", needed=True)
    yield _engine("openvino", "openvino openvino-genai openvino-tokenizers", needed=False)
    yield _bundled()
    yield _memory()


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("python", "ok", f"{version} at {sys.executable}")


def _existing(root: Path) -> Path:
    """``root``, or the nearest folder above it that exists."""
    return next(path for path in (root, *root.parents) if path.exists())


def _folder(root: Path) -> Check:
    from modeld.node.record import refuse_shared_folder

    place = _existing(root)
    if not place.is_dir():
        return Check("data root", "fail", f"{place} is no folder", "choose another one with --data-root")
    if not os.access(place, os.W_OK | os.X_OK):
        hint = "choose another one with --data-root, or run as the user it belongs to"
        return Check("data root", "fail", f"{place} may not be written", hint)
    if place != root:
        return Check("data root", "ok", f"{root} is not there yet; the first node makes it")
    try:
        refuse_shared_folder(root)
    except ModeldError as error:
        return Check("data root", "fail", error.message)
    return Check("data root", "ok", f"{root} is there and may be written")


def _file_system(root: Path) -> Check:
    from modeld.node.record import refuse_network_file_system

    try:
        refuse_network_file_system(root)
    except ModeldError as error:
        return Check("file system", "fail", error.message)
    return Check("file system", "ok", "no network file system")


def _disk(root: Path) -> Check:
    import shutil

    from modeld.node.capacity import human_bytes

    free = shutil.disk_usage(_existing(root)).free
    if free < _LOW_DISK:
        why = "no KV, session or snapshot is kept on a full disk: free some"
        return Check("disk", "warn", f"{human_bytes(free)} free", why)
    return Check("disk", "ok", f"{human_bytes(free)} free")


def _owner(seen: OwnerState) -> Check:
    record = seen.record
    if seen.state == "running":
        if record is None:
            return Check("owner", "warn", "a process holds the lock, but its record cannot be read", _RESTART)
        return Check("owner", "ok", f"process {record.pid} holds the lock in epoch {record.epoch}")
    if record is not None:
        message = f"process {record.pid} died in epoch {record.epoch} without a goodbye; the lock is free"
        return Check("owner", "warn", message, "the next node takes over: modeld serve")
    return Check("owner", "ok", "nobody; the lock is free")


_RESTART: Final = "end the process that runs `modeld serve` and start it again"


def _running(seen: OwnerState) -> OwnerRecord | None:
    return seen.record if seen.state == "running" else None


def _socket(seen: OwnerState) -> Check:
    import stat

    record = _running(seen)
    if record is None:
        return Check("socket", "ok", "none, as no node runs")
    path = record.endpoint.removeprefix("unix:")
    try:
        mode = os.lstat(path).st_mode
    except OSError as error:
        return Check("socket", "fail", f"{path or 'the record'}: {error.strerror}", _RESTART)
    if not stat.S_ISSOCK(mode):
        return Check("socket", "fail", f"{path} is no socket", _RESTART)
    if mode & 0o077:
        message = f"others may use {path} (mode {mode & 0o777:04o})"
        return Check("socket", "fail", message, f"run: chmod 600 '{path}'")
    return Check("socket", "ok", f"{path} (mode {mode & 0o777:04o})")


def _answer(root: Path, seen: OwnerState) -> Iterator[Check]:
    if _running(seen) is None:
        yield Check("node", "ok", "none is running; modeld run and modeld serve start one")
        return
    from modeld.client import connect
    from modeld.session.values import AuditReport

    async def ask() -> tuple[NodeStatus, AuditReport]:
        async with await connect(root, timeout=_ANSWER_SECONDS) as client:
            return await client.status(), await client.audit()

    try:
        status, audit = finish(ask())
    except ModeldError as error:
        yield Check("node", "fail", error.message, _RESTART)
        return
    if audit.faults:
        yield Check("node", "fail", f"its ledger is wrong: {'; '.join(audit.faults)}", "run: modeld unload")
    else:
        yield Check("node", "ok", f"process {status.pid} answers; {status.model or 'no model'} is loaded")
    yield _http(status)


def _http(status: NodeStatus) -> Check:
    from modeld.cli.web import without_http

    if status.http.startswith(("http://", "https://")):
        return Check("http", "ok", f"{status.http}; modeld launch prints settings for tools")
    message = f"off: {without_http(status)}"
    return (
        Check("http", "warn", message, "end the node first with modeld stop")
        if status.http
        else Check("http", "ok", message)
    )


def _backends(root: Path) -> Check:
    """Their list, and whether each key can be had from here. No backend is called."""
    from modeld.node.backends import list_backends, read_secret

    try:
        found = list_backends(root)
    except ModeldError as error:
        return Check("backends", "fail", error.message)
    missing: list[str] = []
    for backend in found:
        try:
            read_secret(root, backend)
        except ModeldError as error:
            missing.append(f"{backend.name}: {error.message}")
    if missing:
        hint = "set it, or register the backend again: modeld backends rm NAME, modeld backends add NAME"
        return Check("backends", "warn", "; ".join(missing), hint)
    names = ", ".join(backend.name for backend in found)
    return Check("backends", "ok", names or "none is registered; modeld backends add registers one")


def _engine(name: str, packages: str, *, needed: bool) -> Check:
    """Whether its native library loads, and what it finds. :param needed: it is wrong not to have it."""
    import json
    import subprocess

    # In a process of its own: a native library that aborts must not take this one along. -P: not from this folder.
    command = [sys.executable, "-P", "-c", _ENGINE_PROGRAM, name]
    reinstall = f"install it: pip install --force-reinstall {packages}"
    try:
        done = subprocess.run(command, capture_output=True, timeout=_ENGINE_SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return Check(name, "fail", f"{packages} did not load within {_ENGINE_SECONDS:g} s", reinstall)
    if done.returncode != 0:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        return Check(name, "fail", "".join(last) or f"loading it ended with {done.returncode}", reinstall)
    found = json.loads(done.stdout)
    if message := found.get("missing"):
        return Check(name, "fail" if needed else "ok", message)
    if message := found.get("wrong"):
        return Check(name, "fail", message)
    devices = ", ".join(_device(device) for device in found["devices"]) or "processor only"
    return Check(name, "ok", f"{found['build']}; {devices}")


def _device(device: dict[str, Any]) -> str:
    from modeld.node.capacity import human_bytes

    free, total = device.get("free", 0), device.get("total", 0)
    return f"{device['name']} ({human_bytes(free)} of {human_bytes(total)} free)"


def _bundled() -> Check:
    import hashlib

    from modeld.node.gguf import read_header
    from modeld.node.store import BUNDLED_NAME, bundled_path

    path = bundled_path()
    try:
        read_header(path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except (ModeldError, OSError) as error:
        return Check("bundled model", "fail", str(error), "install modeld again")
    return Check("bundled model", "ok", f"{BUNDLED_NAME}, SHA-256 {digest}")


def _memory() -> Check:
    from modeld.node.capacity import free_memory, human_bytes

    memory = free_memory()
    message = f"{human_bytes(memory.free)} of {human_bytes(memory.total)} free"
    if memory.free < _LOW_MEMORY:
        return Check("memory", "warn", message, "large models will be refused: close other programs")
    return Check("memory", "ok", message)
