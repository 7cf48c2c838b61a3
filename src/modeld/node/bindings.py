"""Sessions and the resident model: which record a handle means, and what its engine must know before it is asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from modeld.engine.protocol import Forget, Held, SessionRequest, State, Tape
from modeld.errors import (
    EngineCrashedError,
    InvalidRequestError,
    SessionBusyError,
    SessionNotFoundError,
    StaleEpochError,
    StaleGenerationError,
)
from modeld.node.engine_process import EngineProcess, EngineStream
from modeld.node.loader import ModelLoader
from modeld.node.session import Bound, NodeSession, RequestMaker
from modeld.node.session_keeper import SessionKeeper
from modeld.node.sessions import SessionRecord, SessionRegistry
from modeld.node.slot import Residency, Slot, Want
from modeld.node.snapshots import SnapshotStore
from modeld.node.totals import RunningTotals
from modeld.session.values import ModelRef, SessionConfig, SessionHandle
from modeld.types import EndPart


class SessionBindings:
    """Brings sessions and residencies together, and hears what engines tell. Belongs to the event loop's thread.

    :param keeper: writes of ``registry`` what outlives its engine. :param epoch: of the owner.
    """

    def __init__(
        self,
        slot: Slot,
        loader: ModelLoader,
        registry: SessionRegistry,
        keeper: SessionKeeper,
        snapshot_store: SnapshotStore,
        epoch: int,
    ) -> None:
        self._slot = slot
        self._loader = loader
        self._registry = registry
        self._keeper = keeper
        self.snapshot_store = snapshot_store
        self.epoch = epoch
        self.active = 0
        """Calls that run."""
        self.totals = RunningTotals()

    async def open(self, ref: ModelRef | str, config: SessionConfig) -> NodeSession:
        """See :meth:`modeld.session.ModelService.open_session`."""
        want = await self._loader.want(ref, config)
        await self._keeper.known()
        async with self._slot.use(want) as residency:
            self.expire(residency)
            config = msgspec.structs.replace(config, adapters=want.adapters.adapters)
            record = self._registry.open(want.model.ref, config)
            record.opened()
            try:
                if record.fatal and record.generation == residency.generation:
                    # Opening is how a session that could not go on starts anew.
                    await residency.engine.call(Forget(residency.engine.next_id(), record.key), type(None))
                    record.generation = 0
                await self._introduce(record, residency)
            except BaseException:
                self.give_back(record)
                raise
            return NodeSession(self, self._handle(record, residency), record)

    def give_back(self, record: SessionRecord) -> None:
        """Who opened the session closes it. One that never held anything is forgotten, when its last call is over."""
        record.given_back()
        if record.unused:
            self.forget(record, self._slot.resident)

    async def remove(self, name: str, workspace: str, model: str) -> None:
        """See :meth:`modeld.session.ModelService.remove_session`."""
        await self._keeper.known()
        record = self._only(workspace, name, model)
        if record.active:
            raise SessionBusyError(
                f"a call on session {name!r} runs; cancel it or wait for its end", name=name, workspace=workspace
            )
        self._registry.remove(record)
        self._forget(record, self._slot.resident)

    @asynccontextmanager
    async def bound(self, handle: SessionHandle, *, continues: bool = False) -> AsyncIterator[Bound]:
        """Have the session's model resident, and the engine know the session, while the body runs.

        :param continues: the call goes on from what the handle's last one left behind.
        :raises StaleGenerationError: the model behind the handle is another one now.
        :raises StaleEpochError: what the call goes on from ended with an earlier owner.
        """
        bound = await self._bind(handle, continues=continues)
        try:
            yield bound
            await self._keeper.marked(bound.record)
        finally:
            self._unbind(bound)

    def away(self, handle: SessionHandle) -> SessionRecord | None:
        """The session's record, where no engine knows the session now and to ask one would load its model."""
        record = self._registry.find(handle.workspace, handle.name, handle.ref.digest)
        resident = self._slot.resident
        if record is None or handle.epoch > self.epoch:
            return None
        here = resident and resident.holds(record.ref) and resident.adapters.holds(record.config.adapters)
        return None if here else record

    async def start_stream(
        self, session: NodeSession, request: RequestMaker, *, continues: bool = False
    ) -> EngineStream:
        """Send a request that streams; the session is bound until its end. ``continues`` as for :meth:`bound`."""
        bound = await self._bind(session.handle, continues=continues)
        engine = bound.residency.engine

        def finish(end: EndPart) -> EndPart:
            session.saw(bound.residency.generation)
            self.totals.answered(end.usage)
            return msgspec.structs.replace(end, receipt=bound.stamp(end.cost()))

        try:
            stream = engine.stream(request(engine.next_id(), bound.record), finish)
        except BaseException:
            self._unbind(bound)
            raise
        stream.end.add_done_callback(lambda _: self._unbind(bound))
        try:
            # The engine works on the prompt meanwhile.
            await self._keeper.marked(bound.record)
        except BaseException:
            stream.abandon()
            raise
        return stream

    async def branch(self, bound: Bound, name: str, workspace: str) -> tuple[SessionRecord, bool]:
        """The record that a fork of the session goes to, and whether it was made for that."""
        known = self._registry.find(workspace, name, bound.record.ref.digest)
        if known is bound.record:
            raise InvalidRequestError("a session cannot be forked onto itself: give another name", parameter="name")
        if known is not None and known.active:
            raise SessionBusyError(
                f"a call on session {name!r} runs, so nothing can be forked to it; wait for its end",
                name=name,
                workspace=workspace,
            )
        config = msgspec.structs.replace(bound.record.config, name=name, workspace=workspace)
        record = self._registry.open(bound.record.ref, config)
        await self._introduce(record, bound.residency)
        return record, known is None

    def forget(self, record: SessionRecord, residency: Residency | None) -> None:
        """The record was made for a call that failed."""
        if self._registry.by_key(record.key) is record:
            self._registry.remove(record)
            self._forget(record, residency)

    async def _bind(self, handle: SessionHandle, *, continues: bool) -> Bound:
        if handle.epoch > self.epoch:
            raise StaleEpochError(
                f"epoch {handle.epoch} served this session already, and this owner has {self.epoch}; connect again",
                epoch=handle.epoch,
                current=self.epoch,
            )
        await self._keeper.known()
        resident = self._slot.resident
        config = SessionConfig(workspace=handle.workspace, name=handle.name)
        record, ref = self._registry.find(handle.workspace, handle.name, handle.ref.digest), handle.ref
        if record is not None:
            # A handle that was made of what `sessions` tells has no type and no path.
            config, ref = record.config, ref if ref.path else record.ref
        if continues and handle.epoch < self.epoch and (record is None or not record.carried):
            raise StaleEpochError(
                f"session {handle.name!r} was last served by epoch {handle.epoch}, and its tape went with that owner; "
                f"epoch {self.epoch} has none: call ensure_prefix or turn first",
                epoch=handle.epoch,
                current=self.epoch,
            )
        if resident is not None and resident.holds(ref):
            # Its file need not be there any more, and is not read again for each call.
            model = resident.model
        else:
            model = await self._loader.generating(ref)
        same = resident is not None and model is resident.model and resident.adapters.holds(config.adapters)
        adapters = resident.adapters if resident and same else await self._loader.adapters(model, config)
        residency = await self._slot.acquire(Want(model, config.context, config.kv_type, adapters))
        try:
            return await self._rebind(handle, residency, record or self._registry.open(ref, config))
        except BaseException:
            self._slot.release(residency)
            raise

    async def _rebind(self, handle: SessionHandle, residency: Residency, record: SessionRecord) -> Bound:
        here = handle.epoch == self.epoch  # else the generations of two owners have nothing to do with each other
        if handle.generation > residency.generation and here:
            raise StaleGenerationError(
                f"the handle is of generation {handle.generation}, which this node never had; open the session again",
                generation=handle.generation,
                current=residency.generation,
            )
        rebound = not here or handle.generation != residency.generation
        field = record.manifest.difference(residency.ready.manifest) if record.manifest and rebound else None
        if field is not None:
            raise StaleGenerationError(
                f"the model was loaded again with another {field.replace('_', ' ')}: this is generation "
                f"{residency.generation}, the handle has {handle.generation}; open the session again",
                generation=handle.generation,
                current=residency.generation,
            )
        await self._introduce(record, residency)
        record.active += 1
        record.used()
        self.active += 1
        return Bound(record, residency, rebound, self.totals)

    def _unbind(self, bound: Bound) -> None:
        bound.record.active -= 1
        bound.record.used()
        self.active -= 1
        if bound.record.unused:
            self.forget(bound.record, bound.residency)
        self._slot.release(bound.residency)

    async def _introduce(self, record: SessionRecord, residency: Residency) -> None:
        state = await self._keeper.load(record) if record.generation < residency.generation else b""
        ready = residency.ready
        opening = self._registry.introduce(record, residency.generation, ready.manifest, ready.window, state)
        if opening is not None:
            residency.engine.tell(opening)

    def expire(self, residency: Residency | None) -> None:
        """Forget the sessions whose own ttl has passed."""
        for record in self._registry.expired():
            self._forget(record, residency)

    def _forget(self, record: SessionRecord, residency: Residency | None) -> None:
        self._keeper.remove(record)
        if residency is not None and record.generation == residency.generation:
            # Not waited for: nobody can ask for the session by this key any more.
            residency.engine.send(Forget(residency.engine.next_id(), record.key))

    def _handle(self, record: SessionRecord, residency: Residency) -> SessionHandle:
        return SessionHandle(
            workspace=record.config.workspace,
            name=record.config.name,
            ref=record.ref,
            generation=residency.generation,
            window=residency.ready.window,
            epoch=self.epoch,
        )

    def _only(self, workspace: str, name: str, model: str) -> SessionRecord:
        """The one record of that name, on that model where one is named."""
        found = [r for r in self._registry.named(workspace, name) if model in ("", r.ref.name, r.ref.digest)]
        if len(found) == 1:
            return found[0]
        where = f"session {name!r} in workspace {workspace!r}"
        if found:
            models = ", ".join(f"{r.ref.name} ({r.ref.digest[:12]})" for r in found)
            raise InvalidRequestError(f"there is a {where} on several models: name one of {models}", parameter="model")
        there = f"there is no {where}" + (f" on {model}" if model else "")
        raise SessionNotFoundError(f"{there}; `modeld ps` names all", name=name, workspace=workspace)

    # EngineListener

    def tape_changed(self, tape: Tape) -> None:
        """The engine tells what is on a session's tape."""
        record = self._registry.tape_changed(tape)
        if record is not None and record.fatal:
            self._keeper.remove(record)

    def held(self, held: Held) -> None:
        """The engine tells what it holds."""
        self._registry.held = held

    def session_state(self, state: State) -> None:
        """The engine tells all of a session but its KV."""
        self._keeper.told(state)

    def asked(self, request: SessionRequest) -> None:
        """The engine was sent a request."""
        self._keeper.asked(request)

    def evicted(self, sessions: tuple[int, ...]) -> None:
        """The engine took sessions' KV for others."""
        self._registry.evicted(sessions)

    def engine_died(self, engine: EngineProcess, error: EngineCrashedError) -> None:
        """The engine process is gone."""
        self.totals.engine_died(meant=engine.stopping)
        self._slot.engine_died(engine, error)
