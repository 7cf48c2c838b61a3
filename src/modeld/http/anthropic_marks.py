"""What a thinking block's opaque fields hold when a node wrote them.

Anthropic's clients send thinking back with the signature it came with, and redacted thinking as it came. A node signs
nothing: :data:`SIGNATURE` says whose the block is, and binds nothing. What a backend wants to see again (signed
thinking, reasoning items) is known only at the end of its answer: it travels as the data of a ``redacted_thinking``
block. None of it is secret, or proof of anything: who may call the node may write it.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any, Final

import msgspec

from modeld.errors import InvalidRequestError
from modeld.http.bodies import check_depth

SIGNATURE: Final = "modeld.unsigned"
"""Of thinking whose text is in its block."""

_CARRIED: Final = "modeld.carried."


def carry(value: dict[str, Any]) -> str:
    """``value`` as text that a client keeps without a look at it."""
    return _CARRIED + base64.urlsafe_b64encode(msgspec.msgpack.encode(value)).decode()


def is_ours(text: str) -> bool:
    """Whether a node wrote this signature or data."""
    return text == SIGNATURE or text.startswith(_CARRIED)


def carried(text: str, place: str) -> dict[str, Any]:
    """What :func:`carry` was given; nothing for what it did not write.

    :raises InvalidRequestError: it was changed.
    """
    if not text.startswith(_CARRIED):
        return {}
    try:
        found = msgspec.msgpack.decode(
            base64.b64decode(text[len(_CARRIED) :], b"-_", validate=True), type=dict[str, Any]
        )
    except (binascii.Error, ValueError, msgspec.MsgspecError, RecursionError):
        text = f"{place} was changed since the node wrote it; send it back as it came, or leave the block out"
        raise InvalidRequestError(text, parameter=place) from None
    check_depth(found, place)
    return found
