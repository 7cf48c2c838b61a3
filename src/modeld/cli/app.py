"""All commands, in the order that help shows them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from modeld._version import __version__
from modeld.cli.backends import backends
from modeld.cli.doctor import doctor
from modeld.cli.errors import guarded
from modeld.cli.importing import import_
from modeld.cli.launch import launch
from modeld.cli.models import describe, load, models, unload
from modeld.cli.node import ps, status, stop
from modeld.cli.run import run
from modeld.cli.serve import serve
from modeld.cli.service import install_service
from modeld.cli.sessions import sessions
from modeld.cli.talk import chat
from modeld.cli.token import token
from modeld.cli.vectors import embed, tokens
from modeld.cli.version import version
from modeld.cli.who import who

app = typer.Typer(
    name="modeld",
    help="The local model daemon: one node per data root keeps one model resident and many sessions warm.",
    no_args_is_help=True,
    # Plain help and plain usage errors: they can be read by a pipe, and rich need not be imported for them.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_COMMANDS: tuple[Callable[..., int], ...] = (
    *(serve, run, chat, status, ps, who, models, describe, import_, load, unload, embed, tokens, stop),
    *(launch, token, install_service, doctor, version),
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"modeld {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    pass


for _command in _COMMANDS:
    app.command(_command.__name__.rstrip("_").replace("_", "-"))(guarded(_command))
app.add_typer(sessions, name="sessions")
app.add_typer(backends, name="backends")
