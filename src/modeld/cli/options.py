"""Options that several commands share, and the values they stand for."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from modeld.errors import InvalidRequestError
from modeld.session.values import KVType

if TYPE_CHECKING:
    from modeld.session.adapters import Adapter
    from modeld.session.values import ModelRef


def _folder(text: str) -> Path:
    if not text:
        raise typer.BadParameter("the folder's name is empty")
    return Path(text)


DataRootOption = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        metavar="DIR",
        envvar="MODELD_DATA_ROOT",
        help="Folder of the node: its lease, socket, models and log. Default: the platform's user data directory.",
        parser=_folder,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Answer in JSON, on one line of stdout.")]
ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Name of an installed model, or path of a GGUF file.")
]
ContextOption = Annotated[
    int,
    typer.Option("--context", metavar="N", min=0, help="Tokens a session must hold; 0 takes what the plan gives."),
]
ShiftOption = Annotated[
    bool,
    typer.Option("--shift", help="When the window is full, the oldest turns leave the conversation; stderr says so."),
]
TruncateOption = Annotated[
    bool, typer.Option("--truncate", help="The same before an answer only; one that fills the window ends there.")
]
KVTypeOption = Annotated[KVType, typer.Option("--kv-type", help="Type of the KV cells.")]
LoraOption = Annotated[
    list[str] | None,
    typer.Option(
        "--lora",
        metavar="FILE[=SCALE]",
        help="LoRA adapter on the model, a path or the name of an installed one; may be repeated, all are active. The "
        "model is loaded again where others are.",
    ),
]

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)([smhd]?)")
_SIZE: Final = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)(?:([KMGT])(i?))?B?")
_LEAST_SIZE: Final = 1 << 20
_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def root_of(data_root: Path | None) -> Path:
    """The data root that was named, or the default; absolute, and not created."""
    from modeld.node.record import default_data_root

    return default_data_root() if data_root is None else data_root.expanduser().absolute()


def model_of(text: str) -> ModelRef:
    """The model that MODEL means. Wrong usage where it can be neither name nor path."""
    from modeld.cli.errors import usage
    from modeld.session.values import ModelRef

    with usage():
        return ModelRef.of(text)


def adapters_of(texts: list[str] | None) -> tuple[Adapter, ...]:
    """The adapters that ``--lora`` means. Wrong usage where one can be neither name nor path, or its scale is none."""
    from modeld.cli.errors import usage
    from modeld.session.adapters import Adapter

    with usage():
        return tuple(map(Adapter.of, texts or ()))


def parse_duration(text: str) -> float:
    """Seconds in ``300``, ``90s``, ``5m``, ``2h`` or ``1d``; 0 for ``off``.

    :raises InvalidRequestError: anything else. A plain 0 is refused: some would read it as "at once".
    """
    if text == "off":
        return 0.0
    match = _DURATION.fullmatch(text)
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if not 0 < seconds < math.inf:
        raise InvalidRequestError(f"{text!r} is no duration: write 300, 90s, 5m, 2h, 1d or off")
    return seconds


def parse_size(text: str) -> int | None:
    """Bytes in ``5000000``, ``512MiB``, ``2GiB`` or ``1TB``; 0 for ``off``, ``None`` for ``auto``.

    :raises InvalidRequestError: anything else, and less than 1 MiB: who writes 512 means something else.
    """
    if text in ("off", "auto"):
        return 0 if text == "off" else None
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidRequestError(f"{text!r} is no size: write 512MiB, 2GiB, 4GB, auto or off")
    unit = 1024 if match[3] else 1000
    size = int(float(match[1]) * unit ** " KMGT".index(match[2] or " "))
    if 0 < size < _LEAST_SIZE:
        raise InvalidRequestError(f"{text!r} is {size} bytes, too little for any KV: write 512MiB, 2GiB, 4GB or off")
    return size


def parse_address(text: str) -> tuple[str, int] | None:
    """Host and port in ``HOST:PORT`` or ``[HOST]:PORT``; ``None`` for ``off``.

    :raises InvalidRequestError: anything else.
    """
    if text == "off":
        return None
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        host = ""
    if not host or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > 65535:
        raise InvalidRequestError(f"{text!r} is no address: write HOST:PORT, [IPV6]:PORT or off")
    return host, int(port)
