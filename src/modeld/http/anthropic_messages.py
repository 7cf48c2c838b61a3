"""``POST /v1/messages`` and ``POST /v1/messages/count_tokens``."""

from __future__ import annotations

import json
import logging
import re
import uuid
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Final

from modeld.http.anthropic_answer import Answer, Blocks, Call, Events
from modeld.http.anthropic_blocks import Reading
from modeld.http.anthropic_request import CountRequest, MessagesRequest
from modeld.http.cache_marks import takes_marks
from modeld.http.errors import Headers
from modeld.http.exchange import Exchange
from modeld.http.models import Models, Target
from modeld.http.openai_answer import receipt_header
from modeld.http.openai_chat import PROGRESS_HEADER, RECEIPT_HEADER
from modeld.http.sessions import Naming, naming_of
from modeld.http.sse import send_events
from modeld.thinking import parse_think
from modeld.types import EndPart

REMEMBERED: Final = 4 * 2**20
"""Characters of arguments that are remembered."""

_PLAIN: Final = re.compile(r"[A-Za-z0-9._@-]{1,64}")
"""Users that are the name of their workspace."""

log = logging.getLogger(__name__)


class Written:
    """The arguments of calls as models wrote them, the latest ones. Belongs to one event loop.

    Here a call has its arguments as an object, which says nothing of blanks and escapes. Where a template shows what
    the model wrote, only its very text finds the KV of it. What is not remembered is computed again.
    """

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._size = 0

    def remember(self, calls: Sequence[Call]) -> None:
        """Keep the texts of a whole answer's calls."""
        for call in calls:
            text = call.arguments
            self._size += len(text) - len(self._texts.pop(call.id, ""))
            self._texts[call.id] = text
        while self._size > REMEMBERED:
            oldest = next(iter(self._texts))
            self._size -= len(self._texts.pop(oldest))

    def recall(self, id: str, arguments: dict[str, Any]) -> str | None:
        """The text, if it says just that."""
        text = self._texts.get(id)
        return text if text is not None and json.loads(text) == arguments else None


class Messages:
    """The routes."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._written = Written()

    async def create(self, exchange: Exchange) -> None:
        """Answer one request."""
        request = await exchange.read(MessagesRequest)
        naming = _naming(exchange, request)
        naming.check()
        target = await self._models.find(request.model)
        backend = bool(target.backend)
        wishes = request.wishes
        config = wishes.config(request.config(backend=backend), target.kind)
        messages = request.conversation(self._reading(target))
        if wishes.marks and not backend:
            log.debug("%d cache_control marks in request %s: all is kept anyway", wishes.marks, exchange.request_id)
        exchange.is_from(naming.user)
        parts = self._models.answer(target, messages, config, naming)
        id = uuid.uuid4().hex
        notes = [*wishes.notes(target.kind), *request.notes(backend=backend)]
        blocks = Blocks(id, thinking=request.shows_thinking, warnings=notes)
        answer = Answer(f"msg_{id}", request.model, blocks)
        if request.stream:
            progress = exchange.headers.get(PROGRESS_HEADER) == "1"
            try:
                await send_events(exchange, parts, Events(answer, progress=progress))
            finally:
                self._written.remember(blocks.calls)
            return
        end: EndPart | None = None
        async with parts as stream:
            async for part in stream:
                blocks.add(part)
                end = part if isinstance(part, EndPart) else end
        assert end is not None
        self._written.remember(blocks.calls)
        headers: Headers = ()
        if end.receipt is not None:
            headers = ((RECEIPT_HEADER, receipt_header(end.receipt)),)
        await exchange.reply(answer.whole(end), headers=headers)

    async def count(self, exchange: Exchange) -> None:
        """Tokens of a prompt, by the model's own template and tokeniser."""
        request = await exchange.read(CountRequest)
        target = await self._models.local(request.model, "count_tokens")
        config = request.config(backend=False)
        found = await self._models.service.render(
            target.ref,
            request.conversation(self._reading(target)),
            tools=() if config.tool_choice == "none" else config.tools,
            think=parse_think(config.think),
        )
        await exchange.reply({"input_tokens": len(found.tokens)})

    def _reading(self, target: Target) -> Reading:
        return Reading(bool(target.backend), target.model, self._written.recall, takes_marks(target.kind))


def _naming(exchange: Exchange, request: MessagesRequest) -> Naming:
    user, session = (request.metadata.user_id, request.metadata.session_id) if request.metadata else (None, None)
    return naming_of(exchange.headers, session_id=session or "", user=_scope(user or ""))


def _scope(user: str) -> str:
    """``user`` as the name of a workspace. Opaque ones (Claude Code has 150 characters) by their digest."""
    if not user or _PLAIN.fullmatch(user):
        return user
    return f"user-{blake2b(user.encode(), digest_size=16).hexdigest()}"
