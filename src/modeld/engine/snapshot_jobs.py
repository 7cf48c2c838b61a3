"""Snapshot and restore, block by block: what happens in the engine while another thread reads or writes the file."""

from __future__ import annotations

import time
from collections.abc import Generator
from functools import partial
from typing import Any

from msgspec import structs

from modeld.engine.backend import Backend
from modeld.engine.blocks import BLOCK
from modeld.engine.job import Job
from modeld.engine.pool import Pool
from modeld.engine.protocol import Load, Restore, Snapshot
from modeld.engine.session import EngineSession
from modeld.engine.snapshots import SavedSession, SnapshotReader, SnapshotWriter
from modeld.engine.transfers import Awaited, Disk, Steps
from modeld.errors import (
    CapacityError,
    ContextOverflowError,
    ManifestMismatchError,
    ModelBusyError,
    ModeldError,
    SessionError,
)
from modeld.session.manifest import Manifest, token_hash
from modeld.session.snapshot_file import SnapshotHead
from modeld.session.values import PrefixStatus, SnapshotInfo
from modeld.types import Receipt


class SnapshotJobs:
    """Makes the steps of both. Each leaves everything as it was when it fails or is closed before its end."""

    def __init__(self, pool: Pool, backend: Backend, load: Load, manifest: Manifest, disk: Disk) -> None:
        self._pool = pool
        self._backend = backend
        self._load = load
        self._manifest = manifest
        self._disk = disk

    def steps(self, job: Job) -> Steps:
        """The steps of a snapshot or a restore."""
        match job.request:
            case Snapshot():
                return self._save(job.session, job.request)
            case Restore():
                return self._restore(job.session, job.request)
            case other:
                raise AssertionError(other)

    # Snapshot

    def _save(self, session: EngineSession, request: Snapshot) -> Steps:
        writer = SnapshotWriter(request.path)
        # KV that has left the engine is written from a sequence of its own: the session stays what it is.
        holder = EngineSession(session.key) if session.gone else session
        try:
            if holder is not session:
                yield from self._bring_back(holder, session.remembered)
            head, saved = self._describe(session, holder.hot, request)
            yield self._disk.ask(partial(writer.begin, head, saved))
            for index in range(head.blocks):
                part = head.span(index) if head.block else (0, -1)
                yield self._disk.ask(partial(writer.add, self._backend.save(_held(holder), *part)))
            digest, size = yield self._disk.ask(writer.finish)
        except ModeldError:
            yield self._disk.ask(writer.discard)
            raise
        except GeneratorExit:
            self._disk.ask(writer.discard)
            raise
        finally:
            if holder is not session:
                self._pool.dismiss(holder)
        return SnapshotInfo(
            id=digest,
            tokens=head.tokens,
            size=size,
            manifest_digest=self._manifest.digest,
            tape_hash=head.tape_hash,
            created=head.created,
            ref=head.ref,
            config=head.config,
        )

    def _bring_back(self, holder: EngineSession, ids: list[int]) -> Generator[Awaited, Any, None]:
        """Let ``holder`` have what others hold of a tape, and what RAM and files have of it."""
        if not self._pool.can_give(holder):
            raise _no_sequence()
        self._pool.guests.add(holder)
        self._pool.seat(holder, ids)
        while True:
            if (waits := self._pool.fetch(holder, ids)) is not None:
                yield waits
            elif self._pool.restore_next(holder, ids):
                yield None
            else:
                return

    def _describe(self, session: EngineSession, tokens: int, request: Snapshot) -> tuple[SnapshotHead, SavedSession]:
        head = SnapshotHead(
            ref=structs.replace(request.ref, path=""),
            config=request.config,
            created=time.time(),
            manifest=self._manifest,
            tokens=tokens,
            tape_hash=token_hash(session.ids[:tokens]),
            block=BLOCK if self._backend.shares else 0,
        )
        return head, structs.replace(SavedSession.of(session, self._manifest), hot=tokens)

    # Restore

    def _restore(self, session: EngineSession, request: Restore) -> Steps:
        reader = SnapshotReader(request.path, request.digest)
        fresh = EngineSession(session.key, session_class=session.session_class, pin=session.pin)
        self._pool.guests.add(fresh)
        try:
            head, saved = yield self._disk.ask(reader.verify)
            self._check(head, saved)
            tape = saved.ids[: saved.hot]
            if tape:
                self._admit(session, fresh, tape)
            for index in range(head.blocks):
                state = yield self._disk.ask(partial(reader.block, index))
                self._put(session, fresh, state, tape, head.span(index))
            return self._replace(session, fresh, saved)
        finally:
            reader.given_up = True
            self._disk.ask(reader.close)
            self._pool.dismiss(fresh)

    def _check(self, head: SnapshotHead, saved: SavedSession) -> None:
        if (field := self._manifest.difference(head.manifest)) is not None:
            raise ManifestMismatchError(
                f"the snapshot is of another {field.replace('_', ' ')}: its KV cannot be used here", field=field
            )
        if bool(head.block) != self._backend.shares or max(saved.ids, default=0) >= self._backend.vocabulary:
            raise ManifestMismatchError("the snapshot cannot be of this model, whatever it says", field="header")
        if head.tokens > self._load.window:
            raise ContextOverflowError(
                f"the snapshot holds {head.tokens} tokens and the session {self._load.window}",
                stage="restore",
                resident=0,
                additional=head.tokens,
                window=self._load.window,
            )

    def _admit(self, session: EngineSession, fresh: EngineSession, tape: list[int]) -> None:
        """A sequence for the tape, if its cells fit beside those of other sessions that are busy."""
        busy = [other for other in self._pool.sessions.values() if other.jobs and other is not session]
        if not self._pool.fits(busy, tape, 0):
            raise self._no_cells(len(tape))
        if not self._pool.give_sequence(fresh):
            raise _no_sequence()

    def _put(
        self, session: EngineSession, fresh: EngineSession, state: bytes, tape: list[int], span: tuple[int, int]
    ) -> None:
        """Put a block into the KV. Idle sessions make room for it first, and what it replaces last."""
        start, end = span
        while self._pool.used() + end - start > self._load.cells:
            if self._pool.evict_idle(fresh):
                continue
            if session.sequence is None:
                raise self._no_cells(len(tape))
            self._pool.evict(session)
        part = span if self._backend.shares else (0, -1)
        if not self._backend.restore(_held(fresh), state, *part):
            raise ManifestMismatchError("the snapshot's KV does not read back as it was written", field="state")
        self._pool.extended(fresh, tape[start:end])

    def _replace(self, session: EngineSession, fresh: EngineSession, saved: SavedSession) -> PrefixStatus:
        dropped = session.hot
        self._pool.release(session)
        session.sequence, fresh.sequence = fresh.sequence, None
        saved.put_into(session)
        window = self._load.window
        session.last_receipt = Receipt(restored=saved.hot, dropped=dropped, resident=saved.hot, window=window)
        return PrefixStatus(
            receipt=session.last_receipt,
            prefix_tokens=session.prefix_tokens,
            available=window - session.hot,
            prefix_token_hash=token_hash(session.ids[: session.prefix_tokens]),
            manifest_digest=self._manifest.digest,
        )

    def _no_cells(self, needed: int) -> CapacityError:
        used, cells = self._pool.used(), self._load.cells
        return CapacityError(
            f"the snapshot's {needed} tokens do not fit: {used} of the {cells} KV cells are in use",
            tokens=needed,
            used=used,
            cells=cells,
        )


def _held(session: EngineSession) -> int:
    """The sequence that it was given.

    :raises SessionError: a step of others failed so that nobody knows what it holds.
    """
    if session.sequence is None:
        raise SessionError("the KV was lost in the middle, because a step of the engine failed; try again")
    return session.sequence


def _no_sequence() -> ModelBusyError:
    return ModelBusyError("all sequences of the engine are in use; try again when a stream has ended")
