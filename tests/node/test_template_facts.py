"""Hazard: a node says that a model can do what nobody has seen, or forgets what was seen."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from modeld.cli.models import _template_facts
from modeld.errors import NotSupportedError
from modeld.node.config import NodeConfig
from modeld.node.facts_book import MAX_MODELS, NAME, FactsBook, declared
from modeld.node.node import Node
from modeld.session import SessionConfig
from modeld.template_facts import TemplateFacts
from modeld.types import DecodeOptions, FunctionTool, Message, Tool
from support.templates import write_tiny

pytestmark = pytest.mark.anyio

HELLO = Message("user", "Hello")
TOOL = Tool(FunctionTool("get_weather", "Tells the weather."))
PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
WITH_TOOLS = "{{ tools | tojson }}" + PLAIN
OPENS = PLAIN + "<think>\n"
SEEN = TemplateFacts(system=True, tools=True, efforts=("low", "high"), thinking_history="kept")


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(NodeConfig(data_root=tmp_path / "root", allow_fake=True))
    (tmp_path / "root").mkdir()
    yield node
    await node.aclose()


async def test_what_was_only_declared_is_seen_at_the_first_load_and_known_after_it(node: Node) -> None:
    before = await node.describe("tiny")
    assert before.template == TemplateFacts(
        source="declared", system=True, tools=True, thinking=True, thinking_switch=True
    )
    await node.load("tiny")
    seen = (await node.describe("tiny")).template
    assert (seen.source, seen.parallel_tool_calls, seen.opens_thinking) == ("rendered", True, True)
    await node.unload()
    assert (await node.describe("tiny")).template == seen
    again = Node(NodeConfig(data_root=node.config.data_root))
    assert (await again.describe("tiny")).template == seen


async def test_a_model_without_a_template_has_a_named_default_and_it_is_said(
    node: Node, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = str(write_tiny(tmp_path / "bare.gguf", {}))
    for _ in range(2):
        described = await node.describe(path)
        assert described.template == TemplateFacts(source="default", name="chatml", system=True)
        assert not described.has_template
        await node.load(path)
    assert "the model brings no chat template; ChatML is used" in caplog.text
    assert dict(_template_facts(described.template))["template"] == "chatml, the default: the model brings none"


async def test_a_template_for_tools_is_taken_from_the_file_when_tools_are_offered(node: Node, tmp_path: Path) -> None:
    path = str(write_tiny(tmp_path / "two.gguf", {"default": PLAIN, "tool_use": WITH_TOOLS}))
    session = await node.open_session(path, SessionConfig())
    assert (await node.describe(path)).template.tools
    short = await session.turn([HELLO], options=DecodeOptions(max_tokens=1)).join()
    long = await session.turn([HELLO], tools=[TOOL], options=DecodeOptions(max_tokens=1)).join()
    assert long.receipt.input > short.receipt.input + 20


async def test_thinking_that_cannot_be_switched_off_is_not_said_to_be_off(node: Node, tmp_path: Path) -> None:
    path = str(write_tiny(tmp_path / "thinks.gguf", {"default": OPENS}))
    session = await node.open_session(path, SessionConfig())
    with pytest.raises(NotSupportedError, match="no switch that turns thinking off"):
        await session.turn([HELLO], think="off", options=DecodeOptions(max_tokens=1)).join()
    assert (await session.turn([HELLO], options=DecodeOptions(max_tokens=1)).join()).usage.output == 1
    thinking = dict(_template_facts((await node.describe(path)).template))["thinking"]
    assert thinking == "cannot be switched off; opened in the prompt; dropped in history"


def test_facts_outlive_the_book_and_damage_is_only_forgetting(tmp_path: Path) -> None:
    FactsBook(tmp_path).learn("a", SEEN)
    FactsBook(tmp_path).learn("b", TemplateFacts())
    assert FactsBook(tmp_path).of("a") == SEEN
    assert FactsBook(tmp_path).of("c") is None
    whole = (tmp_path / NAME).read_bytes()
    for damage in (b"", whole[:-5], b"\xff" * 40, b"[" * 100_000, whole.replace(b'"version":"', b'"version":"9')):
        (tmp_path / NAME).write_bytes(damage)
        assert FactsBook(tmp_path).of("a") is None
        FactsBook(tmp_path).learn("a", SEEN)
        assert FactsBook(tmp_path).of("a") == SEEN
    assert [path.name for path in tmp_path.iterdir()] == [NAME]


def test_the_oldest_of_very_many_models_is_forgotten(tmp_path: Path) -> None:
    book = FactsBook(tmp_path)
    for number in range(MAX_MODELS + 1):
        book.learn(str(number), SEEN)
    assert (book.of("0"), book.of("1"), book.of(str(MAX_MODELS))) == (None, SEEN, SEEN)


def test_a_folder_that_takes_no_file_costs_nothing(tmp_path: Path) -> None:
    FactsBook(tmp_path / "missing").learn("a", SEEN)
    assert FactsBook(tmp_path / "missing").of("a") is None


def test_what_the_text_of_a_template_mentions_is_called_a_guess() -> None:
    assert declared("{{ tools }}").source == "declared"
    assert declared("{{ messages }}") == TemplateFacts(source="declared")
