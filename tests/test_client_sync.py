"""The client without ``await``: the same results, the same errors, and threads that end."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import modeld
from modeld import (
    InvalidRequestError,
    Message,
    ModelNotFoundError,
    NodeNotRunningError,
    SessionClosedError,
    TextPart,
    sync,
)
from modeld.node.record import probe, require_running

FAKE_NODE = Path(__file__).parent / "transport" / "fake_node.py"
HELLO = [Message("user", "to be or not")]


def run_node(root: Path, *arguments: str) -> Iterator[Path]:
    source = str(Path(modeld.__file__).parent.parent)
    command = [sys.executable, str(FAKE_NODE), str(root), *arguments]
    child = subprocess.Popen(command, env={"PYTHONPATH": source})
    end = time.monotonic() + 20
    while (record := probe(root).record) is None or not record.endpoint:
        assert time.monotonic() < end
        time.sleep(0.01)
    yield root
    child.kill()
    child.wait()


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield from run_node(tmp_path / "root")


@pytest.fixture
def waiting_root(tmp_path: Path) -> Iterator[Path]:
    """Its streams send one part and wait to be cancelled."""
    yield from run_node(tmp_path / "root", "--endless")


def test_a_conversation_without_await(root) -> None:
    with sync.connect(root) as node:
        assert node.record == require_running(root)
        assert node.status().state == "ready"
        session = node.open_session("tiny")
        assert session.ensure_prefix(HELLO).receipt.prefilled == 1
        parts = list(session.turn(HELLO))
        assert "".join(part.text for part in parts[:-1]) == session.turn(HELLO).join().text == "tobeornot"
        assert session.fork("copy").handle.name == "copy"
        assert node.attach(session.handle).explain().name == "default"
        with pytest.raises(ModelNotFoundError):
            node.open_session("missing")
        session.close()
        with pytest.raises(SessionClosedError):
            session.turn(HELLO)


def test_a_loop_that_is_left_early_goes_on_where_it_was(root) -> None:
    with sync.connect(root) as node, node.open_session("tiny").turn(HELLO) as stream:
        assert next(stream) == TextPart("to")
        assert [part.text for part in stream if isinstance(part, TextPart)] == ["be", "or", "not"]


def test_cancel_from_another_thread_ends_the_loop(waiting_root) -> None:
    with sync.connect(waiting_root) as node, node.open_session("tiny").turn(HELLO) as stream:
        ends = []
        for part in stream:
            if part == TextPart("first"):
                thread = threading.Thread(target=lambda: ends.append(stream.cancel()))
                thread.start()
            last = part
        thread.join()
        assert ends == [last]
        assert last.finish_reason == "cancelled"


def test_close_stops_the_work(waiting_root) -> None:
    with sync.connect(waiting_root) as node:
        stream = node.open_session("tiny").turn(HELLO)
        next(stream)
        stream.close()
        stream.close()
        with pytest.raises(modeld.CancelledError):
            next(stream)


def test_closing_ends_the_thread(root) -> None:
    node = sync.connect(root)
    # gRPC keeps a poller of its own for good; the thread of our loop must go.
    assert any("portal" in thread.name for thread in threading.enumerate())
    node.close()
    node.close()
    assert not any("portal" in thread.name for thread in threading.enumerate())


def test_failing_to_connect_leaves_no_thread(tmp_path) -> None:
    before = set(threading.enumerate())
    with pytest.raises(NodeNotRunningError):
        sync.connect(tmp_path)
    assert set(threading.enumerate()) <= before


def test_shutdown_ends_the_node(root) -> None:
    with sync.connect(root) as node:
        node.shutdown()
    deadline = time.monotonic() + 10
    while probe(root).state != "not_running":
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_is_left_of_a_closed_client_says_so(root) -> None:
    node = sync.connect(root)
    session = node.open_session("tiny")
    begun = session.turn(HELLO)
    assert next(begun) == TextPart("to")
    saved = node.export_snapshot("0" * 64)
    node.close()
    calls = (session.explain, lambda: session.turn(HELLO), session.decode, begun.join, begun.cancel, node.status)
    for call in (*calls, lambda: next(begun), lambda: next(saved), lambda: node.repository.list_backends()):
        with pytest.raises(InvalidRequestError, match="connect again"):
            call()
    begun.close()
    saved.close()


def test_join_after_a_cancel_gives_the_cancelled_end(waiting_root) -> None:
    with sync.connect(waiting_root) as node, node.open_session("tiny").turn(HELLO) as stream:
        next(stream)
        end = stream.cancel()
        assert stream.join().end == end
        assert stream.join().finish_reason == "cancelled"
