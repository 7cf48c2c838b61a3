"""Hazard: one provider behaves in a way of its own. Every behaviour here holds for all, through the real SDKs."""

import asyncio
import base64
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import httpx
import httpx2
import pytest
from msgspec import structs

from modeld import (
    AuthenticationError,
    BackendError,
    BackendProtocolError,
    BackendUnavailableError,
    ChatConfig,
    ChatResult,
    ContextOverflowError,
    DeadlineExceededError,
    EndPart,
    FunctionCall,
    FunctionTool,
    ImagePart,
    InvalidRequestError,
    LogprobsPart,
    Message,
    ModelNotFoundError,
    NotSupportedError,
    PermissionDeniedError,
    QuotaError,
    RateLimitError,
    RefusedError,
    ResponseFormat,
    StreamPart,
    TextPart,
    ThinkingPart,
    TokenLogprob,
    Tool,
    ToolCall,
    ToolCallEnd,
    ToolCallStart,
    TopLogprob,
)
from modeld.repository import CatalogOptions, RetryPolicy, new_catalog_provider
from modeld.repository.client import WireClient
from modeld.repository.options import OPTIONS
from modeld.repository.provider import WireCatalog
from modeld.repository.tracker import Attribute
from modeld.testing.google import FakeGemini
from modeld.testing.server import Answer, FakeServer, Fault
from modeld.thinking import LEVELS
from support.providers import ProviderCase, first_of, provider_cases

pytestmark = [pytest.mark.anyio, pytest.mark.parametrize("case", provider_cases(), ids=lambda case: case.id)]

ONCE = RetryPolicy(attempts=1)
ASK = [Message("system", "be terse"), Message("user", "list /tmp")]
LIST = Tool(FunctionTool("fs.list", "list", {"type": "object", "properties": {"path": {"type": "string"}}}))
TIME = Tool(FunctionTool("clock", "what time it is", {"type": "object", "properties": {"zone": {"type": "string"}}}))
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TWO_CALLS = (
    ToolCall("call_aaaaaaaaaaaaaaaaaaaaaaaa", FunctionCall("fs.list", '{"path":"/tmp"}')),
    ToolCall("call_bbbbbbbbbbbbbbbbbbbbbbbb", FunctionCall("clock", '{"zone":"UTC"}')),
)
PIXEL = ImagePart(
    base64.b64decode(
        "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
    ),
    "image/png",
)
SAMPLES: dict[str, object] = {
    "temperature": 0.5,
    "max_tokens": 77,
    "top_p": 0.75,
    "top_k": 12,
    "min_p": 0.125,
    "seed": 42,
    "stop": ("END",),
    "frequency_penalty": 0.5,
    "presence_penalty": 0.25,
    "repeat_penalty": 1.25,
    "tools": (LIST,),
    "tool_choice": "required",
    "parallel_tool_calls": False,
    "response_format": ResponseFormat(schema=SCHEMA),
    "logprobs": True,
    "top_logprobs": 3,
    "think": "high",
    "shift": True,
    "truncate": True,
    "prompt_cache": "24h",
    "prompt_cache_key": "key",
    "timeout": 30.0,
}


class Backend:
    """A fake, the catalog that points at it, and clients of it."""

    def __init__(self, case: ProviderCase, server: FakeServer, catalog: WireCatalog) -> None:
        self.case = case
        self.server = server
        self.catalog = catalog

    async def client(self, model: str = "") -> WireClient:
        return await self.catalog.provider_for(model or self.case.model).chat_client()

    async def listed(self, name: str) -> WireClient:
        (model,) = [m for m in await self.catalog.list_models() if m.name == name]
        return await self.catalog.provider_for(model).embed_client()

    @property
    def server_knows_bytes(self) -> bool:
        """Google writes tokens as text."""
        return not isinstance(self.server, FakeGemini)

    @property
    def sent(self) -> list[dict[str, Any]]:
        """Bodies of the requests that ask for an answer; looking a model up is none."""
        return [r.json for r in self.server.requests if r.method == "POST" and not r.path.endswith(("/show", "/token"))]


