"""Hazards of `serve --http`: a default that takes the node down, a choice ignored, a status that says nothing."""

from __future__ import annotations

import json
import re
import signal
import socket
import urllib.request

from modeld.cli.serve import DEFAULT_HTTP
from modeld.http.server import bound_socket

from .conftest import CommandLine, read_line


def get(url: str, token: str = "") -> dict[str, object]:
    request = urllib.request.Request(url, headers={"authorization": f"Bearer {token}"} if token else {})
    with urllib.request.urlopen(request, timeout=20) as answer:
        found: dict[str, object] = json.load(answer)
        return found


def test_a_named_address_is_served_and_drained_with_the_node(command: CommandLine) -> None:
    node = command.serve("--http", "127.0.0.1:0")
    url = re.search(r"http://127\.0\.0\.1:\d+", command.ready_line)
    assert url is not None
    assert get(f"{url[0]}/health") == {"status": "ok"}
    assert get(f"{url[0]}/v1/models", (command.root / "token").read_text().strip())["object"] == "list"
    status = command("status", "--json").json["node"]
    assert status["http"] == url[0]
    assert status["endpoints"][-1] == url[0]
    assert url[0] in command("status").out
    # Clients of gRPC are not led astray by an endpoint they do not speak.
    assert command("run", "fake", "hello").code == 0
    node.send_signal(signal.SIGTERM)
    assert node.wait(60) == 0


def test_a_named_address_that_is_taken_is_exit_1(command: CommandLine) -> None:
    with bound_socket("127.0.0.1", 0) as taken:
        done = command("serve", "--http", f"127.0.0.1:{taken.getsockname()[1]}")
    assert done.code == 1
    assert "cannot serve HTTP" in done.err
    assert command("status", "--json").json["node"] is None


def test_beyond_loopback_without_tls_is_exit_1(command: CommandLine) -> None:
    done = command("serve", "--http", "0.0.0.0:0", "--no-tls")
    assert done.code == 1
    assert "without TLS" in done.err


def test_the_default_where_it_is_taken_is_told(command: CommandLine) -> None:
    """Who holds it does not matter: another test's node may."""
    del command.env["MODELD_HTTP"]
    host, port = DEFAULT_HTTP.split(":")
    probe = socket.socket()
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((host, int(port)))
        probe.listen()
    except OSError:
        pass
    try:
        node = command.serve()
        assert "modeld.http.door: HTTP is off: cannot serve HTTP on 127.0.0.1:11535" in command.ready_line
        assert "ready: process" in read_line(node)
        assert command("status", "--json").json["node"]["http"].startswith("off: cannot serve HTTP on")
    finally:
        probe.close()


def test_off_is_off(command: CommandLine) -> None:
    command.serve("--http", "off")
    assert "http://" not in command.ready_line
    assert command("status", "--json").json["node"]["http"] == ""
