"""From an exception to an exit code and one helpful line."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import typer

from modeld.cli import leave_at_once
from modeld.cli.output import emit, say
from modeld.errors import InvalidRequestError, ModeldError

INTERRUPTED: Final = 130
"""Exit code after ctrl-C: 128 + SIGINT, as shells have it."""

BROKEN_PIPE: Final = 141
"""Exit code when nobody reads the output any more: 128 + SIGPIPE, as shells have it."""

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def guarded(command: Callable[..., int]) -> Callable[..., None]:
    """``command`` for typer: its result is the exit code, and its exceptions are told in one line."""

    @functools.wraps(command)
    def run(**options: Any) -> None:
        raise typer.Exit(_exit_code(command, options))

    return run


@contextlib.contextmanager
def usage() -> Iterator[None]:
    """Values from the command line are checked in the body: what it finds wrong is wrong usage, exit code 2."""
    try:
        yield
    except InvalidRequestError as error:
        raise typer.BadParameter(error.message) from error


def _exit_code(command: Callable[..., int], options: Mapping[str, Any]) -> int:
    try:
        if signal.getsignal(signal.SIGINT) is leave_at_once:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        # A path or an answer may hold what this terminal cannot spell.
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        code = command(**options)
        sys.stdout.flush()
        return code
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _forget_output()
        return BROKEN_PIPE
    except ModeldError as error:
        return _tell(error, bool(options.get("as_json")))
    except OSError as error:
        if error.errno not in _NO_ROOM:
            return _tell_unexpected(error)
        _forget_output()
        say(f"{error.filename or 'the output'} could not be written: {error.strerror}; free some room")
        return 1
    except Exception as error:
        return _tell_unexpected(error)


def _forget_output() -> None:
    """The interpreter flushes once more when it ends: what it holds goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _tell(error: ModeldError, as_json: bool) -> int:
    if "MODELD_DEBUG" in os.environ:
        traceback.print_exception(error)
    if as_json:
        emit({"error": {"code": error.code, "message": error.message, "details": error.details}})
    say(error.message)
    return error.exit_code


def _tell_unexpected(error: Exception) -> int:
    if "MODELD_DEBUG" in os.environ:
        traceback.print_exception(error)
        hint = "this is a defect of modeld"
    else:
        hint = "this is a defect of modeld; MODELD_DEBUG=1 shows where"
    say(f"unexpected {type(error).__name__}: {error} ({hint})")
    return 1
