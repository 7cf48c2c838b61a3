"""A scripted HTTP server on loopback: the ground under the fakes of the vendors' wires.

    async with FakeOpenAI() as server:
        server.script(Answer(text="Hello"))
        ...  # any client of that vendor, with server.url
        assert server.requests[0].json["model"] == "gpt-5"

Answers are neutral; each vendor's fake writes them as its vendor does, whole or as a stream, and checks every request
strictly: an unknown field, a wrong type or a missing key is the vendor's own 400. A :class:`Fault` breaks one answer.
"""

from __future__ import annotations

import asyncio
import json
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import parse_qsl, unquote, urlsplit

import h11
from msgspec import Struct, field, structs

from modeld.types import FinishReason, TokenLogprob, ToolCall, Usage


class Answer(Struct, frozen=True, kw_only=True):
    """What the model says.

    :param pieces: into how many deltas text, thinking and arguments are split in a stream.
    :param signature: vendors that sign thinking or calls give this one.
    :param refusal: the model's words when it declines; the vendor's way of saying so is used.
    :param logprobs: what it says of its tokens, to who asks; their ``kind`` goes over no wire.
    :param vectors: the answer of an embedding request; made from the texts where it is empty.
    """

    text: str = ""
    thinking: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    finish_reason: FinishReason = "stop"
    usage: Usage = Usage(input=11, output=7, source="reported")
    pieces: int = 3
    signature: str = "sig-1"
    refusal: str = ""
    logprobs: tuple[TokenLogprob, ...] = ()
    vectors: tuple[tuple[float, ...], ...] = ()


FaultKind = Literal["status", "cut", "slow", "hang", "broken_json", "content_type", "error_event"]


class Fault(Struct, frozen=True, kw_only=True):
    """What goes wrong with one answer.

    ``status``: the vendor's error body with ``status``, ``code``, ``message`` and ``headers``; ``cut``: the connection
    closes after ``after`` pieces of the stream, or in the middle of a whole body; ``slow``: the body comes one byte at
    a time; ``hang``: nothing comes after ``after`` pieces; ``broken_json``: piece number ``after`` is no JSON;
    ``content_type``: a page of HTML with status 200; ``error_event``: the vendor's error event within a stream.

    :param answer: what would have come.
    """

    kind: FaultKind
    status: int = 500
    code: str = ""
    message: str = "scripted fault"
    headers: Mapping[str, str] = field(default_factory=dict)
    after: int = 1
    answer: Answer = Answer(text="Hello there, this is an answer.")


