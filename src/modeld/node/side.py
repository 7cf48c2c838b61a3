"""An engine process beside the resident one, for calls that have no session.

It has a slot of its own, so nothing it does switches the resident model. It ends when it was idle, with the node, and
when the node loses its lease; its death costs those who wait a typed error, and the next call starts another.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, Literal, TypeVar

from modeld.engine.protocol import Held, Load, SessionRequest, State, Tape, TextRequest, VectorRequest
from modeld.errors import EngineCrashedError
from modeld.node.capacity import require
from modeld.node.engine_process import EngineProcess, start_engine
from modeld.node.side_plan import SIDE_SEQUENCES
from modeld.node.slot import Residency, Slot, Want
from modeld.session.values import Plan

SideTask = Literal["embed", "vocabulary"]

NO_DEVICES: Final = {"CUDA_VISIBLE_DEVICES": "-1", "HIP_VISIBLE_DEVICES": "-1"}
"""The processor is enough here, and a library that only looks at an accelerator takes memory of it."""

_LOCKS: Final[dict[SideTask, str]] = {"embed": "side.lock", "vocabulary": "vocabulary.lock"}

T = TypeVar("T")


class SideEngine:
    """One model at a time. Belongs to the event loop's thread.

    :param plan: whether a model fits now, beside what is resident. :param threads: of the engine; 0 is its own choice.
    :param idle_ttl: seconds without use until the process exits; 0 never.
    """

    def __init__(
        self,
        task: SideTask,
        data_root: Path,
        plan: Callable[[SideTask, Want], Awaitable[Plan]],
        *,
        threads: int,
        idle_ttl: float,
    ) -> None:
        self.task = task
        self._data_root = data_root
        self._plan = plan
        self._threads = threads
        self.slot = Slot(self._load, lambda: None, idle_ttl)

    async def call(self, want: Want, request: Callable[[int], TextRequest | VectorRequest], type_: type[T]) -> T:
        """Ask an engine that has the model, and wait for the answer. Cancelling the wait ends the work.

        :param request: makes it, given its id. :raises ModeldError: as the engine says, or it could not be loaded.
        """
        async with self.slot.use(want) as residency:
            return await residency.engine.call(request(residency.engine.next_id()), type_)

    async def make_room(self) -> bool:
        """End the engine where nobody uses it. Whether that gave memory back."""
        if self.slot.resident is None or self.slot.users:
            return False
        await self.slot.unload()
        return True

    async def _load(self, want: Want, generation: int) -> Residency:
        plan = await self._plan(self.task, want)
        require(plan)
        name = want.model.name
        engine = await start_engine(
            self, want.model.type, self._data_root, name, lock=_LOCKS[self.task], environment=NO_DEVICES
        )
        try:
            hello = await engine.hello
            load = Load(
                want.model.path,
                name,
                want.model.digest,
                plan.cells,
                plan.context,
                sequences=SIDE_SEQUENCES,
                batch=plan.context,
                threads=self._threads,
                task=self.task,
            )
            ready = await engine.load(load)
        except BaseException:
            await engine.stop()
            raise
        return Residency(want.model, plan, ready, hello, engine, generation)

    # EngineListener: without sessions there is nothing to hear of but the end.

    def tape_changed(self, tape: Tape) -> None:
        """There are no tapes."""

    def held(self, held: Held) -> None:
        """There is no KV."""

    def session_state(self, state: State) -> None:
        """There are no sessions."""

    def asked(self, request: SessionRequest) -> None:
        """There are no sessions."""

    def evicted(self, sessions: tuple[int, ...]) -> None:
        """There are no sessions."""

    def engine_died(self, engine: EngineProcess, error: EngineCrashedError) -> None:
        """The process is gone."""
        self.slot.engine_died(engine, error)
