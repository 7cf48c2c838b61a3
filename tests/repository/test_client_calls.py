"""Hazard: a call that cannot be right is sent anyway, or something is changed without a word."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

import pytest

from modeld import (
    BackendError,
    BackendProtocolError,
    BackendUnavailableError,
    DeadlineExceededError,
    EndPart,
    ImagePart,
    InvalidRequestError,
    Message,
    NotSupportedError,
    QuotaError,
    RefusedError,
    StreamPart,
    TextPart,
    ThinkingPart,
    Usage,
)
from modeld.repository import CapabilityConfig, EmbedResult, ObservedModel, RetryPolicy
from modeld.repository.options import OPTIONS, Rule, check_options, make_rules
from modeld.types import ChatConfig, FunctionTool, Tool

pytestmark = pytest.mark.anyio

ASK = [Message("user", "hello")]
ONCE = RetryPolicy(attempts=1)


async def test_a_misspelt_option_is_named(make_wire: Callable) -> None:
    wire, catalog = make_wire()
    client = await catalog.provider_for("m").chat_client()
    with pytest.raises(InvalidRequestError, match="'temprature'"):
        await client.chat(ASK, temprature=0.5)
    assert wire.calls == []


async def test_options_replace_those_of_the_config(make_wire: Callable) -> None:
    wire, catalog = make_wire()
    client = await catalog.provider_for("m").chat_client()
    await client.chat(ASK, ChatConfig(temperature=0.1, seed=1), temperature=0.9, stop=["x"], tools=[])
    assert wire.calls[0].config == ChatConfig(temperature=0.9, seed=1, stop=("x",))


async def test_a_lowered_max_tokens_is_said(make_wire: Callable) -> None:
    wire, catalog = make_wire()
    client = await catalog.provider_for("m").chat_client()
    result = await client.chat(ASK, max_tokens=500)
    assert wire.calls[0].config.max_tokens == 100
    assert [(w.code, "500" in w.message and "100" in w.message) for w in result.warnings] == [
        ("max_tokens_clamped", True)
    ]
    joined = await (await client.stream(ASK, max_tokens=500)).join()
    assert joined == result


async def test_what_a_model_is_known_not_to_do_is_refused_and_what_is_unknown_is_sent(make_wire: Callable) -> None:
    wire, catalog = make_wire()
    picture = [Message("user", "what is it", images=(ImagePart(b"x", "image/png"),))]
    with pytest.raises(NotSupportedError, match="images"):
        await (await catalog.provider_for("m").chat_client()).chat(picture)
    assert wire.calls == []
    known = wire.model("m")
    unknown = ObservedModel(name="m", capabilities=known.capabilities)
    await (await catalog.provider_for(unknown).chat_client()).chat(picture)
    assert len(wire.calls) == 1


@pytest.mark.parametrize("kind", ["chat", "stream", "prompt", "embed"])
async def test_a_capability_that_is_not_there_gives_no_client(make_wire: Callable, kind: str) -> None:
    _, catalog = make_wire()
    nothing = CapabilityConfig(
        context_length=0,
        max_output_tokens=0,
        can_chat=False,
        can_embed=False,
        can_stream=False,
        can_prompt=False,
        can_think=False,
        can_vision=False,
    )
    provider = catalog.provider_for(ObservedModel(name="m", capabilities=nothing))
    with pytest.raises(NotSupportedError, match=kind):
        await getattr(provider, f"{kind}_client")()
    assert not getattr(provider, f"can_{kind}")


def test_a_flag_without_an_answer_is_a_mistake() -> None:
    with pytest.raises(TypeError):
        CapabilityConfig(context_length=1, max_output_tokens=1, can_chat=True)  # type: ignore[call-arg]


async def test_a_provider_says_who_it_is(make_wire: Callable) -> None:
    _, catalog = make_wire()
    provider = catalog.provider_for("m")
    assert (provider.id, provider.type, provider.model_name) == ("echo:m", "echo", "m")
    assert (provider.context_length, provider.max_output_tokens, provider.backend_ids) == (8192, 100, ("echo://here",))
    assert await provider.chat_client("echo://here")
    with pytest.raises(InvalidRequestError, match="elsewhere"):
        await provider.chat_client("elsewhere")
    with pytest.raises(InvalidRequestError):
        catalog.provider_for("  ")


async def test_an_error_of_the_sdk_becomes_one_of_ours(make_wire: Callable) -> None:
    wire, catalog = make_wire(retry=ONCE)
    client = await catalog.provider_for("m").chat_client()
    for call in (client.chat, client.stream):
        wire.failures = [KeyError("odd")]
        with pytest.raises(BackendError, match="echo: 'odd'") as caught:
            await call(ASK)
        assert isinstance(caught.value.__cause__, KeyError)
    wire.failures = [OSError("list")]
    with pytest.raises(BackendError):
        await catalog.list_models()


def end(reason: str = "stop") -> EndPart:
    return EndPart(finish_reason=reason, usage=Usage())  # type: ignore[arg-type]


async def test_a_stream_without_an_end_is_an_error(make_wire: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    wire, catalog = make_wire(retry=ONCE)
    client = await catalog.provider_for("m").stream_client()
    for parts in ([TextPart("half")], []):

        async def stream(call: object, parts: Sequence[StreamPart] = parts) -> AsyncGenerator[StreamPart, None]:
            for part in parts:
                yield part

        monkeypatch.setattr(wire, "stream", stream)
        with pytest.raises(BackendUnavailableError, match="incomplete"):
            await (await client.stream(ASK)).join()


async def test_an_answer_of_thinking_alone_is_called_empty(
    make_wire: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire, catalog = make_wire()

    async def chat(call: object) -> Sequence[StreamPart]:
        return [ThinkingPart("hm"), end()]

    monkeypatch.setattr(wire, "chat", chat)
    client = await catalog.provider_for("m").chat_client()
    result = await client.chat(ASK)
    assert [w.code for w in result.warnings] == ["empty_answer"]
    assert [w.code for w in (await (await client.stream(ASK)).join()).warnings] == ["empty_answer"]


async def test_a_refusal_without_words_is_one_too(make_wire: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    wire, catalog = make_wire()

    async def chat(call: object) -> Sequence[StreamPart]:
        return [end("refused")]

    monkeypatch.setattr(wire, "chat", chat)
    client = await catalog.provider_for("m").chat_client()
    with pytest.raises(RefusedError, match="declined"):
        await client.chat(ASK)
    assert (await (await client.stream(ASK)).join()).finish_reason == "refused"


async def test_the_timeout_is_for_all_attempts(make_wire: Callable) -> None:
    wire, catalog = make_wire(retry=RetryPolicy(attempts=50, base=0.2, cap=0.2))
    wire.failures = [BackendUnavailableError("down", retry_after=None) for _ in range(50)]
    client = await catalog.provider_for("m").chat_client()
    for call in (client.chat, client.stream):
        with pytest.raises(DeadlineExceededError, match=r"0\.5 s"):
            await call(ASK, timeout=0.5)
    assert len(wire.calls) < 20


async def test_a_stream_is_over_once(make_wire: Callable) -> None:
    _, catalog = make_wire()
    stream = await (await catalog.provider_for("m").stream_client()).stream(ASK)
    assert [type(part) for part in [p async for p in stream]] == [TextPart, EndPart]
    assert [part async for part in stream] == []
    await stream.aclose()
    await stream.aclose()


async def test_vectors_that_do_not_fit_the_texts_are_refused(
    make_wire: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire, catalog = make_wire()
    client = await catalog.provider_for("m").embed_client()
    assert await client.embed("abc") == [3.0]
    assert await client.embed(("abc", "de")) == [[3.0], [2.0]]

    async def embed(*args: object) -> EmbedResult:
        return EmbedResult(vectors=((1.0,),))

    monkeypatch.setattr(wire, "embed", embed)
    with pytest.raises(BackendProtocolError, match="1 vectors for 2 texts"):
        await client.embed(["a", "b"])
    for bad in ([], "", ["a", ""]):
        with pytest.raises(InvalidRequestError):
            await client.embed(bad)
    with pytest.raises(InvalidRequestError):
        await client.embed("a", dimensions=0)


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -1.0},
        {"max_tokens": 0},
        {"top_p": 0.0},
        {"top_k": -1},
        {"min_p": 2.0},
        {"seed": -1},
        {"stop": ("",)},
        {"stop": "END"},
        {"repeat_penalty": 0.0},
        {"temperature": float("nan")},
        {"timeout": 0.0},
        {"shift": True, "truncate": True},
        {"tool_choice": "required"},
        {"tool_choice": "unknown", "tools": (Tool(FunctionTool("a")),)},
        {"tools": (Tool(FunctionTool("a")), Tool(FunctionTool("a")))},
        {"tools": (Tool(FunctionTool("auto")),)},
        {"think": "very much"},
    ],
    ids=str,
)
def test_a_value_out_of_its_range_is_refused(values: dict[str, object]) -> None:
    with pytest.raises(InvalidRequestError):
        ChatConfig(**values)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequestError):
        ChatConfig().replace(**values)


def test_rules_answer_for_every_option() -> None:
    with pytest.raises(InvalidRequestError, match="min_p"):
        make_rules(**{name: Rule("native", name) for name in OPTIONS if name != "min_p"}, images=Rule("native"))


def test_false_asks_for_what_always_holds() -> None:
    rules = {name: Rule("error", "", "no such thing") for name in OPTIONS}
    check_options("x", rules, ChatConfig(shift=False, truncate=False))
    with pytest.raises(NotSupportedError, match="no such thing"):
        check_options("x", rules, ChatConfig(shift=True))


async def test_cancelling_while_the_first_part_is_awaited_closes_the_generator(
    make_wire: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    wire, catalog = make_wire()
    started, closed = asyncio.Event(), asyncio.Event()

    async def stream(call: object) -> AsyncGenerator[StreamPart, None]:
        try:
            started.set()
            await asyncio.Event().wait()
            yield TextPart("never")
        finally:
            closed.set()

    monkeypatch.setattr(wire, "stream", stream)
    task = asyncio.create_task((await catalog.provider_for("m").stream_client()).stream(ASK))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert closed.is_set()


async def test_an_error_says_which_of_two_backends_it_was(make_wire: Callable) -> None:
    wire, catalog = make_wire(name="cloud", retry=ONCE)
    client = await catalog.provider_for("m").chat_client()
    for failure in (KeyError("odd"), QuotaError("nothing left")):
        wire.failures = [failure]
        with pytest.raises(BackendError, match=r"^cloud: ") as caught:
            await client.chat(ASK)
        assert caught.value.details["backend_id"] == "cloud"


async def test_a_message_that_no_backend_takes_is_not_sent(make_wire: Callable) -> None:
    wire, catalog = make_wire()
    client = await catalog.provider_for("m").chat_client()
    with pytest.raises(InvalidRequestError, match="developer"):
        await client.chat([Message("developer", "x"), *ASK])  # type: ignore[arg-type]
    with pytest.raises(NotSupportedError, match="system message"):
        await client.chat([Message("system", "x", images=(ImagePart(b"x", "image/png"),)), *ASK])
    assert wire.calls == []
