"""The sessions of a node. They outlive connections, engines and generations; their KV does not."""

from __future__ import annotations

import asyncio
import time
from array import array
from heapq import nsmallest
from time import monotonic
from typing import TYPE_CHECKING, Final

from modeld.engine.protocol import Held, Kept, KeptTokens, Open, Tape
from modeld.errors import ModeldError
from modeld.node.breaks import BreakHistory, manifest_change
from modeld.node.session_files import file_id
from modeld.session.manifest import Manifest, token_hash
from modeld.session.values import ContextReport, ModelRef, SessionClass, SessionConfig, SessionInfo
from modeld.types import ReuseReason

if TYPE_CHECKING:
    from modeld.node.engine_process import EngineProcess

KEPT_SECONDS: Final = 0.5
"""How long a list of sessions waits for the engine, which answers between two steps."""

MAX_PASSING: Final = 4096
"""Sessions with a ttl that nobody uses, at a time: clients that hold none make one for each conversation. Each open
looks at all of them, and 4,096 take 0.8 ms."""

SessionKey = tuple[str, str, str]
"""Workspace, name, model digest."""


class SessionRecord:
    """What the node remembers of one session."""

    def __init__(self, key: int, ref: ModelRef, config: SessionConfig) -> None:
        self.key = key
        self.id = file_id(config.workspace, config.name, ref.digest)
        self.ref = ref
        self.config = config
        self.manifest: Manifest | None = None
        self.window = 0
        # Lists of numbers take nine times as much, and there may be thousands of conversations.
        self.tape = array("i")
        # Length of a tape that nobody has asked for since the node started.
        self.unread = 0
        self.hot = 0
        # Generation of the engine that knows the session; 0: none does.
        self.generation = 0
        self.lost: ReuseReason = "engine_lost"
        self.fatal = False
        # What was told of the session last is what it is; and the last request of this generation that changes it.
        self.current = False
        self.asked = 0
        # Done when the file says that there was such a request.
        self.marked: asyncio.Future[None] | None = None
        # It came over from the owner before, as it was there.
        self.carried = False
        # Class and pin as the engine knows them.
        self.told: tuple[SessionClass, bool] = ("main", False)
        self.active = 0
        # Those who opened it and did not close it; others' handles of it are not counted, and keep it: `closed`.
        self.holders = 0
        self.closed = False
        self.used()
        self.history = BreakHistory()

    def opened(self) -> None:
        """Somebody opens it."""
        self.holders += 1
        self.closed = False

    def given_back(self) -> None:
        """One of those who opened it has closed it."""
        self.holders -= 1
        self.closed = not self.holders

    @property
    def unused(self) -> bool:
        """All have closed it, and it never held anything: their calls were refused, or there was none."""
        held = self.tape or self.unread or self.history.last is not None
        return self.closed and not self.active and not held

    def used(self) -> None:
        """A client uses it."""
        self.last_used = time.time()
        # Its own ttl counts by a clock that does not jump.
        self.used_at = monotonic()

    def restored(
        self, manifest: Manifest, window: int, tape: int, last_used: float, *, ago: float, current: bool
    ) -> None:
        """It was there before this node.

        :param ago: seconds between its last use and the last use of any session.
        """
        self.used_at = monotonic() - ago
        self.manifest, self.window, self.unread = manifest, window, tape
        self.current = self.carried = current
        self.last_used = min(last_used, time.time())

    def info(self, resident: int, engine_pid: int, kept: KeptTokens | None = None) -> SessionInfo:
        """For ``ps``. ``resident`` is the generation in the slot now; ``kept``: what its engine says."""
        here = self.generation == resident
        where = kept if here and kept is not None else KeptTokens(0)
        return SessionInfo(
            workspace=self.config.workspace,
            name=self.config.name,
            model=self.ref.name,
            digest=self.ref.digest,
            generation=self.generation,
            tape=len(self.tape) or self.unread,
            hot=self.hot if here else 0,
            window=self.window,
            active=self.active > 0,
            session_class=self.config.session_class,
            pin=self.config.pin,
            last_used=self.last_used,
            engine_pid=engine_pid if here and self.hot else 0,
            adapters=self.config.adapters,
            kept=min(where.all, len(self.tape)) if where is kept else None,
            shared=where.shared,
            ram=where.ram,
            disk=where.disk,
            last_receipt=self.history.last,
        )

    def report(self) -> ContextReport:
        """What is known of it without its engine."""
        report = ContextReport(
            workspace=self.config.workspace,
            name=self.config.name,
            model=self.ref.name,
            generation=self.generation,
            resident=0,
            prefix_tokens=0,
            window=self.window,
            available=self.window,
            tape_hash=token_hash(()),
            manifest=self.manifest,
        )
        return self.history.put_into(report)


