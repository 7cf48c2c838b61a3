"""Having what is freed go back to the system, where the C library is glibc. Elsewhere nothing is done."""

from __future__ import annotations

import ctypes
import sys


def give_back() -> None:
    """Give back what is free now: states of other lengths do not fit where others were.

    Sequences of 2,000 tokens of the 90m shape that became a group and left it took 635 MB more than the weights (KV in
    f32: 791), and with this 528 (711). To have glibc map each large block by itself needs less still, but attention
    over KV in such blocks made decode slower: 8.2 ms a token instead of 5.5 from 128 KB on.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is not None and hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
