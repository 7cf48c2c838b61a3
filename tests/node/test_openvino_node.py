"""Hazards of a node with a second kind of engine: what was computed is lost, the old engine's memory stays, a broken
folder takes the node along."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import numpy
import psutil
import pytest

from modeld.errors import CapacityError, InvalidModelError, ModeldError, NotSupportedError
from modeld.node.config import NodeConfig
from modeld.node.node import Node
from modeld.session import ModelRef, SessionConfig
from modeld.types import DecodeOptions, Message
from support.engines import ENGINES, TINY_F16, TINY_IR

pytestmark = pytest.mark.anyio

GREEDY = DecodeOptions(temperature=0, max_tokens=48)
CASE = ENGINES["openvino"]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    root = tmp_path / "root"
    root.mkdir()
    node = Node(NodeConfig(data_root=root))
    yield node
    await node.aclose()


async def test_a_snapshot_outlives_the_node_and_its_first_turn_prefills_what_is_new(tmp_path: Path) -> None:
    # Without files for KV: the snapshot alone brings it back.
    first = Node(NodeConfig(data_root=tmp_path, disk=0))
    messages = [Message("system", "You are kind. " * 40), Message("user", CASE.asks[3])]
    try:
        session = await first.open_session(CASE.ref)
        result = await session.turn(messages, options=GREEDY).join()
        saved = await session.snapshot()
    finally:
        await first.aclose()
    more = [*messages, result.message, Message("user", CASE.asks[4])]
    second = Node(NodeConfig(data_root=tmp_path, disk=0))
    try:
        session = await second.open_session(CASE.ref, SessionConfig(name="back"))
        await session.restore(saved.id)
        receipt = (warm := await session.turn(more, options=GREEDY).join()).receipt
        assert receipt.prefilled == len(CASE.prompt(more)) - result.receipt.resident
        cold = await second.open_session(CASE.ref, SessionConfig(name="cold", kv_type="f16"))
        await second.unload()
        again = await cold.turn(more, options=GREEDY).join()
        assert again.receipt.prefilled == len(CASE.prompt(more))
        assert again.text == warm.text
        assert (await audit(second)) == ()
    finally:
        await second.aclose()


async def audit(node: Node) -> tuple[str, ...]:
    """What the engine finds wrong when it counts in the states."""
    from modeld.engine.protocol import Audit

    engine = node._slot.resident
    assert engine is not None
    return tuple(await engine.engine.call(Audit(engine.engine.next_id()), tuple[str, ...]))


async def test_ten_turns_hold_in_the_states_what_the_receipts_say(node: Node, tmp_path: Path) -> None:
    session = await node.open_session(CASE.ref)
    conversation: list[Message] = []
    resident = 0
    for turn, ask in enumerate(CASE.asks):
        conversation.append(Message("user", ask))
        result = await session.turn(conversation, options=GREEDY).join()
        assert result.receipt.reused == resident
        assert result.receipt.prefilled == len(CASE.prompt(conversation)) - resident
        resident = result.receipt.resident
        assert (await node.status()).ledger.cells_used == resident
        assert (await audit(node)) == ()
        conversation.append(result.message)
        if turn in (0, 4, 9):
            # Greedy, and computed from nothing.
            cold = Node(NodeConfig(data_root=tmp_path))
            alone = await (await cold.open_session(CASE.ref)).turn(conversation[:-1], options=GREEDY).join()
            assert (alone.text, alone.receipt.reused) == (result.text, 0)
            await cold.aclose()
            shutil.rmtree(tmp_path / "kv", ignore_errors=True)
            shutil.rmtree(tmp_path / "sessions", ignore_errors=True)


async def test_a_fork_of_two_thousand_tokens_prefills_nothing(node: Node) -> None:
    session = await node.open_session(CASE.ref)
    system = Message("system", " ".join(f"Rule {n}: be kind." for n in range(330)))
    messages = [system, Message("user", CASE.asks[0])]
    first = await session.turn(messages, options=GREEDY).join()
    assert first.receipt.resident > 2000
    fork = await session.fork("branch")
    assert (await node.status()).ledger.cells_used == 2 * first.receipt.resident
    more = [*messages, first.message, Message("user", CASE.asks[1])]
    branch = await fork.turn(more, options=GREEDY).join()
    assert branch.receipt.prefilled == len(CASE.prompt(more)) - first.receipt.resident
    assert (await session.turn(more, options=GREEDY).join()).text == branch.text
    assert (await audit(node)) == ()


async def test_load_switches_between_kinds_and_the_old_memory_is_gone(node: Node) -> None:
    pids = []
    for path in (TINY_F16, TINY_IR, TINY_F16, TINY_IR):
        status = await node.load(ModelRef(path=str(path)))
        assert status.engine is not None
        assert status.engine.backend == ("llama" if path == TINY_F16 else "openvino")
        session = await node.open_session(ModelRef(path=str(path)), SessionConfig(name="s"))
        result = await session.turn([Message("user", "Count to 12.")], options=GREEDY).join()
        assert result.text.startswith("1 2 3 4 5")
        pids.append(status.engine.pid)
        # All memory of a process goes with it.
        assert [pid for pid in pids if psutil.pid_exists(pid)] == pids[-1:]
        children = psutil.Process().children(recursive=True)
        assert [child.pid for child in children if "modeld.engine.worker" in child.cmdline()] == pids[-1:]
    assert len(set(pids)) == 4


def truncated(folder: Path) -> None:
    path = folder / "openvino_model.bin"
    os.truncate(path, path.stat().st_size - 4096)


def another_length(folder: Path) -> None:
    with (folder / "openvino_model.bin").open("ab") as file:
        file.write(bytes(64))


def broken_xml(folder: Path) -> None:
    path = folder / "openvino_model.xml"
    path.write_bytes(path.read_bytes()[:-5000])


def entities(folder: Path) -> None:
    path = folder / "openvino_model.xml"
    bomb = b'<!DOCTYPE net [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'
    path.write_bytes(path.read_bytes().replace(b"<net", bomb + b"<net", 1))


def deep(folder: Path) -> None:
    (folder / "openvino_model.xml").write_bytes(b"<net>" + b"<a>" * 100_000)


def absurd_constant(folder: Path) -> None:
    rewrite(folder, b'shape="2048, 128"', b'shape="2048000, 128000"')


def absurd_state(folder: Path) -> None:
    rewrite(folder, b'variable_shape="?,2,?,64"', b'variable_shape="?,2000000,?,64000"')


def negative_offset(folder: Path) -> None:
    rewrite(folder, b'offset="0"', b'offset="-8"')


def no_tokenizer(folder: Path) -> None:
    (folder / "openvino_tokenizer.xml").unlink()


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def a_template_that_nobody_writes(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    os.mkfifo(folder / "chat_template.jinja")


def a_map_without_end(folder: Path) -> None:
    """What OpenVINO's tokeniser reads by itself, if it is there."""
    (folder / "special_tokens_map.json").symlink_to("/dev/zero")


