"""What node and engine say to each other: msgpack frames over a socketpair.

A frame is a 4-byte big-endian length and that many bytes of msgpack: one tagged struct. Requests carry an ``id`` that
the node chose; the engine answers each with any number of :class:`Parts` and then exactly one :class:`Done` or
:class:`Failed`. ``seq`` counts the frames of one id from 0, so that a lost or repeated frame is seen.

A stream has a *credit* of tokens: the engine takes one for each token it generates, and a session without credit leaves
the batch and keeps its place. The end frame and :class:`Cancel` need no credit. After a :class:`Cancel` nothing follows
but parts that were ready, and the end.
"""

from __future__ import annotations

import struct
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import Struct

from modeld.errors import EngineProtocolError, InvalidRequestError, ModeldError, error_from_code
from modeld.session.adapters import Adapter
from modeld.session.manifest import Manifest
from modeld.session.text_values import EmbedInput, InputOverflow, Pooling, RawPrompt
from modeld.session.values import ModelRef, Overflow, SessionClass, SessionConfig
from modeld.template_facts import TemplateFacts
from modeld.thinking import ThinkLevel
from modeld.types import DecodeOptions, Message, ReuseReason, StreamPart, Tool

MAX_FRAME = 64 * 2**20
MAX_STATE = 32 * 2**20
"""Bytes of a session's state. A larger one is not told, and so does not outlive its engine."""

CREDIT = 512
"""Tokens a stream may be ahead of its reader."""

RESIDENT_TEXT = 64 * 2**10
"""Bytes of text that a resident engine counts: so much took it 12 ms (21,000 tokens of tiny), and all streams wait."""

_HEADER = struct.Struct(">I")
_UNREADABLE = (msgspec.MsgspecError, ModeldError, ValueError, OverflowError, RecursionError)
"""What decoding raises; msgspec lets the UnicodeDecodeError of a tag through."""


Task = Literal["generate", "embed", "vocabulary"]


class Load(Struct, frozen=True, tag="load"):
    """Make a model resident. Must be the first frame; answered with :class:`Ready` or :class:`Failed` (id 0).

    :param cells: KV cells in all. :param window: tokens one session may hold.
    :param sequences: sequence ids; more sessions than these share them in turns.
    :param threads: 0 is the engine's choice. :param gpu_layers: -1 is all.
    :param ram: bytes of main memory for KV that leaves the engine; 0: it is lost.
    :param disk: bytes of files for KV that leaves main memory; 0, or ``ram`` 0: none are written or read.
    :param kv_folder: where those files lie; made when the first is written.
    :param task: ``embed``: for vectors of inputs up to ``window`` tokens; ``vocabulary``: without weights, to count.
        Neither knows sessions.
    :param adapters: that are active from the first step on, each with its digest; the model's file stays as it is.
    """

    path: str
    name: str
    digest: str
    cells: int
    window: int
    kv_type: str = "f16"
    sequences: int = 16
    batch: int = 512
    threads: int = 0
    gpu_layers: int = 0
    ram: int = 0
    disk: int = 0
    kv_folder: str = ""
    task: Task = "generate"
    adapters: tuple[Adapter, ...] = ()


class Open(Struct, frozen=True, tag="open"):
    """Tell the engine of a session before its first request. Not answered.

    :param tape: what the session held in an earlier engine; its KV is gone. :param lost: why.
    :param lost_detail: the same in words, where the reason does not say all.
    :param state: what an engine told of it in a :class:`State`; one that cannot be used is as none.
    :param stale: the session was used after that state was told: its text is a past of the session, nothing more.
    """

    session: int
    tape: tuple[int, ...] = ()
    lost: ReuseReason = "engine_lost"
    session_class: SessionClass = "main"
    pin: bool = False
    state: bytes = b""
    stale: bool = False
    lost_detail: str = ""


