"""Hazard: two tools become one under a vendor's rules for names, or an answer names a tool that nobody gave."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld import FunctionTool, Tool
from modeld.repository.names import ToolNames


def tools(*names: str) -> list[Tool]:
    return [Tool(FunctionTool(name)) for name in names]


@pytest.mark.parametrize(
    ("given_names", "sent"),
    [
        (["fs.list"], ["fs_list"]),
        (["_a-", "a"], ["a", "a_1"]),
        (["a.b", "a_b", "a b"], ["a_b", "a_b_1", "a_b_2"]),
        (["...", "§"], ["tool_0", "tool_1"]),
        (["x" * 70, "x" * 71], ["x" * 64, "x" * 62 + "_1"]),
    ],
)
def test_names_become_what_a_vendor_takes(given_names: list[str], sent: list[str]) -> None:
    names = ToolNames(tools(*given_names), 64)
    assert [names.sent(name) for name in given_names] == sent
    assert [names.original(name) for name in sent] == given_names


@given(st.lists(st.text(min_size=1, max_size=90), unique=True, max_size=12), st.sampled_from([8, 64, 128]))
def test_every_tool_keeps_a_name_of_its_own(given_names: list[str], limit: int) -> None:
    names = ToolNames(tools(*given_names), limit)
    sent = [names.sent(name) for name in given_names]
    assert len(set(sent)) == len(given_names)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", name) and len(name) <= limit for name in sent)
    assert [names.original(name) for name in sent] == given_names


def test_a_vendor_without_rules_gets_the_names_as_they_are() -> None:
    names = ToolNames(tools("fs.list", "§"), 0)
    assert [names.sent(n) for n in ("fs.list", "§", "old.tool")] == ["fs.list", "§", "old.tool"]


def test_names_of_the_history_and_of_the_models_fancy() -> None:
    names = ToolNames(tools("fs.list"), 64)
    assert names.sent("old.tool") == "old_tool"
    assert names.sent("...") == "tool"
    assert names.original("made_up") == "made_up"
