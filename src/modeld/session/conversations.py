"""Whole conversations without a session: which session answers one, and its turn there.

Callers of a repository and of HTTP send all messages each time and hold no session. One is chosen for them by content,
so that the next turn of a conversation finds the tape of the one before: see :class:`Tapes`.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from typing import TYPE_CHECKING, Final

import msgspec
from msgspec import Struct

from modeld.session.values import ModelRef, SessionConfig
from modeld.thinking import parse_think
from modeld.types import ChatConfig, DecodeOptions, Message, Tool

if TYPE_CHECKING:
    from modeld.session.contract import ModelService, PartStream, Session

SESSION_TTL: Final = 3600.0
"""Seconds after its last turn when a node forgets a conversation: nobody else ever closes it."""
REMEMBERED: Final = 1024
"""Beginnings of conversations kept; one is some 200 bytes."""
ALIKE: Final = 8
"""Conversations with the same beginning that have a tape each, where no more run at a time."""

_SAMPLING: Final = tuple(name for name in DecodeOptions.__struct_fields__ if name in ChatConfig.__struct_fields__)


@asynccontextmanager
async def one_turn(
    service: ModelService, ref: ModelRef, session: SessionConfig, messages: Sequence[Message], config: ChatConfig
) -> AsyncIterator[PartStream]:
    """The answer to ``messages`` on the session that is named, which is opened for it. Leaving early cancels it.

    The session is closed at the end: in its node's own process one whose only calls were refused is forgotten.

    :raises InvalidRequestError: as :func:`decode_options`. :raises ModeldError: as ``open_session`` of the service.
    """
    options = decode_options(config)
    async with opened_for_call(service, ref, session) as opened:
        asked = opened.turn(
            messages,
            tools=_tools(config),
            think=parse_think(config.think),
            options=options,
            shift=config.shift,
            truncate=config.truncate,
        )
        async with asked as parts:
            yield parts


@asynccontextmanager
async def opened_for_call(service: ModelService, ref: ModelRef, session: SessionConfig) -> AsyncIterator[Session]:
    """The session that is named, opened for the body. :raises ModeldError: as ``open_session`` of the service."""
    opened = await service.open_session(ref, session)
    try:
        yield opened
    finally:
        await opened.close()


def decode_options(config: ChatConfig) -> DecodeOptions:
    """The sampling options of ``config``; what is not set is the engine's default.

    :raises InvalidRequestError: a value is beyond what the engines take, such as a seed above 2**32 - 2.
    """
    values = {name: getattr(config, name) for name in _SAMPLING}
    if config.tool_choice == "none":
        values["tool_choice"] = None
    return DecodeOptions(**{name: value for name, value in values.items() if value is not None})


def _tools(config: ChatConfig) -> tuple[Tool, ...]:
    return () if config.tool_choice == "none" else config.tools


class _Tape(Struct):
    busy: bool = False
    seen: bytes = b""
    """Hash of the conversation of its last call."""
    used: int = 0
    """Number of its last call."""


class Tapes:
    """Names of sessions by content: the model, and the messages up to the first of the user.

    Of calls with the same beginning, one that comes while another runs gets a session of its own. It does not wait:
    whoever reads the first stream may be the one who asks again. Which of several tapes a later call gets is decided
    by the longest conversation that it continues or repeats. One that continues none gets a new tape: two agents that
    begin alike must not take each other's end away at every turn. Beyond :data:`ALIKE` it gets the longest unused.
    Other processes choose the same names: on one node their calls with the same beginning wait for each other, and
    find each other's tapes.

    A wrong choice costs tokens that are computed again, and never changes an answer.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, list[_Tape]] = {}
        self._calls = count(1)

    @contextmanager
    def take(self, ref: ModelRef, messages: Sequence[Message], key: str = "") -> Iterator[str]:
        """The name of the session that answers ``messages``, which nobody else here is given meanwhile.

        :param key: what the caller tells conversations apart by: the same beginning under two keys is two sessions.
        """
        name, hashes = _content(ref, messages, key)
        with self._lock:
            tapes = self._known[name] = self._known.pop(name, [])  # the last used is the last of all
            best = _best(tapes, hashes)
            tape = tapes[best]
            tape.busy, tape.seen, tape.used = True, next(reversed(hashes), b""), next(self._calls)
            self._forget()
        try:
            yield f"{name}-{best}" if best else name
        finally:
            with self._lock:
                tape.busy = False

    def _forget(self) -> None:
        """The oldest beginnings of which nothing runs."""
        for name in list(self._known)[: max(0, len(self._known) - REMEMBERED)]:
            if not any(tape.busy for tape in self._known[name]):
                del self._known[name]


def _best(tapes: list[_Tape], hashes: dict[bytes, int]) -> int:
    """Index of the tape for a conversation whose beginnings have these hashes; one is added where none is fit."""
    free = [number for number, tape in enumerate(tapes) if not tape.busy]
    continued = [number for number in free if tapes[number].seen in hashes]
    if continued:
        return max(continued, key=lambda number: (hashes[tapes[number].seen], -number))
    if free and len(tapes) >= ALIKE:
        return min(free, key=lambda number: tapes[number].used)
    tapes.append(_Tape())
    return len(tapes) - 1


def _content(ref: ModelRef, messages: Sequence[Message], key: str) -> tuple[str, dict[bytes, int]]:
    """The name of the beginning, and for the hash of each start of the conversation how long that is."""
    # Not the digest: a model is the same before and after it was listed.
    running = hashlib.blake2b(msgspec.msgpack.encode((ref.type, ref.name, ref.path, key)), digest_size=16)
    name = ""
    hashes: dict[bytes, int] = {}
    for length, message in enumerate(messages, 1):
        running.update(msgspec.msgpack.encode(message))
        hashes[running.digest()] = length
        if message.role == "user" and not name:
            name = running.hexdigest()
    return name or running.hexdigest(), hashes
