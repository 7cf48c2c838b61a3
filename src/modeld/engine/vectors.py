"""From inputs to vectors and scores: tokens, what does not fit, batches, and what becomes of the results.

All inputs of a call are tokenised before any is computed: a call that is refused has cost no computation.
"""

from __future__ import annotations

from array import array
from collections.abc import Generator, Iterator
from itertools import pairwise
from typing import Final

from msgspec import Struct

from modeld.engine.backend import Embedder, check_tokens
from modeld.engine.protocol import Embed, Rerank
from modeld.errors import ContextOverflowError, InvalidRequestError, NotSupportedError
from modeld.session.text_values import (
    MAX_VECTORS,
    EmbeddedItem,
    Embeddings,
    EmbedInput,
    InputOverflow,
    Ranking,
    packed,
    unit,
)
from modeld.types import Usage

BATCH_TOKENS: Final = 512
"""Tokens of a batch of several inputs. More in one is no faster: without flash attention each token is compared with
all of its batch, and what belongs to other inputs is thrown away."""

_SLICE: Final = 1 << 18
"""Characters that are tokenised before the loop looks for other requests."""

Steps = Generator[None, None, Embeddings | Ranking]


class Work:
    """A call that runs, a piece at a time."""

    def __init__(self, id_: int, steps: Steps) -> None:
        self.id = id_
        self.steps = steps


class _Item(Struct):
    """An input: its tokens in pieces, and what each weighs."""

    tokens: int
    pieces: list[list[int]]
    weights: list[int]

    def told(self) -> EmbeddedItem:
        return EmbeddedItem(tokens=self.tokens, used=sum(map(len, self.pieces)), chunks=len(self.pieces))


def begin(request: Embed | Rerank, embedder: Embedder, model: str) -> Work:
    """The work of a request.

    :raises NotSupportedError: the model is for the other kind. :raises InvalidRequestError: it makes no sense.
    """
    ranks = embedder.pooling == "rank"
    if isinstance(request, Rerank):
        if not ranks:
            raise NotSupportedError(
                f"{model} makes vectors and ranks nothing (its pooling is {embedder.pooling}): embed query and "
                "documents, and compare those",
                feature="rerank",
            )
        if request.overflow == "chunk":
            raise InvalidRequestError(
                "a document is scored as one: overflow is error or truncate", parameter="overflow"
            )
        return Work(request.id, _rank(request, embedder, model))
    if ranks:
        raise NotSupportedError(f"{model} ranks documents and makes no vectors: use rerank", feature="embeddings")
    _check_vectors(request, embedder, model)
    return Work(request.id, _embed(request, embedder, model))


def _check_vectors(request: Embed, embedder: Embedder, model: str) -> None:
    wanted = embedder.dimensions if request.dimensions is None else request.dimensions
    if not 1 <= wanted <= embedder.dimensions:
        raise InvalidRequestError(
            f"the vectors of {model} have {embedder.dimensions} dimensions, not {wanted}",
            parameter="dimensions",
            dimensions=embedder.dimensions,
        )
    if (size := 4 * wanted * len(request.inputs)) > MAX_VECTORS:
        most = MAX_VECTORS // (4 * wanted)
        raise InvalidRequestError(
            f"{len(request.inputs)} vectors of {wanted} dimensions are {size} bytes: a call takes {most} at most",
            parameter="inputs",
            limit=most,
        )


def _embed(request: Embed, embedder: Embedder, model: str) -> Steps:
    items: list[_Item] = []
    seen = 0
    for index, one in enumerate(request.inputs):
        items.append(_item(one, index, embedder, request.overflow))
        seen += len(one.text) + len(one.tokens)
        if seen >= _SLICE:
            seen = 0
            yield
    data = bytearray()
    vectors = _compute(items, embedder)
    for item in items:
        parts: list[array[float]] = []
        while len(parts) < len(item.pieces):
            part = next(vectors)
            if part is None:
                yield
            else:
                parts.append(part)
        vector = _mean(parts, item.weights)[: request.dimensions]
        data += packed(unit(vector) if request.normalize else vector)
    told = tuple(item.told() for item in items)
    return Embeddings(
        model=model,
        data=bytes(data),
        dimensions=request.dimensions or embedder.dimensions,
        items=told,
        usage=_usage(told),
        pooling=embedder.pooling,
        pooling_source=embedder.pooling_source,
        normalized=request.normalize,
    )


