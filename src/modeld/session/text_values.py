"""The values of calls that need no session: vectors, scores, tokens and rendered conversations."""

from __future__ import annotations

import math
import sys
from array import array
from collections.abc import Iterable, Sequence
from typing import Final, Literal

from msgspec import Struct

from modeld.errors import InvalidRequestError
from modeld.types import Usage

InputOverflow = Literal["error", "truncate", "chunk"]
"""What becomes of an input that is longer than the model takes.

``error``: :class:`modeld.ContextOverflowError`, and nothing is computed. ``truncate``: its beginning counts.
``chunk``: it is cut into pieces of about one length, and its vector is the mean of theirs, weighted by their tokens.
"""

Pooling = Literal["mean", "cls", "last", "rank"]

MAX_INPUTS: Final = 16_384
"""Inputs of one call. They are few enough to look at between two frames."""
MAX_TEXT: Final = 16 << 20
"""Bytes of text in one call; a token id counts as 4."""
MAX_VECTORS: Final = 32 << 20
"""Bytes of the vectors that one call is answered with."""


class RawPrompt(Struct, frozen=True, omit_defaults=True):
    """Text that goes on without a template, or its tokens, which are taken as they are."""

    text: str = ""
    tokens: tuple[int, ...] = ()


class EmbedInput(Struct, frozen=True, omit_defaults=True):
    """A text, or its tokens. Tokens are taken as they are: nothing is put before or behind them."""

    text: str = ""
    tokens: tuple[int, ...] = ()


