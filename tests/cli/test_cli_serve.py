"""Hazards of serving: two owners, an engine that outlives its node, a lease that is gone, words that mean nothing."""

from __future__ import annotations

import re
import signal
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.cli.options import parse_address, parse_duration, parse_size
from modeld.cli.output import duration, receipt_line, visible
from modeld.errors import InvalidRequestError
from modeld.types import EndPart, Receipt, ReuseStop, Usage

from .conftest import CommandLine, alive, read_line


def test_the_ready_line_says_who_serves_what_and_where(command: CommandLine) -> None:
    node = command.serve("--listen", "127.0.0.1:0", "--idle-ttl", "2h")
    socket = re.escape(str(command.root / "modeld.sock"))
    assert re.fullmatch(
        rf"modeld: ready: process {node.pid}, data root {re.escape(str(command.root))}, "
        rf"unix:{socket} and 127\.0\.0\.1:\d+, epoch 1\n",
        command.ready_line,
    )
    status = command("status", "--json").json["node"]
    assert status["idle_ttl"] == 7200
    assert len(status["endpoints"]) == 2


def test_a_second_node_names_the_first_and_exits_3(command: CommandLine, node: subprocess.Popen[bytes]) -> None:
    second = command("serve")
    assert (second.code, second.out) == (3, "")
    assert second.err.count("\n") == 1
    assert f"process {node.pid} (" in second.err
    assert "serve --allow-fake" in second.err
    assert f"unix:{command.root}/modeld.sock" in second.err
    assert node.poll() is None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_node_and_its_engine(
    command: CommandLine, node: subprocess.Popen[bytes], number: signal.Signals
) -> None:
    assert command("run", "fake", "hello").code == 0
    engine = command("ps", "--json").json["engine"]["pid"]
    node.send_signal(number)
    assert node.wait(60) == 0
    assert not alive(engine)
    assert command("status", "--json").json["node"] is None


def test_a_signal_lets_a_running_answer_end(command: CommandLine, node: subprocess.Popen[bytes]) -> None:
    child = command.start("run", "fake:delay=0.01", "!count 40")
    assert child.stdout is not None
    child.stdout.read(1)
    node.send_signal(signal.SIGTERM)
    assert "ending: running calls have 5 s" in read_line(node)
    done = command.finish(child)
    assert (done.code, done.out.split()[-1]) == (0, "40"), done.err
    assert node.wait(60) == 0


def test_a_lost_lease_is_exit_4(command: CommandLine, node: subprocess.Popen[bytes]) -> None:
    (command.root / "owner.lock").unlink()
    assert node.wait(60) == 4
    assert node.stderr is not None
    assert node.stderr.read().decode().splitlines()[-1].startswith("modeld: ")


def test_an_address_beyond_loopback_is_refused_without_tls(command: CommandLine) -> None:
    done = command("serve", "--listen", "0.0.0.0:0", "--no-tls")
    assert done.code == 1
    assert "without TLS" in done.err
    assert command("status", "--json").json["node"] is None


def test_durations() -> None:
    said = {"300": 300, "90s": 90, "5m": 300, "2h": 7200, "1d": 86400, "0.5s": 0.5, "off": 0}
    assert {text: parse_duration(text) for text in said} == said
    assert [duration(seconds) for seconds in (0.4, 59, 60, 7500, 90000)] == [
        "0 s",
        "59 s",
        "1 min",
        "2 h 5 min",
        "1 d 1 h",
    ]


def test_sizes() -> None:
    said = {
        "5000000": 5_000_000,
        "512MiB": 2**29,
        "1.5GiB": 3 * 2**29,
        "2TB": 2 * 10**12,
        "3M": 3 * 10**6,
        "0": 0,
        "off": 0,
    }
    assert {text: parse_size(text) for text in said} == said
    assert parse_size("auto") is None
    for text in ("", "-1", "2 GiB", "GiB", "1e9", "9" * 400, "1XB", "1iB"):
        with pytest.raises(InvalidRequestError, match="no size"):
            parse_size(text)
    for text in ("500", "512", "3K", "1023KiB"):
        with pytest.raises(InvalidRequestError, match="too little"):
            parse_size(text)


def test_addresses() -> None:
    said = {
        "127.0.0.1:0": ("127.0.0.1", 0),
        "[::1]:80": ("::1", 80),
        "localhost:65535": ("localhost", 65535),
        "off": None,
    }
    assert {text: parse_address(text) for text in said} == said


@given(st.text(max_size=20) | st.from_regex(r"[0-9.]{0,400}[smhd]?", fullmatch=True))
def test_any_duration_is_a_number_of_seconds_or_refused(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except InvalidRequestError:
        return
    assert (seconds == 0) == (text == "off")
    assert 0 <= seconds < float("inf")


@given(st.text(max_size=20) | st.from_regex(r"\[?[0-9a-f:.]{0,20}\]?:[0-9]{0,7}", fullmatch=True))
def test_any_address_is_a_host_and_a_port_or_refused(text: str) -> None:
    try:
        address = parse_address(text)
    except InvalidRequestError:
        return
    if address is None:
        assert text == "off"
    else:
        host, port = address
        assert 0 <= port <= 65535
        assert text in (
            f"{host}:{port:0{len(text.rpartition(':')[2])}}",
            f"[{host}]:{port:0{len(text.rpartition(':')[2])}}",
        )


@given(st.text())
def test_no_control_character_reaches_a_terminal(text: str) -> None:
    shown = visible(text)
    assert all(c in "\n\t" or (c >= " " and not "\x7f" <= c <= "\x9f") for c in shown)
    assert text.isprintable() <= (shown == text)


def test_receipts_say_what_was_saved_and_why_no_more() -> None:
    receipt = Receipt(reused=10, prefilled=3, decode_seconds=0.5)
    end = EndPart(finish_reason="stop", usage=Usage(input=13, output=23), receipt=receipt)
    assert receipt_line(end) == "13 tokens in (10 reused, 3 prefilled), 23 out, 46 tok/s, stop"
    stop = ReuseStop(reason="message_changed", token=7, message_index=2, character=12)
    receipt = Receipt(reused=7, restored=2, prefilled=3, dropped=4, stop=stop)
    end = EndPart(finish_reason="cancelled", usage=Usage(), receipt=receipt)
    assert receipt_line(end) == (
        "12 tokens in (7 reused, 2 restored, 3 prefilled, 4 dropped), cancelled; "
        "reuse stopped in message 2 at character 12: message_changed"
    )
    lost = Receipt(prefilled=1, stop=ReuseStop(reason="evicted", token=5))
    assert receipt_line(EndPart(finish_reason="length", usage=Usage(output=0), receipt=lost)) == (
        "1 tokens in (0 reused, 1 prefilled), 0 out, length; reuse stopped at token 5: evicted"
    )
