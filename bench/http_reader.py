"""Clients of one server in a process of their own, as light as can be: what is measured is not the reader.

    .venv/bin/python bench/http_reader.py PLAN        a JSON object, see Plan; prints one, see Found

Each stream asks again as soon as it has its answer. Nothing is parsed before an answer is complete; then it is checked:
as many words as tokens were asked for, the usage that says so, and the end of a stream. Arrivals are those of text.
"""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from agent_trace import WORDS

WORDS_ASKED = 40
MARK = b'"delta":{"content":"'
"""Stands in a chunk with text, of both servers."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to do.

    :param url: of a server that speaks HTTP; else ``root`` is that of a node, which is called over gRPC.
    :param clients: who asks, each on so many streams. :param own: fields that only this server takes.
    :param seconds: no stream asks again after these: 0 is one answer each.
    """

    tokens: int
    clients: dict[str, int]
    seconds: float = 0.0
    url: str = ""
    token: str = ""
    own: dict[str, object] = {}
    root: str = ""
    model: str = ""
    salt: str = ""


class Read(msgspec.Struct):
    """An answer: whose it was, and when its text came, in seconds of the reader's clock."""

    client: str
    stream: int
    began: float
    times: list[float]


class Found(msgspec.Struct):
    """All answers, and the processor time that reading them took here."""

    reads: list[Read]
    busy: float


class Usage(msgspec.Struct):
    """Of a chunk."""

    completion_tokens: int


class Delta(msgspec.Struct):
    """Of a choice."""

    content: str | None = None


class Choice(msgspec.Struct):
    """Of a chunk."""

    delta: Delta = msgspec.field(default_factory=Delta)


class Chunk(msgspec.Struct):
    """An event of a streamed answer."""

    choices: list[Choice] = []
    usage: Usage | None = None


_chunk = msgspec.json.Decoder(Chunk)


class BrokenAnswerError(Exception):
    """An answer that is not what was asked for."""


def prompt(plan: Plan, stream: int, turn: int) -> str:
    """No two share a beginning that is worth anything. A word that is said so often is all that is answered: see
    :data:`PENALTY`."""
    return f"{plan.salt} {stream} {turn}: " + " ".join([WORDS[stream % len(WORDS)]] * WORDS_ASKED)


PENALTY = -2.0
"""Of the frequency: the model repeats itself to the last token, and every answer is as long as it may be."""


@dataclass
class Reader(asyncio.Protocol):
    """One request over one connection, which the server closes."""

    request: bytes
    times: list[float] = field(default_factory=list)
    data: bytearray = field(default_factory=bytearray)

    def __post_init__(self) -> None:
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See :class:`asyncio.Protocol`."""
        assert isinstance(transport, asyncio.Transport)
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        """See :class:`asyncio.Protocol`."""
        if MARK in data:
            self.times.append(time.perf_counter())
        self.data += data

    def connection_lost(self, exc: Exception | None) -> None:
        """See :class:`asyncio.Protocol`."""
        self.over.set_result(None)


async def ask_http(plan: Plan, client: str, stream: int, turn: int) -> Read:
    """One answer over HTTP."""
    asked = {
        "model": plan.model,
        "messages": [{"role": "user", "content": prompt(plan, stream, turn)}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": plan.tokens,
        "temperature": 0,
        "frequency_penalty": PENALTY,
        "user": client,
    }
    body = msgspec.json.encode(asked | plan.own)
    where = urlsplit(plan.url)
    assert where.hostname
    assert where.port
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: {where.netloc}\r\nauthorization: Bearer {plan.token}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    )
    began = time.perf_counter()
    reader = Reader(head.encode() + body)
    transport, _ = await asyncio.get_running_loop().create_connection(lambda: reader, where.hostname, where.port)
    await reader.over
    transport.close()
    check(bytes(reader.data), plan.tokens)
    return Read(client, stream, began, reader.times)


def check(data: bytes, tokens: int) -> None:
    """:raises BrokenAnswerError: it is not the whole answer."""
    head, _, rest = data.partition(b"\r\n\r\n")
    events = [line[6:] for line in dechunked(rest).split(b"\n") if line.startswith(b"data: ")]
    if not head.startswith(b"HTTP/1.1 200") or not events or events[-1].strip() != b"[DONE]":
        raise BrokenAnswerError(f"no whole answer: {data[:200]!r} ... {data[-200:]!r}")
    chunks = [_chunk.decode(event) for event in events[:-1]]
    usage = next((chunk.usage.completion_tokens for chunk in reversed(chunks) if chunk.usage), 0)
    words = len("".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices).split())
    if not usage == words == tokens:
        raise BrokenAnswerError(f"{tokens} tokens were asked for, {words} came and {usage} were counted")


def dechunked(data: bytes) -> bytes:
    """A body without the lengths of its pieces."""
    found, place = bytearray(), 0
    while size := int(data[place : (end := data.index(b"\r\n", place))], 16):
        found += data[end + 2 : end + 2 + size]
        place = end + 4 + size
    return bytes(found)


async def streams_http(plan: Plan) -> list[Read]:
    """All clients' streams, until the time is over."""
    until = time.perf_counter() + plan.seconds

    async def one(client: str, stream: int) -> list[Read]:
        reads = [await ask_http(plan, client, stream, 0)]
        while time.perf_counter() < until:
            reads.append(await ask_http(plan, client, stream, len(reads)))
        return reads

    names = [client for client, count in plan.clients.items() for _ in range(count)]
    found = await asyncio.gather(*(one(client, stream) for stream, client in enumerate(names)))
    return [read for reads in found for read in reads]


async def streams_grpc(plan: Plan) -> list[Read]:
    """One answer for each client, over a connection of its own."""
    from modeld import ModelRef, SessionConfig, connect
    from modeld.types import DecodeOptions, EndPart, Message, TextPart

    options = DecodeOptions(max_tokens=plan.tokens, temperature=0, frequency_penalty=PENALTY)

    async def one(client: str, stream: int) -> Read:
        async with await connect(Path(plan.root)) as node:
            config = SessionConfig(workspace=client, name=f"{plan.salt}-{stream}")
            session = await node.open_session(ModelRef(name=plan.model), config)
            began, times, text, output = time.perf_counter(), [], [], None
            turn = session.turn([Message("user", prompt(plan, stream, 0))], think="off", options=options)
            async with turn as parts:
                async for part in parts:
                    if isinstance(part, TextPart):
                        times.append(time.perf_counter())
                        text.append(part.text)
                    elif isinstance(part, EndPart):
                        output = part.usage.output
            words = len("".join(text).split())
            if not output == words == plan.tokens:
                raise BrokenAnswerError(f"{plan.tokens} tokens were asked for, {words} came and {output} were counted")
            return Read(client, stream, began, times)

    return await asyncio.gather(*(one(client, stream) for stream, client in enumerate(plan.clients)))


def main() -> None:
    """Command line."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    plan = msgspec.json.decode(sys.argv[1], type=Plan)
    began = time.process_time()
    try:
        reads = asyncio.run(streams_http(plan) if plan.url else streams_grpc(plan))
    except BrokenAnswerError as error:
        raise SystemExit(f"http_reader: {error}") from None
    sys.stdout.buffer.write(msgspec.json.encode(Found(reads, time.process_time() - began)))


if __name__ == "__main__":
    main()
