"""``POST /v1/responses``. Nothing is stored: each request has the whole conversation."""

from __future__ import annotations

from modeld.http.errors import Headers
from modeld.http.exchange import Exchange
from modeld.http.models import Models
from modeld.http.openai_answer import receipt_header
from modeld.http.openai_chat import RECEIPT_HEADER
from modeld.http.responses_answer import ResponseWriter
from modeld.http.responses_request import ResponsesRequest
from modeld.http.sessions import naming_of
from modeld.http.sse import send_events
from modeld.types import EndPart


class Responses:
    """The route. Holds nothing of its own."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request."""
        request = await exchange.read(ResponsesRequest)
        config = request.config()
        naming = naming_of(
            exchange.headers,
            session_id=(request.metadata or {}).get("session_id", ""),
            key=request.prompt_cache_key or "",
            user=request.user or request.safety_identifier or "",
        )
        naming.check()
        target = await self._models.find(request.model)
        messages = request.conversation_of(images=bool(target.backend))
        exchange.is_from(naming.user)
        config = request.wishes.config(config, target.kind)
        writer = ResponseWriter(request, request.wishes.notes(target.kind))
        answer = self._models.answer(target, messages, config, naming)
        if request.stream:
            await send_events(exchange, answer, writer)
            return
        headers: Headers = ()
        async with answer as parts:
            async for part in parts:
                writer.part(part)
                if isinstance(part, EndPart) and part.receipt is not None:
                    headers = ((RECEIPT_HEADER, receipt_header(part.receipt)),)
        await exchange.reply(writer.response, headers=headers)
