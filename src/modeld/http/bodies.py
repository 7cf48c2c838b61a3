"""Bodies of requests: bounded in size, time and depth, and decoded into one strict Struct."""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

import msgspec
from starlette.types import Receive, Scope

from modeld.http.errors import Refusal

MAX_BODY: Final = 32 * 1024 * 1024
"""Bytes. A conversation of a million tokens is some 4 MiB; pictures in base64 need more."""
BODY_SECONDS: Final = 60.0
"""A body must be here after this time: who sends slower holds a connection and memory."""
MAX_DEPTH: Final = 100
"""Of the schemas in a body. Deeper ones are an attack, and cost the encoders below a stack."""

_LARGE: Final = 256 * 1024
"""Above, a body is decoded in a thread: a MiB takes 5 to 10 ms, in which no stream would be served."""
_PLACE: Final = re.compile(r"(.*?) - at `\$\.?(.*)`", re.DOTALL)
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING: Final = re.compile(r"Object missing required field `(.*)`", re.DOTALL)

_T = TypeVar("_T")


class ClientGone(Exception):
    """The client left: there is nobody to answer."""


async def read_body(scope: Scope, receive: Receive) -> bytes:
    """The whole body.

    :raises Refusal: it is no JSON by its type, too large, or too slow. :raises ClientGone: it ended early.
    """
    headers = dict(scope["headers"])
    kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
    if kind != b"application/json":
        # Browsers send other types to any address without asking first.
        raise Refusal(415, "unsupported_media_type", "send a JSON body with content-type: application/json")
    length = headers.get(b"content-length", b"")
    if length.isdigit() and int(length[:20]) > MAX_BODY:
        raise _too_large()
    pieces, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            more = True
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                pieces.append(message.get("body", b""))
                size += len(pieces[-1])
                if size > MAX_BODY:
                    raise _too_large()
                more = message.get("more_body", False)
    except TimeoutError:
        text = f"the body did not come within {BODY_SECONDS:g} seconds"
        raise Refusal(408, "body_timeout", text, headers=(("connection", "close"),)) from None
    return b"".join(pieces)


async def decode(body: bytes, into: type[_T]) -> _T:
    """``body`` as ``into``. :raises Refusal: it is none; ``param`` names the field."""
    if len(body) > _LARGE:
        return await asyncio.to_thread(_decoded, body, into)
    return _decoded(body, into)


def decode_query(query: bytes, into: type[_T]) -> _T:
    """``query`` as ``into``. :raises Refusal: it is none, or a name stands there twice."""
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=100)
    if len(found := dict(pairs)) < len(pairs):
        raise Refusal(400, "invalid_value", "a name stands twice in the address")
    try:
        return msgspec.convert(found, into, strict=False)
    except msgspec.ValidationError as error:
        raise _refused(str(error)) from None


def _decoded(body: bytes, into: type[_T]) -> _T:
    try:
        return msgspec.json.decode(body, type=into)
    except msgspec.ValidationError as error:
        raise _refused(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refusal(400, "invalid_json", f"the body is no JSON: {error}") from None
    except RecursionError:
        raise Refusal(400, "invalid_json", "the body is nested too deeply") from None


def convert(value: Any, into: type[_T], param: str) -> _T:
    """A part of a decoded body as ``into``. :raises Refusal: it is none; ``param`` is where it stands."""
    try:
        return msgspec.convert(value, into)
    except msgspec.ValidationError as error:
        text, mark, place = str(error).rpartition(" - at `$")
        raise _refused(f"{text} - at `$.{param}{place}" if mark else f"{place} - at `$.{param}`") from None


def check_depth(value: Any, param: str) -> None:
    """:raises Refusal: arrays and objects in ``value`` are nested deeper than :data:`MAX_DEPTH`."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise Refusal(400, "invalid_json", f"{param} is nested deeper than {MAX_DEPTH} levels", param=param)
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += item.values()
            elif isinstance(item, list):
                below += item
        level = below


def _refused(text: str) -> Refusal:
    """msgspec's message, with the field as clients write it."""
    match = _PLACE.fullmatch(text)
    what, place = (match[1], match[2]) if match else (text, "")
    if found := _UNKNOWN.fullmatch(what):
        param = f"{place}.{found[1]}" if place else found[1]
        return Refusal(400, "unknown_parameter", f"{param} is not supported here; leave it out", param=param)
    if found := _MISSING.fullmatch(what):
        param = f"{place}.{found[1]}" if place else found[1]
        return Refusal(400, "missing_required_parameter", f"{param} is missing", param=param)
    if what.startswith("Expected `null`"):
        text = f"{place} is not supported here; leave it out"
        return Refusal(400, "unsupported_parameter", text, param=place)
    return Refusal(400, "invalid_value", f"{place or 'the body'}: {what}", param=place or None)


def _too_large() -> Refusal:
    return Refusal(413, "request_too_large", f"a body has at most {MAX_BODY:,} bytes")
