"""What commands print: answers to stdout, everything about them to stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, TextIO

if TYPE_CHECKING:
    from modeld.session.adapters import Adapter
    from modeld.types import EndPart, ProgressPart, Usage

_WIDE: Final = 10_000
"""Columns where no terminal is: nothing is cut or wrapped for a pipe."""

_CONTROLS: Final = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def say(text: str) -> None:
    """A line of ours on stderr."""
    print(f"modeld: {text}", file=sys.stderr, flush=True)


def emit(value: Any) -> None:
    """JSON on one line of stdout: Structs with their fields as they are, without those that have their default."""
    import msgspec

    try:
        text = msgspec.json.encode(value).decode()
    except UnicodeEncodeError:
        # The name of a file need not be UTF-8: its odd bytes become lone surrogates, escaped.
        import json

        text = json.dumps(msgspec.to_builtins(value))
    print(text, flush=True)


def visible(text: str) -> str:
    """``text`` for a terminal: control characters, which a model could use to command it, are spelled out."""
    return text.translate(_CONTROLS)


def adapted(adapters: Sequence[Adapter]) -> str:
    """What follows the name of a model that has adapters: ``+poet*0.5``."""
    return "".join(f"+{visible(adapter.name)}*{adapter.scale:g}" for adapter in adapters)


def dimmed(text: str, stream: TextIO) -> str:
    """``text`` for ``stream``, dim where that is a terminal with styles."""
    return f"\x1b[2m{text}\x1b[0m" if styled(stream) else text


def styled(stream: TextIO) -> bool:
    """Whether ``stream`` is a terminal that shows styles and wants them (no ``NO_COLOR``)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Rows under their headers; columns that hold numbers are aligned right."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for index, header in enumerate(headers):
        numbers = all(row[index][:1].isdigit() for row in rows)
        # The first one names what the other commands are told of: it is cut last.
        made.add_column(header, justify="right" if numbers else "left", no_wrap=index == 0)
    for row in rows:
        made.add_row(*row)
    _print(made)


def facts(rows: Sequence[tuple[str, str]]) -> None:
    """Names and values, one a line; a value that is empty is left out."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows:
        if value:
            made.add_row(name, value)
    _print(made)


def _print(renderable: Any) -> None:
    from rich.console import Console

    # Names and paths are data: nothing in them is markup.
    width = None if sys.stdout.isatty() else _WIDE
    console = Console(file=sys.stdout, width=width, markup=False, emoji=False, highlight=False)
    with console.capture() as capture:
        console.print(renderable)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()), flush=True)


def duration(seconds: float) -> str:
    """``42 s``, ``5 min``, ``2 h 5 min``, ``3 d 4 h``."""
    whole = max(round(seconds), 0)
    if whole < 60:
        return f"{whole} s"
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if minutes < 60:
        return f"{minutes} min"
    if hours < 24:
        return f"{hours} h {minutes % 60} min"
    return f"{days} d {hours % 24} h"


def seconds(value: float) -> str:
    """``0.004 s``, ``3.2 s``, ``5 min``: what a call took."""
    if value >= 60:
        return duration(value)
    return f"{value:.1f} s" if value >= 1 else f"{value:.3f} s"


def cost_line(end: EndPart) -> str:
    """What an answer cost: on a node by its receipt, at a vendor by the usage it tells."""
    return receipt_line(end) if end.receipt is not None else _usage_line(end)


def _usage_line(end: EndPart) -> str:
    usage = end.usage
    fields = []
    if usage.input is not None:
        cached = [f"{n} {what}" for n, what in ((usage.cache_read, "cached"), (usage.cache_write, "to the cache")) if n]
        fields.append(f"{usage.input} tokens in" + (f" ({', '.join(cached)})" if cached else ""))
    if usage.output is not None:
        fields.append(f"{usage.output} out" + _thinking(usage))
    return ", ".join([*(fields or ["usage unknown"]), end.finish_reason])


def receipt_line(end: EndPart) -> str:
    """What an answer cost, and where and why reuse stopped."""
    receipt = end.cost()
    parts = [f"{receipt.reused} reused", f"{receipt.prefilled} prefilled"]
    if receipt.restored:
        parts.insert(1, f"{receipt.restored} restored")
    if receipt.dropped:
        parts.append(f"{receipt.dropped} dropped")
    if receipt.recomputed:
        parts.append(f"{receipt.recomputed} computed again")
    fields = [f"{receipt.input} tokens in ({', '.join(parts)})"]
    if end.usage.output is not None:
        fields.append(f"{end.usage.output} out" + _thinking(end.usage))
        if end.usage.output and receipt.decode_seconds:
            speed = end.usage.output / receipt.decode_seconds
            fields.append(f"{speed:.{0 if speed >= 10 else 1}f} tok/s")
    fields.append(end.finish_reason)
    return ", ".join(fields) + _reuse_stop(end)


def _thinking(usage: Usage) -> str:
    return f" ({usage.reasoning} thinking)" if usage.reasoning else ""


def progress_text(part: ProgressPart) -> str:
    """What happens to a prompt, in one line."""
    if part.position:
        return f"waiting for room on the node: number {part.position} in its queue"
    cached = f", {part.cached} of them reused" if part.cached else ""
    left = f", {part.rate:,.0f} tokens/s, about {part.seconds_left:.0f} s left" if part.seconds_left >= 1 else ""
    return f"reading the prompt: {part.done} of {part.total} tokens{cached}{left}"


def _reuse_stop(end: EndPart) -> str:
    stop = end.cost().stop
    if stop is None:
        return ""
    line = f"; reuse stopped {stop.place}: {stop.reason}"
    if not stop.tokens:
        return line
    detail = f" ({visible(stop.detail)})" if stop.detail else ""
    advice = f"; {stop.advice}" if stop.advice else ""
    return f"{line}{detail}, {stop.tokens} tokens computed again in {seconds(stop.seconds)}{advice}"
