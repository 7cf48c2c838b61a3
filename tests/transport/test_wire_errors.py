"""Errors across the wire: class, message and details of every kind, and nothing of the inside."""

from __future__ import annotations

import json
import logging

import grpc
import pytest

from modeld import errors
from modeld.errors import CapacityError, ModeldError, NodeUnreachableError, NotSupportedError, error_from_code
from modeld.transport.errors import DETAILS_KEY, STATUS, from_rpc, to_status


def tree(cls: type[ModeldError]) -> list[type[ModeldError]]:
    return [cls, *(found for child in cls.__subclasses__() for found in tree(child))]


CLASSES = sorted(set(tree(ModeldError)), key=lambda cls: cls.code)

DETAILS = {
    "pid": 12,
    "endpoint": "unix:/ä",
    "served": ["llama", "none"],
    "nested": {"a": [1, 2.5, None, True]},
    "epoch": 3,
    "field": "kv_type",
    "id": "x",
}


def rpc_error(code: grpc.StatusCode, *metadata: tuple[str, bytes]) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*metadata), details="why")


def test_every_class_has_a_status() -> None:
    assert set(STATUS) == {cls.code for cls in CLASSES}
    assert all(name in grpc.StatusCode.__members__ for name in STATUS.values())
    assert "OK" not in STATUS.values()


@pytest.mark.anyio
async def test_every_class_crosses_with_its_fields(node, service) -> None:
    session = await node.open_session("tiny")
    for cls in CLASSES:
        service.failure = cls(f"what happened to {cls.code}: ä €", **DETAILS)
        for call in (node.status, session.turn([]).join):
            with pytest.raises(ModeldError) as caught:
                await call()
            assert type(caught.value) is cls
            assert caught.value.message == service.failure.message
            assert caught.value.details == DETAILS
            assert caught.value.served == ["llama", "none"]


@pytest.mark.anyio
async def test_large_details_cross(node, service) -> None:
    """gRPC's own bound for metadata is 8 KiB."""
    service.failure = CapacityError("does not fit", plan={"layers": list(range(8000))})
    with pytest.raises(CapacityError) as caught:
        await node.status()
    assert caught.value.plan["layers"][-1] == 7999


@pytest.mark.anyio
async def test_huge_details_are_left_out_by_name(node, service) -> None:
    service.failure = CapacityError("x" * 100_000, plan="y" * 1_000_000)
    with pytest.raises(CapacityError) as caught:
        await node.status()
    assert caught.value.details["details_left_out"] > 1_000_000
    assert caught.value.message.endswith("…")


@pytest.mark.anyio
async def test_the_inside_of_the_node_stays_inside(node, service, caplog) -> None:
    service.failure = ValueError("secret path /home/me")
    with caplog.at_level(logging.ERROR), pytest.raises(ModeldError) as caught:
        await node.status()
    assert type(caught.value) is ModeldError
    assert "secret" not in str(caught.value)
    assert "secret" not in json.dumps(caught.value.details)
    (logged,) = [entry for entry in caplog.records if entry.exc_info]
    assert caught.value.details["log_id"] in logged.getMessage()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.UNAVAILABLE, "unreachable"),
        (grpc.StatusCode.CANCELLED, "unreachable"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "deadline_exceeded"),
        (grpc.StatusCode.UNIMPLEMENTED, "unsupported_feature"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "invalid_request"),
        (grpc.StatusCode.UNKNOWN, "internal"),
    ],
)
def test_bare_statuses_have_a_meaning(code: grpc.StatusCode, expected: str) -> None:
    assert from_rpc(rpc_error(code), endpoint="unix:/x", pid=3).code == expected


def test_the_loss_of_a_node_names_it() -> None:
    error = from_rpc(rpc_error(grpc.StatusCode.UNAVAILABLE), endpoint="unix:/x", pid=3)
    assert isinstance(error, NodeUnreachableError)
    assert (error.endpoint, error.pid) == ("unix:/x", 3)


def test_a_code_of_a_newer_node_is_kept() -> None:
    status = to_status(ModeldError("new"))
    newer = status.SerializeToString().replace(b"internal", b"newerone")
    error = from_rpc(rpc_error(grpc.StatusCode.INTERNAL, (DETAILS_KEY, newer)), endpoint="", pid=0)
    assert type(error) is ModeldError
    assert error.details["code"] == "newerone"


def test_details_that_are_garbage_fall_back_to_the_status() -> None:
    garbage = (DETAILS_KEY, b"\xff\xff\xff")
    error = from_rpc(rpc_error(grpc.StatusCode.UNIMPLEMENTED, garbage), endpoint="", pid=0)
    assert isinstance(error, NotSupportedError)


def test_every_error_is_rebuilt_from_its_code() -> None:
    for cls in CLASSES:
        assert type(error_from_code(cls.code, "m")) is cls
    assert errors.ModeldError.code == "internal"
