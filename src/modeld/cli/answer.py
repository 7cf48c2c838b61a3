"""An answer on its way to the terminal, and how ctrl-C stops it."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from modeld.cli.output import cost_line, dimmed, progress_text, say, visible
from modeld.errors import ModeldError
from modeld.types import (
    ChatResult,
    EndPart,
    ErrorPart,
    PartsJoiner,
    ProgressPart,
    StreamPart,
    TextPart,
    ThinkingPart,
    Usage,
    WarningPart,
)

if TYPE_CHECKING:
    from modeld.cli.waiting import Waiting
    from modeld.repository.contract import AnswerStream
    from modeld.transport.grpc.stream import RemoteStream
    from modeld.transport.leader_stream import LeaderStream


class Screen:
    """Shows parts: text on stdout; thinking there too, dimmed, on a terminal, and on stderr elsewhere.

    :param quiet: show progress only; somebody prints the whole later.
    """

    def __init__(self, waiting: Waiting, *, quiet: bool) -> None:
        self._waiting = waiting
        self._quiet = quiet
        self._terminal = sys.stdout.isatty()
        self._thoughts = sys.stdout if self._terminal else sys.stderr
        self._thinking = False
        self._at_line_start = True

    def show(self, part: StreamPart) -> None:
        """Show one part; nothing is sure to be seen before :meth:`flush`."""
        if isinstance(part, ProgressPart):
            self._waiting.update(progress_text(part), part.done, part.total)
            return
        self._waiting.stop()
        if self._quiet:
            return
        match part:
            case TextPart(text=text):
                self._say(text)
            case ThinkingPart(text=text):
                self._think(text)
            case WarningPart(message=message) | ErrorPart(message=message):
                # An answer in a pipe stays as the model wrote it.
                if self._terminal or self._thinking:
                    self._end_line()
                say(visible(message))
            case EndPart():
                self._end_line()
                sys.stdout.flush()
                print(dimmed(cost_line(part), sys.stderr), file=sys.stderr, flush=True)

    def broken(self) -> None:
        """The answer ends in its middle: what is said next has a line of its own on a terminal."""
        if self._terminal:
            self._end_line()
        self.flush()

    def flush(self) -> None:
        """Let everything be seen."""
        sys.stdout.flush()
        sys.stderr.flush()

    def _say(self, text: str) -> None:
        self._end_thinking()
        sys.stdout.write(visible(text) if self._terminal else text)
        if text:
            self._at_line_start = text.endswith("\n")

    def _think(self, text: str) -> None:
        self._thinking = True
        self._thoughts.write(dimmed(visible(text), self._thoughts))
        if text:
            self._at_line_start = text.endswith("\n")

    def _end_thinking(self) -> None:
        if self._thinking:
            self._thinking = False
            self._thoughts.write("\n" if self._at_line_start else "\n\n")
            self._at_line_start = True

    def _end_line(self) -> None:
        if self._thinking:
            self._end_thinking()
        elif not self._at_line_start:
            sys.stdout.write("\n")
            self._at_line_start = True


class _Interrupt:
    """Ctrl-C in the block: the first cancels the stream, a second does what it did before the block."""

    def __init__(self, cancel: Callable[[], Coroutine[Any, Any, EndPart]]) -> None:
        self._cancel = cancel
        self._cancelling: asyncio.Task[EndPart] | None = None
        self._before: Any = None

    def __enter__(self) -> Self:
        self._before = signal.getsignal(signal.SIGINT)
        # Who started us in the background of a shell may have told us to ignore it.
        if callable(self._before):
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._interrupted)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if callable(self._before):
            asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)
            signal.signal(signal.SIGINT, self._before)

    async def end(self) -> EndPart | None:
        """The end part of the cancelled stream; ``None`` without ctrl-C."""
        return None if self._cancelling is None else await self._cancelling

    def _interrupted(self) -> None:
        if self._cancelling is None:
            self._cancelling = asyncio.ensure_future(self._cancel())
        else:
            self._cancelling.cancel()
            self._before(signal.SIGINT, None)


async def answer(stream: LeaderStream | RemoteStream, screen: Screen) -> ChatResult:
    """Show a stream until its end; ctrl-C cancels it, and what was shown until then is the result."""
    joiner = PartsJoiner()
    shown_end = False
    async with stream:
        with _Interrupt(stream.cancel) as interrupt:
            try:
                async for parts in stream.batches():
                    for part in parts:
                        joiner.add(part)
                        screen.show(part)
                    screen.flush()
                    shown_end = isinstance(parts[-1], EndPart)
            except ModeldError:
                screen.broken()
                raise
            finally:
                end = await interrupt.end()
            if end is not None and not shown_end:
                joiner.add(end)
                screen.show(end)
    return joiner.result()


async def backend_answer(start: Callable[[], Awaitable[AnswerStream]], screen: Screen) -> ChatResult:
    """As :func:`answer`, for a backend's stream. Ctrl-C closes its request, also before the first part came."""
    joiner = PartsJoiner()
    reading = asyncio.ensure_future(_read(start, screen, joiner))

    async def cancel() -> EndPart:
        reading.cancel()
        await asyncio.wait([reading])
        # What was used until then a vendor does not tell.
        return EndPart(finish_reason="cancelled", usage=Usage())

    with _Interrupt(cancel) as interrupt:
        try:
            await asyncio.wait([reading])
        finally:
            end = await interrupt.end() or await cancel()
    if reading.cancelled():
        joiner.add(end)
        screen.show(end)
    else:
        reading.result()
    return joiner.result()


async def _read(start: Callable[[], Awaitable[AnswerStream]], screen: Screen, joiner: PartsJoiner) -> None:
    try:
        async with await start() as stream:
            async for part in stream:
                joiner.add(part)
                screen.show(part)
                screen.flush()
    except ModeldError:
        screen.broken()
        raise
