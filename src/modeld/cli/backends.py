"""``modeld backends``: nodes of other machines, by name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from modeld.cli.errors import guarded, usage
from modeld.cli.options import DataRootOption, JsonOption, root_of
from modeld.cli.output import emit, table
from modeld.errors import InvalidRequestError, NodeError

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="What --backend calls it.")]


def add(
    name: NameArgument,
    url: Annotated[
        str, typer.Option(metavar="URL", help="modeld+tls://HOST:PORT, or modeld://127.0.0.1:PORT on this machine.")
    ],
    kind: Annotated[str, typer.Option("--type", metavar="TYPE", help="modeld: a node.")] = "modeld",
    pin: Annotated[
        str,
        typer.Option(
            metavar="sha256:HEX",
            help="Trust this certificate only. Without it one that a public authority issued for HOST.",
        ),
    ] = "",
    token_file: Annotated[
        str,
        typer.Option(
            metavar="FILE|-",
            help="File with the node's token. - reads it from stdin; a terminal is asked, and shows nothing.",
        ),
    ] = "-",
    data_root: DataRootOption = None,
    as_json: JsonOption = False,
) -> int:
    """Register a node, with its token. It is not called.

    There is no option that takes the token itself: it would stay in the shell's history, and in the list of processes.
    """
    from modeld.node.backends import RemoteBackend, add_backend
    from modeld.transport.pinning import checked_pin, parse_url
    from modeld.transport.security import checked_token

    with usage():
        if kind != "modeld":
            raise InvalidRequestError(f"{kind[:40]!r} is no type of a backend: this version knows modeld")
        where = parse_url(url)
        checked = checked_pin(pin) if pin else ""
        if checked and not where.tls:
            raise InvalidRequestError(f"a pin needs TLS: write modeld+tls://{where.address}")
    backend = RemoteBackend(name=name, url=url, pin=checked, token=checked_token(_token(token_file)))
    add_backend(root_of(data_root), backend)
    if as_json:
        emit({"backend": _shown(backend)})
    else:
        print(f"{name} is registered; try: modeld status --backend {name}")
    return 0


def list_(data_root: DataRootOption = None, as_json: JsonOption = False) -> int:
    """List the registered nodes. Tokens are never shown."""
    from modeld.node.backends import list_backends

    found = list_backends(root_of(data_root))
    if as_json:
        emit({"backends": [_shown(backend) for backend in found]})
    else:
        table(("NAME", "TYPE", "URL", "PIN"), [(b.name, b.type, b.url, b.pin or "-") for b in found])
    return 0


def rm(name: NameArgument, data_root: DataRootOption = None, as_json: JsonOption = False) -> int:
    """Forget a registered node and its token."""
    from modeld.node.backends import remove_backend

    remove_backend(root_of(data_root), name)
    if as_json:
        emit({"removed": name})
    else:
        print(f"{name} is forgotten")
    return 0


backends = typer.Typer(help="Register nodes of other machines: add, list, rm.", no_args_is_help=True)
for _name, _command in (("add", add), ("list", list_), ("rm", rm)):
    backends.command(_name)(guarded(_command))


def _shown(backend: object) -> dict[str, object]:
    """All that may be seen of it. A list of what is shown, so that a field that comes later is not."""
    return {name: getattr(backend, name) for name in ("name", "type", "url", "pin")}


def _token(source: str) -> str:
    if source != "-":
        try:
            return Path(source).read_text("ascii", "replace")
        except OSError as error:
            raise NodeError(f"cannot read {source!r}: {error.strerror}", path=source) from error
    if sys.stdin.isatty():
        import getpass

        return getpass.getpass("token (`modeld token --show` on the node's machine): ")
    # More than any token, and no more: a pipe may have no end.
    return sys.stdin.buffer.read(4096).decode("ascii", "replace")
