"""The contract as protocols: the node implements them in process, the gRPC client over a wire.

The usual order is ``ensure_prefix`` -> ``prefill_suffix`` -> ``decode``; :meth:`Session.turn` is all three in one call
that nobody else's call on the same session can come between.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import Protocol, Self

from modeld.session.text_values import Embeddings, EmbedInput, InputOverflow, Ranking, RenderedPrompt, TokenList
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
from modeld.types import ChatResult, DecodeOptions, EndPart, Message, StreamPart, Tool


class PartStream(Protocol):
    """An answer as it is made: typed parts, then exactly one :class:`~modeld.types.EndPart`.

    Nothing runs before the first part is asked for. A stream that fails raises instead of sending an end part.
    Leaving the ``async with`` block (or ``aclose``) before the end cancels the work.
    """

    def __aiter__(self) -> AsyncIterator[StreamPart]: ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None: ...

    async def join(self) -> ChatResult:
        """Read to the end and join the parts.

        After :meth:`cancel` the result is its end part, with what was joined until then and nothing else.

        :raises InvalidRequestError: the parts were read already, to the end.
        """
        ...

    async def cancel(self) -> EndPart:
        """Stop the work and return the end part, with finish reason ``cancelled`` and the usage so far.

        The session stays usable: its tape holds what was computed in whole steps and nothing else. When the answer had
        ended already, that end part is returned. Parts not read yet are discarded.
        """
        ...

    async def aclose(self) -> None:
        """Cancel if it still runs, and forget the stream."""
        ...


class Session(Protocol):
    """A warm conversation on the node. Many clients may hold the same one; each call is atomic on it."""

    @property
    def handle(self) -> SessionHandle:
        """Workspace, name, resolved model and the generation last seen."""
        ...

    async def ensure_prefix(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> PrefixStatus:
        """Make the stable part of the context resident.

        :raises ContextOverflowError: it does not fit the window; nothing changed.
        """
        ...

    async def prefill_suffix(
        self,
        messages: Sequence[Message],
        *,
        think: str = "auto",
        shift: bool | None = None,
        truncate: bool | None = None,
    ) -> SuffixStatus:
        """Append messages after the prefix, render the whole conversation and compute what is not on the tape.

        May be called again to append more.

        :param shift: as for :class:`SessionConfig`; ``None`` is what the session was opened with.
        :param truncate: likewise.
        :raises ContextOverflowError: it does not fit the window; nothing changed.
        :raises InvalidRequestError: ``shift`` and ``truncate`` both.
        """
        ...

    def decode(self, options: DecodeOptions | None = None) -> PartStream:
        """Generate from where the tape ends; called again, it goes on.

        When the window is full, turns leave if ``shift`` was set for the call before.
        """
        ...

    def turn(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        think: str = "auto",
        options: DecodeOptions | None = None,
        shift: bool | None = None,
        truncate: bool | None = None,
    ) -> PartStream:
        """Answer a whole conversation: prefix, suffix and decode in one atomic call.

        ``shift`` and ``truncate`` as for :meth:`prefill_suffix`.
        """
        ...

    def complete(self, prompt: str | Sequence[int], *, options: DecodeOptions | None = None) -> PartStream:
        """Go on with a text, or with token ids, as they are: no template is around it.

        Text that spells a control token becomes that token, and what the model wants before every text is put there.
        All that comes is text: neither thinking nor calls are looked for. Nothing leaves a full window. KV is found and
        kept as for :meth:`turn`, of which this is one for the session: :meth:`decode` goes on from it.

        :raises ContextOverflowError: from the stream: it does not fit the window; nothing changed.
        """
        ...

    async def explain(self) -> ContextReport:
        """What is resident, under which identity, what it cost, and why KV could not be reused. Loads no model."""
        ...

    async def snapshot(self) -> SnapshotInfo:
        """Save conversation, tape and KV to the node's disk, also KV that had left the engine.

        Streams of other sessions go on beside it. The file stays until :meth:`ModelService.remove_snapshot`.

        :raises StorageError: the disk is full; nothing is left of it.
        """
        ...

    async def restore(self, snapshot_id: str) -> PrefixStatus:
        """Replace tape and KV by a snapshot's. A mismatch is an error and changes nothing.

        The whole file is checked first. Streams of other sessions go on beside it.

        :raises SnapshotNotFoundError: no such snapshot.
        :raises ManifestMismatchError: it is of another model, build or KV type.
        """
        ...

    async def fork(self, name: str, *, workspace: str = "") -> Session:
        """Open session ``name`` with a copy of this tape that shares its KV. What ``name`` held before is replaced."""
        ...

    async def close(self) -> None:
        """Give the handle back. The session keeps its tape: who opens the same name finds it. Safe to call twice."""
        ...


class ModelService(Protocol):
    """What a node offers, in process or over a wire."""

    async def open_session(self, ref: ModelRef | str, config: SessionConfig | None = None) -> Session:
        """Open, or come back to, the session named by ``config`` on a model, loading the model if it is not resident.

        Text as ``ref`` is taken as :meth:`ModelRef.of` says.

        Another model that is resident is switched out as soon as none of its calls runs.
        """
        ...

    def attach(self, handle: SessionHandle) -> Session:
        """The session that ``handle`` names, without asking anybody; calls on it find out whether it is still there."""
        ...

    async def describe(self, ref: ModelRef | str, config: SessionConfig | None = None) -> ModelDescription:
        """What the model is and whether it fits, without loading anything."""
        ...

    async def models(self) -> list[InstalledModel]:
        """Models the node can name; ``tiny`` is always among them."""
        ...

    async def load(
        self, ref: ModelRef | str, config: SessionConfig | None = None, *, generation: int = 0
    ) -> NodeStatus:
        """Make a model resident, after running calls on another one have ended.

        :param generation: the last one the caller knows of; 0 asks for none.
        :raises StaleGenerationError: there was a newer one when its turn came; nothing was done.
        """
        ...

    async def unload(self, *, generation: int = 0) -> NodeStatus:
        """End the engine process, after running calls have ended.

        :param generation: as for :meth:`load`. :raises StaleGenerationError: likewise.
        """
        ...

    async def embed(
        self,
        ref: ModelRef | str,
        inputs: Iterable[str | Sequence[int] | EmbedInput],
        *,
        normalize: bool = True,
        dimensions: int | None = None,
        overflow: InputOverflow = "error",
        context: int = 0,
    ) -> Embeddings:
        """A vector for each text, or list of token ids, by a model in an engine of its own.

        The resident model stays, with all its sessions. There is one such engine: another model takes the place of the
        one before, once no call on that runs. Cancelling the call ends the work after the batch that runs.

        :param dimensions: the first so many numbers of each vector; ``None``: all.
        :param overflow: what becomes of inputs that are too long.
        :param context: tokens that the longest input may have; 0: 2,048, or less where the model was trained for less.
        :raises ContextOverflowError: one is too long; ``index`` says which. Nothing was computed.
        :raises CapacityError: it does not fit beside the resident model, which stays.
        :raises NotSupportedError: the model ranks. :raises InvalidRequestError: too much, empty, or no text.
        """
        ...

    async def rerank(
        self,
        ref: ModelRef | str,
        query: str,
        documents: Iterable[str],
        *,
        overflow: InputOverflow = "error",
        context: int = 0,
    ) -> Ranking:
        """How well each document answers the query, by a model that was trained to say. Otherwise as :meth:`embed`.

        :param overflow: of query and document together; ``truncate`` leaves out the end of the document.
        :raises NotSupportedError: the model does not rank.
        """
        ...

    async def tokenize(self, ref: ModelRef | str, text: str, *, add_special: bool = True) -> TokenList:
        """The tokens of a text. Switches no model: one that is not resident is read without its weights.

        Text that spells a control token becomes that token.

        :param add_special: with what the model wants before and behind every text.
        :raises InvalidRequestError: more than 16 MiB.
        """
        ...

    async def detokenize(self, ref: ModelRef | str, tokens: Sequence[int]) -> bytes:
        """The text of tokens, control tokens by name, in UTF-8; a character may be cut at either end.

        :raises InvalidRequestError: an id that the model does not have.
        """
        ...

    async def render(
        self,
        ref: ModelRef | str,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        think: str = "auto",
        generate: bool = True,
    ) -> RenderedPrompt:
        """A conversation as the model's template makes it a prompt, with its tokens: how long a turn would be.

        It need not fit any window. Switches no model.

        :param generate: with the beginning of an answer.
        :raises TemplateError: the template does not take it. :raises NotSupportedError: nor this feature.
        """
        ...

    async def status(self) -> NodeStatus:
        """The node's state; never waits for the engine."""
        ...

    async def sessions(self) -> list[SessionInfo]:
        """All sessions, the last used first."""
        ...

    async def audit(self) -> AuditReport:
        """Count again what engine, RAM and files hold, and compare it with the ledger. Loads nothing."""
        ...

    async def remove_session(self, name: str, *, workspace: str = "default", model: str = "") -> None:
        """Forget a session, with its tape. Snapshots of it stay. Who holds a handle of it begins anew.

        KV that it shared stays with those who share it; blocks of it that lie in RAM leave as they age.

        :param model: name or digest, where sessions of that name are on several.
        :raises SessionNotFoundError: there is none. :raises SessionBusyError: a call on it runs; nothing was done.
        :raises InvalidRequestError: there are several.
        """
        ...

    async def snapshots(self) -> list[SnapshotInfo]:
        """All snapshots of the node, of all models, the newest first; also files that cannot be used, with an error."""
        ...

    async def remove_snapshot(self, snapshot_id: str) -> None:
        """Remove a snapshot.

        :raises SnapshotNotFoundError: there is none.
        """
        ...

    def export_snapshot(self, snapshot_id: str) -> AsyncGenerator[bytes, None]:
        """The file of a snapshot, in pieces: what :meth:`import_snapshot` of any node takes.

        Close it (``contextlib.aclosing``) where it is not read to its end.

        :raises SnapshotNotFoundError: there is none.
        :raises ManifestMismatchError: after the last piece: the file is damaged, and what came is not to be used.
        """
        ...

    async def import_snapshot(self, data: AsyncIterable[bytes], *, snapshot_id: str = "") -> SnapshotInfo:
        """Store a snapshot's file that another node made. Nothing is left of one that is refused.

        What it is good for shows at :meth:`Session.restore`: the model need not be here. Import what you trust only:
        nobody can tell from KV whether the model computed it, and beginnings are shared between sessions.

        :param snapshot_id: what it has to be; empty: whatever it is.
        :raises ManifestMismatchError: it is no whole snapshot, or another one. :raises StorageError: the disk is full.
        """
        ...