class Prefix(Struct, frozen=True, tag="prefix"):
    """:meth:`modeld.session.Session.ensure_prefix`.

    :param client: who asks, for this and all that compute: clients take turns (:mod:`modeld.engine.line`).
    """

    id: int
    session: int
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    client: str = ""


class Suffix(Struct, frozen=True, tag="suffix"):
    """:meth:`modeld.session.Session.prefill_suffix`."""

    id: int
    session: int
    messages: tuple[Message, ...]
    think: ThinkLevel = "auto"
    overflow: Overflow = "error"
    client: str = ""


class Decode(Struct, frozen=True, tag="decode"):
    """:meth:`modeld.session.Session.decode`. A full window is what it was to the call that it goes on from."""

    id: int
    session: int
    options: DecodeOptions
    credit: int = CREDIT
    client: str = ""


class Turn(Struct, frozen=True, tag="turn"):
    """:meth:`modeld.session.Session.turn`, or :meth:`~modeld.session.Session.complete`.

    :param raw: goes on without a template; then the messages, tools and ``overflow`` say nothing.
    """

    id: int
    session: int
    messages: tuple[Message, ...]
    options: DecodeOptions
    tools: tuple[Tool, ...] = ()
    think: ThinkLevel = "auto"
    credit: int = CREDIT
    overflow: Overflow = "error"
    client: str = ""
    raw: RawPrompt | None = None


class Explain(Struct, frozen=True, tag="explain"):
    """:meth:`modeld.session.Session.explain`; answered between two steps, whatever the session does."""

    id: int
    session: int


class Snapshot(Struct, frozen=True, tag="snapshot"):
    """Write the session's state to ``path``, which must not exist yet.

    :param ref: the model and :param config: how the session was opened, as the file shall name them.
    """

    id: int
    session: int
    path: str
    ref: ModelRef
    config: SessionConfig


class Restore(Struct, frozen=True, tag="restore"):
    """Replace the session's state by that of ``path``, whose SHA-256 must be ``digest``."""

    id: int
    session: int
    path: str
    digest: str


class Fork(Struct, frozen=True, tag="fork"):
    """Give ``target`` a copy of the session's tape that shares its KV."""

    id: int
    session: int
    target: int


class Forget(Struct, frozen=True, tag="forget"):
    """Drop the session and its KV."""

    id: int
    session: int


class KeptTokens(Struct, frozen=True, omit_defaults=True):
    """Of a session's tape the leading tokens that need not be computed again, and where they are.

    :param all: of them. Tokens that others hold count, and those that can come back. :param shared: that the engine
        holds for another session, whether or not for this one too. :param ram: that left the engine and are in main
        memory. :param disk: in files.
    """

    all: int
    shared: int = 0
    ram: int = 0
    disk: int = 0


class Kept(Struct, frozen=True, tag="kept"):
    """What of each session's tape is kept: a map of sessions to :class:`KeptTokens`, answered between two steps."""

    id: int


class Settle(Struct, frozen=True, tag="settle"):
    """The engine is about to end: put what is worth keeping where it survives that.

    :param seconds: how long that may take; what is not done by then is lost.
    """

    id: int
    seconds: float


class Audit(Struct, frozen=True, tag="audit"):
    """Count again what is held; answered, between two steps, with a tuple of sentences: what was wrong."""

    id: int


class Embed(Struct, frozen=True, tag="embed"):
    """:meth:`modeld.session.ModelService.embed`, to an engine that was loaded for it."""

    id: int
    inputs: tuple[EmbedInput, ...]
    normalize: bool = True
    dimensions: int | None = None
    overflow: InputOverflow = "error"


class Rerank(Struct, frozen=True, tag="rerank"):
    """:meth:`modeld.session.ModelService.rerank`, to an engine that was loaded for vectors."""

    id: int
    query: str
    documents: tuple[str, ...]
    overflow: InputOverflow = "error"