@asynccontextmanager
async def backend(case: ProviderCase, **options: Any) -> AsyncIterator[Backend]:
    async with case.server() as server:
        catalog = new_catalog_provider(case.spec(server), CatalogOptions(**{"retry": ONCE, **options}))
        assert isinstance(catalog, WireCatalog)
        try:
            yield Backend(case, server, catalog)
        finally:
            await catalog.aclose()


async def collect(client: WireClient, *args: Any, **options: Any) -> list[StreamPart]:
    async with await client.stream(*args, **options) as stream:
        return [part async for part in stream]


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


def neutral(result: ChatResult) -> ChatResult:
    """Without ids that the vendor, or we in its place, draw anew for each answer."""
    calls = tuple(structs.replace(call, id="") for call in result.tool_calls)
    message = structs.replace(result.message, tool_calls=calls)
    return structs.replace(result, message=message, end=structs.replace(result.end, id=""))


def both_ways(answer: Answer) -> tuple[Answer, Answer]:
    return answer, answer


async def test_a_listing_names_the_models_and_says_where_each_fact_is_from(case: ProviderCase) -> None:
    async with backend(case) as b:
        models = {model.name: model for model in await b.catalog.list_models()}
        assert models[case.model].capabilities.can_chat
        assert models[case.thinking_model].capabilities.can_think
        if case.embed_model:
            embedder = models[case.embed_model]
            assert embedder.capabilities.can_embed
        for model in models.values():
            for field in ("context_length", "max_output_tokens", "can_think", "can_vision"):
                if getattr(model.capabilities, field):
                    assert field in model.evidence, (model.name, field)


async def test_an_answer_has_text_usage_model_and_reason(case: ProviderCase) -> None:
    async with backend(case) as b:
        b.server.script(Answer(text="It is empty."))
        result = await (await b.client()).chat(ASK)
        assert result.text == "It is empty."
        assert result.finish_reason == "stop"
        assert (result.usage.input, result.usage.output, result.usage.source) == (11, 7, "reported")
        assert case.model in result.model or result.model in case.model
        assert result.warnings == ()


ANSWERS = {
    "text": Answer(text="It is\nempty. Ünïcödé 🎈"),
    "one_piece": Answer(text="x", pieces=1),
    "calls": Answer(text="Let me see.", tool_calls=TWO_CALLS, finish_reason="tool_calls"),
    "only_calls": Answer(tool_calls=TWO_CALLS, finish_reason="tool_calls", pieces=20),
    "no_arguments": Answer(tool_calls=(ToolCall("call_c" * 5, FunctionCall("clock")),), finish_reason="tool_calls"),
    "length": Answer(text="It is emp", finish_reason="length"),
    "empty": Answer(),
}


@pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())
async def test_the_joined_stream_equals_the_whole_answer(case: ProviderCase, answer: Answer) -> None:
    async with backend(case) as b:
        client = await b.client()
        b.server.script(*both_ways(answer))
        whole = await client.chat(ASK, tools=[LIST, TIME])
        joined = await (await client.stream(ASK, tools=[LIST, TIME])).join()
        assert neutral(joined) == neutral(whole)
        assert whole.text == answer.text
        assert whole.finish_reason == answer.finish_reason
        wanted = [(c.function.name, json.loads(c.function.arguments)) for c in answer.tool_calls]
        assert [(c.function.name, json.loads(c.function.arguments)) for c in whole.tool_calls] == wanted
        assert len({call.id for call in whole.tool_calls}) == len(answer.tool_calls)
        assert [w.code for w in whole.warnings] == (["empty_answer"] if answer is ANSWERS["empty"] else [])


