"""Hazard: a mock grants what a real provider would not, or is not what the contract says."""

from typing import Any

import pytest

from modeld import EndPart, InvalidRequestError, Message, NotSupportedError, TextPart
from modeld.repository import ChatClient, EmbedClient, PromptClient, Provider, StreamClient
from modeld.repository.contract import AnswerStream
from modeld.testing import MockChatClient, MockEmbedClient, MockPromptClient, MockProvider, MockStreamClient

pytestmark = pytest.mark.anyio

ASK = [Message("user", "Hello")]
ALL = MockProvider(
    id="mock-1",
    name="m",
    context_length=4096,
    max_output_tokens=100,
    can_chat=True,
    can_embed=True,
    can_stream=True,
    can_prompt=True,
    can_vision=True,
    backends=("a", "b"),
)


def test_mocks_are_what_the_contract_says() -> None:
    """Type checkers see it too: each name is annotated with its protocol."""
    provider: Provider = ALL
    chat: ChatClient = MockChatClient()
    stream: StreamClient = MockStreamClient()
    prompt: PromptClient = MockPromptClient()
    embed: EmbedClient = MockEmbedClient()
    for value, protocol in (
        (provider, Provider),
        (chat, ChatClient),
        (stream, StreamClient),
        (prompt, PromptClient),
        (embed, EmbedClient),
    ):
        wanted = {name for base in protocol.__mro__ for name in vars(base) if not name.startswith("_")}
        assert all(hasattr(value, name) for name in wanted), wanted


def test_a_mock_says_what_it_was_told() -> None:
    assert (ALL.id, ALL.type, ALL.model_name, ALL.backend_ids) == ("mock-1", "mock", "m", ("a", "b"))
    assert (ALL.context_length, ALL.max_output_tokens, ALL.can_vision, ALL.can_think) == (4096, 100, True, False)


@pytest.mark.parametrize("feature", ["chat", "embed", "stream", "prompt"])
async def test_what_is_not_granted_is_refused(feature: str) -> None:
    granted = [other for other in ("chat", "embed", "stream", "prompt") if other != feature]
    flags: dict[str, Any] = {f"can_{other}": True for other in granted}
    provider = MockProvider(**flags)
    with pytest.raises(NotSupportedError) as caught:
        await getattr(provider, f"{feature}_client")()
    assert caught.value.details["feature"] == feature
    for other in granted:
        client = await getattr(provider, f"{other}_client")()
        await client.aclose()
        await client.aclose()


async def test_a_mock_does_not_run_where_it_does_not_run() -> None:
    await ALL.chat_client("b")
    await MockProvider(can_chat=True).chat_client("anywhere")
    with pytest.raises(InvalidRequestError, match="a, b"):
        await ALL.chat_client("c")


async def test_mocks_answer_the_same_every_time() -> None:
    for _ in range(2):
        result = await (await ALL.chat_client()).chat(ASK, temperature=0.5)
        assert result.text == "mock response"
        assert result.finish_reason == "stop"
        assert await (await ALL.prompt_client()).prompt("be terse", None, "Hello") == "mock response"
        embedder = await ALL.embed_client()
        assert await embedder.embed("a") == [0.1, 0.2, 0.3]
        assert await embedder.embed(["a", "b"]) == [[0.1, 0.2, 0.3]] * 2
        assert await embedder.embed(()) == []


async def test_a_stream_has_three_parts_and_one_end() -> None:
    client = await ALL.stream_client()
    stream: AnswerStream = await client.stream(ASK)
    async with stream:
        parts = [part async for part in stream]
    assert parts[:3] == [TextPart(f"mock data part {n}") for n in (1, 2, 3)]
    assert len(parts) == 4
    assert isinstance(parts[3], EndPart)
    assert (await (await client.stream(ASK)).join()).text == "mock data part 1mock data part 2mock data part 3"


async def test_a_stream_that_is_left_is_over() -> None:
    stream = await (await ALL.stream_client()).stream(ASK)
    async with stream:
        assert await anext(aiter(stream)) == TextPart("mock data part 1")
    assert [part async for part in stream] == []
