"""``POST /v1/chat/completions``."""

from __future__ import annotations

import time
import uuid
from contextlib import AbstractAsyncContextManager
from typing import Final

from modeld.http.cache_marks import takes_marks
from modeld.http.errors import Headers
from modeld.http.exchange import Exchange
from modeld.http.metrics import Parts
from modeld.http.models import Models
from modeld.http.openai_answer import Chunks, completion, receipt_header
from modeld.http.openai_request import ChatRequest
from modeld.http.sessions import Naming, naming_of
from modeld.http.sse import send_events
from modeld.types import ChatResult, PartsJoiner

RECEIPT_HEADER: Final = "x-modeld-receipt"
PROGRESS_HEADER: Final = "x-modeld-progress"
"""With the value 1: a stream tells how far the prompt is."""


class ChatCompletions:
    """The route. Holds nothing of its own."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request."""
        request = await exchange.read(ChatRequest)
        config = request.config()
        naming = _naming(exchange, request)
        naming.check()
        target = await self._models.find(request.model)
        messages = request.conversation(images=bool(target.backend), marks=takes_marks(target.kind))
        config, notes = request.wishes.config(config, target.kind), request.wishes.notes(target.kind)
        exchange.is_from(naming.user)
        answer = self._models.answer(target, messages, config, naming)
        id, created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        if request.stream:
            progress = exchange.headers.get(PROGRESS_HEADER) == "1"
            chunks = Chunks(
                id=id, created=created, model=request.model, usage=request.tells_usage, progress=progress, notes=notes
            )
            await send_events(exchange, answer, chunks)
            return
        result = await joined(answer)
        headers: Headers = ()
        if result.end.receipt is not None:
            headers = ((RECEIPT_HEADER, receipt_header(result.end.receipt)),)
        logprobs = bool(request.logprobs)
        body = completion(result, id=id, created=created, model=request.model, logprobs=logprobs, notes=notes)
        await exchange.reply(body, headers=headers)


async def joined(answer: AbstractAsyncContextManager[Parts]) -> ChatResult:
    """The whole answer."""
    joiner = PartsJoiner()
    async with answer as parts:
        async for part in parts:
            joiner.add(part)
    return joiner.result()


def _naming(exchange: Exchange, request: ChatRequest) -> Naming:
    return naming_of(
        exchange.headers,
        session_id=(request.metadata or {}).get("session_id", ""),
        key=request.prompt_cache_key or "",
        user=request.user or request.safety_identifier or "",
    )
