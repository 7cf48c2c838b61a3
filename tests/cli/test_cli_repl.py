"""Hazards at the prompt: ctrl-C that costs the session, a conversation that is not sent whole, input taken apart."""

from __future__ import annotations

import re
import stat
import subprocess
import time

import pytest

from .conftest import CommandLine, Terminal

pytestmark = pytest.mark.usefixtures("node")


def receipts(err: str) -> list[str]:
    return [line for line in err.splitlines() if " tokens in (" in line]


def ctrl_c_at_rest(terminal: Terminal) -> None:
    """Python's readline takes a signal only while it waits for a key: a sooner one counts with the next key."""
    time.sleep(0.3)
    terminal.type("\x03")


def test_lines_of_a_pipe_are_turns_of_one_conversation(command: CommandLine) -> None:
    done = command("run", "fake", stdin="hello\n\nagain\n")
    first, second = done.out.splitlines()
    assert first.startswith("hello #")
    assert second.startswith("again #")
    # START role SPACE content END, and what opens the answer: a rune is a token.
    prompt = len("<user hello><assistant ")
    one, two = receipts(done.err)
    assert one.startswith(f"{prompt} tokens in (0 reused, {prompt} prefilled)")
    # The first turn is on the tape, but for the token that ended its answer.
    kept = prompt + len(first)
    new = len("><user again><assistant ")
    assert two.startswith(f"{kept + new} tokens in ({kept} reused, {new} prefilled)")
    assert not (command.root / "history").exists()


@pytest.mark.parametrize("option", ["--shift", "--truncate"])
def test_a_conversation_that_fills_the_window_goes_on_when_asked_to(command: CommandLine, option: str) -> None:
    lines = "".join(f"{'word ' * 8}{n}\n" for n in range(5))
    done = command("run", "fake:window=300", option, stdin=lines)
    said = [line.partition(" #")[0] for line in done.out.splitlines()]
    # Truncating makes room before an answer, and not in it.
    assert said == lines.splitlines() if option == "--shift" else len(said) == 5
    assert re.search(r"of the conversation's \d+ messages \(\d+ tokens\) left it: the model is shown \d+", done.err)
    plain = command("run", "fake:window=300", stdin=lines)
    assert "the session holds 300: nothing was cut" in plain.err


def test_lines_are_joined_by_a_backslash_and_between_quotes(command: CommandLine) -> None:
    done = command("run", "fake", stdin='a\\\nb\n"""c\n/bye\n\nd"""\n"""e"""\nlast\\\n')
    said = done.out.split("#")
    assert said[0] == "a\nb "
    assert [text.partition("\n")[2] for text in said[1:]] == ["c\n/bye\n\nd ", "e ", "last ", ""]


def test_json_answers_are_one_line_a_turn(command: CommandLine) -> None:
    import json

    done = command("run", "fake", "--json", stdin="hello\nagain\n")
    answers = [json.loads(line) for line in done.out.splitlines()]
    assert [answer["message"]["content"].split(" ")[0] for answer in answers] == ["hello", "again"]
    assert answers[1]["end"]["receipt"]["reused"] > 0


def test_commands_work_in_a_pipe_too(command: CommandLine) -> None:
    script = "hello\n/session\n/think on\nhello\n/think deeply\n/clear\n/nosuch\n/help\nhello\n/bye\nnever\n"
    done = command("run", "fake", stdin=script)
    assert done.code == 0
    assert "never" not in done.out
    assert "last answer  " in done.out
    assert re.search(r"default/talk-\S+ on fake, generation 1", done.out)
    assert "I think so." in done.err
    assert "unknown thinking level 'deeply'" in done.err
    assert "there is no command /nosuch" in done.err
    assert "/think LEVEL" in done.err
    # After /clear the conversation is the first message again, and the session still holds it.
    assert "reuse stopped" in receipts(done.err)[2] or ", 1 prefilled" in receipts(done.err)[2]
    assert receipts(done.err)[2].split(" tokens in")[0] < receipts(done.err)[1].split(" tokens in")[0]


