"""Header lines that programs write into their system prompt and change at every call.

They are neither taken out nor moved: what the model is shown is what the caller sent, and what stands behind such a
line is computed again. But a conversation is still the same one when only they differ.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from msgspec import structs

from modeld.types import Message

BILLING_LINE: Final = r"\bx-[\w-]{0,40}billing[\w-]{0,40}: *(?P<value>.*)"
"""A coding agent's first line, such as ``x-anthropic-billing-header: cc_version=2.1; cch=0a1b2``."""

_HEAD: Final = 2000
"""Characters at the beginning of a system message that are looked at."""
_BILLING: Final = re.compile(BILLING_LINE, re.I)


def without_headers(messages: Sequence[Message]) -> Sequence[Message]:
    """``messages`` with the values of such lines left out, to tell conversations apart by; themselves without any.

    Only the head of the first message is looked at, and only where it is a system prompt.
    """
    if not messages or messages[0].role != "system":
        return messages
    first = messages[0]
    found = _BILLING.search(first.content, 0, _HEAD)
    if found is None:
        return messages
    content = first.content[: found.start("value")] + first.content[found.end("value") :]
    return (structs.replace(first, content=content), *messages[1:])
