"""Find the node of a data root, connect to it, and start one where asked.

:func:`available` and :func:`backend` read the owner's record and dial nobody. Only ``connect(start=True)`` starts a
node.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from modeld.errors import (
    DeadlineExceededError,
    ModeldError,
    NodeError,
    NodeNotRunningError,
    NodeStaleError,
)
from modeld.node.record import OwnerRecord, default_data_root, probe, require_running
from modeld.session.values import ModelDescription, ModelRef, SessionConfig

if TYPE_CHECKING:
    from modeld.transport.leader import LeaderNode as Client
    from modeld.transport.leader import LeaderSession

DataRoot = str | os.PathLike[str]

_HELLO_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.02
_START_SECONDS: Final = 20.0
_START_LOCK: Final = "start.lock"
_OWNER_HELD: Final = 3
"""Exit code of ``modeld serve`` when another process owns the data root."""

_data_root: Path | None = None


def set_data_root(path: DataRoot | None) -> None:
    """Choose the data root for every call of this process that names none; ``None`` goes back to the default.

    The default is ``MODELD_DATA_ROOT``, else the user's data directory. Connections that are open stay as they are.
    """
    global _data_root
    _data_root = None if path is None else _absolute(path)


def available() -> bool:
    """Whether a node owns the data root now. It is not dialed: it may still fail to answer."""
    return probe(_root(None)).state == "running"


def backend() -> str:
    """Engine of the node that owns the data root, from its record alone.

    ``llama``, ``openvino``, ...: the resident or last loaded one, or the first it can serve; ``none``: it can serve
    nothing; ``""``: nobody owns the data root.
    """
    seen = probe(_root(None))
    return seen.record.backend if seen.state == "running" and seen.record is not None else ""


def owner() -> OwnerRecord:
    """The record of the node that owns the data root now. It is not dialed: it may still fail to answer.

    :raises NodeNotRunningError: nobody owns the data root. :raises NodeStaleError: its last owner died.
    :raises NodeUnreachableError: the owner is still starting.
    """
    return require_running(_root(None))


def data_root() -> Path:
    """The data root of calls that name none: see :func:`set_data_root`."""
    return _root(None)


async def connect(
    data_root: DataRoot | None = None,
    *,
    start: bool = False,
    timeout: float = 30.0,  # noqa: ASYNC109 - a deadline of the whole, starting a process included
) -> Client:
    """Connect to the node of ``data_root``, and prove that it is the one its record names.

    The client follows the data root's owner: see :class:`modeld.transport.leader.LeaderNode`. With ``start`` it also
    starts another node should that one end while the client is used.

    :param start: where no node runs, start one in the background and wait for it. It outlives this process.
    :param timeout: seconds for all of it.
    :raises NodeNotRunningError: nobody owns the data root.
    :raises NodeStaleError: its last owner died.
    :raises NodeUnreachableError: an owner lives, but does not answer, or another instance does.
    :raises DeadlineExceededError: the node that was started is not up in time.
    :raises ModeldError: the node that was started ended at once; the message has the end of its log.
    """
    root = _root(data_root)
    return await _connected(root, timeout, start=start)


async def describe(ref: ModelRef | str, config: SessionConfig | None = None) -> ModelDescription:
    """What a model is and whether it fits, from the node of the data root. Nothing is loaded and no node is started.

    :raises NodeError: as :func:`connect`. :raises ModelError: as the node says.
    """
    return await (await shared_client()).describe(ref, config)


async def open_session(ref: ModelRef | str, config: SessionConfig | None = None) -> LeaderSession:
    """Open a session on the node of the data root. No node is started.

    The client is one per event loop and data root, and follows its owner.

    :raises NodeError: as :func:`connect`; ``backend_mismatch`` where the node cannot serve this type of model.
    :raises ModelError: as the node says.
    """
    return await (await shared_client()).open_session(ref, config)


def _root(data_root: DataRoot | None) -> Path:
    if data_root is not None:
        return _absolute(data_root)
    return _data_root or default_data_root()


def _absolute(path: DataRoot) -> Path:
    return Path(path).expanduser().absolute()


class _Connections:
    """The clients of one event loop, by data root. Each follows its root's owner by itself."""

    def __init__(self) -> None:
        self._connecting = asyncio.Lock()
        self._clients: dict[Path, Client] = {}

    async def get(self, root: Path) -> Client:
        async with self._connecting:
            client = self._clients.get(root)
            if client is None:
                client = self._clients[root] = await _connected(root, _HELLO_SECONDS)
            return client


