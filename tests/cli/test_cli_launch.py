"""Hazards of `launch` and `token --url`: settings that do not work, a token where logs or histories keep it."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path
from urllib.parse import unquote

import pytest

from modeld.cli.launch import TOOLS, settings
from modeld.cli.web import Asked
from modeld.node.store import bundled_path

from .conftest import CommandLine


@pytest.fixture
def served(command: CommandLine) -> CommandLine:
    command.serve("--http", "127.0.0.1:0")
    return command


def test_a_link_opens_the_console_and_is_shown_on_a_terminal_only(served: CommandLine) -> None:
    token = (served.root / "token").read_text().strip()
    for arguments in ((), ("--json",)):
        refused = served("token", "--url", *arguments)
        assert refused.code == 1
        assert token not in refused.out + refused.err
    terminal = served.terminal("token", "--url")
    link = re.search(r"(http://127\.0\.0\.1:\d+)/#token=(\S+)", terminal.expect("\n"))
    assert link is not None
    assert unquote(link[2]) == token
    with urllib.request.urlopen(f"{link[1]}/", timeout=20) as page:
        assert b"<title>modeld</title>" in page.read()
    assert terminal.end() == 0


def test_every_tool_is_told_and_no_token_is_shown(served: CommandLine) -> None:
    token = (served.root / "token").read_text().strip()
    told = served("launch")
    assert told.code == 0
    assert all(f"({name})" in told.out for name in TOOLS)
    found = served("launch", "--json").json
    assert [one["tool"] for one in found] == list(TOOLS)
    url = served("status", "--json").json["node"]["http"]
    for one in found:
        assert one["base_url"] in (url, f"{url}/v1")
        assert Path(one["token_file"]).read_text().strip() == token
    assert token not in told.out + json.dumps(found)


def test_lines_of_a_shell_work_in_one(served: CommandLine) -> None:
    lines = served("launch", "openai-env", "--model", "fake").out
    check = '\nprintf "%s %s" "$OPENAI_BASE_URL" "$OPENAI_API_KEY"'
    done = subprocess.run(["sh", "-ec", lines + check], capture_output=True, text=True, check=True)
    base, key = done.stdout.split()
    request = urllib.request.Request(f"{base}/models", headers={"authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert json.load(answer)["object"] == "list"


def test_the_model_is_the_resident_one_and_must_be_there(served: CommandLine) -> None:
    def model(*arguments: str) -> str:
        found: str = served("launch", "codex", "--json", *arguments).json["model"]
        return found

    assert model() == "tiny"
    (served.root / "models").mkdir()
    shutil.copy(bundled_path(), served.root / "models" / "copy.gguf")
    assert served("load", "copy").code == 0
    assert model() == "copy"
    assert model("--model", "tiny") == "tiny"
    assert model("--model", "cloud:gpt-5") == "cloud:gpt-5"
    refused = served("launch", "codex", "--model", "nope")
    assert refused.code == 1
    assert "Installed: copy, tiny" in refused.err


def test_the_program_for_openais_sdk_runs(served: CommandLine) -> None:
    program = served("launch", "openai", "--model", "fake").out
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize("name", TOOLS)
def test_odd_names_stay_one_word(name: str, tmp_path: Path) -> None:
    """A model and a folder with quotes and spaces: nothing of them is run."""
    folder = tmp_path / "it's; touch a"
    folder.mkdir()
    (folder / "token").write_text("the-token\n")
    model = "o'neil's; touch b; $(touch c)"
    told = settings(name, "http://127.0.0.1:1", folder / "token", Asked(model, 4096))
    if TOOLS[name].snippet:
        compile(told.text, name, "exec")
        return
    command = told.text.splitlines()[-1]
    stub = f'{command.split()[0]}() {{ printf "%s\\n" "$@"; }}\n' if TOOLS[name].command else ""
    done = subprocess.run(["sh", "-ec", stub + told.text], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert not {"a", "b", "c"} & {path.name for path in tmp_path.iterdir()}
    if "--model" in command:
        assert done.stdout.splitlines()[-1].removeprefix("openai/") == model


def test_claude_code_calls_no_model_but_this_one_and_begins_no_prompt_anew(tmp_path: Path) -> None:
    env = settings("claude-code", "http://127.0.0.1:1", tmp_path / "token", Asked("qwen3-8b")).env
    assert {env[f"ANTHROPIC_DEFAULT_{size}_MODEL"] for size in ("HAIKU", "SONNET", "OPUS")} == {"qwen3-8b"}
    assert env["ANTHROPIC_MODEL"] == "qwen3-8b"
    assert env["CLAUDE_CODE_ATTRIBUTION_HEADER"] == "0"


def test_codex_is_told_to_leave_out_what_a_node_refuses(tmp_path: Path) -> None:
    command = settings("codex", "http://127.0.0.1:1", tmp_path / "token", Asked("tiny")).text.splitlines()[-1]
    overrides = [word for before, word in itertools.pairwise(shlex.split(command)) if before == "-c"]
    assert {"web_search=disabled", "features.multi_agent=false", "model_provider=modeld"} < set(overrides)
    (provider,) = (tomllib.loads(word) for word in overrides if "base_url" in word)
    assert provider["model_providers"]["modeld"]["base_url"] == "http://127.0.0.1:1/v1"


def test_agents_are_told_the_window_that_the_model_has_here(served: CommandLine) -> None:
    """Else they believe some large one and are refused where they would have summed up."""

    def window(*arguments: str) -> tuple[int, str, str]:
        codex = served("launch", "codex", "--json", *arguments).json
        claude = served("launch", "claude-code", "--json", *arguments).json
        found = re.search(r"-c model_context_window=(\d+) ", codex["text"])
        return codex["window"], found[1] if found else "", claude["env"].get("CLAUDE_CODE_MAX_CONTEXT_TOKENS", "")

    assert served("load", "tiny", "--context", "3000").code == 0
    assert served("status", "--json").json["node"]["context"] == 3000
    assert window() == (3000, "3000", "3000")
    assert window("--model", "cloud:gpt-5") == (0, "", "")
    assert served("unload").code == 0
    planned = served("describe", "tiny", "--json").json["plan"]["context"]
    assert window() == (planned, str(planned), str(planned))


def test_without_http_it_says_what_to_do(command: CommandLine) -> None:
    assert "no modeld node runs" in command("launch").err
    command.serve("--http", "off")
    refused = command("launch", "openai")
    assert refused.code == 1
    assert "serves no HTTP" in refused.err
    assert "modeld serve --http" in refused.err


def test_an_unknown_tool_is_named_with_those_that_are_known(command: CommandLine) -> None:
    refused = command("launch", "emacs")
    assert refused.code == 1
    assert all(name in refused.err for name in TOOLS)
