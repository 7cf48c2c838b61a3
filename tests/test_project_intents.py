"""Hazard: a page says that a behaviour is tested, and the test is gone or was never there."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "provider-intents.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
ROW = re.compile(r"^\| (?!must hold|---)(.*) \| (.*) \|$", re.MULTILINE)


@cache
def functions(file: str) -> frozenset[str]:
    """Names of the tests of a file, at its top."""
    path = ROOT / file
    if not path.is_file():
        return frozenset()
    tree = ast.parse(path.read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_every_test_that_is_named_exists() -> None:
    named = set(NAMED.findall(PAGE.read_text()))
    assert len(named) > 250
    assert {f"{file}::{name}" for file, name in named if name not in functions(file)} == set()


def test_a_test_that_is_not_there_is_seen() -> None:
    assert "test_a_test_that_is_not_there_is_seen" in functions("tests/test_project_intents.py")
    assert "test_nothing_of_the_kind" not in functions("tests/test_project_intents.py")
    assert functions("tests/test_nowhere.py") == frozenset()


def test_nothing_is_named_in_a_way_that_is_not_checked() -> None:
    text = PAGE.read_text()
    assert text.count("::") == len(NAMED.findall(text))


@pytest.mark.parametrize("number", range(1, 11))
def test_every_severe_weak_spot_has_a_test(number: int) -> None:
    rows = [answer for intent, answer in ROW.findall(PAGE.read_text()) if intent.startswith(f"W{number} ")]
    assert len(rows) == 1
    assert NAMED.search(rows[0])


def test_every_line_has_an_answer_and_is_there_once() -> None:
    """The same words may stand in two chapters, never in one."""
    for chapter in re.split(r"^##+ .*$", PAGE.read_text(), flags=re.MULTILINE):
        rows = ROW.findall(chapter)
        intents = [intent for intent, _ in rows]
        assert len(set(intents)) == len(intents)
        assert all(len(answer.strip()) > 3 for _, answer in rows)
