"""How long property tests look.

In ``make test`` their examples are always the same: a commit passes or it does not. ``make hunt`` looks for new ones.
"""

from __future__ import annotations

import os

HUNT = int(os.environ.get("MODELD_HUNT", "0"))
"""How many times as many examples, new ones each time; 0: those of ``make test``."""


def examples(count: int) -> int:
    """Examples of a test that ``make test`` gives so many."""
    return count * (HUNT or 1)
