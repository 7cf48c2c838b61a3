"""What opaque fields of blocks hold when a node wrote them.

Anthropic's clients send thinking back with the signature it came with, and redacted thinking as it came. A node signs
nothing: :data:`SIGNATURE` says whose the block is, and binds nothing. What a backend wants to see again (signed
thinking, reasoning items) is known only at the end of its answer: it travels as the data of a ``redacted_thinking``
block. None of it is secret, or proof of anything: who may call the node may write it.

Ids of calls are to be unique in a conversation. Models that give none of their own have their calls counted anew in
each answer, so what a client sees has the answer before it.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Any, Final

import msgspec

from modeld.errors import InvalidRequestError
from modeld.http.bodies import check_depth

SIGNATURE: Final = "modeld.unsigned"
"""Of thinking whose text is in its block."""

_CARRIED: Final = "modeld.carried."
_UNIQUE: Final = re.compile(r"modeld_[0-9a-f]{12}_(.+)", re.DOTALL)


def carry(value: dict[str, Any]) -> str:
    """``value`` as text that a client keeps without a look at it."""
    return _CARRIED + base64.urlsafe_b64encode(msgspec.json.encode(value)).decode()


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
        found = msgspec.json.decode(base64.b64decode(text[len(_CARRIED) :], b"-_", validate=True), type=dict[str, Any])
    except (binascii.Error, ValueError, msgspec.MsgspecError, RecursionError):
        text = f"{place} was changed since the node wrote it; send it back as it came, or leave the block out"
        raise InvalidRequestError(text, parameter=place) from None
    check_depth(found, place)
    return found


def unique_id(answer: str, id: str) -> str:
    """The id of a call as clients see it. :param answer: at least 12 hexadecimal digits of its own."""
    return f"modeld_{answer[:12]}_{id}"


def own_id(id: str) -> str:
    """The id that the call had before :func:`unique_id`."""
    found = _UNIQUE.fullmatch(id)
    return found[1] if found else id
