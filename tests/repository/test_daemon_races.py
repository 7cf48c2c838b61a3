"""Hazard: backends are registered, replaced, removed and called at once; one is lost, or a call sees half of one."""

import asyncio
import random
import threading
import time
from collections.abc import Iterator

import pytest
from msgspec import structs

from modeld import BackendNotFoundError, InvalidRequestError, Message
from modeld.repository import (
    BackendSpec,
    CapabilityConfig,
    CatalogOptions,
    CatalogProvider,
    Daemon,
    ObservedModel,
    Provider,
)
from modeld.testing import MockProvider

pytestmark = pytest.mark.anyio

SECONDS = 10.0


class SlowCatalog:
    """Complete only at the end of its construction, like a catalog that reads a file."""

    def __init__(self, spec: BackendSpec) -> None:
        self.spec = spec
        self.complete = False
        time.sleep(random.uniform(0, 0.003))
        self.complete = True
        self.closed = 0

    @property
    def type(self) -> str:
        return self.spec.type

    async def list_models(self) -> list[ObservedModel]:
        assert self.complete
        await asyncio.sleep(random.uniform(0, 0.003))
        return [ObservedModel(name=self.spec.base_url, capabilities=NOTHING)]

    def provider_for(self, model: ObservedModel | str) -> Provider:
        assert self.complete
        name = model if isinstance(model, str) else model.name
        return MockProvider(id=f"{self.spec.base_url}/{name}", name=name, can_chat=True)

    async def aclose(self) -> None:
        self.closed += 1


NOTHING = CapabilityConfig(
    context_length=0,
    max_output_tokens=0,
    can_chat=True,
    can_embed=False,
    can_stream=False,
    can_prompt=False,
    can_think=False,
    can_vision=False,
)


class SlowFactory:
    """Refuses the spec whose URL is ``bad``."""

    def new_catalog_provider(self, spec: BackendSpec, options: CatalogOptions | None = None) -> CatalogProvider:
        if spec.base_url == "bad":
            raise InvalidRequestError("bad spec")
        return SlowCatalog(spec)


async def test_two_hundred_tasks_for_ten_seconds_lose_nothing() -> None:
    daemon = Daemon(catalog_factory=SlowFactory())
    await daemon.register_backend("steady", BackendSpec("x", "steady"))
    end = time.monotonic() + SECONDS
    counts = dict.fromkeys(("register", "remove", "list", "call"), 0)

    async def owner(number: int) -> None:
        """Alone with its id: what it registers must be there."""
        id, round = f"own-{number}", 0
        while time.monotonic() < end:
            round += 1
            await daemon.register_backend(id, BackendSpec("x", f"{id}-{round}"))
            counts["register"] += 1
            assert id in daemon.list_backends()
            (model,) = await daemon.list_models(id)
            assert model.name == f"{id}-{round}"
            with pytest.raises(InvalidRequestError):
                await daemon.register_backend(id, BackendSpec("x", "bad"))
            assert daemon.spec(id).base_url == f"{id}-{round}"
            if round % 3 == 0:
                daemon.remove_backend(id)
                counts["remove"] += 1
                assert id not in daemon.list_backends()

    async def rival(number: int) -> None:
        """Several on the same id: it is one of theirs, whole, or gone."""
        id = f"shared-{number % 5}"
        while time.monotonic() < end:
            await daemon.register_backend(id, BackendSpec("x", f"{id}-{number}"))
            counts["register"] += 1
            daemon.remove_backend(random.choice((id, "never-there")))
            await asyncio.sleep(0)

    async def caller(number: int) -> None:
        while time.monotonic() < end:
            ids = daemon.list_backends()
            assert ids == sorted(ids)
            assert "steady" in ids
            counts["list"] += 1
            id = random.choice(ids)
            try:
                (model,) = await daemon.list_models(id)
                client = await daemon.provider_for(id, model).chat_client()
            except BackendNotFoundError:
                assert id != "steady"
            else:
                assert (await client.chat([Message("user", "x")])).text == "mock response"
                counts["call"] += 1

    async with asyncio.timeout(SECONDS + 30):
        await asyncio.gather(*(job(n) for n in range(67) for job in (owner, rival, caller)))
    assert min(counts.values()) > 200, counts


async def test_threads_with_loops_of_their_own_share_a_daemon() -> None:
    daemon = Daemon(catalog_factory=SlowFactory())
    failures: list[BaseException] = []

    async def work(number: int) -> None:
        for round in range(20):
            await daemon.register_backend(f"{number}", BackendSpec("x", f"{number}-{round}"))
            (model,) = await daemon.list_models(f"{number}")
            assert model.name == f"{number}-{round}"

    def run(number: int) -> None:
        try:
            asyncio.run(work(number))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    await asyncio.to_thread(lambda: [thread.join() for thread in threads])
    assert failures == []
    assert daemon.list_backends() == sorted(str(n) for n in range(8))


