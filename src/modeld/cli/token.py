"""``modeld token``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from modeld.cli.options import DataRootOption, JsonOption, root_of
from modeld.cli.output import emit
from modeld.errors import InvalidRequestError


def token(
    show: Annotated[
        bool, typer.Option("--show", help="Show the token, on a terminal only; it is made where there is none yet.")
    ] = False,
    data_root: DataRootOption = None,
    as_json: JsonOption = False,
) -> int:
    """Say where the token lies that callers over TCP and HTTP need.

    To change it remove the file and start the node again: who has the old one is then refused.
    """
    from modeld.transport.security import ensure_token, token_path

    root = root_of(data_root)
    path = token_path(root)
    if show:
        if as_json or not sys.stdout.isatty():
            raise InvalidRequestError(f"the token is shown on a terminal only; a program reads {str(path)!r}")
        print(ensure_token(root))
    elif as_json:
        emit({"path": str(path), "exists": path.exists()})
    else:
        print(path)
    return 0
