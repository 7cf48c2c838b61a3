"""The engines that the contract suite runs on. A new engine is one entry in :data:`ENGINES`.

A case tells what the suite cannot know by itself: which model to open, and what its tokeniser and template make of a
conversation, computed here without any of the engine's own code for sessions.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from modeld.chat.template import ChatTemplate
from modeld.engine.fake.backend import TEMPLATE
from modeld.session import ModelRef
from modeld.types import Message, Tool

DATA = Path(__file__).parent.parent / "data"
TINY_F16 = DATA / "tiny-f16.gguf"


@dataclass(frozen=True)
class EngineCase:
    """An engine under the contract.

    :param ref: a model it serves. :param tokenize: text to ids. :param template: of that model.
    :param asks: things to ask whose answers are text without any tag.
    """

    name: str
    ref: ModelRef
    tokenize: Callable[[str], list[int]]
    template: Callable[[], ChatTemplate]
    asks: Sequence[str]
    tool: Tool
    tool_ask: str
    window: int
    long_ask: str
    shares: bool = True
    """Any beginning of a conversation can be taken up again; else only where the engine kept the state."""

    def prompt(self, messages: Sequence[Message], tools: Sequence[Tool] = (), think: str = "auto") -> list[int]:
        """Ids of the conversation with the generation prompt."""
        rendered = self.template().render(messages, tools, think=think, add_generation_prompt=True)  # type: ignore[arg-type]
        return self.tokenize(rendered)


@cache
def _tiny_vocabulary() -> Any:
    import llama_cpp.llama_cpp as native

    params = native.llama_model_default_params()
    params.vocab_only = True
    model = native.llama_model_load_from_file(str(TINY_F16).encode(), params)
    assert model
    return native, native.llama_model_get_vocab(model), native.llama_model_chat_template(model, None).decode()


def tiny_tokens(text: str) -> list[int]:
    """What tiny's tokeniser makes of ``text``, straight from the binding."""
    native, vocabulary, _ = _tiny_vocabulary()
    data = text.encode()
    ids = (ctypes.c_int32 * (len(data) + 8))()
    count = native.llama_tokenize(vocabulary, data, len(data), ids, len(ids), False, True)
    assert count >= 0
    return list(ids[:count])


@cache
def _tiny_template() -> ChatTemplate:
    return ChatTemplate(_tiny_vocabulary()[2], bos="<|endoftext|>", eos="<|im_end|>")


@cache
def _fake_template() -> ChatTemplate:
    return ChatTemplate(TEMPLATE)


def _tool(name: str, description: str, parameter: str) -> Tool:
    from modeld.types import FunctionTool

    schema = {"type": "object", "properties": {parameter: {"type": "string"}}, "required": [parameter]}
    return Tool(FunctionTool(name, description, schema))


WEATHER = _tool("get_weather", "Get the weather in a city.", "city")

ENGINES = {
    "fake": EngineCase(
        name="fake",
        ref=ModelRef("fake"),
        tokenize=lambda text: list(map(ord, text)),
        template=_fake_template,
        asks=("one", "two things", "3", "vier \N{SNOWMAN}", "five\nlines", "six", "seven", "eight", "nine", "ten"),
        tool=WEATHER,
        tool_ask='!call get_weather {"city": "Oslo"}',
        window=4096,
        long_ask="!count 400",
    ),
    "llama": EngineCase(
        name="llama",
        ref=ModelRef(path=str(TINY_F16)),
        tokenize=tiny_tokens,
        template=_tiny_template,
        asks=(
            "Hello!",
            "Count to 12.",
            "Repeat: river stone 42 lotus",
            "Remember that kiwi is 77.",
            "What is kiwi?",
            "Who are you?",
            "Repeat: amber kite",
            "Thanks!",
            "Count to 30.",
            "Bye.",
        ),
        tool=WEATHER,
        tool_ask="What is the weather in Oslo?",
        window=8192,
        long_ask="Count to 60.",
    ),
}
