"""Hazard: a prompt whose header changes by itself is not named as such, or a word that somebody edited is."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modeld.engine.session import shared_length
from modeld.engine.volatile import in_header, volatile_shape

# As agents write them: Claude Code, Codex, Cline, OpenHands, aider, and proxies before them.
VOLATILE = [
    ("a date", "Today's date: 2026-02-10", "Today's date: 2026-02-11"),
    ("a date", "Today's date is 2026/02/10.", "Today's date is 2026/10/02."),
    ("a date", "The current date is Tuesday, February 10, 2026.", "The current date is Wednesday, February 11, 2026."),
    ("a date", "Today is January 31, 2026.", "Today is February 1, 2026."),
    ("a date", "It is 9 Feb 2026 here", "It is 10 Feb 2026 here"),
    ("a date", "Knowledge cutoff: 2024-06. Current date: 2/9/26", "Knowledge cutoff: 2024-06. Current date: 2/10/26"),
    ("a date", "Cutting Knowledge Date: December 2023", "Cutting Knowledge Date: January 2024"),
    ("a time", "# Current Time\n2/10/2026, 10:59:59 AM", "# Current Time\n2/10/2026, 11:00:00 AM"),
    ("a time", "Tue Feb 10 10:59:59 UTC 2026", "Tue Feb 10 10:59:58 UTC 2026"),
    ("a time", "time: 9:59", "time: 10:00"),
    ("a timestamp", '{"now": "2026-02-10T10:00:00.123Z"}', '{"now": "2026-02-10T10:00:07.004Z"}'),
    ("a timestamp", "2026-02-10 10:00:00 +0100", "2026-02-11 09:00:00 +0100"),
    ("a timestamp", "ts=1770000000", "ts=1770000017"),
    ("a timestamp", "ts=1770000000123", "ts=1770000017456"),
    (
        "a billing header",
        "x-anthropic-billing-header: cc_version=2.1.37.3a3; cc_entrypoint=cli; cch=00a1b;",
        "x-anthropic-billing-header: cc_version=2.1.37.9f0; cc_entrypoint=cli; cch=99fab;",
    ),
    ("a billing header", "v2; cch=00a1b; x", "v2; cch=10a1b; x"),
    (
        "a UUID",
        "session 3f2504e0-4f89-11d3-9a0c-0305e82c3301.",
        "session 9a0c04e0-4f89-41d3-9a0c-0305e82c3302.",
    ),
    ("an id", "request_id: req_011CSHoEeqs5C35K2UUqR7Fy", "request_id: req_021CSHoEeqs5C35K2UUqR7Fz"),
    ("an id", "trace 4bf92f3577b34da6a3ce929d0e0e4736", "trace 00f067aa0ba902b7a3ce929d0e0e4736"),
    ("an id", "message 01ARZ3NDEKTSV4RRFFQ69G5FAV", "message 01ARZ3NDEKTSV4RRFFQ69G5FAW"),
    ("an id", '"conversation_id": "abc-1234"', '"conversation_id": "abd-1235"'),
    ("a working directory", "Working directory: /srv/one", "Working directory: /srv/two"),
    ("a working directory", " - Primary working directory: /src/a", " - Primary working directory: /data/b"),
    ("a working directory", "<cwd>/srv/one</cwd>", "<cwd>/tmp/ann/one</cwd>"),
    ("a working directory", '{"cwd": "C:\\\\one"}', '{"cwd": "D:\\\\two"}'),
    ("a temporary path", "Write notes to /tmp/agent-x81k/notes", "Write notes to /tmp/agent-b3zz/notes"),
    ("a counter", "Token usage: 12034/200000; rest", "Token usage: 15110/200000; rest"),
    ("a counter", "You have 187,966 tokens left.", "You have 92,001 tokens left."),
    ("a counter", "This is turn 3 of 10.", "This is turn 4 of 10."),
    ("a counter", "request #41", "request #42"),
    (
        "a git status",
        "gitStatus: a copy.\nCurrent branch: main\n\nStatus:\nM src/a.py\n\nRecent commits:\nabc1234 Fix",
        "gitStatus: a copy.\nCurrent branch: main\n\nStatus:\nM src/a.py\n?? notes.md\n\nRecent commits:\nabc1234 Fix",
    ),
    ("a git status", "gitStatus: x\nCurrent branch: main\n", "gitStatus: x\nCurrent branch: fix-it\n"),
    (
        "a git status",
        "Git status:\nRecent commits:\n0a1b2c3 Fix the parser",
        "Git status:\nRecent commits:\n9a1b2c3 Speed it up",
    ),
]

STABLE = [
    ("You are calm and kind.", "You are calm and cold."),
    ("Answer in at most 3 sentences.", "Answer in at most 5 sentences."),
    ("margin-left: 5px", "margin-left: 6px"),
    ("You run version 1.2.34.", "You run version 1.2.35."),
    ("A dog barks", "A cat barks"),
    ("Today is 2026-02-10.", "Today is a holiday."),
    ("Call req_handler_1 first", "Use the handler first"),
    ("The working directory is never changed.", "The working directory is the repository's."),
    ("May I help?", "Can I help?"),
    ("In March we marched.", "In marching we rest."),
    ("Ratio 16 to 9", "Ratio 4 to 3"),
    ("Use 12 tools", "Use 13 tools"),
    ("gitStatus: clean\nBe kind to all.", "gitStatus: clean\nBe cold to all."),
    ("abc", "abcdef"),
    ("", "Today's date: 2026-02-10"),
    ("Step 1: read. Step 2: write.", "Step 1: read. Step 3: write."),
]


@pytest.mark.parametrize(("shape", "old", "new"), VOLATILE)
def test_what_changes_by_itself_is_named(shape: str, old: str, new: str) -> None:
    header = "You are an agent.\nBe brief.\n"
    for before, behind in (("", ""), (header, "\nMore rules follow."), (header * 50, "\n" + header * 50)):
        was, now = before + old + behind, before + new + behind
        assert volatile_shape(was, now, shared_length(was, now)) == shape


@pytest.mark.parametrize(("old", "new"), STABLE)
def test_what_somebody_edited_is_not(old: str, new: str) -> None:
    assert volatile_shape(old, new, shared_length(old, new)) == ""


WORDS = st.lists(st.text("abcdefghijklmnop", min_size=1, max_size=9), min_size=1, max_size=30)


@settings(deadline=None)
@given(WORDS, st.data())
def test_a_changed_word_of_letters_is_never_volatile(words: list[str], data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(words) - 1))
    other = data.draw(st.text("qrstuvwxyz", min_size=1, max_size=9))
    old, new = " ".join(words), " ".join([*words[:at], other, *words[at + 1 :]])
    assert volatile_shape(old, new, shared_length(old, new)) == ""


@settings(deadline=None)
@given(st.text(), st.text())
def test_any_two_texts_are_looked_at(old: str, new: str) -> None:
    """No text makes it fail, and what is the same on both sides is never what changed."""
    assert volatile_shape(old, new, shared_length(old, new)) in {shape for shape, _, _ in VOLATILE} | {""}
    assert volatile_shape(old, old, len(old)) == ""


def test_a_long_line_costs_no_more_than_a_short_one() -> None:
    for filling in ("a", "1", "0a", "x-", "/tmp", "id=", " ", "M ", "2026-", "12:", "step "):
        old, new = filling * 200_000 + "1" + filling * 1000, filling * 200_000 + "2" + filling * 1000
        began = time.process_time()
        volatile_shape(old, new, len(filling) * 200_000)
        assert time.process_time() - began < 0.5, filling


@pytest.mark.parametrize(
    ("text", "header"),
    [
        ("<" + "env" * 100_000 + "HERE", False),
        ("<system-reminder>\nToday is HERE", True),
        ("<environment_context><cwd>HERE", True),
        ("<env>\nx\n</env>\nToday is HERE", False),
        ("Today is HERE <env>", False),
        ("", False),
    ],
)
def test_only_what_a_program_put_in_is_a_header(text: str, header: bool) -> None:
    assert in_header(text, max(0, text.find("HERE"))) == header
