"""The slot: the one place where a model is resident, and the queue of those who want it.

Callers are served in the order they came. Those who want the resident model use it together; one who wants another
waits until nobody uses it, and so does everybody who came after: a running call is never interrupted, nobody starves.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from time import monotonic

from msgspec import Struct

from modeld.engine.protocol import Hello, Ready
from modeld.errors import EngineCrashedError, ModeldError, NodeError, StaleGenerationError
from modeld.node.adapters import AdapterSet
from modeld.node.engine_process import EngineProcess
from modeld.node.store import ResolvedModel
from modeld.session.values import ModelRef, Plan, SlotState

SETTLE_SECONDS = 10.0
"""How long an engine that is about to end may take to put away what is worth keeping."""


class Want(Struct, frozen=True):
    """What a caller needs to be resident."""

    model: ResolvedModel
    context: int
    kv_type: str
    adapters: AdapterSet = AdapterSet()


class Residency(Struct, frozen=True):
    """A model in an engine. ``generation`` numbers it among all that this node had.

    :param ram: bytes that KV which left the engine may take in main memory. :param disk: likewise, in files.
    """

    model: ResolvedModel
    plan: Plan
    ready: Ready
    hello: Hello
    engine: EngineProcess
    generation: int
    ram: int = 0
    disk: int = 0
    adapters: AdapterSet = AdapterSet()

    def holds(self, ref: ModelRef) -> bool:
        """It is this model, by what the file holds, with whatever adapters."""
        return (self.model.type, self.model.digest) == (ref.type, ref.digest)

    def serves(self, want: Want) -> bool:
        """A smaller context is served by a larger plan; another name for the same file is the same model."""
        return (
            self.engine.alive
            and not self.engine.stopping
            and self.holds(want.model.ref)
            and self.plan.kv_type == want.kv_type
            and self.plan.context >= want.context
            and self.adapters.identity == want.adapters.identity
        )


Loader = Callable[[Want, int], Awaitable[Residency]]
_Waiter = tuple[Want | None, "asyncio.Future[Residency | None]", int]
"""What is wanted (``None``: nothing resident), the answer, and the generation the caller expects."""


class Slot:
    """State of the slot. Belongs to the event loop's thread; nothing in it blocks.

    :param load: starts an engine and loads; gets the generation the residency will have.
    :param changed: called after every change of state.
    :param idle_ttl: seconds without use until the engine exits; 0 never.
    """

    def __init__(self, load: Loader, changed: Callable[[], None], idle_ttl: float) -> None:
        self._load = load
        self._changed = changed
        self.idle_ttl = idle_ttl
        self.state: SlotState = "empty"
        self.generation = 0
        self.resident: Residency | None = None
        self.users = 0
        self.last_error = ""
        self.last_used = monotonic()
        self.last_backend = "none"
        self._waiters: deque[_Waiter] = deque()
        self._change: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._refusal: ModeldError | None = None

    @asynccontextmanager
    async def use(self, want: Want, generation: int = 0) -> AsyncIterator[Residency]:
        """Have a model resident for as long as the body runs.

        :param generation: the last one the caller knows of; 0 asks for none.
        :raises StaleGenerationError: there was a newer one when its turn came.
        :raises ModeldError: it could not be loaded.
        """
        residency = await self.acquire(want, generation)
        try:
            yield residency
        finally:
            self.release(residency)

    async def acquire(self, want: Want, generation: int = 0) -> Residency:
        """As :meth:`use`, for callers that cannot be a block; each needs one :meth:`release`."""
        residency = await self._wait(want, generation)
        assert residency is not None
        return residency

    @property
    def waiting(self) -> int:
        """Callers whose turn has not come."""
        return sum(not future.done() for _, future, _ in self._waiters)

    async def unload(self, generation: int = 0) -> None:
        """End the engine once those who came before are done. ``generation`` as for :meth:`use`."""
        await self._wait(None, generation)

    async def close(self) -> None:
        """End the engine. Calls that run, wait or come fail."""
        settles = self._refusal is None
        self._turn_away(NodeError("the node is closing; connect to the next one"))
        if self._timer is not None:
            self._timer.cancel()
        if self._change is not None:
            self._change.cancel()
            await asyncio.gather(self._change, return_exceptions=True)
        if self._ending is not None:
            await asyncio.gather(self._ending, return_exceptions=True)
        if self.resident is not None:
            engine, self.resident = self.resident.engine, None
            self._be("unloading")
            await self._end(engine, settles=settles)
        self._be("empty")

    def refuse(self, error: ModeldError) -> None:
        """Serve nobody from now on: who waits, who uses the model and who comes gets ``error``. Nothing is kept."""
        self._turn_away(error)
        if self._ending is not None:
            self._ending.cancel()

    def _turn_away(self, error: ModeldError) -> None:
        self._refusal = error
        for _, future, _ in self._waiters:
            if not future.done():
                future.set_exception(error)
        if self.resident is not None:
            self.resident.engine.refuse(error)

    async def _wait(self, want: Want | None, generation: int = 0) -> Residency | None:
        if self._refusal is not None:
            raise self._refusal
        future: asyncio.Future[Residency | None] = asyncio.get_running_loop().create_future()
        self._waiters.append((want, future, generation))
        self._pump()
        try:
            return await future
        except asyncio.CancelledError:
            # It may have been granted in the same moment.
            if future.done() and not future.cancelled() and future.exception() is None:
                granted = future.result()
                if granted is not None:
                    self.release(granted)
            self._pump()
            raise

    def release(self, residency: Residency) -> None:
        """The caller is done with it."""
        if residency is self.resident:
            self.users -= 1
            self.last_used = monotonic()
        self._pump()

    def engine_died(self, engine: EngineProcess, error: EngineCrashedError) -> None:
        """The engine is gone: the slot empties, and the next caller loads again."""
        if self.resident is not None and self.resident.engine is engine:
            self.resident, self.users = None, 0
            if not engine.stopping:
                self.state, self.last_error = "failed", error.message
                self._changed()
            self._pump()

    def _pump(self) -> None:
        """Serve from the head of the queue as far as that goes."""
        while self._waiters and self._change is None and self._refusal is None:
            want, future, generation = self._waiters[0]
            if future.done():
                self._waiters.popleft()
            elif generation not in (0, self.generation):
                self._waiters.popleft()
                future.set_exception(
                    StaleGenerationError(
                        f"the call was meant for generation {generation} and this is {self.generation}; look again",
                        generation=generation,
                        current=self.generation,
                    )
                )
            elif want is None and self.resident is None:
                self._waiters.popleft()
                self.state = "empty"
                future.set_result(None)
            elif want is not None and self.resident is not None and self.resident.serves(want):
                self._waiters.popleft()
                self.users += 1
                self.last_used = monotonic()
                future.set_result(self.resident)
            elif self.users == 0:
                # What comes now is this caller's own doing.
                self._waiters[0] = (want, future, 0)
                self._change = asyncio.ensure_future(self._replace(want, future))
                self._change.add_done_callback(self._changed_over)
            else:
                return
        self._arm()

    async def _replace(self, want: Want | None, future: asyncio.Future[Residency | None]) -> None:
        """Unload what is resident, then load what is wanted."""
        if self.resident is not None:
            old, self.resident = self.resident, None
            self._be("unloading")
            # Shielded: a node that closes meanwhile waits for it.
            self._ending = asyncio.ensure_future(self._end(old.engine))
            await asyncio.shield(self._ending)
        if want is None:
            self._be("empty")
            return
        self._be("loading")
        self.generation += 1
        try:
            residency = await self._load(want, self.generation)
        except ModeldError as error:
            self.last_error = error.message
            self._be("failed")
            if not future.done():
                future.set_exception(error)
        except OSError as error:
            self.last_error = str(error)
            self._be("failed")
            if not future.done():
                future.set_exception(EngineCrashedError(f"the engine could not be started: {error}"))
        else:
            self.resident, self.users, self.last_error = residency, 0, ""
            self.last_backend = residency.model.type
            self._be("ready")

    async def _end(self, engine: EngineProcess, *, settles: bool = True) -> None:
        try:
            if settles:
                await engine.settle(SETTLE_SECONDS)
        finally:
            await engine.stop()

    def _changed_over(self, task: asyncio.Task[None]) -> None:
        self._change = None
        if task.cancelled():
            return
        if (error := task.exception()) is not None:
            self.state, self.last_error = "failed", str(error)
            if self._waiters and not self._waiters[0][1].done():
                self._waiters.popleft()[1].set_exception(error)
        self._pump()

    def _be(self, state: SlotState) -> None:
        self.state = state
        self._changed()

    def _arm(self) -> None:
        """Look again when the resident model will have been idle for long enough."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.idle_ttl and self.resident is not None and not self.users and not self._waiters:
            rest = max(0.0, self.last_used + self.idle_ttl - monotonic())
            self._timer = asyncio.get_running_loop().call_later(rest, self._idle)

    def _idle(self) -> None:
        if not self.users and not self._waiters and self._change is None:
            self._waiters.append((None, asyncio.get_running_loop().create_future(), 0))
        self._pump()
