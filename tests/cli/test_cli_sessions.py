"""Hazards of `modeld sessions`: a file half written, a session replaced unasked, one that does not come back warm."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from pathlib import Path

import pytest

import modeld.sync
from modeld.session import SessionConfig
from modeld.types import DecodeOptions, Message

from .conftest import CommandLine, wait_for

GREEDY = DecodeOptions(temperature=0)
STORY = [Message("system", "It was " + "a stone and " * 100), Message("user", "and then?")]


@pytest.fixture
def told(command: CommandLine, node: subprocess.Popen[bytes]) -> list[Message]:
    """A conversation in session ``story`` of workspace ``w``."""
    with modeld.sync.connect(command.root) as client:
        session = client.open_session("fake", SessionConfig(workspace="w", name="story"))
        return [*STORY, session.turn(STORY, options=GREEDY).join().message]


def test_exported_removed_imported_elsewhere_and_continued(
    command: CommandLine, told: list[Message], tmp_path: Path
) -> None:
    file = tmp_path / "story.snap"
    written = command("sessions", "export", "story", str(file), "--workspace", "w", "--json").json["snapshot"]
    assert hashlib.sha256(file.read_bytes()).hexdigest() == written["id"]
    assert file.stat().st_mode & 0o777 == 0o600
    assert command("sessions", "rm", "story", "--workspace", "w").out == "story is removed\n"
    seen = command("sessions", "list", "--json").json
    assert (seen["sessions"], seen["snapshots"], seen["snapshot_bytes"]) == ([], [], 0)

    other = CommandLine(tmp_path / "other")
    try:
        other.serve()
        made = other("sessions", "import", str(file), "--as", "again", "--json").json
        assert made["receipt"]["restored"] == written["tokens"] == made["session"]["tape"]
        assert (made["session"]["workspace"], made["session"]["name"]) == ("w", "again")
        with modeld.sync.connect(other.root) as client:
            session = client.open_session("fake", SessionConfig(workspace="w", name="again"))
            more = [*told, Message("user", "go on")]
            result = session.turn(more, options=GREEDY).join()
        assert result.receipt.reused == written["tokens"]
        assert result.receipt.prefilled < 40
        assert result.text.startswith("go on #")
        row = other("sessions", "list").out
        assert written["id"][:16] in row
        assert "take" in row
        assert other("sessions", "rm", written["id"][:8]).code == 0
        assert other("sessions", "list", "--json").json["snapshots"] == []
    finally:
        other.close()


@pytest.mark.usefixtures("told")
def test_show_names_messages_by_role_and_size(command: CommandLine) -> None:
    shown = command("sessions", "show", "story", "--workspace", "w")
    lines = [line.split() for line in shown.out.splitlines()]
    assert ["0", "system", str(len(STORY[0].content))] in lines
    assert ["1", "user", "9"] in lines
    assert "stone" not in shown.out
    report = command("sessions", "show", "story", "--workspace", "w", "--json").json["report"]
    assert report["manifest"]["engine"] == "fake"
    assert report["last_receipt"]["prefilled"] > 1000
    # A look loads nothing.
    assert command("unload").code == 0
    assert "while its model is not loaded" in command("sessions", "show", "story", "--workspace", "w").out
    assert command("status", "--json").json["engine"] is None


@pytest.mark.usefixtures("told")
def test_fork_of_a_session_and_of_a_snapshot(command: CommandLine, tmp_path: Path) -> None:
    workspace = ("--workspace", "w")
    tape = command("sessions", "fork", "story", "branch", *workspace, "--json").json["session"]["tape"]
    assert tape > 1000
    taken = command("sessions", "fork", "story", "branch", *workspace)
    assert (taken.code, "--force replaces it" in taken.err) == (1, True)
    assert command("sessions", "fork", "story", "branch", *workspace, "--force").code == 0
    with modeld.sync.connect(command.root) as client:
        saved = client.open_session("fake", SessionConfig(workspace="w", name="story")).snapshot()
        assert client.snapshots() == [saved]
        pieces = list(client.export_snapshot(saved.id))
        client.remove_snapshot(saved.id)
        assert client.import_snapshot(pieces, snapshot_id=saved.id) == saved
    assert command("sessions", "fork", saved.id[:12], "third", *workspace, "--json").json["session"]["tape"] == tape
    assert command("sessions", "fork", "0" * 12, "fourth", *workspace).code == 1
    assert command("sessions", "rm", "--all", *workspace, "--json").json["removed"] == ["third", "story", "branch"]
    assert len(command("sessions", "list", "--json").json["snapshots"]) == 1


@pytest.mark.usefixtures("told")
def test_fork_of_a_damaged_snapshot_leaves_no_session(command: CommandLine) -> None:
    with modeld.sync.connect(command.root) as client:
        taken = client.open_session("fake", SessionConfig(workspace="w", name="story")).snapshot()
    file = command.root / "snapshots" / f"{taken.id}.snap"
    data = bytearray(file.read_bytes())
    data[-40] ^= 1
    file.write_bytes(data)
    failed = command("sessions", "fork", taken.id[:16], "branch", "--workspace", "w")
    assert failed.code == 1
    assert "damaged" in failed.err
    assert "branch" not in command("sessions", "list").out


@pytest.mark.usefixtures("told")
def test_sessions_that_rest_are_told_without_a_node(command: CommandLine, node: subprocess.Popen[bytes]) -> None:
    assert command("stop").code == 0
    assert node.wait(60) == 0
    assert "1 sessions are on disk" in command("sessions", "list").out


@pytest.mark.usefixtures("told")
def test_wrong_usage_changes_nothing(command: CommandLine, tmp_path: Path) -> None:
    for arguments in (("rm",), ("rm", "story", "--all"), ("export", "story", "-", "--json"), ("import",)):
        assert command("sessions", *arguments).code == 2
    file = tmp_path / "there"
    file.write_text("mine")
    refused = command("sessions", "export", "story", str(file), "--workspace", "w")
    assert (refused.code, "--force" in refused.err, file.read_text()) == (1, True, "mine")
    unknown = command("sessions", "rm", "story", "nobody", "--workspace", "w", "--json")
    assert (unknown.code, unknown.json["error"]["code"]) == (1, "session_not_found")
    assert command("sessions", "show", "story", "--json").json["error"]["code"] == "session_not_found"
    no_folder = command("sessions", "export", "story", str(tmp_path / "no" / "x"), "--workspace", "w", "--json")
    assert no_folder.json["error"]["code"] == "storage_failed"
    assert [one["name"] for one in command("sessions", "list", "--json").json["sessions"]] == ["story"]
    assert command("sessions", "export", "story", str(file), "--workspace", "w", "--force").code == 0
    again = command("sessions", "import", str(file), "--json")
    assert (again.code, "already" in again.json["error"]["message"]) == (1, True)
    assert command("sessions", "import", str(file), "--force", "--json").json["session"]["name"] == "story"


def test_file_that_is_none_starts_no_node(command: CommandLine, tmp_path: Path) -> None:
    junk = tmp_path / "junk"
    junk.write_bytes(b"GGUF" * 1000)
    for file in (str(junk), "/dev/zero", str(tmp_path), str(tmp_path / "missing")):
        refused = command("sessions", "import", file, "--json")
        assert refused.code == 1
        assert refused.json["error"]["code"] in ("manifest_mismatch", "storage_failed")
        assert "starting" not in refused.err
    assert command("sessions", "list").out.startswith("no node is running")
    assert not command.root.exists()


@pytest.mark.usefixtures("told")
def test_refused_import_leaves_nothing(command: CommandLine, tmp_path: Path) -> None:
    file = tmp_path / "story"
    assert command("sessions", "export", "story", str(file), "--workspace", "w").code == 0
    data = bytearray(file.read_bytes())
    lying = tmp_path / f"{'0' * 64}.snap"
    lying.write_bytes(data)
    (tmp_path / "short").write_bytes(data[:-7])
    data[-3] ^= 4
    (tmp_path / "broken").write_bytes(data)
    for name in (lying.name, "short", "broken"):
        refused = command("sessions", "import", str(tmp_path / name), "--as", "new", "--json")
        assert (refused.code, refused.json["error"]["code"]) == (1, "manifest_mismatch")
    # Another file under the model's name.
    missing = command("sessions", "import", str(file), "--as", "new", "--model", "tiny", "--json")
    assert missing.json["error"]["code"] == "digest_mismatch"
    seen = command("sessions", "list", "--json").json
    assert ([one["name"] for one in seen["sessions"]], seen["snapshots"]) == (["story"], [])
    assert os.listdir(command.root / "snapshots") == []


@pytest.mark.usefixtures("told")
def test_export_through_a_pipe(command: CommandLine, tmp_path: Path) -> None:
    child = command.start("sessions", "export", "story", "-", "--workspace", "w")
    out, err = child.communicate(timeout=60)
    assert child.returncode == 0
    assert hashlib.sha256(out).hexdigest() in err.decode()
    done = subprocess.run(
        [command.python, "-m", "modeld", "sessions", "import", "-", "--as", "piped", "--json"],
        env=command.env,
        input=out,
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert b'"name":"piped"' in done.stdout


@pytest.mark.usefixtures("told")
def test_interrupted_export_leaves_no_file(command: CommandLine, node: subprocess.Popen[bytes], tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    os.kill(node.pid, signal.SIGSTOP)
    try:
        child = command.start("sessions", "export", "story", str(folder / "x"), "--workspace", "w")
        wait_for(lambda: os.listdir(folder) != [], "nothing was begun")
        child.send_signal(signal.SIGINT)
        assert command.finish(child).code == 130
    finally:
        os.kill(node.pid, signal.SIGCONT)
    assert os.listdir(folder) == []
    wait_for(lambda: command("sessions", "list", "--json").json["snapshots"] == [], "a snapshot is left")


def test_interrupted_in_the_middle_of_the_file_leaves_nothing(
    command: CommandLine, told: list[Message], tmp_path: Path
) -> None:
    """The reader of the pipe stands still: the export is in its middle for certain."""
    with modeld.sync.connect(command.root) as client:
        long = client.open_session("fake", SessionConfig(workspace="w", name="long"))
        long.ensure_prefix([Message("system", "\N{SNOWMAN}" * 4000, thinking="y" * 500_000)])
    child = command.start("sessions", "export", "long", "-", "--workspace", "w")
    assert child.stdout is not None
    assert child.stdout.read(100)
    assert command("sessions", "list", "--json").json["snapshots"] != []
    child.send_signal(signal.SIGINT)
    child.stdout.read()
    assert child.wait(60) == 130
    assert os.listdir(command.root / "snapshots") == []


@pytest.mark.usefixtures("node")
def test_a_name_that_other_commands_want_is_whole_beside_a_workspace_that_is_long(command: CommandLine) -> None:
    name, workspace = "0123456789abcdef" * 2 + "-of-an-agent", "user_" + "0123456789" * 12
    assert command("run", "fake", "hello", "--session", name, "--workspace", workspace).code == 0
    terminal = command.terminal("ps")
    assert name in terminal.expect("KV of")
    assert terminal.end() == 0
