"""``modeld import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modeld.cli.options import DataRootOption, JsonOption, root_of
from modeld.cli.output import emit, say


def import_(
    source: Annotated[
        Path, typer.Argument(metavar="PATH", help="A GGUF file, or a folder of Hugging Face or with OpenVINO's IR.")
    ],
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Default: that of the file or folder; with --openvino, FILE-ov.")
    ] = "",
    openvino: Annotated[bool, typer.Option("--openvino", help="Make OpenVINO's IR of a GGUF file.")] = False,
    weight_format: Annotated[
        str,
        typer.Option(
            metavar="fp16|fp32|int8|int4", help="Of a folder that is converted; int8 and int4 change the output."
        ),
    ] = "fp16",
    python: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            envvar="MODELD_CONVERT_PYTHON",
            help="Interpreter of the environment with optimum-intel; default: the one that runs this.",
        ),
    ] = None,
    data_root: DataRootOption = None,
    as_json: JsonOption = False,
) -> int:
    """Bring a model into the data root: GGUF and IR are copied, a Hugging Face folder becomes IR. Needs no node.

    The model is there whole or not at all. A running node finds it by its name at once.
    """
    from modeld.node.importing import FORMATS, import_model
    from modeld.node.store import ModelStore
    from modeld.session.values import ModelRef

    if weight_format not in FORMATS:
        raise typer.BadParameter(f"{weight_format!r} is none of {', '.join(FORMATS)}", param_hint="--weight-format")
    root = root_of(data_root)
    made = import_model(source, root / "models", name, openvino=openvino, weights=weight_format, python=python, say=say)
    model = ModelStore(root).resolve(ModelRef(path=str(made)))
    if as_json:
        emit({"model": {"name": model.name, "path": model.path, "size": model.size, "digest": model.digest}})
    else:
        print(f"{model.name} is installed: {model.path}, {model.size:,} bytes")
    return 0
