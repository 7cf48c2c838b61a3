"""Bytes that nobody meant: every method answers ``invalid_request``, and the node goes on."""

from __future__ import annotations

import asyncio
import random

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from google.rpc.status_pb2 import Status

from modeld.session import ModelRef
from modeld.transport.convert import to_bytes
from modeld.transport.errors import DETAILS_KEY
from modeld.transport.methods import METHODS, Empty, ModelRequest, TurnRequest
from modeld.types import FunctionCall, Message, ToolCall

pytestmark = pytest.mark.anyio

FRAMES = 10_000
# Empty requests take any bytes that parse; a node that stops is another test.
METHODS_HERE = [method for method in METHODS if method.name != "Shutdown"]


def seeds(handle) -> list[bytes]:
    calls = (ToolCall("1", FunctionCall("f", '{"a": 1}')),)
    messages = (Message("user", "hello"), Message("assistant", tool_calls=calls, provider_meta={"a": [1]}))
    return [
        to_bytes(TurnRequest(handle=handle, messages=messages, request_id="r")),
        to_bytes(ModelRequest(ref=ModelRef("tiny"))),
        b"",
    ]


def frame(rng: random.Random, valid: list[bytes]) -> bytes:
    if rng.random() < 0.5:
        return rng.randbytes(rng.choice((1, 3, 10, 40, 200)))
    data = bytearray(rng.choice(valid))
    for _ in range(rng.randint(1, 4)):
        if data:
            data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data[: rng.randint(0, len(data))] if rng.random() < 0.3 else data)


async def code_of(channel, method, data) -> str:
    try:
        if method.reply:
            await channel.unary_unary(method.path)(data, timeout=20)
        else:
            async for _ in channel.unary_stream(method.path)(data, timeout=20):
                pass
    except grpc.aio.AioRpcError as error:
        for key, value in error.trailing_metadata():
            if key == DETAILS_KEY:
                info = ErrorInfo()
                assert Status.FromString(value).details[0].Unpack(info)
                return info.reason
        return error.code().name
    return "ok"


async def test_ten_thousand_random_frames(server, service, tmp_path, caplog):
    handle = (await service.open_session(ModelRef("tiny"))).handle
    valid = seeds(handle)
    rng = random.Random(20_240_612)
    codes: dict[str, int] = {}
    async with grpc.aio.insecure_channel(f"unix:{tmp_path / 's'}") as channel:
        for _ in range(FRAMES // 50):
            batch = [(rng.choice(METHODS_HERE), frame(rng, valid)) for _ in range(50)]
            for code in await asyncio.gather(*(code_of(channel, method, data) for method, data in batch)):
                codes[code] = codes.get(code, 0) + 1
        assert await code_of(channel, METHODS[1], to_bytes(Empty())) == "ok"
    # model_not_found: a frame may name one. The rest either parses or is refused.
    assert set(codes) <= {"ok", "invalid_request", "model_not_found"}, codes
    assert codes["invalid_request"] > FRAMES / 3
    assert not caplog.records


async def test_a_message_beyond_the_bound_is_refused(server, tmp_path):
    options = [("grpc.max_send_message_length", -1)]
    async with grpc.aio.insecure_channel(f"unix:{tmp_path / 's'}", options=options) as channel:
        assert await code_of(channel, METHODS[1], b"\0" * (65 * 2**20)) == "RESOURCE_EXHAUSTED"
        assert await code_of(channel, METHODS[1], b"") == "ok"


async def test_json_as_deep_as_a_stack_is_refused(server, service, tmp_path):
    handle = (await service.open_session(ModelRef("tiny"))).handle
    request = to_bytes(TurnRequest(handle=handle, messages=(Message("user", "", provider_meta={"a": "@" * 400_000}),)))
    deep = request.replace(b'{"a":"' + b"@" * 400_000 + b'"}', b'{"a":' + b"[" * 400_003)
    assert deep != request
    async with grpc.aio.insecure_channel(f"unix:{tmp_path / 's'}") as channel:
        assert await code_of(channel, next(m for m in METHODS if m.name == "Turn"), deep) == "invalid_request"
