"""Hazards of a folder of models: names that are paths, links that lead out, halves of models, files that go away."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest

import modeld
from modeld import InvalidModelError, InvalidRequestError, Message, ModelError, ModelNotFoundError
from modeld.node.config import NodeConfig
from modeld.node.node import Node
from modeld.node.store import bundled_path
from modeld.providers.llama import LlamaWire
from modeld.providers.node_wire import listed
from modeld.repository import BackendSpec, CatalogOptions, ObservedModel, RetryPolicy, new_catalog_provider
from modeld.repository.provider import WireCatalog
from modeld.session import InstalledModel, ModelService

pytestmark = pytest.mark.anyio

ONCE = RetryPolicy(attempts=1)
ALL_FALSE = {"can_chat": False, "can_stream": False, "can_prompt": False, "can_embed": False}


@pytest.fixture(autouse=True)
def nobody(tmp_path: Path) -> Iterator[Path]:
    """No node of the user's own is found."""
    root = tmp_path / "nobody"
    modeld.set_data_root(root)
    yield root
    modeld.set_data_root(None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "models"
    made.mkdir()
    return made


def put(path: Path, size: int = 4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"G" * size)
    return path


async def listing(type_: str, folder: Path) -> list[ObservedModel]:
    return await new_catalog_provider(BackendSpec(type_, str(folder)), CatalogOptions(retry=ONCE)).list_models()


def flags(model: ObservedModel) -> dict[str, bool]:
    return {name: getattr(model.capabilities, name) for name in ALL_FALSE}


async def test_both_layouts_are_listed_by_name_with_size_and_time(folder: Path) -> None:
    put(folder / "zeta" / "model.gguf", 7)
    os.utime(put(folder / "alpha.gguf", 5), (1_700_000_000, 1_700_000_000))
    put(folder / "beta" / "other.gguf")
    put(folder / "notes.txt")
    models = await listing("llama", folder)
    assert [(model.name, model.size) for model in models] == [("alpha", 5), ("zeta", 7)]
    assert models[0].modified_at == datetime.fromtimestamp(1_700_000_000, UTC)
    assert all(flags(model) == ALL_FALSE for model in models)
    assert models[0].evidence == {"type": "declared"}
    assert models == await listing("local", folder)


async def test_a_split_model_is_one_and_later_pieces_are_none(folder: Path) -> None:
    for piece in (1, 2, 3):
        put(folder / f"big-0000{piece}-of-00003.gguf", piece)
    put(folder / "rest-00002-of-00002.gguf")
    for piece in (1, 2):
        put(folder / "inner" / f"model-0000{piece}-of-00002.gguf", 10)
    assert [(model.name, model.size) for model in await listing("llama", folder)] == [("big", 6), ("inner", 20)]


async def test_a_split_model_without_a_piece_says_so(folder: Path) -> None:
    put(folder / "big-00001-of-00002.gguf")
    (model,) = await listing("llama", folder)
    assert "big-00002-of-00002.gguf" in model.meta["error"]


async def test_a_file_wins_over_a_folder_of_its_name(folder: Path) -> None:
    put(folder / "same" / "model.gguf", 9)
    put(folder / "same.gguf", 3)
    assert [(model.name, model.size) for model in await listing("llama", folder)] == [("same", 3)]


async def test_links_out_of_the_folder_are_shown_and_never_opened(folder: Path, tmp_path: Path) -> None:
    secret = put(tmp_path / "elsewhere" / "model.gguf", 99)
    (folder / "file.gguf").symlink_to(secret)
    (folder / "folder").symlink_to(secret.parent)
    (folder / "inner").mkdir()
    (folder / "inner" / "model.gguf").symlink_to(secret)
    (folder / "broken.gguf").symlink_to(tmp_path / "nowhere")
    put(folder / "fine.gguf")
    (folder / "alias.gguf").symlink_to(folder / "fine.gguf")
    models = {model.name: model for model in await listing("llama", folder)}
    assert sorted(models) == ["alias", "file", "fine", "folder", "inner"]
    for name in ("file", "folder", "inner"):
        assert "outside" in models[name].meta["error"]
        assert (models[name].size, models[name].modified_at) == (0, None)
        with pytest.raises(InvalidModelError, match="outside"):
            await LlamaWire(BackendSpec("llama", str(folder)), CatalogOptions()).ref(models[name])
    assert "error" not in models["alias"].meta


async def test_a_folder_of_models_may_be_a_link_itself(folder: Path, tmp_path: Path) -> None:
    put(folder / "fine.gguf")
    (tmp_path / "link").symlink_to(folder)
    (model,) = await listing("llama", tmp_path / "link")
    assert "error" not in model.meta


async def test_names_that_no_wire_can_carry_are_left_out(folder: Path) -> None:
    put(folder / ".hidden.gguf")
    put(folder / "line\nbreak.gguf")
    put(Path(os.fsdecode(os.fsencode(folder) + b"/bad-\xff.gguf")))
    put(folder / ("n" * 201 + ".gguf"))
    put(folder / "ä b:c.gguf")
    assert [model.name for model in await listing("llama", folder)] == ["ä b:c"]


@pytest.mark.parametrize("name", ["../x", "a/b", ".x", "..", "a\\b", "a\0b", "x" * 201, "a\nb"])
async def test_a_name_is_never_a_path(folder: Path, name: str) -> None:
    catalog = new_catalog_provider(BackendSpec("llama", str(folder)))
    with pytest.raises(InvalidRequestError, match="name"):
        catalog.provider_for(name)
    observed = ObservedModel(name=name, capabilities=catalog.provider_for("fine").capabilities)
    with pytest.raises(InvalidRequestError, match="name"):
        await LlamaWire(BackendSpec("llama", str(folder)), CatalogOptions()).ref(observed)


async def test_openvino_folders_are_known_by_their_entry(folder: Path) -> None:
    for name, entry in (("text", "openvino_model.xml"), ("parts", "openvino_language_model.xml")):
        put(folder / name / entry, 10)
        put(folder / name / entry.replace(".xml", ".bin"), 100)
    put(folder / "gguf" / "model.gguf")
    put(folder / "openvino_model.xml")
    models = await listing("openvino", folder)
    assert [(model.name, model.size, flags(model)) for model in models] == [
        ("parts", 110, ALL_FALSE),
        ("text", 110, ALL_FALSE),
    ]


async def test_openvino_weights_that_lie_outside_are_not_used(folder: Path, tmp_path: Path) -> None:
    put(folder / "text" / "openvino_model.xml")
    (folder / "text" / "openvino_model.bin").symlink_to(put(tmp_path / "weights.bin"))
    (model,) = await listing("openvino", folder)
    assert "outside" in model.meta["error"]


async def test_a_folder_that_is_not_there_is_an_error_and_the_nodes_own_is_not(folder: Path, nobody: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        await listing("llama", folder / "none")
    catalog = new_catalog_provider(BackendSpec("llama"))
    assert [(model.name, model.size) for model in await catalog.list_models()] == [
        ("tiny", bundled_path().stat().st_size)
    ]
    put(nobody / "models" / "mine.gguf", 8)
    put(nobody / "models" / "tiny.gguf", 8)
    put(nobody / "models" / "vino" / "openvino_model.xml", 8)
    assert [model.name for model in await catalog.list_models()] == ["mine", "tiny"]
    assert [model.name for model in await new_catalog_provider(BackendSpec("openvino")).list_models()] == ["vino"]


@pytest.mark.parametrize("url", ["http://localhost:1234", "modeld://127.0.0.1:1", "a\0b"])
async def test_an_address_is_no_folder(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="folder"):
        new_catalog_provider(BackendSpec("llama", url))


async def test_the_window_is_what_fits_here_and_what_does_not_fit_says_so() -> None:
    installed = InstalledModel(name="m", type="llama", path="/m", size=1)
    node = Node(NodeConfig(data_root=Path("/nowhere"), allow_fake=True))
    small = await node.describe("fake:window=512")
    assert small.plan.context < small.context_length
    assert listed(installed, small).context_length == 512
    plan = msgspec.structs.replace(small.plan, fits=False, reason="too big")
    large = listed(installed, msgspec.structs.replace(small, plan=plan))
    assert (large.context_length, large.meta["does_not_fit"]) == (small.context_length, "too big")


async def test_a_live_node_tells_context_thinking_and_digest(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    node = Node(NodeConfig(data_root=tmp_path / "root"))
    (folder / "good.gguf").write_bytes(bundled_path().read_bytes())
    put(folder / "bad.gguf", 100)

    async def service() -> ModelService:
        return node

    try:
        options = CatalogOptions(service=service, retry=ONCE)
        catalog = WireCatalog(LlamaWire(BackendSpec("llama", str(folder)), options))
        bad, good = await catalog.list_models()
        described = await node.describe(str(folder / "good.gguf"))
        assert (good.digest, good.context_length) == (described.digest, described.plan.context)
        assert (good.capabilities.can_chat, good.capabilities.can_think) == (True, described.thinking)
        assert {good.evidence[name] for name in ("context_length", "digest")} == {"probed"}
        # Nobody has rendered its template yet: this is what its text mentions.
        assert {good.evidence[name] for name in ("can_think", "tools")} == {"declared"}
        assert good.meta["tools"] == ("true" if described.tools else "false")
        assert flags(bad) == ALL_FALSE
        assert "bad.gguf" in bad.meta["error"]
        provider = catalog.provider_for(good)
        client = await provider.chat_client()
        result = await client.chat([Message("user", "Hello!")], temperature=0, max_tokens=3)
        assert result.model == "good"
        (folder / "good.gguf").write_bytes(b"another")
        with pytest.raises(ModelError):
            await client.chat([Message("user", "Hello!")])
        (folder / "good.gguf").unlink()
        with pytest.raises(ModelNotFoundError) as caught:
            await client.chat([Message("user", "Hello!")])
        assert caught.value.installed == ["bad"]
        own = WireCatalog(LlamaWire(BackendSpec("llama"), options))
        assert [(model.name, model.capabilities.can_chat) for model in await own.list_models()] == [("tiny", True)]
    finally:
        await node.aclose()
