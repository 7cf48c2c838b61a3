"""``modeld chat``: a conversation with a model of any registered backend."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec import Struct

from modeld.cli.connection import connect_or_start, finish
from modeld.cli.errors import INTERRUPTED, usage
from modeld.cli.options import DataRootOption, JsonOption, ShiftOption, TruncateOption, root_of
from modeld.cli.output import cost_line, emit
from modeld.cli.run import read_stdin
from modeld.errors import InvalidRequestError, RefusedError
from modeld.thinking import ThinkLevel, parse_think
from modeld.types import ChatConfig, ChatResult, EndPart, Message

if TYPE_CHECKING:
    from modeld.session.contract import ModelService
    from modeld.transport.leader import LeaderNode


def chat(
    backend: Annotated[str, typer.Option("--backend", metavar="NAME", help="Who answers; see `modeld backends list`.")],
    model: Annotated[
        str, typer.Option("--model", metavar="MODEL", help="One of its models; see `modeld backends models NAME`.")
    ],
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="What to ask; - reads it from stdin.")
    ] = None,
    system: Annotated[str, typer.Option(metavar="TEXT", help="System message.")] = "",
    think: Annotated[
        str, typer.Option(metavar="LEVEL", help="auto, off, minimal, low, medium, high or xhigh.")
    ] = "auto",
    temperature: Annotated[float | None, typer.Option(help="Default: the backend's own.")] = None,
    max_tokens: Annotated[int | None, typer.Option(metavar="N", help="Tokens of the answer at most.")] = None,
    shift: ShiftOption = False,
    truncate: TruncateOption = False,
    data_root: DataRootOption = None,
    as_json: JsonOption = False,
) -> int:
    """Ask a model of a backend, or talk to it at a prompt where no PROMPT is given.

    The backend is called from this process; a node is needed, and started, for models of this machine only. The answer
    goes to stdout; what it cost, and thinking, go to stderr (on a terminal thinking stands dimmed before the answer).
    Lines from a pipe are turns of one conversation. Ctrl-C stops an answer; with a PROMPT it then exits 130.
    """
    with usage():
        settings = TalkSettings(
            root=root_of(data_root),
            backend=backend,
            model=model,
            # Not asked for is the backend's own way, which False would forbid.
            config=ChatConfig(
                temperature=temperature, max_tokens=max_tokens, shift=shift or None, truncate=truncate or None
            ),
            think=parse_think(think),
            system=system,
            as_json=as_json,
        )
        if prompt is not None and not prompt.strip():
            raise InvalidRequestError("the prompt is empty")
    talk = BackendTalk(settings)
    if prompt is None:
        from modeld.cli.repl import repl

        repl(talk, settings.root)
        return 0
    return finish(_ask(talk, read_stdin() if prompt == "-" else prompt))


class TalkSettings(Struct, frozen=True, kw_only=True):
    """What ``modeld chat`` was asked for."""

    root: Path
    backend: str
    model: str
    config: ChatConfig
    think: ThinkLevel
    system: str
    as_json: bool


class BackendTalk:
    """Sends the whole conversation each turn. Belongs to one event loop.

    When a turn fails, or the model declines, the conversation stays as it was.
    """

    def __init__(self, settings: TalkSettings) -> None:
        from modeld.node.gateway import Gateway

        self._settings = settings
        self._gateway = Gateway(settings.root, self._node)
        self._client: LeaderNode | None = None
        self._messages: list[Message] = []
        self._last: EndPart | None = None
        self.think = settings.think
        self.clear()

    def clear(self) -> None:
        """Forget the conversation."""
        system = self._settings.system
        self._messages = [Message("system", system)] if system else []

    async def open(self) -> None:
        """See whether the backend is registered. It is not called.

        :raises BackendNotFoundError: it is not. :raises ModeldError: its key cannot be had.
        """
        await self._gateway.ready(self._settings.backend)

    async def say(self, text: str) -> ChatResult:
        """One turn, shown as it comes. Ctrl-C ends it early; what was answered until then counts.

        :raises RefusedError: the model declined; its words were shown.
        """
        from modeld.cli.answer import Screen, backend_answer
        from modeld.cli.waiting import Waiting

        settings = self._settings
        messages = [*self._messages, Message("user", text)]
        config = settings.config if self.think == "auto" else settings.config.replace(think=self.think)
        with Waiting("waiting for the answer") as waiting:
            result = await backend_answer(
                lambda: self._gateway.stream(settings.backend, settings.model, messages, config),
                Screen(waiting, quiet=settings.as_json),
            )
        self._last = result.end
        if result.finish_reason == "refused":
            raise RefusedError("the model declined to answer", text=result.text, backend=settings.backend)
        if settings.as_json:
            whole = {"message": result.message, "end": result.end, "warnings": result.warnings}
            emit({**whole, "errors": result.errors, "backend": settings.backend})
        # A question that was cancelled before it was answered at all leaves no trace.
        if result.text or result.finish_reason != "cancelled":
            self._messages = [*messages, result.message]
        return result

    async def facts(self) -> list[tuple[str, str]]:
        """What the last answer cost, and how long the conversation is."""
        return [
            ("last answer", cost_line(self._last) if self._last else ""),
            ("model", f"{self._settings.model} of {self._settings.backend}"),
            ("conversation", f"{len(self._messages)} messages"),
        ]

    async def close(self) -> None:
        """Close all connections. Safe to call twice."""
        await self._gateway.aclose()
        client, self._client = self._client, None
        if client is not None:
            await client.aclose()

    async def _node(self) -> ModelService:
        """The node of the data root, for models of this machine."""
        if self._client is None:
            self._client = await connect_or_start(self._settings.root)
        return self._client


async def _ask(talk: BackendTalk, prompt: str) -> int:
    try:
        result = await talk.say(prompt)
    finally:
        await talk.close()
    return INTERRUPTED if result.finish_reason == "cancelled" else 0
