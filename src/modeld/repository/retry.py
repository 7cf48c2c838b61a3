"""The one retry policy; providers and their SDKs do none of their own."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from msgspec import Struct

from modeld.errors import InvalidRequestError, ModeldError

T = TypeVar("T")


class RetryPolicy(Struct, frozen=True, kw_only=True):
    """Try again what may be tried again: errors whose ``retryable`` is true, before the first part of an answer.

    The wait doubles from ``base`` to ``cap`` seconds and is drawn between half of that and all of it, so that clients
    that failed together do not return together. A backend's own Retry-After is honoured where it is longer; is it
    longer than ``patience`` seconds, the error is raised at once.

    :param attempts: calls in all; 1 never tries again.
    """

    attempts: int = 3
    base: float = 0.5
    cap: float = 8.0
    patience: float = 60.0

    def __post_init__(self) -> None:
        if not 1 <= self.attempts <= 100 or not 0 <= self.base <= self.cap <= 3600 or self.patience < 0:
            raise InvalidRequestError(f"a retry policy has 1 to 100 attempts and 0 <= base <= cap <= 3600, not {self}")

    def wait(self, attempt: int, error: ModeldError) -> float | None:
        """Seconds to wait after failed attempt number ``attempt``, from 1; ``None``: give up."""
        if attempt >= self.attempts or not error.retryable:
            return None
        asked = error.details.get("retry_after") or 0.0
        if asked > self.patience:
            return None
        backoff: float = min(self.cap, self.base * 2.0 ** min(attempt - 1, 32))
        return max(float(asked), backoff * random.uniform(0.5, 1.0))

    async def run(self, call: Callable[[], Awaitable[T]]) -> T:
        """``call``'s result, tried again as the policy says; the last error is raised, with ``attempts`` tried."""
        attempt = 1
        while True:
            try:
                return await call()
            except ModeldError as error:
                seconds = self.wait(attempt, error)
                if seconds is None:
                    if attempt > 1:
                        error.details["attempts"] = attempt
                    raise
            await asyncio.sleep(seconds)
            attempt += 1
