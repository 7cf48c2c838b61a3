"""Hazards of backends on the command line: a key that is seen, an answer mixed with talk about it, a lost prompt."""

from __future__ import annotations

import json
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from anyio.from_thread import start_blocking_portal

from modeld.testing.openai import FakeOpenAI
from modeld.testing.server import Answer, Fault
from support.echo_backend import KEY, MODELS

from .conftest import CommandLine

TESTS = Path(__file__).parents[1]
COST = "11 tokens in (3 cached), 7 out (2 thinking), "


@pytest.fixture
def cloud(command: CommandLine, tmp_path: Path) -> CommandLine:
    """A command line with a package of somebody else's that brings the type ``echo``, and a backend of it."""
    package = tmp_path / "packages" / "echo-1.dist-info"
    package.mkdir(parents=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: echo\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[modeld.providers]\necho = support.echo_backend:make_catalog\n")
    command.env["PYTHONPATH"] = f"{command.env['PYTHONPATH']}:{package.parent}:{TESTS}"
    added = command("backends", "add", "cloud", "--type", "echo", "--url", "here", "--key", "-", stdin=f"{KEY}\n")
    assert added.code == 0, added.err
    return command


@pytest.fixture
def vendor() -> Iterator[FakeOpenAI]:
    server = FakeOpenAI(key=KEY)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(server):
        yield server


def asked(command: CommandLine, *words: str, model: str = "echo", stdin: str = "") -> object:
    return command("chat", "--backend", "cloud", "--model", model, *words, stdin=stdin)


def test_the_answer_is_all_of_stdout_and_no_node_is_started(cloud: CommandLine) -> None:
    done = asked(cloud, "to be or not")
    assert (done.code, done.out, done.err) == (0, "tobeornot\n", f"{COST}stop\n")
    assert asked(cloud, "-", stdin="from stdin\n").out == "fromstdin\n"
    assert cloud("status", "--json").json["node"] is None


def test_thinking_stays_off_a_pipe_and_is_dimmed_on_a_terminal(cloud: CommandLine) -> None:
    done = asked(cloud, "hello", "--think", "high", model="think")
    assert done.out == "hello\n"
    assert "Hm." in done.err
    terminal = cloud.terminal("chat", "--backend", "cloud", "--model", "think", "hello")
    assert "\x1b[2mHm.\x1b[0m" in terminal.expect("hello")
    terminal.expect("stop")
    assert terminal.end() == 0


def test_json_holds_the_whole_answer_and_nothing_else_is_printed(cloud: CommandLine) -> None:
    done = asked(cloud, "hello", "--json", "--max-tokens", "9", "--temperature", "0", model="think")
    assert set(done.json) == {"message", "end", "warnings", "errors", "backend"}
    assert done.json["message"] == {"role": "assistant", "content": "hello", "thinking": "Hm."}
    assert done.json["end"]["usage"]["reasoning"] == 2
    assert done.json["backend"] == "cloud"
    assert done.err == ""


def test_lines_of_a_pipe_are_turns_of_one_conversation(cloud: CommandLine) -> None:
    done = asked(cloud, "--system", "be brief", stdin="hello\nagain\n/session\n/clear\n/think deeply\n/session\n/bye\n")
    assert done.code == 0
    said, _, facts = done.out.partition("last answer")
    assert said == "hello\nagain\n"
    assert facts.startswith(f"   {COST}stop\n")
    assert "echo of cloud" in facts
    assert facts.count("5 messages") == 1
    assert facts.count("1 messages") == 1
    assert "unknown thinking level 'deeply'" in done.err


def test_ctrl_c_cancels_the_answer_and_exits_130(cloud: CommandLine) -> None:
    for model, shown in (("slow", b"0 1 2 "), ("silent", b"")):
        child = cloud.start("chat", "--backend", "cloud", "--model", model, "hello")
        assert child.stdout is not None
        if shown:
            assert child.stdout.read(len(shown)) == shown
        else:
            time.sleep(1.5)
        child.send_signal(signal.SIGINT)
        done = cloud.finish(child)
        assert done.code == 130
        assert done.err.endswith("usage unknown, cancelled\n")
        assert done.out == "" or done.out.endswith("\n")


def test_ctrl_c_keeps_the_prompt_and_what_was_answered(cloud: CommandLine) -> None:
    terminal = cloud.terminal("chat", "--backend", "cloud", "--model", "slow")
    terminal.expect(">>> ")
    for turn in (2, 4):
        terminal.type("count\n")
        terminal.expect("0 1 2 3")
        terminal.type("\x03")
        terminal.expect("cancelled")
        terminal.expect(">>> ")
        terminal.type("/session\n")
        terminal.expect(f"{turn} messages")
        terminal.expect(">>> ")
    terminal.type("\x04")
    assert terminal.end() == 0


def test_an_error_keeps_the_prompt_and_leaves_no_trace(cloud: CommandLine) -> None:
    terminal = cloud.terminal("chat", "--backend", "cloud", "--model", "refuse")
    terminal.expect(">>> ")
    terminal.type("do harm\n")
    terminal.expect("doharm")
    terminal.expect("modeld: the model declined to answer")
    terminal.expect(">>> ")
    terminal.type("/session\n")
    terminal.expect("0 messages")
    terminal.expect(">>> ")
    terminal.type("/bye\n")
    assert terminal.end() == 0


def test_an_error_in_the_middle_of_an_answer_has_its_own_line_on_a_terminal(cloud: CommandLine) -> None:
    terminal = cloud.terminal("chat", "--backend", "cloud", "--model", "cut", "hello")
    assert "half\r\nmodeld: " in terminal.expect("modeld: ")
    assert terminal.end() == 1
    assert asked(cloud, "hello", model="cut").out == "half"


def test_errors_are_one_line_with_their_code(cloud: CommandLine) -> None:
    cloud("backends", "add", "wrong", "--type", "echo", "--key", "-", stdin="sk-wrong")
    missing = cloud("backends", "add", "missing", "--type", "echo", "--key", "env:NO_SUCH_KEY")
    assert (missing.code, "NO_SUCH_KEY" in missing.err) == (0, True)
    for backend, model, code in (
        ("cloud", "refuse", "refused"),
        ("cloud", "cut", "unavailable"),
        ("cloud", "nothing", "unsupported_feature"),
        ("nobody", "echo", "backend_not_found"),
        ("wrong", "echo", "authentication"),
        ("missing", "echo", "authentication"),
    ):
        done = cloud("chat", "--backend", backend, "--model", model, "hello", "--json")
        assert (done.code, done.json["error"]["code"]) == (1, code), done.err
        assert done.err.count("\n") == 1
    assert cloud("chat", "--backend", "missing", "--model", "echo", "hello", env={"NO_SUCH_KEY": KEY}).out == "hello\n"
    terminal = cloud.terminal("chat", "--backend", "nobody", "--model", "echo")
    terminal.expect("no backend is called 'nobody' (cloud, missing, wrong)")
    assert terminal.end() == 1


def test_models_are_listed_with_what_is_known_and_where_from(cloud: CommandLine) -> None:
    found = cloud("backends", "models", "cloud", "--json").json
    assert found["backend"] == "cloud"
    assert [model["name"] for model in found["models"]] == list(MODELS)
    assert found["models"][0]["evidence"]["can_think"] == "named"
    rows = [line.split("  ") for line in cloud("backends", "models", "cloud").out.splitlines()]
    assert rows[0][0] == "MODEL"
    think = next(row for row in rows if row[0] == "think")
    assert [cell.strip() for cell in think if cell.strip()] == [
        *("think", "4096 (declared)", "-", "yes", "yes", "yes (named)", "-"),
    ]
    assert "no (named)" in cloud("backends", "models", "cloud").out
    assert cloud("backends", "models", "nobody").code == 1


def test_no_output_and_no_file_but_its_own_holds_the_key(cloud: CommandLine) -> None:
    runs = [
        cloud("backends", "list"),
        cloud("backends", "list", "--json"),
        cloud("backends", "models", "cloud", "--json"),
        asked(cloud, "hello", "--json"),
        cloud("backends", "add", "cloud", "--type", "echo", "--key", "-", stdin=KEY),
        cloud("backends", "add", "x", "--type", "echo", "--key", "-", stdin=f"{KEY} {KEY}"),
        cloud("backends", "add", "x", "--type", "echo", "--key", KEY),
        cloud("backends", "add", "x", "--type", "echo", "--url", "broken", "--key", "-", stdin=KEY),
        cloud("status", "--backend", "cloud"),
        cloud("doctor", "--json"),
    ]
    assert [run.code for run in runs[:4]] == [0] * 4
    assert [run.code for run in runs[4:9]] == [1, 1, 2, 1, 1]
    assert "modeld chat --backend cloud" in runs[8].err
    assert [entry["key"] for entry in runs[1].json["backends"]] == ["file:secrets/cloud"]
    assert KEY not in "".join(run.out + run.err for run in runs)
    stored = cloud.root / "secrets" / "cloud"
    assert [path for path in cloud.root.rglob("*") if path.is_file() and KEY in path.read_text()] == [stored]
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600
    assert cloud("backends", "rm", "cloud").code == 0
    assert not stored.exists()


def test_a_terminal_is_asked_for_the_key_and_does_not_show_it(command: CommandLine) -> None:
    terminal = command.terminal("backends", "add", "x", "--type", "openai")
    terminal.expect("key of x: ")
    time.sleep(0.2)  # getpass turns the echo off after it has asked
    terminal.type(f"{KEY}\n")
    assert "4711" not in terminal.expect("x is registered")
    assert terminal.end() == 0
    assert (command.root / "secrets" / "x").read_text() == f"{KEY}\n"


def test_types_without_keys_ask_for_none_and_files_are_meant_where_they_are_named(
    command: CommandLine, tmp_path: Path
) -> None:
    for name, kind, *more in (
        ("box", "vllm", "--url", "http://127.0.0.1:1"),
        ("here", "ollama"),
        ("open", "openai", "--url", "http://127.0.0.1:1/v1", "--key", ""),
        ("local", "Local", "--url", str(tmp_path)),
    ):
        done = command("backends", "add", name, "--type", kind, *more, "--json")
        assert done.code == 0, done.err
        assert done.json["backend"]["key"] == ""
    done = command("backends", "add", "filed", "--type", "vllm", "--url", "http://127.0.0.1:1", "--key", "file:key")
    assert done.code == 0
    assert "there is no key at" in done.err
    found = {entry["name"]: entry for entry in command("backends", "list", "--json").json["backends"]}
    assert found["filed"]["key"] == f"file:{Path.cwd() / 'key'}"
    assert found["local"]["type"] == "llama"


@pytest.mark.parametrize(
    "words",
    [
        ("chat",),
        ("chat", "--backend", "x"),
        ("chat", "--model", "x"),
        ("chat", "--backend", "x", "--model", "y", " "),
        ("chat", "--backend", "x", "--model", "y", "hi", "--think", "deeply"),
        ("chat", "--backend", "x", "--model", "y", "hi", "--max-tokens", "0"),
        ("backends", "add", "x", "--type", "nonsense"),
        ("backends", "add", "x", "--type", "openai", "--key", "sk-4711"),
        ("backends", "add", "x", "--type", "openai", "--token-file", "-"),
        ("backends", "add", "x", "--type", "openai", "--pin", "sha256:" + "0" * 64),
        ("backends", "add", "x", "--type", "openai", "--url", "ftp://h"),
        ("backends", "add", "x", "--type", "openai", "--url", "https://u:p@h"),
        ("backends", "add", "x", "--url", "modeld://127.0.0.1:1", "--key", "env:X", "--token-file", "-"),
        ("backends", "add", "../x", "--type", "ollama"),
        ("backends", "models"),
    ],
)
def test_wrong_usage_is_exit_2(command: CommandLine, words: tuple[str, ...]) -> None:
    assert command(*words, stdin="x" * 43).code == 2
    assert not command.root.exists()


def test_who_forgot_the_type_is_told_of_it(command: CommandLine) -> None:
    for words in ((), ("--url", "https://host/v1")):
        assert "--type openai" in " ".join(command("backends", "add", "x", *words).err.split())


def test_a_key_that_goes_over_the_network_in_clear_is_said(command: CommandLine) -> None:
    for name, url, clear in (
        ("far", "http://203.0.113.5/v1", True),
        ("tls", "https://203.0.113.5/v1", False),
        ("near", "http://127.0.0.1:1/v1", False),
        ("name", "http://localhost:1/v1", False),
    ):
        done = command("backends", "add", name, "--type", "openai", "--url", url, "--key", "-", stdin=KEY)
        assert (done.code, "in clear" in done.err) == (0, clear)
    bare = command("backends", "add", "bare", "--type", "vllm", "--url", "http://203.0.113.5", "--key", "")
    assert (bare.code, bare.err) == (0, "")


def test_a_type_of_another_package_is_asked_for_its_key(cloud: CommandLine) -> None:
    done = cloud("backends", "add", "x", "--type", "echo")
    assert (done.code, "no key came" in done.err) == (1, True)
    assert cloud("backends", "add", "x", "--type", "echo", "--key", "").code == 0


def test_ctrl_d_at_the_question_for_a_key_is_no_key(command: CommandLine) -> None:
    terminal = command.terminal("backends", "add", "x", "--type", "openai")
    terminal.expect("key of x: ")
    time.sleep(0.2)
    terminal.type("\x04")
    terminal.expect("no key came")
    assert terminal.end() == 1
    assert not command.root.exists()


def test_doctor_looks_at_the_list_and_at_the_keys_and_shows_none(cloud: CommandLine) -> None:
    def seen() -> dict[str, str]:
        (check,) = [check for check in cloud("doctor", "--json").json["checks"] if check["name"] == "backends"]
        assert KEY not in str(check)
        return check

    assert (seen()["state"], seen()["message"]) == ("ok", "cloud")
    cloud("backends", "add", "missing", "--type", "echo", "--key", "env:NO_SUCH_KEY")
    assert seen()["state"] == "warn"
    assert "missing: there is no key at env:NO_SUCH_KEY" in seen()["message"]
    (cloud.root / "backends.json").write_text("{")
    assert seen()["state"] == "fail"
    assert "move it away" in seen()["message"]


def test_nothing_on_stdin_is_no_key(command: CommandLine) -> None:
    done = command("backends", "add", "x", "--type", "openai")
    assert done.code == 1
    assert "env:NAME" in done.err
    assert not command.root.exists()


def test_a_vendor_is_reached_through_its_sdk(command: CommandLine, vendor: FakeOpenAI) -> None:
    url = f"{vendor.url}/v1"
    assert command("backends", "add", "cloud", "--type", "openai", "--url", url, stdin=KEY).code == 0
    vendor.script(Answer(text="Hello there."))
    done = asked(command, "hello", "--system", "be brief", "--max-tokens", "5", model="gpt-4o")
    assert (done.code, done.out) == (0, "Hello there.\n"), done.err
    assert done.err.endswith("11 tokens in, 7 out, stop\n")
    sent = vendor.requests[-1].json
    assert [message["content"] for message in sent["messages"]] == ["be brief", "hello"]
    names = [model["name"] for model in command("backends", "models", "cloud", "--json").json["models"]]
    assert "gpt-4o" in names
    vendor.script(Fault(kind="status", status=401, message=f"Incorrect API key provided: {KEY}"))
    done = asked(command, "hello", "--json", model="gpt-4o")
    assert (done.code, done.json["error"]["code"]) == (1, "authentication")
    assert KEY not in done.out + done.err
    vendor.script(Fault(kind="hang", after=2))
    child = command.start("chat", "--backend", "cloud", "--model", "gpt-4o", "hello")
    assert child.stdout is not None
    assert child.stdout.read(1)
    child.send_signal(signal.SIGINT)
    assert command.finish(child).code == 130
    end = time.monotonic() + 10
    while vendor.cut_off == 0:
        assert time.monotonic() < end, "the request stays open"
        time.sleep(0.02)


def test_models_of_this_machine_need_a_node_only_to_answer(command: CommandLine) -> None:
    assert command("backends", "add", "mine", "--type", "llama").code == 0
    names = [model["name"] for model in command("backends", "models", "mine", "--json").json["models"]]
    assert names == ["tiny"]
    assert command("status", "--json").json["node"] is None
    done = command("chat", "--backend", "mine", "--model", "tiny", "Repeat: river stone lotus", "--temperature", "0")
    assert (done.code, done.out) == (0, "river stone lotus\n"), done.err
    assert "starting one" in done.err
    assert json.loads(command("backends", "models", "mine", "--json").out)["models"][0]["name"] == "tiny"
