"""Hazards of bringing a model in: half of it is there, something of it was run or fetched, a name is overwritten."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from modeld.errors import (
    InvalidModelError,
    InvalidRequestError,
    MissingDependencyError,
    ModelError,
    ModelLoadError,
    ModelNotFoundError,
    StorageError,
)
from modeld.node import importing
from modeld.node.importing import import_model
from modeld.node.ir import ir_files, read_ir
from modeld.node.store import ModelStore, bundled_path
from modeld.session import ModelRef
from support.engines import DATA, TINY_IR

TINY_HF = DATA / "tiny-hf"

CONVERTER = """# Stands for an interpreter with optimum-intel: leaves what a real conversion of tests/data/tiny-hf left.
import json, os, shutil, sys
_, option, code, *arguments = sys.argv
assert option == "-c"
if "torchvision" in code:
    sys.exit({stumbles})
if "find_spec" in code:
    sys.exit({missing})
with open({seen!r}, "w") as file:
    json.dump([arguments, os.environ.get("HF_HUB_OFFLINE"), os.environ.get("PYTHONPATH")], file)
print("loading")
if {fails}:
    print("the architecture is not known")
    sys.exit(3)
shutil.copytree({ir!r}, arguments[-1])
open(os.path.join(arguments[-1], "extra.txt"), "w").close()
if {damages}:
    os.truncate(os.path.join(arguments[-1], "openvino_model.bin"), 1000)
"""


def converter(folder: Path, *, missing: int = 0, stumbles: int = 0, fails: bool = False, damages: bool = False) -> Path:
    path, program = folder / "python", folder / "converter.py"
    program.write_text(
        CONVERTER.format(
            seen=str(folder / "seen.json"),
            ir=str(TINY_IR),
            missing=missing,
            stumbles=stumbles,
            fails=fails,
            damages=damages,
        )
    )
    path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{program}" "$@"\n')
    path.chmod(0o700)
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


def test_ir_is_copied_whole_and_found_by_name(tmp_path: Path) -> None:
    made = import_model(TINY_IR / "openvino_model.xml", tmp_path / "models")
    assert made == tmp_path / "models" / "tiny-ov"
    store = ModelStore(tmp_path)
    assert store.resolve(ModelRef("tiny-ov")).digest == store.resolve(ModelRef(path=str(TINY_IR))).digest
    assert names(tmp_path / "models") == ["tiny-ov"]
    (listed,) = [model for model in store.list() if not model.bundled]
    assert (listed.name, listed.type, listed.error) == ("tiny-ov", "openvino", "")
    assert listed.size == sum(file.stat().st_size for file in ir_files(TINY_IR))


def test_a_hugging_face_folder_is_converted_without_network_and_only_what_counts_is_kept(tmp_path: Path) -> None:
    told: list[str] = []
    made = import_model(TINY_HF, tmp_path / "models", "mine", python=converter(tmp_path), say=told.append)
    arguments, offline, path = json.loads((tmp_path / "seen.json").read_text())
    assert arguments[:4] == ["export", "openvino", "--model", str(TINY_HF)]
    assert arguments[4:8] == ["--task", "text-generation-with-past", "--weight-format", "fp16"]
    assert "--trust-remote-code" not in arguments
    assert (offline, path) == ("1", None)
    assert names(made) == names(TINY_IR)
    assert read_ir(made) == read_ir(TINY_IR)
    assert names(tmp_path / "models") == ["mine"]
    assert len(told) == 1


def test_without_the_converter_the_error_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(MissingDependencyError, match=r"pip install 'modeld\[openvino-convert\]'") as caught:
        import_model(TINY_HF, tmp_path / "models", python=converter(tmp_path, missing=1))
    assert caught.value.details == {"extra": "openvino-convert"}
    with pytest.raises(InvalidRequestError, match="no interpreter"):
        import_model(TINY_HF, tmp_path / "models", python=tmp_path / "nothing")
    assert names(tmp_path / "models") == []


def test_what_the_converter_says_last_is_in_the_error_and_nothing_stays(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"code 3\): the architecture is not known$"):
        import_model(TINY_HF, tmp_path / "models", python=converter(tmp_path, fails=True))
    assert names(tmp_path / "models") == []
    with pytest.raises(InvalidModelError, match="cut off"):
        import_model(TINY_HF, tmp_path / "models", python=converter(tmp_path, damages=True))
    assert names(tmp_path / "models") == []


def test_a_torchvision_that_does_not_fit_its_torch_is_named_with_the_way_out(tmp_path: Path) -> None:
    """optimum-intel brings one; with torch's build for the processor nothing else says what is wrong."""
    with pytest.raises(ModelLoadError, match=r"not known \(torchvision .*python -m pip uninstall torchvision\)"):
        import_model(TINY_HF, tmp_path / "models", python=converter(tmp_path, fails=True, stumbles=1))
    assert import_model(TINY_HF, tmp_path / "models", python=converter(tmp_path, stumbles=1))


