"""Hazard: a client of Anthropic's cannot read why it was refused, because its request never became one."""

from __future__ import annotations

import asyncio
import json

import pytest

from modeld.http import protocol

from .conftest import Site

pytestmark = pytest.mark.anyio

LINES = {
    "POST /v1/messages HTTP/1.1": True,
    "POST /v1/messages/count_tokens?beta=true HTTP/1.1": True,
    "POST /v1/messages?beta=true HTTP/1.1": True,
    "POST /v1/chat/completions HTTP/1.1": False,
    "POST /v1/messagesx HTTP/1.1": False,
    f"POST /{'x' * 300}/v1/messages HTTP/1.1": False,
}


def check(answer: bytes, status: int, *, anthropic: bool) -> None:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert int(head.split()[1]) == status
    told = json.loads(body)
    if anthropic:
        assert (told["type"], told["error"]["type"]) == ("error", "invalid_request_error")
        assert told["error"]["message"]
    else:
        assert told["error"]["code"]


@pytest.mark.parametrize("line", LINES, ids=lambda line: line[:40])
@pytest.mark.parametrize(
    ("rest", "status"),
    [("no header\r\n\r\n", 400), (f"x: {'y' * 40_000}\r\n", 431), ("transfer-encoding: x\r\n\r\n", 400)],
    ids=["garbage", "flood", "coding"],
)
async def test_the_path_says_whose_shape_it_is(site: Site, line: str, rest: str, status: int) -> None:
    check(await site.raw(f"{line}\r\n{rest}".encode()), status, anthropic=LINES[line])


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02\x00\x01\x00", b"POST\r\n\r\n", b"\r\n\r\n\x00\r\n\r\n"])
async def test_without_a_path_it_is_openais(site: Site, data: bytes) -> None:
    check(await site.raw(data + b"\r\n\r\n"), 400, anthropic=False)


@pytest.mark.parametrize("whole", [True, False])
async def test_a_header_that_never_ends(site: Site, monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.2)
    answer = await site.raw(b"POST /v1/messages" + (b" HTTP/1.1\r\nhost: " if whole else b" "), seconds=2)
    check(answer, 408, anthropic=True)


async def test_the_next_request_of_a_connection_has_a_shape_of_its_own(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    first = f"POST /v1/messages HTTP/1.1\r\nhost: 127.0.0.1:{site.port}\r\nx-api-key: {site.token}\r\n"
    try:
        writer.write(f"{first}content-type: application/json\r\ncontent-length: 2\r\n\r\n{{}}".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split()[0])
        assert json.loads(await reader.readexactly(length))["type"] == "error"
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nno header\r\n\r\n")
        check(await asyncio.wait_for(reader.read(), 2), 400, anthropic=False)
    finally:
        writer.close()


async def test_a_body_that_breaks_off_in_its_coding(site: Site) -> None:
    head = f"POST /v1/messages HTTP/1.1\r\nhost: 127.0.0.1:{site.port}\r\nx-api-key: {site.token}\r\n"
    head += "content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n"
    check(await site.raw(head.encode()), 400, anthropic=True)
