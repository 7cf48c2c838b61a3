"""Hazards of backends over the wire: a key that comes back, a stranger who redirects one, a request nobody closes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from modeld.errors import (
    AuthenticationError,
    BackendError,
    BackendNotFoundError,
    CancelledError,
    InvalidRequestError,
    NodeUnreachableError,
    NotSupportedError,
    PermissionDeniedError,
    RefusedError,
    StaleEpochError,
)
from modeld.node.backends import ConfiguredBackend, add_backend
from modeld.node.gateway import Gateway
from modeld.node.record import OwnerRecord
from modeld.transport.convert import to_bytes
from modeld.transport.grpc.client import RemoteNode
from modeld.transport.grpc.options import Access
from modeld.transport.grpc.repository_client import RemoteRepository
from modeld.transport.grpc.server import GrpcServer
from modeld.transport.methods import EPOCH_KEY
from modeld.transport.repository_methods import (
    REPOSITORY,
    REPOSITORY_METHODS,
    BackendRequest,
    ChatRequest,
    RegisterBackendRequest,
)
from modeld.transport.security import Listener
from modeld.types import EndPart, ImagePart, Message, PartsJoiner, TextPart, Tool
from support.echo_backend import KEY, MODELS, Echo, echo_registered

pytestmark = pytest.mark.anyio

ASK = [Message("user", "to be or not")]
TOKEN = "a-token-of-the-tests"
EPOCH = 7
CLOUD = ConfiguredBackend(name="cloud", type="echo", base_url="here")


@pytest.fixture
def echo() -> Iterator[type[Echo]]:
    with echo_registered() as made:
        yield made


@pytest.fixture
async def served(
    tmp_path: Path, echo: type[Echo], service: Any, record_of: Callable[..., OwnerRecord]
) -> AsyncIterator[tuple[str, str]]:
    """The endpoints of a node with a gateway: its socket, and TCP."""
    gateway = Gateway(tmp_path / "root")
    instance = record_of("").instance_id
    server = GrpcServer(service, instance_id=instance, epoch=EPOCH, on_shutdown=lambda: None, gateway=gateway)
    unix, tcp = await server.start(tmp_path / "s", Listener("127.0.0.1", 0, TOKEN))
    yield unix, tcp
    await server.stop()
    await gateway.aclose()


@pytest.fixture
async def remote(served: tuple[str, str], record_of: Callable[..., OwnerRecord]) -> AsyncIterator[RemoteRepository]:
    async with RemoteNode(served[0], record_of(served[0])) as node:
        yield node.repository


async def test_every_call_means_the_same_as_in_process(remote: RemoteRepository, echo: type[Echo]) -> None:
    written = await remote.register_backend(CLOUD, secret=KEY)
    assert (written.name, written.key) == ("cloud", "file:secrets/cloud")
    assert await remote.list_backends() == [written]
    models = await remote.list_models("cloud")
    assert [model.name for model in models] == list(MODELS)
    assert models[0].modified_at is not None
    assert models[0].evidence == {"context_length": "declared", "can_think": "named"}
    result = await remote.chat("cloud", "think", ASK, think="high", stop=["x"], temperature=0)
    assert (result.text, result.thinking, result.usage.cache_read, result.id) == ("tobeornot", "Hm.", 3, "a-1")
    sent = echo.calls[0].config
    assert (sent.think, sent.stop, sent.temperature, sent.top_p) == ("high", ("x",), 0, None)
    stream = await remote.stream("cloud", "think", ASK)
    joiner = PartsJoiner()
    async for part in stream:
        joiner.add(part)
    assert joiner.result() == result
    assert (await (await remote.stream("cloud", "think", ASK)).join()) == result
    embedded = await remote.embed("cloud", "echo", ["a", "bc"])
    assert embedded.vectors == ((0.1,), (0.1, 0.1))
    assert embedded.usage.input == 5
    assert await remote.prompt("cloud", "echo", "be brief", None, "hello there") == "hellothere"
    assert [message.role for message in echo.calls[-1].messages] == ["system", "user"]
    await remote.remove_backend("cloud")
    assert await remote.list_backends() == []


async def test_a_whole_conversation_crosses_unchanged(remote: RemoteRepository, echo: type[Echo]) -> None:
    from modeld.types import ChatConfig, FunctionCall, FunctionTool, ResponseFormat, ToolCall

    await remote.register_backend(CLOUD)
    tools = (Tool(FunctionTool("look", "looks", {"type": "object", "properties": {"n": {"type": "integer"}}})),)
    call = ToolCall(id="c", function=FunctionCall("look", '{"n": 1}'), provider_meta={"echo": {"sig": [1, 2.5, None]}})
    messages = (
        Message("system", "be brief"),
        Message("user", "see", images=(ImagePart(b"\x89PNG", "image/png"),)),
        Message("assistant", "", thinking="hm", tool_calls=(call,), provider_meta={"echo": {"x": "y"}}),
        Message("tool", "it is", tool_call_id="c", name="look"),
    )
    config = ChatConfig(tools=tools, tool_choice="look", response_format=ResponseFormat(schema={"a": 1}, strict=False))
    await remote.chat("cloud", "echo", messages, config)
    assert echo.calls[0].messages == messages
    assert echo.calls[0].config == config


async def test_errors_arrive_as_they_were_raised(remote: RemoteRepository) -> None:
    await remote.register_backend(CLOUD)
    with pytest.raises(RefusedError) as refused:
        await remote.chat("cloud", "refuse", ASK)
    assert refused.value.text == "tobeornot"
    with pytest.raises(BackendNotFoundError, match="cloud"):
        await remote.chat("other", "echo", ASK)
    for name in ("", "other"):
        for call in (remote.list_models(name), remote.stream(name, "echo", ASK), remote.remove_backend(name)):
            with pytest.raises((BackendNotFoundError, InvalidRequestError)):
                await call
    with pytest.raises(NotSupportedError):
        await remote.stream("cloud", "nothing", ASK)
    for wrong in ({"no_such": 1}, {"temperature": -1}, {"timeout": 0}):
        with pytest.raises(InvalidRequestError):
            await remote.chat("cloud", "echo", ASK, **wrong)
    with pytest.raises(InvalidRequestError):
        await remote.embed("cloud", "echo", "one text")
    stream = await remote.stream("cloud", "cut", ASK)
    assert await anext(stream) == TextPart("half")
    for _ in range(2):
        with pytest.raises(BackendError):
            await anext(stream)


async def test_a_client_that_leaves_is_no_error_of_the_nodes(
    remote: RemoteRepository, echo: type[Echo], eventually: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await remote.register_backend(CLOUD)
    for number in range(1, 6):
        async with await remote.stream("cloud", "endless", ASK) as stream:
            await anext(stream)
            # Long enough for the window to fill: the node waits to write.
            await asyncio.sleep(0.1)
        await eventually(lambda: echo.closed == number)  # noqa: B023 - awaited here
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


async def test_closing_a_stream_closes_the_request_behind_it(
    remote: RemoteRepository, echo: type[Echo], eventually: Any
) -> None:
    await remote.register_backend(CLOUD)
    async with await remote.stream("cloud", "endless", ASK) as stream:
        await anext(stream)
    await eventually(lambda: echo.closed == 1)
    assert [part async for part in stream] == []

    stream = await remote.stream("cloud", "slow", ASK)
    reader = asyncio.create_task(stream.join())
    await asyncio.sleep(0.05)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await eventually(lambda: echo.closed == 2)

    stream = await remote.stream("cloud", "slow", ASK)
    reader = asyncio.create_task(stream.join())
    await asyncio.sleep(0.05)
    await stream.aclose()
    with pytest.raises(CancelledError):
        await reader
    await eventually(lambda: echo.closed == 3)


@pytest.mark.parametrize("how", ["stream", "chat"])
async def test_giving_up_before_the_first_part_closes_the_request_too(
    remote: RemoteRepository, echo: type[Echo], eventually: Any, how: str
) -> None:
    await remote.register_backend(CLOUD)
    asking = asyncio.create_task(getattr(remote, how)("cloud", "silent", ASK))
    await eventually(lambda: len(echo.calls) == 1)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    await eventually(lambda: echo.closed == 1)


async def test_a_backend_is_read_only_as_fast_as_the_client_reads(
    remote: RemoteRepository, echo: type[Echo], eventually: Any
) -> None:
    """Parts of 1 kB: what lies between both ends is the windows of HTTP/2 and the socket's buffers."""
    await remote.register_backend(CLOUD)
    async with await remote.stream("cloud", "endless", ASK) as stream:
        await anext(stream)
        before = -1
        while before != echo.parts:
            before = echo.parts
            await asyncio.sleep(0.2)
        assert before < 2000, "2 MB were read for somebody who reads nothing"
        for _ in range(before + 100):
            await anext(stream)
        assert echo.parts > before