_connections: WeakKeyDictionary[asyncio.AbstractEventLoop, _Connections] = WeakKeyDictionary()
_connections_lock = threading.Lock()


async def shared_client() -> Client:
    """The client that :func:`open_session` uses: one for each event loop and data root. Do not close it.

    No node is started. :raises NodeError: as :func:`connect`.
    """
    loop = asyncio.get_running_loop()
    with _connections_lock:
        connections = _connections.setdefault(loop, _Connections())
    return await connections.get(_root(None))


async def _connected(root: Path, seconds: float, *, start: bool = False) -> Client:
    from modeld.transport.leader import PATIENCE, LeaderNode

    # Starting a process takes longer than waiting for one that takes over.
    starter, patience = (_Starter(root), max(seconds, PATIENCE)) if start else (None, PATIENCE)
    client = LeaderNode(root, patience=patience, starter=starter)
    try:
        await client.connect(seconds)
    except (NodeNotRunningError, NodeStaleError) as error:
        if not start:
            raise
        raise DeadlineExceededError(
            f"the node of {str(root)!r} was not up within {seconds:g} s; its log is {_log_path(root)}"
        ) from error
    except BaseException:
        await client.aclose()
        raise
    return client


class _Starter:
    """Starts a node of ``root`` in the background. Of several starters, in any process, one does, the rest wait.

    The file lock only saves work: should two nodes be started nevertheless, one becomes the owner and the other ends.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._thread: threading.Thread | None = None
        self._child: subprocess.Popen[bytes] | None = None
        self._failure: OSError | None = None

    async def start(self) -> None:
        """Start a node, unless one that was started is on its way.

        :raises ModeldError: it could not be started, or ended at once.
        """
        failure, self._failure = self._failure, None
        if failure is not None:
            raise NodeError(
                f"no node can be started in {str(self._root)!r}: {failure}; mend that or choose another data root",
                data_root=str(self._root),
            ) from failure
        child = self._child
        if child is not None and child.returncode not in (None, _OWNER_HELD):
            self._child = None
            raise ModeldError(
                await asyncio.to_thread(_ended, self._root, child.returncode), exit_status=child.returncode
            )
        if self._thread is None or not self._thread.is_alive():
            # A thread of its own: who gives up does not wait for it.
            self._thread = threading.Thread(target=self._run, name="modeld node starter", daemon=True)
            self._thread.start()

    def won(self, record: OwnerRecord) -> None:
        """This owner answers. Was ours not the one, it ends: it gives up anyway, or takes over should that one end."""
        child, self._child = self._child, None
        if child is not None and child.pid != record.pid:
            child.terminate()

    def _run(self) -> None:
        try:
            with _start_lock(self._root) as mine:
                if not mine or probe(self._root).state == "running":
                    return
                child = self._child = _spawn(self._root)
                end = time.monotonic() + _START_SECONDS
                while child.poll() is None and probe(self._root).state != "running" and time.monotonic() < end:
                    time.sleep(_POLL_SECONDS)
        except OSError as error:
            self._failure = error
        else:
            # Somebody must wait for it, or it stays a zombie while this process lives.
            child.wait()


@contextlib.contextmanager
def _start_lock(root: Path) -> Iterator[bool]:
    """Whether nobody else starts a node of ``root`` now; the kernel frees it with its holder."""
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    fd = os.open(root / _START_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        mine = True
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            mine = False
        yield mine
    finally:
        os.close(fd)


def _spawn(root: Path) -> subprocess.Popen[bytes]:
    environment = dict(os.environ)
    if path := environment.get("PYTHONPATH"):
        environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(entry) for entry in path.split(os.pathsep) if entry)
    log = os.open(_log_path(root), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        return subprocess.Popen(
            _command(root),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            # ``-m`` looks for modules in the working directory first: ours may be anybody's repository.
            cwd=root,
            env=environment,
        )
    finally:
        os.close(log)


def _command(root: Path) -> list[str]:
    return [sys.executable, "-m", "modeld", "serve", "--data-root", str(root)]


def _log_path(root: Path) -> Path:
    return root / "node.log"


def _ended(root: Path, code: int) -> str:
    tail = b""
    with contextlib.suppress(OSError), open(_log_path(root), "rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        tail = file.read()
    lines = tail.decode("utf-8", "replace").splitlines()[-10:]
    if not lines:
        return f"the node ended at once with exit code {code}, and wrote no log; `modeld serve` shows why"
    return "\n".join([f"the node ended at once with exit code {code}; the end of {_log_path(root)}:", *lines])
