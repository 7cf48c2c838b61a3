"""Hazards of making IR of a GGUF file: other tokens, other numbers, half a folder, a library that gives up."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import pytest

from modeld.engine.backend import Lexicon
from modeld.engine.protocol import Load
from modeld.engine.runtimes import load_runtime
from modeld.errors import InvalidModelError, InvalidRequestError, MissingDependencyError, ModelError, ModelLoadError
from modeld.node import from_gguf
from modeld.node.config import NodeConfig
from modeld.node.importing import import_model
from modeld.node.node import Node
from modeld.node.store import ModelStore
from modeld.session import ModelRef, SessionConfig
from modeld.types import DecodeOptions, Message
from support.engines import TINY_F16
from support.shapes import write_recurrent

pytestmark = pytest.mark.anyio

ASKS = ("What is the capital of France?", "Count to five.", "Name three colours: red, ...", "Who are you? 12345")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def write_split_as(name: str, path: Path) -> Path:
    """tiny, whose text is split in another way."""
    reader = gguf.GGUFReader(TINY_F16)
    writer = gguf.GGUFWriter(path, "qwen3")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            value = name if key == "tokenizer.ggml.pre" else field.contents()
            writer.add_key_value(key, value, field.types[0], sub_type=field.types[-1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file whose way to split text OpenVINO GenAI knows."""
    return write_split_as("qwen2", tmp_path_factory.mktemp("gguf") / "qwen.gguf")


@pytest.fixture(scope="module")
def converted(qwen: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A data root with what it becomes, and what was said of it."""
    told: list[str] = []
    root = tmp_path_factory.mktemp("root")
    assert import_model(qwen, root / "models", openvino=True, say=told.append) == root / "models" / "qwen-ov"
    return root, told


def lexicon(engine: str, path: Path) -> Lexicon:
    return load_runtime(engine).lexicon(Load(str(path), "m", "", 0, 0))


def test_what_it_becomes_reads_as_the_file_does(qwen: Path, converted: tuple[Path, list[str]]) -> None:
    root, told = converted
    assert names(root / "models") == ["qwen-ov"]
    assert "what llama.cpp makes of them" in told[-1]
    theirs, ours = lexicon("llama", qwen), lexicon("openvino", root / "models" / "qwen-ov")
    assert (ours.template_source, ours.eos, ours.add_bos) == (theirs.template_source, theirs.eos, theirs.add_bos)
    for look in ("piece", "is_end", "is_special"):
        seen = [[getattr(each, look)(token) for token in range(theirs.vocabulary)] for each in (ours, theirs)]
        assert seen[0] == seen[1]


async def test_what_it_becomes_answers_as_the_file_does(qwen: Path, converted: tuple[Path, list[str]]) -> None:
    node = Node(NodeConfig(data_root=converted[0], disk=0))
    try:
        refs = (ModelRef(path=str(qwen)), ModelRef("qwen-ov"))
        texts = [[await answer(node, ref, ask) for ask in ASKS] for ref in refs]
    finally:
        await node.aclose()
    assert texts[0] == texts[1]
    assert all(text for text, _ in texts[0])


async def answer(node: Node, ref: ModelRef, ask: str) -> tuple[str, int | None]:
    session = await node.open_session(ref, SessionConfig(name=ask))
    options = DecodeOptions(temperature=0, max_tokens=24)
    result = await session.turn([Message("user", ask)], think="off", options=options).join()
    return result.text, result.usage.input


def test_a_tokeniser_that_makes_other_tokens_is_refused_and_nothing_stays(tmp_path: Path) -> None:
    with pytest.raises(InvalidModelError, match=r"makes \d+ tokens of a text of which llama.cpp makes \d+"):
        import_model(TINY_F16, tmp_path / "models", openvino=True)
    assert names(tmp_path / "models") == []


def test_without_llama_the_tokeniser_is_not_called_the_same(
    qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "llama_cpp.py").write_text("raise ImportError('none')\n")
    hidden = from_gguf._COMPARE.replace("import json, sys", f"import json, sys\nsys.path.insert(0, {str(tmp_path)!r})")
    monkeypatch.setattr(from_gguf, "_COMPARE", hidden)
    told: list[str] = []
    import_model(qwen, tmp_path / "models", openvino=True, say=told.append)
    assert told[-1] == "its tokeniser was not compared with llama.cpp's, which is not installed"


def test_without_openvino_the_error_says_what_to_install(
    qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "openvino_genai.py").write_text("raise ImportError('none')\n")
    hidden = from_gguf._READ.replace("import sys\n", f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\n", 1)
    monkeypatch.setattr(from_gguf, "_READ", hidden)
    with pytest.raises(MissingDependencyError, match="pip install openvino") as caught:
        import_model(qwen, tmp_path / "models", openvino=True)
    assert caught.value.details == {"extra": "openvino"}
    assert names(tmp_path / "models") == []


def test_an_architecture_that_it_does_not_know_is_a_typed_error(tmp_path: Path) -> None:
    write_recurrent(tmp_path / "recurrent.gguf")
    with pytest.raises(ModelLoadError, match=r"OpenVINO GenAI cannot read .*mamba"):
        import_model(tmp_path / "recurrent.gguf", tmp_path / "models", openvino=True)
    assert names(tmp_path / "models") == []


def test_a_library_that_ends_its_process_is_a_typed_error(
    qwen: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(from_gguf, "_READ", "import os\nos.abort()\n")
    with pytest.raises(ModelLoadError, match="code -6"):
        import_model(qwen, tmp_path / "models", openvino=True)
    assert names(tmp_path / "models") == []


def test_a_file_is_copied_whole_and_found_by_name(qwen: Path, tmp_path: Path) -> None:
    models = tmp_path / "models"
    assert import_model(qwen, models) == models / "qwen.gguf"
    assert import_model(qwen, models, "other") == models / "other.gguf"
    assert names(models) == ["other.gguf", "qwen.gguf"]
    assert (
        ModelStore(tmp_path).resolve(ModelRef("other")).digest == ModelStore(tmp_path).resolve(ModelRef("qwen")).digest
    )
    with pytest.raises(InvalidRequestError, match="is there already"):
        import_model(qwen, models)


def test_a_file_that_is_no_model_or_only_a_part_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("no model")
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(TINY_F16.read_bytes()[:-1000])
    for path in (tmp_path / "text.gguf", cut):
        for openvino in (False, True):
            with pytest.raises(InvalidModelError):
                import_model(path, tmp_path / "models", openvino=openvino)
    shutil.copy(TINY_F16, tmp_path / "models.gguf")
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="could not be brought"):
        import_model(tmp_path / "models.gguf", tmp_path / "file" / "models")
    assert not (tmp_path / "models").exists()
