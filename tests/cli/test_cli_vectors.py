"""Hazards of vectors and counts on the command line: numbers that are none, a cut that nobody is told of."""

from __future__ import annotations

import subprocess

import pytest

from .conftest import CommandLine


@pytest.mark.usefixtures("node")
def test_vectors_are_lines_of_numbers_and_json_has_all_of_it(command: CommandLine) -> None:
    plain = command("embed", "tiny", "Hello!", "Bye now.")
    rows = [[float(value) for value in line.split()] for line in plain.out.splitlines()]
    assert [len(row) for row in rows] == [128, 128]
    assert sum(value * value for value in rows[0]) == pytest.approx(1, abs=1e-3)
    assert "2 vectors of 128 numbers" in plain.err
    assert "the model does not say which" in plain.err
    told = command("embed", "tiny", "Hello!", "--dimensions", "4", "--json").json
    assert (told["model"], told["dimensions"], told["pooling_source"]) == ("tiny", 4, "default")
    assert len(told["vectors"][0]) == 4
    assert told["usage"]["input"] == told["items"][0]["tokens"] == 2


@pytest.mark.usefixtures("node")
def test_a_text_that_is_too_long_fails_or_says_that_it_was_cut(command: CommandLine) -> None:
    refused = command("embed", "tiny", "a b c d " * 100, "--context", "64")
    assert refused.code == 1
    assert "overflow=truncate or chunk" in refused.err
    cut = command("embed", "tiny", "a b c d " * 100, "--context", "64", "--overflow", "chunk")
    assert "cut (chunk): 1" in cut.err
    assert command("embed", "tiny", "x", "--overflow", "spill").code == 2


def test_tokens_are_counted_without_a_model_that_is_loaded(command: CommandLine, node: subprocess.Popen[bytes]) -> None:
    count, ids = command("tokens", "fake", "abc").out.splitlines()
    assert (count, ids) == ("3", "97 98 99")
    assert command("tokens", "fake", "abc", "--json").json == {"model": "fake", "count": 3, "tokens": [97, 98, 99]}
    status = command("status", "--json").json["node"]
    assert (status["state"], [side["task"] for side in status["sides"]]) == ("empty", ["vocabulary"])
    assert "vocabulary" in command("status").out
    assert node.poll() is None
