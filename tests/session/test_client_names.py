"""Hazard: the engine takes two clients for one, or one for two, and their turns are wrong."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from modeld.engine.protocol import Decode, Prefix, Request, Suffix, Turn, encode_request
from modeld.node import engine_process
from modeld.transport.grpc.callers import introduction
from modeld.types import Message
from support.engines import ENGINES

from .conftest import World, make_world

pytestmark = pytest.mark.anyio


async def asked_by(world: World) -> set[str]:
    """Make each call that computes; the clients that the engine was told of."""
    told: list[Request] = []

    def spied(request: Request) -> bytes:
        told.append(request)
        return encode_request(request)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine_process, "encode_request", spied)
        session = await world.open()
        await session.ensure_prefix([Message("system", "s")])
        await session.prefill_suffix([Message("user", "hi")])
        await session.decode().join()
        await session.turn([Message("user", "hi")]).join()
    computing = [request for request in told if isinstance(request, Prefix | Suffix | Decode | Turn)]
    assert len(computing) == 4
    return {request.client for request in computing}


@pytest.mark.parametrize("way", ["in-process", "unix", "tcp"])
async def test_engine_hears_who_calls(tmp_path: Path, way: str) -> None:
    async with AsyncExitStack() as stack:
        world = await make_world(stack, ENGINES["fake"], way, tmp_path)
        (client,) = await asked_by(world)
    if way == "in-process":
        assert client == ""
    else:
        assert client.endswith(introduction()[1])
        assert str(os.getpid()) in client.split()
