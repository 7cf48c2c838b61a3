"""What a job that is over is answered with."""

from __future__ import annotations

from modeld.engine.job import Job
from modeld.engine.protocol import Load, Prefix, Suffix
from modeld.session.manifest import Manifest, token_hash
from modeld.session.values import PrefixStatus, SuffixStatus
from modeld.types import EndPart, FinishReason


def status(job: Job, load: Load, manifest: Manifest) -> PrefixStatus | SuffixStatus:
    """Of a job that only computes, when all its tokens are in the KV; the session takes note of what it holds."""
    session = job.session
    session.logical = len(job.target)
    receipt = job.receipt(load.window)
    available = load.window - len(job.target)
    if isinstance(job.request, Prefix):
        session.stable, session.stable_tools, session.volatile = job.request.messages, job.request.tools, ()
        session.prefix_tokens = len(job.target)
        return PrefixStatus(
            receipt=receipt,
            prefix_tokens=len(job.target),
            available=available,
            prefix_token_hash=token_hash(job.target),
            manifest_digest=manifest.digest,
        )
    assert isinstance(job.request, Suffix)
    session.volatile += job.request.messages
    return SuffixStatus(
        receipt=receipt,
        prefix_tokens=session.prefix_tokens,
        suffix_tokens=len(job.target) - session.prefix_tokens,
        available=available,
        manifest_digest=manifest.digest,
    )


def end_part(job: Job, load: Load, reason: FinishReason, matched: str) -> EndPart:
    """Of a stream, or of one that was cancelled before it began.

    After a cut prefill the usage tells what was computed, not what was asked for.
    """
    stream, receipt = job.stream, job.receipt(load.window)
    return EndPart(
        finish_reason=reason,
        usage=receipt.usage(stream.count, stream.thinking_tokens) if stream is not None else receipt.usage(),
        receipt=receipt,
        model=load.name,
        seed=stream.seed if stream is not None and stream.options.temperature else None,
        stop=matched,
    )
