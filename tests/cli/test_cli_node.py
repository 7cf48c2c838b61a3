"""Hazards of looking at a node: one that is started by a question, an answer that a program cannot read."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from modeld.cli.serve import DEFAULT_HTTP
from modeld.node.store import bundled_path

from .conftest import CommandLine, alive

LOOKS = ("status", "ps", "models", "doctor")


@pytest.mark.parametrize("look", LOOKS)
def test_looking_starts_no_node(command: CommandLine, look: str) -> None:
    for arguments in ((look,), (look, "--json")):
        assert command(*arguments).code == 0
    assert not command.root.exists()


def test_without_a_node_looks_say_so_and_orders_fail(command: CommandLine) -> None:
    nobody = f"no node is running on {command.root} (start one with: modeld serve)\n"
    for look in ("status", "ps", "stop"):
        done = command(look)
        assert (done.code, done.out, done.err) == (0, nobody, "")
    assert command("status", "--json").json == {"node": None, "engine": None}
    assert command("ps", "--json").json == {"node": None, "engine": None, "sessions": []}
    assert command("stop", "--json").json == {"stopped": False, "pid": None}
    for order in (("unload",), ("describe", "tiny")):
        done = command(*order, "--json")
        assert (done.code, done.json["error"]["code"]) == (1, "not_running")
        assert done.json["error"]["details"] == {"data_root": str(command.root)}
        assert done.err == f"modeld: {done.json['error']['message']}\n"
    assert [model["name"] for model in command("models", "--json").json["models"]] == ["tiny"]
    assert not command.root.exists()


def test_a_node_that_was_killed_is_no_node(command: CommandLine) -> None:
    node = command.serve()
    node.kill()
    node.wait(60)
    assert command("ps", "--json").json["node"] is None
    assert command("stop").code == 0
    assert command("unload", "--json").json["error"]["code"] == "stale"
    doctor = {check["name"]: check for check in command("doctor", "--json").json["checks"]}
    assert doctor["owner"]["state"] == "warn"
    assert str(node.pid) in doctor["owner"]["message"]


def test_a_node_that_does_not_answer_is_not_waited_for_for_ever(command: CommandLine) -> None:
    node = command.serve()
    os.kill(node.pid, signal.SIGSTOP)
    try:
        doctor = command("doctor", "--json")
    finally:
        os.kill(node.pid, signal.SIGCONT)
    assert doctor.code == 1
    failed = [check for check in doctor.json["checks"] if check["state"] == "fail"]
    assert [check["name"] for check in failed] == ["node"]
    assert failed[0]["hint"]


def test_json_of_status_and_ps(command: CommandLine, node: subprocess.Popen[bytes]) -> None:
    empty = command("status", "--json").json
    assert set(empty) == {"node", "engine"}
    assert empty["engine"] is None
    assert empty["node"]["pid"] == node.pid
    assert empty["node"]["state"] == "empty"
    assert empty["node"]["data_root"] == str(command.root)
    assert command("run", "fake", "hello", "--session", "s").code == 0
    seen = command("ps", "--json").json
    assert set(seen) == {"node", "engine", "sessions"}
    assert seen["node"]["engine"] == seen["engine"]
    (session,) = seen["sessions"]
    assert (session["workspace"], session["name"], session["model"]) == ("default", "s", "fake")
    assert session["engine_pid"] == seen["engine"]["pid"]
    assert session["hot"] == session["tape"] > 0


def test_tables_hold_what_json_holds(command: CommandLine, node: subprocess.Popen[bytes]) -> None:
    assert command("run", "fake", "hello", "--session", "[bold]a long name " + "x" * 100).code == 0
    row = command("ps").out.splitlines()[1]
    assert row.startswith("[bold]a long name " + "x" * 100)
    assert f"process {node.pid}," in command("status").out
    assert "bundled" in command("models").out
    assert "f16, " in next(line for line in command("status").out.splitlines() if line.startswith("KV "))
    assert command("status", "--json").json["node"]["kv_type"] == "f16"
    assert command("load", "fake", "--kv-type", "q8_0").code == 0
    assert "q8_0, " in command("status").out


def test_load_starts_a_node_and_unload_ends_its_engine(command: CommandLine) -> None:
    loaded = command("load", "tiny", "--context", "600", "--json")
    assert loaded.code == 0
    assert "starting one in the background" in loaded.err
    engine = loaded.json["engine"]["pid"]
    assert loaded.json["node"]["model"] == "tiny"
    assert alive(engine)
    models = {model["name"]: model for model in command("models", "--json").json["models"]}
    assert models["tiny"]["resident"]
    unloaded = command("unload", "--json").json
    assert (unloaded["engine"], unloaded["node"]["state"]) == (None, "empty")
    assert not alive(engine)
    assert command("unload").out == "no model is loaded now\n"


@pytest.mark.usefixtures("node")
def test_describe_shows_the_arithmetic_and_refuses_with_alternatives(command: CommandLine) -> None:
    fits = command("describe", "tiny", "--json")
    plan = fits.json["plan"]
    assert (fits.code, plan["fits"]) == (0, True)
    assert plan["required"] == plan["weights"] + plan["kv"] + plan["overhead"]
    text = command("describe", "tiny", "--kv-type", "q8_0").out
    for words in ("weights +", "overhead", "reserve", "8,192 tokens", "q8_0"):
        assert words in text
    refused = command("describe", "tiny", "--context", "100000")
    assert refused.code == 1
    assert "100000 tokens is longer than the 8192" in refused.out
    assert "context=8192 kv_type=f16" in refused.out
    as_json = command("describe", "tiny", "--context", "100000", "--json")
    assert (as_json.code, as_json.json["plan"]["fits"]) == (1, False)
    assert as_json.json["plan"]["alternatives"]
    loaded = command("load", "tiny", "--context", "100000", "--json")
    assert (loaded.code, loaded.json["error"]["code"]) == (1, "does_not_fit")
    assert loaded.json["error"]["details"]["max_context"] == 8192


@pytest.mark.usefixtures("node")
def test_a_model_is_named_by_path_or_by_what_lies_in_the_data_root(command: CommandLine) -> None:
    (command.root / "models").mkdir()
    outside, inside = command.root.parent / "my model.gguf", command.root / "models" / "mine.gguf"
    for copy in (outside, inside):
        shutil.copy(bundled_path(), copy)
    assert command("describe", str(outside), "--json").json["name"] == "my model"
    assert command("describe", "mine", "--json").json["path"] == str(inside)
    assert [model["name"] for model in command("models", "--json").json["models"]] == ["tiny", "mine"]


def test_doctor_finds_what_is_wrong_and_says_what_to_do(command: CommandLine, node: subprocess.Popen[bytes]) -> None:
    healthy = command("doctor")
    assert healthy.code == 0
    assert {line.split(" ")[0] for line in healthy.out.splitlines()} <= {"ok", "warn"}
    assert f"process {node.pid} answers" in healthy.out
    (command.root / "modeld.sock").chmod(0o666)
    shared = command("doctor")
    assert shared.code == 1
    assert "fail  socket: others may use" in shared.out
    assert "chmod 600" in shared.out


def test_doctor_says_why_there_is_no_http_and_what_an_engine_lacks(command: CommandLine) -> None:
    del command.env["MODELD_HTTP"]
    host, port = DEFAULT_HTTP.split(":")
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):  # Another test's node may have it.
            stranger.bind((host, int(port)))
            stranger.listen()
        command.serve()
        done = command("doctor", "--json", env={"MODELD_OPENVINO_DEVICE": "XPU"})
    found = {check["name"]: check for check in done.json["checks"]}
    assert found["http"]["state"] == "warn"
    assert "another node or program has that port (`modeld serve --http 127.0.0.1:0`" in found["http"]["message"]
    assert "modeld stop" in found["http"]["hint"]
    assert found["openvino"]["state"] == "fail"
    assert "MODELD_OPENVINO_DEVICE=XPU" in found["openvino"]["message"]


def test_doctor_names_the_address_of_http(command: CommandLine) -> None:
    command.serve("--http", "127.0.0.1:0")
    found = {check["name"]: check for check in command("doctor", "--json").json["checks"]}
    assert found["http"]["state"] == "ok"
    assert found["http"]["message"].startswith(command("status", "--json").json["node"]["http"])
    assert found["openvino"]["state"] == "ok"


def test_doctor_survives_a_native_library_that_aborts(command: CommandLine) -> None:
    broken = command.root.parent / "broken"
    (broken / "llama_cpp").mkdir(parents=True)
    (broken / "llama_cpp" / "__init__.py").write_text("import os\nos.abort()\n")
    path = os.pathsep.join([str(broken), command.env["PYTHONPATH"]])
    done = command("doctor", "--json", env={"PYTHONPATH": path})
    assert done.code == 1
    (llama,) = [check for check in done.json["checks"] if check["name"] == "llama"]
    assert llama["state"] == "fail"
    assert "-6" in llama["message"]

    (broken / "llama_cpp" / "__init__.py").write_text("raise ImportError('no such library')\n")
    done = command("doctor", "--json", env={"PYTHONPATH": path})
    (llama,) = [check for check in done.json["checks"] if check["name"] == "llama"]
    assert llama["state"] == "fail"
    assert "pip install llama-cpp-python" in llama["message"]


def test_doctor_looks_at_openvino_and_takes_it_for_optional(command: CommandLine) -> None:
    def found(**env: str) -> tuple[int, str, str]:
        done = command("doctor", "--json", env=env)
        (check,) = [check for check in done.json["checks"] if check["name"] == "openvino"]
        return done.code, check["state"], check["message"]

    code, state, message = found(MODELD_OPENVINO_DEVICE="CPU")
    assert (code, state) == (0, "ok")
    assert "tokenizers" in message
    assert "processor only" in message
    code, state, message = found(MODELD_OPENVINO_DEVICE="NPU")
    assert (code, state) == (1, "fail")
    assert "an NPU compiles graphs of fixed shapes" in message

    without = command.root.parent / "without"
    (without / "openvino").mkdir(parents=True)
    (without / "openvino" / "__init__.py").write_text("raise ImportError('no such library')\n")
    code, state, message = found(PYTHONPATH=os.pathsep.join([str(without), command.env["PYTHONPATH"]]))
    assert (code, state) == (0, "ok")
    assert "is not installed (no such library): pip install openvino" in message


def test_doctor_fails_on_a_folder_that_others_may_write(command: CommandLine) -> None:
    command.root.mkdir()
    command.root.chmod(0o777)
    done = command("doctor")
    assert done.code == 1
    assert "fail  data root: others may write" in done.out
    # It wrote nothing.
    command.root.rmdir()
    command.root.write_text("a file")
    assert "is no folder" in command("doctor").out


def test_version_says_what_is_installed(command: CommandLine) -> None:
    found = command("version", "--json").json
    assert set(found) == {"version", "protocol", "python", "backends"}
    assert found["backends"] == ["llama", "openvino"]
    assert found["version"] in command("version").out


def test_an_unexpected_error_is_one_line_and_a_traceback_only_on_demand(command: CommandLine) -> None:
    # Something no code of ours expects: a data root with a null character cannot come from a shell, so break a module.
    broken = command.root.parent / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text("import modeld.node.record as r\ndel r.default_data_root\n")
    path = os.pathsep.join([str(broken), command.env["PYTHONPATH"]])
    done = command("status", env={"PYTHONPATH": path})
    assert done.code == 1
    assert done.err.startswith("modeld: unexpected ImportError: ")
    assert done.err.count("\n") == 1
    debug = subprocess.run(
        [command.python, "-m", "modeld", "status"],
        env=command.env | {"PYTHONPATH": path, "MODELD_DEBUG": "1"},
        capture_output=True,
        timeout=60,
    )
    assert b"Traceback" in debug.stderr


def test_help_of_every_command_and_what_it_costs(command: CommandLine) -> None:
    listed = command("--help").out.partition("Commands:\n")[2]
    names = [line.split()[0] for line in listed.splitlines() if line.startswith("  ") and line[2] != " "]
    expected = "serve run chat status ps who models describe import load unload embed tokens stop"
    expected += " launch token install-service doctor version"
    assert " ".join(names) == f"{expected} sessions backends"
    groups = {"sessions": "list show fork rm export import", "backends": "add list rm models"}
    for group, members in groups.items():
        names.remove(group)
        assert f"Usage: modeld {group}" in command(group, "--help").out
        names += [f"{group} {member}" for member in members.split()]
    for name in names:
        shown = command(*name.split(), "--help")
        assert shown.code == 0
        assert f"Usage: modeld {name}" in shown.out
        assert ("--data-root" in shown.out) == (name != "version")
        assert ("--json" in shown.out) == (name != "serve")
        assert "allow-fake" not in shown.out


HEAVY = ("grpc", "rich", "asyncio", "llama_cpp", "google", "psutil")


@pytest.mark.parametrize("arguments", [["version"], ["--help"], ["run", "--help"], ["version", "--json"]])
def test_quick_commands_import_nothing_heavy(command: CommandLine, arguments: list[str]) -> None:
    program = (
        "import json, sys\n"
        "sys.argv[0] = 'modeld'\n"
        "from modeld.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print(json.dumps([name for name in {HEAVY!r} if name in sys.modules]))"
    )
    done = subprocess.run(
        [command.python, "-c", program, *arguments], env=command.env, capture_output=True, timeout=60, check=True
    )
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_a_disk_that_is_full_is_no_defect(command: CommandLine) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "modeld", "version"],
            env=command.env,
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == b"modeld: the output could not be written: No space left on device; free some room\n"