async def test_thinking_comes_first_and_apart(case: ProviderCase) -> None:
    async with backend(case) as b:
        client = await b.client(case.thinking_model)
        b.server.script(*both_ways(Answer(text="42.", thinking="The user wants the answer.")))
        whole = await client.chat(ASK, think="high")
        parts = await collect(client, ASK, think="high")
        kinds = [type(part) for part in parts if isinstance(part, ThinkingPart | TextPart)]
        assert kinds == sorted(kinds, key=lambda kind: kind is TextPart)
        assert kinds[0] is ThinkingPart
        assert "".join(p.text for p in parts if isinstance(p, ThinkingPart)) == whole.thinking
        assert whole.thinking == "The user wants the answer."
        assert whole.text == "42."


async def test_a_stream_has_one_end_and_whole_calls(case: ProviderCase) -> None:
    async with backend(case) as b:
        b.server.script(ANSWERS["calls"])
        parts = await collect(await b.client(), ASK, tools=[LIST, TIME])
        assert [type(part) for part in parts].count(EndPart) == 1
        assert isinstance(parts[-1], EndPart)
        starts = [part.index for part in parts if isinstance(part, ToolCallStart)]
        assert starts == [part.index for part in parts if isinstance(part, ToolCallEnd)] == [0, 1]


async def test_a_tool_turn_goes_on_with_its_results(case: ProviderCase) -> None:
    async with backend(case) as b:
        client = await b.client()
        b.server.script(ANSWERS["calls"], Answer(text="Two files."))
        first = await (await client.stream(ASK, tools=[LIST, TIME])).join()
        results = [
            Message("tool", content, tool_call_id=call.id, name=call.function.name)
            for call, content in zip(first.tool_calls, ('{"files":["a","b"]}', ""), strict=True)
        ]
        second = await client.chat([*ASK, first.message, *results], tools=[LIST, TIME])
        assert second.text == "Two files."
        history = json.dumps(b.sent[-1])
        assert "files" in history
        assert "/tmp" in history


async def test_a_thinking_tool_turn_is_taken_back_by_the_vendor(case: ProviderCase) -> None:
    """Vendors that sign thinking or calls refuse a history without the signature, and so do their fakes."""
    async with backend(case) as b:
        client = await b.client(case.thinking_model)
        b.server.script(structs.replace(ANSWERS["calls"], thinking="I need the list."), Answer(text="Two files."))
        first = await (await client.stream(ASK, tools=[LIST, TIME], think="high")).join()
        stored = structs.replace(first.message, thinking="something else that nobody may see")
        results = [Message("tool", "[]", tool_call_id=call.id) for call in first.tool_calls]
        second = await client.chat([*ASK, stored, *results], tools=[LIST, TIME], think="high")
        assert second.text == "Two files."
        assert "something else" not in json.dumps(b.sent[-1])


UNSCORED = ("anthropic", "mistral", "openai-responses")
"""Cases whose model tells no log-probabilities."""

SCORED = tuple(
    TokenLogprob(-0.5 - place, data, top=(TopLogprob(-0.5 - place, data), TopLogprob(-9999.0, b"#")))
    for place, data in enumerate((b"It", b" is", b" ", b"\xf0\x9f\x8e", b"\x88", b"."))
)


