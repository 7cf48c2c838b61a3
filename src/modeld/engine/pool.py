"""The sessions of an engine, the sequence ids they share, and who gives way when there are too few."""

from __future__ import annotations

from collections.abc import Callable

from modeld.engine.backend import Backend
from modeld.engine.protocol import Evicted, Open, Tape
from modeld.engine.session import EngineSession


class Pool:
    """Sessions by key. Each that holds KV has a sequence id; ids are few, so idle sessions give theirs up.

    :param told: is given an :class:`Evicted` whenever a session loses its KV to another.
    """

    def __init__(self, backend: Backend, sequences: int, told: Callable[[Evicted], None]) -> None:
        self._backend = backend
        self._free = list(range(sequences))[::-1]
        self._told = told
        self.sessions: dict[int, EngineSession] = {}

    def open(self, request: Open) -> None:
        """Make a session known. Of one that is known already only class and pin change."""
        if (known := self.sessions.get(request.session)) is not None:
            known.session_class, known.pin = request.session_class, request.pin
            return
        session = EngineSession(request.session, session_class=request.session_class, pin=request.pin)
        session.ids = list(request.tape)
        session.synced = len(request.tape)
        if request.tape:
            session.lost, session.lost_tokens = request.lost, len(request.tape)
        self.sessions[request.session] = session

    def get(self, key: int) -> EngineSession:
        """The session, made anew where it is not known."""
        return self.sessions.setdefault(key, EngineSession(key))

    def forget(self, session: EngineSession) -> None:
        """Drop a session and its KV. Requests that wait behind find it new."""
        self.release(session)
        session.take_from(EngineSession(session.key))
        if len(session.jobs) <= 1:
            self.sessions.pop(session.key, None)

    def give_sequence(self, session: EngineSession) -> bool:
        """Let the session have a sequence id. ``False``: all ids are with sessions that are busy."""
        if session.sequence is None:
            if not self._free and not self.evict_idle(session):
                return False
            session.sequence = self._free.pop()
        return True

    def evict_idle(self, wanted_by: EngineSession | None = None) -> bool:
        """Take the KV of the idle session that will be missed least. ``False``: none is idle."""
        idle = [s for s in self.sessions.values() if s.sequence is not None and not s.jobs and s is not wanted_by]
        if not idle:
            return False
        self.evict(min(idle, key=lambda s: (s.pin, s.session_class == "main", s.last_used)))
        return True

    def evict(self, session: EngineSession) -> None:
        """Take the session's KV; its next receipt says so."""
        self.release(session)
        session.lose("evicted")
        self._told(Evicted((session.key,)))

    def release(self, session: EngineSession) -> None:
        """Clear the session's sequence and take the id back."""
        if session.sequence is not None:
            self._backend.remove(session.sequence, 0)
            self._free.append(session.sequence)
            session.sequence = None

    def cut(self, session: EngineSession, keep: int) -> bool:
        """Cut the KV to ``keep`` tokens. ``False``: this model cannot, and all of it is gone."""
        if session.sequence is None or self._backend.remove(session.sequence, keep):
            session.hot = min(session.hot, keep)
            return True
        self._backend.remove(session.sequence, 0)
        if session.hot:
            session.lost, session.lost_tokens, session.hot = "evicted", session.hot, 0
        return False

    def tape(self, session: EngineSession) -> Tape:
        """What changed on the session's tape since this was last asked. An evicted tape is not a changed one."""
        keep = min(session.synced, session.hot) if session.hot else session.synced
        added = tuple(session.ids[keep : session.hot])
        session.synced = max(keep, session.hot)
        return Tape(session.key, keep, added, session.hot, self.used(), bool(session.fatal))

    def used(self) -> int:
        """Cells in use; those that sessions share are counted for each."""
        return sum(session.hot for session in self.sessions.values())
