"""Find the node of a data root, connect to it, and start one where asked.

:func:`available` and :func:`backend` read the owner's record and dial nobody. Only ``connect(start=True)`` starts a
node.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final
from weakref import WeakKeyDictionary

from modeld.errors import (
    DeadlineExceededError,
    ModeldError,
    NodeNotRunningError,
    NodeStaleError,
    NodeUnreachableError,
)
from modeld.node.record import OwnerRecord, default_data_root, probe, require_running
from modeld.session.values import ModelDescription, ModelRef, SessionConfig

if TYPE_CHECKING:
    from modeld.transport.grpc.client import RemoteNode as Client
    from modeld.transport.grpc.client import RemoteSession

DataRoot = str | os.PathLike[str]

_HELLO_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.05
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


async def connect(
    data_root: DataRoot | None = None,
    *,
    start: bool = False,
    timeout: float = 30.0,  # noqa: ASYNC109 - a deadline of the whole, starting a process included
) -> Client:
    """Connect to the node of ``data_root``, and prove that it is the one its record names.

    :param start: where no node runs, start one in the background and wait for it. It outlives this process.
    :param timeout: seconds for all of it.
    :raises NodeNotRunningError: nobody owns the data root.
    :raises NodeStaleError: its last owner died.
    :raises NodeUnreachableError: an owner lives, but does not answer, or another instance does.
    :raises DeadlineExceededError: the node that was started is not up in time.
    :raises ModeldError: the node that was started ended at once; the message has the end of its log.
    """
    root = _root(data_root)
    return await (_connect_or_start(root, timeout) if start else _connect_running(root, timeout))


async def describe(ref: ModelRef | str, config: SessionConfig | None = None) -> ModelDescription:
    """What a model is and whether it fits, from the node of the data root. Nothing is loaded and no node is started.

    :raises NodeError: as :func:`connect`. :raises ModelError: as the node says.
    """
    return await (await _shared_client()).describe(ref, config)


async def open_session(ref: ModelRef | str, config: SessionConfig | None = None) -> RemoteSession:
    """Open a session on the node of the data root. No node is started.

    The connection is one per event loop and data root, made again when another node took over.

    :raises NodeError: as :func:`connect`; ``backend_mismatch`` where the node cannot serve this type of model.
    :raises ModelError: as the node says.
    """
    return await (await _shared_client()).open_session(ref, config)


def _root(data_root: DataRoot | None) -> Path:
    if data_root is not None:
        return _absolute(data_root)
    return _data_root or default_data_root()


def _absolute(path: DataRoot) -> Path:
    return Path(path).expanduser().absolute()


async def _connect_running(root: Path, seconds: float) -> Client:
    return await _dial(await asyncio.to_thread(require_running, root), seconds)


async def _dial(record: OwnerRecord, seconds: float) -> Client:
    from modeld.transport.grpc.client import RemoteNode

    client = RemoteNode(record.endpoint, record)
    try:
        await client.prove(seconds)
    except BaseException:
        await client.aclose()
        raise
    return client


class _Connections:
    """The connections of one event loop, by data root."""

    def __init__(self) -> None:
        self._dialing = asyncio.Lock()
        self._clients: dict[Path, Client] = {}

    async def get(self, root: Path) -> Client:
        async with self._dialing:
            record = await asyncio.to_thread(require_running, root)
            client = self._clients.get(root)
            if client is not None:
                known = client.record
                if (known.instance_id, known.epoch) == (record.instance_id, record.epoch):
                    return client
                # What still runs there belongs to an owner of the past.
                del self._clients[root]
                await client.aclose()
            client = self._clients[root] = await _dial(record, _HELLO_SECONDS)
            return client


_connections: WeakKeyDictionary[asyncio.AbstractEventLoop, _Connections] = WeakKeyDictionary()
_connections_lock = threading.Lock()


async def _shared_client() -> Client:
    loop = asyncio.get_running_loop()
    with _connections_lock:
        connections = _connections.setdefault(loop, _Connections())
    return await connections.get(_root(None))


async def _connect_or_start(root: Path, seconds: float) -> Client:
    """Connect, start a node where none runs, and try again until one answers. Of several starters one node wins."""
    child: subprocess.Popen[bytes] | None = None
    last: NodeUnreachableError | None = None
    try:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    client = await _connect_running(root, _HELLO_SECONDS)
                    if child is not None and child.pid != client.record.pid:
                        # Somebody else's won. Ours would give up too, or take over should that one end right now.
                        child.terminate()
                    return client
                except NodeUnreachableError as error:
                    last = error  # it is starting, or taking over
                except (NodeNotRunningError, NodeStaleError):
                    last = None
                    if child is None or child.returncode == _OWNER_HELD:
                        child = await asyncio.to_thread(_spawn, root)
                if child is not None and child.poll() not in (None, _OWNER_HELD):
                    message = await asyncio.to_thread(_ended, root, child.returncode)
                    raise ModeldError(message, exit_status=child.returncode)
                await asyncio.sleep(_POLL_SECONDS)
    except TimeoutError:
        if last is not None:
            raise last from None
        raise DeadlineExceededError(
            f"the node of {str(root)!r} was not up within {seconds:g} s; its log is {_log_path(root)}"
        ) from None


def _spawn(root: Path) -> subprocess.Popen[bytes]:
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    environment = dict(os.environ)
    if path := environment.get("PYTHONPATH"):
        environment["PYTHONPATH"] = os.pathsep.join(os.path.abspath(entry) for entry in path.split(os.pathsep) if entry)
    log = os.open(_log_path(root), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        child = subprocess.Popen(
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
    # Somebody must wait for it, or it stays a zombie while this process lives.
    threading.Thread(target=child.wait, name="modeld node reaper", daemon=True).start()
    return child


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
    return "\n".join([f"the node ended at once with exit code {code}; the end of {_log_path(root)}:", *lines])
