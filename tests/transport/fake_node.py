"""A node without an engine: the whole service in memory, and, run as a program, a process that owns a data root.

``python fake_node.py DATA_ROOT [--endless]``: acquire, listen, publish, serve until ``Shutdown``. Exit code 3: it is
somebody else's. ``--endless``: streams send one part and wait to be cancelled.
"""

from __future__ import annotations

import asyncio
import struct
import sys
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from modeld.errors import ModelNotFoundError, OwnerHeldError, StaleEpochError
from modeld.node.owner import OwnerLease
from modeld.node.record import socket_path
from modeld.session import (
    AuditReport,
    ContextReport,
    EmbeddedItem,
    Embeddings,
    InstalledModel,
    ModelDescription,
    ModelRef,
    NodeStatus,
    Plan,
    PrefixStatus,
    Ranking,
    RenderedPrompt,
    SessionConfig,
    SessionHandle,
    SessionInfo,
    SnapshotInfo,
    SuffixStatus,
    TokenList,
)
from modeld.session.text_values import embed_inputs, rank_documents
from modeld.types import (
    ChatResult,
    DecodeOptions,
    EndPart,
    Message,
    PartsJoiner,
    Receipt,
    StreamPart,
    TextPart,
    Tool,
    Usage,
)

Script = Callable[["FakeStream"], AsyncIterator[StreamPart]]


class FakeStream:
    """Parts of the service's script. After ``cancel()`` its iterator ends without an end part."""

    def __init__(self, service: FakeService, prompt: str) -> None:
        self.service = service
        self.prompt = prompt
        self.cancelled = asyncio.Event()
        self.sent = 0

    async def __aiter__(self) -> AsyncIterator[StreamPart]:
        async for part in self.service.script(self):
            if self.cancelled.is_set():
                return
            self.sent += 1
            yield part

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.aclose()

    async def join(self) -> ChatResult:
        joiner = PartsJoiner()
        async for part in self:
            joiner.add(part)
        return joiner.result()

    async def cancel(self) -> EndPart:
        self.cancelled.set()
        return self.end("cancelled")

    async def aclose(self) -> None:
        self.service.closed.append(self)
        self.service.closing.set()

    def end(self, reason: str = "stop") -> EndPart:
        receipt = Receipt(prefilled=3, resident=3, window=64, generation=self.service.generation)
        return EndPart(finish_reason=reason, usage=Usage(input=3, output=self.sent), receipt=receipt)


class BatchingStream(FakeStream):
    """A stream that has all parts at once."""

    async def batches(self) -> AsyncIterator[list[StreamPart]]:
        yield [part async for part in self]


async def echo(stream: FakeStream) -> AsyncIterator[StreamPart]:
    for word in stream.prompt.split():
        yield TextPart(word)
    yield stream.end()


async def until_cancelled(stream: FakeStream) -> AsyncIterator[StreamPart]:
    yield TextPart("first")
    await stream.cancelled.wait()


async def endless(stream: FakeStream) -> AsyncIterator[StreamPart]:
    while True:
        yield TextPart("x" * 1000)
        await asyncio.sleep(0)


