"""What all calls cost since the node started."""

from __future__ import annotations

from msgspec import structs

from modeld.session.values import Totals
from modeld.types import Receipt, Usage


class RunningTotals:
    """:class:`modeld.session.Totals` as it grows. Belongs to the event loop's thread."""

    def __init__(self) -> None:
        self.now = Totals()

    def ended(self, receipt: Receipt) -> None:
        """A call on a session ended."""
        now = self.now
        self.now = structs.replace(
            now,
            calls=now.calls + 1,
            reused=now.reused + receipt.reused,
            restored=now.restored + receipt.restored,
            prefilled=now.prefilled + receipt.prefilled,
        )

    def answered(self, usage: Usage) -> None:
        """It was an answer."""
        self.now = structs.replace(self.now, generated=self.now.generated + (usage.output or 0))

    def engine_died(self, *, meant: bool) -> None:
        """The engine is gone; ``meant``: the node ended it."""
        self.now = structs.replace(self.now, crashes=self.now.crashes + (not meant))
