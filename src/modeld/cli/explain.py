"""``modeld ps --explain``: what a session's last call cost, and which breaks of its cache cost how much."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from modeld.cli.output import duration, facts, seconds, table, visible
from modeld.cli.remote import reached
from modeld.errors import SessionError

if TYPE_CHECKING:
    from modeld.session.values import Break, ContextReport, SessionInfo
    from modeld.types import ReuseStop


async def look_up(root: Path, backend: str, name: str, workspace: str, model: str) -> ContextReport:
    """What the node knows of the session of that name. No model is loaded for it.

    :raises SessionError: there is none, or more than one.
    """
    async with reached(root, backend) as client:
        found = _the_one(await client.sessions(), name, workspace, model)
        return await client.attach(found.handle(await client.status())).explain()


def _the_one(sessions: list[SessionInfo], name: str, workspace: str, model: str) -> SessionInfo:
    found = [
        session
        for session in sessions
        if session.name == name and workspace in ("", session.workspace) and model in ("", session.model)
    ]
    if len(found) == 1:
        return found[0]
    if not found:
        where = f" in workspace {workspace!r}" * bool(workspace) + f" on model {model!r}" * bool(model)
        raise SessionError(f"there is no session {name!r}{where}; modeld ps lists all {len(sessions)}")
    places = ", ".join(f"--workspace {s.workspace} --model {s.model}" for s in found)
    raise SessionError(f"{len(found)} sessions are named {name!r}: say which with one of {places}")


def show(report: ContextReport) -> None:
    """The report for people."""
    facts(_session_facts(report))
    breaks = list(report.breaks)
    stop = report.last_receipt.stop if report.last_receipt is not None else None
    if stop is not None:
        print("\nwhy the last call could not reuse all")
        show_stop(stop)
        breaks = [b for b in breaks if b.stop != stop]
    elif breaks:
        latest = breaks.pop()
        print(f"\nthe last break, {_ago(latest)}")
        show_stop(latest.stop)
    if breaks:
        print("\nbreaks before it")
        rows = [(_ago(b), b.stop.reason, b.stop.place, str(b.stop.tokens), b.stop.detail) for b in reversed(breaks)]
        table(("WHEN", "CAUSE", "WHERE", "TOKENS", "DETAIL"), [tuple(map(visible, row)) for row in rows])
    if report.break_totals:
        print("\nlost to breaks so far")
        totals = [(t.reason, str(t.count), str(t.tokens), seconds(t.seconds)) for t in report.break_totals]
        table(("CAUSE", "CALLS", "TOKENS", "TIME"), totals)


def _ago(one: Break) -> str:
    return f"{duration(time.time() - one.at)} ago"


def show_stop(stop: ReuseStop) -> None:
    """Where and why reuse stopped, with the place in the old and the new text under one another."""
    cost = f"{stop.tokens:,} tokens computed again, {seconds(stop.seconds)}" if stop.tokens else "none"
    facts(
        [
            ("cause", stop.reason),
            ("what", visible(stop.detail)),
            ("where", stop.place),
            ("cost", cost),
            ("advice", stop.advice if stop.tokens else ""),
        ]
    )
    if stop.old or stop.new:
        old, new, at = _aligned(stop.old, stop.new)
        print(f"  was  {old}\n  now  {new}\n       {' ' * at}^")


def _aligned(old: str, new: str) -> tuple[str, str, int]:
    """Both on one line each, with what is no printable character spelled out, and the column where they part."""
    at = next((n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
    return _one_line(old), _one_line(new), len(_one_line(old[:at]))


def _one_line(text: str) -> str:
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _session_facts(report: ContextReport) -> list[tuple[str, str]]:
    receipt = report.last_receipt
    last = "no call since the node came to know it"
    if receipt is not None:
        restored = f"{receipt.restored:,} came back, " if receipt.restored else ""
        last = f"{receipt.input:,} tokens in: {receipt.reused:,} reused, {restored}{receipt.prefilled:,} computed"
        last += f" in {seconds(receipt.prefill_seconds)}"
        last += f"; {receipt.dropped:,} left the session" if receipt.dropped else ""
    return [
        ("session", visible(f"{report.workspace}/{report.name} on {report.model}, generation {report.generation}")),
        ("resident", f"{report.resident:,} of {report.window:,} tokens"),
        ("last call", last),
        ("reuse", "all that the session held" if receipt is not None and receipt.stop is None else ""),
        ("fatal", report.fatal),
    ]
