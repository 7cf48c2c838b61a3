"""Hazard: a stream that stands still while the matcher reads a vocabulary. It is read before the engine is ready."""

from __future__ import annotations

import queue
import time
from pathlib import Path
from typing import Any

import pytest

from modeld.engine.control import Control
from modeld.engine.fake.backend import FakeRuntime
from modeld.engine.fake.lexicon import FakeLexicon
from modeld.engine.llama.runtime import LlamaRuntime
from modeld.engine.protocol import Load, Ready
from modeld.engine.words import begin_words
from modeld.engine.worker import _load
from modeld.errors import ModelLoadError
from support.engines import TINY_F16


class Slow(FakeLexicon):
    """Takes its time, and says what was done with it."""

    def __init__(self, told: list[str]) -> None:
        self._told = told

    def words(self) -> list[bytes]:
        time.sleep(0.1)
        self._told.append("read")
        return super().words()

    def close(self) -> None:
        self._told.append("closed")


def test_the_engine_is_ready_when_the_words_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(FakeRuntime, "lexicon", lambda *_: Slow(told))
    request = Load("", "fake", "", 1024, 1024)

    def send(frame: Any) -> None:
        told.append(type(frame).__name__)

    _load(FakeRuntime(), request, "fake", send, queue.SimpleQueue(), Control())
    assert told == ["read", "closed", Ready.__name__]


def test_a_model_whose_vocabulary_no_grammar_can_use_is_loaded_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ModelLoadError("it has none")

    monkeypatch.setattr(FakeRuntime, "lexicon", broken)
    sent: list[Any] = []
    _load(FakeRuntime(), Load("", "fake", "", 1024, 1024), "fake", sent.append, queue.SimpleQueue(), Control())
    assert isinstance(sent[-1], Ready)
    with pytest.raises(ModelLoadError, match="it has none"):
        begin_words(broken).result()  # type: ignore[arg-type]


def test_a_broken_file_says_once_what_is_wrong_with_it(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(TINY_F16.read_bytes()[:100_000])
    runtime = LlamaRuntime()
    request = Load(str(path), "cut", "", 1024, 1024)
    words = begin_words(lambda: runtime.lexicon(request))
    with pytest.raises(ModelLoadError) as caught:
        runtime.load(request)
    assert isinstance(words.exception(), ModelLoadError)
    said = caught.value.message.split(": ", 1)[1].split("; ")
    assert len(said) == len(set(said))


def test_the_words_of_a_file_are_read_while_it_is_loaded() -> None:
    runtime = LlamaRuntime()
    request = Load(str(TINY_F16), "tiny", "", 1024, 1024)
    for _ in range(5):
        words = begin_words(lambda: runtime.lexicon(request))
        backend = runtime.load(request)
        assert words.result().size == backend.vocabulary
        assert backend.words() == runtime.lexicon(request).words()
        backend.close()
