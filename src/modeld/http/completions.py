"""``POST /v1/completions``: text that goes on, without a template. For models of this node."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager

from modeld.http.completions_answer import Body, TextChunks, text_completion
from modeld.http.completions_request import CompletionsRequest
from modeld.http.errors import Headers
from modeld.http.exchange import Exchange
from modeld.http.metrics import Parts
from modeld.http.models import Models, Target
from modeld.http.openai_answer import receipt_header
from modeld.http.openai_chat import PROGRESS_HEADER, RECEIPT_HEADER, joined
from modeld.http.sessions import Naming, naming_of
from modeld.http.sse import send_events
from modeld.session.conversations import decode_options
from modeld.types import ChatResult, DecodeOptions, StreamPart

_AT_A_TIME = 8
"""Prompts of one request that are computed together. Others take turns with them."""

Prompts = Sequence[str | tuple[int, ...]]


class Completions:
    """The route. Holds nothing of its own."""

    def __init__(self, models: Models) -> None:
        self._models = models

    async def __call__(self, exchange: Exchange) -> None:
        """Answer one request."""
        request = await exchange.read(CompletionsRequest)
        prompts, options = request.prompts(), decode_options(request.config())
        naming = naming_of(exchange.headers, user=request.user or "")
        naming.check()
        target = await self._models.local(request.model, "completions")
        exchange.is_from(naming.user)
        echoes = [await self._text(target, prompt) if request.echo else "" for prompt in prompts]
        head: Body = {"id": f"cmpl-{uuid.uuid4().hex}", "object": "text_completion", "created": int(time.time())}
        head |= {"model": request.model, "system_fingerprint": None}
        logprobs = request.logprobs is not None
        if request.stream:
            progress = exchange.headers.get(PROGRESS_HEADER) == "1"
            chunks = TextChunks(echoes, logprobs=logprobs, usage=request.tells_usage, progress=progress, head=head)
            await send_events(exchange, self._in_turn(target, prompts, options, naming), chunks)
            return
        results = await self._together(target, prompts, options, naming)
        headers: Headers = ()
        if len(results) == 1:
            headers = ((RECEIPT_HEADER, receipt_header(results[0].receipt)),)
        await exchange.reply(text_completion(results, echoes, logprobs=logprobs, head=head), headers=headers)

    async def _text(self, target: Target, prompt: str | tuple[int, ...]) -> str:
        if isinstance(prompt, str):
            return prompt
        return (await self._models.service.detokenize(target.ref, prompt)).decode("utf-8", "replace")

    async def _together(
        self, target: Target, prompts: Prompts, options: DecodeOptions, naming: Naming
    ) -> list[ChatResult]:
        room = asyncio.Semaphore(_AT_A_TIME)

        async def one(prompt: str | tuple[int, ...]) -> ChatResult:
            async with room:
                return await joined(self._models.complete(target, prompt, options, naming))

        tasks = [asyncio.ensure_future(one(prompt)) for prompt in prompts]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    @asynccontextmanager
    async def _in_turn(
        self, target: Target, prompts: Prompts, options: DecodeOptions, naming: Naming
    ) -> AsyncIterator[Parts]:
        """Each choice after the one before, ends included."""

        async def parts() -> AsyncIterator[StreamPart]:
            for prompt in prompts:
                async with self._models.complete(target, prompt, options, naming) as found:
                    async for part in found:
                        yield part

        async with aclosing(parts()) as all_parts:  # type: ignore[type-var]
            yield all_parts