def a_comment_as_long_as_a_graph(folder: Path) -> None:
    """Which a parser would look at again with every piece of it that comes: 200 MB of it took 35 s."""
    graph = (folder / "openvino_model.xml").read_bytes()
    long = b"<layers><!--" + b"a" * (150 << 20) + b"-->"
    (folder / "openvino_model.xml").write_bytes(graph.replace(b"<layers>", long, 1))


def config_of(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def config_that_is_none(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 100_000)


def rewrite(folder: Path, old: bytes, new: bytes) -> None:
    path = folder / "openvino_model.xml"
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


HOSTILE = {
    "truncated weights": truncated,
    "weights of another length": another_length,
    "cut graph": broken_xml,
    "entities": entities,
    "nested": deep,
    "absurd constant": absurd_constant,
    "absurd state": absurd_state,
    "negative offset": negative_offset,
    "no tokenizer": no_tokenizer,
    "no config": no_config,
    "a pipe": a_template_that_nobody_writes,
    "a device": a_map_without_end,
    "a long comment": a_comment_as_long_as_a_graph,
    "config of nothing": config_that_is_none,
    "no window": config_of(max_position_embeddings=0),
    "absurd window": config_of(max_position_embeddings=10**30),
    "layers as text": config_of(num_hidden_layers="four"),
}


@pytest.mark.parametrize("damage", HOSTILE.values(), ids=HOSTILE.keys())
async def test_a_broken_folder_is_refused_before_the_engine_sees_it(
    node: Node, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(TINY_IR, folder)
    damage(folder)
    async with asyncio.timeout(5):
        with pytest.raises(InvalidModelError, match="broken cannot be used"):
            await node.describe(ModelRef(path=str(folder)))
    assert (await node.status()).engine is None


def not_a_language_model(folder: Path) -> None:
    """Another input: as of a model that is fed embeddings."""
    rewrite(folder, b'"input_ids"', b'"inputs_embeds"')


def tokens_nowhere(folder: Path) -> None:
    """A state of fixed length, as of a recurrent model."""
    rewrite(folder, b'variable_shape="?,2,?,64"', b'variable_shape="?,2,4,64"')


def foreign_tokenizer(folder: Path) -> None:
    (folder / "openvino_tokenizer.xml").write_text("<net name='x' version='11'><layers/><edges/></net>")


def unknown_operation(folder: Path) -> None:
    rewrite(folder, b'type="ScaledDotProductAttention"', b'type="MadeUpAttention"')


def sliced(folder: Path, kind: str, axis: int) -> None:
    """Only 300 of 2,048 tokens stand in the table of embeddings, or in that before the logits."""
    import openvino

    model = openvino.Core().read_model(folder / "openvino_model.xml")
    nodes = [node for node in model.get_ordered_ops() if node.get_type_name() == kind]
    if kind == "Gather":
        port = next(node.input(0) for node in nodes if node.input_value(0).get_partial_shape().rank.get_length() == 2)
    else:
        port = model.output("logits").get_node().input(0)
    numbers = (numpy.array([number], numpy.int64) for number in (0, 300, 1, axis))
    port.replace_source_output(openvino.opset13.slice(port.get_source_output(), *numbers).output(0))
    model.validate_nodes_and_infer_types()
    openvino.save_model(model, folder / "new.xml", compress_to_fp16=False)
    for end in ("xml", "bin"):
        os.replace(folder / f"new.{end}", folder / f"openvino_model.{end}")


def fewer_embeddings(folder: Path) -> None:
    sliced(folder, "Gather", 0)


def fewer_logits(folder: Path) -> None:
    sliced(folder, "Result", 2)


@pytest.mark.parametrize(
    "damage",
    [not_a_language_model, tokens_nowhere, foreign_tokenizer, unknown_operation, fewer_embeddings, fewer_logits],
)
async def test_what_only_the_engine_can_see_is_its_typed_error(
    node: Node, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    folder = tmp_path / "broken"
    shutil.copytree(TINY_IR, folder)
    damage(folder)
    with pytest.raises(ModeldError) as caught:
        await node.load(ModelRef(path=str(folder)))
    assert caught.value.code in ("model_load_failed", "unsupported_feature"), caught.value
    assert len(caught.value.message) < 600
    # The node lives, and serves the next one.
    assert (await node.load(CASE.ref)).state == "ready"


async def test_random_damage_is_a_typed_error_or_changes_nothing(node: Node, tmp_path: Path) -> None:
    draw = random.Random(3)
    names = ("openvino_model.xml", "config.json", "openvino_tokenizer.xml", "generation_config.json", "tokenizer.json")
    for number in range(12):
        folder = tmp_path / f"broken-{number}"
        shutil.copytree(TINY_IR, folder)
        path = folder / names[number % len(names)]
        data = bytearray(path.read_bytes())
        for _ in range(draw.randrange(1, 30)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(data)
        with suppress(ModeldError):
            session = await node.open_session(ModelRef(path=str(folder)))
            await session.turn([Message("user", "Hello!")], options=GREEDY).join()
    assert (await node.load(CASE.ref)).state == "ready"


async def test_capacity_is_refused_with_the_arithmetic(node: Node) -> None:
    with pytest.raises(CapacityError, match="longer than the 8192 tokens"):
        await node.open_session(CASE.ref, SessionConfig(context=9000))
    with pytest.raises(NotSupportedError, match="changes when it is copied"):
        await node.open_session(CASE.ref, SessionConfig(kv_type="q8_0"))
    plan = (await node.describe(CASE.ref)).plan
    assert plan.required == plan.weights + plan.kv + plan.overhead
    status = await node.load(CASE.ref)
    assert status.engine is not None
    assert status.engine.rss < plan.required


async def test_the_digest_covers_weights_and_all_that_changes_the_output(node: Node, tmp_path: Path) -> None:
    seen = {(await node.describe(CASE.ref)).digest}
    for number, name in enumerate(
        ("openvino_model.bin", "openvino_tokenizer.bin", "chat_template.jinja", "generation_config.json")
    ):
        folder = tmp_path / str(number)
        shutil.copytree(TINY_IR, folder)
        data = bytearray((folder / name).read_bytes())
        data[-1] ^= 1
        (folder / name).write_bytes(data)
        seen.add((await node.describe(ModelRef(path=str(folder)))).digest)
    assert len(seen) == 5
    other = tmp_path / "same"
    shutil.copytree(TINY_IR, other)
    (other / "README.md").write_text("no part of the model")
    assert (await node.describe(ModelRef(path=str(other / "openvino_model.xml")))).digest in seen