def test_a_pipe_ends_at_the_first_error(command: CommandLine) -> None:
    done = command("run", "fake", stdin="hello\n!abort\nagain\n")
    assert done.code == 1
    assert done.out.count("\n") == 1
    assert done.err.splitlines()[-1].startswith("modeld: ")


def test_ctrl_c_stops_the_answer_and_keeps_the_session(command: CommandLine) -> None:
    terminal = command.terminal("run", "fake:delay=0.01")
    terminal.expect(">>> ")
    terminal.type("!count 900\n")
    terminal.expect("1 2 3 4 5")
    terminal.type("\x03")
    cut = terminal.expect("cancelled")
    assert " tokens in (0 reused, " in cut
    terminal.expect(">>> ")
    terminal.type("again\n")
    terminal.expect("again #")
    receipt = terminal.expect("stop")
    reused = int(receipt.partition("tokens in (")[2].split(" ")[0])
    # More than the first question alone: what had been answered is part of the conversation.
    assert reused > len("<user !count 900><assistant 1 2 ")
    terminal.expect(">>> ")
    terminal.type("/bye\n")
    assert terminal.end() == 0
    (name,) = [session["name"] for session in command("ps", "--json").json["sessions"]]
    assert name.startswith("talk-")


def test_ctrl_c_at_the_prompt_clears_the_line_and_twice_leaves(command: CommandLine) -> None:
    terminal = command.terminal("run", "fake")
    terminal.expect(">>> ")
    terminal.type("not this")
    terminal.expect("not this")
    ctrl_c_at_rest(terminal)
    terminal.expect("leaves")
    terminal.expect(">>> ")
    terminal.type("but this\n")
    terminal.expect("but this #")
    for typed in ("once", "twice"):
        terminal.expect(">>> ")
        terminal.type(typed)
        terminal.expect(typed)
        ctrl_c_at_rest(terminal)
    assert terminal.end() == 0
    assert command("ps", "--json").json["sessions"][0]["tape"] < 60


def test_history_is_kept_for_the_user_alone(command: CommandLine) -> None:
    for expected in ("", "remember me"):
        terminal = command.terminal("run", "fake")
        terminal.expect(">>> ")
        if expected:
            terminal.type("\x1b[A")
            terminal.expect(expected)
            terminal.type("\n")
            terminal.expect("remember me #")
        else:
            terminal.type("remember me\n")
            terminal.expect("remember me #")
        terminal.expect(">>> ")
        terminal.type("\x04")
        assert terminal.end() == 0
    path = command.root / "history"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "remember me" in path.read_text()


def test_a_terminal_shows_thinking_dimmed_and_is_not_commanded_by_the_model(command: CommandLine) -> None:
    terminal = command.terminal("run", "fake", "\x1b]0;title\x07 hello", "--think", "on")
    shown = terminal.expect("stop")
    assert "\x1b[2m" in shown.partition("think")[0]
    assert "\\x1b]0;title\\x07 hello #" in shown
    assert "\x1b]" not in shown
    assert terminal.end() == 0


def test_a_model_that_is_not_there_ends_before_the_prompt(command: CommandLine) -> None:
    terminal = command.terminal("run", "nosuch")
    terminal.expect("No model named nosuch is installed")
    assert terminal.end() == 1


def test_the_prompt_survives_an_engine_that_dies_and_a_node_that_ends(
    command: CommandLine, node: subprocess.Popen[bytes]
) -> None:
    terminal = command.terminal("run", "fake")
    terminal.expect(">>> ")
    terminal.type("hello\n")
    terminal.expect("hello #")
    terminal.expect(">>> ")
    terminal.type("!abort\n")
    terminal.expect("modeld: ")
    terminal.expect(">>> ")
    terminal.type("again\n")
    terminal.expect("again #")
    terminal.expect(">>> ")
    assert command("stop").code == 0
    assert node.wait(60) == 0
    command.serve()
    terminal.type("there\n")
    answer = terminal.expect("there #") + terminal.expect(" restored")
    assert "modeld: " not in answer
    terminal.expect(">>> ")
    terminal.type("\x04")
    assert terminal.end() == 0
