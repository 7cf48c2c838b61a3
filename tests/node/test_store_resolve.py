"""Finding models: no name becomes a path, no other file passes for the one that was named, no cache is believed."""

import hashlib
import json
import os
import shutil
import threading
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeld.errors import (
    BackendMismatchError,
    DigestMismatchError,
    InvalidModelError,
    InvalidRequestError,
    ModelError,
    ModelNotFoundError,
)
from modeld.node import store as store_module
from modeld.node.store import ModelStore, bundled_path
from modeld.session.values import ModelRef

OLD = 1_600_000_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    return tmp_path


def install(root: Path, name: str) -> Path:
    path = root / "models" / name
    path.parent.mkdir(exist_ok=True)
    shutil.copy(bundled_path(), path)
    os.utime(path, (OLD, OLD))
    return path


def shard(path: Path, number: int, count: int, tensors: list[str], **extra: Any) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint16("split.no", number)
    writer.add_uint16("split.count", count)
    if number == 0:
        writer.add_context_length(512)
        writer.add_block_count(1)
        writer.add_embedding_length(32)
        writer.add_head_count(1)
    for tensor in tensors:
        writer.add_tensor(tensor, np.ones((32, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def split(root: Path, shards: list[list[str]], stem: str = "big") -> list[Path]:
    count = len(shards)
    return [
        shard(root / "models" / f"{stem}-{i + 1:05d}-of-{count:05d}.gguf", i, count, names)
        for i, names in enumerate(shards)
    ]


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_bundled_model_needs_no_data_root(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "missing")
    model = store.resolve(ModelRef(name="tiny"))
    assert (model.name, model.type, model.path) == ("tiny", "llama", str(bundled_path()))
    assert model.digest == sha256(bundled_path())
    assert model.header is not None
    assert model.size == model.header.file_size == bundled_path().stat().st_size
    assert not (tmp_path / "missing").exists()
    (only,) = store.list()
    assert (only.name, only.bundled, only.error, only.size) == ("tiny", True, "", model.size)
    assert store.resolve(model.ref) == model


def test_list_names_what_is_there_and_says_what_is_wrong(root: Path) -> None:
    install(root, "b.gguf")
    install(root, "a/model.gguf")
    (root / "models" / "broken.gguf").write_bytes(b"GGUF")
    for hidden in (".hidden.gguf", "notes.txt", "bad\nname.gguf"):
        (root / "models" / hidden).write_text("x")
    (root / "models" / "empty").mkdir()
    (root / "models" / "gone.gguf").symlink_to(root / "nowhere")
    listed = ModelStore(root).list()
    assert [m.name for m in listed] == ["tiny", "a", "b", "broken"]
    assert [bool(m.error) for m in listed] == [False, False, False, True]
    assert "magic" in listed[3].error or "key count" in listed[3].error or "version" in listed[3].error
    assert listed[1].path == str(root / "models" / "a" / "model.gguf")
    assert listed[1].modified == OLD


def test_a_taken_name_is_listed_with_the_reason_and_resolves_to_the_first(root: Path) -> None:
    install(root, "tiny.gguf")
    file, folder = install(root, "x.gguf"), install(root, "x/model.gguf")
    store = ModelStore(root)
    listed = store.list()
    assert [(m.name, m.path, bool(m.error)) for m in listed[1:]] == [
        ("tiny", str(root / "models" / "tiny.gguf"), True),
        ("x", str(file), False),
        ("x", str(folder), True),
    ]
    assert store.resolve(ModelRef(name="x")).path == str(file)
    assert store.resolve(ModelRef(name="tiny")).path == str(bundled_path())


@pytest.mark.parametrize("name", ["..", ".", ".x", "a/b", "../tiny", "/etc/passwd", "a\\b", "x" * 201, "é" * 101])
def test_names_that_are_paths_are_refused(root: Path, name: str) -> None:
    install(root, "a/b.gguf")
    with pytest.raises(InvalidRequestError):
        ModelStore(root).resolve(ModelRef(name=name))


@given(st.text(max_size=30))
def test_any_name_gives_a_typed_error(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    root = tmp_path_factory.getbasetemp()
    with pytest.raises((InvalidRequestError, ModelNotFoundError)):
        ModelStore(root / "nothing").resolve(ModelRef(name="q" + name))


def test_a_missing_model_names_those_that_are_there(root: Path) -> None:
    install(root, "b.gguf")
    (root / "models" / "folder.gguf").mkdir()
    store = ModelStore(root)
    for ref in (
        ModelRef(name="c"),
        ModelRef(path=str(root / "c.gguf")),
        ModelRef(path=str(root)),
        ModelRef(name="folder"),
    ):
        with pytest.raises(ModelNotFoundError, match="Installed: b, tiny") as caught:
            store.resolve(ref)
        assert caught.value.details["installed"] == ["b", "tiny"]
    with pytest.raises(ModelNotFoundError, match=r"folder without openvino_model\.xml; `modeld import`"):
        store.resolve(ModelRef(path=str(root)))
    os.mkfifo(root / "models" / "pipe.gguf")
    with pytest.raises(ModelNotFoundError):
        store.resolve(ModelRef(path=str(root / "models" / "pipe.gguf")))


def test_a_folder_that_cannot_be_read_is_said(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(ModelError, match="Permission denied"):
        ModelStore(root).list()
    assert ModelStore(root).resolve(ModelRef(name="tiny")).name == "tiny"


def test_paths(root: Path) -> None:
    path = install(root, "dir/model.gguf")
    store = ModelStore(root / "other")
    assert store.resolve(ModelRef(path=str(path))).name == "dir"
    assert store.resolve(ModelRef(name="mine", path=str(path))).ref.name == "mine"
    assert store.resolve(ModelRef(name="tiny", path=str(root / "gone.gguf"))).path == str(bundled_path())
    with pytest.raises(InvalidRequestError, match="absolute"):
        store.resolve(ModelRef(path="dir/model.gguf"))


@pytest.mark.parametrize("kind", ["openvino", "fake", "other"])
def test_another_type_is_refused_before_any_file_is_read(
    root: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "read_header", lambda path: pytest.fail("it was read"))
    monkeypatch.setattr(store_module, "serves_openvino", lambda: False)
    with pytest.raises(BackendMismatchError) as caught:
        ModelStore(root).resolve(ModelRef(name="tiny", type=kind))
    assert caught.value.details == {"wanted": kind, "served": ["llama"]}


@pytest.mark.parametrize("kind", ["", "llama", "local"])
def test_types_of_a_gguf(root: Path, kind: str) -> None:
    assert ModelStore(root).resolve(ModelRef(name="tiny", type=kind)).type == "llama"


def test_fake_models_only_where_allowed(root: Path) -> None:
    store = ModelStore(root, allow_fake=True)
    model = store.resolve(ModelRef(name="fake-1", type="fake"))
    assert (model.type, model.path, model.header) == ("fake", "", None)
    assert model.digest == hashlib.sha256(b"fake-1").hexdigest()
    assert store.resolve(model.ref) == store.resolve(ModelRef(name="fake-1")) == model
    assert store.resolve(ModelRef(name="tiny")).type == "llama"
    with pytest.raises(ModelNotFoundError, match="begins with fake"):
        store.resolve(ModelRef(name="tiny", type="fake"))
    with pytest.raises(DigestMismatchError):
        store.resolve(ModelRef(name="fake-1", digest="0" * 64))
    with pytest.raises(ModelNotFoundError):
        ModelStore(root).resolve(ModelRef(name="fake-1"))


def test_another_digest_is_refused(root: Path) -> None:
    path = install(root, "m.gguf")
    store = ModelStore(root)
    good = sha256(path)
    assert store.resolve(ModelRef(name="m", digest=good.upper())).digest == good
    with pytest.raises(DigestMismatchError) as caught:
        store.resolve(ModelRef(name="m", digest="0" * 64))
    assert caught.value.details == {"expected": "0" * 64, "actual": good}


def test_hostile_files_are_the_typed_error(root: Path) -> None:
    (root / "models" / "bad.gguf").write_bytes(b"GGUF\x03\0\0\0" + b"\xff" * 100)
    with pytest.raises(InvalidModelError, match=r"bad\.gguf"):
        ModelStore(root).resolve(ModelRef(name="bad"))


def count_hashes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    real = hashlib.file_digest

    def counting(file: Any, name: str) -> Any:
        seen.append(file.name)
        return real(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counting)
    return seen


def test_a_digest_is_computed_once_and_again_when_the_file_changes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = install(root, "m.gguf")
    hashed = count_hashes(monkeypatch)
    store, ref = ModelStore(root), ModelRef(name="m")
    first = store.resolve(ref).digest
    store.resolve(ref)
    assert ModelStore(root).resolve(ref).digest == first
    assert len(hashed) == 1
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    os.utime(path, (OLD + 1, OLD + 1))
    assert store.resolve(ref).digest == hashlib.sha256(data).hexdigest() != first
    assert len(hashed) == 2
    assert not [p for p in root.iterdir() if p.name.startswith(".digests")]


def test_a_file_just_written_is_not_trusted_to_its_time_stamp(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = install(root, "m.gguf")
    os.utime(path)
    hashed = count_hashes(monkeypatch)
    store = ModelStore(root)
    store.resolve(ModelRef(name="m"))
    store.resolve(ModelRef(name="m"))
    assert len(hashed) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"x": 1}', b'{"x": [[1,2,3,4], 5]}', b"\xff\xfe", b"[" * 5000])
def test_a_corrupt_cache_is_ignored_and_rewritten(root: Path, content: bytes) -> None:
    path = install(root, "m.gguf")
    (root / "digests.json").write_bytes(content)
    assert ModelStore(root).resolve(ModelRef(name="m")).digest == sha256(path)
    assert list(json.loads((root / "digests.json").read_bytes())) == [str(path)]


def test_a_cache_that_cannot_be_written_costs_nothing_else(root: Path) -> None:
    path = install(root, "m.gguf")
    (root / "digests.json").mkdir()
    store = ModelStore(root)
    assert store.resolve(ModelRef(name="m")).digest == sha256(path)
    assert sorted(p.name for p in root.iterdir()) == ["digests.json", "models"]


def test_a_file_that_changes_while_it_is_read_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = install(root, "m.gguf")
    real = hashlib.file_digest

    def meddle(file: Any, name: str) -> Any:
        result = real(file, name)
        os.utime(path, (OLD + 5, OLD + 5))
        return result

    monkeypatch.setattr(hashlib, "file_digest", meddle)
    with pytest.raises(InvalidModelError, match="changed"):
        ModelStore(root).resolve(ModelRef(name="m"))


def test_many_threads_get_the_same_answer(root: Path) -> None:
    for i in range(4):
        install(root, f"m{i}.gguf")
    store = ModelStore(root)
    digests: list[str] = []

    def work() -> None:
        digests.extend(store.resolve(ModelRef(name=f"m{i}")).digest for i in range(4))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert digests == [sha256(bundled_path())] * 32
    assert len(json.loads((root / "digests.json").read_bytes())) == 4


def test_shards_are_one_model(root: Path) -> None:
    paths = split(root, [["a"], ["b", "c"], ["d"]])
    store = ModelStore(root)
    assert [(m.name, m.error) for m in store.list()] == [("tiny", ""), ("big", "")]
    model = store.resolve(ModelRef(name="big"))
    assert model.path == str(paths[0])
    assert model.size == store.list()[1].size == sum(p.stat().st_size for p in paths)
    assert model.digest == hashlib.sha256("".join(map(sha256, paths)).encode()).hexdigest()
    assert model.header is not None
    assert [t.name for t in model.header.tensors] == ["a", "b", "c", "d"]
    assert model.header.parameters == 4 * 1024
    assert store.resolve(model.ref) == model
    with pytest.raises(InvalidModelError, match="shard 2 of 3"):
        store.resolve(ModelRef(path=str(paths[1])))
    data = bytearray(paths[2].read_bytes())
    data[-1] ^= 1
    paths[2].write_bytes(data)
    assert store.resolve(ModelRef(name="big")).digest != model.digest


def test_shards_that_do_not_belong_together_are_refused(root: Path) -> None:
    first, second = split(root, [["a"], ["b"]])
    store, ref = ModelStore(root), ModelRef(name="big")
    content = second.read_bytes()
    shard(second, 1, 2, ["a"])
    with pytest.raises(InvalidModelError, match="twice"):
        store.resolve(ref)
    shutil.copy(first, second)
    with pytest.raises(InvalidModelError, match="not shard 2 of 2"):
        store.resolve(ref)
    second.write_bytes(content[:100])
    with pytest.raises(InvalidModelError, match="00002-of-00002"):
        store.resolve(ref)
    second.unlink()
    with pytest.raises(InvalidModelError, match=r"00002-of-00002.*No such file"):
        store.resolve(ref)
    assert "No such file" in store.list()[1].error
    first.rename(root / "models" / "big.gguf")
    with pytest.raises(InvalidModelError, match="named like"):
        store.resolve(ref)


def test_shards_in_a_folder(root: Path) -> None:
    (root / "models" / "deep").mkdir()
    first = shard(root / "models" / "deep" / "model-00001-of-00002.gguf", 0, 2, [])
    shard(root / "models" / "deep" / "model-00002-of-00002.gguf", 1, 2, ["a"])
    store = ModelStore(root)
    assert store.resolve(ModelRef(name="deep")).path == str(first)
    assert store.resolve(ModelRef(path=str(first))).name == "deep"


def test_text_is_a_name_or_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "file").write_text("x")
    assert ModelRef.of("tiny") == ModelRef(name="tiny")
    assert ModelRef.of("qwen3:0.6b") == ModelRef(name="qwen3:0.6b")
    assert ModelRef.of("file") == ModelRef(name="file")
    assert ModelRef.of("./file") == ModelRef(path=f"{tmp_path}/file")
    assert ModelRef.of("x.gguf") == ModelRef(path=f"{tmp_path}/x.gguf")
    assert ModelRef.of("~/x") == ModelRef(path=f"{tmp_path}/x")
    assert ModelRef.of(ModelRef("n", path="x/y")) == ModelRef("n", path=f"{tmp_path}/x/y")
    assert ModelRef.of("/abs/x") == ModelRef(path="/abs/x")


@pytest.mark.parametrize("text", ["", "a\0b", "x" * 5000, "\udcff", "/\udcff/x.gguf", "a\nb", "a\0.gguf"])
def test_text_that_is_neither_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequestError):
        ModelRef.of(text)


@pytest.mark.parametrize("architecture", ["bert", "clip"])
def test_a_model_that_writes_no_text_is_found_and_a_projector_is_listed_with_the_reason(
    root: Path, architecture: str
) -> None:
    path = root / "models" / "encoder.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(512)
    writer.add_block_count(1)
    writer.add_embedding_length(32)
    writer.add_head_count(1)
    if architecture == "bert":
        writer.add_causal_attention(False)
        writer.add_pooling_type(gguf.PoolingType.CLS)
    writer.add_tensor("token_embd.weight", np.ones((32, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    store = ModelStore(root)
    (listed,) = [model for model in store.list() if model.name == "encoder"]
    if architecture == "bert":
        header = store.resolve(ModelRef("encoder")).header
        assert header is not None
        assert (header.writes_text, header.pooling, listed.error) == (False, "cls", "")
        return
    with pytest.raises(InvalidModelError, match="does nothing alone"):
        store.resolve(ModelRef("encoder"))
    assert "does nothing alone" in listed.error
