"""One program, every backend: chat, stream, tools, thinking, JSON by a schema, embeddings, listing.

    python examples/every_backend.py --fake             all, each through its real SDK against a fake of its wire
    python examples/every_backend.py openai anthropic   the vendors themselves, with the keys of the environment

``--fake`` needs the extras of the SDKs and ``testing``. A cell says ``yes`` only when the answer was checked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from importlib import import_module

from rich.console import Console
from rich.table import Table

from modeld import (
    BackendSpec,
    Daemon,
    EndPart,
    FunctionCall,
    FunctionTool,
    Message,
    ModeldError,
    NotSupportedError,
    ResponseFormat,
    TextPart,
    Tool,
    ToolCall,
)
from modeld.testing import Answer, FakeServer

WEATHER = Tool(
    FunctionTool(
        "weather.now",
        "The weather in one city, now. Call it once for each city.",
        {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    )
)
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class Backend:
    """How to reach one backend and its fake, and which of its models does what.

    :param variables: of the environment: key, and base URL where the vendor has none of its own.
    :param embed: ``""``: the vendor has no embeddings, and ``no_embed`` is its page that says so.
    :param unlisted: what its listing does not send, and its page that shows what it does.
    """

    name: str
    type: str
    fake: str
    path: str
    chat: str
    thinking: str
    embed: str
    variables: tuple[str, ...]
    unlisted: tuple[str, str]
    no_embed: str = ""


OPENAI_LIST = ("context, output, think, vision, size, digest", "platform.openai.com/docs/api-reference/models/object")
BACKENDS = (
    Backend(
        "openai",
        "openai",
        "openai:FakeOpenAI",
        "/v1",
        "gpt-4o",
        "gpt-5",
        "text-embedding-3-small",
        ("OPENAI_API_KEY",),
        OPENAI_LIST,
    ),
    Backend(
        "openai, Responses",
        "openai",
        "openai:FakeOpenAI",
        "/v1",
        "gpt-5.1",
        "gpt-5",
        "text-embedding-3-small",
        ("OPENAI_API_KEY",),
        OPENAI_LIST,
    ),
    Backend(
        "vllm",
        "vllm",
        "vllm_wire:FakeVLLM",
        "",
        "meta-llama/Llama-3.1-8B-Instruct",
        "Qwen/Qwen3-8B",
        "BAAI/bge-m3",
        ("VLLM_API_KEY", "VLLM_URL"),
        ("output, think, vision, size, digest", "docs.vllm.ai/en/latest/serving/openai_compatible_server"),
    ),
    Backend(
        "gemini",
        "gemini",
        "google:FakeGemini",
        "",
        "gemini-2.5-flash",
        "gemini-3-flash-preview",
        "gemini-embedding-001",
        ("GEMINI_API_KEY",),
        ("vision, date, size, digest", "ai.google.dev/api/models"),
    ),
    Backend(
        "vertex-google",
        "vertex-google",
        "google:FakeVertex",
        "",
        "gemini-2.5-flash",
        "gemini-3.1-pro-preview",
        "text-embedding-005",
        ("VERTEX_SERVICE_ACCOUNT", "VERTEX_URL"),
        (
            "context, output, think, vision, date, size, digest",
            "docs.cloud.google.com/vertex-ai/docs/reference/rest/v1beta1/publishers.models",
        ),
    ),
    Backend(
        "ollama",
        "ollama",
        "ollama:FakeOllama",
        "",
        "llama3.2:3b",
        "qwen3:8b",
        "nomic-embed-text:latest",
        ("OLLAMA_API_KEY", "OLLAMA_URL"),
        ("output", "docs.ollama.com/api-reference/show-model-details"),
    ),
    Backend(
        "anthropic",
        "anthropic",
        "anthropic:FakeAnthropic",
        "",
        "claude-sonnet-4-6",
        "claude-opus-5",
        "",
        ("ANTHROPIC_API_KEY",),
        ("size, digest", "platform.claude.com/docs/en/api/models/list"),
        "platform.claude.com/docs/en/build-with-claude/embeddings",
    ),
    Backend(
        "mistral",
        "mistral",
        "mistral:FakeMistral",
        "/v1",
        "mistral-medium-2508",
        "mistral-small-latest",
        "mistral-embed",
        ("MISTRAL_API_KEY",),
        ("output, size, digest", "docs.mistral.ai/api/endpoint/models"),
    ),
    Backend(
        "openrouter",
        "openrouter",
        "openrouter:FakeOpenRouter",
        "/api/v1",
        "qwen/qwen3-coder",
        "anthropic/claude-sonnet-4.6",
        "openai/text-embedding-3-small",
        ("OPENROUTER_API_KEY",),
        ("size, digest", "openrouter.ai/docs/guides/overview/models"),
    ),
)
COLUMNS = ("chat", "stream", "tools", "thinking", "JSON schema", "embeddings", "listing")

CALLS = tuple(
    ToolCall(f"call_{letter * 24}", FunctionCall("weather.now", json.dumps({"city": city})))
    for letter, city in (("a", "Oslo"), ("b", "Rome"))
)
SCRIPT = {
    "chat": (Answer(text="Hello!"),),
    "stream": (Answer(text="1 2 3 4 5 6 7 8"),),
    "tools": (Answer(tool_calls=CALLS, finish_reason="tool_calls"), Answer(text="Oslo 3 degrees, Rome 19 degrees.")),
    "thinking": (Answer(text="391", thinking="17 times 23 is 391."),),
    "JSON schema": (Answer(text='{"name":"Ada","age":36}'),),
}
"""What the fakes answer. Listings and vectors they make themselves."""


class Failed(Exception):
    """The backend answered, and the answer is not what was asked for."""


def check(fine: bool, what: object) -> None:
    """``assert`` that stays when Python is told to drop those."""
    if not fine:
        raise Failed(str(what)[:200])


async def chat(daemon: Daemon, b: Backend) -> None:
    """One whole answer, with its usage."""
    client = await daemon.provider_for(b.name, b.chat).chat_client()
    result = await client.chat([Message("system", "Be brief."), Message("user", "Say hello.")], max_tokens=200)
    check("hello" in result.text.lower() and result.finish_reason == "stop", result)
    check(result.usage.source == "reported" and bool(result.usage.input and result.usage.output), result.usage)


async def stream(daemon: Daemon, b: Backend) -> None:
    """Parts as they come, one end last."""
    client = await daemon.provider_for(b.name, b.chat).stream_client()
    async with await client.stream([Message("user", "Count from 1 to 8, with blanks between.")]) as answer:
        parts = [part async for part in answer]
    text = [part.text for part in parts if isinstance(part, TextPart)]
    check(len(text) > 1 and "7 8" in "".join(text), parts)
    check([type(part) for part in parts].count(EndPart) == 1 and isinstance(parts[-1], EndPart), parts)


async def tools(daemon: Daemon, b: Backend) -> None:
    """Two calls at once, their results, the final answer."""
    client = await daemon.provider_for(b.name, b.chat).stream_client()
    talk = [Message("user", "What is the weather in Oslo and in Rome? Ask for both at once.")]
    first = await (await client.stream(talk, tools=[WEATHER])).join()
    check(first.finish_reason == "tool_calls" and len(first.tool_calls) == 2, first)
    degrees = {"Oslo": 3, "Rome": 19}
    talk.append(first.message)
    for call in first.tool_calls:
        city = json.loads(call.function.arguments)["city"]
        result = json.dumps({"city": city, "degrees": degrees[city]})
        talk.append(Message("tool", result, tool_call_id=call.id, name=call.function.name))
    last = await (await client.stream(talk, tools=[WEATHER])).join()
    check("19" in last.text and not last.tool_calls, last)


async def thinking(daemon: Daemon, b: Backend) -> None:
    """Thinking and answer, apart."""
    client = await daemon.provider_for(b.name, b.thinking).chat_client()
    result = await client.chat([Message("user", "What is 17 * 23? Think first.")], think="high")
    check("391" in result.text and bool(result.thinking), result)


async def json_schema(daemon: Daemon, b: Backend) -> None:
    """An object that fits a schema."""
    client = await daemon.provider_for(b.name, b.chat).chat_client()
    ask = [Message("user", "Ada is 36 years old. Answer as JSON with her name and age.")]
    result = await client.chat(ask, response_format=ResponseFormat(schema=PERSON, name="person"))
    check(json.loads(result.text) == {"name": "Ada", "age": 36}, result)


async def embeddings(daemon: Daemon, b: Backend) -> None:
    """One vector for each text, in its order."""
    if not b.embed:
        await daemon.provider_for(b.name, b.chat).embed_client()
    (model,) = [m for m in await daemon.list_models(b.name) if m.name == b.embed]
    client = await daemon.provider_for(b.name, model).embed_client()
    first, second = await client.embed(["kiwi", "a longer text"])
    check(len(first) == len(second) > 0 and first != second, (first, second))
    check(await client.embed("kiwi") == first or len(first) > 100, "the same text gives another vector")


async def listing(daemon: Daemon, b: Backend) -> None:
    """All pages; every fact with where it is from."""
    models = {model.name: model for model in await daemon.list_models(b.name)}
    check(models[b.chat].capabilities.can_chat, models)
    for model in models.values():
        known = model.capabilities
        for name in ("context_length", "max_output_tokens", "can_think", "can_vision"):
            check(not getattr(known, name) or name in model.evidence, (model.name, name))


CHECKS: dict[str, Callable[[Daemon, Backend], Awaitable[None]]] = {
    "chat": chat,
    "stream": stream,
    "tools": tools,
    "thinking": thinking,
    "JSON schema": json_schema,
    "embeddings": embeddings,
    "listing": listing,
}


async def row(daemon: Daemon, b: Backend, fake: FakeServer | None) -> list[str]:
    """The cells of one backend."""
    cells = []
    for name, function in CHECKS.items():
        if fake is not None:
            fake.script(*SCRIPT.get(name, ()))
        try:
            await function(daemon, b)
        except NotSupportedError as error:
            cells.append("no" if name == "embeddings" and b.no_embed else f"FAILED: {error}")
        except (ModeldError, Failed, LookupError, ValueError) as error:
            cells.append(f"FAILED: {type(error).__name__}: {error}")
        else:
            cells.append("yes")
    return cells


async def spec_of(b: Backend, stack: AsyncExitStack, *, fake: bool) -> tuple[BackendSpec | None, FakeServer | None]:
    """Where the backend is; ``None``: the environment does not say."""
    if not fake:
        key, url = ([os.environ.get(name, "") for name in b.variables] + [""])[:2]
        reachable = bool(url) if len(b.variables) > 1 else bool(key)
        return (BackendSpec(b.type, url, key) if reachable else None), None
    module, _, name = b.fake.partition(":")
    server: FakeServer = await stack.enter_async_context(getattr(import_module(f"modeld.testing.{module}"), name)())
    if b.type == "vertex-google":
        return BackendSpec(b.type, server.base_url, server.service_account()), server  # type: ignore[attr-defined]
    return BackendSpec(b.type, server.url + b.path, server.key), server


async def main(names: list[str], *, fake: bool) -> int:
    """The table; 0 when no cell failed."""
    wanted = [b for b in BACKENDS if not names or b.type in names]
    table = Table("backend", *COLUMNS)
    notes: list[str] = []
    failed = 0
    daemon = Daemon()
    async with AsyncExitStack() as stack:
        for b in wanted:
            spec, server = await spec_of(b, stack, fake=fake)
            if spec is None:
                print(f"{b.name}: set {' and '.join(b.variables)}", file=sys.stderr)
                continue
            await daemon.register_backend(b.name, spec)
            cells = await row(daemon, b, server)
            failed += sum(cell.startswith("FAILED") for cell in cells)
            table.add_row(b.name, *cells)
            if "no" in cells:
                notes.append(f"{b.name}: no embeddings: {b.no_embed}")
            notes.append(f"{b.name}: its listing does not send {b.unlisted[0]}: {b.unlisted[1]}")
        await daemon.stop()
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    for note in notes:
        print(note)
    return 1 if failed or not table.row_count else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fake", action="store_true", help="fakes of all wires on loopback; no key, no network")
    parser.add_argument("types", nargs="*", choices=[*sorted({b.type for b in BACKENDS}), []], help="default: all")
    args = parser.parse_args()
    sys.exit(asyncio.run(main(args.types, fake=args.fake)))