class Tokenize(Struct, frozen=True, tag="tokenize"):
    """:meth:`modeld.session.ModelService.tokenize`; answered between two steps, one of these at a time."""

    id: int
    text: str
    add_special: bool = True


class Detokenize(Struct, frozen=True, tag="detokenize"):
    """:meth:`modeld.session.ModelService.detokenize`, likewise."""

    id: int
    tokens: tuple[int, ...]


class Render(Struct, frozen=True, tag="render"):
    """:meth:`modeld.session.ModelService.render`, likewise."""

    id: int
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    think: ThinkLevel = "auto"
    generate: bool = True


class Cancel(Struct, frozen=True, tag="cancel"):
    """End request ``id`` at the next step border, or inside a step where the backend can."""

    id: int


class Credit(Struct, frozen=True, tag="credit"):
    """The reader of request ``id`` has taken ``tokens`` more."""

    id: int
    tokens: int


SessionRequest = Prefix | Suffix | Decode | Turn | Explain | Snapshot | Restore | Fork | Forget
TextRequest = Tokenize | Detokenize | Render
VectorRequest = Embed | Rerank
Request = Load | Open | SessionRequest | TextRequest | VectorRequest | Kept | Settle | Audit | Cancel | Credit


class Device(Struct, frozen=True, omit_defaults=True):
    """An accelerator that the native library can use. Memory in bytes.

    :param id: names the physical device, a UUID, where the driver gives one.
    """

    name: str
    kind: str
    description: str = ""
    free: int = 0
    total: int = 0
    id: str = ""


class Hello(Struct, frozen=True, tag="hello"):
    """First frame of the engine, before anything is loaded."""

    pid: int
    backend: str
    build: str
    devices: tuple[Device, ...] = ()


class Ready(Struct, frozen=True, tag="ready"):
    """The model is resident.

    :param dimensions: numbers of a vector, where it was loaded for vectors. :param pooling: how one is made of many.
    :param pooling_source: ``default``: the model does not say how.
    """

    manifest: Manifest
    window: int
    cells: int
    template: TemplateFacts
    warnings: tuple[str, ...] = ()
    dimensions: int = 0
    pooling: Pooling = "mean"
    pooling_source: Literal["model", "default"] = "model"


class Tape(Struct, frozen=True, omit_defaults=True):
    """How a session's tape changed since the engine last told: cut to ``keep``, then ``added`` follow.

    :param hot: tokens of it whose KV the engine holds.
    :param fatal: the session cannot go on; it must be forgotten and opened anew.
    """

    session: int
    keep: int
    added: tuple[int, ...] = ()
    hot: int = 0
    fatal: bool = False


class Parts(Struct, frozen=True, tag="parts"):
    """Parts of a stream, and how many tokens of credit they stand for."""

    id: int
    seq: int
    parts: tuple[StreamPart, ...]
    tokens: int


class Done(Struct, frozen=True, tag="done"):
    """The request's end; ``result`` is the msgpack of what the request answers."""

    id: int
    seq: int
    result: msgspec.Raw
    tapes: tuple[Tape, ...] = ()


class Failed(Struct, frozen=True, tag="failed"):
    """The request's end, with an error of :mod:`modeld.errors`."""

    id: int
    seq: int
    code: str
    message: str
    details: dict[str, Any] = {}
    tapes: tuple[Tape, ...] = ()

    def error(self) -> ModeldError:
        """The error as an exception."""
        return error_from_code(self.code, self.message, self.details)


class Evicted(Struct, frozen=True, tag="evicted"):
    """Sessions lost their KV to make room for others."""

    sessions: tuple[int, ...]


class Held(Struct, frozen=True, tag="held"):
    """What the engine holds now, of all sessions. Sent when it has changed, before the end of a request at the latest.

    :param cells: in use; those that sessions share are counted once.
    :param ram: bytes of KV in main memory that can come back. :param disk: likewise, in files, those of other models
        included; only what is complete.
    """

    cells: int = 0
    ram: int = 0
    disk: int = 0


