"""What a node can be asked over a wire: one table of methods, with the values they take and give."""

from __future__ import annotations

import hashlib
import hmac
from typing import Final, Literal

from msgspec import Struct

from modeld.session.text_values import (
    Embeddings,
    EmbedInput,
    InputOverflow,
    Ranking,
    RawPrompt,
    RenderedPrompt,
    TokenList,
)
from modeld.session.values import (
    AuditReport,
    ContextReport,
    InstalledModel,
    ModelDescription,
    ModelRef,
    NodeStatus,
    PrefixStatus,
    SessionConfig,
    SessionHandle,
    SessionInfo,
    SnapshotInfo,
    SuffixStatus,
)
from modeld.types import DecodeOptions, Message, Tool

SERVICE: Final = "modeld.v1.Node"
PROTOCOL: Final = 1
"""Grows with every change of ``modeld.v1`` that an older peer would misread."""

EPOCH_KEY: Final = "modeld-epoch"
CLIENT_KEY: Final = "modeld-client"
"""Metadata: the epoch of the owner that the caller means."""

MAX_MESSAGE: Final = 64 * 2**20
"""Bytes of one message, either way."""


class Empty(Struct, frozen=True):
    """Nothing to say."""


class HelloRequest(Struct, frozen=True, kw_only=True):
    """A challenge of 16 to 64 random bytes."""

    nonce: bytes


class HelloReply(Struct, frozen=True, kw_only=True):
    """The answer: see :func:`identity_proof`."""

    protocol: int
    version: str
    proof: bytes


class LoadRequest(Struct, frozen=True, kw_only=True):
    """A model to make resident; ``generation`` is the last one the caller knows of, 0 none."""

    ref: ModelRef
    config: SessionConfig | None = None
    generation: int = 0


class UnloadRequest(Struct, frozen=True, kw_only=True):
    """``generation`` is the last one the caller knows of, 0 none."""

    generation: int = 0


class ModelRequest(Struct, frozen=True, kw_only=True):
    """A model, and how a session on it would be opened."""

    ref: ModelRef
    config: SessionConfig | None = None


class InstalledModels(Struct, frozen=True, kw_only=True):
    """Answer of ``ListModels``."""

    models: tuple[InstalledModel, ...] = ()


class SessionInfos(Struct, frozen=True, kw_only=True):
    """Answer of ``ListSessions``."""

    sessions: tuple[SessionInfo, ...] = ()


class SessionRequest(Struct, frozen=True, kw_only=True):
    """A call that needs nothing but the session."""

    handle: SessionHandle


class EnsurePrefixRequest(Struct, frozen=True, kw_only=True):
    """See :meth:`modeld.session.Session.ensure_prefix`."""

    handle: SessionHandle
    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()


class PrefillSuffixRequest(Struct, frozen=True, kw_only=True):
    """See :meth:`modeld.session.Session.prefill_suffix`."""

    handle: SessionHandle
    messages: tuple[Message, ...] = ()
    think: str = "auto"
    shift: bool | None = None
    truncate: bool | None = None


class DecodeRequest(Struct, frozen=True, kw_only=True):
    """See :meth:`modeld.session.Session.decode`. ``request_id`` is what ``Cancel`` names."""

    handle: SessionHandle
    options: DecodeOptions | None = None
    request_id: str = ""


class TurnRequest(Struct, frozen=True, kw_only=True):
    """See :meth:`modeld.session.Session.turn`. ``request_id`` is what ``Cancel`` names.

    :param raw: what :meth:`modeld.session.Session.complete` goes on from; then all but ``options`` says nothing.
    """

    handle: SessionHandle
    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    think: str = "auto"
    options: DecodeOptions | None = None
    request_id: str = ""
    shift: bool | None = None
    truncate: bool | None = None
    raw: RawPrompt | None = None


class VectorsRequest(Struct, frozen=True, kw_only=True):
    """See :meth:`modeld.session.ModelService.embed`."""

    ref: ModelRef
    inputs: tuple[EmbedInput, ...] = ()
    normalize: bool = True
    dimensions: int | None = None
    overflow: InputOverflow = "error"
    context: int = 0


class RerankRequest(Struct, frozen=True, kw_only=True):
    """See :meth:`modeld.session.ModelService.rerank`."""

    ref: ModelRef
    query: str
    documents: tuple[str, ...] = ()
    overflow: InputOverflow = "error"
    context: int = 0


class TokenizeRequest(Struct, frozen=True, kw_only=True):
    """See :meth:`modeld.session.ModelService.tokenize`."""

    ref: ModelRef
    text: str
    add_special: bool = True


class DetokenizeRequest(Struct, frozen=True, kw_only=True):
    """See :meth:`modeld.session.ModelService.detokenize`."""

    ref: ModelRef
    tokens: tuple[int, ...] = ()


class DetokenizeReply(Struct, frozen=True, kw_only=True):
    """The text, in UTF-8."""

    data: bytes