def _rank(request: Rerank, embedder: Embedder, model: str) -> Steps:
    items: list[_Item] = []
    seen = 0
    for index, document in enumerate(request.documents):
        items.append(_pair(request, index, embedder))
        seen += len(request.query) + len(document)
        if seen >= _SLICE:
            seen = 0
            yield
    scores: list[float] = []
    for vector in _compute(items, embedder):
        if vector is None:
            yield
        else:
            scores.append(vector[0])
    told = tuple(item.told() for item in items)
    order = sorted(range(len(scores)), key=lambda index: -scores[index])
    return Ranking(model=model, scores=tuple(scores), order=tuple(order), items=told, usage=_usage(told))


def _compute(items: list[_Item], embedder: Embedder) -> Iterator[array[float] | None]:
    """The vector of each piece, in order; ``None`` before each batch but the first."""
    batch: list[list[int]] = []
    size = 0
    for piece in (piece for item in items for piece in item.pieces):
        if batch and (len(batch) == embedder.sequences or size + len(piece) > min(BATCH_TOKENS, embedder.window)):
            yield from embedder.compute(batch)
            yield None
            batch, size = [], 0
        batch.append(piece)
        size += len(piece)
    if batch:
        yield from embedder.compute(batch)


def _item(one: EmbedInput, index: int, embedder: Embedder, overflow: InputOverflow) -> _Item:
    """The pieces of an input that are to be computed.

    :raises ContextOverflowError: it does not fit.
    """
    before, behind = embedder.before, embedder.behind
    if one.tokens:
        check_tokens(one.tokens, embedder, f"input {index}")
        ids, before, behind = list(one.tokens), [], []
    else:
        ids = embedder.tokenize(one.text.encode("utf-8", "replace"), add_special=True)
    if not ids:
        raise InvalidRequestError(f"input {index} has no tokens: leave it out", parameter="inputs", index=index)
    if len(ids) <= embedder.window:
        return _Item(len(ids), [ids], [1])
    inner = ids[len(before) : len(ids) - len(behind)]
    room = embedder.window - len(before) - len(behind)
    if overflow == "error" or room < 1:
        raise _too_long(f"input {index}", index, len(ids), embedder.window, "truncate or chunk")
    if overflow == "truncate":
        return _Item(len(ids), [before + inner[:room] + behind], [1])
    count = -(-len(inner) // room)
    cuts = [len(inner) * number // count for number in range(count + 1)]
    pieces = [inner[start:end] for start, end in pairwise(cuts)]
    return _Item(len(ids), [before + piece + behind for piece in pieces], [len(piece) for piece in pieces])


def _pair(request: Rerank, index: int, embedder: Embedder) -> _Item:
    document = request.documents[index]
    ids = embedder.pair(request.query, document)
    tokens = len(ids)
    own = embedder.tokenize(document.encode("utf-8", "replace"), add_special=False)
    while len(ids) > embedder.window:
        if request.overflow == "error" or not own:
            raise _too_long(f"query and document {index}", index, tokens, embedder.window, "truncate")
        own = own[: len(own) - (len(ids) - embedder.window)] if len(ids) - embedder.window < len(own) else []
        text = b"".join(map(embedder.piece, own)).decode("utf-8", "ignore")
        ids = embedder.pair(request.query, text)
    return _Item(tokens, [ids], [1])


def _too_long(what: str, index: int, tokens: int, window: int, policies: str) -> ContextOverflowError:
    return ContextOverflowError(
        f"{what} is {tokens} tokens and the model was loaded for {window}: nothing was computed; shorten it, or pass "
        f"overflow={policies} (over HTTP: truncate), or a larger context where the model allows it",
        stage="input",
        index=index,
        resident=0,
        additional=tokens,
        window=window,
    )


def _mean(vectors: list[array[float]], weights: list[int]) -> array[float]:
    if len(vectors) == 1:
        return vectors[0]
    total = sum(weights)
    rows = zip(*vectors, strict=True)
    return array("f", [sum(map(float.__mul__, row, map(float, weights))) / total for row in rows])


def _usage(items: tuple[EmbeddedItem, ...]) -> Usage:
    used = sum(item.used for item in items)
    return Usage(input=used, cache_read=0, output=0, reasoning=0, reused=0, restored=0, prefilled=used)