class EmbeddedItem(Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What became of one input.

    :param tokens: that it has, with those the model wants around it. :param used: that were computed for it: fewer
        where it was truncated, more where each chunk has those around it. :param chunks: that it was cut into.
    """

    tokens: int
    used: int
    chunks: int = 1

    @property
    def truncated(self) -> bool:
        """The end of it was left out."""
        return self.chunks == 1 and self.used < self.tokens


class Embeddings(Struct, frozen=True, kw_only=True):
    """One vector for each input, in their order.

    :param data: the vectors one after the other, each ``dimensions`` numbers of 32 bits, little-endian.
    :param pooling: how the vectors of an input's tokens became one.
    :param pooling_source: ``model``: its file says so; ``default``: it does not, and this is our choice.
    :param normalized: each vector has the length 1, or 0 where all of it is 0.
    """

    model: str
    data: bytes
    dimensions: int
    items: tuple[EmbeddedItem, ...]
    usage: Usage
    pooling: Pooling
    pooling_source: Literal["model", "default"] = "model"
    normalized: bool = True

    @property
    def vectors(self) -> tuple[tuple[float, ...], ...]:
        """The vectors as numbers."""
        numbers = unpacked(self.data)
        return tuple(
            tuple(numbers[start : start + self.dimensions]) for start in range(0, len(numbers), self.dimensions)
        )


class Ranking(Struct, frozen=True, kw_only=True):
    """How well documents answer a query.

    :param scores: one for each document, in their order, as the model gives them: higher is better, and what a
        difference means is the model's own. :param order: the documents' indices, the best first.
    """

    model: str
    scores: tuple[float, ...]
    order: tuple[int, ...]
    items: tuple[EmbeddedItem, ...]
    usage: Usage


class TokenList(Struct, frozen=True, kw_only=True):
    """A text as the model's tokens."""

    model: str
    tokens: tuple[int, ...]


class RenderedPrompt(Struct, frozen=True, kw_only=True):
    """A conversation as the model would see it as a session's first turn.

    A later turn may have fewer or more tokens: what the model itself wrote keeps the tokens it wrote.

    :param template: ``model``: its own; ``default``: it brings none, and ChatML was taken.
    """

    model: str
    text: str
    tokens: tuple[int, ...]
    template: Literal["model", "default"] = "model"


def raw_prompt(prompt: str | Sequence[int]) -> RawPrompt:
    """What :meth:`modeld.session.Session.complete` goes on from.

    :raises InvalidRequestError: it is empty, or neither text nor token ids.
    """
    if isinstance(prompt, bytes | bytearray) or not isinstance(prompt, str | Sequence):
        kind = type(prompt).__name__
        raise InvalidRequestError(f"a prompt is text or a list of token ids, not {kind}", parameter="prompt")
    if not prompt:
        raise InvalidRequestError("the prompt is empty: there is nothing to go on from", parameter="prompt")
    return RawPrompt(prompt) if isinstance(prompt, str) else RawPrompt(tokens=tuple(prompt))


def embed_inputs(inputs: Iterable[str | Sequence[int] | EmbedInput]) -> tuple[EmbedInput, ...]:
    """What a caller wants vectors of, checked. No more than :data:`MAX_INPUTS` are looked at.

    :raises InvalidRequestError: none, too many, too much text, one that is empty, or something else than text and
        token ids.
    """
    if isinstance(inputs, str | bytes):
        raise InvalidRequestError("embed takes a list of texts, not one: put it in a list", parameter="inputs")
    found: list[EmbedInput] = []
    size = 0
    for index, item in enumerate(inputs):
        if index == MAX_INPUTS:
            raise InvalidRequestError(f"a call takes {MAX_INPUTS} inputs at most: split it", parameter="inputs")
        one = _input(item, index)
        size += 4 * len(one.tokens) or len(one.text.encode("utf-8", "surrogatepass"))
        check_size(size, "inputs")
        found.append(one)
    if not found:
        raise InvalidRequestError("there is nothing to embed: give one text at least", parameter="inputs")
    return tuple(found)


def rank_documents(query: str, documents: Iterable[str]) -> tuple[str, ...]:
    """What a caller wants scored, checked as by :func:`embed_inputs`; the query counts once for each document.

    :raises InvalidRequestError: none, too many, too much text, or one that is empty or no text.
    """
    if isinstance(documents, str | bytes):
        raise InvalidRequestError("rerank takes a list of documents, not one", parameter="documents")
    if not isinstance(query, str) or not query:
        raise InvalidRequestError("the query is text, and not empty", parameter="query")
    asked = len(query.encode("utf-8", "surrogatepass"))
    found: list[str] = []
    size = 0
    for index, document in enumerate(documents):
        if index == MAX_INPUTS:
            raise InvalidRequestError(f"a call takes {MAX_INPUTS} documents at most: split it", parameter="documents")
        if not isinstance(document, str) or not document:
            raise InvalidRequestError(
                f"document {index} is empty, or no text: leave it out", parameter="documents", index=index
            )
        size += asked + len(document.encode("utf-8", "surrogatepass"))
        check_size(size, "documents")
        found.append(document)
    if not found:
        raise InvalidRequestError("there is nothing to rank: give one document at least", parameter="documents")
    return tuple(found)


def check_size(size: int, parameter: str) -> None:
    """:raises InvalidRequestError: ``size`` bytes of text are more than a call takes."""
    if size > MAX_TEXT:
        raise InvalidRequestError(
            f"a call takes {MAX_TEXT} bytes of text at most, and this has {size} or more: split it",
            parameter=parameter,
            limit=MAX_TEXT,
        )


def _input(item: object, index: int) -> EmbedInput:
    match item:
        case EmbedInput():
            made = item
        case str():
            made = EmbedInput(item)
        case bytes() | bytearray():
            raise InvalidRequestError(f"input {index} is bytes: decode it to text", parameter="inputs", index=index)
        case Sequence():
            made = EmbedInput(tokens=tuple(item))
        case _:
            kind = type(item).__name__
            raise InvalidRequestError(
                f"input {index} is {kind}, not text or a list of token ids", parameter="inputs", index=index
            )
    if not made.text and not made.tokens:
        raise InvalidRequestError(f"input {index} is empty: leave it out", parameter="inputs", index=index)
    if made.text and made.tokens:
        raise InvalidRequestError(f"input {index} is text and tokens: give one", parameter="inputs", index=index)
    return made


def packed(vector: array[float]) -> bytes:
    """Numbers of 32 bits as they cross a wire."""
    if sys.byteorder == "big":
        vector = array("f", vector)
        vector.byteswap()
    return vector.tobytes()


def unpacked(data: bytes) -> array[float]:
    """The numbers of :func:`packed`."""
    numbers = array("f")
    numbers.frombytes(data)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def unit(vector: array[float]) -> array[float]:
    """The same direction with the length 1; a vector of zeros stays one."""
    length = math.hypot(*vector)
    return array("f", [value / length for value in vector]) if length else vector
