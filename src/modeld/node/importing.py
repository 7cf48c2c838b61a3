"""Bringing a model into the data root: a folder with OpenVINO's IR is copied, one of Hugging Face converted first.

Either comes whole or not at all: it is made in a folder beside its place whose name no model can have, checked as the
node checks every model, flushed, and renamed. A folder that was there stays as it was.

Nothing of a model's own code is run, and nothing is fetched: only ``*.safetensors`` are read, by optimum-intel, in a
process and an environment of its own (extra ``openvino-convert``, which brings torch).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Final

from modeld.errors import (
    InvalidModelError,
    InvalidRequestError,
    MissingDependencyError,
    ModelError,
    ModelLoadError,
    ModelNotFoundError,
)
from modeld.node.ir import folder_of, ir_files, is_ir, read_ir
from modeld.node.lockfile import sync_folder
from modeld.node.store import checked_name

FORMATS: Final = ("fp16", "fp32", "int8", "int4")

PYTHON: Final = "MODELD_CONVERT_PYTHON"
"""Environment variable: the interpreter of the environment with optimum-intel; by default this one."""

_LOOK: Final = "import sys; from importlib.util import find_spec as f; sys.exit(not (f('optimum') and f('torch')))"
_CONVERT: Final = "import sys; from optimum.commands.optimum_cli import main; sys.exit(main())"
_QUIET: Final = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CI": "true"}
"""No network, and no report to OpenVINO's makers, who are told of conversions unless the machine says that it is CI."""


def import_model(
    source: Path,
    models: Path,
    name: str = "",
    *,
    weights: str = "fp16",
    python: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Make ``models/NAME`` from a folder. Blocks; a conversion takes seconds to many minutes.

    :param name: by default that of the folder.
    :param weights: of what is converted, one of :data:`FORMATS`; int8 and int4 change the output.
    :param python: of the environment with optimum-intel; by default :data:`PYTHON`, then this one.
    :param say: is told when a conversion begins.
    :returns: the new folder.
    :raises ModelNotFoundError: no such folder. :raises InvalidModelError: it holds neither kind of model, or what came
        of it cannot be used. :raises InvalidRequestError: the name is none, or is taken.
    :raises MissingDependencyError: optimum-intel is not in that environment. :raises ModelLoadError: it failed.
    :raises ModelError: the disk did.
    """
    folder = folder_of(source.expanduser().absolute())
    if not folder.is_dir():
        raise ModelNotFoundError(f"There is no folder {folder}.", name=str(folder), installed=[])
    target = models / checked_name(name or folder.name)
    if target.exists():
        raise InvalidRequestError(f"{target} is there already: give another --name, or remove it", parameter="name")
    try:
        models.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=models, prefix=".import-") as staging:
            made = folder if is_ir(folder) else _convert(folder, Path(staging) / "made", weights, python, say)
            read_ir(made)
            whole = Path(staging) / "whole"
            for file in ir_files(made):
                copy = whole / file.relative_to(made)
                copy.parent.mkdir(parents=True, exist_ok=True)
                (shutil.copyfile if made is folder else os.replace)(file, copy)
                _flush(copy)
            read_ir(whole)
            sync_folder(whole)
            os.rename(whole, target)
            sync_folder(models)
    except OSError as error:
        raise ModelError(f"{folder} could not be brought to {models}: {error}") from error
    return target


def _flush(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _convert(folder: Path, out: Path, weights: str, python: Path | None, say: Callable[[str], None]) -> Path:
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        reason = "it has neither openvino_model.xml nor config.json with *.safetensors"
        raise InvalidModelError(f"{folder} cannot be imported: {reason}.", path=str(folder), reason=reason)
    interpreter = str(python or os.environ.get(PYTHON) or sys.executable)
    environment = {**os.environ, **_QUIET}
    environment.pop("PYTHONPATH", None)
    try:
        found = subprocess.run([interpreter, "-c", _LOOK], env=environment, check=False, capture_output=True)
    except OSError as error:
        raise InvalidRequestError(f"{interpreter} is no interpreter: {error.strerror}", parameter="python") from error
    if found.returncode:
        raise MissingDependencyError(
            f"converting needs optimum-intel and torch, which {interpreter} has not: make an environment for them "
            "(python3 -m venv DIR; DIR/bin/pip install 'modeld[openvino-convert]') and name it with --python "
            f"DIR/bin/python or {PYTHON}",
            extra="openvino-convert",
        )
    command = [interpreter, "-c", _CONVERT, "export", "openvino", "--model", str(folder)]
    command += ["--task", "text-generation-with-past", "--weight-format", weights, str(out)]
    say(f"converting {folder} with optimum-intel; that takes seconds, or minutes where the model is large")
    _run(command, environment, folder)
    return out


def _run(command: list[str], environment: dict[str, str], folder: Path) -> None:
    last: deque[str] = deque(maxlen=1)
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if text := line.decode("utf-8", "replace").strip():
                    last.append(text[:500])
        except BaseException:
            process.kill()
            raise
    if process.returncode:
        said = last[-1] if last else "it gave no reason"
        raise ModelLoadError(f"optimum-intel could not convert {folder} (code {process.returncode}): {said}")
