"""The node: :class:`modeld.session.ModelService` over one slot, a model store and a registry of sessions."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Sequence

import msgspec

from modeld._version import __version__
from modeld.engine.protocol import Audit
from modeld.errors import (
    ModeldError,
)
from modeld.node.bindings import SessionBindings
from modeld.node.config import NodeConfig
from modeld.node.device import DeviceKeeper
from modeld.node.loader import ModelLoader
from modeld.node.session import NodeSession
from modeld.node.session_keeper import SessionKeeper
from modeld.node.sessions import SessionRegistry, kept_tokens
from modeld.node.slot import Residency, Slot, Want
from modeld.node.snapshots import SnapshotStore
from modeld.node.store import ModelStore
from modeld.node.texts import TextCalls
from modeld.session.text_values import Embeddings, EmbedInput, InputOverflow, Ranking, RenderedPrompt, TokenList
from modeld.session.values import (
    AuditReport,
    EngineStatus,
    InstalledModel,
    Ledger,
    ModelDescription,
    ModelRef,
    NodeStatus,
    SessionConfig,
    SessionHandle,
    SessionInfo,
    SnapshotInfo,
)
from modeld.types import Message, Tool

FLUSH_SECONDS = 10.0
"""How long a node that closes waits for sessions to be written."""


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
        self._leases = DeviceKeeper(config.data_root, instance_id, epoch)
        self._loader = ModelLoader(config, self.store, self._texts, self._leases, lambda: self._slot.resident)
        self._registry = SessionRegistry()
        self._keeper = SessionKeeper(config.data_root / "sessions", self._registry)
        self._bindings = SessionBindings(
            self._slot, self._loader, self._registry, self._keeper, self.snapshot_store, epoch
        )
        self._started = time.monotonic()

    # ModelService

    async def open_session(self, ref: ModelRef | str, config: SessionConfig | None = None) -> NodeSession:
        """See :meth:`modeld.session.ModelService.open_session`."""
        return await self._bindings.open(ref, config or SessionConfig())

    def attach(self, handle: SessionHandle) -> NodeSession:
        """See :meth:`modeld.session.ModelService.attach`."""
        return NodeSession(self._bindings, handle)

    async def describe(self, ref: ModelRef | str, config: SessionConfig | None = None) -> ModelDescription:
        """See :meth:`modeld.session.ModelService.describe`."""
        return await self._loader.describe(self._bindings, ref, config or SessionConfig())

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
        async with self._slot.use(await self._loader.want(ref, config or SessionConfig()), generation):
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
            await self._loader.resolve(ref),
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
        model = await self._loader.resolve(ref)
        return await self._texts.rerank(model, query, documents, overflow=overflow, context=context)

    async def tokenize(self, ref: ModelRef | str, text: str, *, add_special: bool = True) -> TokenList:
        """See :meth:`modeld.session.ModelService.tokenize`."""
        return await self._texts.tokenize(await self._loader.resolve(ref), text, add_special=add_special)

    async def detokenize(self, ref: ModelRef | str, tokens: Sequence[int]) -> bytes:
        """See :meth:`modeld.session.ModelService.detokenize`."""
        return await self._texts.detokenize(await self._loader.resolve(ref), tokens)

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
        return await self._texts.render(await self._loader.resolve(ref), messages, tools, think, generate=generate)

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
            active=self._bindings.active,
            idle_seconds=time.monotonic() - slot.last_used,
            last_error=slot.last_error,
            sides=await self._texts.status(),
            kv_type=resident.plan.kv_type if resident else "",
            adapters=resident.adapters.adapters if resident else (),
            plan=resident.plan if resident else None,
            waiting=slot.waiting,
            totals=self._bindings.totals.now,
        )

    async def sessions(self) -> list[SessionInfo]:
        """See :meth:`modeld.session.ModelService.sessions`."""
        await self._keeper.known()
        resident = self._slot.resident
        self._bindings.expire(resident)
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
        await self._bindings.remove(name, workspace, model)

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

    async def _load(self, want: Want, generation: int) -> Residency:
        return await self._loader.load(self._bindings, want, generation)

    def _slot_changed(self) -> None:
        if self._slot.resident is None:
            self._registry.engine_gone("unloaded" if self._slot.state == "unloading" else "engine_lost")
        self._resident_changed(self._slot.last_backend)


def _resident_bytes(pids: tuple[int, ...]) -> tuple[int, ...]:
    import psutil

    sizes = []
    for pid in pids:
        try:
            sizes.append(psutil.Process(pid).memory_info().rss)
        except psutil.Error:
            sizes.append(0)
    return tuple(sizes)
