"""The command line: thin commands over the library. Importing it does no work."""

from __future__ import annotations


def main() -> None:
    """Run the command that the process's arguments name, and exit.

    Exit codes: 0 done, 1 failed with a typed error, 2 wrong usage, 3 another owner holds the data root, 4 the lease was
    lost; 130 ended by ctrl-C, 141 nobody reads the output any more.
    """
    import os
    import signal

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        # Until a command runs there is nothing to clean up, and a KeyboardInterrupt would come out of some import.
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from modeld.cli.app import app

    app(prog_name="modeld")
