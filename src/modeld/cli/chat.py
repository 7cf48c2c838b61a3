"""A conversation: the messages are kept here, their KV in a session of the node."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from modeld.cli.answer import Screen, answer
from modeld.cli.connection import connect_or_start
from modeld.cli.output import emit, receipt_line
from modeld.cli.remote import connect_backend
from modeld.cli.waiting import Waiting
from modeld.errors import ContextOverflowError, ModeldError
from modeld.session.values import ModelRef, SessionConfig
from modeld.thinking import ThinkLevel
from modeld.types import ChatResult, DecodeOptions, EndPart, Message

if TYPE_CHECKING:
    from modeld.transport.grpc.client import RemoteNode, RemoteSession
    from modeld.transport.leader import LeaderNode, LeaderSession


class ChatSettings(Struct, frozen=True, kw_only=True):
    """What ``modeld run`` was asked for."""

    root: Path
    backend: str = ""
    model: ModelRef
    session: SessionConfig
    options: DecodeOptions
    think: ThinkLevel
    system: str
    as_json: bool
    one_question: bool


class Chat:
    """Sends the whole conversation each turn, so that the session's KV is reused. Belongs to one event loop.

    The client follows the node's owner, in the middle of an answer too. When a turn fails the conversation stays as it
    was, and the next turn opens the session again: that is how one that could not go on starts anew.
    """

    def __init__(self, settings: ChatSettings) -> None:
        self._settings = settings
        self._client: LeaderNode | RemoteNode | None = None
        self._session: LeaderSession | RemoteSession | None = None
        self._messages: list[Message] = []
        self.think = settings.think
        self.last: EndPart | None = None
        self.clear()

    def clear(self) -> None:
        """Forget the conversation; the session stays."""
        system = self._settings.system
        self._messages = [Message("system", system)] if system else []

    async def open(self) -> LeaderSession | RemoteSession:
        """The session, opened on a node that runs or is started, where it is not open."""
        if self._session is None:
            settings = self._settings
            client, root, backend = self._client, settings.root, settings.backend
            if client is None:
                client = await connect_backend(root, backend) if backend else await connect_or_start(root)
                self._client = client
            with Waiting(f"loading {settings.model.name or settings.model.path}"):
                self._session = await client.open_session(settings.model, settings.session)
        return self._session

    async def say(self, text: str) -> ChatResult:
        """One turn, shown as it comes. Ctrl-C ends it early; what was answered until then counts."""
        try:
            return await self._turn([*self._messages, Message("user", text)])
        except (ModeldError, asyncio.CancelledError) as error:
            self._session = None
            if self._settings.backend:
                # Only a client of our own data root follows its owner.
                await self.close()
            if isinstance(error, ContextOverflowError):
                raise ContextOverflowError(f"{error.message}; {self._way_out()}", **error.details) from error
            raise

    async def facts(self) -> list[tuple[str, str]]:
        """What the last answer cost, and what the session holds."""
        report = await (await self.open()).explain()
        return [
            *(_cost(self.last) if self.last else ()),
            ("session", f"{report.workspace}/{report.name} on {report.model}, generation {report.generation}"),
            ("resident", f"{report.resident} of {report.window} tokens"),
            ("so far", f"{report.prefill_tokens} tokens prefilled, {report.decode_tokens} generated"),
            ("fatal", report.fatal),
        ]

    async def close(self) -> None:
        """Close the connection. Safe to call twice."""
        client, self._client, self._session = self._client, None, None
        if client is not None:
            await client.aclose()

    def _way_out(self) -> str:
        """What this command can do about a conversation that does not fit."""
        if self._settings.one_question:
            return "here --context N asks for more; --shift lets the oldest turns leave, and one has none"
        shift = ", --shift lets its oldest turns leave" if self._settings.session.overflow() == "error" else ""
        return f"here /clear forgets the conversation{shift}, and --context N asks for more"

    async def _turn(self, messages: list[Message]) -> ChatResult:
        settings = self._settings
        session = await self.open()
        stream = session.turn(messages, think=self.think, options=settings.options)
        with Waiting("waiting for the answer") as waiting:
            result = await answer(stream, Screen(waiting, quiet=settings.as_json))
        self.last = result.end
        if settings.as_json:
            emit(
                {
                    "message": result.message,
                    "end": result.end,
                    "warnings": result.warnings,
                    "errors": result.errors,
                    "handle": session.handle,
                }
            )
        # A question that was cancelled before it was answered at all leaves no trace.
        if result.text or result.end.finish_reason != "cancelled":
            self._messages = [*messages, result.message]
        return result


def _cost(end: EndPart) -> list[tuple[str, str]]:
    receipt = end.cost()
    took = f"queue {receipt.queue_seconds:.2f} s, prefill {receipt.prefill_seconds:.2f} s"
    return [("last answer", receipt_line(end)), ("took", f"{took}, decode {receipt.decode_seconds:.2f} s")]
