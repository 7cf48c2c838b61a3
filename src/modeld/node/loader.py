"""From a reference to a resident model: which one it is, whether it fits, and the engine that loads it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import msgspec

from modeld.engine.fake.settings import fake_pooling, fake_settings
from modeld.engine.protocol import Device, Load
from modeld.errors import CapacityError, NotSupportedError
from modeld.node.adapters import AdapterSet, find_adapters
from modeld.node.capacity import MemoryState, disk_budget, free_memory, make_plan, ram_budget, require
from modeld.node.config import NodeConfig
from modeld.node.device import DeviceKeeper
from modeld.node.engine_process import EngineListener, start_engine
from modeld.node.facts_book import FactsBook, declared
from modeld.node.slot import Residency, Want
from modeld.node.store import ModelStore, ResolvedModel
from modeld.node.texts import TextCalls
from modeld.session.values import ModelDescription, ModelRef, Plan, SessionConfig
from modeld.template_facts import TemplateFacts

FAKE_CELLS: Final = 32768

KV_FOLDER: Final = "kv"
"""Of the data root: KV that outlives its engine."""


class ModelLoader:
    """What a node knows of models, engines and devices. Belongs to the event loop's thread.

    :param texts: the engines beside the resident one, which take memory too. :param leases: of devices.
    :param resident: what the node's slot holds now.
    """

    def __init__(
        self,
        config: NodeConfig,
        store: ModelStore,
        texts: TextCalls,
        leases: DeviceKeeper,
        resident: Callable[[], Residency | None],
    ) -> None:
        self._config = config
        self._store = store
        self._texts = texts
        self._leases = leases
        self._resident = resident
        self._facts = FactsBook(config.data_root)
        self._devices: dict[str, tuple[Device, ...]] = {}

    async def resolve(self, ref: ModelRef | str) -> ResolvedModel:
        """See :meth:`ModelStore.resolve`."""
        return await asyncio.to_thread(lambda: self._store.resolve(ModelRef.of(ref)))

    async def generating(self, ref: ModelRef | str) -> ResolvedModel:
        """The model. It is looked at before anything makes room for it.

        :raises NotSupportedError: it writes no text.
        """
        model = await self.resolve(ref)
        if model.header is not None and not model.header.writes_text:
            raise NotSupportedError(
                f"{model.name} ({model.header.architecture}) makes vectors or scores, not text: use embed or rerank",
                feature="chat",
            )
        return model

    async def want(self, ref: ModelRef | str, config: SessionConfig) -> Want:
        """What a session of that configuration needs to be resident."""
        model = await self.generating(ref)
        return Want(model, config.context, config.kv_type, await self.adapters(model, config))

    async def adapters(self, model: ResolvedModel, config: SessionConfig) -> AdapterSet:
        """The adapters that the configuration names, found and checked.

        :raises NotSupportedError: the model writes no text. :raises ModeldError: one cannot be used.
        """
        if not config.adapters:
            return AdapterSet()
        if model.header is not None and not model.header.writes_text:
            raise NotSupportedError(f"adapters go on models that write text, and {model.name} does not", feature="lora")
        return await asyncio.to_thread(find_adapters, self._store, model, config.adapters)

    async def describe(self, listener: EngineListener, ref: ModelRef | str, config: SessionConfig) -> ModelDescription:
        """See :meth:`modeld.session.ModelService.describe`."""
        model = await self.resolve(ref)
        want = Want(model, config.context, config.kv_type, await self.adapters(model, config))
        resident = self._resident()
        here = resident is not None and resident.serves(want)
        if here and resident is not None:
            plan = resident.plan
        elif model.header is not None and not model.header.writes_text:
            plan = await self._texts.plan("embed", want)
        else:
            plan = await self._plan(want, await self._known_devices(listener, model.type))
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

    async def load(self, listener: EngineListener, want: Want, generation: int) -> Residency:
        """Start an engine, make room, and load.

        :param listener: of the engine. :raises ModeldError: it does not fit, or could not be loaded.
        """
        engine = await start_engine(listener, want.model.type, self._config.data_root, want.model.name)
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
                    self._config.sequences,
                    threads=self._config.threads,
                    gpu_layers=plan.gpu_layers,
                    ram=ram,
                    disk=disk,
                    kv_folder=str(self._config.data_root / KV_FOLDER),
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
        resident = self._resident()
        return make_plan(
            msgspec.structs.replace(header, file_size=header.file_size + want.adapters.size),
            request=want.context,
            kv_type=want.kv_type,
            free=max(memory.free - beside, 0),
            total=memory.total,
            sequences=self._config.sequences,
            reclaimable=resident.plan.required if resident is not None else 0,
            device=device.name if device is not None else "cpu",
            gpu_layers=-1 if device is not None else 0,
            most=self._config.cells,
        )

    async def _ram(self, plan: Plan) -> int:
        if self._config.ram is not None:
            return self._config.ram
        return ram_budget((await asyncio.to_thread(free_memory)).free, plan)

    async def _disk(self) -> int:
        if self._config.disk is not None:
            return self._config.disk
        return await asyncio.to_thread(disk_budget, self._config.data_root, self._config.data_root / KV_FOLDER)

    async def _known_devices(self, listener: EngineListener, backend: str) -> tuple[Device, ...]:
        """The engine knows the devices: ask one that was started before, or one started for the question."""
        if backend not in self._devices and self._resident() is None and backend != "fake":
            engine = await start_engine(listener, backend, self._config.data_root, "a look at the devices")
            try:
                self._devices[backend] = (await engine.hello).devices
            finally:
                await engine.stop()
        return self._devices.get(backend, ())

    async def _template_facts(self, model: ResolvedModel) -> TemplateFacts:
        if model.header is None:
            return TemplateFacts(source="declared")
        seen = await asyncio.to_thread(self._facts.of, model.digest)
        return seen or declared(model.header.chat_template)


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