@pytest.fixture
def no_default() -> Iterator[None]:
    before, Daemon._default = Daemon._default, None
    yield
    Daemon._default = before


@pytest.mark.usefixtures("no_default")
def test_the_default_is_built_once_under_a_hundred_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Daemon] = []
    real = Daemon.__init__

    def slow(self: Daemon) -> None:
        time.sleep(0.01)
        built.append(self)
        real(self)

    monkeypatch.setattr(Daemon, "__init__", slow)
    start = threading.Barrier(100)
    found: list[Daemon] = []

    def ask() -> None:
        start.wait()
        found.append(Daemon.default())

    threads = [threading.Thread(target=ask) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1
    assert {id(daemon) for daemon in found} == {id(built[0])}


async def test_listing_holds_no_lock() -> None:
    """A listing that hangs does not keep anybody from registering, removing and listing."""
    hanging = asyncio.Event()

    class Hanging(SlowCatalog):
        async def list_models(self) -> list[ObservedModel]:
            hanging.set()
            await asyncio.Event().wait()
            return []

    class Factory:
        def new_catalog_provider(self, spec: BackendSpec, options: CatalogOptions | None = None) -> CatalogProvider:
            return Hanging(spec) if spec.base_url == "hang" else SlowCatalog(spec)

    daemon = Daemon(catalog_factory=Factory())
    await daemon.register_backend("a", BackendSpec("x", "hang"))
    task = asyncio.create_task(daemon.list_models("a"))
    await hanging.wait()
    async with asyncio.timeout(5):
        await daemon.register_backend("b", BackendSpec("x", "b"))
        await daemon.register_backend("a", BackendSpec("x", "new"))
        daemon.remove_backend("b")
        assert [model.name for model in await daemon.list_models("a")] == ["new"]
    assert not task.done()
    task.cancel()


async def test_a_failed_replacement_keeps_what_was_there() -> None:
    daemon = Daemon(catalog_factory=SlowFactory())
    await daemon.register_backend("a", BackendSpec("x", "first"))
    with pytest.raises(InvalidRequestError):
        await daemon.register_backend("a", BackendSpec("x", "bad"))
    assert [model.name for model in await daemon.list_models("a")] == ["first"]


async def test_a_replaced_backend_is_closed_and_a_call_that_runs_ends_on_it() -> None:
    made: list[SlowCatalog] = []

    class Factory(SlowFactory):
        def new_catalog_provider(self, spec: BackendSpec, options: CatalogOptions | None = None) -> CatalogProvider:
            made.append(SlowCatalog(spec))
            return made[-1]

    daemon = Daemon(catalog_factory=Factory())
    await daemon.register_backend("a", BackendSpec("x", "old"))
    running = asyncio.create_task(daemon.list_models("a"))
    await asyncio.sleep(0)
    await daemon.register_backend("a", BackendSpec("x", "new"))
    assert [model.name for model in await running] == ["old"]
    assert [catalog.closed for catalog in made] == [1, 0]
    daemon.remove_backend("a")
    await asyncio.sleep(0.01)
    assert [catalog.closed for catalog in made] == [1, 1]


async def test_unknown_ids_are_named_and_removing_one_is_nothing() -> None:
    daemon = Daemon(catalog_factory=SlowFactory())
    await daemon.register_backend("known", BackendSpec("x", "u"))
    daemon.remove_backend("unknown")
    with pytest.raises(BackendNotFoundError, match=r"'unknown'.*known"):
        await daemon.list_models("unknown")
    with pytest.raises(BackendNotFoundError):
        daemon.provider_for("unknown", "m")
    with pytest.raises(InvalidRequestError):
        await daemon.register_backend("", BackendSpec("x", "u"))
    assert daemon.list_backends() == ["known"]
    assert Daemon(catalog_factory=SlowFactory()).list_backends() == []


async def test_it_works_after_stop_and_can_be_stopped_again() -> None:
    daemon = Daemon(catalog_factory=SlowFactory())
    await daemon.register_backend("a", BackendSpec("x", "u"))
    for _ in range(2):
        await daemon.stop()
        assert [model.name for model in await daemon.list_models("a")] == ["u"]


def test_without_a_loop_removing_still_works() -> None:
    daemon = Daemon(catalog_factory=SlowFactory())
    asyncio.run(daemon.register_backend("a", BackendSpec("x", "u")))
    daemon.remove_backend("a")
    assert daemon.list_backends() == []


def test_a_key_is_not_in_a_repr() -> None:
    spec = BackendSpec("openai", "https://x.example", api_key="very-secret")
    assert "very-secret" not in f"{spec!r} {structs.replace(spec, type='x')!r}"
