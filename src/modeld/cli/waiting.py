"""Shows on stderr that something takes long."""

from __future__ import annotations

import asyncio
import sys
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from modeld.cli.output import say, styled

if TYPE_CHECKING:
    from rich.progress import Progress

_PATIENCE: Final = 1.0
_FRAME: Final = 0.1


class Waiting:
    """While the block runs: nothing in the first second; then on a terminal a spinner with a bar, and elsewhere a line
    whenever the text changed, at most one a second. Belongs to the running event loop.
    """

    def __init__(self, text: str) -> None:
        self._text = text
        self._done = 0
        self._total = 0
        self._shown = ""
        self._bar: Progress | None = None
        self._timer: asyncio.TimerHandle | None = None

    def __enter__(self) -> Self:
        self._timer = asyncio.get_running_loop().call_later(_PATIENCE, self._tick)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.stop()

    def update(self, text: str, done: int = 0, total: int = 0) -> None:
        """What it waits for now, and how much of it is done; 0 of 0 where nobody knows."""
        self._text, self._done, self._total = text, done, total

    def stop(self) -> None:
        """Clear what is shown and show no more. Safe to call twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _tick(self) -> None:
        if styled(sys.stderr):
            self._draw()
            pause = _FRAME
        else:
            if self._text != self._shown:
                say(self._text)
                self._shown = self._text
            pause = _PATIENCE
        self._timer = asyncio.get_running_loop().call_later(pause, self._tick)

    def _draw(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        if self._bar is None:
            # Redrawn by our timer: rich would start a thread for it.
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(bar_width=30),
                console=Console(stderr=True),
                transient=True,
                auto_refresh=False,
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self._bar.add_task(self._text)
            self._bar.start()
        task = self._bar.tasks[0]
        self._bar.update(task.id, description=self._text, completed=self._done, total=self._total or None)
        self._bar.refresh()