class State(Struct, frozen=True, tag="state"):
    """All of a session but its KV, for :attr:`Open.state` of a later engine. Sent when a changed session rests.

    :param state: opaque to the node. :param after: the last request that the engine had taken; a later one may have
        changed the session since.
    """

    session: int
    state: bytes
    after: int = 0


Reply = Hello | Ready | Parts | Done | Failed | Evicted | Held | State

T = TypeVar("T")

_encoder = msgspec.msgpack.Encoder()
_requests = msgspec.msgpack.Decoder(Request)


def encode(frame: Request | Reply) -> bytes:
    """One frame, header included.

    :raises EngineProtocolError: larger than :data:`MAX_FRAME`.
    """
    body = _encoder.encode(frame)
    if len(body) > MAX_FRAME:
        raise EngineProtocolError(
            f"a {type(frame).__name__} of {len(body)} bytes is larger than a frame of {MAX_FRAME} may be",
            size=len(body),
            limit=MAX_FRAME,
        )
    return _HEADER.pack(len(body)) + body


def encode_request(request: Request) -> bytes:
    """A request as a frame, after making sure that the engine will understand it.

    Structs do not check what they are made of, and an engine that gets a frame it cannot read must end.

    :raises InvalidRequestError: a value of the wrong type, text that is no Unicode, a number beyond 64 bits, too much.
    """
    try:
        data = encode(request)
        _requests.decode(memoryview(data)[_HEADER.size :])
    except (*_UNREADABLE, TypeError) as error:
        raise InvalidRequestError(f"the request cannot be sent: {error}") from error
    return data


def request_size(request: Request) -> int:
    """Bytes of a request as it crosses.

    :raises InvalidRequestError: as :func:`encode_request`.
    """
    try:
        return len(_encoder.encode(request))
    except (*_UNREADABLE, TypeError) as error:
        raise InvalidRequestError(f"the request cannot be sent: {error}") from error


def encode_result(value: object) -> msgspec.Raw:
    """A value as the ``result`` of :class:`Done`."""
    return msgspec.Raw(_encoder.encode(value))


def decode_result(raw: msgspec.Raw, type_: type[T]) -> T:
    """The ``result`` of :class:`Done`.

    :raises EngineProtocolError: it is of another type.
    """
    try:
        return msgspec.msgpack.decode(raw, type=type_)
    except _UNREADABLE as error:
        raise EngineProtocolError(f"the engine's result is not a {type_.__name__}: {error}") from error


class FrameReader:
    """Takes bytes as they come and gives whole frames.

    Not a byte of a frame is decoded before all of it is there, and no frame may announce more than :data:`MAX_FRAME`.

    :param union: the frames that may come: :data:`Request` or :data:`Reply`.
    """

    def __init__(self, union: Any) -> None:
        self._decoder = msgspec.msgpack.Decoder(union)
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> list[Any]:
        """All frames that are complete now.

        :raises EngineProtocolError: the bytes are not frames; the connection must be closed.
        """
        buffer = self._buffer
        buffer += data
        frames: list[Any] = []
        start = 0
        while len(buffer) - start >= _HEADER.size:
            (size,) = _HEADER.unpack_from(buffer, start)
            if size > MAX_FRAME:
                raise EngineProtocolError(
                    f"a frame announces {size} bytes, more than {MAX_FRAME}", size=size, limit=MAX_FRAME
                )
            end = start + _HEADER.size + size
            if len(buffer) < end:
                break
            try:
                # A copy: the result of Done goes on pointing into the bytes it was decoded from.
                frames.append(self._decoder.decode(bytes(buffer[start + _HEADER.size : end])))
            except _UNREADABLE as error:
                raise EngineProtocolError(f"a frame of {size} bytes cannot be understood: {error}") from error
            start = end
        if start:
            del buffer[:start]
        return frames
