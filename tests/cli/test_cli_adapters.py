"""Hazards of --lora: a scale that is part of a path, a set that nobody shows, a model that silently runs without."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.adapters import Lora

from .conftest import CommandLine


def test_adapters_are_loaded_shown_and_switched(
    command: CommandLine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Lora(tmp_path / "one=x.gguf", strength=0.14)
    Lora(tmp_path / "two.gguf", rank=8, seed=1, strength=0.6)
    monkeypatch.chdir(tmp_path)
    loaded = command("load", "tiny", "--lora", "one=x.gguf=1.5", "--lora", str(tmp_path / "two.gguf"))
    assert loaded.code == 0, loaded.err
    names = sorted(loaded.out.partition(" ")[0].split("+"))
    assert names == ["one=x*1.5", "tiny", "two*1"]

    described = command("describe", "tiny", "--lora", "one=x.gguf=1.5", "--lora", "two.gguf")
    assert "tiny (loaded)" in described.out
    assert f"{tmp_path / 'one=x.gguf'}, scale 1.5" in described.out
    bare = command("describe", "tiny", "--json").json
    assert not bare.get("resident")

    run = ("run", "tiny", "Count to 12.", "--temperature", "0", "--max-tokens", "24", "--session", "s")
    with_one = command(*run, "--lora", "one=x.gguf=1.5")
    assert with_one.code == 0, with_one.err
    assert "tiny+one=x*1.5: " in command("status").out
    assert "tiny+one=x*1.5" in command("ps").out
    shown = command("ps", "--json").json
    assert shown["node"]["adapters"][0]["scale"] == shown["sessions"][0]["adapters"][0]["scale"] == 1.5
    assert "tiny+one=x*1.5" in command("sessions", "show", "s").out

    without = command(*run)
    assert without.out != with_one.out
    assert command("status", "--json").json["node"]["adapters"] == []
    assert "+" not in command("ps").out


@pytest.mark.parametrize(
    ("lora", "code", "said"),
    [
        ("poet.gguf=0", 2, "scale"),
        ("poet.gguf=inf", 2, "scale"),
        ("", 2, "name or a path"),
        ("nobody", 1, "No model named nobody"),
        ("./nowhere.gguf", 1, "nowhere.gguf"),
        (__file__, 1, "magic bytes GGUF"),
    ],
)
@pytest.mark.usefixtures("node")
def test_what_is_no_adapter_is_refused(command: CommandLine, lora: str, code: int, said: str) -> None:
    for words in (("run", "tiny", "hello"), ("load", "tiny"), ("describe", "tiny")):
        refused = command(*words, "--lora", lora)
        assert refused.code == code
        assert said in refused.err
    assert command("status", "--json").json["node"]["state"] == "empty"
