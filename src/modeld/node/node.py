"""The node: :class:`modeld.session.ModelService` over one slot, a model store and a registry of sessions."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from msgspec import Struct

from modeld._version import __version__
from modeld.engine.fake.settings import fake_pooling, fake_settings
from modeld.engine.protocol import Audit, Device, Forget, Held, Load, SessionRequest, State, Tape
from modeld.errors import (
    CapacityError,
    EngineCrashedError,
    InvalidRequestError,
    ModeldError,
    NotSupportedError,
    SessionBusyError,
    SessionNotFoundError,
    StaleEpochError,
    StaleGenerationError,
)
from modeld.node.adapters import AdapterSet, find_adapters
from modeld.node.capacity import AUTO_CELLS, MemoryState, disk_budget, free_memory, make_plan, ram_budget, require
from modeld.node.device import DeviceKeeper
from modeld.node.engine_process import EngineProcess, EngineStream, start_engine
from modeld.node.facts_book import FactsBook, declared
from modeld.node.session import Bound, NodeSession, RequestMaker
from modeld.node.session_keeper import SessionKeeper
from modeld.node.sessions import SessionRecord, SessionRegistry, kept_tokens
from modeld.node.slot import Residency, Slot, Want
from modeld.node.snapshots import SnapshotStore
from modeld.node.store import ModelStore, ResolvedModel
from modeld.node.texts import TextCalls
from modeld.node.totals import RunningTotals
from modeld.session.text_values import Embeddings, EmbedInput, InputOverflow, Ranking, RenderedPrompt, TokenList
from modeld.session.values import (
    AuditReport,
    EngineStatus,
    InstalledModel,
    Ledger,
    ModelDescription,
    ModelRef,
    NodeStatus,
    Plan,
    SessionConfig,
    SessionHandle,
    SessionInfo,
    SnapshotInfo,
)
from modeld.template_facts import TemplateFacts
from modeld.types import EndPart, Message, Tool

SEQUENCES = 64
"""Conversations whose KV an engine holds at a time. Each costs a row of logits: 39 MB in all for 152,000 tokens."""

FAKE_CELLS = 32768

KV_FOLDER = "kv"
"""Of the data root: KV that outlives its engine."""

FLUSH_SECONDS = 10.0
"""How long a node that closes waits for sessions to be written."""


class NodeConfig(Struct, frozen=True, kw_only=True):
    """How a node runs.

    :param idle_ttl: seconds without use until the engine process exits; 0 never.
    :param threads: of the engine; 0 is its own choice.
    :param sequences: conversations whose KV the engine holds at a time.
    :param cells: tokens of KV in the engine, at most, where no session asks for more.
    :param ram: bytes of main memory for KV that leaves the engine; ``None``: as :func:`ram_budget` says.
    :param disk: bytes of files for KV that leaves main memory; 0: none, as with ``ram`` 0; ``None``: as
        :func:`disk_budget` says.
    :param allow_fake: serve models named ``fake…`` by the engine without native code.
    """

    data_root: Path
    idle_ttl: float = 300.0
    threads: int = 0
    sequences: int = SEQUENCES
    cells: int = AUTO_CELLS
    ram: int | None = None
    disk: int | None = None
    allow_fake: bool = False


class Node:
    """Owns the slot and the sessions. Belongs to one event loop; holds no lease of its own and listens nowhere.

    :param instance_id: of the owner. :param epoch: likewise.
    :param resident_changed: called with the engine's name after each change of what is resident.
    """

    def __init__(
        self,
        config: NodeConfig,
        *,
        instance_id: str = "",
        epoch: int = 0,
        resident_changed: Callable[[str], None] = lambda backend: None,
    ) -> None:
        self.config = config
        self.endpoints: tuple[str, ...] = ()
        self.http = ""
        self.store = ModelStore(config.data_root, allow_fake=config.allow_fake)
        self.snapshot_store = SnapshotStore(config.data_root)
        self._instance_id = instance_id
        self.epoch = epoch
        self._resident_changed = resident_changed
        self._slot = Slot(self._load, self._slot_changed, config.idle_ttl)
        self._texts = TextCalls(
            config.data_root, lambda: self._slot.resident, threads=config.threads, idle_ttl=config.idle_ttl
        )
        self._registry = SessionRegistry()
        self._keeper = SessionKeeper(config.data_root / "sessions", self._registry)
        self._facts = FactsBook(config.data_root)
        self._leases = DeviceKeeper(config.data_root, instance_id, epoch)
        self._devices: dict[str, tuple[Device, ...]] = {}
        self._started = time.monotonic()
        self._active = 0
        self._totals = RunningTotals()

    # ModelService

    async def open_session(self, ref: ModelRef | str, config: SessionConfig | None = None) -> NodeSession:
        """See :meth:`modeld.session.ModelService.open_session`."""
        config = config or SessionConfig()
        want = await self._want(ref, config)
        await self._keeper.known()
        async with self._slot.use(want) as residency:
            self._expire(residency)
            config = msgspec.structs.replace(config, adapters=want.adapters.adapters)
            record = self._registry.open(want.model.ref, config)
            if record.fatal and record.generation == residency.generation:
                # Opening is how a session that could not go on starts anew.
                await residency.engine.call(Forget(residency.engine.next_id(), record.key), type(None))
                record.generation = 0
            await self._introduce(record, residency)
            return NodeSession(self, self._handle(record, residency))

    def attach(self, handle: SessionHandle) -> NodeSession:
        """See :meth:`modeld.session.ModelService.attach`."""
        return NodeSession(self, handle)

    async def describe(self, ref: ModelRef | str, config: SessionConfig | None = None) -> ModelDescription:
        """See :meth:`modeld.session.ModelService.describe`."""
        config = config or SessionConfig()
        model = await self._resolve(ref)
        want = Want(model, config.context, config.kv_type, await self._adapters(model, config))
        resident = self._slot.resident
        here = resident is not None and resident.serves(want)
        if here and resident is not None:
            plan = resident.plan
        elif model.header is not None and not model.header.writes_text:
            plan = await self._texts.plan("embed", want)
        else:
            plan = await self._plan(want, await self._known_devices(model.type))
        header = model.header
        facts = resident.ready.template if here and resident is not None else await self._template_facts(model)
        return ModelDescription(
            name=model.name,
            type=model.type,
            digest=model.digest,
            path=model.path,
            size=model.size,
            architecture=header.architecture if header else "fake",
            quantization=header.file_type if header else "",
            parameters=header.parameters if header else 0,
            layers=header.block_count if header else 0,
            context_length=header.context_length if header else FAKE_CELLS,
            sliding_window=header.sliding_window if header else 0,
            vocabulary=header.vocabulary if header else 0x110000,
            has_template=facts.source != "default",
            tools=facts.tools,
            thinking=facts.thinking,
            resident=here,
            plan=plan,
            template=facts,
            generates=header.writes_text if header else True,
            embeds=model.type != "openvino" and (header.pooling if header else fake_pooling(model.name)) != "rank",
            pooling=header.pooling if header else fake_pooling(model.name),
            adapters=want.adapters.adapters,
            adapts=model.type != "openvino" and (header.writes_text if header else True),
        )

    async def _template_facts(self, model: ResolvedModel) -> TemplateFacts:
        if model.header is None:
            return TemplateFacts(source="declared")
        seen = await asyncio.to_thread(self._facts.of, model.digest)
        return seen or declared(model.header.chat_template)

    async def models(self) -> list[InstalledModel]:
        """See :meth:`modeld.session.ModelService.models`."""
        listed = await asyncio.to_thread(self.store.list)
        resident = self._slot.resident
        path = resident.model.path if resident else None
        return [msgspec.structs.replace(model, resident=model.path == path) for model in listed]

    async def load(
        self, ref: ModelRef | str, config: SessionConfig | None = None, *, generation: int = 0
    ) -> NodeStatus:
        """See :meth:`modeld.session.ModelService.load`."""
        async with self._slot.use(await self._want(ref, config or SessionConfig()), generation):
            return await self.status()

    async def unload(self, *, generation: int = 0) -> NodeStatus:
        """See :meth:`modeld.session.ModelService.unload`."""
        await self._slot.unload(generation)
        await self._texts.unload()
        return await self.status()

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
        """See :meth:`modeld.session.ModelService.embed`."""
        return await self._texts.embed(
            await self._resolve(ref),
            inputs,
            normalize=normalize,
            dimensions=dimensions,
            overflow=overflow,
            context=context,
        )

    async def rerank(
        self,
        ref: ModelRef | str,
        query: str,
        documents: Iterable[str],
        *,
        overflow: InputOverflow = "error",
        context: int = 0,
    ) -> Ranking:
        """See :meth:`modeld.session.ModelService.rerank`."""
        model = await self._resolve(ref)
        return await self._texts.rerank(model, query, documents, overflow=overflow, context=context)

    async def tokenize(self, ref: ModelRef | str, text: str, *, add_special: bool = True) -> TokenList:
        """See :meth:`modeld.session.ModelService.tokenize`."""
        return await self._texts.tokenize(await self._resolve(ref), text, add_special=add_special)

    async def detokenize(self, ref: ModelRef | str, tokens: Sequence[int]) -> bytes:
        """See :meth:`modeld.session.ModelService.detokenize`."""
        return await self._texts.detokenize(await self._resolve(ref), tokens)

    async def render(
        self,
        ref: ModelRef | str,
        messages: Sequence[Message],
        *,
        tools: Sequence[Tool] = (),
        think: str = "auto",
        generate: bool = True,
    ) -> RenderedPrompt:
        """See :meth:`modeld.session.ModelService.render`."""
        return await self._texts.render(await self._resolve(ref), messages, tools, think, generate=generate)

    async def status(self) -> NodeStatus:
        """See :meth:`modeld.session.ModelService.status`."""
        await self._keeper.known()
        slot, resident = self._slot, self._slot.resident
        pids = (os.getpid(), resident.engine.pid) if resident else (os.getpid(),)
        rss = await asyncio.to_thread(_resident_bytes, pids)
        return NodeStatus(
            instance_id=self._instance_id,
            epoch=self.epoch,
            pid=os.getpid(),
            version=__version__,
            data_root=str(self.config.data_root),
            endpoints=self.endpoints,
            http=self.http,
            state=slot.state,
            generation=slot.generation,
            uptime=time.monotonic() - self._started,
            idle_ttl=slot.idle_ttl,
            rss=rss[0],
            model=resident.model.name if resident else "",
            digest=resident.model.digest if resident else "",
            context=resident.plan.context if resident else 0,
            ledger=self._ledger(resident),
            engine=EngineStatus(
                pid=resident.engine.pid, backend=resident.model.type, build=resident.hello.build, rss=rss[1]
            )
            if resident
            else None,
            sessions=len(self._registry),
            active=self._active,
            idle_seconds=time.monotonic() - slot.last_used,
            last_error=slot.last_error,
            sides=await self._texts.status(),
            kv_type=resident.plan.kv_type if resident else "",
            adapters=resident.adapters.adapters if resident else (),
            plan=resident.plan if resident else None,
            waiting=slot.waiting,
            totals=self._totals.now,
        )

    async def sessions(self) -> list[SessionInfo]:
        """See :meth:`modeld.session.ModelService.sessions`."""
        await self._keeper.known()
        resident = self._slot.resident
        self._expire(resident)
        generation = resident.generation if resident else 0
        pid = resident.engine.pid if resident else 0
        kept = await kept_tokens(resident.engine) if resident else {}
        return [record.info(generation, pid, kept.get(record.key)) for record in self._registry.latest_first()]

    async def audit(self) -> AuditReport:
        """See :meth:`modeld.session.ModelService.audit`."""
        resident = self._slot.resident
        if resident is None:
            return AuditReport()
        faults = await resident.engine.call(Audit(resident.engine.next_id()), tuple[str, ...])
        return AuditReport(ledger=self._ledger(resident), faults=faults)

    async def remove_session(self, name: str, *, workspace: str = "default", model: str = "") -> None:
        """See :meth:`modeld.session.ModelService.remove_session`."""
        await self._keeper.known()
        record = self._only(workspace, name, model)
        if record.active:
            raise SessionBusyError(
                f"a call on session {name!r} runs; cancel it or wait for its end", name=name, workspace=workspace
            )
        self._registry.remove(record)
        self._forget(record, self._slot.resident)

    async def snapshots(self) -> list[SnapshotInfo]:
        """See :meth:`modeld.session.ModelService.snapshots`."""
        return await asyncio.to_thread(self.snapshot_store.list)

    async def remove_snapshot(self, snapshot_id: str) -> None:
        """See :meth:`modeld.session.ModelService.remove_snapshot`."""
        await asyncio.to_thread(self.snapshot_store.remove, snapshot_id)

    def export_snapshot(self, snapshot_id: str) -> AsyncGenerator[bytes, None]:
        """See :meth:`modeld.session.ModelService.export_snapshot`."""
        return self.snapshot_store.send(snapshot_id)

    async def import_snapshot(self, data: AsyncIterable[bytes], *, snapshot_id: str = "") -> SnapshotInfo:
        """See :meth:`modeld.session.ModelService.import_snapshot`."""
        return await self.snapshot_store.receive(data, snapshot_id)

    async def aclose(self) -> None:
        """End the engine, and write what is to be kept of sessions. Running calls fail."""
        await asyncio.gather(self._slot.close(), self._texts.aclose())
        await self._leases.released()
        await self._keeper.aclose(FLUSH_SECONDS)

    def refuse(self, error: ModeldError) -> None:
        """End all that uses the model, and refuse all that will, with ``error``: the node is not the owner any more."""
        self._keeper.refuse()
        self._slot.refuse(error)
        self._texts.refuse(error)

    # For the node's own sessions

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
            self._totals.answered(end.usage)
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

    def forget(self, record: SessionRecord, residency: Residency) -> None:
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
            model = await self._generating(ref)
        same = resident is not None and model is resident.model and resident.adapters.holds(config.adapters)
        adapters = resident.adapters if resident and same else await self._adapters(model, config)
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
        self._active += 1
        return Bound(record, residency, rebound, self._totals)

    def _unbind(self, bound: Bound) -> None:
        bound.record.active -= 1
        bound.record.used()
        self._active -= 1
        self._slot.release(bound.residency)

    async def _introduce(self, record: SessionRecord, residency: Residency) -> None:
        state = await self._keeper.load(record) if record.generation < residency.generation else b""
        ready = residency.ready
        opening = self._registry.introduce(record, residency.generation, ready.manifest, ready.window, state)
        if opening is not None:
            residency.engine.tell(opening)

    def _expire(self, residency: Residency | None) -> None:
        """Forget the sessions whose own ttl has passed."""
        for record in self._registry.expired():
            self._forget(record, residency)

    def _forget(self, record: SessionRecord, residency: Residency | None) -> None:
        self._keeper.remove(record)
        if residency is not None and record.generation == residency.generation:
            # Not waited for: nobody can ask for the session by this key any more.
            residency.engine.send(Forget(residency.engine.next_id(), record.key))

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

    def _handle(self, record: SessionRecord, residency: Residency) -> SessionHandle:
        return SessionHandle(
            workspace=record.config.workspace,
            name=record.config.name,
            ref=record.ref,
            generation=residency.generation,
            window=residency.ready.window,
            epoch=self.epoch,
        )

    def _ledger(self, residency: Residency | None) -> Ledger:
        if residency is None:
            return Ledger()
        held, plan = self._registry.held, residency.plan
        return Ledger(
            cells=plan.cells,
            cells_used=held.cells,
            hot=held.cells * plan.kv_bytes_per_token,
            hot_budget=plan.cells * plan.kv_bytes_per_token,
            ram=held.ram,
            ram_budget=residency.ram,
            disk=held.disk,
            disk_budget=residency.disk,
        )

    # Loading

    async def _resolve(self, ref: ModelRef | str) -> ResolvedModel:
        return await asyncio.to_thread(lambda: self.store.resolve(ModelRef.of(ref)))

    async def _generating(self, ref: ModelRef | str) -> ResolvedModel:
        """The model. It is looked at before anything makes room for it.

        :raises NotSupportedError: it writes no text.
        """
        model = await self._resolve(ref)
        if model.header is not None and not model.header.writes_text:
            raise NotSupportedError(
                f"{model.name} ({model.header.architecture}) makes vectors or scores, not text: use embed or rerank",
                feature="chat",
            )
        return model

    async def _want(self, ref: ModelRef | str, config: SessionConfig) -> Want:
        model = await self._generating(ref)
        return Want(model, config.context, config.kv_type, await self._adapters(model, config))

    async def _adapters(self, model: ResolvedModel, config: SessionConfig) -> AdapterSet:
        if not config.adapters:
            return AdapterSet()
        if model.header is not None and not model.header.writes_text:
            raise NotSupportedError(f"adapters go on models that write text, and {model.name} does not", feature="lora")
        return await asyncio.to_thread(find_adapters, self.store, model, config.adapters)

    async def _load(self, want: Want, generation: int) -> Residency:
        engine = await start_engine(self, want.model.type, self.config.data_root, want.model.name)
        try:
            hello = await engine.hello
            self._devices[want.model.type] = hello.devices
            await self._leases.take(hello.devices, engine.pid, engine.gone)
            plan = await self._plan(want, hello.devices)
            if not plan.fits and await self._texts.make_room():
                plan = await self._plan(want, hello.devices)
            require(plan)
            ram, disk = await self._ram(plan), await self._disk()
            ready = await engine.load(
                Load(
                    want.model.path,
                    want.model.name,
                    want.model.digest,
                    plan.cells,
                    plan.context,
                    want.kv_type,
                    self.config.sequences,
                    threads=self.config.threads,
                    gpu_layers=plan.gpu_layers,
                    ram=ram,
                    disk=disk,
                    kv_folder=str(self.config.data_root / KV_FOLDER),
                    adapters=want.adapters.adapters,
                )
            )
        except BaseException:
            await engine.stop()
            raise
        await asyncio.to_thread(self._facts.learn, want.model.digest, ready.template)
        return Residency(want.model, plan, ready, hello, engine, generation, ram, disk if ram else 0, want.adapters)

    async def _plan(self, want: Want, devices: tuple[Device, ...]) -> Plan:
        header = want.model.header
        if header is None:
            return _fake_plan(want)
        device = max(devices, key=lambda device: device.free, default=None)
        memory = MemoryState(device.free, device.total) if device is not None else await asyncio.to_thread(free_memory)
        beside = 0 if device is not None else await self._texts.beside()
        resident = self._slot.resident
        return make_plan(
            msgspec.structs.replace(header, file_size=header.file_size + want.adapters.size),
            request=want.context,
            kv_type=want.kv_type,
            free=max(memory.free - beside, 0),
            total=memory.total,
            sequences=self.config.sequences,
            reclaimable=resident.plan.required if resident is not None else 0,
            device=device.name if device is not None else "cpu",
            gpu_layers=-1 if device is not None else 0,
            most=self.config.cells,
        )

    async def _ram(self, plan: Plan) -> int:
        if self.config.ram is not None:
            return self.config.ram
        return ram_budget((await asyncio.to_thread(free_memory)).free, plan)

    async def _disk(self) -> int:
        if self.config.disk is not None:
            return self.config.disk
        return await asyncio.to_thread(disk_budget, self.config.data_root, self.config.data_root / KV_FOLDER)

    async def _known_devices(self, backend: str) -> tuple[Device, ...]:
        """The engine knows the devices: ask one that was started before, or one started for the question."""
        if backend not in self._devices and self._slot.resident is None and backend != "fake":
            engine = await start_engine(self, backend, self.config.data_root, "a look at the devices")
            try:
                self._devices[backend] = (await engine.hello).devices
            finally:
                await engine.stop()
        return self._devices.get(backend, ())

    def _slot_changed(self) -> None:
        if self._slot.resident is None:
            self._registry.engine_gone("unloaded" if self._slot.state == "unloading" else "engine_lost")
        self._resident_changed(self._slot.last_backend)

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
        self._totals.engine_died(meant=engine.stopping)
        self._slot.engine_died(engine, error)


def _fake_plan(want: Want) -> Plan:
    window = int(fake_settings(want.model.name)["window"])
    if want.context > window:
        raise CapacityError(
            f"a session of {want.context} tokens is more than the fake model's {window}",
            context=want.context,
            max_context=window,
        )
    return Plan(
        fits=True,
        context=want.context or window,
        cells=FAKE_CELLS,
        max_context=window,
        kv_bytes_per_token=4,
        kv_type=want.kv_type,
        weights=0,
        kv=4 * FAKE_CELLS,
        overhead=0,
        required=4 * FAKE_CELLS,
        free=0,
        reserve=0,
        usable=0,
    )


def _resident_bytes(pids: tuple[int, ...]) -> tuple[int, ...]:
    import psutil

    sizes = []
    for pid in pids:
        try:
            sizes.append(psutil.Process(pid).memory_info().rss)
        except psutil.Error:
            sizes.append(0)
    return tuple(sizes)
