"""All of a session but its KV: told to the node when the session rests, and taken back in a later engine.

The node keeps a state without looking into it. A state that does not decode, does not fit together or is of another
manifest is as none: what the tape says is all that is known then.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import monotonic

import msgspec

from modeld.engine.pool import Pool
from modeld.engine.protocol import MAX_STATE, Open, Reply, State
from modeld.engine.session import EngineSession, shared_length
from modeld.engine.snapshots import SavedSession
from modeld.errors import ModeldError
from modeld.session.manifest import Manifest

_MAX_TOKEN = 2**31 - 1


class States:
    """Which sessions have changed since the node was told of them. Belongs to the scheduler's thread.

    :param send: writes a frame to the node; may block.
    """

    def __init__(self, pool: Pool, manifest: Manifest, send: Callable[[Reply], None]) -> None:
        self._pool = pool
        self._manifest = manifest
        self._send = send
        # By key, the longest rested first.
        self._changed: dict[int, EngineSession] = {}
        self.taken = 0
        """Id of the last request that the scheduler has taken."""

    def touched(self, session: EngineSession) -> None:
        """A request that may have changed the session has ended."""
        self._changed.pop(session.key, None)
        self._changed[session.key] = session

    def tell_next(self, rest: float) -> float | None:
        """Tell the node of one session that has changed and then rested for ``rest`` seconds.

        :returns: 0 when it did, else seconds until there is one; ``None``: none has changed.
        """
        while self._changed:
            key, session = next(iter(self._changed.items()))
            if self._pool.sessions.get(key) is session and not (session.fatal or session.unsure or session.jobs):
                wait = session.last_used + rest - monotonic()
                if wait > 0:
                    return wait
                self._tell(session)
                del self._changed[key]
                return 0.0
            # Who works is touched again at its end. Of the others there is nothing to keep.
            del self._changed[key]
        return None

    def open(self, request: Open) -> None:
        """Make a session known, with all that an earlier engine told of it."""
        new = request.session not in self._pool.sessions
        self._pool.open(request)
        if new:
            self._revive(self._pool.sessions[request.session], request)

    def _tell(self, session: EngineSession) -> None:
        saved = SavedSession.of(session, self._manifest)
        # What the KV held counts, not what is left of it: it may be in RAM or in files.
        data = msgspec.msgpack.encode(msgspec.structs.replace(saved, hot=len(session.remembered)))
        if len(data) > MAX_STATE:
            print(f"modeld engine: a session's state of {len(data)} bytes is more than is kept", file=sys.stderr)
            return
        self._send(State(session.key, data, self.taken))

    def _revive(self, session: EngineSession, request: Open) -> None:
        saved = _decoded(request.state)
        if saved is None:
            session.unsure = bool(request.tape)
            return
        held, lost = saved.hot, request.lost
        if self._manifest.difference(saved.manifest) is None:
            saved.put_into(session)
            session.unsure = request.stale
        elif not request.tape:
            session.ids, session.unsure, lost = saved.ids[:held], True, "model_changed"
        else:
            session.unsure = True
            return
        if session.unsure:
            session.logical = None
        session.hot = 0
        session.lost, session.lost_tokens = (lost, held) if held else (None, 0)
        session.synced = shared_length(list(request.tape), session.ids[:held])


def _decoded(state: bytes) -> SavedSession | None:
    if not state:
        return None
    try:
        saved = msgspec.msgpack.decode(state, type=SavedSession)
    except (msgspec.MsgspecError, ModeldError, ValueError, RecursionError) as error:
        print(f"modeld engine: a session's state is not used: {error}", file=sys.stderr)
        return None
    return saved if _fits_together(saved) else None


def _fits_together(saved: SavedSession) -> bool:
    """Its numbers point into its own tokens and text."""
    tokens, size = len(saved.ids), len(saved.text)
    return (
        0 <= saved.hot <= tokens
        and 0 <= (saved.logical or 0) <= tokens
        and all(
            0 <= span.token_start <= span.token_end <= tokens and 0 <= span.byte_start <= span.byte_end <= size
            for span in saved.spans
        )
        and (not saved.ids or (min(saved.ids) >= 0 and max(saved.ids) <= _MAX_TOKEN))
    )
