"""Hazard: a user sees that an answer was slow, and not why, nor what to do about it."""

from __future__ import annotations

import subprocess

import pytest

from modeld.cli.explain import show_stop
from modeld.cli.output import receipt_line
from modeld.types import EndPart, Receipt, ReuseStop, Usage

from .conftest import CommandLine

RULES = "Be calm and kind, and count when you are asked to count."
STOP = ReuseStop(
    reason="volatile_header",
    token=27,
    message_index=0,
    character=48,
    old="date: 2026-02-10\nBe\x1b[2J",
    new="date: 2026-02-11\nBe\x1b[2J",
    detail="the system message differs in what looks like a date",
    tokens=521,
    seconds=3.25,
    advice="leave it out",
)


def run(command: CommandLine, day: int, session: str = "s", workspace: str = "default") -> str:
    header = f"{RULES}\nToday is 2026-02-{day}.\n{RULES}"
    words = ("run", "fake", "hello", "--session", session, "--workspace", workspace, "--system", header)
    done = command(*words)
    assert done.code == 0
    return done.err


@pytest.mark.usefixtures("node")
def test_a_break_is_told_with_its_answer_and_explained_afterwards(command: CommandLine) -> None:
    assert "computed again" not in run(command, 10)
    said = run(command, 11)
    assert "reuse stopped in message 0 at character" in said
    assert "volatile_header (the system message differs in what looks like a date)" in said
    assert "tokens computed again in" in said
    shown = command("ps", "--explain", "s")
    assert (shown.code, shown.err) == (0, "")
    for words in ("default/s on fake", "volatile_header", "looks like a date", "tokens computed again", "advice"):
        assert words in shown.out
    was, now, caret = (line for line in shown.out.splitlines() if line.startswith(("  was", "  now", "       ")))
    column = caret.index("^")
    assert (was[column - 1 : column + 1], now[column - 1 : column + 1]) == ("10", "11")
    assert was[7:column] == now[7:column]
    report = command("ps", "--explain", "s", "--json").json
    assert report["last_receipt"]["stop"] == report["breaks"][0]["stop"]
    (total,) = report["break_totals"]
    assert (total["reason"], total["count"]) == ("volatile_header", 1)
    assert total["tokens"] == report["breaks"][0]["stop"]["tokens"] > 50
    # A call that finds all it needs is no break, and the break before it is still told.
    run(command, 11)
    assert "the last call could not reuse" in command("ps", "--explain", "s").out
    assert "volatile_header" in command("ps", "--explain", "s").out


@pytest.mark.usefixtures("node")
def test_a_session_is_explained_while_its_model_is_gone(command: CommandLine) -> None:
    run(command, 10)
    run(command, 11)
    assert command("unload").code == 0
    assert "volatile_header" in command("ps", "--explain", "s").out
    assert command("status", "--json").json["engine"] is None


@pytest.mark.usefixtures("node")
def test_names_that_clash_and_names_of_nobody(command: CommandLine) -> None:
    run(command, 10)
    run(command, 10, workspace="other")
    both = command("ps", "--explain", "s")
    assert both.code == 1
    assert "2 sessions are named 's'" in both.err
    assert "--workspace other --model fake" in both.err
    one = command("ps", "--explain", "s", "--workspace", "other", "--model", "fake")
    assert "other/s on fake" in one.out
    none = command("ps", "--explain", "t", "--json")
    assert (none.code, none.json["error"]["code"]) == (1, "session_error")
    assert "modeld ps lists all 2" in none.err
    assert command("ps", "--workspace", "other").code == 2


def test_ps_tells_what_would_be_computed(command: CommandLine, node: subprocess.Popen[bytes]) -> None:
    run(command, 10)
    head, row, _, total = command("ps").out.splitlines()
    session = dict(zip(head.split(), row.split(), strict=False))
    assert session["HOT"] == session["KEPT"] == session["TAPE"] != "0"
    assert total.startswith("KV of fake: ")
    assert f"({session['TAPE']} of 32,768 cells)" in total
    (as_json,) = command("ps", "--json").json["sessions"]
    assert as_json["kept"] == as_json["tape"]
    assert command("unload").code == 0
    assert node.poll() is None
    head, row = command("ps").out.splitlines()
    assert row.split()[head.split().index("KEPT")] == "-"


def test_the_receipt_line_tells_the_cost_in_words() -> None:
    end = EndPart(finish_reason="stop", usage=Usage(), receipt=Receipt(reused=27, prefilled=534, stop=STOP))
    assert receipt_line(end) == (
        "561 tokens in (27 reused, 534 prefilled), stop; reuse stopped in message 0 at character 48: volatile_header "
        "(the system message differs in what looks like a date), 521 tokens computed again in 3.2 s; leave it out"
    )


def test_nothing_in_a_message_commands_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show_stop(STOP)
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    was, now, caret = shown.splitlines()[-3:]
    assert was == "  was  date: 2026-02-10\\nBe\\x1b[2J"
    assert now[caret.index("^")] == "1"
    assert was[caret.index("^")] == "0"