@pytest.mark.parametrize("top", [None, 0, 1, 2])
async def test_log_probabilities_are_the_same_streamed_and_not(case: ProviderCase, top: int | None) -> None:
    async with backend(case) as b:
        client = await b.client()
        asked = ChatConfig(logprobs=True, top_logprobs=top)
        if case.id in UNSCORED:
            with pytest.raises(NotSupportedError) as caught:
                await client.chat(ASK, asked)
            assert caught.value.details["feature"] == "logprobs"
            assert b.sent == []
            return
        b.server.script(*both_ways(Answer(text="It is 🎈.", logprobs=SCORED)), Answer(text="It", logprobs=SCORED))
        whole = await client.chat(ASK, asked)
        assert [token.logprob for token in whole.logprobs] == [token.logprob for token in SCORED]
        if b.server_knows_bytes:
            assert b"".join(token.data for token in whole.logprobs).decode() == whole.text
        assert {len(token.top) for token in whole.logprobs} == {top or 0}
        parts = await collect(client, ASK, asked)
        joined = [token for part in parts if isinstance(part, LogprobsPart) for token in part.tokens]
        assert tuple(joined) == whole.logprobs
        # They come beside the text, not all at the end.
        kinds = [type(part) for part in parts if isinstance(part, TextPart | LogprobsPart)]
        assert kinds[:2] == [TextPart, LogprobsPart]
        assert kinds.count(LogprobsPart) > 1
        # Who did not ask hears nothing.
        assert (await client.chat(ASK, logprobs=False, top_logprobs=0)).logprobs == ()


async def test_json_follows_a_schema(case: ProviderCase) -> None:
    async with backend(case) as b:
        b.server.script(Answer(text='{"name":"Ada","age":36}'))
        result = await (await b.client()).chat(ASK, response_format=ResponseFormat(schema=SCHEMA, name="person"))
        assert json.loads(result.text) == {"name": "Ada", "age": 36}
        assert "additionalProperties" in json.dumps(b.sent[-1]) or "age" in json.dumps(b.sent[-1])


async def test_embeddings_keep_the_order_of_the_texts(case: ProviderCase) -> None:
    async with backend(case) as b:
        if not case.embed_model:
            assert case.no_embed.startswith("https://")
            with pytest.raises(NotSupportedError):
                await b.catalog.provider_for(case.model).embed_client()
            return
        client = await b.listed(case.embed_model)
        many = await client.embed(["a", "bbb", "cc"])
        assert many == [[round((n + i) / 16, 4) for i in range(len(many[0]))] for n in (1, 3, 2)]
        assert await client.embed("bbb") == many[1]
        with pytest.raises(InvalidRequestError):
            await client.embed([])


@pytest.mark.parametrize("option", [name for name in OPTIONS if name != "timeout"])
async def test_no_option_is_dropped(case: ProviderCase, option: str) -> None:
    async with backend(case) as b:
        wire = b.catalog.wire
        model = case.thinking_model if option == "think" else case.model
        client = await b.client(model)
        base = ChatConfig(tools=(LIST,)) if option in ("tool_choice", "parallel_tool_calls") else ChatConfig()
        if option == "top_logprobs":
            base = ChatConfig(logprobs=True)
        config = base.replace(**{option: case.samples.get(option, SAMPLES[option])})
        if wire.rules[option].kind == "error":
            with pytest.raises(NotSupportedError) as caught:
                await client.chat(ASK, config)
            assert caught.value.details["feature"] == ("logprobs" if base.logprobs else option)
            assert b.sent == []
            return
        b.server.script(Answer(text="{}"), Answer(text="{}"))
        if case.id in UNSCORED and base.logprobs:
            assert (await unsupported(client, base)) is not None
            return
        await client.chat(ASK, base)
        if (error := await unsupported(client, config)) is not None:
            # The wire can, this model cannot: refused by name, before anything was sent.
            assert error.details["feature"] == option
            assert model in str(error)
            assert len(b.sent) == 1
            return
        before, after = b.sent
        assert before != after
        paths = [path.strip() for path in wire.rules[option].wire.split("|") if path.strip()]
        assert not paths or any(has_path(after, path) for path in paths), (paths, after)


async def unsupported(client: WireClient, config: ChatConfig) -> NotSupportedError | None:
    """Why the call is refused before it is sent, if it is."""
    try:
        await client.chat(ASK, config)
    except NotSupportedError as error:
        return error
    return None


def has_path(body: Any, path: str) -> bool:
    for key in path.split("."):
        if isinstance(body, list):
            body = body[0] if body else None
        if not isinstance(body, dict) or key not in body:
            return False
        body = body[key]
    return True


