"""Hazard: a call that was meant for another owner, or another residency, changes something."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import msgspec
import pytest

from modeld.errors import StaleEpochError, StaleGenerationError
from modeld.node.config import NodeConfig
from modeld.node.node import Node
from modeld.session import EmbedInput, ModelRef, SessionConfig, SessionHandle
from modeld.transport.convert import to_bytes
from modeld.transport.errors import from_rpc
from modeld.transport.methods import (
    EPOCH_KEY,
    METHODS,
    CancelRequest,
    DecodeRequest,
    DetokenizeRequest,
    Empty,
    EnsurePrefixRequest,
    ForkRequest,
    HelloRequest,
    LoadRequest,
    Method,
    ModelRequest,
    PrefillSuffixRequest,
    RemoveSessionRequest,
    RenderRequest,
    RerankRequest,
    RestoreRequest,
    SessionRequest,
    SnapshotChunk,
    SnapshotRequest,
    TokenizeRequest,
    TurnRequest,
    UnloadRequest,
    VectorsRequest,
)
from modeld.types import DecodeOptions, Message

pytestmark = pytest.mark.anyio

EPOCH = 7  # of the server in conftest.py
HANDLE = SessionHandle(workspace="w", name="n", ref=ModelRef("tiny"), generation=1, epoch=EPOCH)
FENCED = {
    "Load": True,
    "Unload": True,
    "OpenSession": True,
    "EnsurePrefix": True,
    "PrefillSuffix": True,
    "Decode": True,
    "Turn": True,
    "Cancel": True,
    "Snapshot": True,
    "Restore": True,
    "Fork": True,
    "RemoveSession": True,
    "RemoveSnapshot": True,
    "ImportSnapshot": True,
    "Shutdown": True,
    "Hello": False,
    "Status": False,
    "ListModels": False,
    "ListSessions": False,
    "Audit": False,
    "Describe": False,
    "Embed": False,
    "Rerank": False,
    "Tokenize": False,
    "Detokenize": False,
    "Render": False,
    "Explain": False,
    "ListSnapshots": False,
    "ExportSnapshot": False,
}
REQUESTS = {
    Empty: Empty(),
    HelloRequest: HelloRequest(nonce=b"0" * 16),
    LoadRequest: LoadRequest(ref=ModelRef("tiny")),
    UnloadRequest: UnloadRequest(),
    ModelRequest: ModelRequest(ref=ModelRef("tiny")),
    VectorsRequest: VectorsRequest(ref=ModelRef("tiny"), inputs=(EmbedInput("text"),)),
    RerankRequest: RerankRequest(ref=ModelRef("tiny"), query="q", documents=("d",)),
    TokenizeRequest: TokenizeRequest(ref=ModelRef("tiny"), text="text"),
    DetokenizeRequest: DetokenizeRequest(ref=ModelRef("tiny"), tokens=(1,)),
    RenderRequest: RenderRequest(ref=ModelRef("tiny"), messages=(Message("user", "hi"),)),
    EnsurePrefixRequest: EnsurePrefixRequest(handle=HANDLE),
    PrefillSuffixRequest: PrefillSuffixRequest(handle=HANDLE),
    DecodeRequest: DecodeRequest(handle=HANDLE),
    TurnRequest: TurnRequest(handle=HANDLE),
    CancelRequest: CancelRequest(request_id="x"),
    SessionRequest: SessionRequest(handle=HANDLE),
    RestoreRequest: RestoreRequest(handle=HANDLE, snapshot_id="s"),
    ForkRequest: ForkRequest(handle=HANDLE, name="f"),
    RemoveSessionRequest: RemoveSessionRequest(name="n"),
    SnapshotRequest: SnapshotRequest(snapshot_id="s"),
    SnapshotChunk: SnapshotChunk(data=b"piece"),
}


async def ask(channel: grpc.aio.Channel, method: Method, epoch: int) -> None:
    request, metadata = to_bytes(REQUESTS[method.request]), ((EPOCH_KEY, str(epoch)),)
    if method.chunks == "request":
        await channel.stream_unary(method.path)(iter([request]), metadata=metadata)
        return
    if method.reply and not method.chunks:
        await channel.unary_unary(method.path)(request, metadata=metadata)
        return
    async for _ in channel.unary_stream(method.path)(request, metadata=metadata):
        pass


def test_the_table_names_every_method() -> None:
    assert {method.name: method.fenced for method in METHODS} == FENCED


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
@pytest.mark.parametrize("epoch", [EPOCH - 1, EPOCH, EPOCH + 1])
async def test_a_changing_call_of_another_epoch_is_refused(server, service, tmp_path, method, epoch) -> None:
    async with grpc.aio.insecure_channel(f"unix:{tmp_path / 's'}") as channel:
        if epoch == EPOCH or not FENCED[method.name]:
            await ask(channel, method, epoch)
            return
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(channel, method, epoch)
    error = from_rpc(caught.value, endpoint="", pid=0)
    assert isinstance(error, StaleEpochError)
    assert (error.epoch, error.current) == (epoch, EPOCH)
    assert service.streams == []
    assert server.shutdowns == []


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    """A real node, of epoch 5, with the fake engine."""
    made = Node(NodeConfig(data_root=tmp_path, allow_fake=True), instance_id="1" * 32, epoch=5)
    yield made
    await made.aclose()


HELLO = [Message("user", "hello")]
GREEDY = DecodeOptions(temperature=0)


async def test_a_handle_of_an_earlier_owner_is_rebound_once(node: Node) -> None:
    opened = await node.open_session("fake", SessionConfig(name="n"))
    # Another owner's generation says nothing here, however large.
    old = msgspec.structs.replace(opened.handle, epoch=4, generation=9)
    result = await node.attach(old).turn(HELLO, options=GREEDY).join()
    assert result.receipt.rebound
    assert result.receipt.generation == opened.handle.generation
    assert not (await opened.turn(HELLO, options=GREEDY).join()).receipt.rebound


async def test_a_handle_that_a_later_owner_served_is_refused(node: Node) -> None:
    handle = (await node.open_session("fake")).handle
    late = node.attach(msgspec.structs.replace(handle, epoch=6))
    for work in (late.ensure_prefix(HELLO), late.turn(HELLO).join(), late.snapshot(), late.fork("f"), late.explain()):
        with pytest.raises(StaleEpochError) as caught:
            await work
        assert (caught.value.epoch, caught.value.current) == (6, 5)
    assert {session.name for session in await node.sessions()} == {"default"}


async def test_a_generation_that_never_was_is_refused(node: Node) -> None:
    handle = (await node.open_session("fake")).handle
    with pytest.raises(StaleGenerationError) as caught:
        await node.attach(msgspec.structs.replace(handle, generation=2)).turn(HELLO).join()
    assert (caught.value.generation, caught.value.current) == (2, 1)


async def test_a_handle_of_another_model_file_is_refused(node: Node) -> None:
    handle = (await node.open_session("fake")).handle
    other = msgspec.structs.replace(handle.ref, digest="0" * 64)
    with pytest.raises(Exception) as caught:
        await node.attach(msgspec.structs.replace(handle, epoch=4, ref=other)).turn(HELLO).join()
    assert getattr(caught.value, "code", "") == "digest_mismatch"
