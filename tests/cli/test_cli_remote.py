"""Hazards of nodes elsewhere: a token that is seen, a node that is not the pinned one, an owner that is not named."""

from __future__ import annotations

import os
import re
import signal
import socket
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modeld.transport.security import IDENTITY_NAME, TOKEN_NAME, read_token

from .conftest import CommandLine, alive

BEYOND = "192.0.2.77"
"""Of no machine (RFC 5737): whatever would speak to it is seen by its refusal."""


def invited(node: subprocess.Popen[bytes]) -> str:
    """The line for another machine, after the one that says what it is."""
    assert node.stderr is not None
    assert "token --show" in node.stderr.readline().decode()
    return node.stderr.readline().decode()


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[CommandLine]:
    """The command line of another machine: it shares no file with the node."""
    made = CommandLine(tmp_path / "elsewhere")
    yield made
    made.close()


@pytest.fixture
def invitation(command: CommandLine) -> list[str]:
    """The words of the line that a node with TLS prints."""
    line = invited(command.serve("--listen", "127.0.0.1:0", "--tls"))
    assert line.startswith("modeld backends add ")
    words = line.split()
    assert words[-2:] == ["--token-file", "-"]
    return words[1:]


@pytest.fixture
def registered(command: CommandLine, elsewhere: CommandLine, invitation: list[str]) -> str:
    """The name under which ``elsewhere`` knows the node."""
    assert elsewhere(*invitation, stdin=(command.root / TOKEN_NAME).read_text()).code == 0
    return invitation[2]


def test_every_command_reaches_a_registered_node(command: CommandLine, elsewhere: CommandLine, registered: str) -> None:
    there = ("--backend", registered)
    assert elsewhere("status", "--json", *there).json["node"]["data_root"] == str(command.root)
    done = elsewhere("run", "fake", "hello", *there)
    assert (done.code, done.out[:7]) == (0, "hello #"), done.err
    assert elsewhere("load", "fake", "--json", *there).json["node"]["model"] == "fake"
    assert len(elsewhere("ps", "--json", *there).json["sessions"]) == 1
    assert [model["name"] for model in elsewhere("models", "--json", *there).json["models"]] == ["tiny"]
    assert elsewhere("describe", "fake", "--json", *there).json["resident"]
    assert elsewhere("unload", "--json", *there).json["engine"] is None
    # Nothing was started here.
    assert elsewhere("status", "--json").json["node"] is None


def test_the_prompt_comes_back_after_the_node_did(
    command: CommandLine, elsewhere: CommandLine, invitation: list[str]
) -> None:
    """A node that was started again is another owner; the next turn finds it."""
    assert elsewhere(*invitation, stdin=(command.root / TOKEN_NAME).read_text()).code == 0
    terminal = elsewhere.terminal("run", "--backend", invitation[2], "fake")
    terminal.expect(">>> ")
    terminal.type("one\n")
    terminal.expect("one #")
    assert command("stop").code == 0
    port = invitation[invitation.index("--url") + 1].rpartition(":")[2]
    command.serve("--listen", f"127.0.0.1:{port}", "--tls")
    terminal.expect(">>> ")
    terminal.type("two\n")
    terminal.expect("modeld: ")
    terminal.expect(">>> ")
    terminal.type("three\n")
    terminal.expect("three #")
    terminal.expect(">>> ")
    terminal.type("\x04")
    assert terminal.end() == 0


def test_no_output_and_no_file_but_its_own_holds_the_token(
    command: CommandLine, elsewhere: CommandLine, registered: str
) -> None:
    secret = read_token(command.root)
    there = ("--backend", registered)
    command.env["XDG_RUNTIME_DIR"] = elsewhere.env["XDG_RUNTIME_DIR"] = str(command.root.parent)
    shown = [
        done.out + done.err
        for run in (command, elsewhere)
        for done in (
            run("status", "--json"),
            run("status"),
            run("who"),
            run("who", "--json"),
            run("token"),
            run("token", "--json"),
            run("token", "--show"),
            run("doctor", "--json"),
            run("backends", "list"),
            run("backends", "list", "--json"),
            run("status", "--json", *there),
            run("run", "fake", "hello", *there),
            run("backends", "add", registered, "--url", "modeld+tls://127.0.0.1:1", stdin=secret),
            run("status", "--json", *there),
            run("backends", "add", "x", "--url", "nonsense", stdin=secret),
            run("backends", "add", "x", "--url", "modeld://127.0.0.1:1", stdin=secret + " " + secret),
            run("backends", "add", "x", "--url", "modeld://127.0.0.1:1", "--token-file", str(run.root / "none")),
        )
    ]
    # A node that is started on demand has a log.
    assert elsewhere("load", "tiny").code == 0
    for text in shown:
        assert secret not in text
    files = {path for root in (command.root, elsewhere.root) for path in root.rglob("*") if path.is_file()}
    holding = {path for path in files if secret.encode() in path.read_bytes()}
    assert elsewhere.root / "node.log" in files
    stored = {root / "secrets" / registered for root in (command.root, elsewhere.root)}
    assert holding == {command.root / TOKEN_NAME, *stored}
    assert {stat.S_IMODE(path.stat().st_mode) for path in holding} == {0o600}
    key = (command.root / IDENTITY_NAME).read_bytes().splitlines()[1]
    assert [path for path in files if key in path.read_bytes()] == [command.root / IDENTITY_NAME]


