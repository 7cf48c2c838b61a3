"""What is counted of requests and answers over HTTP, as they happen.

Everything is in a registry of this object's own: two nodes in a process count apart.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from typing import Final, Literal, Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import Metric

from modeld.errors import ModeldError
from modeld.types import (
    EndPart,
    ProgressPart,
    StreamPart,
    TextPart,
    ThinkingPart,
    ToolCallDelta,
    ToolCallStart,
)

Parts = AsyncIterator[StreamPart]
"""What an answer is read from."""

Phase = Literal["queue", "prefill", "decode"]
"""Of an answer: waiting for a model, its session or room; reading the prompt; writing."""

_FIRST: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 60, 120, 300)
_BETWEEN: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "DELETE", "OPTIONS"})
_WRITTEN: Final = (TextPart, ThinkingPart, ToolCallStart, ToolCallDelta)


class Cancellable(Protocol):
    """An answer of this node."""

    async def cancel(self) -> EndPart:
        """See :meth:`modeld.session.PartStream.cancel`."""
        ...


class Metrics:
    """Counters of one server. Belongs to its event loop's thread."""

    def __init__(self) -> None:
        self._registry = own = CollectorRegistry()
        self._requests = Counter(
            "modeld_http_requests", "Requests by route and status; status left: nobody was there to be answered.",
            ("route", "status"), registry=own,
        )  # fmt: skip
        self._gone = Counter(
            "modeld_http_disconnects", "Clients that left before the end, by what their request was at.",
            ("phase", "mode"), registry=own,
        )  # fmt: skip
        self.answers = Gauge("modeld_http_answers", "Answers that are being made, by phase.", ("phase",), registry=own)
        self.first = Histogram(
            "modeld_http_time_to_first_token_seconds", "From a request to the first piece of its answer.",
            buckets=_FIRST, registry=own,
        )  # fmt: skip
        self.between = Histogram(
            "modeld_http_time_between_tokens_seconds",
            "Between two pieces of an answer: tokens, or several where they come faster than they are taken.",
            buckets=_BETWEEN, registry=own,
        )  # fmt: skip
        for phase in ("queue", "prefill", "decode"):
            self.answers.labels(phase).set(0)
            for mode in ("stream", "whole"):
                self._gone.labels(phase, mode)

    def request(self, route: str, status: int) -> None:
        """A request is over; ``status`` 0: it was not answered."""
        if route.partition(" ")[0] not in _METHODS:
            route = "(other)"  # a stranger's word: each would be a line for ever
        self._requests.labels(route, str(status) if status else "left").inc()

    def left(self, trace: Trace) -> None:
        """The client left before its answer was whole."""
        self._gone.labels(trace.phase or "other", "stream" if trace.streamed else "whole").inc()

    def collect(self) -> Iterator[Metric]:
        """All of it."""
        yield from self._registry.collect()


class Trace:
    """What one request is at. An answer is followed from the first wait to its end.

    :ivar streamed: it is answered by events. :ivar phase: ``None``: no answer is being made.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._began = self._last = time.monotonic()
        self.streamed = False
        self.phase: Phase | None = None

    @contextmanager
    def answering(self) -> Iterator[Trace]:
        """An answer is made in this block."""
        self._be("queue")
        try:
            yield self
        finally:
            if self.phase is not None:
                self._metrics.answers.labels(self.phase).dec()

    @asynccontextmanager
    async def follow(
        self, parts: Parts, ended: Callable[[EndPart], None], answer: Cancellable | None = None
    ) -> AsyncIterator[Parts]:
        """``parts`` as they are, looked at.

        :param ended: is given the end part. :param answer: knows, when it is cancelled, how far it came: a client may
            leave before a part says so.
        """
        try:
            yield _Followed(parts, lambda part: self._see(part, ended))
        except asyncio.CancelledError:
            if answer is not None and self.phase is not None:
                with suppress(ModeldError):
                    self._cancelled(await answer.cancel())
            raise

    def _see(self, part: StreamPart, ended: Callable[[EndPart], None]) -> None:
        if isinstance(part, _WRITTEN):
            self._wrote()
        elif isinstance(part, ProgressPart):
            if part.total and not part.position and self.phase == "queue":
                self._be("prefill")
        elif isinstance(part, EndPart):
            self._be(None)
            ended(part)

    def _wrote(self) -> None:
        now = time.monotonic()
        if self.phase == "decode":
            self._metrics.between.observe(now - self._last)
        else:
            self._metrics.first.observe(now - self._began)
            self._be("decode")
        self._last = now

    def _cancelled(self, end: EndPart) -> None:
        if end.usage.output:
            self._be("decode")
        elif self.phase == "queue" and end.receipt is not None and end.receipt.prefill_seconds:
            self._be("prefill")

    def _be(self, phase: Phase | None) -> None:
        if self.phase is not None:
            self._metrics.answers.labels(self.phase).dec()
        if phase is not None:
            self._metrics.answers.labels(phase).inc()
        self.phase = phase


class _Followed:
    """Parts that somebody looks at on their way."""

    def __init__(self, parts: Parts, see: Callable[[StreamPart], None]) -> None:
        self._parts, self._see = parts, see

    def __aiter__(self) -> _Followed:
        return self

    async def __anext__(self) -> StreamPart:
        part = await anext(self._parts)
        self._see(part)
        return part


TRACE: ContextVar[Trace] = ContextVar("modeld_http_trace")
"""Of the request that is being answered; the guard sets it."""
