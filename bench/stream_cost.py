"""CPU time of reading one streamed answer, by one client. Runs in whatever environment holds that client.

    python bench/stream_cost.py CLIENT URL CHUNKS    prints microseconds per chunk, median of the runs

``providers.py`` calls it; it imports nothing of ours but where it measures us.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

RUNS = 7
ASK = [{"role": "user", "content": "go"}]

Read = Callable[[], Awaitable[int]]
"""Reads one whole answer; the number of text pieces it saw."""


async def raw(url: str) -> Read:
    """httpx2 and json: what any client has to do at least."""
    import httpx2

    client = httpx2.AsyncClient(timeout=60)

    async def read() -> int:
        seen = 0
        body = {"model": "gpt-4o", "messages": ASK, "stream": True}
        async with client.stream("POST", f"{url}/v1/chat/completions", json=body) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: ") and line != "data: [DONE]":
                    choices = json.loads(line[6:])["choices"]
                    seen += bool(choices and choices[0]["delta"].get("content"))
        return seen

    return read


async def openai_sdk(url: str) -> Read:
    """The vendor's SDK as its page shows it."""
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="k")

    async def read() -> int:
        seen = 0
        stream: Any = await client.chat.completions.create(model="gpt-4o", messages=ASK, stream=True)  # type: ignore[arg-type]
        async for chunk in stream:
            seen += bool(chunk.choices and chunk.choices[0].delta.content)
        return seen

    return read


async def anthropic_sdk(url: str) -> Read:
    """The vendor's SDK as its page shows it."""
    from anthropic import AsyncAnthropic

    client = AsyncAnthropic(base_url=url, api_key="k")

    async def read() -> int:
        seen = 0
        stream: Any = await client.messages.create(model="claude-sonnet-4-5", max_tokens=100, messages=ASK, stream=True)  # type: ignore[arg-type]
        async for event in stream:
            seen += event.type == "content_block_delta"
        return seen

    return read


async def gemini_sdk(url: str) -> Read:
    """The vendor's SDK as its page shows it."""
    from google import genai

    client = genai.Client(api_key="k", http_options={"base_url": url})

    async def read() -> int:
        seen = 0
        async for chunk in await client.aio.models.generate_content_stream(model="gemini-2.5-flash", contents="go"):
            seen += bool(chunk.text)
        return seen

    return read


async def ollama_sdk(url: str) -> Read:
    """The vendor's SDK as its page shows it."""
    from ollama import AsyncClient

    client = AsyncClient(host=url)

    async def read() -> int:
        seen = 0
        async for frame in await client.chat("qwen3:8b", ASK, stream=True):
            seen += bool(frame.message.content)
        return seen

    return read


def ours(backend: str, model: str, path: str = "") -> Callable[[str], Awaitable[Read]]:
    """modeld, as its page shows it."""

    async def make(url: str) -> Read:
        from modeld import BackendSpec, Daemon, Message, TextPart

        daemon = Daemon()
        await daemon.register_backend("b", BackendSpec(backend, url + path, "k"))
        client = await daemon.provider_for("b", model).stream_client()

        async def read() -> int:
            seen = 0
            async with await client.stream([Message("user", "go")]) as stream:
                async for part in stream:
                    seen += isinstance(part, TextPart)
            return seen

        return read

    return make


async def any_llm(url: str) -> Read:
    """The peer, through the OpenAI wire."""
    from any_llm import acompletion

    async def read() -> int:
        seen = 0
        stream: Any = await acompletion(
            model="gpt-4o", provider="openai", api_key="k", api_base=f"{url}/v1", messages=ASK, stream=True
        )
        async for chunk in stream:
            seen += bool(chunk.choices and chunk.choices[0].delta.content)
        return seen

    return read


async def litellm(url: str) -> Read:
    """The peer, through the OpenAI wire."""
    import litellm as peer

    peer.telemetry = False

    async def read() -> int:
        seen = 0
        stream: Any = await peer.acompletion(
            model="openai/gpt-4o", api_key="k", api_base=f"{url}/v1", messages=ASK, stream=True
        )
        async for chunk in stream:
            seen += bool(chunk.choices and chunk.choices[0].delta.content)
        return seen

    return read


CLIENTS: dict[str, Callable[[str], Awaitable[Read]]] = {
    "raw": raw,
    "openai SDK": openai_sdk,
    "modeld openai": ours("openai", "gpt-4o", "/v1"),
    "any-llm": any_llm,
    "LiteLLM": litellm,
    "anthropic SDK": anthropic_sdk,
    "modeld anthropic": ours("anthropic", "claude-sonnet-4-5"),
    "google-genai SDK": gemini_sdk,
    "modeld gemini": ours("gemini", "gemini-2.5-flash"),
    "ollama SDK": ollama_sdk,
    "modeld ollama": ours("ollama", "qwen3:8b"),
}


async def main(name: str, url: str, chunks: int) -> None:
    """The first run, which imports and connects, does not count."""
    read = await CLIENTS[name](url)
    costs = []
    for run in range(RUNS + 1):
        began = time.process_time()
        seen = await read()
        if seen < chunks - 1:
            raise SystemExit(f"{name} saw {seen} of {chunks} chunks")
        if run:
            costs.append(1e6 * (time.process_time() - began) / chunks)
    print(json.dumps(statistics.median(costs)))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
