"""Structs to protobuf messages and back, by the names of their fields.

A Struct crosses as the message of its own name in ``modeld.v1``. How each field crosses is read once from its type:
scalars, literals (as strings, checked when they come in), JSON objects (as text), times (as text of ISO 8601), nested
Structs and tuples of these. A field without presence on the wire carries its zero; an absent one becomes the Struct's
default.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple, TypeVar, cast

from google.protobuf.message import DecodeError
from google.protobuf.message import Message as Proto
from msgspec import Struct, inspect

from modeld.errors import InvalidRequestError
from modeld.transport.proto.modeld.v1 import modeld_pb2 as pb
from modeld.types import (
    EndPart,
    ErrorPart,
    LogprobsPart,
    ProgressPart,
    StreamPart,
    TextPart,
    ThinkingPart,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    WarningPart,
)

S = TypeVar("S", bound=Struct)
Convert = Callable[[Any], Any]


class _Field(NamedTuple):
    """How one field crosses; ``presence``: the wire knows whether it is there."""

    name: str
    to_proto: Convert
    from_proto: Convert
    presence: bool
    required: bool


def proto_class(struct: type[Struct]) -> type[Proto]:
    """The message that mirrors a Struct type."""
    return cast("type[Proto]", getattr(pb, struct.__name__))


def to_proto(value: Struct) -> Proto:
    """The message that mirrors ``value``.

    :raises InvalidRequestError: a field holds something its type does not allow.
    """
    struct = type(value)
    values = {}
    for field in _fields(struct):
        item = getattr(value, field.name)
        if item is not None:
            values[field.name] = field.to_proto(item)
    try:
        return proto_class(struct)(**values)
    except (TypeError, ValueError) as error:
        raise InvalidRequestError(f"a {struct.__name__} cannot be sent: {error}", parameter=struct.__name__) from None


def from_proto(struct: type[S], message: Proto) -> S:
    """The value that ``message`` mirrors.

    :raises InvalidRequestError: a part is missing, a literal is unknown, or the Struct refuses the values.
    """
    values = {}
    for field in _fields(struct):
        if not field.presence or message.HasField(field.name):
            values[field.name] = field.from_proto(getattr(message, field.name))
        elif field.required:
            where = f"{struct.__name__}.{field.name}"
            raise InvalidRequestError(f"{where} is missing and has no default", parameter=where)
    return struct(**values)


def to_bytes(value: Struct) -> bytes:
    """``value`` as it crosses the wire.

    :raises InvalidRequestError: as :func:`to_proto`.
    """
    return to_proto(value).SerializeToString()


def from_bytes(struct: type[S], data: bytes) -> S:
    """The value that ``data`` holds.

    :raises InvalidRequestError: as :func:`from_proto`, or the bytes are no such message.
    """
    return from_proto(struct, _parse(proto_class(struct), data))


def _parse(kind: type[Proto], data: bytes) -> Proto:
    message = kind()
    try:
        message.MergeFromString(data)
    except (DecodeError, ValueError) as error:
        raise InvalidRequestError(f"{len(data)} bytes are not a {kind.__name__}: {error}", parameter="") from None
    return message


@cache
def _fields(struct: type[Struct]) -> tuple[_Field, ...]:
    described = inspect.type_info(struct)
    assert isinstance(described, inspect.StructType)
    descriptor = proto_class(struct).DESCRIPTOR.fields_by_name
    fields = []
    for field in described.fields:
        where = f"{struct.__name__}.{field.name}"
        fields.append(
            _Field(field.name, *_converters(where, field.type), descriptor[field.name].has_presence, field.required)
        )
    return tuple(fields)


def _converters(where: str, kind: inspect.Type) -> tuple[Convert, Convert]:
    match kind:
        case inspect.IntType() | inspect.FloatType() | inspect.StrType() | inspect.BoolType() | inspect.BytesType():
            return _same, _same
        case inspect.LiteralType(values=values):
            return _same, _literal(where, frozenset(values))
        case inspect.DateTimeType():
            return lambda value: value.isoformat(), _time(where)
        case inspect.DictType(value_type=item):
            return _json_text(where), _json_object(where, _entry(where, item))
        case inspect.StructType(cls=struct):
            return _nested(where, struct), lambda message: from_proto(struct, message)
        case inspect.VarTupleType(item_type=item):
            return _sequence(where, *_converters(where, item))
        case inspect.UnionType(types=types):
            (inner,) = [t for t in types if not isinstance(t, inspect.NoneType)]
            return _converters(where, inner)
    raise TypeError(f"{where}: no way to send {kind}")


def _same(value: Any) -> Any:
    return value


def _literal(where: str, allowed: frozenset[Any]) -> Convert:
    def check(value: str) -> str:
        if value not in allowed:
            known = ", ".join(sorted(allowed))
            raise InvalidRequestError(f"{where} is one of {known}, not {value[:40]!r}", parameter=where)
        return value

    return check


def _sequence(where: str, to_item: Convert, from_item: Convert) -> tuple[Convert, Convert]:
    def convert(items: Any) -> list[Any]:
        # A string is a sequence of strings too: ``stop="END"`` must not become three stops.
        if not isinstance(items, tuple | list):
            raise InvalidRequestError(f"{where} takes a tuple, not {type(items).__name__}", parameter=where)
        return [to_item(item) for item in items]

    return convert, lambda items: tuple([from_item(item) for item in items])


def _nested(where: str, struct: type[Struct]) -> Convert:
    def convert(value: Any) -> Proto:
        if type(value) is not struct:
            found = type(value).__name__
            raise InvalidRequestError(f"{where} takes {struct.__name__}, not {found}", parameter=where)
        return to_proto(value)

    return convert


def _json_text(where: str) -> Convert:
    """Of the standard library: it keeps large integers and refuses NaN, which JSON has no word for."""

    def convert(value: dict[str, Any]) -> str:
        try:
            return json.dumps(value, allow_nan=False, separators=(",", ":"))
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidRequestError(f"{where} is not a JSON object: {error}", parameter=where) from None

    return convert


def _json_object(where: str, entry: Convert) -> Convert:
    def convert(text: str) -> dict[str, Any]:
        try:
            value = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(f"{where} is not a JSON object: {error}", parameter=where) from None
        if not isinstance(value, dict):
            raise InvalidRequestError(f"{where} is a JSON object, not {type(value).__name__}", parameter=where)
        return {key: entry(item) for key, item in value.items()}

    return convert


def _entry(where: str, kind: inspect.Type) -> Convert:
    """What a value of a JSON object has to be: text, one of some words, or anything."""
    if isinstance(kind, inspect.AnyType):
        return _same
    known = _converters(where, kind)[1]

    def check(value: Any) -> Any:
        if not isinstance(value, str):
            raise InvalidRequestError(f"{where} holds text, not {type(value).__name__}", parameter=where)
        return known(value)

    return check


def _time(where: str) -> Convert:
    def convert(text: str) -> datetime:
        try:
            return datetime.fromisoformat(text)
        except ValueError:
            raise InvalidRequestError(f"{where} is a time of ISO 8601, not {text[:40]!r}", parameter=where) from None

    return convert


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


PARTS: dict[str, type[Struct]] = {
    str(part.__struct_config__.tag): part
    for part in (
        TextPart,
        ThinkingPart,
        ToolCallStart,
        ToolCallDelta,
        ToolCallEnd,
        ProgressPart,
        WarningPart,
        ErrorPart,
        LogprobsPart,
        EndPart,
    )
}
"""Stream parts by tag, which is also the name of their field in the message."""

_TAGS = {part: tag for tag, part in PARTS.items()}


def frame_to_bytes(parts: Sequence[StreamPart]) -> bytes:
    """One frame with these parts, in order.

    Text, which is nearly everything a stream carries, takes the short way.
    """
    frame = pb.StreamFrame()
    add = frame.parts.add
    for part in parts:
        if isinstance(part, TextPart):
            add().text.text = part.text
        elif isinstance(part, ThinkingPart):
            add().thinking.text = part.text
        else:
            getattr(add(), _TAGS[type(part)]).CopyFrom(to_proto(part))
    return frame.SerializeToString()


def frame_from_bytes(data: bytes) -> list[StreamPart]:
    """The parts of one frame, in order.

    :raises InvalidRequestError: the bytes are no frame, or it holds a part of an unknown kind.
    """
    parts: list[StreamPart] = []
    for part in cast("pb.StreamFrame", _parse(pb.StreamFrame, data)).parts:
        kind = part.WhichOneof("part")
        if kind == "text":
            parts.append(TextPart(part.text.text))
        elif kind == "thinking":
            parts.append(ThinkingPart(part.thinking.text))
        elif kind is None:
            raise InvalidRequestError("a frame holds a part of a kind this version does not know", parameter="parts")
        else:
            parts.append(cast("StreamPart", from_proto(PARTS[kind], getattr(part, kind))))
    return parts
