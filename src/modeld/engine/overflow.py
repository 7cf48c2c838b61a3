"""What leaves a conversation that does not fit the window: whole turns, the oldest first, and always the same ones.

A turn is a message of the user and all that follows it up to the next one. System messages, the stable prefix and the
newest turn never leave, and no tool result is left without its call.

A client sends the whole conversation each turn. If just enough left, one more turn would have to leave each time, and
all that follows would be computed again each time. So the conversation is brought down to :data:`SHARE` of the window,
and what left is remembered: each token that comes in costs at most ``SHARE / (1 - SHARE)``, which is 3, computed again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct, structs

from modeld.types import Message, WarningPart

if TYPE_CHECKING:
    from modeld.engine.session import Prompt

SHARE = 3 / 4
"""Of the window: how much of it the conversation fills at most after turns have left."""


class Left(Struct, frozen=True):
    """Messages of a conversation that the model is not shown.

    :param cut: they are among the first ``cut`` messages. :param stays: so many of those stay.
    :param digest: of these ``cut`` messages. :param tokens: so much shorter the prompt became when they left.
    :param window: that they left for.
    """

    cut: int
    stays: int
    digest: bytes
    tokens: int
    window: int

    @property
    def messages(self) -> int:
        """How many left."""
        return self.cut - self.stays


class Shown(Struct, frozen=True):
    """What of a conversation the model is shown. Its first ``head`` messages cannot leave; ``left`` did."""

    messages: tuple[Message, ...]
    head: int = 0
    left: Left | None = None

    def without(self, cut: int, window: int) -> Shown:
        """The same when what lies between the head and ``cut`` leaves, but for system messages."""
        head, leaves = self.messages[: self.head], self.messages[self.head : cut]
        stays = tuple(message for message in leaves if message.role == "system")
        old = self.left or Left(self.head, self.head, _digest(b"", head), 0, window)
        before, digest = old.cut + len(leaves), _digest(old.digest, leaves)
        left = Left(before, self.head + len(stays), digest, old.tokens, window)
        return Shown((*head, *stays, *self.messages[cut:]), left.stays, left)


def show(messages: Sequence[Message], stable: Sequence[Message], left: Left | None, window: int) -> Shown:
    """The conversation without what left it before, as long as it still begins with that.

    :param stable: messages that do not leave where the conversation begins with them.
    :param left: what left the last time. It comes back when the window is another one.
    """
    whole = tuple(messages)
    head = _head(whole, tuple(stable))
    if left is not None and left.window == window and left.cut in cuts(whole, head):
        stays = tuple(m for index, m in enumerate(whole[: left.cut]) if index < head or m.role == "system")
        if len(stays) == left.stays and _digest(b"", whole[: left.cut]) == left.digest:
            return Shown((*stays, *whole[left.cut :]), left.stays, left)
    return Shown(whole, head)


def cuts(messages: Sequence[Message], head: int) -> list[int]:
    """Where a conversation may go on behind its head, ascending: at messages of the user, with their calls' results."""
    found: list[int] = []
    called: dict[str, int] = {}
    last_call = -1
    leaves = False
    for index, message in enumerate(messages):
        if message.role == "user" and leaves:
            found.append(index)
        elif message.role == "tool":
            # Ids may come again in each turn: the latest call of that id is meant.
            call = called.get(message.tool_call_id, last_call)
            while call >= 0 and found and found[-1] > call:
                found.pop()
        for made in message.tool_calls:
            called[made.id] = last_call = index
        leaves = leaves or (index >= head and message.role != "system")
    return found


def shorten(shown: Shown, tokens: int, render: Callable[[Shown], Prompt], *, goal: int, window: int) -> Prompt | None:
    """The prompt of the longest end of the conversation that has at most ``goal`` tokens, or else of the shortest.

    :param tokens: of the prompt of ``shown``. :param render: makes a prompt; called some log2(turns) times.
    :returns: ``None``: nothing can leave.
    """
    options = cuts(shown.messages, shown.head)
    low, high = 0, len(options)
    found: Prompt | None = None
    while low < high:
        middle = (low + high) // 2
        tried = render(shown.without(options[middle], window))
        if len(tried.ids) <= goal:
            found, high = tried, middle
        else:
            low = middle + 1
            # Where none is short enough this ends with the shortest.
            found = tried if high == len(options) else found
    if found is None or found.left is None:
        return None
    return structs.replace(found, left=structs.replace(found.left, tokens=found.left.tokens + tokens - len(found.ids)))


def announce(left: Left, shown: int, tokens: int, *, truncated: bool) -> WarningPart:
    """What the reader of a stream is told.

    :param shown: messages that the model is shown. :param tokens: of their prompt, and of an answer that has begun.
    """
    return WarningPart(
        "context_truncated" if truncated else "context_shifted",
        f"{left.messages} of the conversation's {left.messages + shown} messages ({left.tokens} tokens) left it: "
        f"the model is shown {shown}, {tokens} tokens, and the session holds {left.window}",
    )


def _head(messages: tuple[Message, ...], stable: tuple[Message, ...]) -> int:
    """How many leading messages are stable; a turn that begins among them is, to its end."""
    count = len(stable) if messages[: len(stable)] == stable else 0
    if any(message.role != "system" for message in messages[:count]):
        while count < len(messages) and messages[count].role != "user":
            count += 1
    return count


def _digest(before: bytes, messages: Sequence[Message]) -> bytes:
    """Goes on with the digest of the messages ``before``. Only what a template is given counts."""
    for message in messages:
        calls = [(call.id, call.function.name, call.function.arguments) for call in message.tool_calls]
        seen = (message.role, message.content, calls, message.tool_call_id, message.name)
        before = hashlib.blake2b(before + msgspec.msgpack.encode(seen), digest_size=16).digest()
    return before
