"""All commands, in the order that help shows them."""

from __future__ import annotations

import typer

from modeld.cli.doctor import doctor
from modeld.cli.errors import guarded
from modeld.cli.models import describe, load, models, unload
from modeld.cli.node import ps, status, stop
from modeld.cli.run import run
from modeld.cli.serve import serve
from modeld.cli.version import version

app = typer.Typer(
    name="modeld",
    help="The local model daemon: one node per data root keeps one model resident and many sessions warm.",
    no_args_is_help=True,
    # Plain help and plain usage errors: they can be read by a pipe, and rich need not be imported for them.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

for _command in (serve, run, status, ps, models, describe, load, unload, stop, doctor, version):
    app.command(_command.__name__)(guarded(_command))
