"""The conversation at a prompt."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

from modeld.cli.output import facts, say
from modeld.errors import InvalidRequestError, ModeldError

if TYPE_CHECKING:
    from modeld.thinking import ThinkLevel
    from modeld.types import ChatResult

_PROMPT: Final = ">>> "
_MORE: Final = "... "
_QUOTES: Final = '"""'
_HISTORY_LINES: Final = 1000

HELP: Final = """\
/think LEVEL  auto, off, minimal, low, medium, high or xhigh from now on
/clear        forget the conversation
/session      what the last answer cost, and what the conversation holds
/bye          leave; ctrl-D and /exit do too
A line that ends in \\ goes on in the next one, and so does a block between \"\"\" and \"\"\".
Ctrl-C stops an answer; at the prompt it clears the line, and twice it leaves."""


class Talk(Protocol):
    """A conversation, whoever answers. Belongs to one event loop."""

    think: ThinkLevel

    async def open(self) -> object:
        """Find out whether somebody is there to answer."""
        ...

    async def say(self, text: str) -> ChatResult:
        """One turn, shown as it comes."""
        ...

    async def facts(self) -> list[tuple[str, str]]:
        """What the last answer cost, and what the conversation holds."""
        ...

    def clear(self) -> None:
        """Forget the conversation."""
        ...

    async def close(self) -> None:
        """Close the connection."""
        ...


def repl(chat: Talk, root: Path) -> None:
    """Ask, answer, and again, until the input ends. On a terminal with line editing and a history."""
    interactive = sys.stdin.isatty()
    # The loop stands still while a line is typed: nothing of ours has to happen then, and ctrl-C is the prompt's.
    with _history(root, interactive), asyncio.Runner() as runner:
        try:
            runner.run(chat.open())
            if interactive:
                say("/help for help, ctrl-D to leave")
            for text in _inputs(interactive):
                if text.startswith("/") and "\n" not in text:
                    if not _command(chat, runner, text):
                        return
                else:
                    _turn(chat, runner, text, interactive)
        finally:
            runner.run(chat.close())


def _turn(chat: Talk, runner: asyncio.Runner, text: str, interactive: bool) -> None:
    try:
        runner.run(chat.say(text))
    except ModeldError as error:
        if not interactive:
            raise
        say(error.message)
    except KeyboardInterrupt:
        if not interactive:
            raise
        say("interrupted")


def _command(chat: Talk, runner: asyncio.Runner, text: str) -> bool:
    """Do what a line with a slash says; false to leave."""
    name, _, argument = text.partition(" ")
    try:
        match name:
            case "/bye" | "/exit":
                return False
            case "/clear":
                chat.clear()
                say("the conversation is empty again")
            case "/think":
                from modeld.thinking import parse_think

                chat.think = parse_think(argument)
                say(f"thinking: {chat.think}")
            case "/session":
                facts(runner.run(chat.facts()))
            case "/help":
                print(HELP, file=sys.stderr)
            case _:
                say(f"there is no command {name}; /help lists them")
    except ModeldError as error:
        say(error.message)
    return True


def _inputs(interactive: bool) -> Iterator[str]:
    """What the user says, one turn or command after the other; empty lines are skipped."""
    interrupted = False
    while True:
        try:
            text = _read(interactive)
        except EOFError:
            if interactive:
                print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            if not interactive:
                raise
            print(file=sys.stderr)
            if interrupted:
                return
            say("ctrl-C again, ctrl-D or /bye leaves")
            interrupted = True
            continue
        interrupted = False
        if text.strip():
            yield text


def _read(interactive: bool) -> str:
    """One turn: a line, several joined by a closing backslash, or a block in triple quotes.

    :raises EOFError: the input has ended. In the middle of a turn it ends the turn.
    """
    line = _line(_PROMPT, interactive)
    lines: list[str] = []
    with suppress(EOFError):
        if line.startswith(_QUOTES):
            line = line[len(_QUOTES) :]
            while not line.rstrip().endswith(_QUOTES):
                lines.append(line)
                line = ""
                line = _line(_MORE, interactive)
            return "\n".join([*lines, line.rstrip().removesuffix(_QUOTES)]).strip("\n")
        while line.endswith("\\"):
            lines.append(line[:-1])
            line = ""
            line = _line(_MORE, interactive)
    return "\n".join([*lines, line]).strip("\n")


def _line(prompt: str, interactive: bool) -> str:
    """The next line of the input.

    :raises EOFError: there is none. :raises InvalidRequestError: it is not UTF-8.
    """
    try:
        if interactive and sys.stdout.isatty():
            return input(prompt)
        if interactive:
            # input() would put the prompt into the file that stdout is.
            print(prompt, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"the input is not UTF-8: {error}") from error
    if not line:
        raise EOFError
    return line.rstrip("\r\n")


@contextmanager
def _history(root: Path, interactive: bool) -> Iterator[None]:
    """Line editing with a history that only the user may read. Losing it is no reason to fail."""
    try:
        import readline
    except ImportError:
        interactive = False
    if not interactive:
        yield
        return
    path = root / "history"
    readline.set_history_length(_HISTORY_LINES)
    with suppress(OSError):
        readline.read_history_file(path)
    try:
        yield
    finally:
        with suppress(OSError):
            # Made before it is written to: readline would make it readable for others.
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600))
            os.chmod(path, 0o600)
            readline.write_history_file(path)
