"""Every value survives the wire, and every field has its place in the schema."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct, inspect

import modeld.repository.values
import modeld.session.manifest
import modeld.session.text_values
import modeld.session.values
import modeld.types
from modeld.errors import InvalidRequestError
from modeld.repository import ObservedModel
from modeld.session import Adapter, ModelRef, SessionConfig
from modeld.transport import methods, repository_methods
from modeld.transport.convert import (
    PARTS,
    frame_from_bytes,
    frame_to_bytes,
    from_bytes,
    from_proto,
    proto_class,
    to_bytes,
)
from modeld.transport.proto.modeld.v1 import modeld_pb2 as pb
from modeld.types import ChatConfig, DecodeOptions, Message, ResponseFormat, ToolCall
from support.examples import examples

SCRIPT = Path(__file__).parents[2] / "scripts" / "proto.py"

# A method's description is not a value. An EmbedResult crosses as an EmbedReply; a spec holds a key, and never does.
LOCAL = {methods.Method, modeld.repository.values.EmbedResult, modeld.repository.values.BackendSpec}

VALUES = sorted(
    {
        value
        for module in (
            modeld.types,
            modeld.session.values,
            modeld.session.text_values,
            modeld.session.manifest,
            modeld.repository.values,
            methods,
            repository_methods,
        )
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Struct) and value is not Struct
    }
    - LOCAL,
    key=lambda value: value.__name__,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
INT64 = st.integers(-(2**63), 2**63 - 1)
FINITE = st.floats(allow_nan=False)
JSON = st.dictionaries(
    st.text(max_size=4),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
        max_leaves=4,
    ),
    max_size=3,
)
NAME = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=9)

# What these refuse would drown what they take.
CHECKED = {
    DecodeOptions: {
        "max_tokens": st.none() | st.integers(1, 2**63 - 1),
        "temperature": st.floats(0, 100),
        "top_k": st.integers(0, 2**31 - 1),
        "top_p": st.floats(0, 1, exclude_min=True),
        "min_p": st.floats(0, 1),
        "repeat_penalty": st.floats(0, 100, exclude_min=True),
        "frequency_penalty": st.floats(allow_nan=False, allow_infinity=False),
        "presence_penalty": st.floats(allow_nan=False, allow_infinity=False),
        "penalty_last_n": st.integers(0, 2**20),
        "seed": st.none() | st.integers(0, 2**32 - 2),
        "stop": st.lists(NAME, max_size=3).map(tuple),
        "response_format": st.none(),  # beside ignore_eos it is refused; see the test of formats
        "tool_choice": NAME.filter(lambda name: name != "none"),
        "logprobs": st.just(True),
        "top_logprobs": st.integers(0, 20),
    },
    ResponseFormat: {"regex": st.just(""), "choice": st.just(()), "ebnf": st.just("")},
    ChatConfig: {
        "max_tokens": st.none() | st.integers(1, 2**63 - 1),
        "temperature": st.none() | st.floats(0, 100),
        "top_k": st.none() | st.integers(0, 2**63 - 1),
        "top_p": st.none() | st.floats(0, 1, exclude_min=True),
        "min_p": st.none() | st.floats(0, 1),
        "repeat_penalty": st.none() | st.floats(0, 100, exclude_min=True),
        "frequency_penalty": st.none() | st.floats(-100, 100),
        "presence_penalty": st.none() | st.floats(-100, 100),
        "seed": st.none() | st.integers(0, 2**63 - 1),
        "stop": st.lists(NAME, max_size=3).map(tuple),
        "tools": st.just(()),
        "tool_choice": st.sampled_from([None, "auto", "none"]),
        "think": st.sampled_from([None, "auto", "off", "high"]),
        "shift": st.none() | st.booleans(),
        "truncate": st.none() | st.just(False),
        "logprobs": st.just(True),
        "top_logprobs": st.none() | st.integers(0, 20),
        "timeout": st.none() | st.floats(0, 10**6, exclude_min=True),
    },
    ModelRef: {"name": NAME, "path": NAME},
    Adapter: {"name": NAME, "path": NAME, "scale": st.floats(1e-6, 1e6)},
    SessionConfig: {
        "workspace": NAME,
        "name": NAME,
        "context": st.integers(0, 2**31 - 1),
        "ttl": st.floats(0, 10**9),
        "truncate": st.just(False),
    },
}


def of(kind: inspect.Type) -> st.SearchStrategy[object]:
    match kind:
        case inspect.IntType():
            return INT64
        case inspect.FloatType():
            return FINITE
        case inspect.StrType():
            return TEXT
        case inspect.BoolType():
            return st.booleans()
        case inspect.BytesType():
            return st.binary(max_size=8)
        case inspect.NoneType():
            return st.none()
        case inspect.DateTimeType():
            return st.datetimes(timezones=st.none() | st.just(UTC))
        case inspect.DictType(value_type=item) if not isinstance(item, inspect.AnyType):
            return st.dictionaries(st.text(max_size=4), of(item), max_size=3)
        case inspect.DictType():
            return JSON
        case inspect.LiteralType(values=values):
            return st.sampled_from(values)
        case inspect.VarTupleType(item_type=item):
            return st.lists(of(item), max_size=2).map(tuple)
        case inspect.UnionType(types=types):
            return st.one_of([of(t) for t in types])
        case inspect.StructType(cls=struct):
            return values_of(struct)
    raise AssertionError(kind)


def values_of(struct: type[Struct]) -> st.SearchStrategy[Struct]:
    fields = {field.name: of(field.type) for field in inspect.type_info(struct).fields}
    return st.builds(struct, **{**fields, **CHECKED.get(struct, {})})


@pytest.mark.parametrize("struct", VALUES, ids=lambda struct: struct.__name__)
def test_every_value_survives_the_wire(struct: type[Struct]) -> None:
    @settings(max_examples=examples(40), deadline=None)
    @given(values_of(struct))
    def round_trip(value: Struct) -> None:
        assert from_bytes(struct, to_bytes(value)) == value

    round_trip()


@pytest.mark.parametrize(
    "wanted",
    [
        ResponseFormat(),
        ResponseFormat(schema={"type": "string"}, name="n", strict=False),
        ResponseFormat(schema={}),
        ResponseFormat(regex="a+"),
        ResponseFormat(choice=("a", "b")),
        ResponseFormat(ebnf='root ::= "a"'),
    ],
    ids=lambda wanted: wanted.kind,
)
def test_every_format_survives_the_wire(wanted: ResponseFormat) -> None:
    options = DecodeOptions(response_format=wanted, tool_choice="f", parallel_tool_calls=False)
    assert from_bytes(DecodeOptions, to_bytes(options)) == options


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.one_of([values_of(part) for part in PARTS.values()]), max_size=6))
def test_every_frame_survives_the_wire(parts: list[Struct]) -> None:
    assert frame_from_bytes(frame_to_bytes(parts)) == parts


@pytest.mark.parametrize("struct", VALUES, ids=lambda struct: struct.__name__)
def test_every_field_has_its_field_and_its_presence(struct: type[Struct]) -> None:
    """``optional`` exactly where leaving it out means something else than the zero of the wire."""
    mirror = proto_class(struct).DESCRIPTOR.fields_by_name
    fields = {field.name: field for field in inspect.type_info(struct).fields}
    assert set(mirror) == set(fields)
    for name, field in fields.items():
        if mirror[name].is_repeated or mirror[name].message_type:
            continue
        zero = mirror[name].default_value
        default = field.default_factory() if field.default_factory is not msgspec.NODEFAULT else field.default
        needs_presence = not field.required and default != zero
        assert mirror[name].has_presence == needs_presence, name


def observed(**fields: str) -> object:
    return pb.ObservedModel(name="m", capabilities=pb.CapabilityConfig(), **fields)


def test_an_empty_message_means_the_defaults() -> None:
    assert from_bytes(DecodeOptions, b"") == DecodeOptions()
    assert from_bytes(SessionConfig, b"") == SessionConfig()


def test_every_message_and_every_part_is_known() -> None:
    names = set(pb.DESCRIPTOR.message_types_by_name)
    assert names == {value.__name__ for value in VALUES} | {"StreamPart", "StreamFrame"}
    assert {field.name for field in pb.StreamPart.DESCRIPTOR.fields} == set(PARTS)


@pytest.mark.parametrize("table", [methods.METHODS, repository_methods.REPOSITORY_METHODS], ids=["Node", "Repository"])
def test_the_table_of_methods_is_the_service(table: tuple[methods.Method, ...]) -> None:
    service = pb.DESCRIPTOR.services_by_name[table[0].service.rpartition(".")[2]]
    assert {method.service for method in table} == {service.full_name}
    described = [
        (
            *(m.name, m.request.__name__, m.reply.__name__ if m.reply else "StreamFrame"),
            *(m.chunks == "request", not m.reply or m.chunks == "reply"),
        )
        for m in table
    ]
    assert described == [
        (m.name, m.input_type.name, m.output_type.name, m.client_streaming, m.server_streaming) for m in service.methods
    ]


@pytest.mark.parametrize(
    ("message", "struct"),
    [
        (pb.Message(role="king"), Message),
        (pb.ToolCall(id="1"), ToolCall),
        (pb.Message(role="user", provider_meta="[1]"), Message),
        (pb.Message(role="user", provider_meta='{"a": NaN}'), Message),
        (pb.Message(role="user", provider_meta='{"a":' * 100_000), Message),
        (pb.DecodeOptions(temperature=-1), DecodeOptions),
        (pb.ChatConfig(tool_choice="nobody"), ChatConfig),
        (observed(modified_at="yesterday"), ObservedModel),
        (observed(meta='{"a": 1}'), ObservedModel),
        (observed(evidence='{"can_chat": "guessed"}'), ObservedModel),
        (observed(evidence='{"can_chat": ["declared"]}'), ObservedModel),
        (pb.ModelRef(), ModelRef),
        (pb.ModelRef(name="a\nb"), ModelRef),
    ],
)
def test_what_no_value_can_hold_is_refused(message: object, struct: type[Struct]) -> None:
    with pytest.raises(InvalidRequestError):
        from_proto(struct, message)


@pytest.mark.parametrize(
    "value", [Message("user", 5), DecodeOptions(top_k=2.5), Message("user", provider_meta={1: {2}})]
)
def test_what_no_message_can_hold_is_refused(value: Struct) -> None:
    with pytest.raises(InvalidRequestError):
        to_bytes(value)


def test_a_part_of_a_newer_version_is_an_error_not_a_gap() -> None:
    frame = pb.StreamFrame()
    frame.parts.add()
    with pytest.raises(InvalidRequestError):
        frame_from_bytes(frame.SerializeToString())


def test_generated_code_is_that_of_the_schema() -> None:
    subprocess.run([sys.executable, str(SCRIPT), "--check"], check=True)
