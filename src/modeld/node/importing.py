"""Bringing a model into the data root: a GGUF file or a folder with OpenVINO's IR is copied, or IR is made first, of a
Hugging Face folder or a GGUF file.

Either comes whole or not at all: it is made in a folder beside its place whose name no model can have, checked as the
node checks every model, flushed, and renamed. A folder that was there stays as it was.

Nothing of a model's own code is run, and nothing is fetched. GGUF files are read by OpenVINO GenAI, in a process of its
own; of folders only ``*.safetensors`` are read, by optimum-intel, in a process and an environment of its own (extra
``openvino-convert``, which brings torch).
"""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import psutil

from modeld.errors import (
    InvalidModelError,
    InvalidRequestError,
    MissingDependencyError,
    ModelError,
    ModelLoadError,
    ModelNotFoundError,
    StorageError,
)
from modeld.node.from_gguf import convert_gguf
from modeld.node.gguf import read_header
from modeld.node.ir import folder_of, ir_files, is_ir, read_ir
from modeld.node.lockfile import sync_folder
from modeld.node.store import checked_name

FORMATS: Final = ("fp16", "fp32", "int8", "int4")

PYTHON: Final = "MODELD_CONVERT_PYTHON"
"""Environment variable: the interpreter of the environment with optimum-intel; by default this one."""

_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})

_STAGING: Final = ".import-"
"""Begins the name of a folder in which a model is made; the process follows."""

_LOOK: Final = "import sys; from importlib.util import find_spec as f; sys.exit(not (f('optimum') and f('torch')))"
_CONVERT: Final = "import sys; from optimum.commands.optimum_cli import main; sys.exit(main())"
_TORCHVISION: Final = "from importlib.util import find_spec as f; f('torchvision') and __import__('torchvision')"
_QUIET: Final = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "CI": "true"}
"""No network, and no report to OpenVINO's makers, who are told of conversions unless the machine says that it is CI."""


def import_model(
    source: Path,
    models: Path,
    name: str = "",
    *,
    openvino: bool = False,
    weights: str = "fp16",
    python: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Path:
    """Make ``models/NAME`` from a folder or a GGUF file. Blocks; a conversion takes seconds to many minutes.

    :param name: by default that of the folder, or of the file, with ``-ov`` where IR is made of it.
    :param openvino: make IR of a GGUF file; else it is copied.
    :param weights: of what is converted from a folder, one of :data:`FORMATS`; int8 and int4 change the output.
    :param python: of the environment with optimum-intel; by default :data:`PYTHON`, then this one.
    :param say: is told when a conversion begins, and what was found out about what came of it.
    :returns: the new folder or file.
    :raises ModelNotFoundError: no such folder or file. :raises InvalidModelError: it holds no kind of model, or what
        came of it cannot be used. :raises InvalidRequestError: the name is none, or is taken.
    :raises MissingDependencyError: optimum-intel is not in that environment, or OpenVINO is not in this one.
    :raises ModelLoadError: it failed. :raises StorageError: the disk is full. :raises ModelError: it failed.
        Nothing is left of what was begun.
    """
    folder = folder_of(source.expanduser().absolute())
    # Those of Path fail where a name is too long.
    if os.path.isfile(folder):
        return _import_file(folder, models, name, openvino=openvino, say=say)
    if not os.path.isdir(folder):
        raise ModelNotFoundError(f"There is no folder and no file {folder}.", name=str(folder), installed=[])
    target = _free(models, checked_name(name or folder.name))
    ready = is_ir(folder)
    with _staging(models, folder, sum(file.stat().st_size for file in ir_files(folder)) if ready else 0) as staging:
        made = folder if ready else _convert(folder, staging / "made", weights, python, say)
        _place(made, staging, target, move=made is not folder)
    return target


def _import_file(file: Path, models: Path, name: str, *, openvino: bool, say: Callable[[str], None]) -> Path:
    if read_header(file).is_split:
        reason = f"it is one of several files: put all of them into {models}"
        raise InvalidModelError(f"{file} cannot be imported: {reason}.", path=str(file), reason=reason)
    if openvino:
        target = _free(models, checked_name(name or f"{file.stem}-ov"))
        with _staging(models, file) as staging:
            say(f"converting {file} with OpenVINO GenAI; that takes seconds")
            made, found = convert_gguf(file, staging / "made")
            _place(made, staging, target, move=True)
            say(found)
        return target
    target = _free(models, f"{checked_name(name or file.stem)}.gguf")
    with _staging(models, file, file.stat().st_size) as staging:
        copy = staging / target.name
        shutil.copyfile(file, copy)
        read_header(copy)
        _flush(copy)
        os.rename(copy, target)
        sync_folder(models)
    return target


def _free(models: Path, name: str) -> Path:
    target = models / name
    if target.exists():
        raise InvalidRequestError(f"{target} is there already: give another --name, or remove it", parameter="name")
    return target


@contextmanager
def _staging(models: Path, source: Path, needed: int = 0) -> Iterator[Path]:
    """A folder that goes when the block is left.

    :param needed: bytes that will be written; 0: nobody knows, as of a conversion.
    :raises StorageError: the disk is full, or has less than that. :raises ModelError: the disk failed in the block.
    """
    try:
        models.mkdir(parents=True, exist_ok=True)
        _sweep(models)
        if needed > shutil.disk_usage(models).free:
            raise _no_room(models, source, needed)
        with tempfile.TemporaryDirectory(dir=models, prefix=f"{_STAGING}{os.getpid()}-") as staging:
            yield Path(staging)
    except OSError as error:
        if error.errno in _FULL:
            raise _no_room(models, source, needed) from error
        raise ModelError(f"{source} could not be brought to {models}: {error}") from error


def _sweep(models: Path) -> None:
    """Remove what imports left there that were killed. What another one is at stays."""
    for left in models.glob(f"{_STAGING}*-*"):
        pid = left.name.removeprefix(_STAGING).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


def _no_room(models: Path, source: Path, needed: int) -> StorageError:
    """What is told once nothing of it is left there."""
    free = shutil.disk_usage(models).free
    wants = f"needs {needed:,} bytes" if needed else "needs more"
    return StorageError(
        f"{source} cannot be brought to {models}: the disk has {free:,} bytes free, and it {wants}; nothing was left "
        "there; make room, or name another --data-root",
        path=str(models),
        needed=needed,
        free=free,
    )


def _place(made: Path, staging: Path, target: Path, *, move: bool) -> None:
    """Put the files that count at ``target``, once they are checked and flushed."""
    read_ir(made)
    whole = staging / "whole"
    for file in ir_files(made):
        copy = whole / file.relative_to(made)
        copy.parent.mkdir(parents=True, exist_ok=True)
        (os.replace if move else shutil.copyfile)(file, copy)
        _flush(copy)
    read_ir(whole)
    sync_folder(whole)
    os.rename(whole, target)
    sync_folder(target.parent)


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
        said = (last[-1] if last else "it gave no reason") + _advice(command[0], environment)
        raise ModelLoadError(f"optimum-intel could not convert {folder} (code {process.returncode}): {said}")


def _advice(interpreter: str, environment: dict[str, str]) -> str:
    """Whether it is the torchvision that optimum-intel brings: it loads beside the torch it was built for only.

    transformers says of that "Could not import module 'PreTrainedModel'": seen with torch's build for the processor.
    """
    looked = subprocess.run([interpreter, "-c", _TORCHVISION], env=environment, check=False, capture_output=True)
    if not looked.returncode:
        return ""
    return (
        " (torchvision was not built for the torch it is beside, and is needed for no text: "
        f"{interpreter} -m pip uninstall torchvision)"
    )
