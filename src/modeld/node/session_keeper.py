"""Keeps what engines tell of sessions, so that they come back by name after the end of an engine or of the node."""

from __future__ import annotations

import asyncio
import hashlib
import logging
from contextlib import suppress
from pathlib import Path
from time import monotonic

from msgspec import structs

from modeld.engine.protocol import Explain, Fork, SessionRequest, Snapshot, State
from modeld.node.session_files import Change, SessionFiles, SessionHeader
from modeld.node.sessions import SessionRecord, SessionRegistry

ROUND_SECONDS = 2.0
"""Between two rounds of writing: a session that is told of again and again is written once in each."""

RETRY_SECONDS = 10.0
"""After a round in which something could not be written."""

MAX_UNWRITTEN = 64 * 2**20
"""Bytes of states that wait for storage to work again; of more, the oldest are given up."""

MARK_SECONDS = 1.0
"""How long a client waits for the mark, where storage is slow: from then on a kill may win."""

log = logging.getLogger("modeld.sessions")


class SessionKeeper:
    """States of sessions, in files. Belongs to the event loop's thread; one other thread at a time writes.

    A call marks its session as used on disk, so that after a kill nobody goes on from a state that is older than what a
    client saw. The mark is on its way when the call begins, and waited for before a client sees anything of the call.
    """

    def __init__(self, folder: Path, registry: SessionRegistry) -> None:
        self._files = SessionFiles(folder)
        self._registry = registry
        self._scan: asyncio.Task[None] | None = None
        self._worker: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._waiting: dict[str, Change] = {}
        self._writing: dict[str, Change] = {}
        # Marks to set, and whether there are some that were not tried yet.
        self._used: set[str] = set()
        self._urgent = False
        self._mark: asyncio.Future[None] | None = None
        self._due = 0.0
        self._closing = self._refused = False

    async def known(self) -> None:
        """Have the sessions of earlier nodes in the registry. Files are read once."""
        if self._scan is None:
            self._scan = asyncio.ensure_future(self._restore())
        await asyncio.shield(self._scan)

    async def load(self, record: SessionRecord) -> bytes:
        """The last state that an engine told of the session; empty where there is none that can be used."""
        change = self._waiting.get(record.id) or self._writing.get(record.id)
        if change is not None:
            return change.state
        return await asyncio.to_thread(self._files.load, record.id)

    def asked(self, request: SessionRequest) -> None:
        """A request was sent to the engine: what it told before is about to be the past."""
        if isinstance(request, Explain | Snapshot):
            return
        for key in (request.session, request.target if isinstance(request, Fork) else 0):
            if (record := self._registry.by_key(key)) is not None:
                record.asked = request.id
                if record.current:
                    self._outdate(record)

    async def marked(self, record: SessionRecord) -> None:
        """Wait until the mark of the session's last call was set, or could not be; see :data:`MARK_SECONDS`."""
        if record.marked is not None and not record.marked.done():
            await asyncio.wait((record.marked,), timeout=MARK_SECONDS)

    def told(self, state: State) -> None:
        """The engine tells all of a session but its KV."""
        record = self._registry.by_key(state.session)
        if record is None or record.manifest is None or record.fatal or self._refused:
            return
        record.current = state.after >= record.asked
        header = SessionHeader(
            ref=record.ref,
            config=record.config,
            manifest=record.manifest,
            window=record.window,
            tape=len(record.tape),
            last_used=record.last_used,
            size=len(state.state),
            sha256=hashlib.sha256(state.state).hexdigest(),
        )
        self._put(record.id, Change(header, state.state, record.current))

    def remove(self, record: SessionRecord) -> None:
        """The session is forgotten, or cannot go on: its file goes too."""
        record.current = False
        if not self._refused:
            self._put(record.id, Change(None))

    def refuse(self) -> None:
        """The data root may have another owner: nothing is written from now on."""
        self._refused = True
        self._files.close()
        self._waiting.clear()
        self._used.clear()
        if self._mark is not None:
            self._mark.set_result(None)
            self._mark = None
        self._wake.set()

    async def aclose(self, seconds: float) -> None:
        """Write what waits, for at most ``seconds``; what comes later is not kept."""
        self._closing = True
        self._wake.set()
        tasks = [task for task in (self._scan, self._worker) if task is not None]
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.gather(*tasks, return_exceptions=True)
        if self._waiting or self._writing:
            log.warning("%d sessions could not be written before the node ended", len(self._waiting | self._writing))
        self.refuse()

    async def _restore(self) -> None:
        found = await asyncio.to_thread(self._files.scan)
        latest = max((header.last_used for header, _ in found), default=0.0)
        for header, current in found:
            record = self._registry.open(header.ref, header.config)
            ago = latest - header.last_used
            record.restored(header.manifest, header.window, header.tape, header.last_used, ago=ago, current=current)

    def _outdate(self, record: SessionRecord) -> None:
        record.current = False
        if (change := self._waiting.get(record.id)) is not None:
            self._waiting[record.id] = structs.replace(change, current=False)
        if self._refused:
            return
        self._used.add(record.id)
        self._urgent = True
        if self._mark is None:
            self._mark = asyncio.get_running_loop().create_future()
        record.marked = self._mark
        self._start()

    def _put(self, id_: str, change: Change) -> None:
        self._waiting.pop(id_, None)
        self._waiting[id_] = change
        self._start()

    def _start(self) -> None:
        self._wake.set()
        if not self._refused and (self._worker is None or self._worker.done()):
            self._due = max(self._due, monotonic() + ROUND_SECONDS)
            self._worker = asyncio.ensure_future(self._work())

    async def _work(self) -> None:
        while self._used or self._waiting:
            wait = 0.0 if self._closing else self._due - monotonic()
            if wait > 0 and not self._urgent:
                self._wake.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout(wait):
                        await self._wake.wait()
                continue
            used, self._used, self._urgent = self._used, set(), False
            mark, self._mark = self._mark, None
            if wait <= 0:
                self._writing, self._waiting = self._waiting, {}
            try:
                failed = await asyncio.to_thread(self._files.apply, used, self._writing)
            finally:
                if mark is not None:
                    mark.set_result(None)
            self._wrote(used, failed)
            if failed and self._closing:
                return

    def _wrote(self, used: set[str], failed: set[str]) -> None:
        written, self._writing = self._writing, {}
        if self._refused:
            return
        again = {
            id_: structs.replace(change, current=change.current and id_ not in self._used)
            for id_, change in written.items()
            if id_ in failed
        }
        self._waiting = again | self._waiting
        self._used |= failed & used
        if written or failed:
            self._due = monotonic() + (RETRY_SECONDS if failed else ROUND_SECONDS)
        while failed and sum(len(change.state) for change in self._waiting.values()) > MAX_UNWRITTEN:
            self._give_up(next(iter(self._waiting)))

    def _give_up(self, id_: str) -> None:
        header = self._waiting.pop(id_).header
        if header is not None:
            record = self._registry.find(header.config.workspace, header.config.name, header.ref.digest)
            if record is not None:
                record.current = False
