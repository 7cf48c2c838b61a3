"""The fake's vectors: the mean of one for each rune, which is a function of the rune alone.

With ``rank=1`` in its name it scores instead: the share of the query's words that the document has. An input ``!abort``
ends the process as a native assertion would, ``!nan`` gives what is no number; ``delay`` is seconds per token.
"""

from __future__ import annotations

import os
import time
import zlib
from array import array
from typing import Literal

from modeld.engine.fake.lexicon import END, FakeLexicon
from modeld.engine.fake.settings import fake_pooling, fake_settings
from modeld.engine.protocol import Load
from modeld.errors import EngineError
from modeld.session.text_values import Pooling

DIMENSIONS = 16


class FakeEmbedder(FakeLexicon):
    """Made of the model's name alone."""

    pooling_source: Literal["model", "default"] = "model"

    def __init__(self, request: Load) -> None:
        settings = fake_settings(request.name)
        self._delay = settings["delay"]
        self.pooling: Pooling = fake_pooling(request.name)
        self.dimensions = 1 if self.pooling == "rank" else DIMENSIONS
        self.window = request.window
        self.before: list[int] = []
        self.behind: list[int] = []
        self.sequences = request.sequences

    def compute(self, inputs: list[list[int]]) -> list[array[float]]:
        """See :meth:`modeld.engine.backend.Embedder.compute`."""
        return [self._compute(tokens) for tokens in inputs]

    def pair(self, query: str, document: str) -> list[int]:
        """The end of a message between them."""
        return self.tokenize(f"{query}{END}{document}".encode("utf-8", "replace"), add_special=True)

    def _compute(self, tokens: list[int]) -> array[float]:
        time.sleep(self._delay * len(tokens))
        text = "".join(map(chr, tokens))
        if "!abort" in text:
            os.abort()
        if "!nan" in text:
            raise EngineError("the fake computed a vector that is no number")
        if self.pooling == "rank":
            query, _, document = text.partition(END)
            words = query.split()
            return array("f", [sum(word in document.split() for word in words) / max(len(words), 1)])
        total = [0.0] * DIMENSIONS
        for token in tokens:
            for axis in range(DIMENSIONS):
                total[axis] += zlib.crc32(f"{token} {axis}".encode()) / 2**31 - 1
        return array("f", [value / len(tokens) for value in total])
