"""Bodies of requests: bounded in size, time and depth, and decoded into one strict Struct."""

from __future__ import annotations

import asyncio
import re
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl

import msgspec
from starlette.types import Receive, Scope

from modeld.http.errors import Refusal
from modeld.http.expected import field_like, values_at

MAX_BODY: Final = 32 * 1024 * 1024
"""Bytes. A conversation of a million tokens is some 4 MiB; pictures in base64 need more."""
BODY_SECONDS: Final = 60.0
"""A body must be here after this time: who sends slower holds a connection and memory."""
MAX_DEPTH: Final = 100
"""Of the schemas in a body. Deeper ones are an attack, and cost the encoders below a stack."""
MAX_FIELDS: Final = 100
"""Of an address, behind its ``?``."""

_LARGE: Final = 256 * 1024
"""Above, a body is decoded in a thread: a MiB takes 5 to 10 ms, in which no stream would be served."""
_PLACE: Final = re.compile(r"(.*?) - at `\$\.?(.*)`", re.DOTALL)
_UNKNOWN: Final = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING: Final = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_NO_VALUE: Final = re.compile(r"Invalid (?:enum )?value (.*)", re.DOTALL)

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
    pairs = query_pairs(query)
    if len(found := dict(pairs)) < len(pairs):
        raise Refusal(400, "invalid_value", "a name stands twice in the address")
    try:
        return msgspec.convert(found, into, strict=False)
    except msgspec.ValidationError as error:
        raise _refused(str(error), into) from None


def query_pairs(query: bytes) -> list[tuple[str, str]]:
    """Names and values. :raises Refusal: there are more than :data:`MAX_FIELDS`."""
    try:
        return parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError:
        raise Refusal(400, "invalid_value", f"an address has at most {MAX_FIELDS} fields") from None


def _decoded(body: bytes, into: type[_T]) -> _T:
    try:
        return msgspec.json.decode(body, type=into)
    except msgspec.ValidationError as error:
        raise _refused(str(error), into) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Refusal(400, "invalid_json", f"the body is no JSON: {error}") from None
    except RecursionError:
        raise Refusal(400, "invalid_json", "the body is nested too deeply") from None


def convert(value: Any, into: type[_T], param: str) -> _T:
    """A part of a decoded body as ``into``. :raises Refusal: it is none; ``param`` is where it stands."""
    try:
        return msgspec.convert(value, into)
    except msgspec.ValidationError as error:
        raise _refused(str(error), into, param) from None


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


def _refused(text: str, into: Any, above: str = "") -> Refusal:
    """msgspec's message, with the field as clients write it. :param above: where in the body ``into`` stands."""
    match = _PLACE.fullmatch(text)
    what, inner = (match[1], match[2]) if match else (text, "")
    place = _join(above, inner)
    if found := _UNKNOWN.fullmatch(what):
        param, like = _join(place, found[1]), field_like(into, inner, found[1])
        hint = f", or write {like}" if like else ""
        return Refusal(400, "unknown_parameter", f"{param} is not supported here; leave it out{hint}", param=param)
    if found := _MISSING.fullmatch(what):
        param = _join(place, found[1])
        return Refusal(400, "missing_required_parameter", f"{param} is missing", param=param)
    if what.startswith("Expected `null`"):
        text = f"{place} is not supported here; leave it out"
        return Refusal(400, "unsupported_parameter", text, param=place)
    if (found := _NO_VALUE.fullmatch(what)) and (known := values_at(into, inner)):
        rest = f"is not supported here, only {known[0]}" if len(known) == 1 else f"is none of {', '.join(known)}"
        what = f"{found[1]} {rest}"
    return Refusal(400, "invalid_value", f"{place or 'the body'}: {what}", param=place or None)


def _join(above: str, below: str) -> str:
    return above + below if not above or not below or below.startswith("[") else f"{above}.{below}"


def _too_large() -> Refusal:
    return Refusal(413, "request_too_large", f"a body has at most {MAX_BODY:,} bytes")