class RenderRequest(Struct, frozen=True, kw_only=True):
    """See :meth:`modeld.session.ModelService.render`."""

    ref: ModelRef
    messages: tuple[Message, ...] = ()
    tools: tuple[Tool, ...] = ()
    think: str = "auto"
    generate: bool = True


class CancelRequest(Struct, frozen=True, kw_only=True):
    """Stop the stream of that id."""

    request_id: str


class CancelReply(Struct, frozen=True, kw_only=True):
    """``found`` is false when no stream of that id runs (any more)."""

    found: bool


class RestoreRequest(Struct, frozen=True, kw_only=True):
    """See :meth:`modeld.session.Session.restore`."""

    handle: SessionHandle
    snapshot_id: str


class ForkRequest(Struct, frozen=True, kw_only=True):
    """See :meth:`modeld.session.Session.fork`."""

    handle: SessionHandle
    name: str
    workspace: str = ""


class RemoveSessionRequest(Struct, frozen=True, kw_only=True):
    """See :meth:`modeld.session.ModelService.remove_session`."""

    name: str
    workspace: str = "default"
    model: str = ""


class SnapshotRequest(Struct, frozen=True, kw_only=True):
    """A call that needs nothing but the snapshot."""

    snapshot_id: str


class SnapshotInfos(Struct, frozen=True, kw_only=True):
    """Answer of ``ListSnapshots``."""

    snapshots: tuple[SnapshotInfo, ...] = ()


class SnapshotChunk(Struct, frozen=True, kw_only=True):
    """A piece of a snapshot's file; in the first one of an import the id may be named."""

    data: bytes
    snapshot_id: str = ""


class Method(Struct, frozen=True):
    """One method of a service.

    :param reply: ``None`` for a stream of part frames.
    :param chunks: whether request or reply is a stream of them.
    :param fenced: it changes something, so a caller that means another owner is refused.
    :param local: it is taken over the unix socket only.
    """

    name: str
    request: type[Struct]
    reply: type[Struct] | None
    fenced: bool = False
    service: str = SERVICE
    local: bool = False
    chunks: Literal["", "request", "reply"] = ""

    @property
    def path(self) -> str:
        """The full name on the wire."""
        return f"/{self.service}/{self.name}"


METHODS: Final = (
    Method("Hello", HelloRequest, HelloReply),
    Method("Status", Empty, NodeStatus),
    Method("ListModels", Empty, InstalledModels),
    Method("ListSessions", Empty, SessionInfos),
    Method("Audit", Empty, AuditReport),
    Method("Describe", ModelRequest, ModelDescription),
    Method("Load", LoadRequest, NodeStatus, fenced=True),
    Method("Unload", UnloadRequest, NodeStatus, fenced=True),
    Method("Embed", VectorsRequest, Embeddings),
    Method("Rerank", RerankRequest, Ranking),
    Method("Tokenize", TokenizeRequest, TokenList),
    Method("Detokenize", DetokenizeRequest, DetokenizeReply),
    Method("Render", RenderRequest, RenderedPrompt),
    Method("OpenSession", ModelRequest, SessionHandle, fenced=True),
    Method("EnsurePrefix", EnsurePrefixRequest, PrefixStatus, fenced=True),
    Method("PrefillSuffix", PrefillSuffixRequest, SuffixStatus, fenced=True),
    Method("Decode", DecodeRequest, None, fenced=True),
    Method("Turn", TurnRequest, None, fenced=True),
    Method("Cancel", CancelRequest, CancelReply, fenced=True),
    Method("Explain", SessionRequest, ContextReport),
    Method("Snapshot", SessionRequest, SnapshotInfo, fenced=True),
    Method("Restore", RestoreRequest, PrefixStatus, fenced=True),
    Method("Fork", ForkRequest, SessionHandle, fenced=True),
    Method("RemoveSession", RemoveSessionRequest, Empty, fenced=True),
    Method("ListSnapshots", Empty, SnapshotInfos),
    Method("RemoveSnapshot", SnapshotRequest, Empty, fenced=True),
    Method("ExportSnapshot", SnapshotRequest, SnapshotChunk, chunks="reply"),
    Method("ImportSnapshot", SnapshotChunk, SnapshotInfo, fenced=True, chunks="request"),
    Method("Shutdown", Empty, Empty, fenced=True),
)
"""Of the service ``Node``; :mod:`modeld.transport.repository_methods` has the other."""


def identity_proof(instance_id: str, epoch: int, nonce: bytes) -> bytes:
    """HMAC-SHA256 (RFC 2104) of epoch and challenge under the instance id.

    It shows that who answers is the owner whose record the caller read, without sending the id. It is a check of
    freshness, not of rights: everybody who can read the record can compute it.
    """
    return hmac.new(instance_id.encode(), epoch.to_bytes(8, "big") + nonce, hashlib.sha256).digest()