class Recorded(Struct, frozen=True, kw_only=True):
    """A request as it came. Names of headers are in lower case."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


class Reply(Struct, frozen=True, kw_only=True):
    """What to send: ``body`` whole, or ``pieces`` as a stream."""

    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    pieces: tuple[bytes, ...] | None = None


class Rejected(Exception):
    """The request is not one the vendor would take."""

    def __init__(self, message: str, *, status: int = 400, code: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code


class FakeServer(ABC):
    """One vendor's server.

    :param key: the only API key it takes.
    """

    def __init__(self, *, key: str = "test-key") -> None:
        self.key = key
        self.requests: list[Recorded] = []
        self.cut_off = 0
        """Answers whose client went away before their end."""
        self._script: deque[Answer | Fault] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    # What a vendor's fake writes.

    @abstractmethod
    async def respond(self, request: Recorded) -> Reply:
        """The answer to a request; :meth:`next_answer` has what to say.

        :raises Rejected: the vendor would not take the request.
        """

    @abstractmethod
    def error_body(self, status: int, code: str, message: str) -> bytes:
        """The body of a failed call."""

    @abstractmethod
    def error_event(self, code: str, message: str) -> bytes:
        """The error in the middle of a stream."""

    def broken_event(self) -> bytes:
        """A piece of a stream that is no JSON."""
        return b'data: {"broken": \n\n'

    # What a test says.

    def script(self, *answers: Answer | Fault) -> None:
        """Give these, one for each chat or embedding request; then ``Answer(text="ok")``. Listings use none."""
        self._script.extend(answers)

    def next_answer(self) -> Answer:
        """What to say now. A fault is remembered, and breaks the reply that is made of its answer."""
        entry = self._script.popleft() if self._script else Answer(text="ok")
        if isinstance(entry, Fault):
            _fault.set(entry)
            return entry.answer
        return entry

    @property
    def url(self) -> str:
        """Scheme, host and port."""
        assert self._server is not None
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"http://{host}:{port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # The server.

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._serve(h11.Connection(h11.SERVER), reader, writer)
        except (ConnectionError, asyncio.CancelledError, h11.ProtocolError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _serve(self, http: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (request := await _receive(http, reader)) is not None:
            self.requests.append(request)
            _fault.set(None)
            try:
                reply = await self.respond(request)
            except Rejected as error:
                body = self.error_body(error.status, error.code, error.message)
                reply = Reply(status=error.status, body=body)
            fault = _fault.get()
            try:
                whole = await self._send(http, reader, writer, self._broken(reply, fault), fault)
            except ConnectionError:
                whole = False
                self.cut_off += 1
            if not whole or http.our_state is not h11.DONE or http.their_state is not h11.DONE:
                return
            http.start_next_cycle()

    def _broken(self, reply: Reply, fault: Fault | None) -> Reply:
        if fault is None:
            return reply
        match fault.kind:
            case "status":
                body = self.error_body(fault.status, fault.code, fault.message)
                return Reply(status=fault.status, headers=fault.headers, body=body)
            case "content_type":
                return Reply(content_type="text/html", body=b"<html><body>Bad gateway</body></html>")
            case "broken_json" | "error_event" if reply.pieces is not None:
                broken = self.broken_event()
                if fault.kind == "error_event":
                    broken = self.error_event(fault.code, fault.message)
                return structs.replace(reply, pieces=(*reply.pieces[: fault.after], broken))
            case "broken_json":
                return structs.replace(reply, body=b'{"broken": ')
            case "error_event":
                raise ValueError("an error event needs a stream")
        return reply

    async def _send(
        self,
        http: h11.Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        reply: Reply,
        fault: Fault | None,
    ) -> bool:
        """Whether all of it was sent. The reader is watched: a client that goes away in the middle is counted."""
        pieces = reply.pieces if reply.pieces is not None else (reply.body,)
        headers = [("content-type", reply.content_type), *reply.headers.items()]
        if reply.pieces is None:
            headers.append(("content-length", str(len(reply.body))))
        else:
            headers.append(("transfer-encoding", "chunked"))
        writer.write(http.send(h11.Response(status_code=reply.status, headers=headers)) or b"")
        gone = asyncio.ensure_future(reader.read(1))
        kind = fault.kind if fault is not None else ""
        after = fault.after if fault is not None else 0
        try:
            for index, piece in enumerate(pieces):
                if kind == "cut" and reply.pieces is None:
                    writer.write(http.send(h11.Data(data=piece[: len(piece) // 2])) or b"")
                    await writer.drain()
                    return False
                if kind in ("cut", "hang") and index >= after:
                    if kind == "hang":
                        await gone
                        self.cut_off += 1
                    return False
                for part in [piece[i : i + 1] for i in range(len(piece))] if kind == "slow" else [piece]:
                    writer.write(http.send(h11.Data(data=part)) or b"")
                    await writer.drain()
                    # Also the turn of whoever reads: pieces then arrive one by one.
                    await asyncio.sleep(0)
                if gone.done() and not gone.result():
                    self.cut_off += 1
                    return False
            writer.write(http.send(h11.EndOfMessage()) or b"")
            await writer.drain()
            return True
        finally:
            gone.cancel()
            (ahead,) = await asyncio.gather(gone, return_exceptions=True)
            if isinstance(ahead, bytes) and ahead:
                # The first byte of the next request, which came early.
                http.receive_data(ahead)


_fault: ContextVar[Fault | None] = ContextVar("fault", default=None)
"""What breaks the reply that the running task is making."""


async def _receive(http: h11.Connection, reader: asyncio.StreamReader) -> Recorded | None:
    """The next request of a connection; ``None``: the client closed it."""
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await reader.read(65536))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            target = urlsplit(head.target.decode("ascii"))
            return Recorded(
                method=head.method.decode("ascii"),
                path=unquote(target.path),
                query=dict(parse_qsl(target.query, keep_blank_values=True)),
                headers={name.decode("ascii"): value.decode("latin-1") for name, value in head.headers},
                body=bytes(body),
            )
        else:
            return None


def split(text: str, pieces: int) -> list[str]:
    """``text`` in up to ``pieces`` pieces, none of them empty; nothing for an empty text."""
    size = max(1, -(-len(text) // max(1, pieces)))
    return [text[i : i + size] for i in range(0, len(text), size)]


def vectors_for(answer: Answer, texts: Sequence[str], dimensions: int | None) -> list[list[float]]:
    """The scripted vectors, or ones made from the texts, so that each text has its own."""
    if answer.vectors:
        return [list(vector) for vector in answer.vectors]
    length = dimensions or 3
    return [[round((len(text) + i) / 16, 4) for i in range(length)] for text in texts]