@pytest.mark.parametrize("level", LEVELS)
async def test_a_thinking_level_is_mapped_or_refused(case: ProviderCase, level: str) -> None:
    async with backend(case) as b:
        client = await b.client(case.thinking_model)
        await client.chat(ASK)
        if (error := await unsupported(client, ChatConfig(think=level))) is not None:
            assert error.details["feature"] == "think"
            assert level != "auto"
            assert len(b.sent) == 1
        else:
            assert (b.sent[0] == b.sent[1]) == (level == "auto")
        with pytest.raises(InvalidRequestError):
            await client.chat(ASK, think="very much")


async def test_an_image_reaches_the_vendor(case: ProviderCase) -> None:
    async with backend(case) as b:
        message = Message("user", "What is this?", images=(PIXEL,))
        if not case.vision_model:
            with pytest.raises(NotSupportedError):
                await (await b.client()).chat([message])
            return
        await (await b.client(case.vision_model)).chat([message])
        assert base64.b64encode(PIXEL.data).decode()[:40] in json.dumps(b.sent[-1])


STATUSES = [
    (400, InvalidRequestError),
    (401, AuthenticationError),
    (403, PermissionDeniedError),
    (404, ModelNotFoundError),
    (500, BackendUnavailableError),
    (503, BackendUnavailableError),
]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize(("status", "error"), STATUSES)
async def test_a_status_is_typed(case: ProviderCase, status: int, error: type[Exception], streamed: bool) -> None:
    async with backend(case) as b:
        b.server.script(Fault(kind="status", status=status, message="because"))
        client = await b.client()
        with pytest.raises(error) as caught:
            await (client.stream(ASK) if streamed else client.chat(ASK))
        assert "because" in str(caught.value)
        assert caught.value.details["status"] == status  # type: ignore[attr-defined]
        assert caught.value.retryable == (status >= 500)  # type: ignore[attr-defined]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_a_rate_limit_says_how_long(case: ProviderCase, streamed: bool) -> None:
    async with backend(case) as b:
        b.server.script(Fault(kind="status", status=429, headers={"retry-after": "7"}))
        client = await b.client()
        with pytest.raises(RateLimitError) as caught:
            await (client.stream(ASK) if streamed else client.chat(ASK))
        assert caught.value.retry_after == 7
        assert caught.value.retryable


async def test_a_conversation_that_is_too_long_is_an_overflow_with_numbers(case: ProviderCase) -> None:
    async with backend(case) as b:
        b.server.script(case.overflow)
        with pytest.raises(ContextOverflowError) as caught:
            await (await b.client()).chat(ASK)
        assert caught.value.details.get("window") == case.window
        assert caught.value.details.get("tokens") == case.tokens


async def test_an_empty_account_is_no_rate_limit(case: ProviderCase) -> None:
    async with backend(case) as b:
        b.server.script(case.quota or Fault(kind="status", status=402))
        with pytest.raises(QuotaError) as caught:
            await (await b.client()).chat(ASK)
        assert not caught.value.retryable


