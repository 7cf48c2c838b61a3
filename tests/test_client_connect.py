"""Finding, proving, starting and losing a node, from a client's side."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import modeld
from modeld import (
    DeadlineExceededError,
    Message,
    ModeldError,
    ModelNotFoundError,
    NodeNotRunningError,
    NodeStaleError,
    NodeUnreachableError,
    client,
)
from modeld.node.record import RECORD_NAME, probe, require_running

FAKE_NODE = Path(__file__).parent / "transport" / "fake_node.py"
HELLO = [Message("user", "to be or not")]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Nodes find this package, and no test finds the user's own node."""
    monkeypatch.setenv("PYTHONPATH", str(Path(modeld.__file__).parent.parent))
    monkeypatch.setenv("MODELD_DATA_ROOT", str(tmp_path / "default"))
    yield
    modeld.set_data_root(None)


def wait_for(so: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not so():
        assert time.monotonic() < end
        time.sleep(0.01)


def start_node(root: Path, *arguments: str) -> subprocess.Popen[bytes]:
    child = subprocess.Popen([sys.executable, str(FAKE_NODE), str(root), *arguments])

    def published() -> bool:
        # By pid: for a moment the record beside the new owner's lock is its predecessor's.
        record = probe(root).record
        return record is not None and record.pid == child.pid and record.endpoint != ""

    wait_for(published)
    return child


@pytest.fixture
def node(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    child = start_node(tmp_path / "root")
    modeld.set_data_root(tmp_path / "root")
    yield child
    child.kill()
    child.wait()


@pytest.fixture
def starting(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``connect(start=True)`` runs this program instead of ``modeld serve``."""

    def use(*command: str) -> None:
        monkeypatch.setattr(client, "_command", lambda root: [sys.executable, *command, str(root)])

    return use


@pytest.fixture
def made_root(tmp_path: Path) -> Iterator[Path]:
    """A data root that is not there yet. Whoever was started to own it goes with it, failing test or not."""
    root = tmp_path / "made" / "root"
    yield root
    seen = probe(root)
    if seen.state == "running" and seen.record is not None:
        os.kill(seen.record.pid, signal.SIGKILL)


def edit_record(root: Path, **changes: object) -> None:
    path = root / RECORD_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_looking_for_a_node_dials_nobody(node, monkeypatch) -> None:
    def blocked(*arguments: object) -> None:
        raise AssertionError("a socket was made")

    monkeypatch.setattr(socket, "socket", blocked)
    assert modeld.available()
    assert modeld.backend() == "fake"
    node.kill()
    node.wait()
    assert not modeld.available()
    assert modeld.backend() == ""


def test_the_data_root_is_the_one_that_was_set(tmp_path) -> None:
    assert not modeld.available()
    modeld.set_data_root(tmp_path / "nobody")
    assert not modeld.available()
    assert os.listdir(tmp_path) == []


@pytest.mark.anyio
async def test_no_node_is_not_running(tmp_path) -> None:
    for call in (modeld.connect(tmp_path), modeld.open_session("tiny"), modeld.describe("tiny")):
        with pytest.raises(NodeNotRunningError):
            await call


@pytest.mark.anyio
async def test_a_dead_node_is_stale(node) -> None:
    node.kill()
    node.wait()
    with pytest.raises(NodeStaleError) as caught:
        await modeld.open_session("tiny")
    assert caught.value.pid == node.pid


@pytest.mark.anyio
async def test_another_instance_at_the_endpoint_is_unreachable(node, tmp_path) -> None:
    edit_record(tmp_path / "root", instance_id="f" * 32)
    with pytest.raises(NodeUnreachableError, match="somebody else"):
        await modeld.connect()
    edit_record(tmp_path / "root", endpoint=f"unix:{tmp_path}/nobody")
    with pytest.raises(NodeUnreachableError) as caught:
        await modeld.connect()
    assert caught.value.pid == node.pid


@pytest.mark.anyio
async def test_a_node_that_hangs_is_unreachable(node) -> None:
    node.send_signal(signal.SIGSTOP)  # the kernel accepts, nobody answers
    try:
        with pytest.raises(NodeUnreachableError, match=r"0\.3 s"):
            await modeld.connect(timeout=0.3)
    finally:
        node.send_signal(signal.SIGCONT)


@pytest.mark.anyio
async def test_a_node_that_is_starting_is_waited_for(node, tmp_path) -> None:
    record = tmp_path / "root" / RECORD_NAME
    whole = record.read_bytes()
    # As it is between the lock and the socket.
    edit_record(tmp_path / "root", endpoint="")
    with pytest.raises(NodeUnreachableError, match="names no endpoint"):
        await modeld.connect(timeout=0.2)
    asyncio.get_running_loop().call_later(0.3, record.write_bytes, whole)
    async with await modeld.connect(timeout=20) as found:
        await found.status()


@pytest.mark.anyio
async def test_sessions_of_one_loop_share_a_connection_until_the_owner_changes(node, tmp_path) -> None:
    first = await modeld.open_session("tiny")
    second = await modeld.open_session("tiny")
    assert first._route is second._route
    before = first._route.node
    assert (await modeld.describe("tiny")).name == "tiny"
    with pytest.raises(ModelNotFoundError):
        await modeld.open_session("missing")
    node.kill()
    node.wait()
    successor = await asyncio.to_thread(start_node, tmp_path / "root")
    try:
        third = await modeld.open_session("tiny")
        assert first._route.node is not before
        assert third.handle.epoch == first.handle.epoch + 1
        for session in (third, first):
            assert (await session.turn(HELLO).join()).text == "tobeornot"
    finally:
        successor.kill()
        successor.wait()


def test_each_loop_has_its_own_connection(node) -> None:
    async def once() -> str:
        return (await (await modeld.open_session("tiny")).turn(HELLO).join()).text

    assert [asyncio.run(once()) for _ in range(3)] == ["tobeornot"] * 3


@pytest.mark.anyio
async def test_many_clients_start_one_node(made_root, starting) -> None:
    starting(str(FAKE_NODE))
    root = made_root
    clients = await asyncio.gather(*(modeld.connect(root, start=True) for _ in range(4)))
    record = require_running(root)
    assert {c.record.instance_id for c in clients} == {record.instance_id}
    assert (await clients[0].status()).state == "ready"
    assert os.stat(root).st_mode & 0o777 == 0o700
    assert os.stat(root / "node.log").st_mode & 0o777 == 0o600
    assert os.getsid(record.pid) != os.getsid(0)
    await clients[0].shutdown()
    for c in clients:
        await c.aclose()
    await asyncio.to_thread(wait_for, lambda: probe(root).state == "not_running")
    # The one that won was our child too: it is waited for, not left behind.
    await asyncio.to_thread(wait_for, lambda: not os.path.exists(f"/proc/{record.pid}"))


@pytest.mark.anyio
async def test_a_node_that_runs_is_not_started_again(node, starting) -> None:
    starting("-c", "raise SystemExit('must not run')")
    async with await modeld.connect(start=True) as connected:
        assert connected.record.pid == node.pid


@pytest.mark.anyio
async def test_a_node_that_ends_at_once_tells_why(tmp_path, starting) -> None:
    starting("-c", "import sys; print('\\n' * 50 + 'no such device'); sys.exit(7)")
    with pytest.raises(ModeldError, match="no such device") as caught:
        await modeld.connect(tmp_path / "root", start=True)
    assert caught.value.exit_status == 7
    assert len(str(caught.value).splitlines()) <= 12


@pytest.mark.anyio
async def test_a_node_that_ends_at_once_without_a_word_says_where_to_look(tmp_path, starting) -> None:
    starting("-c", "import sys; sys.exit(7)")
    with pytest.raises(ModeldError, match="exit code 7, and wrote no log; `modeld serve` shows why"):
        await modeld.connect(tmp_path / "root", start=True)


@pytest.mark.anyio
async def test_a_node_that_never_answers_is_given_up(tmp_path, starting) -> None:
    starting("-c", "import sys, time; time.sleep(3)")
    with pytest.raises(DeadlineExceededError, match=r"node\.log"):
        await modeld.connect(tmp_path / "root", start=True, timeout=0.5)


def test_a_node_does_not_import_from_the_callers_folder(tmp_path, starting, monkeypatch) -> None:
    """``python -m`` looks there first, and it may be anybody's repository."""
    (tmp_path / "asyncio.py").write_text("raise SystemExit(66)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.path.relpath(os.environ["PYTHONPATH"]))
    starting("-c", "import sys, asyncio, modeld; sys.exit(5)")
    with pytest.raises(ModeldError) as caught:
        asyncio.run(modeld.connect(tmp_path / "root", start=True))
    assert caught.value.exit_status == 5


def test_the_program_that_is_started(tmp_path) -> None:
    assert client._command(tmp_path)[1:] == ["-m", "modeld", "serve", "--data-root", str(tmp_path)]
