"""Keeping a lease: renewals at a third of its ttl, each with a deadline, in a thread that may hang."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

from modeld.errors import LeaseLostError, NotOwnerError

if TYPE_CHECKING:
    from modeld.node.owner import OwnerLease

_Outcome = Literal["ok", "transient"]
_Jobs = queue.SimpleQueue[asyncio.Future[_Outcome] | None]


async def keep(lease: OwnerLease, on_lost: Callable[[LeaseLostError], object] | None = None) -> None:
    """Renew ``lease`` every ttl/3 until it is lost, and then raise. Returns when the lease was released.

    Renewals run in a thread of their own, a daemon one: hanging storage blocks neither the event loop nor the exit of
    the interpreter. The loss is declared no later than ``ttl - margin`` after the last good renewal. One exception: an
    event loop that did not run at that moment (SIGSTOP, a frozen container) gets one attempt of ``margin`` seconds
    first, since the lock was held all along. Cancelling stops the renewals and is no loss: release the lease then.

    :param on_lost: called once in the event loop, before the error is raised: stop taking new work there.
    :raises LeaseLostError: with a :data:`LossReason`.
    """
    loop = asyncio.get_running_loop()
    jobs: _Jobs = queue.SimpleQueue()
    threading.Thread(target=_renewer, args=(lease, loop, jobs), name="modeld lease renewal", daemon=True).start()
    interval = lease.record.ttl / 3
    delay, failing = interval, False
    try:
        while True:
            await asyncio.sleep(delay)
            left = lease.remaining()
            outcome = await _attempt(lease, loop, jobs, left if failing else max(left, lease.margin))
            failing = outcome == "transient"
            # Halve what is left, so that the last attempts are near the end but do not spin.
            left = lease.remaining()
            delay = min(max(left / 2, interval / 10), max(left, 0.0), interval) if failing else interval
    except NotOwnerError:
        return
    except LeaseLostError as error:
        if on_lost is not None:
            on_lost(error)
        raise
    finally:
        jobs.put(None)


async def _attempt(
    lease: OwnerLease,
    loop: asyncio.AbstractEventLoop,
    jobs: _Jobs,
    seconds: float,
) -> _Outcome:
    job: asyncio.Future[_Outcome] = loop.create_future()
    jobs.put(job)
    try:
        async with asyncio.timeout(seconds):
            return await job
    except TimeoutError:
        raise lease.lose("renew-failed") from None


def _renewer(
    lease: OwnerLease,
    loop: asyncio.AbstractEventLoop,
    jobs: _Jobs,
) -> None:
    while (job := jobs.get()) is not None:
        outcome: _Outcome | Exception
        try:
            outcome = lease.renew()
        except Exception as error:
            outcome = error
        # The loop may be closed by the time a hanging write returns.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(_settle, job, outcome)


def _settle(job: asyncio.Future[_Outcome], outcome: _Outcome | Exception) -> None:
    if job.done():  # timed out or cancelled
        return
    if isinstance(outcome, Exception):
        job.set_exception(outcome)
    else:
        job.set_result(outcome)
