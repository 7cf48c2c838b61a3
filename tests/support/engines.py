"""The engines that the contract suite runs on. A new engine is one entry in :data:`ENGINES`.

A case tells what the suite cannot know by itself: which model to open, and what its tokeniser and template make of a
conversation, computed here without any of the engine's own code for sessions.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from modeld.chat.template import ChatTemplate
from modeld.engine.fake.lexicon import TEMPLATE
from modeld.session import ModelRef
from modeld.types import Message, Receipt, Tool

DATA = Path(__file__).parent.parent / "data"
TINY_F16 = DATA / "tiny-f16.gguf"
TINY_IR = DATA / "tiny-ov"


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
    copies: bool = False
    """A beginning that sessions share is copied, not held once."""
    embeds: bool = True
    adapts: bool = True
    other_kv: str = "q8_0"
    """A KV type besides f16."""

    def prompt(self, messages: Sequence[Message], tools: Sequence[Tool] = (), think: str = "auto") -> list[int]:
        """Ids of the conversation with the generation prompt."""
        return self._ids(messages, tools, think, generate=True)

    def again(self, messages: Sequence[Message], tools: Sequence[Tool] = (), think: str = "auto") -> int:
        """Tokens that are computed when the same is asked again. Logits are kept nowhere, so it is one at least.

        Without :attr:`shares` it begins at the last place where the state was kept: where the question ends, or after
        the system prompt, where the first is not 32 tokens beyond the second. A beginning below 32 tokens is not kept.
        """
        prompt = self.prompt(messages, tools, think)
        if self.shares:
            return 1
        stable = [message for message in messages if message.role == "system"]
        places = ([*stable, Message("user", "")], messages)
        kept = 0
        for place in sorted(shared(prompt, self._ids(place, tools, think, generate=False)) for place in places):
            kept = place if place - kept >= 32 else kept
        return len(prompt) - kept

    def begins(self, common: int) -> int:
        """Of a beginning of ``common`` tokens that two conversations share: what the second one reuses."""
        assert self.shares or common < 32, "then it depends on the places"
        return common if self.shares else 0

    def warm(self, receipt: Receipt) -> int:
        """Tokens that were not computed. Only where an end cannot be forgotten may some come from RAM."""
        return receipt.reused if self.shares else receipt.reused + receipt.restored

    def _ids(self, messages: Sequence[Message], tools: Sequence[Tool], think: str, *, generate: bool) -> list[int]:
        rendered = self.template().render(messages, tools, think=think, add_generation_prompt=generate)  # type: ignore[arg-type]
        return self.tokenize(rendered)


def shared(old: Sequence[int], new: Sequence[int]) -> int:
    """Longest common prefix, item by item."""
    return next((n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))


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
ENGINES["openvino"] = replace(
    ENGINES["llama"],
    name="openvino",
    ref=ModelRef(path=str(TINY_IR)),
    copies=True,
    embeds=False,
    adapts=False,
    other_kv="f32",
)
"""The same model: its tokeniser and template must make the same of a conversation."""