async def kept_tokens(engine: EngineProcess) -> dict[int, KeptTokens]:
    """Of each session the tokens that need not be computed again; nothing where the engine is too busy to say."""
    try:
        async with asyncio.timeout(KEPT_SECONDS):
            return await engine.call(Kept(engine.next_id()), dict[int, KeptTokens])
    except (TimeoutError, ModeldError):
        return {}


class SessionRegistry:
    """All records, by name and by the number the engine knows them by. Belongs to the event loop's thread."""

    def __init__(self) -> None:
        self._by_name: dict[SessionKey, SessionRecord] = {}
        self._by_key: dict[int, SessionRecord] = {}
        self._keys = 0
        self.held = Held()

    def __len__(self) -> int:
        return len(self._by_name)

    def by_key(self, key: int) -> SessionRecord | None:
        """The record that the engine knows by this number."""
        return self._by_key.get(key)

    def find(self, workspace: str, name: str, digest: str) -> SessionRecord | None:
        """The record, if there is one."""
        return self._by_name.get((workspace, name, digest))

    def open(self, ref: ModelRef, config: SessionConfig) -> SessionRecord:
        """The record of that name on that model, made where there is none. The latest configuration counts."""
        key = (config.workspace, config.name, ref.digest)
        record = self._by_name.get(key)
        if record is None:
            self._keys += 1
            record = SessionRecord(self._keys, ref, config)
            self._by_name[key] = record
            self._by_key[record.key] = record
        record.ref, record.config = ref, config
        return record

    def introduce(
        self, record: SessionRecord, generation: int, manifest: Manifest, window: int, state: bytes = b""
    ) -> Open | None:
        """What to tell the engine before the record's first request of this generation.

        :param state: what an earlier engine told of it last.
        """
        config = record.config
        if record.generation > generation:
            # That engine is gone; a later one knows the session already.
            return None
        if record.generation == generation and not record.fatal:
            if record.told == (config.session_class, config.pin):
                return None
            record.told = (config.session_class, config.pin)
            return Open(record.key, session_class=config.session_class, pin=config.pin)
        lost, detail = manifest_change(record.manifest, manifest) or (record.lost, "")
        record.generation, record.manifest, record.window, record.hot = generation, manifest, window, 0
        record.asked = 0
        if record.fatal:
            record.fatal, record.tape, state = False, array("i"), b""
        tape = tuple(record.tape)
        record.told = (config.session_class, config.pin)
        return Open(
            record.key,
            tape,
            lost,
            config.session_class,
            config.pin,
            state,
            stale=not record.current,
            lost_detail=detail,
        )

    def tape_changed(self, tape: Tape) -> SessionRecord | None:
        """The engine tells what is on a tape now, of this record."""
        if (record := self._by_key.get(tape.session)) is not None:
            del record.tape[tape.keep :]
            record.tape.extend(tape.added)
            record.unread = 0
            record.hot = tape.hot
            record.fatal = tape.fatal
        return record

    def evicted(self, keys: tuple[int, ...]) -> None:
        """Sessions lost their KV to others."""
        for key in keys:
            record = self._by_key.get(key)
            # An engine that settles takes all: then the end of the engine is why.
            if record is not None and record.hot:
                record.hot, record.lost = 0, "evicted"

    def engine_gone(self, why: ReuseReason) -> None:
        """No KV is left, of any session. The next receipts say why."""
        self.held = Held()
        for record in self._by_key.values():
            if record.hot:
                record.hot, record.lost = 0, why

    def expired(self) -> list[SessionRecord]:
        """Take out, and give, the records whose own ttl has passed since their last use, and of those with a ttl the
        longest unused beyond :data:`MAX_PASSING`.

        The time before this node started counts up to the latest use of any: a clock that jumped ahead while no node
        ran deletes nothing.
        """
        now = monotonic()
        gone: list[SessionRecord] = []
        stay: list[SessionRecord] = []
        for record in self._by_key.values():
            if record.config.ttl and not record.active:
                (gone if now - record.used_at > record.config.ttl else stay).append(record)
        if len(stay) > MAX_PASSING:
            gone += nsmallest(len(stay) - MAX_PASSING, stay, key=lambda record: record.used_at)
        for record in gone:
            self.remove(record)
        return gone

    def named(self, workspace: str, name: str) -> list[SessionRecord]:
        """The records of that name, on whatever models."""
        return [r for (space, called, _), r in self._by_name.items() if (space, called) == (workspace, name)]

    def remove(self, record: SessionRecord) -> None:
        """Take a record out."""
        del self._by_key[record.key]
        del self._by_name[record.config.workspace, record.config.name, record.ref.digest]

    def latest_first(self) -> list[SessionRecord]:
        """All records, the last used first."""
        return sorted(self._by_name.values(), key=lambda record: record.last_used, reverse=True)
