"""Contract: LoRA adapters change the output as a reference says, and KV of one set is never used under another."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from modeld.errors import (
    DigestMismatchError,
    InvalidRequestError,
    ManifestMismatchError,
    ModelNotFoundError,
    NotSupportedError,
)
from modeld.node.config import NodeConfig
from modeld.node.node import Node
from modeld.session import Adapter, SessionConfig
from modeld.types import DecodeOptions, Message
from support.adapters import Adapted, Lora
from support.engines import ENGINES

from .conftest import WAYS, World, make_world

pytestmark = pytest.mark.anyio

GREEDY = DecodeOptions(temperature=0, max_tokens=24)


@dataclass
class Adapters:
    """A node reached one way, and two adapters for its model."""

    world: World
    one: Adapter
    two: Adapter

    async def say(self, adapters: tuple[Adapter, ...], ask: str = "", name: str = "") -> str:
        """The answer to a question, in a new session unless named."""
        session = await self.world.open(name, adapters=adapters)
        asked = [Message("user", ask or self.world.engine.asks[1])]
        return (await session.turn(asked, think="off", options=GREEDY).join()).text

    async def generation(self) -> int:
        return (await self.world.service.status()).generation


Loras = tuple[Lora, Lora]


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Loras:
    folder = tmp_path_factory.mktemp("adapters")
    return Lora(folder / "one.gguf", strength=0.14), Lora(folder / "two.gguf", rank=8, seed=1, strength=0.6)


@pytest.fixture(scope="module")
def wanted(loras: Loras) -> Callable[..., list[int]]:
    """What tiny answers with adapters merged into it, each with its scale; 0 leaves it out."""

    @cache
    def computed(*scales: float) -> list[int]:
        merged = [(lora, scale) for lora, scale in zip(loras, scales, strict=True) if scale]
        case = ENGINES["llama"]
        return Adapted(merged).greedy(case.prompt([Message("user", case.asks[1])], think="off"), 16)

    return computed


@pytest.fixture(params=[f"{name}-{way}" for name, engine in ENGINES.items() if engine.adapts for way in WAYS])
async def adapters(request: pytest.FixtureRequest, tmp_path: Path, loras: Loras) -> AsyncIterator[Adapters]:
    engine, _, way = request.param.partition("-")
    root = tmp_path / "root"
    root.mkdir()
    async with AsyncExitStack() as stack:
        yield prepared(await make_world(stack, ENGINES[engine], way, root), loras)


def prepared(world: World, loras: Loras) -> Adapters:
    if world.engine.name == "fake":
        return Adapters(world, Adapter("fake-one", 1.5), Adapter("fake-two", 0.5))
    one, two = (Adapter(path=str(lora.path), scale=scale) for lora, scale in zip(loras, (1.5, 0.5), strict=True))
    return Adapters(world, one, two)


@pytest.mark.parametrize("name", ENGINES)
async def test_a_description_says_whether_adapters_go_on_a_model(name: str, tmp_path: Path, loras: Loras) -> None:
    (tmp_path / "root").mkdir()
    async with AsyncExitStack() as stack:
        world = await make_world(stack, ENGINES[name], "unix", tmp_path / "root")
        assert (await world.service.describe(world.engine.ref)).adapts == world.engine.adapts
        if not world.engine.adapts:
            with pytest.raises(NotSupportedError, match="adapters go on GGUF models only"):
                await world.open("", adapters=(Adapter(path=str(loras[0].path)),))


async def test_output_is_what_the_reference_computes(adapters: Adapters, wanted: Callable[..., list[int]]) -> None:
    world, one, two = adapters.world, adapters.one, adapters.two
    sets = ((), (one,), (two,), (one, two))
    answers = {chosen: await adapters.say(chosen) for chosen in sets}
    assert len(set(answers.values())) == len(sets)
    for chosen in sets if world.engine.name == "llama" else ():
        tokens = wanted(*(a.scale if a in chosen else 0.0 for a in (one, two)))
        text = (await world.service.detokenize(world.engine.ref, tokens)).decode()
        assert len(text.partition("<|im_end|>")[0]) > 10
        assert answers[chosen].startswith(text.partition("<|im_end|>")[0])


async def test_a_set_is_one_whatever_its_order_and_another_one_is_a_switch(adapters: Adapters) -> None:
    one, two, service = adapters.one, adapters.two, adapters.world.service
    first = await adapters.say((one, two))
    generation = await adapters.generation()
    assert await adapters.say((two, one)) == first
    assert await adapters.generation() == generation
    status = await service.status()
    assert sorted(a.scale for a in status.adapters) == [0.5, 1.5]
    assert all(len(a.digest) == 64 for a in status.adapters)
    listed = (await service.sessions())[0]
    assert listed.adapters == status.adapters
    other = Adapter(two.name, 0.75, path=two.path)
    for switch, chosen in enumerate([(one,), (one, other), ()], 1):
        await adapters.say(chosen)
        assert await adapters.generation() == generation + switch
    assert (await service.status()).adapters == ()
    loaded = await service.load(adapters.world.engine.ref, SessionConfig(adapters=(two, one)))
    assert loaded.adapters == status.adapters


async def test_kv_of_another_set_is_never_used(adapters: Adapters) -> None:
    one, world = adapters.one, adapters.world
    talk = [Message("system", "Stones, rivers and kites. " * 60), Message("user", world.engine.asks[1])]
    size = len(world.engine.prompt(talk))
    answers = []
    for chosen in ((), (one,), ()):
        session = await world.open("talk", adapters=chosen)
        result = await session.turn(talk, options=GREEDY).join()
        answers.append(result.text)
        receipt = result.receipt
        if len(answers) < 3:
            assert (receipt.reused, receipt.restored, receipt.prefilled) == (0, 0, size)
    # Its own came back from files.
    assert receipt.restored >= size // 2
    assert answers[0] == answers[2] != answers[1]
    again = await world.open("talk", adapters=(one,))
    result = await again.turn(talk, options=GREEDY).join()
    assert result.receipt.stop is not None
    assert result.receipt.stop.reason == "model_changed"
    assert "the adapters was nothing and is " in result.receipt.stop.detail
    assert result.text == answers[1]


async def test_a_handle_comes_back_to_its_own_set(adapters: Adapters) -> None:
    session = await adapters.world.open(adapters=(adapters.one,))
    asked = [Message("user", adapters.world.engine.asks[1])]
    first = await session.turn(asked, options=GREEDY).join()
    await adapters.say(())
    report = await session.explain()  # loads nothing
    assert report.manifest is not None
    assert len(report.manifest.adapters) == 1
    assert (await adapters.world.service.status()).adapters == ()
    again = await session.turn(asked, options=GREEDY).join()
    assert again.text == first.text
    assert len((await adapters.world.service.status()).adapters) == 1


async def test_a_snapshot_is_refused_under_another_set(adapters: Adapters) -> None:
    one, two, world = adapters.one, adapters.two, adapters.world
    session = await world.open(adapters=(one,))
    await session.turn([Message("user", world.engine.asks[1])], options=GREEDY).join()
    saved = await session.snapshot()
    assert saved.config is not None
    assert [(a.path, a.scale) for a in saved.config.adapters] == [("", 1.5)]
    for chosen in ((), (two,), (one, two)):
        with pytest.raises(ManifestMismatchError) as caught:
            await (await world.open(adapters=chosen)).restore(saved.id)
        assert caught.value.field == "adapters"
    same = await (await world.open(adapters=(one,))).restore(saved.id)
    assert same.receipt.restored == saved.tokens


async def test_a_fork_has_the_set_of_its_source(adapters: Adapters) -> None:
    session = await adapters.world.open(adapters=(adapters.one,))
    asked = [Message("user", adapters.world.engine.asks[1])]
    first = await session.turn(asked, options=GREEDY).join()
    generation = await adapters.generation()
    branch = await (await session.fork(adapters.world.fresh_name())).turn(asked, options=GREEDY).join()
    assert branch.text == first.text
    assert branch.receipt.prefilled == adapters.world.engine.again(asked)
    assert await adapters.generation() == generation


async def test_a_set_that_is_none_changes_nothing(adapters: Adapters) -> None:
    one, service, ref = adapters.one, adapters.world.service, adapters.world.engine.ref
    await adapters.say((one,))
    before = await service.status()
    twice = (one, Adapter(one.name, 0.5, path=one.path))
    wrong = Adapter(one.name, digest="0" * 64, path=one.path)
    for chosen, error in (
        (twice, InvalidRequestError),
        ((wrong,), DigestMismatchError),
        ((Adapter("nobody"),), ModelNotFoundError),
        ((Adapter(path="/nowhere/at/all.gguf"),), ModelNotFoundError),
    ):
        for work in (adapters.world.open(adapters=chosen), service.describe(ref, SessionConfig(adapters=chosen))):
            with pytest.raises(error):
                await work
    after = await service.status()
    assert (after.generation, after.adapters, after.state) == (before.generation, before.adapters, "ready")


@pytest.mark.parametrize("engine", [name for name, engine in ENGINES.items() if engine.adapts])
async def test_the_next_node_takes_up_what_rested_under_the_same_set(tmp_path: Path, engine: str, loras: Loras) -> None:
    case, root = ENGINES[engine], tmp_path / "root"
    root.mkdir()
    talk = [Message("system", "Stones, rivers and kites. " * 60), Message("user", case.asks[1])]
    texts = []
    for start in range(2):
        async with AsyncExitStack() as stack:
            world = await make_world(stack, case, "in-process", root)
            made = prepared(world, loras)
            session = await world.open("talk", adapters=(made.one, made.two))
            result = await session.turn(talk, options=GREEDY).join()
            texts.append(result.text)
            restored = result.receipt.restored
            assert (restored >= len(case.prompt(talk)) // 2) == bool(start)
    assert texts[0] == texts[1]


async def test_an_adapter_is_found_by_name_and_counts_in_the_plan(tmp_path: Path) -> None:
    folder = tmp_path / "root" / "models"
    folder.mkdir(parents=True)
    lora = Lora(folder / "poet.gguf")
    node = Node(NodeConfig(data_root=tmp_path / "root"))
    try:
        ref = ENGINES["llama"].ref
        bare, named = [await node.describe(ref, SessionConfig(adapters=chosen)) for chosen in ((), (Adapter("poet"),))]
        assert named.plan.weights - bare.plan.weights == lora.path.stat().st_size
        assert named.adapters[0].path == str(lora.path)
        shutil.copy(lora.path, tmp_path / "copy.gguf")
        await node.load(ref, SessionConfig(adapters=(Adapter("poet"),)))
        same = await node.load(ref, SessionConfig(adapters=(Adapter(path=str(tmp_path / "copy.gguf")),)))
        assert same.generation == 1
        (listed,) = [model for model in await node.models() if model.name == "poet"]
        assert "it is an adapter" in listed.error
        # Another file under the name is another set.
        Lora(lora.path, seed=5)
        assert (await node.load(ref, SessionConfig(adapters=(Adapter("poet"),)))).generation == 2
    finally:
        await node.aclose()


def test_relative_paths_are_the_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = SessionConfig(adapters=(Adapter(path="near.gguf"), Adapter("poet"), Adapter.of("a=b.gguf=-0.5")))
    assert [adapter.path for adapter in config.absolute().adapters] == [
        str(tmp_path / "near.gguf"),
        "",
        str(tmp_path / "a=b.gguf"),
    ]
    assert [adapter.scale for adapter in config.adapters] == [1.0, 1.0, -0.5]


@pytest.mark.parametrize(
    "wrong", [{}, {"name": "a\n"}, {"path": "a\0"}, {"name": "a", "scale": 0.0}, {"name": "a", "scale": float("nan")}]
)
def test_what_cannot_be_an_adapter_is_refused_where_it_is_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        Adapter(**wrong)
    for scale in ("inf", "1e30", "0", "nan"):
        with pytest.raises(InvalidRequestError, match="scale"):
            Adapter.of(f"poet.gguf={scale}")
    with pytest.raises(InvalidRequestError, match="at most 16"):
        SessionConfig(adapters=(Adapter("poet"),) * 17)
