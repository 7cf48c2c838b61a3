"""Hazards of one question: a wrong byte on stdout, a second engine, an answer nobody reads, ctrl-C, wrong usage."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess

import pytest

from .conftest import CommandLine, alive, read_line, wait_for

RIVER = "Repeat: river stone lotus"


def engine_pid(command: CommandLine) -> int:
    found = command("ps", "--json").json
    return int(found["engine"]["pid"])


def idle(command: CommandLine) -> bool:
    return all(not session.get("active") for session in command("ps", "--json").json["sessions"])


def test_the_first_question_starts_a_node_and_the_next_shares_its_engine(command: CommandLine) -> None:
    first = command("run", "tiny", RIVER)
    assert (first.code, first.out) == (0, "river stone lotus\n"), first.err
    assert f"no node is running on {command.root}: starting one" in first.err
    assert "13 tokens in (0 reused, 13 prefilled), 3 out, " in first.err
    assert first.err.endswith(" tok/s, stop\n")

    second = command("run", "tiny", "-", "--temperature", "0", stdin=RIVER + "\n")
    assert (second.code, second.out) == (0, "river stone lotus\n"), second.err
    assert "starting" not in second.err

    seen = command("ps", "--json").json
    pids = {session["engine_pid"] for session in seen["sessions"]}
    assert pids == {seen["engine"]["pid"]}
    assert len(seen["sessions"]) == 2
    assert len({session["name"] for session in seen["sessions"]}) == 2

    node = seen["node"]["pid"]
    stopped = command("stop", "--json")
    assert stopped.json == {"stopped": True, "pid": node}
    assert not alive(node)
    assert not alive(pids.pop())
    assert command("stop").out == f"no node is running on {command.root} (start one with: modeld serve)\n"


@pytest.mark.usefixtures("node")
def test_a_named_session_keeps_its_kv_and_says_where_reuse_stopped(command: CommandLine) -> None:
    first = command("run", "fake", "to be or not", "--session", "s", "--system", "short")
    assert "(0 reused," in first.err
    assert "reuse stopped" not in first.err
    other = command("run", "fake", "to bee", "--session", "s", "--system", "short")
    assert "reuse stopped in message 1 at character 5: message_changed" in other.err
    # Another conversation: it shares what is equal, and nothing of it was left.
    elsewhere = command("run", "fake", "to bee", "--session", "s", "--system", "short", "--workspace", "w")
    assert ", 1 prefilled)" in elsewhere.err
    assert "reuse stopped" not in elsewhere.err
    assert {(s["workspace"], s["name"]) for s in command("ps", "--json").json["sessions"]} == {
        ("default", "s"),
        ("w", "s"),
    }


@pytest.mark.usefixtures("node")
def test_thinking_never_reaches_a_pipe(command: CommandLine) -> None:
    done = command("run", "fake", "hello", "--think", "on")
    assert done.out.startswith("hello #")
    assert "think" not in done.out
    assert "I think so." in done.err
    assert " thinking), " in done.err


@pytest.mark.usefixtures("node")
def test_json_holds_the_whole_answer_and_nothing_else_is_printed(command: CommandLine) -> None:
    done = command("run", "fake", "hello", "--think", "on", "--json", "--session", "s", "--seed", "7")
    answer = done.json
    assert set(answer) == {"message", "end", "warnings", "errors", "handle"}
    assert answer["message"]["role"] == "assistant"
    assert answer["message"]["content"].startswith("hello #")
    assert answer["message"]["thinking"].strip() == "I think so."
    assert answer["end"]["finish_reason"] == "stop"
    assert answer["end"]["seed"] == 7
    usage = answer["end"]["usage"]
    assert usage["input"] == usage["prefilled"] == answer["end"]["receipt"]["prefilled"]
    assert (usage["reused"], usage["restored"], usage["drafted"], usage["accepted"]) == (0, 0, None, None)
    assert 0 < usage["reasoning"] < usage["output"]
    assert min(usage["prefill_seconds"], usage["decode_seconds"]) > 0
    assert (answer["handle"]["name"], answer["handle"]["ref"]["name"]) == ("s", "fake")
    assert done.err == ""


@pytest.mark.usefixtures("node")
def test_max_tokens_and_stop_end_the_answer(command: CommandLine) -> None:
    cut = command("run", "fake", "!count 9", "--max-tokens", "3")
    assert cut.out == "1 2\n"
    assert cut.err.endswith("length\n")
    assert command("run", "fake", "!count 9", "--stop", "x", "--stop", " 4").out == "1 2 3\n"


def test_an_unknown_model_is_one_line_and_exit_1(command: CommandLine, node: subprocess.Popen[bytes]) -> None:
    done = command("run", "nosuch", "hello")
    assert (done.code, done.out) == (1, "")
    assert done.err == "modeld: No model named nosuch is installed. Installed: tiny.\n"
    done = command("run", "./nosuch.gguf", "hello", "--json")
    assert done.code == 1
    assert done.json["error"]["code"] == "model_not_found"
    assert done.json["error"]["details"]["name"].endswith("/nosuch.gguf")
    assert done.json["error"]["message"] in done.err
    assert node.poll() is None


@pytest.mark.usefixtures("node")
def test_an_engine_that_dies_is_a_typed_error_and_the_next_question_works(command: CommandLine) -> None:
    done = command("run", "fake", "!abort", "--json")
    assert (done.code, done.json["error"]["code"]) == (1, "engine_crashed")
    assert command("run", "fake", "hello").out.startswith("hello #")


@pytest.mark.usefixtures("node")
def test_stdin_that_is_no_text_is_an_error_and_changes_nothing(command: CommandLine) -> None:
    program = f"printf '\\377' | {shlex.quote(command.python)} -m modeld run fake -"
    shell = subprocess.run(["sh", "-c", program], env=command.env, capture_output=True, timeout=60)
    assert shell.returncode == 1
    assert shell.stderr.startswith(b"modeld: stdin is not UTF-8")
    assert command("ps", "--json").json["sessions"] == []
    done = command("run", "fake", "\udcff")
    assert (done.code, done.out) == (1, "")
    assert "surrogates not allowed" in done.err


def test_ctrl_c_cancels_the_answer_and_exits_130(command: CommandLine, node: subprocess.Popen[bytes]) -> None:
    child = command.start("run", "fake:delay=0.01", "!count 2000")
    assert child.stdout is not None
    seen = child.stdout.read(4)
    child.send_signal(signal.SIGINT)
    done = command.finish(child)
    assert done.code == 130
    assert seen == b"1 2 "
    assert done.out.endswith("\n")
    assert done.err.endswith(", cancelled\n")
    assert " out, " in done.err
    wait_for(lambda: idle(command), "the engine still works")
    assert node.poll() is None


def test_a_second_ctrl_c_leaves_a_node_that_hangs(command: CommandLine, node: subprocess.Popen[bytes]) -> None:
    child = command.start("run", "fake:delay=0.01", "!count 2000")
    assert child.stdout is not None
    child.stdout.read(4)
    node.send_signal(signal.SIGSTOP)
    try:
        child.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(0.5)
        child.send_signal(signal.SIGINT)
        assert command.finish(child).code == 130
    finally:
        node.send_signal(signal.SIGCONT)


@pytest.mark.usefixtures("node")
def test_ctrl_c_while_it_waits_for_the_engine_exits_130(command: CommandLine) -> None:
    # Half a minute of prefill.
    child = command.start("run", "fake:delay=0.01", "x" * 3000)
    wait_for(lambda: not idle(command), "it does not begin")
    child.send_signal(signal.SIGINT)
    done = command.finish(child)
    assert (done.code, done.out) == (130, "")
    wait_for(lambda: idle(command), "the engine still works")


@pytest.mark.usefixtures("node")
def test_long_prefill_says_so_line_by_line_where_no_terminal_is(command: CommandLine) -> None:
    done = command("run", "fake:delay=0.001", "x" * 3500, "--max-tokens", "1")
    assert done.code == 0
    lines = [line for line in done.err.splitlines() if "reading the prompt: " in line]
    assert 1 <= len(lines) <= 5
    assert " tokens" in lines[0]


@pytest.mark.usefixtures("node")
def test_a_reader_that_leaves_ends_the_answer_quietly(command: CommandLine) -> None:
    command("load", "fake:delay=0.005")  # a load that takes its time is told on stderr
    child = command.start("run", "fake:delay=0.005", "!count 2000")
    assert child.stdout is not None
    child.stdout.read(1)
    child.stdout.close()
    assert child.stderr is not None
    assert child.stderr.read() == b""
    assert child.wait(60) == 141
    wait_for(lambda: idle(command), "the engine still works")


@pytest.mark.usefixtures("node")
def test_head_takes_a_line_of_a_list_without_a_word_on_stderr(command: CommandLine) -> None:
    program = f"{shlex.quote(command.python)} -m modeld ps --json | true"
    shell = subprocess.run(["sh", "-c", program], env=command.env, capture_output=True, timeout=60)
    assert shell.stderr == b""


@pytest.mark.usefixtures("node")
def test_a_session_outlives_its_engine(command: CommandLine) -> None:
    assert command("run", "fake", "hello", "--session", "s").code == 0
    command("unload")
    done = command("run", "fake", "hello", "--session", "s", "--json")
    receipt = done.json["end"]["receipt"]
    assert receipt["restored"] > 0
    assert receipt["prefilled"] == 1
    assert receipt["generation"] == 2
    assert engine_pid(command) > 0


def test_a_session_says_that_its_engine_kept_nothing(command: CommandLine) -> None:
    command.serve("--ram", "off")
    assert command("run", "fake", "hello", "--session", "s").code == 0
    command("unload")
    done = command("run", "fake", "hello", "--session", "s", "--json")
    receipt = done.json["end"]["receipt"]
    assert receipt["restored"] == 0
    assert receipt["stop"]["reason"] == "unloaded"


WRONG = [
    ("run",),
    ("run", "tiny", "hello", "--temperature", "-1"),
    ("run", "tiny", "hello", "--top-p", "0"),
    ("run", "tiny", "hello", "--max-tokens", "0"),
    ("run", "tiny", "hello", "--seed", "-3"),
    ("run", "tiny", "hello", "--think", "deeply"),
    ("run", "tiny", "hello", "--kv-type", "f64"),
    ("run", "tiny", "hello", "--context", "-1"),
    ("run", "tiny", "hello", "--session", ""),
    ("run", "tiny", "hello", "more"),
    ("run", "tiny", "hello", "--shift", "--truncate"),
    ("chat", "--backend", "b", "--model", "m", "hello", "--shift", "--truncate"),
    ("run", "", "hello"),
    ("run", "tiny", "hello", "--nosuch"),
    ("serve", "--idle-ttl", "soon"),
    ("serve", "--idle-ttl", "0"),
    ("serve", "--ram", "512"),
    ("serve", "--ram", "999999TiB"),
    ("serve", "--ram", "off", "--disk", "1GiB"),
    ("serve", "--threads", "9999"),
    ("serve", "--listen", "12"),
    ("nosuch",),
]


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_wrong_usage_is_exit_2_and_starts_nothing(command: CommandLine, arguments: tuple[str, ...]) -> None:
    done = command(*arguments)
    assert (done.code, done.out) == (2, "")
    assert "Usage: modeld" in done.err
    assert not command.root.exists()


@pytest.mark.usefixtures("node")
def test_a_schema_holds_the_answer_and_a_bad_one_is_wrong_usage(command: CommandLine) -> None:
    file = command.root / "schema.json"
    file.write_text('{"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"]}')
    done = command("run", "tiny", "Count to 12.", "--schema", str(file), "--think", "off")
    assert done.code == 0, done.err
    assert json.loads(done.out)["n"] <= 9
    file.write_text('{"properties": {"a": {"not": {}}}}')
    refused = command("run", "tiny", "Count to 12.", "--schema", str(file))
    assert (refused.code, refused.out) == (1, "")
    assert "/properties/a/not" in refused.err
    for text in ("[1]", "{", "\ud800"):
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        assert command("run", "tiny", "x", "--schema", str(file)).code == 2
    assert command("run", "tiny", "x", "--schema", str(file) + "x").code == 2


@pytest.mark.usefixtures("node")
def test_what_does_not_fit_names_the_ways_out(command: CommandLine) -> None:
    long = "x" * 5000
    one = command("run", "fake", long, "--json")
    assert (one.code, one.json["error"]["code"]) == (1, "context_overflow")
    assert one.json["error"]["details"]["window"] == 4096
    assert one.err.endswith("here --context N asks for more; --shift lets the oldest turns leave, and one has none\n")
    talk = command("run", "fake", stdin=f"hello\n{long}\n")
    assert talk.code == 1
    assert "/clear forgets the conversation, --shift lets its oldest turns leave, and --context N asks" in talk.err
    shifting = command("run", "fake", "--shift", stdin=f"hello\n{long}\n")
    assert "/clear forgets the conversation, and --context N asks for more" in shifting.err


def test_ctrl_c_while_the_command_is_still_being_imported_is_quiet(command: CommandLine) -> None:
    slow = command.root.parent / "slow"
    slow.mkdir()
    (slow / "typer.py").write_text("import sys, time\nprint('here', file=sys.stderr, flush=True)\ntime.sleep(60)\n")
    command.env["PYTHONPATH"] = os.pathsep.join([str(slow), command.env["PYTHONPATH"]])
    child = command.start("version")
    assert read_line(child) == "here\n"
    child.send_signal(signal.SIGINT)
    done = command.finish(child)
    assert (done.code, done.out, done.err) == (130, "", "")
