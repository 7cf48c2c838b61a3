"""Strategies for what a caller may send: nothing in it need make sense, and little of it is rare."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from modeld.types import FunctionCall, FunctionTool, Message, Tool, ToolCall

KEYS = st.sampled_from(["x", "y", "type", ""])

values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 2) | st.sampled_from([0.0, 1.0, 1e300, "", "x", "string", "object"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=4,
)
"""JSON."""

pieces = st.sampled_from(
    [
        "",
        " ",
        "a",
        "ab " * 40,
        "2026-02-10",
        "\n",
        "</think>",
        "<tool_call>",
        '{"x": null}',
        '{"x": "\\ud800"}',
        "\ue001",
        "\0",
    ]
)
texts = st.lists(pieces, max_size=4).map("".join)

calls = st.builds(
    ToolCall, st.sampled_from(["", "call_1", "call_2"]), st.builds(FunctionCall, st.sampled_from(["a", "b", ""]), texts)
)
tools = st.builds(
    FunctionTool,
    st.sampled_from(["a", "b", ""]),
    texts,
    st.dictionaries(KEYS, values, max_size=3),
    strict=st.sampled_from([None, True, False]),
).map(Tool)
messages = st.one_of(
    st.builds(Message, st.sampled_from(["system", "user"]), texts),
    st.builds(Message, st.just("assistant"), texts, thinking=texts, tool_calls=st.lists(calls, max_size=2).map(tuple)),
    st.builds(Message, st.just("tool"), texts, tool_call_id=st.sampled_from(["call_1", "call_2", ""])),
)
thinking = st.sampled_from(["auto", "off", "low", "high"])