def test_the_node_says_its_token_nowhere(command: CommandLine) -> None:
    node = command.serve("--listen", "127.0.0.1:0", "--tls")
    secret = read_token(command.root).encode()
    for name in ("cmdline", "environ"):
        assert secret not in Path(f"/proc/{node.pid}/{name}").read_bytes()
    node.send_signal(signal.SIGTERM)
    out, err = node.communicate(timeout=60)
    assert node.returncode == 0
    assert secret.decode() not in command.ready_line
    assert secret not in out + err


def test_wrong_token_pin_and_port_are_told_apart(
    command: CommandLine, elsewhere: CommandLine, invitation: list[str]
) -> None:
    token = read_token(command.root)
    url, pin = (invitation[invitation.index(name) + 1] for name in ("--url", "--pin"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = taken.getsockname()[1]
    for name, where, which, secret, code in (
        ("token", url, pin, "x" * 43, "token_wrong"),
        ("pin", url, "sha256:" + "0" * 64, token, "unreachable"),
        ("port", f"modeld+tls://127.0.0.1:{closed}", pin, token, "unreachable"),
    ):
        added = elsewhere("backends", "add", name, "--url", where, "--pin", which, stdin=secret)
        assert added.code == 0, added.err
        done = elsewhere("status", "--json", "--backend", name)
        assert (done.code, done.json["error"]["code"]) == (1, code)
        assert done.err.count("modeld: ") == 1
    assert elsewhere("status", "--json", "--backend", "pin").json["error"]["details"]["reason"] == "pin"
    done = elsewhere("status", "--json", "--backend", "nobody")
    assert (done.code, done.json["error"]["code"]) == (1, "backend_not_found")


def test_beyond_loopback_there_is_no_plain_tcp(command: CommandLine) -> None:
    done = command("serve", "--listen", f"{BEYOND}:0", "--no-tls")
    assert done.code == 1
    assert "without TLS" in done.err
    assert not (command.root / TOKEN_NAME).exists()
    done = command("backends", "add", "x", "--url", f"modeld://{BEYOND}:1", "--json", stdin="x" * 43)
    assert (done.code, done.json["error"]["code"]) == (1, "tls_required")
    assert command("status", "--json").json["node"] is None


def test_given_files_are_served_and_their_pin_is_told(command: CommandLine, elsewhere: CommandLine) -> None:
    from modeld.transport.security import ensure_identity

    identity = ensure_identity(command.root.parent / "files", "127.0.0.1")
    certificate, key = command.root.parent / "cert.pem", command.root.parent / "key.pem"
    certificate.write_bytes(identity.chain)
    key.write_bytes(identity.key)
    key.chmod(0o600)
    node = command.serve("--listen", "127.0.0.1:0", "--tls-cert", str(certificate), "--tls-key", str(key))
    words = invited(node).split()
    assert words[words.index("--pin") + 1] == identity.pin
    assert elsewhere(*words[1:], stdin=read_token(command.root)).code == 0
    assert elsewhere("status", "--backend", words[3]).code == 0
    assert not (command.root / IDENTITY_NAME).exists()
    done = elsewhere("serve", "--listen", "127.0.0.1:0", "--tls-cert", str(certificate))
    assert (done.code, "needs its key" in done.err) == (1, True)


def test_a_plain_node_on_loopback_is_reached_with_the_token_file(command: CommandLine, elsewhere: CommandLine) -> None:
    command.serve("--listen", "127.0.0.1:0")
    found = re.search(r"(127\.0\.0\.1:\d+)", command.ready_line)
    assert found
    url = f"modeld://{found[1]}"
    token = str(command.root / TOKEN_NAME)
    assert elsewhere("backends", "add", "here", "--url", url, "--token-file", token).code == 0
    assert elsewhere("status", "--backend", "here").code == 0
    assert elsewhere("backends", "list", "--json").json["backends"] == [
        {"name": "here", "type": "modeld", "url": url, "pin": "", "key": "file:secrets/here"}
    ]
    assert elsewhere("backends", "rm", "here").code == 0
    assert elsewhere("backends", "list", "--json").json["backends"] == []
    assert elsewhere("backends", "rm", "here").code == 1


@pytest.mark.parametrize(
    "words",
    [
        ("backends",),
        ("backends", "add"),
        ("backends", "add", "x"),
        ("backends", "add", "x", "--url", "http://127.0.0.1:1"),
        ("backends", "add", "x", "--url", "modeld+tls://h:1", "--pin", "abc"),
        ("backends", "add", "x", "--url", "modeld://127.0.0.1:1", "--pin", "sha256:" + "0" * 64),
        ("backends", "add", "x", "--url", "modeld://127.0.0.1:1", "--type", "openai"),
        ("backends", "add", "x", "--url", "modeld://127.0.0.1:1", "--token", "secret"),
        ("backends", "nonsense"),
    ],
)
def test_wrong_usage_is_exit_2(command: CommandLine, words: tuple[str, ...]) -> None:
    done = command(*words, stdin="x" * 43)
    assert done.code == 2
    assert not command.root.exists()


def test_a_terminal_is_asked_for_the_token_and_does_not_show_it(command: CommandLine) -> None:
    terminal = command.terminal("backends", "add", "x", "--url", "modeld://127.0.0.1:1")
    terminal.expect("token (`modeld token --show` on the node's machine): ")
    time.sleep(0.2)  # getpass turns the echo off after it has asked
    terminal.type("the-token-of-the-tests-4711\n")
    assert "4711" not in terminal.expect("x is registered")
    assert terminal.end() == 0
    assert (command.root / "secrets" / "x").read_text() == "the-token-of-the-tests-4711\n"
    assert "4711" not in (command.root / "backends.json").read_text()


def test_the_token_is_shown_on_a_terminal_only(command: CommandLine) -> None:
    path = command.root / TOKEN_NAME
    assert command("token").out == f"{path}\n"
    assert command("token", "--json").json == {"path": str(path), "exists": False}
    assert command("token", "--show").code == 1
    assert not path.exists()
    terminal = command.terminal("token", "--show")
    shown = terminal.expect("\n").strip()
    assert terminal.end() == 0
    assert shown == read_token(command.root)
    assert command("token", "--json").json["exists"]
    done = command("token", "--show", "--json")
    assert (done.code, shown in done.out + done.err) == (1, False)


def test_who_names_owner_and_engine(command: CommandLine, tmp_path: Path) -> None:
    runtime = {"XDG_RUNTIME_DIR": str(tmp_path)}
    nobody = command("who", "--json", env=runtime).json
    assert (nobody["state"], nobody["owner"], nobody["engine"]) == ("not_running", None, None)
    node = command.serve()
    assert command("load", "fake").code == 0
    found = command("who", "--json", env=runtime).json
    assert found["owner"]["pid"] == node.pid
    assert found["owner"]["epoch"] == 1
    assert "serve --allow-fake" in found["owner"]["command"]
    assert alive(found["engine"]["pid"])
    assert found["engine"]["rss"] > 2**20
    text = command("who", env=runtime).out
    assert f"process {node.pid}, epoch 1, since " in text
    assert f"process {found['engine']['pid']}, fake, " in text
    node.kill()
    node.wait()
    assert command("who", "--json", env=runtime).json["state"] == "stale"
    assert "died" in command("who", env=runtime).out


def test_who_names_an_owner_that_does_not_answer(command: CommandLine, tmp_path: Path) -> None:
    node = command.serve()
    os.kill(node.pid, signal.SIGSTOP)
    try:
        found = command("who", "--json", env={"XDG_RUNTIME_DIR": str(tmp_path)}).json
    finally:
        os.kill(node.pid, signal.SIGCONT)
    assert found["owner"]["pid"] == node.pid
    assert found["problem"]


def test_a_second_signal_ends_the_node_at_once(command: CommandLine, node: subprocess.Popen[bytes]) -> None:
    child = command.start("run", "fake:delay=0.05", "!count 2000")
    assert child.stdout is not None
    child.stdout.read(1)
    engine = command("ps", "--json").json["engine"]["pid"]
    node.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert node.poll() is None, "the answer that runs has its time"
    began = time.monotonic()
    node.send_signal(signal.SIGTERM)
    assert node.wait(60) == -signal.SIGTERM
    assert time.monotonic() - began < 1
    child.kill()
    end = time.monotonic() + 5
    while alive(engine) and time.monotonic() < end:
        time.sleep(0.02)
    assert not alive(engine)
    assert "epoch 2" in (command.serve(), command.ready_line)[1]


def test_draining_ends_where_an_answer_does_not(command: CommandLine, node: subprocess.Popen[bytes]) -> None:
    child = command.start("run", "fake:delay=0.05", "!count 2000")
    assert child.stdout is not None
    child.stdout.read(1)
    began = time.monotonic()
    node.send_signal(signal.SIGTERM)
    assert node.wait(60) == 0
    # It had its five seconds; the answer alone would take minutes.
    assert 4 < time.monotonic() - began < 30
    # It may have started a successor to go on with.
    child.kill()
    child.wait(10)
