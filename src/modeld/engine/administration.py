"""Requests that compute nothing: fork, snapshot, restore, explain, forget."""

from __future__ import annotations

from time import monotonic

from modeld.engine.backend import Backend
from modeld.engine.job import Job
from modeld.engine.pool import Pool
from modeld.engine.protocol import Explain, Fork, Load, Restore, Snapshot
from modeld.engine.session import EngineSession
from modeld.engine.snapshots import SavedSession, read_snapshot, write_snapshot
from modeld.errors import CapacityError, ContextOverflowError, ManifestMismatchError, ModelBusyError, SessionError
from modeld.session.manifest import Manifest, Segment, token_hash
from modeld.session.values import ContextReport, PrefixStatus, SnapshotInfo
from modeld.types import Receipt


def perform(job: Job, pool: Pool, backend: Backend, load: Load, manifest: Manifest) -> object:
    """Do it, and give what the request answers. An error leaves the session as it was."""
    session = job.session
    match job.request:
        case Explain():
            return _explain(session, load, manifest)
        case Fork(target=target):
            _fork(session, pool.get(target), pool)
            return None
        case Snapshot(path=path):
            state = backend.save(session.sequence) if session.sequence is not None else b""
            saved = SavedSession.of(session, manifest)
            digest, size = write_snapshot(path, saved, state)
            return SnapshotInfo(
                id=digest,
                tokens=session.hot,
                size=size,
                manifest_digest=manifest.digest,
                tape_hash=token_hash(session.tape),
            )
        case Restore(path=path, digest=digest):
            saved, state = read_snapshot(path, digest)
            return _restore(job, saved, state, pool, backend, load, manifest)
        case _:
            pool.forget(session)
            return None


def _explain(session: EngineSession, load: Load, manifest: Manifest) -> ContextReport:
    stable = len(session.stable)
    segments = tuple(
        Segment(kind=message.role, stable=index < stable, message_index=index, characters=len(message.content))
        for index, message in enumerate(session.messages)
    )
    return ContextReport(
        workspace="",
        name="",
        model=load.name,
        generation=0,
        resident=session.hot,
        prefix_tokens=session.prefix_tokens,
        window=load.window,
        available=load.window - session.hot,
        tape_hash=token_hash(session.tape),
        manifest=manifest,
        segments=segments,
        last_receipt=session.last_receipt,
        prefill_calls=session.prefill_calls,
        prefill_tokens=session.prefill_tokens,
        decode_calls=session.decode_calls,
        decode_tokens=session.decode_tokens,
        ahead_tokens=session.ahead_tokens,
        fatal=session.fatal,
    )


def _fork(source: EngineSession, target: EngineSession, pool: Pool) -> None:
    if target is source:
        raise SessionError("a session cannot be forked onto itself")
    if target.jobs:
        raise ModelBusyError("the session to fork to is in use")
    pool.release(target)
    target.take_from(source)
    pool.copy(source, target)
    target.last_used = monotonic()


def _make_room(session: EngineSession, fresh: EngineSession, needed: int, pool: Pool, load: Load) -> None:
    """Free cells for a restored state: idle sessions give way first, and what it replaces last."""
    while pool.used() + needed > load.cells:
        if pool.evict_idle(fresh):
            continue
        if session.sequence is None:
            pool.release(fresh)
            raise CapacityError(
                f"the snapshot's {needed} tokens do not fit: {pool.used()} of the {load.cells} KV cells are in use",
                tokens=needed,
                used=pool.used(),
                cells=load.cells,
            )
        pool.evict(session)


def _restore(
    job: Job, saved: SavedSession, state: bytes, pool: Pool, backend: Backend, load: Load, manifest: Manifest
) -> PrefixStatus:
    session = job.session
    if (field := manifest.difference(saved.manifest)) is not None:
        raise ManifestMismatchError(
            f"the snapshot is of another {field.replace('_', ' ')}: its KV cannot be used here", field=field
        )
    if saved.hot > load.window:
        raise ContextOverflowError(
            f"the snapshot holds {saved.hot} tokens and the session {load.window}",
            stage="restore",
            resident=0,
            additional=saved.hot,
            window=load.window,
        )
    fresh = EngineSession(session.key, session_class=session.session_class, pin=session.pin)
    if not pool.give_sequence(fresh) or fresh.sequence is None:
        raise ModelBusyError("all sequences of the engine are in use; try again when a stream has ended")
    _make_room(session, fresh, saved.hot, pool, load)
    if saved.hot and not backend.restore(fresh.sequence, state):
        pool.release(fresh)
        raise ManifestMismatchError("the snapshot's KV does not read back as it was written", field="state")
    pool.extended(fresh, saved.ids[: saved.hot])
    dropped = session.hot
    pool.release(session)
    session.sequence = fresh.sequence
    saved.put_into(session)
    session.last_receipt = Receipt(restored=saved.hot, dropped=dropped, resident=saved.hot, window=load.window)
    return PrefixStatus(
        receipt=session.last_receipt,
        prefix_tokens=session.prefix_tokens,
        available=load.window - session.hot,
        prefix_token_hash=token_hash(session.ids[: session.prefix_tokens]),
        manifest_digest=manifest.digest,
    )