def test_what_is_no_model_and_what_is_taken_is_refused(tmp_path: Path) -> None:
    models = tmp_path / "models"
    with pytest.raises(ModelNotFoundError):
        import_model(tmp_path / "nowhere", models)
    (tmp_path / "pickled").mkdir()
    shutil.copy(TINY_HF / "config.json", tmp_path / "pickled")
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(InvalidModelError, match="safetensors"):
        import_model(tmp_path / "pickled", models, python=converter(tmp_path))
    for name in ("a/b", "..", ".hidden", "x" * 201):
        with pytest.raises(InvalidRequestError):
            import_model(TINY_IR, models, name)
    import_model(TINY_IR, models, "mine")
    before = (models / "mine").stat().st_ino
    with pytest.raises(InvalidRequestError, match="there already"):
        import_model(TINY_IR, models, "mine")
    assert (models / "mine").stat().st_ino == before


def size_of(source: Path) -> int:
    return source.stat().st_size if source.is_file() else sum(file.stat().st_size for file in ir_files(source))


@pytest.mark.parametrize("source", [TINY_IR, bundled_path()])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_becomes_full_leaves_nothing_and_says_how_much_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Path, code: int
) -> None:
    def full(begun: Path, copy: Path) -> None:
        copy.write_bytes(begun.read_bytes()[:1000])
        raise OSError(code, os.strerror(code), str(begun), None, str(copy))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(StorageError, match=f"it needs {size_of(source):,} bytes") as caught:
        import_model(source, tmp_path / "models")
    assert caught.value.details["free"] > 0
    assert f"{caught.value.details['free']:,} bytes free" in caught.value.message
    assert "Errno" not in caught.value.message
    assert names(tmp_path / "models") == []


@pytest.mark.parametrize("source", [TINY_IR, bundled_path()])
def test_what_cannot_fit_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    needed = size_of(source)
    free = needed - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", None)
        with pytest.raises(StorageError, match=f"{free:,} bytes free.*{needed:,} bytes"):
            import_model(source, tmp_path / "models")
    assert names(tmp_path / "models") == []
    free = needed
    assert import_model(source, tmp_path / "models", "fits").exists()


def test_a_disk_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))

    monkeypatch.setattr(importing, "_flush", fail)
    with pytest.raises(ModelError, match="output error"):
        import_model(TINY_IR, tmp_path / "models")
    assert names(tmp_path / "models") == []


def test_one_that_is_under_way_is_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def looked(source: Path, target: Path) -> None:
        assert [model.name for model in ModelStore(tmp_path).list()] == ["tiny"]
        rename(source, target)

    monkeypatch.setattr(os, "rename", looked)
    import_model(TINY_IR, tmp_path / "models")
    assert [model.name for model in ModelStore(tmp_path).list()] == ["tiny", "tiny-ov"]


def test_a_path_that_no_folder_can_have_is_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        import_model(Path("/" + "a" * 5000), tmp_path / "models")
    assert names(tmp_path) == []


def test_what_a_killed_import_left_goes_with_the_next_and_what_runs_stays(tmp_path: Path) -> None:
    models = tmp_path / "models"
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    left, runs, other = (models / f".import-{name}" for name in (f"{gone.pid}-abc", f"{os.getpid()}-def", "notes"))
    for folder in (left, runs, other):
        (folder / "made").mkdir(parents=True)
    import_model(TINY_IR, models, "mine")
    assert names(models) == sorted([runs.name, other.name, "mine"])
