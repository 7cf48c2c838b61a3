"""Hazard: what cannot pass is tried again, waits have no bound, or a server's own wish is ignored."""

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld import AuthenticationError, BackendUnavailableError, InvalidRequestError, RateLimitError
from modeld.repository import RetryPolicy

pytestmark = pytest.mark.anyio


@given(attempt=st.integers(1, 60), asked=st.none() | st.floats(0, 1000), base=st.floats(0, 5), cap=st.floats(5, 50))
def test_a_wait_is_bounded_and_honours_the_server(attempt: int, asked: float | None, base: float, cap: float) -> None:
    policy = RetryPolicy(attempts=100, base=base, cap=cap, patience=60)
    wait = policy.wait(attempt, RateLimitError("x", retry_after=asked))
    if asked is not None and asked > 60:
        assert wait is None
    else:
        assert wait is not None
        assert (asked or 0) <= wait <= max(cap, asked or 0)


def test_waits_differ_between_clients() -> None:
    policy = RetryPolicy(attempts=9, base=4)
    waits = {policy.wait(1, BackendUnavailableError("x")) for _ in range(20)}
    assert len(waits) > 10
    assert all(wait is not None and 2 <= wait <= 4 for wait in waits)


@pytest.mark.parametrize("values", [{"attempts": 0}, {"attempts": 101}, {"base": -1.0}, {"base": 9.0, "cap": 8.0}])
def test_a_policy_without_bounds_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(InvalidRequestError):
        RetryPolicy(**values)  # type: ignore[arg-type]


async def test_the_last_error_comes_out_with_the_number_of_attempts() -> None:
    calls = 0

    async def fails() -> None:
        nonlocal calls
        calls += 1
        raise BackendUnavailableError("down", retry_after=None)

    with pytest.raises(BackendUnavailableError) as caught:
        await RetryPolicy(attempts=3, base=0, cap=0).run(fails)
    assert calls == 3
    assert caught.value.details["attempts"] == 3


async def test_what_cannot_pass_is_tried_once() -> None:
    calls = 0

    async def fails() -> None:
        nonlocal calls
        calls += 1
        raise AuthenticationError("no")

    with pytest.raises(AuthenticationError):
        await RetryPolicy(attempts=5).run(fails)
    assert calls == 1


async def test_a_cancelled_wait_ends_at_once() -> None:
    async def fails() -> None:
        raise RateLimitError("later", retry_after=30.0)

    task = asyncio.create_task(RetryPolicy().run(fails))
    await asyncio.sleep(0.02)
    task.cancel()
    before = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert time.monotonic() - before < 5
