"""``modeld token``."""

from __future__ import annotations

import sys
from typing import Annotated
from urllib.parse import quote

import typer

from modeld.cli.options import DataRootOption, JsonOption, root_of
from modeld.cli.output import emit
from modeld.errors import InvalidRequestError


def token(
    show: Annotated[
        bool, typer.Option("--show", help="Show the token, on a terminal only; it is made where there is none yet.")
    ] = False,
    url: Annotated[
        bool, typer.Option("--url", help="Show the link that opens the console with the token; also only there.")
    ] = False,
    data_root: DataRootOption = None,
    as_json: JsonOption = False,
) -> int:
    """Say where the token lies that callers over TCP and HTTP need.

    To change it remove the file and start the node again: who has the old one is then refused.
    """
    from modeld.cli.web import web_address
    from modeld.transport.security import ensure_token, token_path

    root = root_of(data_root)
    path = token_path(root)
    if show or url:
        if as_json or not sys.stdout.isatty():
            raise InvalidRequestError(f"the token is shown on a terminal only; a program reads {str(path)!r}")
        # Behind the #: browsers send that to nobody, and the page takes it out of the address.
        print(f"{web_address(root)}/#token={quote(ensure_token(root), safe='')}" if url else ensure_token(root))
    elif as_json:
        emit({"path": str(path), "exists": path.exists()})
    else:
        print(path)
    return 0
