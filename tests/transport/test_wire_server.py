"""Who may talk to a node, and where it listens: sockets, epochs, identity, the standard services."""

from __future__ import annotations

import asyncio
import os
import socket
import stat

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from modeld.errors import (
    InvalidRequestError,
    ModelNotFoundError,
    NodeError,
    NodeUnreachableError,
    StaleEpochError,
    TLSRequiredError,
)
from modeld.session import ModelRef, SessionConfig
from modeld.transport import methods
from modeld.transport.convert import from_bytes, to_bytes
from modeld.transport.grpc.client import RemoteNode
from modeld.transport.grpc.options import Access
from modeld.transport.grpc.server import GrpcServer
from modeld.transport.methods import EPOCH_KEY, METHODS, HelloReply, HelloRequest
from modeld.transport.security import Listener
from modeld.types import Message

TOKEN = "a-token-of-the-tests"

pytestmark = pytest.mark.anyio


def another(service, instance_id="0" * 32, epoch=1) -> GrpcServer:
    return GrpcServer(service, instance_id=instance_id, epoch=epoch, on_shutdown=lambda: None)


async def test_the_socket_is_ours_alone_whatever_the_umask(service, tmp_path):
    old = os.umask(0)
    try:
        server = another(service)
        endpoints = await server.start(tmp_path / "s")
    finally:
        os.umask(old)
    assert endpoints == (f"unix:{tmp_path / 's'}",)
    mode = os.lstat(tmp_path / "s").st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600
    await server.stop()
    assert os.listdir(tmp_path) == []


async def test_the_socket_of_a_dead_owner_is_replaced(service, tmp_path, record_of):
    path = tmp_path / "s"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    server = another(service)
    await server.start(path)
    async with RemoteNode(f"unix:{path}", record_of(f"unix:{path}", instance_id="0" * 32, epoch=1)) as node:
        await node.prove(5)
    await server.stop()


async def test_a_server_that_stops_leaves_its_successors_socket(service, tmp_path, record_of):
    path = tmp_path / "s"
    first, second = another(service), another(service, epoch=2)
    await first.start(path)
    await second.start(path)
    await first.stop()
    await first.stop()
    async with RemoteNode(f"unix:{path}", record_of(f"unix:{path}", instance_id="0" * 32, epoch=2)) as node:
        await node.prove(5)
    await second.stop()
    assert not path.exists()


@pytest.mark.parametrize("name", ["with space", "per%20cent", "ümlaut", "que?ry#x"])
async def test_any_folder_can_be_dialed(service, tmp_path, record_of, name):
    path = tmp_path / name / "s"
    path.parent.mkdir()
    server = another(service)
    (endpoint,) = await server.start(path)
    async with RemoteNode(endpoint, record_of(endpoint, instance_id="0" * 32, epoch=1)) as node:
        await node.prove(5)
    await server.stop()


async def test_a_file_in_the_way_is_not_removed(service, tmp_path):
    (tmp_path / "s").write_text("precious")
    with pytest.raises(NodeError):
        await another(service).start(tmp_path / "s")
    assert (tmp_path / "s").read_text() == "precious"
    assert os.listdir(tmp_path) == ["s"]


async def test_a_path_too_long_for_a_socket_is_refused(service, tmp_path):
    with pytest.raises(InvalidRequestError):
        await another(service).start(tmp_path / ("x" * 120))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", ""])
async def test_tcp_beyond_loopback_is_refused(service, tmp_path, host):
    with pytest.raises(TLSRequiredError):
        await another(service).start(tmp_path / "s", Listener(host, 0, TOKEN))
    assert os.listdir(tmp_path) == []


async def test_tcp_on_loopback_wants_an_epoch(service, tmp_path, record_of):
    server = another(service)
    _, endpoint = await server.start(tmp_path / "s", Listener("127.0.0.1", 0, TOKEN))
    access = Access(token=TOKEN)
    async with RemoteNode(endpoint, record_of(endpoint, instance_id="0" * 32, epoch=1), access=access) as node:
        await node.prove(5)
        await node.unload()
    async with grpc.aio.insecure_channel(endpoint) as channel:
        assert await channel.unary_unary("/modeld.v1.Node/Status")(b"", metadata=access.metadata)
        with pytest.raises(grpc.aio.AioRpcError, match=EPOCH_KEY):
            await channel.unary_unary("/modeld.v1.Node/Unload")(b"", metadata=access.metadata)
    taken = endpoint.rpartition(":")[2]
    with pytest.raises(InvalidRequestError):
        await another(service).start(tmp_path / "t", Listener("127.0.0.1", int(taken), TOKEN))
    await server.stop()


async def test_a_call_for_another_owner_changes_nothing(server, service, tmp_path, record_of):
    endpoint = f"unix:{tmp_path / 's'}"
    async with RemoteNode(endpoint, record_of(endpoint, epoch=6)) as node:
        session = node.attach((await service.open_session(ModelRef("tiny"))).handle)
        messages = [Message("user", "x")]
        await node.status()
        await session.explain()
        for call in (
            node.unload,
            node.shutdown,
            lambda: node.load("tiny"),
            lambda: node.open_session("tiny"),
            lambda: session.ensure_prefix(messages),
            lambda: session.prefill_suffix(messages),
            lambda: session.restore("s"),
            lambda: session.fork("f"),
            session.snapshot,
            session.turn(messages).join,
            session.decode().join,
        ):
            with pytest.raises(StaleEpochError) as caught:
                await call()
            assert (caught.value.epoch, caught.value.current) == (6, 7)
    assert service.streams == []
    assert server.shutdowns == []


