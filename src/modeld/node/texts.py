"""Calls without a session: vectors, scores, tokens, prompts. None of them switches the resident model.

Vectors and scores come from an engine beside the resident one. Tokens are counted by the resident engine where it has
the model and the text is short, else by a third one that has no weights, so that a long text holds up no stream and
counting for one model does not push another's vectors out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, TypeVar

from msgspec import structs

from modeld.engine.fake.settings import fake_settings
from modeld.engine.protocol import (
    RESIDENT_TEXT,
    Detokenize,
    Embed,
    Render,
    Rerank,
    TextRequest,
    Tokenize,
    request_size,
)
from modeld.errors import EngineCrashedError, InvalidRequestError, ModeldError, NotSupportedError
from modeld.node.capacity import MemoryState, free_memory
from modeld.node.ir import IRHeader
from modeld.node.side import SideEngine, SideTask
from modeld.node.side_plan import SIDE_CONTEXT, embed_plan, vocabulary_plan
from modeld.node.slot import Residency, Want
from modeld.node.store import ResolvedModel
from modeld.session.text_values import (
    Embeddings,
    EmbedInput,
    InputOverflow,
    Ranking,
    RenderedPrompt,
    TokenList,
    check_size,
    embed_inputs,
    rank_documents,
)
from modeld.session.values import Plan, SideStatus
from modeld.thinking import parse_think
from modeld.types import Message, Tool

T = TypeVar("T")

_TASKS: Final[tuple[SideTask, SideTask]] = ("embed", "vocabulary")


class TextCalls:
    """The engines beside the resident one, and what they are asked. Belongs to the event loop's thread.

    :param resident: what the node's slot holds now.
    """

    def __init__(
        self, data_root: Path, resident: Callable[[], Residency | None], *, threads: int, idle_ttl: float
    ) -> None:
        self._resident = resident
        self._vectors, self._words = (
            SideEngine(task, data_root, self.plan, threads=threads, idle_ttl=idle_ttl) for task in _TASKS
        )
        self._sides = (self._vectors, self._words)

    async def embed(
        self,
        model: ResolvedModel,
        inputs: Iterable[str | Sequence[int] | EmbedInput],
        *,
        normalize: bool,
        dimensions: int | None,
        overflow: InputOverflow,
        context: int,
    ) -> Embeddings:
        """See :meth:`modeld.session.ModelService.embed`."""
        checked = embed_inputs(inputs)
        want = _vector_want(model, context)
        return await self._vectors.call(
            want, lambda id_: Embed(id_, checked, normalize, dimensions, overflow), Embeddings
        )

    async def rerank(
        self, model: ResolvedModel, query: str, documents: Iterable[str], *, overflow: InputOverflow, context: int
    ) -> Ranking:
        """See :meth:`modeld.session.ModelService.rerank`."""
        checked = rank_documents(query, documents)
        want = _vector_want(model, context)
        return await self._vectors.call(want, lambda id_: Rerank(id_, query, checked, overflow), Ranking)

    async def tokenize(self, model: ResolvedModel, text: str, *, add_special: bool) -> TokenList:
        """See :meth:`modeld.session.ModelService.tokenize`."""
        return await self._count(model, lambda id_: Tokenize(id_, text, add_special), TokenList)

    async def detokenize(self, model: ResolvedModel, tokens: Sequence[int]) -> bytes:
        """See :meth:`modeld.session.ModelService.detokenize`."""
        ids = tuple(tokens)
        return await self._count(model, lambda id_: Detokenize(id_, ids), bytes)

    async def render(
        self, model: ResolvedModel, messages: Sequence[Message], tools: Sequence[Tool], think: str, *, generate: bool
    ) -> RenderedPrompt:
        """See :meth:`modeld.session.ModelService.render`."""
        asked = Render(0, tuple(messages), tuple(tools), parse_think(think), generate)
        return await self._count(model, lambda id_: structs.replace(asked, id=id_), RenderedPrompt)

    async def plan(self, task: SideTask, want: Want) -> Plan:
        """Whether the model fits beside what is resident."""
        header = want.model.header
        if header is None:
            return _fake_plan(want)
        memory = await asyncio.to_thread(free_memory)
        taken = await self.owed(self._resident(), *(side.slot.resident for side in self._sides if side.task != task))
        if task == "vocabulary":
            return vocabulary_plan(header, memory, taken)
        if isinstance(header, IRHeader):
            raise _no_vectors(want.model)
        own = self._vectors.slot.resident
        # What is replaced will be free.
        freed = await asyncio.to_thread(_private, own.engine.pid) if own is not None else 0
        return embed_plan(header, want.context, MemoryState(memory.free + freed, memory.total), taken)

    async def owed(self, *residencies: Residency | None) -> int:
        """Bytes of main memory that engines were promised and do not use yet.

        The weights are among them always: they are mapped, and count as free memory while they are read.
        """
        owed = 0
        for residency in residencies:
            if residency is not None:
                plan = residency.plan
                promised = (plan.required if plan.device == "cpu" else 0) + residency.ram
                owed += max(promised - await asyncio.to_thread(_private, residency.engine.pid), 0)
        return owed

    async def beside(self) -> int:
        """:meth:`owed` to the engines beside the resident one."""
        return await self.owed(*(side.slot.resident for side in self._sides))

    async def make_room(self) -> bool:
        """End the engines that nobody uses. Whether there was one."""
        return any([await side.make_room() for side in self._sides])

    async def unload(self) -> None:
        """End the engines once running calls are done."""
        for side in self._sides:
            await side.slot.unload()

    async def status(self) -> tuple[SideStatus, ...]:
        """The engines that run."""
        found = []
        for side in self._sides:
            if (resident := side.slot.resident) is not None:
                rss = await asyncio.to_thread(_resident_bytes, resident.engine.pid)
                found.append(_status(side, resident, rss))
        return tuple(found)

    def refuse(self, error: ModeldError) -> None:
        """See :meth:`modeld.node.slot.Slot.refuse`."""
        for side in self._sides:
            side.slot.refuse(error)

    async def aclose(self) -> None:
        """End the engines. Calls that run fail."""
        await asyncio.gather(*(side.slot.close() for side in self._sides))

    async def _count(self, model: ResolvedModel, request: Callable[[int], TextRequest], type_: type[T]) -> T:
        size = request_size(request(0))
        check_size(size, "text")
        resident = self._resident()
        if size <= RESIDENT_TEXT and resident is not None and resident.holds(model.ref) and resident.engine.alive:
            engine = resident.engine
            try:
                return await engine.call(request(engine.next_id()), type_)
            except EngineCrashedError:
                # It was ended meanwhile, perhaps for another model: counting must not bring it back.
                pass
        return await self._words.call(Want(model, 0, "f16"), request, type_)


def _no_vectors(model: ResolvedModel) -> NotSupportedError:
    text = f"{model.name} is an OpenVINO model, which embeds and ranks nothing here: use a GGUF"
    return NotSupportedError(text, feature="embed")


def _vector_want(model: ResolvedModel, context: int) -> Want:
    if isinstance(model.header, IRHeader):
        raise _no_vectors(model)
    trained = model.header.context_length if model.header else int(fake_settings(model.name)["window"])
    if not 0 <= context <= trained:
        raise InvalidRequestError(
            f"context is 0 to {trained} tokens, which {model.name} was trained for, not {context}", parameter="context"
        )
    return Want(model, context or min(trained, SIDE_CONTEXT), "f16")


def _status(side: SideEngine, resident: Residency, rss: int) -> SideStatus:
    return SideStatus(
        task=side.task,
        state=side.slot.state,
        model=resident.model.name,
        digest=resident.model.digest,
        pid=resident.engine.pid,
        backend=resident.model.type,
        context=resident.plan.context,
        rss=rss,
    )


def _fake_plan(want: Want) -> Plan:
    return Plan(
        fits=True,
        context=want.context,
        cells=want.context,
        max_context=want.context,
        kv_bytes_per_token=0,
        kv_type="f16",
        weights=0,
        kv=0,
        overhead=0,
        required=0,
        free=0,
        reserve=0,
        usable=0,
    )


def _private(pid: int) -> int:
    """Bytes of a process that are its alone; 0 where it is gone."""
    import psutil

    try:
        memory = psutil.Process(pid).memory_info()
    except psutil.Error:
        return 0
    return int(memory.rss - getattr(memory, "shared", 0))


def _resident_bytes(pid: int) -> int:
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0