async def test_no_reply_no_error_and_no_log_holds_a_key(
    served: tuple[str, str], remote: RemoteRepository, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    replies: list[str] = [repr(RegisterBackendRequest(backend=CLOUD, secret=KEY))]
    replies.append(repr(await remote.register_backend(CLOUD, secret=KEY)))
    wrong = ConfiguredBackend(name="wrong", type="echo")
    for secret, backend in ((KEY, CLOUD), (f"{KEY} {KEY}", wrong), (KEY, ConfiguredBackend(name="x", type="no"))):
        with pytest.raises(InvalidRequestError) as caught:
            await remote.register_backend(backend, secret=secret)
        replies.append(f"{caught.value!r} {caught.value.details}")
    with pytest.raises(InvalidRequestError) as caught:
        await remote.register_backend(ConfiguredBackend(name="x", type="echo", key=KEY))
    replies.append(f"{caught.value!r} {caught.value.details}")
    await asyncio.to_thread(add_backend, tmp_path / "root", wrong, secret=f"{KEY}-x")
    with pytest.raises(AuthenticationError) as refused:
        await remote.chat("wrong", "echo", ASK)
    replies.append(f"{refused.value!r} {refused.value.details}")
    async with grpc.aio.insecure_channel(served[0]) as channel:
        for method in REPOSITORY_METHODS:
            if method.name in ("ListBackends", "ListModels", "Chat", "Prompt"):
                call = channel.unary_unary(method.path)
                request = to_bytes(ChatRequest(backend="cloud", model="echo", messages=tuple(ASK)))
                if method.request is not ChatRequest:
                    request = to_bytes(BackendRequest(backend="cloud"))
                try:
                    replies.append(repr(await call(request)))
                except grpc.aio.AioRpcError as error:
                    replies.append(repr(error))
    assert len(replies) == 11
    assert KEY not in "".join(replies) + caplog.text


async def test_over_tcp_backends_are_used_and_never_changed(
    served: tuple[str, str], remote: RemoteRepository, record_of: Callable[..., OwnerRecord]
) -> None:
    """Who has the token could else point a backend with the node's own key at a server of his."""
    await remote.register_backend(CLOUD, secret=KEY)
    async with RemoteNode(served[1], record_of(served[1]), access=Access(token=TOKEN)) as far:
        for call in (
            far.repository.register_backend(ConfiguredBackend(name="mine", type="echo", key="env:PATH")),
            far.repository.register_backend(CLOUD, secret="sk-mine", replace=True),
            far.repository.remove_backend("cloud"),
        ):
            with pytest.raises(PermissionDeniedError, match="unix socket"):
                await call
        assert [backend.name for backend in await far.repository.list_backends()] == ["cloud"]
        assert (await far.repository.chat("cloud", "echo", ASK)).text == "tobeornot"
        assert (await (await far.repository.stream("cloud", "echo", ASK)).join()).text == "tobeornot"
    async with grpc.aio.insecure_channel(served[1]) as channel:
        for method in REPOSITORY_METHODS:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                # One message, which goes with the headers: a write of its own would race with the refusal.
                await channel.unary_unary(method.path)(b"", metadata=((EPOCH_KEY, str(EPOCH)),))
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_what_changes_backends_is_fenced(
    served: tuple[str, str], remote: RemoteRepository, record_of: Callable[..., OwnerRecord]
) -> None:
    await remote.register_backend(CLOUD)
    async with RemoteNode(served[0], record_of(served[0], epoch=EPOCH - 1)) as late:
        for call in (
            late.repository.register_backend(ConfiguredBackend(name="x", type="echo")),
            late.repository.remove_backend("cloud"),
        ):
            with pytest.raises(StaleEpochError):
                await call
        assert (await late.repository.chat("cloud", "echo", ASK)).text == "tobeornot"
    assert [backend.name for backend in await remote.list_backends()] == ["cloud"]
    assert {method.name for method in REPOSITORY_METHODS if method.fenced} == {"RegisterBackend", "RemoveBackend"}


async def test_bytes_that_are_no_request_are_the_callers_fault(served: tuple[str, str]) -> None:
    async with grpc.aio.insecure_channel(served[0]) as channel:
        for method in REPOSITORY_METHODS:
            for data in (b"\xff\xff", b"\x0a\xff"):
                call = channel.unary_unary(method.path) if method.reply else channel.unary_stream(method.path)
                answer = call(data)
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await (answer if method.reply else answer.read())
                # An Empty takes every field as one of a newer version.
                assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_health_and_reflection_know_the_service(served: tuple[str, str]) -> None:
    async with grpc.aio.insecure_channel(served[0]) as channel:
        reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=REPOSITORY))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        call = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await call.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        assert REPOSITORY in {found.name for found in (await call.read()).list_services_response.service}
        await call.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=REPOSITORY))
        (file,) = (await call.read()).file_descriptor_response.file_descriptor_proto
        assert all(method.name.encode() in file for method in REPOSITORY_METHODS)
        await call.done_writing()


async def test_a_node_without_gateway_says_that_it_does_not_know_the_call(node: RemoteNode) -> None:
    with pytest.raises(NotSupportedError):
        await node.repository.list_backends()
    with pytest.raises(NotSupportedError):
        await node.repository.stream("cloud", "echo", ASK)


async def test_a_stream_whose_connection_is_closed_is_unreachable(remote: RemoteRepository) -> None:
    await remote.register_backend(CLOUD)
    stream = await remote.stream("cloud", "slow", ASK)
    reader = asyncio.create_task(stream.join())
    await asyncio.sleep(0.05)
    await remote._wire.aclose()
    with pytest.raises(NodeUnreachableError):
        await reader
    with pytest.raises(InvalidRequestError, match="closed"):
        await remote.stream("cloud", "echo", ASK)


async def test_the_end_is_the_last_part_and_stays_so(remote: RemoteRepository) -> None:
    await remote.register_backend(CLOUD)
    stream = await remote.stream("cloud", "echo", ASK)
    parts = [part async for part in stream]
    assert [type(part) for part in parts] == [TextPart] * 4 + [EndPart]
    assert [part async for part in stream] == []
    await stream.aclose()
    await stream.aclose()