async def test_a_wrong_key_is_named_and_not_shown(case: ProviderCase, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with backend(case) as b:
        b.server.key = "another-key"
        with pytest.raises(AuthenticationError) as caught:
            await (await b.client()).chat(ASK)
        spec = case.spec(b.server)
        assert spec.api_key
        assert spec.api_key not in f"{caught.value} {caught.value.details} {spec!r} {caplog.text}"


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_try_again_is_for_what_passes(case: ProviderCase, streamed: bool) -> None:
    async with backend(case, retry=RetryPolicy(attempts=3, base=0.01, cap=0.02)) as b:
        client = await b.client()
        b.server.script(
            Fault(kind="status", status=429, headers={"retry-after": "0"}),
            Fault(kind="status", status=503),
            Answer(text="at last"),
        )
        result = await ((await client.stream(ASK)).join() if streamed else client.chat(ASK))
        assert result.text == "at last"
        assert len(b.sent) == 3
        b.server.script(Fault(kind="status", status=400))
        with pytest.raises(InvalidRequestError):
            await (client.stream(ASK) if streamed else client.chat(ASK))
        assert len(b.sent) == 4


async def test_a_cut_answer_is_never_a_whole_one(case: ProviderCase) -> None:
    async with backend(case) as b:
        client = await b.client()
        b.server.script(Fault(kind="cut", after=3), Fault(kind="cut"))
        with pytest.raises(BackendUnavailableError):
            await collect(client, ASK)
        with pytest.raises((BackendUnavailableError, BackendProtocolError)):
            await client.chat(ASK)


async def test_an_error_in_the_middle_is_raised(case: ProviderCase) -> None:
    async with backend(case) as b:
        b.server.script(Fault(kind="error_event", after=3, message="the engine fell over"))
        with pytest.raises(BackendError, match="the engine fell over"):
            await collect(await b.client(), ASK)


@pytest.mark.parametrize("kind", ["broken_json", "content_type"])
async def test_what_is_no_answer_is_not_taken_for_one(case: ProviderCase, kind: Any) -> None:
    async with backend(case) as b:
        client = await b.client()
        b.server.script(Fault(kind=kind, after=2), Fault(kind=kind))
        with pytest.raises(BackendProtocolError):
            await collect(client, ASK)
        with pytest.raises(BackendProtocolError):
            await client.chat(ASK)


async def test_slow_bytes_change_nothing(case: ProviderCase) -> None:
    async with backend(case) as b:
        client = await b.client()
        answer = structs.replace(ANSWERS["calls"], text="Ünïcödé 🎈")
        b.server.script(answer, Fault(kind="slow", answer=answer))
        fast = await (await client.stream(ASK, tools=[LIST, TIME])).join()
        slow = await (await client.stream(ASK, tools=[LIST, TIME])).join()
        assert neutral(slow) == neutral(fast)


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_a_timeout_ends_the_request(case: ProviderCase, streamed: bool) -> None:
    async with backend(case) as b:
        client = await b.client()
        # The SDK is loaded and a model looked up before: that is not what is timed.
        await client.chat(ASK)
        b.server.script(Fault(kind="hang", after=1 if streamed else 0))
        with pytest.raises(DeadlineExceededError, match=r"0\.4 s"):
            await (collect(client, ASK, timeout=0.4) if streamed else client.chat(ASK, timeout=0.4))
        await until(lambda: b.server.cut_off == 1)


async def test_leaving_a_stream_closes_the_request(case: ProviderCase) -> None:
    async with backend(case) as b:
        client = await b.client()
        b.server.script(Fault(kind="hang", after=4))
        async with await client.stream(ASK) as stream:
            assert isinstance(await first_of(stream), TextPart)
            assert b.server.cut_off == 0
        await until(lambda: b.server.cut_off == 1)
        assert [part async for part in stream] == []


async def test_cancelling_the_reader_closes_the_request(case: ProviderCase) -> None:
    async with backend(case) as b:
        client = await b.client()
        await client.chat(ASK)
        b.server.script(Fault(kind="hang", after=0))
        task = asyncio.create_task(client.chat(ASK))
        await until(lambda: len(b.sent) == 2)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        assert task.cancelled()
        await until(lambda: b.server.cut_off == 1)


async def test_a_refusal_is_refused(case: ProviderCase) -> None:
    async with backend(case) as b:
        client = await b.client()
        if not case.can_refuse:
            # The vendor has no way to say so: such words are an answer like any other.
            b.server.script(Answer(text="I cannot help with that."))
            assert (await client.chat(ASK)).finish_reason == "stop"
            return
        b.server.script(*both_ways(Answer(refusal="I cannot help with that.")))
        with pytest.raises(RefusedError) as caught:
            await client.chat(ASK)
        joined = await (await client.stream(ASK)).join()
        assert joined.finish_reason == "refused"
        assert caught.value.details["text"] == joined.text


async def test_a_prompt_is_a_short_conversation(case: ProviderCase) -> None:
    async with backend(case) as b:
        client = await b.catalog.provider_for(case.model).prompt_client()
        b.server.script(Answer(text="Yes."), Answer(text="No."))
        assert await client.prompt("be terse", None, "Is it?") == "Yes."
        assert await client.prompt("  ", None, "Is it?") == "No."
        assert "be terse" in json.dumps(b.sent[0])
        assert "system" not in json.dumps(b.sent[1]).lower().replace("system_fingerprint", "")


async def test_an_empty_conversation_is_not_sent(case: ProviderCase) -> None:
    async with backend(case) as b:
        client = await b.client()
        for messages in ([], [Message("system", "only this")], [Message("user", "")]):
            with pytest.raises(InvalidRequestError):
                await client.chat(messages)
        assert b.sent == []


async def test_every_system_message_arrives_in_streams_too(case: ProviderCase) -> None:
    async with backend(case) as b:
        messages = [Message("system", "first rule"), Message("system", "second rule"), Message("user", "go")]
        await collect(await b.client(), messages)
        assert "first rule" in json.dumps(b.sent[0])
        assert "second rule" in json.dumps(b.sent[0])


async def test_the_http_client_is_used_for_all_and_stays_open(case: ProviderCase) -> None:
    library: Any = httpx if case.type == "ollama" else httpx2
    seen: list[str] = []

    async def look(request: Any) -> None:
        seen.append(request.method)

    async with library.AsyncClient(event_hooks={"request": [look]}) as http_client:
        async with backend(case, http_client=http_client) as b:
            await b.catalog.list_models()
            listed = len(seen)
            assert listed
            await (await b.client()).chat(ASK)
            assert len(seen) > listed
        assert not http_client.is_closed


class Recorder:
    """A tracker that keeps what it hears."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str, str]] = []
        self.heard: dict[str, Attribute | None] = {}
        self.errors: list[BaseException] = []

    @contextmanager
    def start(self, operation: str, backend: str, model: str, **attributes: Attribute | None) -> Iterator["Recorder"]:
        self.calls.append((operation, backend, model))
        try:
            yield self
        except BaseException as error:
            self.errors.append(error)
            raise

    def record(self, **attributes: Attribute | None) -> None:
        self.heard |= attributes


async def test_the_tracker_hears_of_calls_and_nothing_of_their_words(case: ProviderCase) -> None:
    tracker = Recorder()
    async with backend(case, tracker=tracker) as b:
        client = await b.client()
        b.server.script(Answer(text="a secret answer"), Answer(text="x"), Fault(kind="status", status=400))
        await client.chat(ASK)
        await collect(client, ASK)
        with pytest.raises(InvalidRequestError):
            await client.stream(ASK)
        await b.catalog.list_models()
        assert [call[0] for call in tracker.calls] == ["chat", "stream", "stream", "list_models"]
        assert {call[1] for call in tracker.calls} == {case.type}
        assert tracker.heard["input_tokens"] == 11
        assert tracker.heard["finish_reason"] == "stop"
        assert [type(error) for error in tracker.errors] == [InvalidRequestError]
        assert "secret" not in repr(tracker.heard)


async def test_many_at_once_do_not_mix(case: ProviderCase) -> None:
    async with backend(case) as b:
        client = await b.client()
        answers = [Answer(text=f"answer {n} " * 5) for n in range(20)]
        b.server.script(*answers)
        results = await asyncio.gather(*[(await client.stream(ASK)).join() for _ in answers])
        assert sorted(result.text for result in results) == sorted(answer.text for answer in answers)