class FakeSession:
    def __init__(self, service: FakeService, handle: SessionHandle) -> None:
        self.service = service
        self._handle = handle

    @property
    def handle(self) -> SessionHandle:
        return self._handle

    def _receipt(self, prefilled: int) -> Receipt:
        return Receipt(prefilled=prefilled, generation=self.service.generation)

    async def ensure_prefix(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> PrefixStatus:
        self.service.answer()
        return PrefixStatus(
            receipt=self._receipt(len(messages)),
            prefix_tokens=len(messages),
            available=64 - len(tools),
            prefix_token_hash="hash",
            manifest_digest="digest",
        )

    def _require_tape(self) -> None:
        """No session outlives this node."""
        before, now = self._handle.epoch, self.service.epoch
        if now and before != now:
            raise StaleEpochError("its tape went with its owner", epoch=before, current=now)

    async def prefill_suffix(
        self,
        messages: Sequence[Message],
        *,
        think: str = "auto",
        shift: bool | None = None,
        truncate: bool | None = None,
    ) -> SuffixStatus:
        self._require_tape()
        self.service.answer()
        self.service.overflows.append((shift, truncate))
        return SuffixStatus(
            receipt=self._receipt(len(messages)),
            prefix_tokens=0,
            suffix_tokens=len(messages),
            available=64,
            manifest_digest=think,
        )

    def decode(self, options: DecodeOptions | None = None) -> FakeStream:
        self._require_tape()
        self.service.answer()
        return self.service.stream(f"decode {options.max_tokens if options else 0}")

    def turn(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        think: str = "auto",
        options: DecodeOptions | None = None,
        shift: bool | None = None,
        truncate: bool | None = None,
    ) -> FakeStream:
        self.service.answer()
        self.service.overflows.append((shift, truncate))
        return self.service.stream(" ".join(message.content for message in messages))

    async def explain(self) -> ContextReport:
        self.service.answer()
        handle = self._handle
        return ContextReport(
            workspace=handle.workspace,
            name=handle.name,
            model=handle.ref.name,
            generation=handle.generation,
            resident=0,
            prefix_tokens=0,
            window=handle.window,
            available=64,
            tape_hash="",
        )

    async def snapshot(self) -> SnapshotInfo:
        self._require_tape()
        self.service.answer()
        return SnapshotInfo(id="s1", tokens=3, size=10, manifest_digest="", tape_hash="")

    async def restore(self, snapshot_id: str) -> PrefixStatus:
        return await self.ensure_prefix((Message("system", snapshot_id),))

    async def fork(self, name: str, *, workspace: str = "") -> FakeSession:
        self._require_tape()
        self.service.answer()
        return FakeSession(
            self.service,
            msgspec.structs.replace(self._handle, name=name, workspace=workspace or self._handle.workspace),
        )

    async def close(self) -> None:
        pass


class FakeService:
    """Tests set ``script``, ``failure``, ``generation`` and ``batching``, and read ``streams`` and ``closed``.

    ``overflows``: what the calls said of a full window. ``asked``: what the calls without a session were about.
    With ``epoch`` set it refuses to go on from what a handle of another owner left behind.
    """

    def __init__(self) -> None:
        self.script: Script = echo
        self.failure: Exception | None = None
        self.generation = 1
        self.epoch = 0
        self.batching = False
        self.hang = False
        self.streams: list[FakeStream] = []
        self.overflows: list[tuple[bool | None, bool | None]] = []
        self.closed: list[FakeStream] = []
        self.closing = asyncio.Event()
        self.asked: list[object] = []

    def answer(self) -> None:
        if self.failure is not None:
            raise self.failure

    def stream(self, prompt: str) -> FakeStream:
        made = (BatchingStream if self.batching else FakeStream)(self, prompt)
        self.streams.append(made)
        return made

    async def open_session(self, ref: ModelRef | str, config: SessionConfig | None = None) -> FakeSession:
        self.answer()
        assert isinstance(ref, ModelRef)
        if ref.name == "missing":
            raise ModelNotFoundError("no model is called missing; try `modeld models`", name="missing")
        config = config or SessionConfig()
        handle = SessionHandle(
            workspace=config.workspace, name=config.name, ref=ref, generation=self.generation, window=64, epoch=1
        )
        return FakeSession(self, handle)

    def attach(self, handle: SessionHandle) -> FakeSession:
        return FakeSession(self, handle)

    async def describe(self, ref: ModelRef | str, config: SessionConfig | None = None) -> ModelDescription:
        self.answer()
        assert isinstance(ref, ModelRef)
        numbers = dict.fromkeys(Plan.__struct_fields__[1:4] + Plan.__struct_fields__[6:13], 1)
        plan = Plan(fits=True, kv_bytes_per_token=1, kv_type="f16", **numbers)
        return ModelDescription(name=ref.name, type="fake", digest="d", path="/m", size=1, plan=plan)

    async def models(self) -> list[InstalledModel]:
        self.answer()
        return [InstalledModel(name="tiny", type="fake", path="/m", size=1, bundled=True)]

    async def load(
        self, ref: ModelRef | str, config: SessionConfig | None = None, *, generation: int = 0
    ) -> NodeStatus:
        self.answer()
        return await self.status()

    async def unload(self, *, generation: int = 0) -> NodeStatus:
        self.answer()
        return await self.status()

    async def embed(
        self, ref: ModelRef | str, inputs: Iterable[str], *, dimensions: int | None = None, **_: object
    ) -> Embeddings:
        self.answer()
        found = embed_inputs(inputs)
        self.asked.append(found)
        size = dimensions or 2
        items = tuple(EmbeddedItem(tokens=3, used=2, chunks=2) for _ in found)
        data = struct.pack(f"<{size * len(found)}f", *(0.5 for _ in range(size * len(found))))
        return Embeddings(
            model="m", data=data, dimensions=size, items=items, usage=Usage(input=2), pooling="cls", normalized=False
        )

    async def rerank(self, ref: ModelRef | str, query: str, documents: Iterable[str], **_: object) -> Ranking:
        self.answer()
        found = rank_documents(query, documents)
        self.asked.append(found)
        return Ranking(model="m", scores=(0.5,), order=(0,), items=(), usage=Usage())

    async def tokenize(self, ref: ModelRef | str, text: str, *, add_special: bool = True) -> TokenList:
        self.answer()
        self.asked.append(text)
        return TokenList(model="m", tokens=(1, int(add_special)))

    async def detokenize(self, ref: ModelRef | str, tokens: Sequence[int]) -> bytes:
        self.answer()
        self.asked.append(tokens)
        return b"\xff"

    async def render(self, ref: ModelRef | str, messages: Sequence[Message], **_: object) -> RenderedPrompt:
        self.answer()
        self.asked.append(messages)
        return RenderedPrompt(model="m", text="t", tokens=(1,), template="default")

    async def status(self) -> NodeStatus:
        self.answer()
        if self.hang:
            await asyncio.Event().wait()
        return NodeStatus(
            instance_id="i",
            epoch=1,
            pid=1,
            version="1",
            data_root="/",
            endpoints=("unix:/x",),
            state="ready",
            generation=self.generation,
            uptime=1.5,
            idle_ttl=0.0,
        )

    async def sessions(self) -> list[SessionInfo]:
        self.answer()
        return []

    async def audit(self) -> AuditReport:
        self.answer()
        return AuditReport()

    async def remove_session(self, name: str, *, workspace: str = "default", model: str = "") -> None:
        self.answer()

    async def snapshots(self) -> list[SnapshotInfo]:
        self.answer()
        return []

    async def remove_snapshot(self, snapshot_id: str) -> None:
        self.answer()

    async def export_snapshot(self, snapshot_id: str) -> AsyncGenerator[bytes, None]:
        self.answer()
        yield snapshot_id.encode()

    async def import_snapshot(self, data: AsyncIterable[bytes], *, snapshot_id: str = "") -> SnapshotInfo:
        self.answer()
        size = sum([len(piece) async for piece in data])
        return SnapshotInfo(id="s1", tokens=3, size=size, manifest_digest="", tape_hash="")


async def main(root: Path) -> int:
    from modeld.transport.grpc.server import GrpcServer

    try:
        lease = OwnerLease.acquire(root, backend="fake", serves=("fake",))
    except OwnerHeldError:
        return 3
    ended = asyncio.Event()
    service = FakeService()
    server = GrpcServer(service, instance_id=lease.record.instance_id, epoch=lease.record.epoch, on_shutdown=ended.set)
    lease.publish(endpoints=await server.start(socket_path(root)))
    if "--endless" in sys.argv:
        service.script = until_cancelled
    await ended.wait()
    await server.stop(1)
    lease.release()
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(Path(sys.argv[1]))))
