"""The seam for those who watch: every call is reported to a tracker, without what was said in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol

from modeld.types import ChatConfig, EndPart

Attribute = str | int | float | bool | list[str]


class Span(Protocol):
    """One call that goes on."""

    def record(self, **attributes: Attribute | None) -> None:
        """Add what became known. ``None`` is unknown and adds nothing."""
        ...


class Tracker(Protocol):
    """Hears of every call: operation, backend, model, options, usage, finish reason, error code.

    Prompts, answers, tool arguments and keys are never given to it.
    """

    def start(
        self, operation: str, backend: str, model: str, **attributes: Attribute | None
    ) -> AbstractContextManager[Span]:
        """A call begins: ``chat``, ``stream``, ``embed``, ``list_models``. The block's end is the call's end.

        What the block raises is the call's error; the tracker lets it through.
        """
        ...


class NoSpan:
    """Hears nothing."""

    def record(self, **attributes: Attribute | None) -> None:
        """Nothing."""


class NoopTracker:
    """Hears nothing."""

    @contextmanager
    def start(self, operation: str, backend: str, model: str, **attributes: Attribute | None) -> Iterator[Span]:
        """Nothing."""
        yield NoSpan()


class ChainedTracker:
    """Tells several trackers, in order."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self._trackers = tuple(trackers)

    @contextmanager
    def start(self, operation: str, backend: str, model: str, **attributes: Attribute | None) -> Iterator[Span]:
        """Start all."""
        with ExitStack() as stack:
            spans = [stack.enter_context(t.start(operation, backend, model, **attributes)) for t in self._trackers]
            yield _Spans(spans)


class _Spans:
    def __init__(self, spans: Sequence[Span]) -> None:
        self._spans = spans

    def record(self, **attributes: Attribute | None) -> None:
        for span in self._spans:
            span.record(**attributes)


def config_attributes(config: ChatConfig) -> dict[str, Attribute | None]:
    """What a tracker is told of a call's options."""
    return {name: getattr(config, name) for name in ("max_tokens", "temperature", "top_p", "think")}


def record_end(span: Span, end: EndPart) -> None:
    """Tell how an answer ended."""
    usage: dict[str, Attribute | None] = {
        "input_tokens": end.usage.input,
        "output_tokens": end.usage.output,
        "cache_read_tokens": end.usage.cache_read,
        "cache_write_tokens": end.usage.cache_write,
        "reasoning_tokens": end.usage.reasoning,
    }
    span.record(finish_reason=end.finish_reason, response_model=end.model or None, response_id=end.id or None, **usage)