@pytest.mark.parametrize("epoch", ["", "x", "-1", "7.0", "9" * 30])
async def test_an_epoch_that_is_no_number_is_refused(server, tmp_path, epoch):
    async with grpc.aio.insecure_channel(f"unix:{tmp_path / 's'}") as channel:
        unload = channel.unary_unary("/modeld.v1.Node/Unload")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unload(b"", metadata=((EPOCH_KEY, epoch),))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert await unload(b"")


async def test_a_proof_is_of_instance_and_epoch(server, tmp_path, record_of):
    endpoint = f"unix:{tmp_path / 's'}"
    for wrong in ({"instance_id": "f" * 32}, {"epoch": 8}):
        async with RemoteNode(endpoint, record_of(endpoint, **wrong)) as node:
            with pytest.raises(NodeUnreachableError) as caught:
                await node.prove(5)
            assert caught.value.endpoint == endpoint
    async with RemoteNode(endpoint, record_of(endpoint)) as node:
        await node.prove(5)


async def test_the_instance_is_proved_without_being_told(server, tmp_path):
    async with grpc.aio.insecure_channel(f"unix:{tmp_path / 's'}") as channel:
        hello = channel.unary_unary("/modeld.v1.Node/Hello")
        replies = [await hello(to_bytes(HelloRequest(nonce=bytes([n]) * 16))) for n in (1, 2)]
        assert not any(b"0" * 31 in reply for reply in replies)
        assert len({from_bytes(HelloReply, reply).proof for reply in replies}) == 2
        with pytest.raises(grpc.aio.AioRpcError):
            await hello(to_bytes(HelloRequest(nonce=b"short")))


async def test_a_node_of_another_protocol_is_named(server, tmp_path, record_of, monkeypatch):
    monkeypatch.setattr("modeld.transport.grpc.client.PROTOCOL", methods.PROTOCOL + 1)
    endpoint = f"unix:{tmp_path / 's'}"
    async with RemoteNode(endpoint, record_of(endpoint)) as node:
        with pytest.raises(NodeUnreachableError, match="protocol"):
            await node.prove(5)


async def test_health_answers_and_says_goodbye(server, tmp_path):
    async with grpc.aio.insecure_channel(f"unix:{tmp_path / 's'}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", methods.SERVICE):
            reply = await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        watch = stub.Watch(health_pb2.HealthCheckRequest(service=methods.SERVICE))
        await watch.read()
        stopping = asyncio.create_task(server.stop(0.5))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        watch.cancel()
        await stopping


async def test_reflection_lists_the_service_and_its_methods(server, tmp_path):
    async with grpc.aio.insecure_channel(f"unix:{tmp_path / 's'}") as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = stub.ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        listed = {service.name for service in (await call.read()).list_services_response.service}
        assert {methods.SERVICE, "grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"} <= listed
        await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=methods.SERVICE))
        (file,) = (await call.read()).file_descriptor_response.file_descriptor_proto
        assert all(method.name.encode() in file for method in METHODS)
        await call.done_writing()


async def test_shutdown_is_answered_before_it_happens(server, node, eventually):
    await node.shutdown()
    await eventually(lambda: server.shutdowns == [1])


async def test_a_server_that_goes_away_is_unreachable_not_cancelled(server, node, service):
    service.hang = True
    call = asyncio.create_task(node.status())
    await asyncio.sleep(0.05)
    await server.stop(0)
    with pytest.raises(NodeUnreachableError):
        await call
    with pytest.raises(NodeUnreachableError):
        await node.describe("tiny")


async def test_every_plain_call_comes_back(node, service):
    assert (await node.status()).state == "ready"
    assert [model.name for model in await node.models()] == ["tiny"]
    assert await node.sessions() == []
    assert (await node.load("tiny")).uptime == 1.5
    assert (await node.describe(ModelRef("tiny", type="fake"))).plan.fits
    session = await node.open_session("tiny", SessionConfig(workspace="w", name="n"))
    assert (session.handle.workspace, session.handle.name) == ("w", "n")
    assert (await session.ensure_prefix([Message("system", "s")])).receipt.prefilled == 1
    assert (await session.prefill_suffix([], think="high")).manifest_digest == "high"
    assert (await session.snapshot()).id == "s1"
    assert (await session.restore("s1")).prefix_tokens == 1
    assert (await session.fork("copy")).handle.name == "copy"
    with pytest.raises(ModelNotFoundError) as caught:
        await node.open_session("missing")
    assert caught.value.name == "missing"


async def test_what_a_call_says_of_a_full_window_arrives_as_it_was_said(node, service):
    session = await node.open_session("tiny", SessionConfig())
    said = [{}, {"shift": True}, {"truncate": True}, {"shift": False, "truncate": False}]
    for some in said:
        await session.prefill_suffix([], **some)
        await session.turn([Message("user", "a")], **some).join()
    assert service.overflows == [(some.get("shift"), some.get("truncate")) for some in said for _ in range(2)]


async def test_a_closed_connection_says_so(node):
    await node.aclose()
    await node.aclose()
    with pytest.raises(InvalidRequestError, match="closed"):
        await node.status()


async def test_an_answer_that_is_no_answer_is_the_nodes_fault(server, node, monkeypatch):
    monkeypatch.setattr("modeld.transport.grpc.server.to_bytes", lambda value: b"\xff\xff")
    with pytest.raises(NodeUnreachableError, match="understood"):
        await node.status()
