"""The loop of an engine that makes vectors: texts in, batches by tokens, answers.

It has no sessions. Calls take turns by batches, so that a long one holds up a short one for a batch at most, and a
cancelled one ends after the batch that runs. An engine without weights is the same loop without an embedder.
"""

from __future__ import annotations

import queue
from collections import deque
from collections.abc import Callable

from modeld.engine.backend import Embedder
from modeld.engine.protocol import (
    Cancel,
    Detokenize,
    Done,
    Embed,
    Failed,
    Render,
    Reply,
    Request,
    Rerank,
    Settle,
    Tokenize,
    encode_result,
)
from modeld.engine.texts import Texts
from modeld.engine.vectors import Work, begin
from modeld.errors import EngineProtocolError, ModeldError


class SideLoop:
    """Requests and the work they make. Belongs to one thread.

    :param embedder: ``None``: this engine has no weights.
    """

    def __init__(
        self,
        embedder: Embedder | None,
        texts: Texts,
        model: str,
        send: Callable[[Reply], None],
        inbox: queue.SimpleQueue[Request],
    ) -> None:
        self._embedder = embedder
        self._texts = texts
        self._model = model
        self._send = send
        self._inbox = inbox
        self._works: deque[Work] = deque()

    def run(self) -> None:
        """Serve for ever; the process ends when the node's end of the socket closes."""
        while True:
            self.iterate()

    def iterate(self) -> None:
        """Take requests and do a piece of work. Waits for a request while there is nothing else to do."""
        while not self._inbox.empty() or not (self._works or self._texts.ready):
            self._take(self._inbox.get())
        self._texts.step()
        if self._works:
            self._advance(self._works.popleft())

    def _take(self, request: Request) -> None:
        match request:
            case Embed() | Rerank():
                self._begin(request)
            case Tokenize() | Detokenize() | Render():
                self._texts.add(request)
            case Cancel(id=id_):
                self._texts.drop(id_)
                self._works = deque(work for work in self._works if work.id != id_)
            case Settle(id=id_):
                self._send(Done(id_, 0, encode_result(None)))
            case _:
                kind = type(request).__name__
                raise EngineProtocolError(f"this engine has no sessions: {kind} is for the resident one")

    def _begin(self, request: Embed | Rerank) -> None:
        if self._embedder is None:
            raise EngineProtocolError("this engine has no weights: vectors need another one")
        try:
            self._works.append(begin(request, self._embedder, self._model))
        except ModeldError as error:
            self._fail(request.id, error)

    def _advance(self, work: Work) -> None:
        try:
            next(work.steps)
        except StopIteration as end:
            self._send(Done(work.id, 0, encode_result(end.value)))
        except ModeldError as error:
            self._fail(work.id, error)
        else:
            self._works.append(work)

    def _fail(self, id_: int, error: ModeldError) -> None:
        self._send(Failed(id_, 0, error.code, error.message, error.details))
