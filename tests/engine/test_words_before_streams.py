"""Hazard: a stream that stands still while the matcher reads a vocabulary. It is read before the engine is ready."""

from __future__ import annotations

import queue
from collections.abc import Callable
from typing import Any

import pytest

from modeld.engine.control import Control
from modeld.engine.fake.backend import FakeBackend, FakeRuntime
from modeld.engine.protocol import Load, Ready
from modeld.engine.words import Words, read_words
from modeld.engine.worker import _load
from modeld.errors import MissingDependencyError


class PanicError(BaseException):
    """As the matcher's package raises it."""


@pytest.fixture
def load() -> Callable[[], list[Any]]:
    """Loads a model; what was sent meanwhile."""

    def load() -> list[Any]:
        sent: list[Any] = []
        _load(FakeRuntime(), Load("", "fake", "", 1024, 1024), "fake", sent.append, queue.SimpleQueue(), Control())
        return sent

    return load


def test_the_engine_is_ready_when_the_words_are_read(
    load: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    plain = Words.__init__

    def init(self: Words, vocabulary: FakeBackend) -> None:
        read.append(1)
        plain(self, vocabulary)

    monkeypatch.setattr(Words, "__init__", init)
    (ready,) = load()
    assert isinstance(ready, Ready)
    assert read == [1]


@pytest.mark.parametrize("kind", [MissingDependencyError, PanicError])
def test_words_that_cannot_be_had_end_no_engine(
    load: Callable[[], list[Any]], monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    def broken(*_: object) -> None:
        raise kind("none")

    monkeypatch.setattr(FakeBackend, "words", broken)
    assert isinstance(load()[-1], Ready)
    words = read_words(FakeBackend(Load("", "fake", "", 1024, 1024)))
    for _ in range(2):
        with pytest.raises(kind, match="none"):
            words()
