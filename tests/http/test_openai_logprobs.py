"""Hazard: numbers that belong to other tokens than they say, or that get lost where an answer is cut into chunks."""

from __future__ import annotations

from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from modeld.http.openai_logprobs import LEAST, entries
from modeld.types import TokenLogprob

pytestmark = pytest.mark.anyio

ASKED: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Where is Anna? Say it with a snowman \N{SNOWMAN}."}],
    "temperature": 0,
    "max_tokens": 40,
    "logprobs": True,
}


async def test_content_tokens_make_the_content(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.create(**ASKED, top_logprobs=3, extra_body={"think": "off"})
    ChatCompletion.model_validate(answer.model_dump(exclude_unset=True), strict=True)
    choice = answer.choices[0]
    assert choice.logprobs is not None
    assert choice.logprobs.content
    assert "refusal" in choice.logprobs.model_fields_set
    told = b"".join(bytes(token.bytes or ()) for token in choice.logprobs.content)
    assert told.decode() == choice.message.content
    for token in choice.logprobs.content:
        assert token.logprob <= 0
        # Greedy: it was the best.
        assert (token.top_logprobs[0].token, token.top_logprobs[0].logprob) == (token.token, token.logprob)
        assert len(token.top_logprobs) == 3


async def test_thinking_is_no_content(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.create(**ASKED | {"max_tokens": 300}, extra_body={"think": "on"})
    choice = answer.choices[0]
    assert (choice.message.model_extra or {})["reasoning_content"]
    assert choice.logprobs is not None
    said = "".join(token.token for token in choice.logprobs.content or ())
    assert said.strip() == (choice.message.content or "").strip()
    assert all(token.top_logprobs == [] for token in choice.logprobs.content or ())


async def test_a_stream_tells_the_same(sdk: openai.AsyncOpenAI) -> None:
    asked = ASKED | {"top_logprobs": 2}
    whole = await sdk.chat.completions.create(**asked, extra_body={"think": "off"})
    stream = await sdk.chat.completions.create(**asked, extra_body={"think": "off"}, stream=True)
    chunks = [chunk async for chunk in stream]
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk.model_dump(exclude_unset=True), strict=True)
    parts = [chunk.choices[0].logprobs for chunk in chunks]
    told = [token for part in parts if part is not None for token in part.content or ()]
    assert whole.choices[0].logprobs is not None
    assert [token.token for token in told] == [token.token for token in whole.choices[0].logprobs.content or ()]
    async with sdk.chat.completions.stream(**asked, extra_body={"think": "off"}) as events:
        final = await events.get_final_completion()
    assert final.choices[0].logprobs is not None
    assert len(final.choices[0].logprobs.content or ()) == len(told)


async def test_who_does_not_ask_is_told_none(sdk: openai.AsyncOpenAI) -> None:
    answer = await sdk.chat.completions.create(**ASKED | {"logprobs": False}, extra_body={"think": "off"})
    assert answer.choices[0].logprobs is None


def test_what_json_cannot_say() -> None:
    token = TokenLogprob(float("-inf"), b"\xe2\x98")
    assert entries([token]) == [{"token": "\ufffd", "bytes": [0xE2, 0x98], "logprob": LEAST, "top_logprobs": []}]
