"""The command line: thin commands over the library. Importing it does no work."""

from __future__ import annotations

import os


def main() -> None:
    """Run the command that the process's arguments name, and exit.

    Exit codes: 0 done, 1 failed with a typed error, 2 wrong usage, 3 another owner holds the data root, 4 the lease was
    lost; 130 ended by ctrl-C, 141 nobody reads the output any more.
    """
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave_at_once)
    from modeld.cli.app import app

    app(prog_name="modeld")


def leave_at_once(*_: object) -> None:
    """What ctrl-C does until a command runs: nothing has to be cleaned up, and an exception would come out of some
    import, as a traceback."""
    os._exit(130)
