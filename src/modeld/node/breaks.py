"""What a node remembers of a session's receipts. It outlives engines and generations, and ends with the node."""

from __future__ import annotations

import time
from collections import deque
from typing import Final

from msgspec import structs

from modeld.session.manifest import Manifest
from modeld.session.values import Break, BreakTotal, ContextReport
from modeld.types import Receipt, ReuseReason

KEPT_BREAKS: Final = 10


class BreakHistory:
    """The last receipt of a session, its last breaks, and what all of them cost."""

    def __init__(self) -> None:
        self.last: Receipt | None = None
        self._breaks: deque[Break] = deque(maxlen=KEPT_BREAKS)
        self._totals: dict[ReuseReason, BreakTotal] = {}

    def note(self, receipt: Receipt) -> None:
        """A call has ended. A stop that cost no token is no break: an answer asked for again, a branch found again."""
        self.last, stop = receipt, receipt.stop
        if stop is None or not stop.tokens:
            return
        self._breaks.append(Break(at=time.time(), stop=stop))
        before = self._totals.get(stop.reason, BreakTotal(reason=stop.reason, count=0, tokens=0, seconds=0.0))
        self._totals[stop.reason] = BreakTotal(
            reason=stop.reason,
            count=before.count + 1,
            tokens=before.tokens + stop.tokens,
            seconds=before.seconds + stop.seconds,
        )

    def put_into(self, report: ContextReport) -> ContextReport:
        """The report with what is remembered here."""
        return structs.replace(
            report,
            last_receipt=self.last or report.last_receipt,
            breaks=tuple(self._breaks),
            break_totals=tuple(sorted(self._totals.values(), key=lambda total: (-total.seconds, -total.tokens))),
        )


def manifest_change(old: Manifest | None, new: Manifest) -> tuple[ReuseReason, str] | None:
    """Why KV of ``old`` is of no use under ``new``, in a word and in words; ``None``: it can be used."""
    field = old.difference(new) if old is not None else None
    if field is None:
        return None
    was, now = (_shown(getattr(manifest, field)) for manifest in (old, new))
    detail = f"the {field.replace('_', ' ')} was {was} and is {now}"
    return ("template_changed" if field == "template_digest" else "model_changed"), detail


def _shown(value: object) -> str:
    if isinstance(value, tuple):  # adapters
        parts = (str(item).partition(":") for item in value)
        return ", ".join(f"{digest[:12]}*{scale}" for digest, _, scale in parts) or "nothing"
    text = str(value)
    return text[:12] if len(text) == 64 else text or "nothing"
