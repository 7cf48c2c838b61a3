"""Requests that compute nothing and are done at once: fork, explain, forget."""

from __future__ import annotations

from time import monotonic

from modeld.engine.job import Job
from modeld.engine.pool import Pool
from modeld.engine.protocol import Explain, Fork, Load
from modeld.engine.session import EngineSession
from modeld.errors import ModelBusyError, SessionError
from modeld.session.manifest import Manifest, Segment, token_hash
from modeld.session.values import ContextReport


def perform(job: Job, pool: Pool, load: Load, manifest: Manifest) -> object:
    """Do it, and give what the request answers. An error leaves the session as it was."""
    session = job.session
    match job.request:
        case Explain():
            return _explain(session, load, manifest)
        case Fork(target=target):
            _fork(session, pool.get(target), pool)
            return None
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
    if not target.hot and (held := len(source.remembered)):
        # Its next receipt says why it is computed.
        target.lost, target.lost_tokens = source.gone or "evicted", held
    target.last_used = monotonic()
